//! From a hash to a slot: an open-addressed index whose buckets are half a line of the processor's cache each.
//!
//! A look-up reads one bucket: six tags of a byte, all compared at once in one word, and the slots' numbers beside them. What finds its
//! bucket full goes to the next one, and each bucket counts the entries that have passed it, as F14 of folly does, so a look-up
//! knows where to end and nothing is left behind by a removal.

use crate::queues::NONE;

/// Places of a bucket.
const WAYS: usize = 6;
/// On average a bucket has at most so many entries: then few are full.
const LOAD_MAX: usize = 5;
const LOWEST_BITS: u64 = 0x0101_0101_0101_0101;
/// The highest bits of the tags.
const MARKS: u64 = 0x0000_8080_8080_8080;
/// Where the count of those that passed begins, above the tags.
const PASSED: u32 = 8 * WAYS as u32;
/// A bucket that so many have passed counts no more, and look-ups go on behind it for good.
const PASSED_MAX: u64 = 0xFFFF;

#[derive(Clone, Debug)]
#[repr(C, align(32))]
struct Bucket {
    /// A byte for each place, zero if it is empty, and above them how many entries found this bucket full on their way.
    tags: u64,
    /// [`NONE`] in empty places.
    slots: [u32; WAYS],
}

const EMPTY: Bucket = Bucket {
    tags: 0,
    slots: [NONE; WAYS],
};

/// Places of a bucket, as the highest bits of their bytes.
#[derive(Clone, Copy)]
struct Places(u64);

impl Places {
    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let place = self.0.trailing_zeros() / 8;
        self.0 &= self.0 - 1;
        Some(place as usize)
    }
}

impl Bucket {
    /// The places with a tag. Behind the first one there may be others among them.
    #[inline]
    fn places(&self, tag: u64) -> Places {
        let differ = self.tags ^ tag.wrapping_mul(LOWEST_BITS);
        Places(differ.wrapping_sub(LOWEST_BITS) & !differ & MARKS)
    }

    fn set(&mut self, place: usize, tag: u64, slot: u32) {
        let at = 8 * place;
        self.tags = self.tags & !(0xFF << at) | tag << at;
        self.slots[place] = slot;
    }

    #[inline]
    fn passed(&self) -> u64 {
        self.tags >> PASSED
    }

    /// One more has passed, or is gone.
    fn pass(&mut self, is_gone: bool) {
        match (self.passed(), is_gone) {
            (PASSED_MAX, _) => {}
            (_, true) => self.tags -= 1 << PASSED,
            (_, false) => self.tags += 1 << PASSED,
        }
    }
}

