//! Frames that wait until handlers have ended.

use crate::error::{Rejection, RejectionCode};
use crate::proto::{FrameRef, Header, Kind, Messages};
use crate::shell::conn::Conn;
use crate::trace::TraceContext;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ServeRole;
use super::method::Method;

/// A frame whose handler may not start yet, or the rest of a frame with several messages. All later frames of its
/// method wait behind it.
struct Held {
    header: Header,
    /// The sequence of the first message.
    sequence: u64,
    trace: Option<TraceContext>,
    /// A copy, so that the read buffer is free while the frame waits.
    payload: Bytes,
    /// The caller has given up. The payload is dropped at once, the entry when its turn comes.
    is_cancelled: bool,
}

/// The held frames of one method, by their sequence.
#[derive(Default)]
pub(super) struct HeldQueue {
    frames: VecDeque<Held>,
    cancelled: usize,
    /// The method is in [`HeldFrames::turns`].
    has_turn: bool,
}

impl HeldQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.len() == self.cancelled
    }

    /// Cancels a frame and returns the bytes of its payload. Costs the logarithm of the queue's length: the entry
    /// stays, marked, and all marked entries are removed once they are more than half.
    fn cancel(&mut self, sequence: u64) -> Option<usize> {
        let place = self
            .frames
            .binary_search_by_key(&sequence, |held| held.sequence);
        let held = self.frames.get_mut(place.ok()?)?;
        if mem::replace(&mut held.is_cancelled, true) {
            return None;
        }
        let payload = mem::take(&mut held.payload);
        self.cancelled += 1;
        if self.cancelled * 2 > self.frames.len() {
            self.frames.retain(|held| !held.is_cancelled);
            self.cancelled = 0;
        }
        Some(payload.len())
    }

    /// Removes and returns the first frame that is not cancelled.
    fn pop(&mut self) -> Option<Held> {
        loop {
            let held = self.frames.pop_front()?;
            if !held.is_cancelled {
                return Some(held);
            }
            self.cancelled -= 1;
        }
    }
}

/// The held frames of all methods of a connection, counted.
///
/// Bounds: `held_max` frames and `handler_bytes_max` bytes of payloads, exceeded by one frame at most. At a bound a
/// further request is answered `Busy`, and a further message without an answer pauses the reading. Entries of cancelled
/// frames are at most as many as the others.
#[derive(Default)]
pub(super) struct HeldFrames {
    frames: usize,
    bytes: usize,
    /// The methods that hold frames, in the order in which they may start handlers. Each is in it once.
    turns: VecDeque<u16>,
    /// The method and the sequence of each held request, by its id.
    requests: HashMap<u64, (u16, u64)>,
}

impl HeldFrames {
    pub(super) fn is_empty(&self) -> bool {
        self.frames == 0
    }

    fn forget(&mut self, held: &Held) {
        self.frames -= 1;
        if held.header.kind == Kind::Request
            && self
                .requests
                .get(&held.header.id)
                .is_some_and(|(_, sequence)| *sequence == held.sequence)
        {
            self.requests.remove(&held.header.id);
        }
    }
}

