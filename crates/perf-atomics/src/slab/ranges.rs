//! Which cells are given out.

use std::collections::BTreeMap;

/// Hands out ranges of cell numbers and takes them back; first fit, neighbours are merged.
///
/// Both calls are linear in the number of gaps, which is the number of ranges given back between
/// others that are still in use. They run when an instrument is made or dropped, never on a record.
#[derive(Debug)]
pub(crate) struct Ranges {
    /// Gaps below `end`: start to length.
    gaps: BTreeMap<u32, u32>,
    /// Every number from here on was never given out.
    end: u32,
}

impl Ranges {
    pub(crate) const fn new() -> Self {
        Self {
            gaps: BTreeMap::new(),
            end: 0,
        }
    }

    /// One more than the highest number given out so far.
    pub(crate) fn end(&self) -> u32 {
        self.end
    }

    /// The start of `len` numbers in a row, all below `limit`.
    pub(crate) fn take(&mut self, len: u32, limit: u32) -> Option<u32> {
        let fit = self
            .gaps
            .iter()
            .find(|(_, gap)| **gap >= len)
            .map(|(start, gap)| (*start, *gap));
        if let Some((start, gap)) = fit {
            self.gaps.remove(&start);
            if gap > len {
                self.gaps.insert(start + len, gap - len);
            }
            return Some(start);
        }
        let end = self.end.checked_add(len).filter(|end| *end <= limit)?;
        Some(std::mem::replace(&mut self.end, end))
    }

    /// Takes back a range that [`take`](Self::take) gave out.
    pub(crate) fn give_back(&mut self, mut start: u32, mut len: u32) {
        if let Some((before, gap)) = self.gaps.range(..start).next_back().map(|(s, g)| (*s, *g))
            && before + gap == start
        {
            self.gaps.remove(&before);
            start = before;
            len += gap;
        }
        if let Some(gap) = self.gaps.remove(&(start + len)) {
            len += gap;
        }
        self.gaps.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_set_of_numbers(
            steps in proptest::collection::vec((any::<bool>(), 1u32..40, any::<prop::sample::Index>()), 1..200)
        ) {
            let limit = 500;
            let mut ranges = Ranges::new();
            let mut used = BTreeSet::new();
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (take, len, which) in steps {
                if take || held.is_empty() {
                    let free = |s: &BTreeSet<u32>| (0..=limit - len).any(|at| (at..at + len).all(|n| !s.contains(&n)));
                    match ranges.take(len, limit) {
                        Some(start) => {
                            prop_assert!(start + len <= limit);
                            for n in start..start + len {
                                prop_assert!(used.insert(n), "{n} given out twice");
                            }
                            held.push((start, len));
                        }
                        // A gap at the end may be split between `gaps` and the untouched rest.
                        None => prop_assert!(!free(&used) || ranges.end() + len > limit),
                    }
                } else {
                    let (start, len) = held.swap_remove(which.index(held.len()));
                    for n in start..start + len {
                        used.remove(&n);
                    }
                    ranges.give_back(start, len);
                }
            }
            for (start, len) in held.drain(..) {
                ranges.give_back(start, len);
            }
            // All is merged again: the whole can be taken in one piece.
            let end = ranges.end();
            if end > 0 {
                prop_assert_eq!(ranges.take(end, limit), Some(0));
            }
        }
    }
}
