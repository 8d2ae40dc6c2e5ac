//! The hot path: a few entries that one thread keeps for itself.
//!
//! What a hit must cost: the hash, one load of the shard's stamp, one of the clock, one place's four words, one comparison of
//! keys; no lock, no read-modify-write, no reference count. A place that was filled under an older stamp, or whose end has
//! come within the clock's lag, is none.

use crate::entry::Entry;
use std::borrow::Borrow;
use std::sync::Arc;

/// Entries whose hashes share their lowest bits have so many places. Sixteen hot keys in 64 places meet by threes now and then, and
/// seldom by fives.
const WAYS: usize = 4;

#[derive(Debug)]
pub(crate) struct Place<K, V> {
    hash: u64,
    /// The stamp that was read before the entry was fetched.
    stamp: u64,
    /// Up to this time of the coarse clock it is fresh for sure.
    safe_until: u64,
    entry: Option<Arc<Entry<K, V>>>,
}

/// A set-associative front. It pins as many values as it has places.
#[derive(Debug)]
pub(crate) struct Front<K, V> {
    sets: Box<[[Place<K, V>; WAYS]]>,
}

/// Which place.
pub(crate) type At = (usize, usize);

impl<K, V> Front<K, V> {
    /// `places` is rounded up to a power of two, at least four.
    pub(crate) fn new(places: usize) -> Self {
        let sets = places.div_ceil(WAYS).max(1).next_power_of_two();
        let place = |_| Place {
            hash: 0,
            stamp: 0,
            safe_until: 0,
            entry: None,
        };
        Self {
            sets: (0..sets).map(|_| std::array::from_fn(place)).collect(),
        }
    }

    #[inline]
    fn set_index(&self, hash: u64) -> usize {
        hash as usize & (self.sets.len() - 1)
    }

    /// Where the entry of a key is, if it is still the current one of its shard.
    #[inline]
    pub(crate) fn find<Q>(&self, hash: u64, key: &Q, stamp: u64, now: u64) -> Option<At>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq,
    {
        let index = self.set_index(hash);
        let set = &self.sets[index];
        for (way, place) in set.iter().enumerate() {
            if place.hash == hash
                && place.stamp == stamp
                && now < place.safe_until
                && let Some(entry) = &place.entry
                && entry.key.borrow() == key
            {
                return Some((index, way));
            }
        }
        None
    }

    #[inline]
    pub(crate) fn value(&self, (set, way): At) -> Option<&V> {
        self.sets[set][way].entry.as_ref()?.value()
    }

    /// Keeps an entry. What had its place is given back, to be dropped when nothing is borrowed.
    pub(crate) fn keep(
        &mut self,
        entry: Arc<Entry<K, V>>,
        stamp: u64,
        safe_until: u64,
    ) -> (At, Option<Arc<Entry<K, V>>>) {
        let hash = entry.hash;
        let index = self.set_index(hash);
        let set = &mut self.sets[index];
        // Its own former place, or else an empty one, or else one that its neighbours take turns to lose.
        let way = set
            .iter()
            .position(|place| place.entry.is_some() && place.hash == hash)
            .or_else(|| set.iter().position(|place| place.entry.is_none()))
            .unwrap_or((hash >> 32) as usize % WAYS);
        let old = std::mem::replace(
            &mut set[way],
            Place {
                hash,
                stamp,
                safe_until,
                entry: Some(entry),
            },
        );
        ((index, way), old.entry)
    }
}
