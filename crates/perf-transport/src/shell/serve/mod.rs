//! The accepting side: hands requests to handlers and queues their replies.

mod held;
mod method;
mod open;
mod reply;
mod responder;

use crate::error::{Rejection, RejectionCode};
use crate::message::{Message, Origin, Reply};
use crate::names::Named;
use crate::primitive::mutant;
use crate::proto::{
    CallKey, Frame, FrameError, FrameRef, Header, Incoming, Kind, MethodName, SendQueue, Server,
    WriteBuffer, split_trace,
};
use crate::router::{Handler, Router};
use crate::shell::conn::Conn;
use crate::shell::session::Role;
use crate::spans::{self, HandlerSpan};
use crate::trace::TraceContext;
use bytes::Bytes;
use held::HeldFrames;
use method::Method;
use reply::{panicked, reply_context};
pub(crate) use responder::Waiting;
use std::collections::HashMap;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(feature = "tower")]
use std::task::Poll;

/// Bounds of what one connection may make this node do.
#[derive(Clone, Copy)]
pub(crate) struct ServeLimits {
    pub(crate) handlers_max: usize,
    pub(crate) handlers_per_method_max: usize,
    pub(crate) held_max: usize,
    pub(crate) handler_bytes_max: usize,
    pub(crate) backlog_bytes_max: usize,
    pub(crate) frame_bytes_max: usize,
}

pub(crate) struct ServeRole {
    server: Server,
    methods: Vec<Option<Method>>,
    router: Arc<Router>,
    /// Of all messages, but for the sequence.
    origin: Origin,
    limits: ServeLimits,
    checksum: bool,
    /// What the peer takes of an answer in chunks before it asks for more.
    answer_window_bytes: u32,
    /// Replies of this batch, by queue: those of its method's priority.
    replies: [Option<WriteBuffer>; 2],
    /// One of them is full.
    is_full: bool,
    /// Too much waits to be written, or to end: the rest of the batch must wait.
    must_stop: bool,
    /// The memory that the batch lies in.
    memory_bytes: usize,
    scratch: Vec<u8>,
    /// The trace context of the reply that lies in `scratch`.
    reply_context: Option<TraceContext>,
    /// Replies of this batch are queued already.
    queued: bool,
    /// Frames that wait for handlers to end.
    held: HeldFrames,
    /// Handlers that run, by method: a peer that gives a method several numbers has its limit once.
    running: HashMap<Arc<MethodName>, Arc<AtomicUsize>>,
    /// With so many entries those are forgotten that no number and no handler has: a fallback takes any name.
    running_max: usize,
    is_blocked: bool,
    has_said_goodbye: bool,
    /// One-way messages that no handler wanted, of the whole transport.
    unhandled: Arc<AtomicU64>,
    #[cfg(feature = "metrics")]
    metrics: Option<crate::methods::MethodMetrics>,
}

impl ServeRole {
    pub(crate) fn new(
        server: Server,
        router: Arc<Router>,
        origin: Origin,
        limits: ServeLimits,
        (checksum, answer_window_bytes): (bool, u32),
        unhandled: Arc<AtomicU64>,
        #[cfg(feature = "metrics")] metrics: Option<crate::methods::MethodMetrics>,
    ) -> Self {
        Self {
            server,
            methods: Vec::new(),
            router,
            origin,
            limits,
            checksum,
            answer_window_bytes,
            replies: [None, None],
            is_full: false,
            must_stop: false,
            memory_bytes: 0,
            scratch: Vec::new(),
            reply_context: None,
            queued: false,
            held: HeldFrames::default(),
            running: HashMap::new(),
            running_max: RUNNING_KEPT,
            is_blocked: false,
            has_said_goodbye: false,
            unhandled,
            #[cfg(feature = "metrics")]
            metrics,
        }
    }

    /// The connection is gone.
    pub(crate) fn lost(&mut self) {
        self.server.lost();
    }

