//! What callers wait by for a computation under way: its followers.
//!
//! Most computations have no followers, so the first of them makes the flight. The leader finds it in the shard when it
//! ends (`store/flights.rs`), and settles it exactly once: with a value, with a failure, or, when it panics or is
//! cancelled, as abandoned. That wakes its followers: a thread by the condition variable, a task by its waker. Wakers
//! are code of an executor, so they are cloned, dropped and woken outside of the lock.

use crate::entry::Entry;
use crate::primitive::{Condvar, Mutex, mutant};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// How many callers wait for one computation. Those beyond compute for themselves.
pub(crate) const WAITERS_MAX: usize = 1 << 16;

/// How a computation ended.
#[derive(Debug)]
pub(crate) enum Outcome<K, V> {
    /// A value or a failure, with its key: another key may have the same hash.
    Computed(Arc<Entry<K, V>>),
    /// The leader panicked or was cancelled: one of the waiters becomes the next leader.
    Abandoned,
}

impl<K, V> Clone for Outcome<K, V> {
    fn clone(&self) -> Self {
        match self {
            Self::Computed(entry) => Self::Computed(Arc::clone(entry)),
            Self::Abandoned => Self::Abandoned,
        }
    }
}

pub(crate) struct Flight<K, V> {
    state: Mutex<State<K, V>>,
    settled: Condvar,
}

struct State<K, V> {
    outcome: Option<Outcome<K, V>>,
    /// A place for each task that waits.
    wakers: Vec<Option<Waker>>,
    /// Places whose tasks have gone.
    free: Vec<usize>,
    waiters: usize,
}

impl<K, V> Flight<K, V> {
    pub(crate) fn new() -> Self {
        let state = State {
            outcome: None,
            wakers: Vec::new(),
            free: Vec::new(),
            waiters: 0,
        };
        Self {
            state: Mutex::new(state),
            settled: Condvar::new(),
        }
    }

    /// Says how it ended. The first word counts.
    pub(crate) fn settle(&self, outcome: Outcome<K, V>) {
        let mut state = self.state.lock();
        let unused = if state.outcome.is_none() {
            state.outcome = Some(outcome);
            None
        } else {
            Some(outcome)
        };
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.settled.notify_all();
        wakers.into_iter().flatten().for_each(Waker::wake);
        drop(unused);
    }

    /// Counts a waiter in, or says that there are too many.
    pub(crate) fn try_enter(self: &Arc<Self>) -> Option<Follower<K, V>> {
        let mut state = self.state.lock();
        if state.waiters >= WAITERS_MAX {
            return None;
        }
        state.waiters += 1;
        drop(state);
        Some(Follower {
            flight: Arc::clone(self),
            place: None,
        })
    }
}

impl<K, V> fmt::Debug for Flight<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").finish_non_exhaustive()
    }
}

/// A waiting caller: a thread by [`wait`](Self::wait), a task as a future.
#[derive(Debug)]
pub(crate) struct Follower<K, V> {
    flight: Arc<Flight<K, V>>,
    /// Where this task's waker lies.
    place: Option<usize>,
}

impl<K, V> Follower<K, V> {
    /// Blocks this thread until the flight is settled.
    pub(crate) fn wait(self) -> Outcome<K, V> {
        let mut state = self.flight.state.lock();
        loop {
            if let Some(outcome) = &state.outcome {
                return outcome.clone();
            }
            self.flight.settled.wait(&mut state);
        }
    }

    fn poll_settled(&mut self, context: &mut Context<'_>) -> Poll<Outcome<K, V>> {
        let mut waker = Some(context.waker().clone());
        let mut state = self.flight.state.lock();
        if let Some(outcome) = &state.outcome {
            let outcome = outcome.clone();
            drop(state);
            drop(waker);
            return Poll::Ready(outcome);
        }
        if mutant::is("flight_registers_without_look") {
            drop(state);
            state = self.flight.state.lock();
        }
        let place = *self.place.get_or_insert_with(|| {
            state.free.pop().unwrap_or_else(|| {
                state.wakers.push(None);
                state.wakers.len() - 1
            })
        });
        // The one before is swapped out, and dropped after the lock.
        if let Some(held) = state.wakers.get_mut(place) {
            std::mem::swap(held, &mut waker);
        }
        drop(state);
        drop(waker);
        Poll::Pending
    }
}

impl<K, V> Future for Follower<K, V> {
    type Output = Outcome<K, V>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().poll_settled(context)
    }
}

impl<K, V> Drop for Follower<K, V> {
    fn drop(&mut self) {
        let mut state = self.flight.state.lock();
        state.waiters -= 1;
        let mut waker = None;
        if let Some(place) = self.place
            && let Some(held) = state.wakers.get_mut(place)
        {
            waker = held.take();
            state.free.push(place);
        }
        drop(state);
        drop(waker);
    }
}
