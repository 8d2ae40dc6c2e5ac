//! Ownership of the write side: one owner at a time, and no notification lost.

use crate::primitive::{AtomicU8, Ordering, mutant};

/// There is no owner, and no frame is queued that a writer has not seen.
const IDLE: u8 = 0;
/// A frame was queued since the owner last looked at the queues.
const DIRTY: u8 = 1;
/// A thread that queued something writes it itself.
const BY_CALLER: u8 = 2;
/// The connection's task writes, or is about to.
const BY_TASK: u8 = 4;

/// What [`WriteOwnership::notify`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notified {
    /// There was no owner: the caller is the owner now. It writes, or hands over with [`WriteOwnership::hand_to_task`].
    Claimed,
    /// There is an owner, and it will look again.
    Noted,
}

/// Decides who writes to a connection.
///
/// A caller that has queued a frame calls [`notify`](Self::notify). The first caller becomes the owner of the
/// connection's write side. For the others it is enough that the owner looks at the queues once more before it gives up
/// ownership. So an idle connection is written to by the caller itself, without waking a task, and a busy one by its
/// present owner.
///
/// Queues and ownership are two places in memory. The queue's lock orders them: a notifier that finds `DIRTY` and
/// leaves has queued before the owner's next look, or the owner's clearing of `DIRTY` would have been visible behind
/// that lock. Modelled in `tests/loom.rs`.
#[derive(Debug)]
pub struct WriteOwnership {
    state: AtomicU8,
}

impl Default for WriteOwnership {
    fn default() -> Self {
        Self::new()
    }
}

impl WriteOwnership {
    /// A write side without an owner.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: AtomicU8::new(IDLE),
        }
    }

    /// Notes that a frame was queued. To be called after the queueing.
    #[inline]
    pub fn notify(&self) -> Notified {
        // Relaxed is enough for the look: the queue's lock, taken just before by this thread, orders it behind an
        // earlier owner's `begin`. The exchanges publish and acquire.
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let next = if state == IDLE {
                BY_CALLER
            } else if state & DIRTY != 0 || mutant::is("ownership_forgets_notification") {
                return Notified::Noted;
            } else {
                state | DIRTY
            };
            match self
                .state
                .compare_exchange_weak(state, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(IDLE) => return Notified::Claimed,
                Ok(_) => return Notified::Noted,
                Err(seen) => state = seen,
            }
        }
    }

    /// The owner is about to look into the queues: what is queued from here on is a new notification.
    #[inline]
    pub fn begin(&self) {
        self.state.fetch_and(!DIRTY, Ordering::AcqRel);
    }

    /// The owner has found the queues empty. `true` if it is no longer the owner; `false` if it must look again.
    #[inline]
    pub fn finish(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        if state & DIRTY != 0 {
            return false;
        }
        self.state
            .compare_exchange(state, IDLE, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// The owner makes the task the owner. It must wake the task afterwards.
    #[inline]
    pub fn hand_to_task(&self) {
        // Both bits change in one step; DIRTY stays as it is.
        self.state.fetch_xor(BY_CALLER | BY_TASK, Ordering::AcqRel);
    }

    /// Whether there is no owner. With a frame queued that would be a lost notification. For tests.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.state.load(Ordering::Acquire) == IDLE
    }

    /// Whether the task is the owner. Only the task asks.
    #[inline]
    #[must_use]
    pub fn is_tasks(&self) -> bool {
        self.state.load(Ordering::Acquire) & BY_TASK != 0
    }
}
