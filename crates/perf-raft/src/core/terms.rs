//! The terms of a log's entries: in memory for all entries, wherever the entries are.

use std::collections::VecDeque;

/// Terms by the index they begin at, growing. Some bytes for each election that the log has seen.
#[derive(Debug, Default)]
pub(super) struct Terms {
    /// First index and term. Neighbours have different terms.
    runs: VecDeque<(u64, u64)>,
}

impl Terms {
    /// Adds entries of a term that begin at `first`, behind what there is.
    pub(super) fn push(&mut self, first: u64, term: u64) {
        if self.runs.back().is_none_or(|(_, last)| *last != term) {
            self.runs.push_back((first, term));
        }
    }

    /// The term at an index, that of the last entry for those behind it.
    pub(super) fn get(&self, index: u64) -> Option<u64> {
        // Most that is asked for is near the end.
        let (first, term) = self.runs.back()?;
        if *first <= index {
            return Some(*term);
        }
        let behind = self.runs.partition_point(|(first, _)| *first <= index);
        let run = self.runs.get(behind.checked_sub(1)?)?;
        Some(run.1)
    }

    /// Forgets the terms from `index` on.
    pub(super) fn truncate(&mut self, index: u64) {
        while self.runs.back().is_some_and(|(first, _)| *first >= index) {
            self.runs.pop_back();
        }
    }

    /// Forgets the terms below `index`.
    pub(super) fn advance(&mut self, index: u64) {
        while self.runs.get(1).is_some_and(|(first, _)| *first <= index) {
            self.runs.pop_front();
        }
    }

    pub(super) fn clear(&mut self) {
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_those_of_the_entries() {
        let mut list: Vec<u64> = Vec::new();
        let mut terms = Terms::default();
        let mut first = 1;
        for round in 1..200_u64 {
            match round % 5 {
                // The places of some of the last entries are taken.
                3 => {
                    list.truncate(list.len().saturating_sub(7));
                    terms.truncate(first + list.len() as u64);
                }
                4 => {
                    let gone = 4.min(list.len());
                    list.drain(..gone);
                    first += gone as u64;
                    terms.advance(first);
                }
                _ => {
                    for _ in 0..round % 7 {
                        terms.push(first + list.len() as u64, round / 3);
                        list.push(round / 3);
                    }
                }
            }
            for (index, term) in (first..).zip(&list) {
                assert_eq!(
                    terms.get(index),
                    Some(*term),
                    "round {round}, index {index}"
                );
            }
            assert!(terms.runs.len() <= list.len() + 1);
        }
    }
}
