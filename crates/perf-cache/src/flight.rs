//! A computation under way, and the callers that wait for it: its followers.
//!
//! The leader settles a flight exactly once: with a value, with a failure, or, when it panics or is cancelled, as abandoned. That wakes
//! its followers: a thread by the condition variable, a task by its waker. Wakers are code of an executor, so they are
//! cloned, dropped and woken outside of the lock.

use crate::entry::{Entry, Failure};
use crate::primitive::{Condvar, Mutex, mutant};
use std::any::Any;
use std::cell::Cell;
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
    Value(Arc<Entry<K, V>>),
    Failed(Failure),
    /// The leader panicked or was cancelled: one of the waiters becomes the next leader.
    Abandoned,
}

impl<K, V> Clone for Outcome<K, V> {
    fn clone(&self) -> Self {
        match self {
            Self::Value(entry) => Self::Value(Arc::clone(entry)),
            Self::Failed(failure) => Self::Failed(Arc::clone(failure)),
            Self::Abandoned => Self::Abandoned,
        }
    }
}

pub(crate) struct Flight<K, V> {
    pub(crate) key: K,
    /// It refreshes a stale value in the background: a caller without a stale value to return does not wait for it.
    pub(crate) is_refresh: bool,
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

impl<K, V> State<K, V> {
    const fn new() -> Self {
        Self {
            outcome: None,
            wakers: Vec::new(),
            free: Vec::new(),
            waiters: 0,
        }
    }
}

impl<K, V> Flight<K, V> {
    pub(crate) fn new(key: K, is_refresh: bool) -> Self {
        Self {
            key,
            is_refresh,
            state: Mutex::new(State::new()),
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

    /// Whether it is as good as new.
    fn is_unused(&mut self) -> bool {
        let state = self.state.get_mut();
        state.outcome.is_none() && state.wakers.is_empty() && state.free.is_empty()
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

thread_local! {
    /// A flight that had no followers, to be used again.
    static SPARE: Cell<Option<Arc<dyn Any + Send + Sync>>> = const { Cell::new(None) };
}

/// Whether flights are used again: not those whose keys need dropping, which would live on in the spare, and not in models, which loom's
/// locks must not outlive.
const fn is_reused<K>() -> bool {
    !std::mem::needs_drop::<K>() && !cfg!(perf_loom)
}

/// A flight: this thread's spare one, else a new one.
pub(crate) fn make<K, V>(key: K, is_refresh: bool) -> Arc<Flight<K, V>>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    if is_reused::<K>()
        && let Ok(Some(spare)) = SPARE.try_with(Cell::take)
        && let Ok(mut spare) = spare.downcast::<Flight<K, V>>()
        && let Some(flight) = Arc::get_mut(&mut spare)
    {
        // Its state is that of a new one: see `recycle`.
        flight.key = key;
        flight.is_refresh = is_refresh;
        return spare;
    }
    Arc::new(Flight::new(key, is_refresh))
}

/// Keeps a flight for this thread's next one, if nothing refers to it and it had no followers.
pub(crate) fn recycle<K, V>(mut flight: Arc<Flight<K, V>>)
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    if is_reused::<K>() && Arc::get_mut(&mut flight).is_some_and(Flight::is_unused) {
        // The one before holds no key that needs dropping and no value: no code of the user runs here.
        let _ = SPARE.try_with(|spare| spare.set(Some(flight)));
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