    fn define(&mut self, number: u16, name: Arc<MethodName>) {
        let place = usize::from(number);
        if self.methods.len() <= place {
            self.methods.resize_with(place + 1, || None);
        }
        let handler = self.router.handler(&name);
        let priority = self.router.priority(name.service(), name.method());
        // A watch whose reader is gone would wait for ever.
        let is_watch = matches!(handler, Some(Handler::Watch(_) | Handler::Exchange(_)));
        let is_cancellable = is_watch || self.router.is_cancellable(&name);
        let limit = self.router.limit(&name);
        // A name that is given to the number anew does not forget what waits.
        let held = self.methods[place].take().map(|before| before.held);
        let known = self.running.get(&name);
        let known = known.filter(|_| !mutant::is("limit_of_each_number"));
        let running = match (known, &handler) {
            (Some(running), _) => Arc::clone(running),
            (None, None) => Arc::default(),
            (None, Some(_)) => self.count_handlers(Arc::clone(&name)),
        };
        #[cfg(feature = "metrics")]
        let recorder = {
            let metrics = self.metrics.as_ref().zip(self.router.recorded(&name));
            metrics.map(|(metrics, (service, method))| metrics.server(service, method))
        };
        self.methods[place] = Some(Method {
            #[cfg(feature = "metrics")]
            recorder,
            held: held.unwrap_or_default(),
            running,
            running_max: limit.unwrap_or(self.limits.handlers_per_method_max),
            name: Named::new(name),
            handler,
            priority,
            is_cancellable,
        });
    }

    /// A count of the handlers of a method that has none yet.
    fn count_handlers(&mut self, name: Arc<MethodName>) -> Arc<AtomicUsize> {
        if self.running.len() >= self.running_max {
            self.running
                .retain(|_, running| Arc::strong_count(running) > 1);
            self.running_max = (self.running.len() * 2).max(RUNNING_KEPT);
        }
        let running = Arc::default();
        self.running.insert(name, Arc::clone(&running));
        running
    }

    #[inline]
    fn origin_of(&self, sequence: u64) -> Origin {
        Origin {
            sequence,
            ..self.origin
        }
    }

