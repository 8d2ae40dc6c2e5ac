//! What one thread keeps of one cache: a small front, until it reads more keys than that has room for and the cache is large
//! enough that what a wide one pins is a small share.

use crate::entry::Entry;
use crate::front::Front;
use crate::local::{FRONT_PLACES, WIDE_FRONT_PLACES};
use perf_atomics::clock::CoarseInstant;
use std::borrow::Borrow;
use std::mem;
use std::sync::Arc;

/// A cache holds at least so many times what a wide front pins.
const CAPACITY_PER_PLACE: u64 = 16;

/// Whether threads may have wide fronts of a cache of this capacity. Where values are weighed, one may be of any size, and 2048 of them be
/// anything.
pub(crate) fn is_wide(capacity: u64, is_weighed: bool) -> bool {
    !is_weighed && capacity / CAPACITY_PER_PLACE >= WIDE_FRONT_PLACES as u64
}

/// Of so many strangers one is let in, so that two hot keys which share a place in the door do not keep each other out.
const STRANGERS: u32 = 32;

/// Remembers which keys came of late. Keeping an entry costs the shared count of that one and of another, so a key that does not come again soon is not kept.
#[derive(Debug)]
pub(crate) struct Door<const N: usize> {
    /// Parts of as many hashes as there are places.
    seen: [u32; N],
    strangers: u32,
}

impl<const N: usize> Door<N> {
    const fn new() -> Self {
        Self {
            seen: [0; N],
            strangers: 0,
        }
    }

    #[inline]
    pub(crate) fn place(hash: u64) -> usize {
        (hash >> 32) as usize % N
    }

    /// Whether this key came a short while ago.
    #[inline]
    fn lets_in(&mut self, hash: u64) -> bool {
        let mark = hash as u32;
        let seen = &mut self.seen[Self::place(hash)];
        if *seen == mark {
            return true;
        }
        *seen = mark;
        self.strangers = self.strangers.wrapping_add(1);
        self.strangers.is_multiple_of(STRANGERS)
    }
}

/// A front with a door in front of it.
#[derive(Debug)]
pub(crate) struct Guarded<K, V, const N: usize> {
    front: Front<K, V, N>,
    /// Apart from what each hit reads.
    door: Box<Door<N>>,
}

impl<K, V, const N: usize> Guarded<K, V, N> {
    fn new() -> Self {
        Self {
            front: Front::new(),
            door: Box::new(Door::new()),
        }
    }

    /// Whether it is worth to keep the entry of a hash: there is room for it, or it comes again.
    fn admits(&mut self, hash: u64) -> bool {
        self.front.has_room(hash) || self.door.lets_in(hash)
    }
}

#[derive(Debug)]
pub(crate) enum Fronts<K, V> {
    Near(Guarded<K, V, FRONT_PLACES>),
    Wide(Guarded<K, V, WIDE_FRONT_PLACES>),
}

/// What is no longer kept: to be dropped when nothing is borrowed, since that is code of the user.
#[derive(Debug)]
pub(crate) struct Unused<K, V> {
    pub(crate) has_widened: bool,
    _entry: Option<Arc<Entry<K, V>>>,
    _fronts: Option<Fronts<K, V>>,
}

impl<K, V> Fronts<K, V> {
    pub(crate) fn new() -> Self {
        Self::Near(Guarded::new())
    }

    /// The value of a key, under the conditions of [`Front::find`].
    #[inline]
    pub(crate) fn find<Q>(
        &self,
        hash: u64,
        key: &Q,
        stamp: u64,
        now: Option<CoarseInstant>,
    ) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq,
    {
        match self {
            Self::Near(near) => near.front.value(near.front.find(hash, key, stamp, now)?),
            Self::Wide(wide) => wide.front.value(wide.front.find(hash, key, stamp, now)?),
        }
    }

    /// Keeps an entry where it has a place or may have one. Until when it is safe is asked for only then.
    pub(crate) fn keep(
        &mut self,
        entry: Arc<Entry<K, V>>,
        stamp: u64,
        safe_until: impl FnOnce(&Arc<Entry<K, V>>) -> u64,
        may_widen: bool,
    ) -> Unused<K, V> {
        let hash = entry.hash;
        let mut is_admitted = match self {
            Self::Near(near) => near.admits(hash),
            Self::Wide(wide) => wide.admits(hash),
        };
        let mut near = None;
        if !is_admitted && may_widen && matches!(self, Self::Near(_)) {
            near = Some(mem::replace(self, Self::Wide(Guarded::new())));
            is_admitted = true;
        }
        let entry = if is_admitted {
            let until = safe_until(&entry);
            match self {
                Self::Near(near) => near.front.keep(entry, stamp, until).1,
                Self::Wide(wide) => wide.front.keep(entry, stamp, until).1,
            }
        } else {
            Some(entry)
        };
        Unused {
            has_widened: near.is_some(),
            _entry: entry,
            _fronts: near,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_again_soon_is_let_in() {
        let mut door = Door::<64>::new();
        assert!(!door.lets_in(7));
        assert!(door.lets_in(7));
    }

    #[test]
    fn two_of_one_place_do_not_keep_each_other_out() {
        let mut door = Door::<64>::new();
        let hashes = [1, 2];
        assert_eq!(Door::<64>::place(1), Door::<64>::place(2));
        let turns = (0..2 * STRANGERS as usize).map(|turn| hashes[turn % 2]);
        let let_in = turns.filter(|hash| door.lets_in(*hash));
        assert_eq!(let_in.count(), 2);
    }
}
