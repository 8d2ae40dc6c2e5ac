//! What clients saw, and whether one order of events explains it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Puts a value that no other has, and returns what was there.
    Swap(u64),
    Read {
        lease: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Waiting,
    /// It may have happened, or still happen.
    Unknown,
    /// It returned this then.
    Returned(u64, u64),
    NoEffect,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    client: u64,
    key: u64,
    kind: Kind,
    invoked: u64,
    end: End,
}

#[derive(Default)]
pub(crate) struct History {
    operations: Vec<Operation>,
    waiting: BTreeMap<u64, usize>,
}

impl History {
    pub(crate) fn invoke(&mut self, client: u64, key: u64, kind: Kind, now: u64) -> usize {
        self.operations.push(Operation {
            client,
            key,
            kind,
            invoked: now,
            end: End::Waiting,
        });
        let op = self.operations.len() - 1;
        self.waiting.insert(client, op);
        op
    }

    fn end(&mut self, op: usize, end: End) {
        let operation = &mut self.operations[op];
        // An answer to a client that had given up changes nothing but what is known.
        if matches!(operation.end, End::Waiting | End::Unknown) {
            operation.end = end;
        }
        if self.waiting.get(&operation.client) == Some(&op) {
            self.waiting.remove(&operation.client);
        }
    }

    pub(crate) fn returned(&mut self, op: usize, now: u64, value: u64) {
        self.end(op, End::Returned(now, value));
    }

    pub(crate) fn unknown(&mut self, op: usize) {
        self.end(op, End::Unknown);
    }

    pub(crate) fn had_no_effect(&mut self, op: usize) {
        self.end(op, End::NoEffect);
    }

    /// Clients cannot tell whose node died; those that wait give up later.
    pub(crate) fn node_died(&mut self, _now: u64) {}

    pub(crate) fn is_waiting(&self, client: u64) -> bool {
        self.waiting.contains_key(&client)
    }

