//! What tells readers with places of their own that a shard has changed.

use crate::primitive::{AtomicU64, Ordering};

/// On lines of its own: every hit of a thread-local cache reads it, and changes are rare. Two lines, since processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Version(AtomicU64);

/// One of each shard.
pub(crate) type Versions = [Version];

impl Version {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    #[inline]
    pub(crate) fn current(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Another one: by the thread that holds the shard's lock, which has counted it.
    pub(crate) fn set(&self, version: u64) {
        self.0.store(version, Ordering::Release);
    }
}
