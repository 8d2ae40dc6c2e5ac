//! The bound on the memory that the entries of all groups take.

use crate::error::StartError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

/// The bound of [`EntryMemory::of_process`].
const DEFAULT_BYTES: usize = 64 * 1024 * 1024;

/// The largest bound.
const BYTES_MOST: usize = 1 << 40;

/// One bound on the memory that log entries take, for all groups whose nodes share it. Clones are the same bound.
///
/// Entries that are durable and applied leave memory when all groups together are above the bound, those of the group that is above its
/// share first; a share is the bound divided by the number of groups. A follower that needs such entries gets them from disk. Entries that
/// are not applied yet stay. While those of a group are above its share, and all groups above the bound, the group's leader answers
/// proposals with [`Busy`](crate::ProposeError::Busy), and a follower whose state machine is behind takes no more. So no group takes the
/// memory of another one.
///
/// Entries of a log that cannot be read beside its writes ([`LogStore::reader`](crate::LogStore::reader) is `None`) stay in memory and do
/// not count.
///
/// ```
/// let memory = perf_raft::EntryMemory::new(128 * 1024 * 1024)?;
/// assert_eq!(memory.used_bytes(), 0);
/// # Ok::<(), perf_raft::StartError>(())
/// ```
#[derive(Clone, Debug)]
pub struct EntryMemory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bytes_max: usize,
    /// Counts without order: a bound, and no lock.
    used: AtomicUsize,
    groups: AtomicUsize,
}

impl EntryMemory {
    /// A bound of its own, in bytes: up to 1 TiB. With 0 every entry leaves memory as soon as it is applied.
    ///
    /// # Errors
    /// [`StartError::Options`] if it is larger.
    pub fn new(bytes_max: usize) -> Result<Self, StartError> {
        if bytes_max > BYTES_MOST {
            return Err(StartError::Options {
                option: "entry_memory",
                reason: format!("is {bytes_max}, allowed are 0 to {BYTES_MOST}"),
            });
        }
        Ok(Self::of(bytes_max))
    }

    fn of(bytes_max: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                bytes_max,
                used: AtomicUsize::new(0),
                groups: AtomicUsize::new(0),
            }),
        }
    }

    /// The bound of all nodes of this process that were given none: 64 MiB.
    #[must_use]
    pub fn of_process() -> Self {
        static PROCESS: LazyLock<EntryMemory> = LazyLock::new(|| EntryMemory::of(DEFAULT_BYTES));
        PROCESS.clone()
    }

    /// The bound in bytes.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.shared.bytes_max
    }

    /// Bytes of the entries in memory, with what they take beside their payloads.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.shared.used.load(Ordering::Relaxed)
    }
}

/// What one group has of an [`EntryMemory`]. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct GroupMemory {
    shared: Arc<Shared>,
    own: usize,
}

impl GroupMemory {
    pub(crate) fn new(memory: &EntryMemory) -> Self {
        let shared = Arc::clone(&memory.shared);
        shared.groups.fetch_add(1, Ordering::Relaxed);
        Self { shared, own: 0 }
    }

    /// The group's entries take so many bytes now.
    pub(crate) fn set(&mut self, bytes: usize) {
        if bytes > self.own {
            self.shared
                .used
                .fetch_add(bytes - self.own, Ordering::Relaxed);
        } else if bytes < self.own {
            self.shared
                .used
                .fetch_sub(self.own - bytes, Ordering::Relaxed);
        }
        self.own = bytes;
    }

    /// Bytes that the group should free: what it has above `shares` times its share, if all groups are above the bound.
    pub(crate) fn excess(&self, shares: usize) -> usize {
        let shared = &self.shared;
        let above = shared
            .used
            .load(Ordering::Relaxed)
            .saturating_sub(shared.bytes_max);
        if above == 0 {
            return 0;
        }
        let share = shared.bytes_max / shared.groups.load(Ordering::Relaxed).max(1);
        self.own
            .saturating_sub(share.saturating_mul(shares))
            .min(above)
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.shared.bytes_max
    }
}

impl Drop for GroupMemory {
    fn drop(&mut self) {
        self.set(0);
        self.shared.groups.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_frees_what_is_above_its_share() {
        let memory = EntryMemory::new(100).expect("it is in range");
        let (mut one, mut other) = (GroupMemory::new(&memory), GroupMemory::new(&memory));
        one.set(80);
        other.set(20);
        assert_eq!((one.excess(1), other.excess(1)), (0, 0), "it is not above");
        other.set(45);
        assert_eq!(memory.used_bytes(), 125);
        assert_eq!(one.excess(1), 25, "no more than all are above");
        assert_eq!(other.excess(1), 0, "it is below its share");
        assert_eq!(one.excess(2), 0);
        other.set(90);
        assert_eq!((one.excess(1), other.excess(1)), (30, 40));
        drop(other);
        assert_eq!((memory.used_bytes(), one.excess(1)), (80, 0));
        drop(one);
        assert_eq!(memory.used_bytes(), 0);
    }

    #[test]
    fn a_bound_out_of_range_is_refused() {
        let error = EntryMemory::new(BYTES_MOST + 1).expect_err("too large");
        assert!(error.to_string().contains("entry_memory"), "{error}");
        assert_eq!(EntryMemory::of_process().bytes_max(), 64 << 20);
    }
}
