//! Whether there is an order in which a VM's answers make sense.
//!
//! Each name is a register of its own, so histories are checked name by name: by the search of Wing and Gong (1993) with
//! Lowe's memory of configurations (2017), "Testing for linearizability".

use std::collections::HashSet;

/// What a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    Absent,
    Stopped,
    Running,
}

/// What was asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Request {
    Create,
    Start,
    Stop,
    Delete,
    Get,
}

/// One request and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) request: Request,
    /// `Some(true)`: done, or there; `Some(false)`: refused, or not there; `None`: nobody knows.
    pub(super) is_done: Option<bool>,
    /// What a `Get` saw running.
    pub(super) saw_running: bool,
    /// When it was first sent, and when its answer came; any clock that all share.
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
}

impl Operation {
    /// The state after it, if it may take effect on `before` with the answer it got.
    fn after(&self, before: State) -> Option<State> {
        use Request::{Create, Delete, Get, Start, Stop};
        let exists = before != State::Absent;
        let (is_done, after) = match self.request {
            Create if exists => (false, before),
            Create => (true, State::Stopped),
            _ if !exists => (false, before),
            Start => (true, State::Running),
            Stop => (true, State::Stopped),
            Delete => (true, State::Absent),
            Get => (true, before),
        };
        let answered = match self.is_done {
            None => true,
            Some(answer) => answer == is_done,
        };
        let seen = self.request != Get
            || self.is_done != Some(true)
            || self.saw_running == (before == State::Running);
        (answered && seen).then_some(after)
    }
}

/// What a search for an order found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is an order that respects time and explains all answers: the places of the operations in it. Operations whose
    /// outcome nobody knows are left out where they need not have happened.
    Ordered(Vec<usize>),
    /// There is none.
    None,
    /// The search reached its bound, [`CONFIGURATIONS_MAX`].
    Undecided,
}

/// Sets of operations with a state that one search looks at, some 100 bytes each.
const CONFIGURATIONS_MAX: usize = 1 << 20;

/// Searches for an order of the operations on one name.
pub(super) fn order(operations: &[Operation]) -> Verdict {
    let all = operations.len();
    let mut by_start: Vec<usize> = (0..all).collect();
    by_start.sort_by_key(|&place| operations[place].start_ns);
    let mut seen: HashSet<(Vec<u64>, State)> = HashSet::new();
    let mut stack = vec![(vec![0_u64; all.div_ceil(64)], State::Absent, Vec::new())];
    let has = |set: &[u64], place: usize| set[place / 64] >> (place % 64) & 1 == 1;
    while let Some((done, state, order)) = stack.pop() {
        let open = || by_start.iter().copied().filter(|&place| !has(&done, place));
        // What nobody knows the end of need not have happened.
        if open().all(|place| operations[place].is_done.is_none()) {
            return Verdict::Ordered(order);
        }
        // The next one in the order must have begun before any open one has ended.
        let first_end = open()
            .filter(|&place| operations[place].is_done.is_some())
            .map(|place| operations[place].end_ns)
            .min()
            .unwrap_or(u64::MAX);
        let mut next = Vec::new();
        for place in open().take_while(|&place| operations[place].start_ns <= first_end) {
            if let Some(after) = operations[place].after(state) {
                let mut set = done.clone();
                set[place / 64] |= 1 << (place % 64);
                if seen.insert((set.clone(), after)) {
                    let mut order = order.clone();
                    order.push(place);
                    next.push((set, after, order));
                }
            }
        }
        // What began first is tried first.
        stack.extend(next.into_iter().rev());
        if seen.len() > CONFIGURATIONS_MAX {
            return Verdict::Undecided;
        }
    }
    Verdict::None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_linearizable(operations: &[Operation]) -> bool {
        let verdict = order(operations);
        assert_ne!(verdict, Verdict::Undecided);
        verdict != Verdict::None
    }

    fn operation(request: Request, is_done: Option<bool>, from: u64, to: u64) -> Operation {
        Operation {
            request,
            is_done,
            saw_running: false,
            start_ns: from,
            end_ns: to,
        }
    }

    #[test]
    fn a_lost_write_is_found() {
        use Request::{Create, Get};
        let created = operation(Create, Some(true), 0, 10);
        assert!(is_linearizable(&[
            created,
            operation(Get, Some(true), 20, 30)
        ]));
        assert!(!is_linearizable(&[
            created,
            operation(Get, Some(false), 20, 30)
        ]));
        // While the create is under way, either answer is right.
        assert!(is_linearizable(&[
            created,
            operation(Get, Some(false), 5, 30)
        ]));
    }

    #[test]
    fn what_nobody_knows_may_happen_late_or_never() {
        use Request::{Create, Get};
        let unknown = operation(Create, None, 0, 10);
        assert!(is_linearizable(&[
            unknown,
            operation(Get, Some(false), 20, 30)
        ]));
        assert!(is_linearizable(&[
            unknown,
            operation(Get, Some(false), 20, 30),
            operation(Get, Some(true), 40, 50)
        ]));
        // But not to and fro.
        assert!(!is_linearizable(&[
            unknown,
            operation(Get, Some(true), 20, 30),
            operation(Get, Some(false), 40, 50)
        ]));
    }

    #[test]
    fn only_one_of_two_creates_wins() {
        use Request::{Create, Delete};
        let twice = [
            operation(Create, Some(true), 0, 10),
            operation(Create, Some(true), 0, 10),
        ];
        assert!(!is_linearizable(&twice));
        let with_delete = [twice[0], twice[1], operation(Delete, Some(true), 0, 10)];
        assert!(is_linearizable(&with_delete));
    }

    #[test]
    fn a_stale_read_is_found() {
        use Request::{Create, Get, Start};
        let mut stale = operation(Get, Some(true), 40, 50);
        let history = |get| {
            [
                operation(Create, Some(true), 0, 10),
                operation(Start, Some(true), 20, 30),
                get,
            ]
        };
        assert!(!is_linearizable(&history(stale)));
        stale.saw_running = true;
        assert!(is_linearizable(&history(stale)));
    }

    #[test]
    fn long_histories_of_a_few_clients_are_checked_quickly() {
        let mut operations = Vec::new();
        for round in 0..500_u64 {
            let at = round * 100;
            let request = if round % 2 == 0 {
                Request::Create
            } else {
                Request::Delete
            };
            operations.push(operation(request, Some(true), at, at + 50));
            operations.push(operation(
                Request::Stop,
                Some(round % 2 == 0),
                at + 10,
                at + 90,
            ));
        }
        assert!(is_linearizable(&operations));
    }
}
