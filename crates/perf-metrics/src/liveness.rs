//! Since when a series or an instrument counts, and how it goes away.

use crate::registry::READERS_MAX;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// The reader slot of collections that belong to no [`Reader`](crate::Reader).
pub(crate) const ANONYMOUS: usize = READERS_MAX;

/// How a collection finds a series that leaves.
pub(crate) enum Leaving {
    /// The reader is to have its value.
    Tell,
    /// The reader has its last value.
    Known,
    /// All readers have it, and nothing can be recorded to it any more.
    Gone,
}

/// Since when a series counts, and how it goes away.
#[derive(Debug)]
pub(crate) struct Liveness {
    pub(crate) start: SystemTime,
    /// A collection found something in it, or a record made it.
    is_recorded: AtomicBool,
    /// Of a series that leaves or whose instrument has a retention; most have none.
    state: Mutex<Option<Box<State>>>,
}

#[derive(Debug, Default)]
struct State {
    fingerprint: u64,
    /// Since when it is the same.
    idle_since: Option<Instant>,
    /// A bit for each reader that has the value of this fingerprint, once the series leaves.
    told: u16,
    /// When the series was removed.
    end: Option<SystemTime>,
}

impl Liveness {
    pub(crate) fn new(start: SystemTime, is_recorded: bool) -> Self {
        Self {
            start,
            is_recorded: AtomicBool::new(is_recorded),
            state: Mutex::default(),
        }
    }

    /// Whether it was ever recorded to, given that a collection found it like this.
    pub(crate) fn is_recorded(&self, is_something: bool) -> bool {
        if is_something && !self.is_recorded.load(Ordering::Relaxed) {
            // Relaxed: it says of the past what stays true.
            self.is_recorded.store(true, Ordering::Relaxed);
        }
        is_something || self.is_recorded.load(Ordering::Relaxed)
    }

    /// Whether nothing was recorded for so long.
    pub(crate) fn is_idle(
        &self,
        fingerprint: u64,
        is_touched: bool,
        now: Instant,
        idle: Duration,
    ) -> bool {
        let mut state = self.state.lock();
        let state = state.get_or_insert_default();
        if state.fingerprint != fingerprint || is_touched {
            state.fingerprint = fingerprint;
            state.idle_since = None;
        }
        let since = *state.idle_since.get_or_insert(now);
        now.saturating_duration_since(since) >= idle
    }

    /// `readers` are those that there are, `is_last` says that the value cannot change any more.
    pub(crate) fn leave(
        &self,
        reader: usize,
        readers: u16,
        is_last: bool,
        fingerprint: u64,
    ) -> Leaving {
        let mut state = self.state.lock();
        let state = state.get_or_insert_default();
        if state.fingerprint != fingerprint {
            state.fingerprint = fingerprint;
            state.told = 0;
        }
        let bit = 1 << reader;
        if state.told & bit == 0 {
            state.told |= bit;
            return Leaving::Tell;
        }
        match is_last && state.told & readers == readers {
            true => Leaving::Gone,
            false => Leaving::Known,
        }
    }

    /// Begins to leave, now.
    pub(crate) fn retire(&self) {
        self.state.lock().get_or_insert_default().end = Some(SystemTime::now());
    }

    /// When it was removed.
    pub(crate) fn end(&self) -> Option<SystemTime> {
        self.state.lock().as_ref()?.end
    }

    /// Does not leave after all: should it begin to later, all readers are to be told of it.
    pub(crate) fn stay(&self) {
        *self.state.lock() = None;
    }
}