    /// A message or a request, to its handler.
    ///
    /// The message is put together where its handler takes it: each copy of it that is read in wider pieces than it was
    /// written waits for the stores before it.
    #[inline]
    fn dispatch(
        &mut self,
        frame: FrameRef<'_>,
        trace: Option<TraceContext>,
        sequence: u64,
        conn: &Arc<Conn>,
    ) {
        let Header {
            id, limit, method, ..
        } = frame.header;
        let wants_reply = frame.header.kind == Kind::Request;
        let number = method;
        let Some(Some(method)) = self.methods.get(usize::from(number)) else {
            return;
        };
        let origin = self.origin_of(sequence);
        let message = || method.message(origin, (id, limit), trace, frame.shared_payload());
        match &method.handler {
            Some(Handler::OneWayRef(handler)) if !wants_reply => {
                let shown = (frame, trace.as_ref());
                method.show(handler.as_ref(), shown, &self.origin, sequence);
            }
            Some(Handler::Inline(handler)) => {
                self.scratch.clear();
                let mut reply = Reply {
                    buffer: &mut self.scratch,
                    shared: None,
                };
                let message = message();
                let measure = method.measure(frame.payload.len());
                // The handler's own state may be left half changed by a panic; that is its affair, as in a thread of
                // its own.
                let result = catch_unwind(AssertUnwindSafe(|| {
                    spans::handle(&message, || handler(&message, &mut reply))
                }));
                let shared = reply.shared.take();
                let length = self.scratch.len() + shared.as_ref().map_or(0, Bytes::len);
                measure.ended(match &result {
                    Ok(Ok(())) => Ok(length),
                    Ok(Err(rejection)) => Err(rejection.code),
                    Err(_) => Err(RejectionCode::Internal),
                });
                if trace.is_some() {
                    self.reply_context = reply_context(&message);
                }
                if wants_reply {
                    let queue = method.priority.queue();
                    let result = result.unwrap_or_else(|_| Err(panicked()));
                    self.reply_inline((id, queue), result, shared);
                }
            }
            Some(Handler::OneWay(handler)) if !wants_reply => {
                // The same as above.
                let measure = method.measure(frame.payload.len());
                let handled = catch_unwind(AssertUnwindSafe(|| {
                    let message = message();
                    let span = HandlerSpan::new(&message);
                    span.within(|| handler(message));
                }));
                let outcome = handled.map(|()| 0);
                measure.ended(outcome.map_err(|_| RejectionCode::Internal));
            }
            Some(Handler::Spawned(handler)) => {
                if !method.held.is_empty() || !method.may_start() || !self.has_handlers_left(conn) {
                    self.hold((frame, trace), sequence, conn);
                    return;
                }
                let handler = Arc::clone(handler);
                let message = message();
                let responder = self.responder(method, wants_reply, &message, conn);
                let message = self.detached(message);
                let span = HandlerSpan::new(&message);
                responder.spawn(span, move || handler(message));
            }
            #[cfg(feature = "tower")]
            Some(Handler::Now(handler)) => {
                // It may go on in a task of its own: the bounds on those hold before it is known.
                if !method.held.is_empty() || !method.may_start() || !self.has_handlers_left(conn) {
                    self.hold((frame, trace), sequence, conn);
                    return;
                }
                let handler = Arc::clone(handler);
                // What it makes may live long.
                let message = self.detached(message());
                self.run_now(
                    usize::from(number),
                    handler.as_ref(),
                    message,
                    wants_reply,
                    conn,
                );
            }
            _ if wants_reply => {
                self.scratch.clear();
                let text = "no handler of this service and method";
                let rejection = Rejection::new(RejectionCode::NotFound, text);
                self.reply_inline((id, method.priority.queue()), Err(rejection), None);
            }
            _ => {
                self.unhandled.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// A handler with a layer around it: it answers here if it is ready at once, and in a task of its own if not.
    #[cfg(feature = "tower")]
    fn run_now(
        &mut self,
        number: usize,
        handler: &crate::router::Spawned,
        message: Message,
        wants_reply: bool,
        conn: &Arc<Conn>,
    ) {
        let Some(Some(method)) = self.methods.get(number) else {
            return;
        };
        let measure = method.measure(message.payload.len());
        let polled = catch_unwind(AssertUnwindSafe(|| {
            spans::handle(&message, || {
                let mut future = handler(message.clone());
                match crate::middleware::poll_now(&mut future) {
                    Poll::Ready(outcome) => Ok(outcome),
                    Poll::Pending => Err(future),
                }
            })
        }));
        let outcome = match polled.unwrap_or_else(|_| Ok(Err(panicked()))) {
            Ok(outcome) => outcome,
            Err(future) => {
                let mut responder = self.responder(method, wants_reply, &message, conn);
                responder.measure = Some(measure);
                let span = HandlerSpan::new(&message);
                return responder.spawn(span, move || future);
            }
        };
        let length = outcome.as_ref().map(Bytes::len);
        measure.ended(length.map_err(|rejection| rejection.code));
        if wants_reply {
            let queue = method.priority.queue();
            self.scratch.clear();
            self.reply_context = reply_context(&message);
            let (result, shared) = match outcome {
                Ok(reply) => (Ok(()), Some(reply)),
                Err(rejection) => (Err(rejection), None),
            };
            self.reply_inline((message.request_id, queue), result, shared);
        }
    }

    /// The messages of a frame of several, to their handler.
    #[inline]
    fn receive_batch(&mut self, frame: FrameRef<'_>, conn: &Arc<Conn>) -> Result<(), FrameError> {
        let (first, messages) = self.server.admit_batch(&frame.header, frame.payload)?;
        let header = frame.header.of_message();
        let method = self.methods.get(usize::from(header.method));
        let Some(Some(method)) = method else {
            return Ok(());
        };
        match &method.handler {
            Some(Handler::OneWayRef(handler)) => {
                for (sequence, payload) in (first..).zip(messages) {
                    let frame = (frame.with_message(header, payload), None);
                    method.show(handler.as_ref(), frame, &self.origin, sequence);
                }
            }
            Some(Handler::Spawned(_)) => {
                self.hold((frame, None), first, conn);
                self.start_held(conn);
            }
            _ => {
                for (sequence, payload) in (first..).zip(messages) {
                    let frame = frame.with_message(header, payload);
                    self.dispatch(frame, None, sequence, conn);
                }
            }
        }
        Ok(())
    }

    /// The caller of a request has given up.
    fn cancel(&mut self, id: u64, conn: &Conn) {
        if conn.channel.windows() > 0 {
            conn.channel.stop_window(CallKey::from_id(id));
        }
        conn.running.stop(id);
        self.cancel_held(id);
    }

    #[inline]
    fn has_handlers_left(&self, conn: &Conn) -> bool {
        // Streams are counted by themselves: they end when frames come that must be read.
        let streams = conn.streams.load(Ordering::SeqCst);
        let others = conn.handlers.load(Ordering::SeqCst).saturating_sub(streams);
        others < self.limits.handlers_max
            && conn.handler_bytes.load(Ordering::SeqCst) < self.limits.handler_bytes_max
    }

    /// A message that may live long, without the memory around it.
    fn detached(&self, mut message: Message) -> Message {
        message.payload = self.kept(message.payload);
        message
    }

    /// Bytes that may be kept for long: copied, unless that would save little. What is kept from reuse is at most four
    /// times what is counted.
    #[inline]
    fn kept(&self, bytes: Bytes) -> Bytes {
        let length = bytes.len();
        if length < READ_BYTES_KEPT || length < self.memory_bytes / 4 {
            return Bytes::copy_from_slice(&bytes);
        }
        bytes
    }

    /// What is no message and no request.
    fn receive_other(&mut self, mut frame: Frame, conn: &Arc<Conn>) -> Result<(), FrameError> {
        if frame.header.kind == Kind::StreamChunk {
            frame.payload = self.kept(frame.payload);
        }
        match self.server.receive(frame)? {
            Incoming::Defined(number, name) => self.define(number, name),
            Incoming::Opened {
                arrived,
                body,
                in_chunks,
            } => self.open(arrived, (Some(body), in_chunks), conn)?,
            Incoming::Message {
                in_chunks: true,
                arrived,
                ..
            } => self.open(arrived, (None, true), conn)?,
            Incoming::Granted { id, bytes } => {
                conn.channel.grant(CallKey::from_id(id), bytes.into());
            }
            Incoming::Completed { unread_bytes } => {
                // No window bounds what its reader has not read yet: the peer may begin another body now.
                if !mutant::is("complete_bodies_uncounted") {
                    conn.handler_bytes.fetch_add(unread_bytes, Ordering::SeqCst);
                }
                self.must_stop |= !self.has_handlers_left(conn);
            }
            Incoming::TooManyBodies { id } => {
                let text = "too many bodies are open on this connection";
                let rejection = Rejection::new(RejectionCode::Busy, text);
                self.scratch.clear();
                // The method is not known here, and any queue will do: it is rare, and short.
                self.reply_inline((id, SendQueue::Second), Err(rejection), None);
            }
            Incoming::Cancelled { id } => self.cancel(id, conn),
            Incoming::Goodbye => self.has_said_goodbye = true,
            Incoming::Ping(id) => {
                let pong = Header::new(Kind::Pong, 0, id);
                conn.channel.queues.push_sign_of_life(pong);
                self.queued = true;
            }
            // Messages have come another way, see `receive`.
            Incoming::Message { .. } | Incoming::Batch { .. } | Incoming::Handled => {}
        }
        Ok(())
    }
}

/// So many counts of handlers are kept before any is forgotten.
const RUNNING_KEPT: usize = 64;
/// Payloads of spawned handlers shorter than this are copied out of the read buffer.
const READ_BYTES_KEPT: usize = 64 * 1024;

impl Role for ServeRole {
    #[inline]
    fn receive(&mut self, frame: FrameRef<'_>, conn: &Arc<Conn>) -> Result<(), FrameError> {
        if matches!(frame.header.kind, Kind::Request | Kind::OneWay) {
            let sequence = self.server.admit(&frame.header)?;
            self.dispatch(frame, None, sequence, conn);
        } else if frame.header.kind == Kind::Batch {
            self.receive_batch(frame, conn)?;
        } else if matches!(frame.header.kind, Kind::TracedOneWay | Kind::TracedRequest) {
            let (trace, header, payload) = split_trace(&frame.header, frame.payload)?;
            let sequence = self.server.admit(&header)?;
            self.dispatch(frame.with_message(header, payload), trace, sequence, conn);
        } else {
            self.receive_other(frame.to_frame(), conn)?;
        }
        if self.is_full {
            self.replies_full(conn);
        }
        Ok(())
    }

    #[inline]
    fn begin(&mut self, memory_bytes: usize) {
        self.memory_bytes = memory_bytes;
        self.must_stop = false;
    }

    #[inline]
    fn must_stop(&self) -> bool {
        self.must_stop
    }

    #[inline]
    fn batch_end(&mut self, conn: &Conn) -> bool {
        self.queue_replies(conn);
        mem::take(&mut self.queued)
    }

    #[inline]
    fn resume(&mut self, conn: &Arc<Conn>) {
        if !self.held.is_empty() {
            self.start_held(conn);
        }
    }

    fn is_done(&self) -> bool {
        self.held.is_empty()
    }

    fn has_said_goodbye(&self) -> bool {
        self.has_said_goodbye
    }

    #[inline]
    fn is_overloaded(&self, conn: &Conn) -> bool {
        self.is_blocked || !self.has_handlers_left(conn) || self.has_backlog(conn)
    }

    #[inline]
    fn in_flight(&self, conn: &Conn) -> usize {
        conn.handlers.load(Ordering::Relaxed)
    }
}
