//! The state that the senders of a connection and its task share.

use super::frame::{FrameError, Header, Kind};
use super::pending::{CallKey, Fault, Pending};
use super::queue::{QueueLimits, SendQueue};
use super::queues::SendQueues;
use super::stream::{BodyState, SendWindow};
use super::takes::Takes;
use super::write_ownership::WriteOwnership;
use crate::payload::Payload;
use crate::primitive::mutant;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

/// Bounds of a [`Channel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelLimits {
    /// Of the more urgent class.
    pub first: QueueLimits,
    /// Of the other one.
    pub second: QueueLimits,
    /// Calls in flight.
    pub calls_max: usize,
    /// Whether frames have checksums.
    pub checksum: bool,
}

/// The state that the senders of a connection and its task share: send queues, ownership of the write side, calls in
/// flight, open bodies.
#[derive(Debug)]
pub struct Channel {
    /// The send queues.
    pub queues: SendQueues,
    /// Decides who writes.
    pub ownership: WriteOwnership,
    /// Calls in flight.
    pub pending: Pending,
    /// Bodies that this side sends.
    windows: Bodies<SendWindow>,
    /// Answers that arrive in chunks.
    answers: Bodies<BodyState>,
    /// How many bodies and answers are open, so that a reply takes no lock where there are none.
    bodies_open: AtomicUsize,
}

impl Channel {
    /// An empty channel.
    #[must_use]
    pub fn new(limits: ChannelLimits) -> Self {
        Self {
            queues: SendQueues::new(limits.first, limits.second, limits.checksum),
            ownership: WriteOwnership::new(),
            pending: Pending::new(limits.calls_max),
            windows: Mutex::new(Vec::new()),
            answers: Mutex::new(Vec::new()),
            bodies_open: AtomicUsize::new(0),
        }
    }

    /// Ends a call whose request was queued and whose caller has given up. Returns `true` if a `Cancel` frame was
    /// queued for it.
    pub fn cancel(&self, key: CallKey) -> bool {
        let queue = self.pending.cancel(key);
        if let Some(queue) = queue {
            self.end_window(key);
            self.queue_cancel(key, queue);
        }
        queue.is_some()
    }

    /// Ends the calls whose deadline is not after `now_ms`, queues a `Cancel` frame for each, and returns how many they
    /// were.
    pub fn expire(&self, now_ms: u64) -> usize {
        self.pending.expire(now_ms, |key, queue| {
            self.end_window(key);
            if !mutant::is("expiry_untold") {
                self.queue_cancel(key, queue);
            }
        })
    }

    /// A call is over for its caller: the sender of its body waits no longer for credit that a reader may never grant.
    fn end_window(&self, key: CallKey) {
        if self.windows() > 0 && !mutant::is("body_outlives_call") {
            self.stop_window(key);
        }
    }

    /// Queues a `Cancel` frame in the queue of its request, so that it arrives behind the request. It may exceed the
    /// queue's limit.
    fn queue_cancel(&self, key: CallKey, queue: SendQueue) {
        let queue = if mutant::is("cancel_overtakes") {
            SendQueue::System
        } else {
            queue
        };
        let header = Header::new(Kind::Cancel, 0, key.id());
        self.queues
            .push_past_limit(queue, header, &Payload::default());
    }

    /// Opens a body that this side sends; `None` if `streams_max` are open.
    pub fn open_window(
        &self,
        key: CallKey,
        credit: u64,
        streams_max: usize,
    ) -> Option<Arc<SendWindow>> {
        self.open_body(&self.windows, (key, streams_max), || {
            SendWindow::new(credit)
        })
    }

    /// Whether a body of this key is being sent.
    #[must_use]
    pub fn has_window(&self, key: CallKey) -> bool {
        self.windows() > 0 && self.window(key).is_some()
    }

    /// Opens an answer that this side reads; `None` if `answers_max` are open.
    pub fn open_answer(
        &self,
        key: CallKey,
        window_bytes: u32,
        answers_max: usize,
    ) -> Option<Arc<BodyState>> {
        self.open_body(&self.answers, (key, answers_max), || {
            BodyState::new(window_bytes)
        })
    }

    fn open_body<T>(
        &self,
        bodies: &Bodies<T>,
        (key, bodies_max): (CallKey, usize),
        make: impl FnOnce() -> T,
    ) -> Option<Arc<T>> {
        let mut bodies = bodies.lock();
        if bodies.len() >= bodies_max {
            return None;
        }
        let body = Arc::new(make());
        bodies.push((key, Arc::clone(&body)));
        self.bodies_open.fetch_add(1, Ordering::AcqRel);
        Some(body)
    }

