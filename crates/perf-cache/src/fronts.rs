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

#[derive(Debug)]
pub(crate) enum Fronts<K, V> {
    Near(Box<Front<K, V, FRONT_PLACES>>),
    Wide(Box<Front<K, V, WIDE_FRONT_PLACES>>),
}

/// What is no longer kept: to be dropped when nothing is borrowed, since that is code of the user.
#[derive(Debug)]
pub(crate) struct Unused<K, V> {
    _entry: Option<Arc<Entry<K, V>>>,
    _front: Option<Fronts<K, V>>,
}

impl<K, V> Fronts<K, V> {
    pub(crate) fn new() -> Self {
        Self::Near(Box::new(Front::new()))
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
            Self::Near(front) => front.value(front.find(hash, key, stamp, now)?),
            Self::Wide(front) => front.value(front.find(hash, key, stamp, now)?),
        }
    }

    /// Keeps an entry where it has a place or may have one.
    pub(crate) fn keep(
        &mut self,
        entry: Arc<Entry<K, V>>,
        stamp: u64,
        safe_until: u64,
        may_widen: bool,
    ) -> Unused<K, V> {
        let mut near = None;
        if let Self::Near(front) = self
            && may_widen
            && !front.admits(entry.hash)
        {
            near = Some(mem::replace(self, Self::Wide(Box::new(Front::new()))));
        }
        let entry = match self {
            Self::Near(front) => front.keep_if_admitted(entry, stamp, safe_until),
            Self::Wide(front) => front.keep_if_admitted(entry, stamp, safe_until),
        };
        Unused {
            _entry: entry,
            _front: near,
        }
    }
}
