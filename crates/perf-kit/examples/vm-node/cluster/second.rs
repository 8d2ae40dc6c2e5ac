//! The other opinion on a history: `LinearizabilityTester` of the crate `stateright`, which was not written here.
//!
//! What it is told of a VM is written out anew, so that a mistake in [`history`](super::history) is not repeated. It
//! searches without a memory of what it has tried, so a long history could take it for ever. Two things help:
//!
//! - The order that this project's checker found is a hint. Each operation is a thread of its own, and the threads are
//!   numbered by that order. The tester tries it first, and judges each step itself.
//! - Where no operation is under way, the history is cut. Each part begins with the state that the part before it ends with,
//!   by the hint; a read that is added to the part before makes the tester judge that state, too.
//!
//! A wrong hint makes it search the whole history, up to [`SEARCH_MAX`].

use std::sync::mpsc::channel;
use std::time::Duration;

use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};

use super::history::{Operation, Request};

/// How long it searches at most.
const SEARCH_MAX: Duration = Duration::from_secs(30);
/// Its search is recursive, a few hundred bytes for each operation.
const STACK_BYTES: usize = 64 << 20;

/// A VM: whether it runs, if it is there.
#[derive(Clone, Debug)]
struct Vm(Option<bool>);

/// An answer.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Yes,
    No,
    Seen { running: bool },
}

impl SequentialSpec for Vm {
    type Op = Request;
    type Ret = Answer;

    fn invoke(&mut self, request: &Request) -> Answer {
        match (request, self.0) {
            (Request::Create, None) => self.turn(Some(false)),
            (Request::Create, Some(_)) | (_, None) => Answer::No,
            (Request::Start, Some(_)) => self.turn(Some(true)),
            (Request::Stop, Some(_)) => self.turn(Some(false)),
            (Request::Delete, Some(_)) => self.turn(None),
            (Request::Get, Some(running)) => Answer::Seen { running },
        }
    }
}

impl Vm {
    fn turn(&mut self, state: Option<bool>) -> Answer {
        self.0 = state;
        Answer::Yes
    }
}

/// Whether the operations are linearizable; `None` if that was not found out in time. `hint` has the places of operations in
/// an order that explains them, if one is known.
pub(super) fn is_linearizable(operations: &[Operation], hint: Option<&[usize]>) -> Option<bool> {
    let (operations, hint) = (operations.to_vec(), hint.map(<[usize]>::to_vec));
    let (sender, found) = channel();
    let search = std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let is_right =
                hint.is_some_and(|hint| follows(&operations, &hint)) || is_consistent(&operations);
            // The receiver is gone if the time is over.
            let _ = sender.send(is_right);
        });
    search.ok()?;
    found.recv_timeout(SEARCH_MAX).ok()
}

/// Whether the tester accepts the history as a whole.
fn is_consistent(operations: &[Operation]) -> bool {
    let places: Vec<usize> = (0..operations.len()).collect();
    // An answer before its question is no history.
    tester(operations, &places, &Vm(None), None).is_ok_and(|tester| tester.is_consistent())
}

/// Whether the tester accepts the history part by part, by the hint.
fn follows(operations: &[Operation], hint: &[usize]) -> bool {
    let mut rank = vec![usize::MAX; operations.len()];
    for (number, &place) in hint.iter().enumerate() {
        rank[place] = number;
    }
    let mut before = Vm(None);
    let parts = parts(operations);
    let last = parts.len().saturating_sub(1);
    for (number, mut places) in parts.into_iter().enumerate() {
        places.sort_by_key(|&place| rank[place]);
        let mut after = before.clone();
        for &place in places.iter().filter(|&&place| rank[place] != usize::MAX) {
            after.invoke(&operations[place].request);
        }
        let end = (number < last).then(|| after.clone().invoke(&Request::Get));
        let tester = tester(operations, &places, &before, end);
        if !tester.is_ok_and(|tester| tester.is_consistent()) {
            return false;
        }
        before = after;
    }
    true
}

/// The places of the operations, cut where none is under way.
fn parts(operations: &[Operation]) -> Vec<Vec<usize>> {
    let mut by_start: Vec<usize> = (0..operations.len()).collect();
    by_start.sort_by_key(|&place| operations[place].start_ns);
    let mut parts: Vec<Vec<usize>> = Vec::new();
    let mut end_ns = 0;
    for place in by_start {
        let operation = &operations[place];
        match parts.last_mut() {
            Some(part) if operation.start_ns <= end_ns => part.push(place),
            _ => parts.push(vec![place]),
        }
        let is_known = operation.is_done.is_some();
        end_ns = end_ns.max(if is_known { operation.end_ns } else { u64::MAX });
    }
    parts
}

