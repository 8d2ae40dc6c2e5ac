//! Frames that wait until handlers have ended.

use crate::error::{Rejection, RejectionCode};
use crate::proto::{FrameRef, Header, Kind, Messages};
use crate::shell::conn::Conn;
use crate::trace::TraceContext;
use bytes::Bytes;
use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ServeRole;
use super::method::Method;

/// A frame for a handler in a task of its own that may not run yet, or what is left of one with several messages. Behind it wait all later
/// frames of its method.
pub(super) struct Held {
    pub(super) header: Header,
    /// Of the first message.
    pub(super) sequence: u64,
    pub(super) trace: Option<TraceContext>,
    /// A copy: it may lie here for long.
    pub(super) payload: Bytes,
}

impl ServeRole {
    /// A frame must wait until handlers have ended.
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
        if is_much && has_left && frame.header.kind == Kind::Request {
            let lane = method.priority.lane();
            let text = "as many requests of this method run and wait as may";
            let rejection = Rejection::new(RejectionCode::Busy, text);
            self.scratch.clear();
            self.reply_inline((frame.header.id, lane), Err(rejection), None);
            return;
        }
        method.held += 1;
        self.is_blocked |= is_much;
        self.held_bytes += frame.payload.len();
        self.held.push_back(Held {
            header: frame.header,
            sequence,
            trace,
            payload: Bytes::copy_from_slice(frame.payload),
        });
        // The rest of the batch stays where it is; up to here it is looked through for what cancels requests that wait.
        self.must_stop |= !has_left && self.holds_much();
        // Before the next look at what runs: a handler that ends behind that look wakes this task.
        conn.has_held.store(true, Ordering::SeqCst);
    }

    pub(super) fn holds_much(&self) -> bool {
        self.held.len() >= self.limits.held_max || self.held_bytes >= self.limits.handler_bytes_max
    }

    /// A held frame waits no longer.
    pub(super) fn unhold(&mut self, held: &Held) {
        if let Some(Some(method)) = self.methods.get_mut(usize::from(held.header.method)) {
            method.held -= 1;
        }
    }

    pub(super) fn may_start(&self, held: &Held) -> bool {
        let method = self.methods.get(usize::from(held.header.method));
        method
            .and_then(Option::as_ref)
            .is_some_and(Method::may_start)
    }

    /// Starts handlers of held frames, as many as may run, those of a method in their order. A message of a few bytes costs a task, so the bound
    /// on handlers is kept message by message here, not read by read. Costs a look at each held frame.
    pub(super) fn start_held(&mut self, conn: &Arc<Conn>) {
        let mut waiting = VecDeque::new();
        let mut stopped: Vec<u16> = Vec::new();
        while self.has_handlers_left(conn)
            && let Some(mut held) = self.held.pop_front()
        {
            let number = held.header.method;
            if stopped.contains(&number) || !self.may_start(&held) {
                if !stopped.contains(&number) {
                    stopped.push(number);
                }
                waiting.push_back(held);
                continue;
            }
            let payload = held.payload.clone();
            // What is behind it must not hold it up.
            let behind = self.methods.get_mut(usize::from(number));
            let behind = behind
                .and_then(Option::as_mut)
                .map_or(0, |method| mem::take(&mut method.held));
            if held.header.kind == Kind::Batch {
                let mut messages = Messages::of_rest(&payload);
                while self.has_handlers_left(conn)
                    && self.may_start(&held)
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
            self.held_bytes -= payload.len() - held.payload.len();
            if let Some(Some(method)) = self.methods.get_mut(usize::from(number)) {
                method.held = behind;
            }
            if held.header.kind == Kind::Batch && !held.payload.is_empty() {
                stopped.push(number);
                waiting.push_back(held);
            } else {
                self.unhold(&held);
            }
        }
        while let Some(held) = waiting.pop_back() {
            self.held.push_front(held);
        }
        self.is_blocked &= self.holds_much();
        if self.held.is_empty() {
            conn.has_held.store(false, Ordering::SeqCst);
        }
    }
}
