//! What one thread keeps of one cache: a small front for its hot keys, and a wide one when it reads more than that.
//!
//! The small front stays in the processor's first cache whatever else the thread does, and is looked at first. The wide one is made when a key
//! finds no place in the small one, where the cache is large enough that what it pins is a small share.

use crate::entry::Entry;
use crate::front::Front;
use crate::local::{FRONT_PLACES, WIDE_FRONT_PLACES};
use perf_atomics::clock::CoarseInstant;
use std::borrow::Borrow;
use std::sync::Arc;

/// A cache holds at least so many times what a wide front pins.
const CAPACITY_PER_PLACE: u64 = 16;

/// Whether threads may have wide fronts of a cache of this capacity. Where values are weighed, one may be of any size, and 2048 of them be
/// anything.
pub(crate) fn is_wide(capacity: u64, is_weighed: bool) -> bool {
    !is_weighed && capacity / CAPACITY_PER_PLACE >= WIDE_FRONT_PLACES as u64
}

#[derive(Debug)]
pub(crate) struct Fronts<K, V> {
    near: Front<K, V, FRONT_PLACES>,
    wide: Option<Box<Front<K, V, WIDE_FRONT_PLACES>>>,
}

impl<K, V> Fronts<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            near: Front::new(),
            wide: None,
        }
    }

    /// The value of a key in the small front, under the conditions of [`Front::find`].
    #[inline]
    pub(crate) fn find_near<Q>(
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
        let at = self.near.find(hash, key, stamp, now)?;
        self.near.value(at)
    }

    /// The same in the wide front.
    #[inline]
    pub(crate) fn find_wide<Q>(
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
        let wide = self.wide.as_ref()?;
        let at = wide.find(hash, key, stamp, now)?;
        wide.value(at)
    }

    /// Keeps an entry where it has a place or may have one; gives back what is to be dropped when nothing is borrowed.
    pub(crate) fn keep(
        &mut self,
        entry: Arc<Entry<K, V>>,
        stamp: u64,
        safe_until: u64,
        is_wide: bool,
    ) -> Option<Arc<Entry<K, V>>> {
        if self.near.admits(entry.hash) {
            return self.near.keep(entry, stamp, safe_until).1;
        }
        if !is_wide {
            return Some(entry);
        }
        let wide = self.wide.get_or_insert_with(|| Box::new(Front::new()));
        if wide.admits(entry.hash) {
            wide.keep(entry, stamp, safe_until).1
        } else {
            Some(entry)
        }
    }
}