/// Slots' numbers by hash. 32 bytes for two and a half to five entries.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Index {
    /// A power of two, or none.
    buckets: Box<[Bucket]>,
    len: usize,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self {
            buckets: Box::new([]),
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A byte that is not zero, of other bits than the bucket's.
    #[inline]
    fn tag(hash: u64) -> u64 {
        hash >> 56 | 1
    }

    /// The bucket that is `step` after the first one of a hash.
    #[inline]
    fn at(&self, hash: u64, step: usize) -> usize {
        (hash as usize).wrapping_add(step) & (self.buckets.len() - 1)
    }

    /// The slot of a hash that `is_it`.
    #[inline]
    pub(crate) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let tag = Self::tag(hash);
        for step in 0..self.buckets.len() {
            let bucket = &self.buckets[self.at(hash, step)];
            let mut places = bucket.places(tag);
            while let Some(place) = places.next() {
                let slot = bucket.slots[place];
                if is_it(slot) {
                    return Some(slot);
                }
            }
            if bucket.passed() == 0 {
                break;
            }
        }
        None
    }

    /// Puts a slot in that is not in here. `held` tells those that are, with their hashes.
    pub(crate) fn insert<H: Iterator<Item = (u64, u32)>>(
        &mut self,
        hash: u64,
        slot: u32,
        held: impl FnOnce() -> H,
    ) {
        if self.len >= self.buckets.len() * LOAD_MAX {
            self.grow(held());
        }
        self.put(hash, slot);
        self.len += 1;
    }

    fn put(&mut self, hash: u64, slot: u32) {
        // There is room, so this ends.
        for step in 0..self.buckets.len() {
            let at = self.at(hash, step);
            let bucket = &mut self.buckets[at];
            if let Some(place) = bucket.places(0).next() {
                bucket.set(place, Self::tag(hash), slot);
                return;
            }
            bucket.pass(false);
        }
    }

    /// Made anew from the slots, which are read in the order of memory; from bucket to bucket each would be a miss.
    #[cold]
    fn grow(&mut self, held: impl Iterator<Item = (u64, u32)>) {
        let count = (self.buckets.len() * 2).max(1);
        self.buckets = vec![EMPTY; count].into();
        held.for_each(|(hash, slot)| self.put(hash, slot));
    }

    /// Takes a slot out, if it is here.
    pub(crate) fn remove(&mut self, hash: u64, slot: u32) {
        let tag = Self::tag(hash);
        for step in 0..self.buckets.len() {
            let at = self.at(hash, step);
            let bucket = &mut self.buckets[at];
            let mut places = bucket.places(tag);
            while let Some(place) = places.next() {
                if bucket.slots[place] == slot {
                    bucket.set(place, 0, NONE);
                    self.len -= 1;
                    for step in 0..step {
                        let at = self.at(hash, step);
                        self.buckets[at].pass(true);
                    }
                    return;
                }
            }
            if bucket.passed() == 0 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_bucket_is_half_a_line() {
        assert_eq!((size_of::<Bucket>(), align_of::<Bucket>()), (32, 32));
    }

    /// Random steps beside a plain map, with hashes that share tags and buckets, and full buckets.
    #[test]
    fn an_index_finds_what_was_put_in_and_nothing_else() {
        for (seed, buckets, hashes) in [(1_u64, 1_u64, 40_u64), (2, 4, 200), (3, 1024, 5000)] {
            let mut below = crate::random::below(seed);
            let mut index = Index::new();
            let mut map: HashMap<u64, u32> = HashMap::new();
            // A slot's number is its hash, shortened: the tag, and the bucket.
            let hash_of = |slot: u32| u64::from(slot >> 16) << 56 | u64::from(slot & 0xFFFF);
            for step in 0..50_000 {
                let slot = ((below(4) << 16) | (below(hashes) % (buckets * 16))) as u32;
                let hash = hash_of(slot);
                let found = index.find(hash, |at| at == slot);
                assert_eq!(found, map.get(&hash).copied(), "step {step}");
                // It fills, and empties.
                let fills = step / 10_000 % 2 == 0;
                if found.is_none() && (fills || below(3) == 0) {
                    index.insert(hash, slot, || map.iter().map(|(hash, slot)| (*hash, *slot)));
                    map.insert(hash, slot);
                } else if found.is_some() && (!fills || below(3) == 0) {
                    index.remove(hash, slot);
                    map.remove(&hash);
                }
                assert_eq!(index.len(), map.len());
            }
            for (hash, slot) in map {
                index.remove(hash, slot);
            }
            assert_eq!(index.len(), 0);
            let is_clean = |bucket: &Bucket| bucket.tags == 0 && bucket.slots == EMPTY.slots;
            assert!(index.buckets.iter().all(is_clean));
        }
    }
    /// More entries of one bucket than it can count.
    #[test]
    fn a_bucket_that_many_have_passed_hides_nothing() {
        let mut index = Index::new();
        let find = |index: &Index, slot| index.find(0, |at| at == slot);
        let put = |index: &mut Index, slot: u32| {
            index.insert(0, slot, || (0..slot).map(|slot| (0, slot)));
        };
        (0..WAYS as u32).for_each(|slot| put(&mut index, slot));
        assert!(index.buckets.len() > 1);
        // As if so many had passed; two more do.
        index.buckets[0].tags |= (PASSED_MAX - 1) << PASSED;
        put(&mut index, 6);
        put(&mut index, 7);
        assert_eq!(index.buckets[0].passed(), PASSED_MAX);
        assert_eq!((find(&index, 6), find(&index, 7)), (Some(6), Some(7)));
        index.remove(0, 6);
        assert_eq!((find(&index, 6), find(&index, 7)), (None, Some(7)));
        assert_eq!(index.buckets[0].passed(), PASSED_MAX);
    }
}
