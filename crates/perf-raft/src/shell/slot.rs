//! Where one answer is waited for. Slots are used again and again, so a request allocates nothing.

use crate::primitive::{Mutex, mutant};
use std::sync::Arc;
use std::task::{Poll, Waker};

/// The place of one answer: given once, taken once.
#[derive(Debug)]
#[cfg_attr(not(perf_loom), allow(unreachable_pub))]
pub struct Slot<A> {
    state: Mutex<State<A>>,
}

#[derive(Debug)]
enum State<A> {
    Empty,
    /// A caller waits.
    Waiting(Waker),
    Answered(A),
}

#[cfg_attr(not(perf_loom), allow(unreachable_pub))]
impl<A> Slot<A> {
    /// A slot without an answer and without a caller.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State::Empty),
        }
    }

    /// Gives the answer and returns whom to wake, outside of the lock.
    pub fn answer(&self, answer: A) -> Option<Waker> {
        let before = std::mem::replace(&mut *self.state.lock(), State::Answered(answer));
        match before {
            State::Waiting(waker) if !mutant::is("slot_forgets_waker") => Some(waker),
            _ => None,
        }
    }

    /// Takes the answer if it is there, else waits for it.
    pub fn poll(&self, waker: &Waker) -> Poll<A> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Empty) {
            State::Answered(answer) => Poll::Ready(answer),
            State::Waiting(old) => {
                *state = State::Waiting(if old.will_wake(waker) {
                    old
                } else {
                    waker.clone()
                });
                Poll::Pending
            }
            State::Empty => {
                *state = State::Waiting(waker.clone());
                Poll::Pending
            }
        }
    }

    /// Makes the slot empty, to be used again.
    pub(crate) fn clear(&mut self) {
        *self.state.get_mut() = State::Empty;
    }
}

/// The answering side of a slot. Dropped without an answer it gives the one of last resort, so that no caller waits
/// for ever.
#[derive(Debug)]
pub(crate) struct Answerer<A: LastResort> {
    slot: Option<Arc<Slot<A>>>,
}

/// The answer of last resort.
pub(crate) trait LastResort {
    fn last_resort() -> Self;
}

impl<A: LastResort> Answerer<A> {
    pub(crate) fn new(slot: Arc<Slot<A>>) -> Self {
        Self { slot: Some(slot) }
    }

    /// Gives the answer and returns whom to wake.
    pub(crate) fn answer(mut self, answer: A) -> Option<Waker> {
        self.slot.take().and_then(|slot| slot.answer(answer))
    }
}

impl<A: LastResort> Drop for Answerer<A> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take()
            && let Some(waker) = slot.answer(A::last_resort())
        {
            super::answer::wake(waker);
        }
    }
}
