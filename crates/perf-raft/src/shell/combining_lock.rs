//! A lock whose holder also does the work that others queued: the node's task holds it, or a caller that found it free.

use crate::primitive::{AtomicU32, Mutex, Ordering, mutant};

/// How a call of [`CombiningLock::drive`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(perf_loom), allow(unreachable_pub))]
pub enum DriveOutcome {
    /// No work is left.
    Done,
    /// Work remains; the caller must schedule another call.
    More,
    /// Another thread holds the lock. It does one more turn before it leaves.
    Taken,
    /// There is nothing to drive, or no longer.
    Empty,
}

/// Holds what is driven, and counts the threads that want it driven.
///
/// A thread queues its work first, and calls [`drive`](Self::drive) then. The first thread gets the lock. The others add one to the count and leave,
/// and the holder does another turn before it leaves. So a lone caller does its own work, without a task being woken, and no queued work is
/// forgotten. Modelled in `tests/loom.rs`.
#[derive(Debug)]
#[cfg_attr(not(perf_loom), allow(unreachable_pub))]
// On cache lines of its own: clients read what lies beside it while the holder writes here.
#[repr(align(128))]
pub struct CombiningLock<D> {
    /// Calls since the lock was free, the holder's included; 0 if it is free.
    arrivals: AtomicU32,
    /// Locked by the holder, which therefore never waits, and by [`take`](Self::take).
    driven: Mutex<Option<D>>,
}

#[cfg_attr(not(perf_loom), allow(unreachable_pub))]
impl<D> CombiningLock<D> {
    /// A free lock with nothing to drive yet.
    pub fn empty() -> Self {
        Self {
            arrivals: AtomicU32::new(0),
            driven: Mutex::new(None),
        }
    }

    /// Sets what is driven from now on.
    pub fn set(&self, driven: D) {
        *self.driven.lock() = Some(driven);
    }

    /// Takes out what is driven, once no thread drives it. Not to be called from within a turn.
    pub fn take(&self) -> Option<D> {
        self.driven.lock().take()
    }

    /// Gets the lock if it is free, and calls `turn` until it returns false and no other thread has come since the turn began, but
    /// `turns_max` times at most.
    ///
    /// A turn sees all work that was queued before the call: the count is added to with release, and each turn begins with an acquire. A call from
    /// within a turn finds the lock taken.
    pub fn drive(&self, turns_max: u32, mut turn: impl FnMut(&mut D) -> bool) -> DriveOutcome {
        if self.arrivals.fetch_add(1, Ordering::AcqRel) > 0 {
            return DriveOutcome::Taken;
        }
        for _ in 0..turns_max {
            let seen = self.arrivals.load(Ordering::Acquire);
            let Some(more) = self.driven.lock().as_mut().map(&mut turn) else {
                self.arrivals.store(0, Ordering::Release);
                return DriveOutcome::Empty;
            };
            if more {
                continue;
            }
            let left = self
                .arrivals
                .compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed);
            if left.is_ok() {
                return DriveOutcome::Done;
            }
            if mutant::is("combining_lock_forgets_arrival") {
                self.arrivals.store(0, Ordering::Release);
                return DriveOutcome::Done;
            }
        }
        self.arrivals.store(0, Ordering::Release);
        DriveOutcome::More
    }
}
