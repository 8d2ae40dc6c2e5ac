//! Tells repeated deliveries from legitimate repetition.

use crate::primitive::mutant;
use std::collections::BTreeMap;

/// How many recent sequence numbers of a connection are remembered one by one.
const WINDOW: u64 = 128;

/// What a sequence number is to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// Not seen before: handle it.
    Fresh,
    /// Seen before: drop it.
    Duplicate,
    /// So far behind that it is not remembered: drop it; Raft sends again what matters.
    TooOld,
}

/// Drops messages that a network delivers twice.
///
/// Keyed by connection and sequence number, never by content: Raft repeats messages on purpose (heartbeats, probes,
/// appends whose answer was lost), and a node that drops those stops making progress.
///
/// A connection is remembered by the highest number seen and a window of 128 below it, in 48 bytes, so messages may be
/// reordered within the window. At most `connections_max` are remembered; the one that was quiet for longest is
/// forgotten first. No allocation for known connections.
///
/// ```
/// use perf_raft::dedup::{Delivery, MessageDedup};
///
/// let mut dedup = MessageDedup::new(16);
/// assert_eq!(dedup.check(7, 1), Delivery::Fresh);
/// assert_eq!(dedup.check(7, 1), Delivery::Duplicate);
/// assert_eq!(dedup.check(8, 1), Delivery::Fresh); // another connection
/// ```
#[derive(Clone, Debug)]
pub struct MessageDedup {
    connections: BTreeMap<u64, Window>,
    connections_max: usize,
    clock: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    highest: u64,
    /// Bit `n` is set if `highest - n` was seen.
    seen: u128,
    used: u64,
}

impl MessageDedup {
    /// Remembers up to `connections_max` connections, at least one.
    #[must_use]
    pub fn new(connections_max: usize) -> Self {
        Self {
            connections: BTreeMap::new(),
            connections_max: connections_max.max(1),
            clock: 0,
        }
    }

    /// Notes a message and says whether to handle it.
    pub fn check(&mut self, connection: u64, sequence: u64) -> Delivery {
        self.clock += 1;
        if !self.connections.contains_key(&connection) {
            self.make_room();
        }
        let window = self.connections.entry(connection).or_default();
        window.used = self.clock;
        window.check(sequence)
    }

    /// Like [`check`](Self::check), for the simulation's mutant that keys by content.
    pub(crate) fn check_frame(
        &mut self,
        connection: u64,
        sequence: u64,
        content: impl FnOnce() -> u64,
    ) -> Delivery {
        if mutant::is("dedup_by_content") {
            let content = content();
            return self.check(content, 1);
        }
        self.check(connection, sequence)
    }

    /// Forgets a connection that is closed for good.
    pub fn forget(&mut self, connection: u64) {
        self.connections.remove(&connection);
    }

    /// How many connections are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    fn make_room(&mut self) {
        if self.connections.len() < self.connections_max {
            return;
        }
        let oldest = self
            .connections
            .iter()
            .min_by_key(|(_, window)| window.used);
        if let Some(connection) = oldest.map(|(&connection, _)| connection) {
            self.connections.remove(&connection);
        }
    }
}

impl Window {
    fn check(&mut self, sequence: u64) -> Delivery {
        if self.seen == 0 || sequence > self.highest {
            let ahead = if self.seen == 0 {
                WINDOW
            } else {
                sequence - self.highest
            };
            self.seen = if ahead >= WINDOW {
                0
            } else {
                self.seen << ahead
            };
            self.seen |= 1;
            self.highest = sequence;
            return Delivery::Fresh;
        }
        let behind = self.highest - sequence;
        if behind >= WINDOW {
            return Delivery::TooOld;
        }
        let bit = 1_u128 << behind;
        if self.seen & bit != 0 {
            return Delivery::Duplicate;
        }
        self.seen |= bit;
        Delivery::Fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set_with_a_horizon(numbers in prop::collection::vec(1_u64..600, 1..300)) {
            let mut dedup = MessageDedup::new(1);
            let mut seen = BTreeSet::new();
            for number in numbers {
                let highest = seen.last().copied().unwrap_or(number);
                let expected = if number + WINDOW <= highest {
                    Delivery::TooOld
                } else if seen.insert(number) {
                    Delivery::Fresh
                } else {
                    Delivery::Duplicate
                };
                prop_assert_eq!(dedup.check(1, number), expected);
            }
        }
    }

    #[test]
    fn the_quietest_connection_is_forgotten_first() {
        let mut dedup = MessageDedup::new(2);
        for connection in [1, 2, 1, 3] {
            dedup.check(connection, connection);
        }
        assert_eq!(dedup.len(), 2);
        assert_eq!(dedup.check(1, 1), Delivery::Duplicate);
        assert_eq!(dedup.check(2, 2), Delivery::Fresh, "2 was to be forgotten");
    }
}
