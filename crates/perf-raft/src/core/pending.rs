//! Proposals between the log and their commit.

use std::collections::{BTreeMap, VecDeque};

/// A proposal that waits for the entry at an index.
#[derive(Debug)]
struct Pending<T> {
    index: u64,
    token: T,
}

/// Proposals of this node that have an index and no answer. Those of one entry are in the order of its commands.
///
/// Those of the present leadership are in the order of their indexes. Once leadership is lost they become orphans: the next
/// leader may still commit them, so they wait a while for what becomes of their index.
#[derive(Debug)]
pub(super) struct PendingProposals<T> {
    term: u64,
    present: VecDeque<Pending<T>>,
    /// For each tick with proposals the first index of that tick.
    ticks: VecDeque<(u64, u64)>,
    /// By index, term and place in the entry.
    orphans: BTreeMap<(u64, u64, usize), (T, u64)>,
}

/// What is known of a proposal that will have no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// Another entry is committed in its place.
    Dropped,
    /// It may be committed or not.
    Unknown,
}

impl<T> PendingProposals<T> {
    pub(super) fn new() -> Self {
        Self {
            term: 0,
            present: VecDeque::new(),
            ticks: VecDeque::new(),
            orphans: BTreeMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.present.len() + self.orphans.len()
    }

    /// Of the present leadership, those at or below an index.
    pub(super) fn len_up_to(&self, index: u64) -> usize {
        self.present
            .partition_point(|pending| pending.index <= index)
    }

    /// Indexes must not fall within a term.
    pub(super) fn push(&mut self, term: u64, index: u64, token: T, tick: u64) {
        debug_assert!(self.present.is_empty() || self.term == term);
        self.term = term;
        if self.ticks.back().is_none_or(|(at, _)| *at != tick) {
            self.ticks.push_back((tick, index));
        }
        self.present.push_back(Pending { index, token });
    }

    /// Leadership is lost: whatever has no answer by `deadline_tick` gets `Unknown`.
    pub(super) fn orphan(&mut self, deadline_tick: u64) {
        self.ticks.clear();
        let mut last = (0, 0);
        for pending in self.present.drain(..) {
            let place = if last.0 == pending.index {
                last.1 + 1
            } else {
                0
            };
            last = (pending.index, place);
            let key = (pending.index, self.term, place);
            self.orphans.insert(key, (pending.token, deadline_tick));
        }
    }

    /// An entry is committed: gives the proposals of its commands to `found` with their places, and proposals whose index it took to `lost`.
    pub(super) fn committed(
        &mut self,
        index: u64,
        term: u64,
        mut found: impl FnMut(usize, T),
        mut lost: impl FnMut(T, Lost),
    ) {
        let mut place = 0;
        while self
            .present
            .front()
            .is_some_and(|pending| pending.index <= index)
        {
            let Some(pending) = self.present.pop_front() else {
                break;
            };
            if pending.index == index && self.term == term {
                found(place, pending.token);
                place += 1;
            } else {
                lost(pending.token, Lost::Dropped);
            }
        }
        while let Some(entry) = self.orphans.first_entry() {
            let &(orphan_index, orphan_term, place) = entry.key();
            if orphan_index > index {
                break;
            }
            let (token, _) = entry.remove();
            if (orphan_index, orphan_term) == (index, term) {
                found(place, token);
            } else {
                lost(token, Lost::Dropped);
            }
        }
    }

    /// A snapshot holds everything up to an index: it may hold these or not.
    pub(super) fn skipped_to(&mut self, index: u64, mut lost: impl FnMut(T, Lost)) {
        while self
            .orphans
            .first_key_value()
            .is_some_and(|(key, _)| key.0 <= index)
        {
            if let Some((_, (token, _))) = self.orphans.pop_first() {
                lost(token, Lost::Unknown);
            }
        }
    }

    /// Gives up what is not committed after `age_max` ticks, and orphans whose time is over.
    pub(super) fn tick(&mut self, tick: u64, age_max: u64, mut lost: impl FnMut(T, Lost)) {
        while self
            .ticks
            .front()
            .is_some_and(|(at, _)| at.saturating_add(age_max) <= tick)
        {
            self.ticks.pop_front();
            let end = self.ticks.front().map_or(u64::MAX, |(_, first)| *first);
            let old = self.present.partition_point(|pending| pending.index < end);
            for pending in self.present.drain(..old) {
                lost(pending.token, Lost::Unknown);
            }
        }
        if self.orphans.is_empty() {
            return;
        }
        let expired: Vec<(u64, u64, usize)> = self
            .orphans
            .iter()
            .filter(|(_, (_, deadline))| *deadline <= tick)
            .map(|(key, _)| *key)
            .collect();
        for key in expired {
            if let Some((token, _)) = self.orphans.remove(&key) {
                lost(token, Lost::Unknown);
            }
        }
    }

    /// Takes everything apart: the node has stopped.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        let orphans = std::mem::take(&mut self.orphans)
            .into_values()
            .map(|(token, _)| token);
        self.present
            .drain(..)
            .map(|pending| pending.token)
            .chain(orphans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answers<T> = (Vec<(usize, T)>, Vec<(T, Lost)>);

    fn committed<T>(pending: &mut PendingProposals<T>, index: u64, term: u64) -> Answers<T> {
        let (mut all_found, mut all_lost) = (Vec::new(), Vec::new());
        let found = |place, token| all_found.push((place, token));
        let lost = |token, how| all_lost.push((token, how));
        pending.committed(index, term, found, lost);
        (all_found, all_lost)
    }

    #[test]
    fn an_orphan_is_found_by_its_term_and_dropped_by_another() {
        let mut pending = PendingProposals::new();
        pending.push(3, 10, 'a', 1);
        pending.push(3, 10, 'c', 1);
        pending.push(3, 11, 'b', 1);
        pending.orphan(100);
        pending.push(5, 10, 'x', 2); // the node leads again, over a shorter log
        let (found, lost) = committed(&mut pending, 10, 3);
        assert_eq!(found, [(0, 'a'), (1, 'c')]);
        assert_eq!(lost, [('x', Lost::Dropped)]);
        let (found, lost) = committed(&mut pending, 11, 5);
        assert_eq!((found, lost), (vec![], vec![('b', Lost::Dropped)]));
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn what_nobody_knows_is_said_so_in_time() {
        let mut pending = PendingProposals::new();
        for index in 1..=3 {
            pending.push(1, index, index, 1);
        }
        pending.orphan(7);
        let mut lost = Vec::new();
        pending.skipped_to(1, |token, how| lost.push((token, how)));
        pending.tick(6, 100, |token, how| lost.push((token, how)));
        assert_eq!(lost, [(1, Lost::Unknown)]);
        pending.tick(7, 100, |token, how| lost.push((token, how)));
        assert_eq!(lost.len(), 3);
    }

    #[test]
    fn what_is_not_committed_for_long_is_given_up_and_nothing_else_is() {
        let mut pending = PendingProposals::new();
        for (index, tick) in [(5, 1), (6, 1), (7, 3), (8, 4)] {
            pending.push(1, index, index, tick);
        }
        let mut lost = Vec::new();
        assert_eq!(committed(&mut pending, 5, 1), (vec![(0, 5)], vec![]));
        pending.tick(10, 10, |token, how| lost.push((token, how)));
        assert_eq!(lost, []);
        pending.tick(11, 10, |token, how| lost.push((token, how)));
        assert_eq!(lost, [(6, Lost::Unknown)]);
        pending.tick(14, 10, |token, how| lost.push((token, how)));
        assert_eq!((lost.len(), pending.len()), (3, 0));
        assert_eq!(committed(&mut pending, 6, 1), (vec![], vec![]));
    }
}
