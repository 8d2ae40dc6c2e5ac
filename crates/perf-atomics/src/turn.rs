//! How a slow change comes to its end beside quick ones.

use crate::primitive::plain::{AtomicU32, Ordering};
use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use std::time::Duration;

/// A change that has lost so often to others claims the turn.
const LOSSES_MAX: u32 = 8;

/// The longest that one change waits for another one that has claimed the turn.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Changes are published by compare-and-swap, so a slow one can lose to quick ones for ever. One that has lost several times
/// claims the turn, and the others wait before they begin.
///
/// No change waits longer than [`WAIT_MAX`]: it runs the user's code, which may wait for another thread's change. The
/// lock is reentrant for the same reason.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    claims: AtomicU32,
    lock: ReentrantMutex<()>,
}

/// A claim of the turn; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    claims: &'a AtomicU32,
    /// `None` if another claim was not given up in time. Then both run beside each other.
    _lock: Option<ReentrantMutexGuard<'a, ()>>,
}

impl Turn {
    /// Claims the turn, after others that have.
    pub(crate) fn claim(&self) -> Claim<'_> {
        // Relaxed here and below: the count is a hint, whose delay costs one more lost attempt.
        self.claims.fetch_add(1, Ordering::Relaxed);
        Claim {
            claims: &self.claims,
            _lock: self.lock.try_lock_for(WAIT_MAX),
        }
    }

    /// Waits while another thread has claimed the turn, but not for ever.
    #[inline]
    pub(crate) fn give_way(&self) {
        if self.claims.load(Ordering::Relaxed) > 0 {
            self.wait();
        }
    }

    #[cold]
    fn wait(&self) {
        drop(self.lock.try_lock_for(WAIT_MAX));
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The attempts of one change.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    turn: &'a Turn,
    left: u32,
    claim: Option<Claim<'a>>,
}

impl<'a> Attempts<'a> {
    #[inline]
    pub(crate) fn new(turn: &'a Turn) -> Self {
        Self {
            turn,
            left: LOSSES_MAX,
            claim: None,
        }
    }

    /// Called before each attempt: gives way to a change that has claimed the turn, or claims it.
    #[inline]
    pub(crate) fn next(&mut self) {
        if self.left > 0 {
            self.left -= 1;
            self.turn.give_way();
        } else if self.claim.is_none() {
            self.claim = Some(self.turn.claim());
        }
    }
}
