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

    /// To be called with the shard's lock held.
    pub(crate) fn bump(&self) {
        let next = self.0.load(Ordering::Relaxed) + 1;
        self.0.store(next, Ordering::Release);
    }
}
