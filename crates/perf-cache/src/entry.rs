//! A cached value with the times that decide about it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An error that a computation returned, shared by all who waited for it.
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

    /// When it ends for want of reads.
    pub(crate) fn idle_end(&self, idle: Option<u64>) -> u64 {
        idle.map_or(u64::MAX, |idle| {
            self.read_at.load(Ordering::Relaxed).saturating_add(idle)
        })
    }

    /// What it is good for at `now`, which is exact.
    pub(crate) fn freshness(&self, now: u64, idle: Option<u64>) -> Freshness {
        if now >= self.ends || now >= self.idle_end(idle) {
            Freshness::Ended
        } else if now >= self.fresh_until {
            Freshness::Stale
        } else {
            Freshness::Fresh
        }
    }
}
