//! The hot path: a few entries that one thread keeps for itself.
//!
//! What a hit must cost: the hash, one load of the shard's stamp, one of the clock, two places' hashes, one comparison of
//! keys; no lock, no read-modify-write, no reference count. A place that was filled under an older stamp, or whose end has
//! come within the clock's lag, is none.
//!
//! Each hash has two places, found by different bits of it ("skewed associativity", Seznec, ISCA 1993), and what is in the way moves to its other
//! place (cuckoo hashing, Pagh and Rodler, ESA 2001): a working set of half the places fits. While there is room most are in
//! their right place, which is what the processor's branch prediction learns.

use crate::entry::Entry;
use perf_atomics::clock::CoarseInstant;
use std::borrow::Borrow;
use std::mem;
use std::sync::Arc;

/// How many entries move to make room for one. Eight reach, at half load, practically always an empty place.
const MOVES_MAX: usize = 8;

/// The most places a front may have.
pub(crate) const PLACES_MAX: usize = 1 << 16;

#[derive(Debug)]
struct Place<K, V> {
    hash: u64,
    /// The stamp that was read before the entry was fetched.
    stamp: u64,
    /// Up to this time of the coarse clock it is fresh for sure.
    safe_until: u64,
    entry: Option<Arc<Entry<K, V>>>,
}

/// It pins as many values as it has places: `N`, a power of two.
#[derive(Debug)]
pub(crate) struct Front<K, V, const N: usize> {
    /// The left places of all hashes, and from the middle on the right ones.
    places: Box<[Place<K, V>; N]>,
}

impl<K, V, const N: usize> Front<K, V, N> {
    const HALF: usize = {
        assert!(
            N.is_power_of_two() && N >= 2 && N <= PLACES_MAX,
            "a front has a power of two of places, from 2 to 65 536"
        );
        N / 2
    };

    pub(crate) fn new() -> Self {
        let place = |_| Place {
            hash: 0,
            stamp: 0,
            safe_until: 0,
            entry: None,
        };
        let places: Box<[Place<K, V>]> = (0..N).map(place).collect();
        Self {
            places: places
                .try_into()
                .unwrap_or_else(|_| unreachable!("as many as were made")),
        }
    }

    const BITS: u32 = Self::HALF.trailing_zeros();

    /// By the bits below the right place's.
    #[inline]
    pub(crate) fn left(hash: u64) -> usize {
        hash.rotate_left(2 * Self::BITS) as usize % Self::HALF
    }

    /// By the highest bits.
    #[inline]
    pub(crate) fn right(hash: u64) -> usize {
        Self::HALF + hash.rotate_left(Self::BITS) as usize % Self::HALF
    }

    /// Where the entry of a key is, if it is here and still the current one of its shard.
    #[inline]
    pub(crate) fn find<Q>(
        &self,
        hash: u64,
        key: &Q,
        stamp: u64,
        now: Option<CoarseInstant>,
    ) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq,
    {
        let (left, right) = (Self::left(hash), Self::right(hash));
        let at = if self.places[right].hash == hash {
            right
        } else {
            left
        };
        let place = &self.places[at];
        // Another hash in the left place is told apart by its key.
        let is_it = place.stamp == stamp
            && now.is_some_and(|now| now.as_nanos() < place.safe_until)
            && place
                .entry
                .as_ref()
                .is_some_and(|entry| entry.key.borrow() == key);
        is_it.then_some(at)
    }

    #[inline]
    pub(crate) fn value(&self, at: usize) -> Option<&V> {
        self.places[at % N].entry.as_ref()?.value()
    }

    /// Whether a hash has a place already, or there is an empty one for it.
    #[inline]
    pub(crate) fn has_room(&self, hash: u64) -> bool {
        let (left, right) = (
            &self.places[Self::left(hash)],
            &self.places[Self::right(hash)],
        );
        (left.hash == hash) | (right.hash == hash) | right.entry.is_none()
    }

    /// Keeps an entry, and says where. What had to go is given back, to be dropped when nothing is borrowed.
    pub(crate) fn keep(
        &mut self,
        entry: Arc<Entry<K, V>>,
        stamp: u64,
        safe_until: u64,
    ) -> (usize, Option<Arc<Entry<K, V>>>) {
        let hash = entry.hash;
        let new = Place {
            hash,
            stamp,
            safe_until,
            entry: Some(entry),
        };
        let (left, right) = (Self::left(hash), Self::right(hash));
        let is_own = |at: usize| {
            let place = &self.places[at];
            place.hash == hash && place.entry.is_some()
        };
        // Its own former place first: a hash is in one place only.
        if let Some(own) = [left, right].into_iter().find(|at| is_own(*at)) {
            let old = mem::replace(&mut self.places[own], new);
            return (own, old.entry);
        }
        self.make_room(right);
        let old = mem::replace(&mut self.places[right], new);
        (right, old.entry)
    }

    /// Moves what is in a place to its other place, and what is there to its own, until an empty one is found; if
    /// none is near, all stay where they are.
    fn make_room(&mut self, start: usize) {
        let mut path = [start; MOVES_MAX + 1];
        let mut len = 0;
        while self.places[path[len]].entry.is_some() {
            if len == MOVES_MAX {
                return;
            }
            let at = path[len];
            let hash = self.places[at].hash;
            let other = if at < Self::HALF {
                Self::right(hash)
            } else {
                Self::left(hash)
            };
            len += 1;
            path[len] = other;
        }
        // From the empty end back to the start, each step a swap with an empty place.
        for step in (0..len).rev() {
            self.places.swap(path[step], path[step + 1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_place_is_room() {
        assert!(Front::<u64, u64, 2>::new().has_room(5));
    }
}