    /// Gives up what waited for longer than `patience`: its node may have died.
    pub(crate) fn gave_up(&mut self, client: u64, now: u64, patience: u64) -> bool {
        match self.waiting.get(&client) {
            Some(&op) if now - self.operations[op].invoked > patience => {
                self.end(op, End::Unknown);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn key(&self, op: usize) -> u64 {
        self.operations[op].key
    }

    pub(crate) fn is_lease(&self, op: usize) -> bool {
        self.operations[op].kind == Kind::Read { lease: true }
    }

    pub(crate) fn acked_after(&self, time: u64) -> bool {
        self.operations.iter().any(|operation| {
            let Kind::Swap(_) = operation.kind else {
                return false;
            };
            operation.invoked >= time && matches!(operation.end, End::Returned(..))
        })
    }

    /// One that was asked before `time` and has no answer.
    pub(crate) fn still_waiting(&self, time: u64) -> Option<String> {
        let late =
            |operation: &&Operation| operation.end == End::Waiting && operation.invoked < time;
        self.operations
            .iter()
            .find(late)
            .map(|operation| format!("{operation:?}"))
    }

    /// Whether the operations of each key are linearizable. A map is, if each of its keys is.
    pub(crate) fn check(&self) -> Result<(), String> {
        let keys: BTreeSet<u64> = self
            .operations
            .iter()
            .map(|operation| operation.key)
            .collect();
        for key in keys {
            let relevant = |operation: &&Operation| {
                let is_silent_read = matches!(operation.kind, Kind::Read { .. })
                    && !matches!(operation.end, End::Returned(..));
                operation.key == key && operation.end != End::NoEffect && !is_silent_read
            };
            let operations: Vec<Operation> =
                self.operations.iter().filter(relevant).copied().collect();
            check_values(&operations).map_err(|reason| format!("key {key}: {reason}"))?;
            match is_linearizable(&operations) {
                Some(true) => {}
                Some(false) => {
                    return Err(format!("the history of key {key} is not linearizable"));
                }
                None => {
                    return Err(format!(
                        "the history of key {key} has more than {STATES_MAX} states to look at"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// States that the search looks at, of some tens of bytes each.
const STATES_MAX: usize = 1 << 20;

/// What is cheap to see: a value that was returned was written by an operation that had begun, and is overwritten once.
fn check_values(operations: &[Operation]) -> Result<(), String> {
    let mut written = BTreeMap::new();
    for operation in operations {
        if let Kind::Swap(value) = operation.kind {
            written.insert(value, operation.invoked);
        }
    }
    let mut overwritten = BTreeSet::new();
    for operation in operations {
        let End::Returned(at, value) = operation.end else {
            continue;
        };
        if value != 0 && written.get(&value).is_none_or(|invoked| *invoked > at) {
            return Err(format!("{value} was returned before it was written"));
        }
        if matches!(operation.kind, Kind::Swap(_)) && !overwritten.insert(value) {
            return Err(format!("{value} was overwritten twice: a write is lost"));
        }
    }
    Ok(())
}

/// Wing and Gong's search with Lowe's memory of visited states: *Testing for linearizability* (2017). `None` if there are too many.
///
/// Operations without an end may take effect at any time after their invocation, or never.
pub(crate) fn is_linearizable(operations: &[Operation]) -> Option<bool> {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|operation| operation.invoked);
    let returned = |operation: &Operation| match operation.end {
        End::Returned(at, _) => at,
        _ => u64::MAX,
    };
    let words = operations.len().div_ceil(64);
    let mut visited: HashSet<(Vec<u64>, u64)> = HashSet::new();
    // Depth first: what is done, the register, and from which operation on to look.
    let mut stack = vec![(vec![0_u64; words], 0_u64)];
    while let Some((done, value)) = stack.pop() {
        let is_done = |place: usize| done[place / 64] >> (place % 64) & 1 == 1;
        let open = |place: &usize| !is_done(*place);
        let earliest_return = (0..operations.len())
            .filter(open)
            .map(|place| returned(&operations[place]))
            .min();
        let Some(limit) = earliest_return.filter(|&limit| limit != u64::MAX) else {
            return Some(true);
        };
        for place in (0..operations.len()).filter(open) {
            let operation = &operations[place];
            if operation.invoked > limit {
                break;
            }
            let result = match operation.end {
                End::Returned(_, result) => Some(result),
                _ => None,
            };
            let fits = result.is_none_or(|result| result == value);
            if !fits {
                continue;
            }
            let mut next = done.clone();
            next[place / 64] |= 1 << (place % 64);
            let value = match operation.kind {
                Kind::Swap(new) => new,
                Kind::Read { .. } => value,
            };
            if visited.insert((next.clone(), value)) {
                stack.push((next, value));
            }
        }
        if visited.len() > STATES_MAX {
            return None;
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(kind: Kind, invoked: u64, end: End) -> Operation {
        Operation {
            client: 0,
            key: 0,
            kind,
            invoked,
            end,
        }
    }

    #[test]
    fn histories_are_told_apart() {
        let read = Kind::Read { lease: false };
        let stale = [
            operation(Kind::Swap(1), 0, End::Returned(5, 0)),
            operation(read, 6, End::Returned(7, 0)),
        ];
        assert_eq!(is_linearizable(&stale), Some(false));
        let concurrent = [
            operation(Kind::Swap(1), 0, End::Returned(5, 0)),
            operation(read, 4, End::Returned(7, 0)),
        ];
        assert_eq!(is_linearizable(&concurrent), Some(true));
        let unknown = [
            operation(Kind::Swap(1), 0, End::Unknown),
            operation(read, 10, End::Returned(11, 0)),
            operation(read, 12, End::Returned(13, 1)),
        ];
        assert_eq!(is_linearizable(&unknown), Some(true));
        let back_again = [
            operation(Kind::Swap(1), 0, End::Unknown),
            operation(read, 10, End::Returned(11, 1)),
            operation(read, 12, End::Returned(13, 0)),
        ];
        assert_eq!(is_linearizable(&back_again), Some(false));
        let lost = [
            operation(Kind::Swap(1), 0, End::Returned(1, 0)),
            operation(Kind::Swap(2), 2, End::Returned(3, 0)),
        ];
        assert_eq!(is_linearizable(&lost), Some(false));
    }
}
