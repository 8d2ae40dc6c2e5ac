//! How an answer reaches its caller.

use super::slot::{Answerer, LastResort, Slot};
use crate::core::Reply;
use crate::error::ProposeError;
use crate::primitive::mutant;
use crate::primitive::threads::Mutex;
use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;

/// Wakes clients. A waker is the client's code: if it panics, that is the client's affair, not the node's.
pub(crate) fn wake_all(wakers: &mut Vec<Waker>) {
    for waker in wakers.drain(..) {
        wake(waker);
    }
}

/// Answers one caller.
pub(crate) fn wake(waker: Waker) {
    if mutant::is("waker_panics_through") {
        waker.wake();
        return;
    }
    // The hook for panics has reported it, and the waker is gone.
    let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
}

/// What a slot may hold.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Of the state machine.
    Response(Bytes),
    /// Of the core.
    Reply(Reply),
    /// Of a batch, in its order.
    Batch(Vec<Result<Bytes, ProposeError>>),
    /// The node is gone.
    Gone,
}

impl LastResort for Answer {
    fn last_resort() -> Self {
        Self::Gone
    }
}

/// What the core addresses answers by.
#[derive(Debug)]
pub(crate) enum Token {
    One(Answerer<Answer>),
    /// A place in a batch.
    Many(Arc<Batch>, usize),
}

/// Gathers the answers of a batch, so that its client is woken once.
#[derive(Debug)]
pub(crate) struct Batch {
    state: Mutex<BatchState>,
}

#[derive(Debug)]
struct BatchState {
    results: Vec<Result<Bytes, ProposeError>>,
    missing: usize,
    answerer: Option<Answerer<Answer>>,
}

impl Batch {
    pub(crate) fn new(len: usize, slot: Arc<Slot<Answer>>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(BatchState {
                // What gets no answer of its own because the node is gone may have been applied.
                results: vec![Err(ProposeError::Unknown); len],
                missing: len,
                answerer: Some(Answerer::new(slot)),
            }),
        })
    }

    fn answer(&self, place: usize, result: Result<Bytes, ProposeError>) -> Option<Waker> {
        let mut state = self.state.lock();
        if let Some(slot) = state.results.get_mut(place) {
            *slot = result;
        }
        state.missing = state.missing.saturating_sub(1);
        if state.missing > 0 {
            return None;
        }
        let results = std::mem::take(&mut state.results);
        let answerer = state.answerer.take();
        drop(state);
        answerer.and_then(|answerer| answerer.answer(Answer::Batch(results)))
    }
}

impl Token {
    /// Gives a response of the state machine; returns whom to wake.
    #[inline]
    pub(crate) fn respond(self, response: Bytes) -> Option<Waker> {
        match self {
            Self::One(answerer) => answerer.answer(Answer::Response(response)),
            Self::Many(batch, place) => batch.answer(place, Ok(response)),
        }
    }

    /// Gives an answer of the core; returns whom to wake.
    pub(crate) fn reply(self, reply: Reply) -> Option<Waker> {
        match (self, reply) {
            (Self::One(answerer), reply) => answerer.answer(Answer::Reply(reply)),
            (Self::Many(batch, place), Reply::Failed(error)) => batch.answer(place, Err(error)),
            // Batches hold proposals alone.
            (Self::Many(batch, place), _) => batch.answer(place, Err(ProposeError::Unknown)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each answer is moved three times and goes from core to core with its slot.
    #[test]
    fn an_answer_and_its_slot_are_small() {
        assert!(size_of::<Answer>() <= 40, "{}", size_of::<Answer>());
        // With the counts of its `Arc`.
        let slot = size_of::<Slot<Answer>>() + 2 * size_of::<usize>();
        assert!(slot <= 64, "{slot}");
    }
}