impl ServeRole {
    /// Holds a frame until handlers have ended, or refuses it at the bound.
    #[cold]
    pub(super) fn hold(
        &mut self,
        (frame, trace): (FrameRef<'_>, Option<TraceContext>),
        sequence: u64,
        conn: &Conn,
    ) {
        let (is_much, has_left) = (self.holds_much(), self.has_handlers_left(conn));
        let Some(Some(method)) = self.methods.get_mut(usize::from(frame.header.method)) else {
            return;
        };
        let header = frame.header;
        let is_request = header.kind == Kind::Request;
        if is_much && has_left && is_request {
            let queue = method.priority.queue();
            let text = "as many requests of this method run and wait as may";
            let rejection = Rejection::new(RejectionCode::Busy, text);
            self.scratch.clear();
            self.reply_inline((header.id, queue), Err(rejection), None);
            return;
        }
        self.is_blocked |= is_much;
        self.held.frames += 1;
        self.held.bytes += frame.payload.len();
        if is_request {
            let place = (header.method, sequence);
            self.held.requests.insert(header.id, place);
        }
        if !mem::replace(&mut method.held.has_turn, true) {
            self.held.turns.push_back(header.method);
        }
        method.held.frames.push_back(Held {
            header,
            sequence,
            trace,
            payload: Bytes::copy_from_slice(frame.payload),
            is_cancelled: false,
        });
        // At the bound the rest of the batch stays unread. Below it the batch is read on, because cancellations of held
        // requests may follow.
        self.must_stop |= self.holds_much() && (!has_left || self.is_blocked);
        // Set before the counts of running handlers are read again: a handler that ends after that read wakes this
        // task.
        conn.has_held.store(true, Ordering::SeqCst);
    }

    pub(super) fn holds_much(&self) -> bool {
        let HeldFrames { frames, bytes, .. } = self.held;
        frames >= self.limits.held_max || bytes >= self.limits.handler_bytes_max
    }

    /// Cancels a request if it is held.
    pub(super) fn cancel_held(&mut self, id: u64) {
        let Some((number, sequence)) = self.held.requests.remove(&id) else {
            return;
        };
        if let Some(Some(method)) = self.methods.get_mut(usize::from(number))
            && let Some(bytes) = method.held.cancel(sequence)
        {
            self.held.frames -= 1;
            self.held.bytes -= bytes;
            self.is_blocked &= self.holds_much();
        }
    }

    /// Starts handlers of held frames, as many as may run: the methods in turn, the frames of a method in order. The
    /// bound on handlers is checked before each message. Costs a step for each method that holds frames.
    pub(super) fn start_held(&mut self, conn: &Arc<Conn>) {
        for _ in 0..self.held.turns.len() {
            if !self.has_handlers_left(conn) {
                break;
            }
            let Some(number) = self.held.turns.pop_front() else {
                break;
            };
            // Taken out of the method, so that `dispatch` does not hold the frame again behind its own queue.
            let Some(mut queue) = self
                .method_mut(number)
                .map(|method| mem::take(&mut method.held))
            else {
                continue;
            };
            self.start_held_of(number, &mut queue, conn);
            queue.has_turn = !queue.is_empty();
            if queue.has_turn {
                self.held.turns.push_back(number);
            }
            if let Some(method) = self.method_mut(number) {
                method.held = queue;
            }
        }
        self.is_blocked &= self.holds_much();
        if self.held.is_empty() {
            conn.has_held.store(false, Ordering::SeqCst);
        }
    }

    fn method_mut(&mut self, number: u16) -> Option<&mut Method> {
        self.methods.get_mut(usize::from(number))?.as_mut()
    }

    fn may_start(&self, number: u16) -> bool {
        let method = self.methods.get(usize::from(number));
        method
            .and_then(Option::as_ref)
            .is_some_and(Method::may_start)
    }

    fn start_held_of(&mut self, number: u16, queue: &mut HeldQueue, conn: &Arc<Conn>) {
        while self.has_handlers_left(conn)
            && self.may_start(number)
            && let Some(mut held) = queue.pop()
        {
            let payload = held.payload.clone();
            if held.header.kind == Kind::Batch {
                let mut messages = Messages::of_rest(&payload);
                while self.has_handlers_left(conn)
                    && self.may_start(number)
                    && let Some(message) = messages.next()
                {
                    let frame = FrameRef::of_message(held.header.of_message(), message, &payload);
                    self.dispatch(frame, None, held.sequence, conn);
                    held.sequence += 1;
                }
                held.payload = payload.slice_ref(messages.rest());
            } else {
                let frame = FrameRef::of_message(held.header, &payload, &payload);
                self.dispatch(frame, held.trace, held.sequence, conn);
                held.payload = Bytes::new();
            }
            self.held.bytes -= payload.len() - held.payload.len();
            if held.header.kind == Kind::Batch && !held.payload.is_empty() {
                queue.frames.push_front(held);
                return;
            }
            self.held.forget(&held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(sequence: u64) -> Held {
        Held {
            header: Header::new(Kind::Request, 0, sequence),
            sequence,
            trace: None,
            payload: Bytes::from_static(b"abc"),
            is_cancelled: false,
        }
    }

    /// Frames cancelled in any order count once, the others stay in order, and marked entries are never more than half.
    #[test]
    fn frames_are_cancelled_in_any_order_once() {
        for step in [1, 3, 7, 11] {
            let mut queue = HeldQueue::default();
            queue.frames.extend((0..20).map(held));
            for count in 0..15 {
                let sequence = (count * step + 5) % 20;
                assert_eq!(queue.cancel(sequence), Some(3), "{sequence}");
                assert_eq!(queue.cancel(sequence), None, "{sequence} twice");
                assert!(queue.cancelled * 2 <= queue.frames.len());
                assert!(!queue.is_empty());
            }
            assert_eq!(queue.cancel(20), None);
            let cancelled: Vec<u64> = (0..15).map(|count| (count * step + 5) % 20).collect();
            let rest = std::iter::from_fn(|| queue.pop()).map(|held| held.sequence);
            let wanted: Vec<u64> = (0..20).filter(|it| !cancelled.contains(it)).collect();
            assert_eq!(rest.collect::<Vec<_>>(), wanted);
            assert!(queue.is_empty() && queue.frames.is_empty());
        }
    }
}
