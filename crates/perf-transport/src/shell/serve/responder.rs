//! The answer of a handler in a task of its own.

use crate::error::{Rejection, RejectionCode};
use crate::message::Message;
use crate::payload::Payload;
use crate::proto::{Header, Kind, NotQueued, SendQueue, Waiter};
use crate::router::HandlerFuture;
use crate::shell::conn::{Conn, DIRECT_CALLS_MAX};
use crate::spans::{self, HandlerSpan};
use crate::trace::{TRACE_BYTES, Traced, with_head};
use bytes::Bytes;
use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use super::ServeRole;
use super::method::Measure;
use super::method::Method;
use super::reply::panicked;
use super::reply::too_long;

/// Answers one request of a spawned handler, once, also if the handler panics or is dropped.
pub(super) struct Responder {
    pub(super) conn: Arc<Conn>,
    pub(super) id: u64,
    /// Of its request.
    pub(super) sequence: u64,
    pub(super) queue: SendQueue,
    pub(super) wants_reply: bool,
    pub(super) is_cancellable: bool,
    /// It is counted among the streams of its connection.
    pub(super) is_stream: bool,
    pub(super) bytes: usize,
    pub(super) frame_bytes_max: usize,
    /// Handlers of the method that run.
    pub(super) running: Arc<AtomicUsize>,
    pub(super) trace: Option<Arc<Traced>>,
    /// Ended with the handler; dropped with a handler that is stopped.
    pub(super) measure: Option<Measure>,
}

impl Responder {
    /// Runs a handler in a task of its own, and answers with what it returns.
    pub(super) fn spawn(
        self,
        span: HandlerSpan,
        handle: impl FnOnce() -> HandlerFuture + Send + 'static,
    ) {
        let cancellable = self
            .is_cancellable
            .then(|| (Arc::clone(&self.conn), (self.id, self.sequence)));
        let task = tokio::spawn(async move {
            let outcome = spans::instrumented(span, async move { handle().await }).await;
            self.answer(outcome).await;
        });
        if let Some((conn, request)) = cancellable {
            conn.running.started(request, task.abort_handle());
        }
    }

    /// From now on it answers, or it was stopped.
    pub(super) fn ends(&mut self) {
        if mem::take(&mut self.is_cancellable) {
            self.wants_reply = self.conn.running.end((self.id, self.sequence));
        }
    }

    pub(super) async fn answer(mut self, outcome: Result<Bytes, Rejection>) {
        if let Some(measure) = self.measure.take() {
            let outcome = outcome.as_ref().map(Bytes::len);
            measure.ended(outcome.map_err(|rejection| rejection.code));
        }
        self.ends();
        if !self.wants_reply {
            return;
        }
        let outcome = match outcome {
            Ok(reply) if reply.len() > self.frame_bytes_max => {
                Err(too_long(reply.len(), self.frame_bytes_max))
            }
            other => other,
        };
        let (kind, payload) = match outcome {
            Ok(reply) => (Kind::Reply, reply),
            Err(rejection) => (Kind::Failure, rejection.encode()),
        };
        let mut header = Header::new(kind, 0, self.id);
        let payload = Payload::Shared(payload);
        let context = self.trace.as_ref().and_then(|traced| traced.reply.get());
        let context = context.filter(|_| kind == Kind::Reply && self.has_room_for(&payload));
        let head = context.map(|context| context.before(&payload));
        let payload = head.as_ref().map_or(payload.clone(), |head| {
            header.kind = Kind::TracedReply;
            with_head(head, &payload)
        });
        let conn = Arc::clone(&self.conn);
        self.wants_reply = false;
        let direct = conn.handlers.load(Ordering::Relaxed) <= DIRECT_CALLS_MAX;
        send_wait(&conn, self.queue, header, &payload, direct).await;
    }

    /// Whether a reply may have a trace context besides.
    pub(super) fn has_room_for(&self, payload: &Payload<'_>) -> bool {
        payload.len() + TRACE_BYTES <= self.frame_bytes_max
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.ends();
        if self.wants_reply {
            let header = Header::new(Kind::Failure, 0, self.id);
            let payload = Payload::Shared(panicked().encode());
            // Some 60 bytes, at most one for each handler that may run, and behind what the handler has sent.
            let queues = &self.conn.channel.queues;
            queues.push_past_limit(self.queue, header, &payload);
            self.conn.notify(false);
            if let Some(measure) = self.measure.take() {
                measure.ended(Err(RejectionCode::Internal));
            }
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        // In this order: in between the others seem to be one more, never one less.
        if self.is_stream {
            self.conn.streams.fetch_sub(1, Ordering::SeqCst);
        }
        self.conn.handlers.fetch_sub(1, Ordering::SeqCst);
        self.conn
            .handler_bytes
            .fetch_sub(self.bytes, Ordering::SeqCst);
        self.conn.handler_ended();
    }
}

/// Queues a frame of an accepted connection, and waits for room. Gives up when the connection ends.
async fn send_wait(
    conn: &Conn,
    queue: SendQueue,
    header: Header,
    payload: &Payload<'_>,
    direct: bool,
) {
    let mut waiting = Waiting {
        conn,
        queue,
        waiter: Waiter::default(),
    };
    let queued = poll_fn(|cx| {
        if conn.closing().is_some() {
            return Poll::Ready(false);
        }
        let queues = &conn.channel.queues;
        let waiter = &mut waiting.waiter;
        let (result, next) = queues.push_or_wait(waiter, cx.waker(), queue, header, payload, None);
        if let Some(next) = next {
            next.wake();
        }
        match result {
            Ok(()) => Poll::Ready(true),
            // Looked at before, by the handler's end.
            Err(NotQueued::TooLong { .. }) => Poll::Ready(false),
            Err(_) => Poll::Pending,
        }
    })
    .await;
    drop(waiting);
    if queued {
        conn.notify(direct);
    }
}

/// Gives up its place in line when dropped.
pub(crate) struct Waiting<'a> {
    pub(crate) conn: &'a Conn,
    pub(crate) queue: SendQueue,
    pub(crate) waiter: Waiter,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let queues = &self.conn.channel.queues;
        if let Some(next) = queues.forget(&mut self.waiter, self.queue) {
            next.wake();
        }
    }
}

impl ServeRole {
    pub(super) fn responder(
        &self,
        method: &Method,
        wants_reply: bool,
        message: &Message,
        conn: &Arc<Conn>,
    ) -> Responder {
        let (id, sequence) = (message.request_id, message.origin.sequence);
        let bytes = message.payload.len();
        let is_cancellable = wants_reply && method.is_cancellable;
        if is_cancellable {
            conn.running.begin((id, sequence), message.limit);
        }
        conn.handlers.fetch_add(1, Ordering::Relaxed);
        method.running.fetch_add(1, Ordering::Relaxed);
        conn.handler_bytes.fetch_add(bytes, Ordering::Relaxed);
        Responder {
            conn: Arc::clone(conn),
            id,
            sequence,
            queue: method.priority.queue(),
            wants_reply,
            is_cancellable,
            is_stream: false,
            bytes,
            frame_bytes_max: self.limits.frame_bytes_max,
            running: Arc::clone(&method.running),
            trace: message.trace.clone(),
            measure: Some(method.measure(bytes)),
        }
    }
}
