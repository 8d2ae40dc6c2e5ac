//! A cached value with the times that decide about it.

use crate::queues::Payload;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An error that a computation returned, shared by all its callers.
pub(crate) type Failure = Arc<dyn Any + Send + Sync>;

/// What is cached for a key.
#[derive(Debug)]
pub(crate) enum Content<V> {
    Value(V),
    /// The computation failed, and it is not to be tried again for a while.
    Failed(Failure),
}

/// What is cached for a key, and until when. Times are nanoseconds of [`Time`](crate::Time).
///
/// In this order: what each read asks for comes first, beside the reference counts.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry<K, V> {
    /// From here on it is stale.
    pub(crate) fresh_until: u64,
    pub(crate) key: K,
    pub(crate) content: Content<V>,
    pub(crate) hash: u64,
    pub(crate) weight: u32,
    /// From here on it is not served at all; not before `fresh_until`.
    pub(crate) ends: u64,
    /// When it was last read through the shared table, for the idle TTL.
    ///
    /// Relaxed here and above: each number is all there is to see.
    pub(crate) read_at: AtomicU64,
    /// No new attempt to refresh it before this time.
    pub(crate) retry_at: AtomicU64,
}

/// What an entry is good for at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    Fresh,
    Stale,
    Ended,
}

impl<K, V> Entry<K, V> {
    pub(crate) fn value(&self) -> Option<&V> {
        match &self.content {
            Content::Value(value) => Some(value),
            Content::Failed(_) => None,
        }
    }
}

/// An entry in the form in which a table holds it.
pub(crate) trait Stored<K, V>: Payload + Sized {
    /// The form of an entry; `None` if it has none.
    fn new(entry: Entry<K, V>) -> Option<Self>;

    /// Called under the lock when it is put in.
    fn set_number(&mut self, _number: u32) {}

    /// What may leave the lock: a copy, or a reference counted. Runs no code of the user.
    fn copied(&self) -> Option<Self>;

    /// Whether both are one insertion.
    fn is(&self, other: &Self) -> bool;

    /// The same for an entry that has ended.
    fn is_of(&self, entry: &Arc<Entry<K, V>>) -> bool;

    fn key(&self) -> &K;

    /// `None` of a failure.
    fn value(&self) -> Option<&V>;

    fn fresh_until(&self) -> u64;

    fn ends(&self) -> u64;

    /// When it ends for want of reads.
    fn idle_end(&self, idle: Option<u64>) -> u64;

    /// What it is good for at `now`, which is exact.
    fn freshness(&self, now: u64, idle: Option<u64>) -> Freshness {
        if now >= self.ends() || now >= self.idle_end(idle) {
            Freshness::Ended
        } else if now >= self.fresh_until() {
            Freshness::Stale
        } else {
            Freshness::Fresh
        }
    }

    /// The entry, in `spare` if nothing else refers to that one.
    fn into_entry(self, hash: u64, spare: Option<Arc<Entry<K, V>>>) -> Arc<Entry<K, V>>;
}

impl<K, V> Payload for Arc<Entry<K, V>> {
    type Line = crate::queues::HalfLine;
}

impl<K, V> Stored<K, V> for Arc<Entry<K, V>> {
    fn new(entry: Entry<K, V>) -> Option<Self> {
        Some(Self::new(entry))
    }

    #[inline]
    fn copied(&self) -> Option<Self> {
        Some(Self::clone(self))
    }

    fn is(&self, other: &Self) -> bool {
        Self::ptr_eq(self, other)
    }

    fn is_of(&self, entry: &Arc<Entry<K, V>>) -> bool {
        Self::ptr_eq(self, entry)
    }

    #[inline]
    fn key(&self) -> &K {
        &self.key
    }

    #[inline]
    fn value(&self) -> Option<&V> {
        Entry::value(self)
    }

    #[inline]
    fn fresh_until(&self) -> u64 {
        self.fresh_until
    }

    #[inline]
    fn ends(&self) -> u64 {
        self.ends
    }

    #[inline]
    fn idle_end(&self, idle: Option<u64>) -> u64 {
        idle.map_or(u64::MAX, |idle| {
            self.read_at.load(Ordering::Relaxed).saturating_add(idle)
        })
    }

    fn into_entry(self, _: u64, _: Option<Arc<Entry<K, V>>>) -> Arc<Entry<K, V>> {
        self
    }
}