/// The history of the operations at `places`, which are tried in this order. `end` is what a read after all of them sees.
fn tester(
    operations: &[Operation],
    places: &[usize],
    before: &Vm,
    end: Option<Answer>,
) -> Result<LinearizabilityTester<usize, Vm>, String> {
    // A question at the same instant as an answer comes first: then the two overlap, as they may have.
    let mut events = Vec::new();
    for (thread, &place) in places.iter().enumerate() {
        let operation = &operations[place];
        events.push((operation.start_ns, false, thread));
        if operation.is_done.is_some() {
            events.push((operation.end_ns, true, thread));
        }
    }
    events.sort_unstable();
    let mut tester = LinearizabilityTester::new(before.clone());
    for (_, is_answer, thread) in events {
        let Operation {
            request,
            is_done,
            saw_running,
            ..
        } = operations[places[thread]];
        if is_answer {
            let answer = match (request, is_done) {
                (Request::Get, Some(true)) => Answer::Seen {
                    running: saw_running,
                },
                (_, Some(true)) => Answer::Yes,
                _ => Answer::No,
            };
            tester.on_return(thread, answer)?;
        } else {
            tester.on_invoke(thread, request)?;
        }
    }
    if let Some(end) = end {
        tester.on_invoke(places.len(), Request::Get)?;
        tester.on_return(places.len(), end)?;
    }
    Ok(tester)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::history::{self, Verdict};

    /// A correct history of `clients` that work on one name at once, and what each answer was when it took effect.
    fn history(length: u64, clients: u64) -> Vec<Operation> {
        let requests = [
            Request::Create,
            Request::Start,
            Request::Get,
            Request::Stop,
            Request::Get,
            Request::Delete,
            Request::Get,
        ];
        let mut vm = Vm(None);
        (0..length)
            .map(|number| {
                let request = requests[(number * 5 % 7) as usize];
                let answer = vm.invoke(&request);
                Operation {
                    request,
                    is_done: Some(answer != Answer::No),
                    saw_running: answer == Answer::Seen { running: true },
                    // Each takes effect at 100 * number + 50 and overlaps with `clients` others.
                    start_ns: (100 * number).saturating_sub(50 * clients),
                    end_ns: 100 * number + 50 * clients + 60,
                }
            })
            .collect()
    }

    fn both(operations: &[Operation]) -> (bool, Option<bool>) {
        match history::order(operations) {
            Verdict::Ordered(order) => (true, is_linearizable(operations, Some(&order))),
            Verdict::None => (false, is_linearizable(operations, None)),
            Verdict::Undecided => panic!("the history is short"),
        }
    }

    #[test]
    fn both_checkers_accept_a_right_history_of_many_clients() {
        for clients in [0, 1, 3, 8] {
            let history = history(120, clients);
            assert_eq!(both(&history), (true, Some(true)), "{clients} clients");
        }
    }

    #[test]
    fn both_checkers_reject_each_history_with_a_corrupted_answer() {
        let right = history(21, 1);
        let mut rejected = 0;
        for place in 0..right.len() {
            let mut corrupted = right.clone();
            let operation = &mut corrupted[place];
            if operation.request == Request::Get && operation.is_done == Some(true) {
                operation.saw_running = !operation.saw_running;
            } else {
                operation.is_done = operation.is_done.map(|is_done| !is_done);
            }
            let (ours, theirs) = both(&corrupted);
            assert_eq!(Some(ours), theirs, "answer {place}: {corrupted:?}");
            rejected += usize::from(!ours);
        }
        // Others explain themselves by what overlaps with them.
        assert!(rejected > right.len() / 2, "{rejected}");
    }

    #[test]
    fn both_checkers_reject_a_lost_write_and_a_stale_read() {
        let at = |request, is_done, saw_running, start_ns| Operation {
            request,
            is_done: Some(is_done),
            saw_running,
            start_ns,
            end_ns: start_ns + 10,
        };
        let created = at(Request::Create, true, false, 0);
        let started = at(Request::Start, true, false, 20);
        let lost = [created, at(Request::Get, false, false, 20)];
        let stale = [created, started, at(Request::Get, true, false, 40)];
        let fresh = [created, started, at(Request::Get, true, true, 40)];
        assert_eq!(both(&lost), (false, Some(false)));
        assert_eq!(both(&stale), (false, Some(false)));
        assert_eq!(both(&fresh), (true, Some(true)));
    }

    #[test]
    fn an_unknown_outcome_may_have_happened() {
        let mut unknown = history(1, 0)[0];
        unknown.is_done = None;
        let get = |is_done, start_ns| Operation {
            request: Request::Get,
            is_done: Some(is_done),
            saw_running: false,
            start_ns,
            end_ns: start_ns + 10,
        };
        assert_eq!(both(&[unknown, get(false, 200)]), (true, Some(true)));
        let late = [unknown, get(false, 200), get(true, 300)];
        assert_eq!(both(&late), (true, Some(true)));
        let to_and_fro = [unknown, get(true, 200), get(false, 300)];
        assert_eq!(both(&to_and_fro), (false, Some(false)));
    }

    #[test]
    fn a_wrong_order_does_not_mislead_it() {
        let history = history(14, 1);
        let backwards: Vec<usize> = (0..history.len()).rev().collect();
        assert_eq!(is_linearizable(&history, Some(&backwards)), Some(true));
        let mut corrupted = history;
        corrupted.truncate(2);
        corrupted[1] = Operation {
            request: Request::Get,
            is_done: Some(false),
            start_ns: 1000,
            end_ns: 1010,
            ..corrupted[0]
        };
        assert_eq!(is_linearizable(&corrupted, Some(&[0, 1])), Some(false));
    }
}