    /// Removes an answer: it was read, or given up.
    pub fn close_answer(&self, key: CallKey) {
        self.close_bodies(&mut self.answers.lock(), key);
    }

    /// Takes a chunk of an answer. Chunks of unknown answers are dropped: they were on their way when the answer was
    /// given up.
    ///
    /// # Errors
    /// [`FrameError::BudgetExceeded`] if it is more than was allowed.
    pub fn answer_chunk(&self, key: CallKey, chunk: Bytes) -> Result<(), FrameError> {
        let is_it = |other| other == key || mutant::is("chunk_finds_any_answer");
        find(&self.answers, is_it).map_or(Ok(()), |body| body.receive(chunk))
    }

    /// Ends the answer and stops the body of a call that is about to complete.
    pub fn end_bodies(&self, key: CallKey) {
        self.stop_window(key);
        if let Some(body) = find(&self.answers, |other| other == key) {
            body.end(true);
        }
    }

    fn close_bodies<T>(&self, bodies: &mut Vec<(CallKey, T)>, key: CallKey) {
        let before = bodies.len();
        bodies.retain(|(other, _)| *other != key);
        let closed = before - bodies.len();
        self.bodies_open.fetch_sub(closed, Ordering::AcqRel);
    }

    /// Removes a body that was sent, or given up.
    pub fn close_window(&self, key: CallKey) {
        self.close_bodies(&mut self.windows.lock(), key);
    }

    /// How many bodies are being sent and answers are arriving.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.bodies_open.load(Ordering::Acquire)
    }

    /// Adds credit that the reader of a body has granted.
    pub fn grant(&self, key: CallKey, bytes: u64) {
        if let Some(window) = self.window(key) {
            window.grant(bytes);
        }
    }

    /// Stops the sender of a body: its reader has given up.
    pub fn stop_window(&self, key: CallKey) {
        if let Some(window) = self.window(key) {
            window.close();
        }
    }

    fn window(&self, key: CallKey) -> Option<Arc<SendWindow>> {
        find(&self.windows, |other| other == key)
    }

    /// What the peer of the coming connection takes. Calls whose requests are queued and longer end with
    /// [`Fault::TooLarge`]; longer messages are dropped; everything else stays. To be called before anything is written
    /// to it.
    pub fn fit_to(&self, takes: Takes) {
        let bytes_max = takes.frame_bytes_max;
        for header in self.queues.fit_to(takes) {
            if header.kind.wants_answer() {
                let key = CallKey::from_id(header.id);
                let bytes = header.length;
                let fault = if bytes > bytes_max {
                    Fault::TooLarge { bytes, bytes_max }
                } else {
                    Fault::Unsupported
                };
                self.end_bodies(key);
                self.pending.complete(key, Err(fault));
            }
        }
    }

    /// Refuses new messages from now on, see [`SendQueues::close`]. Returns the wakers of the callers that wait for
    /// room or for a slot.
    pub fn close(&self) -> Vec<Waker> {
        let mut wakers = self.queues.close();
        wakers.extend(self.pending.dismiss());
        wakers
    }

    /// Drops all queued frames, ends every call with `fault` and stops every body: the connection is lost. Returns the
    /// wakers of the callers that wait for room or for a slot.
    ///
    /// The queues go first: a call that is opened after its end here is queued after it, and so belongs to the next
    /// connection. If they are [closed](SendQueues::close) before, there is none until they are opened.
    pub fn lost(&self, fault: &Fault) -> Vec<Waker> {
        let mut wakers = self.queues.clear();
        // What arrived is read before the call's end is.
        for body in all(&self.answers) {
            body.end(true);
        }
        self.pending.fail_all(fault);
        wakers.extend(self.pending.dismiss());
        for window in all(&self.windows) {
            window.close();
        }
        wakers
    }
}

/// The bodies of one direction, by their calls. A body's waker may run its reader at once, and the reader takes the
/// lock to close the body: no body is touched under the lock.
type Bodies<T> = Mutex<Vec<(CallKey, Arc<T>)>>;

fn find<T>(bodies: &Bodies<T>, is_it: impl Fn(CallKey) -> bool) -> Option<Arc<T>> {
    let bodies = bodies.lock();
    let found = bodies.iter().find(|(key, _)| is_it(*key));
    found.map(|(_, body)| Arc::clone(body))
}

fn all<T>(bodies: &Bodies<T>) -> Vec<Arc<T>> {
    let bodies = bodies.lock();
    bodies.iter().map(|(_, body)| Arc::clone(body)).collect()
}
