//! The accepting side: hands requests to handlers and queues their replies.

use super::conn::{Conn, DIRECT_CALLS_MAX};
use super::session::Role;
use crate::body::{Body, Chunks};
use crate::error::{Rejection, RejectionCode};
use crate::items::ItemSender;
use crate::message::{Message, MessageRef, Origin, Reply};
use crate::names::Named;
use crate::payload::Payload;
use crate::priority::Priority;
use crate::proto::{
    Block, BodyState, CallKey, Frame, FrameError, FrameRef, Header, Incoming, Kind, Lane, Messages,
    MethodName, NotQueued, SendWindow, Server, TimeLimit, Waiter, split_trace,
};
use crate::router::{Handler, HandlerFuture, OneWayRef, Router};
use crate::spans::{self, HandlerSpan};
use crate::trace::{TRACE_BYTES, TraceContext, Traced, with_head};
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;

/// What is known of a number that the peer has defined.
struct Method {
    name: Named,
    handler: Option<Handler>,
    priority: Priority,
    /// Its handler is stopped when nobody waits for the answer.
    is_cancellable: bool,
    /// Handlers of this method that run, and how many may.
    running: Arc<AtomicUsize>,
    running_max: usize,
    /// Frames of this method that wait until others have ended.
    held: usize,
    #[cfg(feature = "metrics")]
    recorder: Option<Arc<crate::methods::MethodRecorder>>,
}

impl Method {
    /// A handler of it begins with a message of so many bytes.
    #[inline]
    fn measure(&self, bytes: usize) -> Measure {
        #[cfg(feature = "metrics")]
        return Measure(self.recorder.as_ref().map(|recorder| {
            let recorder = Arc::clone(recorder);
            crate::methods::Measured::handler(recorder, bytes)
        }));
        #[cfg(not(feature = "metrics"))]
        {
            let _ = bytes;
            Measure
        }
    }

    #[inline]
    fn may_start(&self) -> bool {
        self.running.load(Ordering::SeqCst) < self.running_max
    }

    #[inline]
    fn message(
        &self,
        origin: Origin,
        (request_id, limit): (u64, TimeLimit),
        trace: Option<TraceContext>,
        payload: Bytes,
    ) -> Message {
        Message {
            origin,
            name: self.name.clone(),
            request_id,
            limit,
            trace: trace.map(|context| Arc::new(Traced::new(context))),
            payload,
        }
    }

    /// Shows a message to a handler where it lies.
    #[inline]
    fn show(
        &self,
        handler: &OneWayRef,
        (frame, trace): (FrameRef<'_>, Option<&TraceContext>),
        from: &Origin,
        sequence: u64,
    ) {
        let message = MessageRef {
            frame,
            from,
            sequence,
            name: &self.name,
            trace,
        };
        // The handler's own state may be left half changed by a panic; that is its affair, as in a thread of its own.
        let _ = catch_unwind(AssertUnwindSafe(|| handler(message)));
    }
}

/// A handler that runs, for its method's metrics. Nothing without them.
#[cfg(feature = "metrics")]
struct Measure(Option<crate::methods::Measured>);
#[cfg(not(feature = "metrics"))]
struct Measure;

impl Measure {
    /// It has answered with so many bytes, or with an error.
    #[inline]
    fn ended(self, outcome: Result<usize, RejectionCode>) {
        #[cfg(feature = "metrics")]
        if let Some(mut measured) = self.0 {
            measured.handled(outcome);
        }
        #[cfg(not(feature = "metrics"))]
        let _ = outcome;
    }
}

/// A frame for a handler in a task of its own that may not run yet, or what is left of one with several messages. Behind it wait all later
/// frames of its method.
struct Held {
    header: Header,
    /// Of the first message.
    sequence: u64,
    trace: Option<TraceContext>,
    /// A copy: it may lie here for long.
    payload: Bytes,
}

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
    /// Replies of this batch, by lane: those of its method's priority.
    replies: [Option<Block>; 2],
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
    /// Frames that wait for handlers to end. When there are as many as may wait, further requests are refused, and a further message
    /// without an answer ends the reading.
    held: VecDeque<Held>,
    held_bytes: usize,
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
            held: VecDeque::new(),
            held_bytes: 0,
            is_blocked: false,
            has_said_goodbye: false,
            unhandled,
            #[cfg(feature = "metrics")]
            metrics,
        }
    }

    #[inline]
    fn queue_replies(&mut self, conn: &Conn) {
        let lanes = &conn.channel.lanes;
        for (lane, block) in [Lane::First, Lane::Second]
            .into_iter()
            .zip(&mut self.replies)
        {
            if let Some(block) = block.as_mut().filter(|block| !block.is_empty()) {
                lanes.exchange_block(lane, block);
                self.queued = true;
            }
        }
        self.is_full = false;
    }

    /// A block of replies is full: they go on their way, and if too many wait there the rest of the batch waits too.
    #[cold]
    fn replies_full(&mut self, conn: &Conn) {
        self.queue_replies(conn);
        self.must_stop |= self.has_backlog(conn);
    }

    /// Whether the peer has so much to read that it gets nothing more to read. Replies of spawned handlers that wait for room go before those of
    /// inline ones, which never wait.
    fn has_backlog(&self, conn: &Conn) -> bool {
        let (queued, is_waited_for) = conn.channel.lanes.pressure();
        let unwritten = conn.unwritten.load(Ordering::Relaxed);
        is_waited_for || queued + unwritten >= self.limits.backlog_bytes_max
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
        let before = self.methods[place].as_ref();
        let held = before.map_or(0, |method| method.held);
        let running = before.map_or_else(Arc::default, |method| Arc::clone(&method.running));
        #[cfg(feature = "metrics")]
        let recorder = {
            // Peers must not make series by asking for what is not there.
            let metrics = self.metrics.as_ref().filter(|_| handler.is_some());
            metrics.map(|metrics| metrics.server(name.service(), name.method()))
        };
        self.methods[place] = Some(Method {
            #[cfg(feature = "metrics")]
            recorder,
            held,
            running,
            running_max: limit.unwrap_or(self.limits.handlers_per_method_max),
            name: Named::new(name),
            handler,
            priority,
            is_cancellable,
        });
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
    /// The message is put together where its handler takes it: each copy of it that is read in wider pieces than it was written waits for
    /// the stores before it.
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
                // The handler's own state may be left half changed by a panic; that is its affair, as in a thread of its own.
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
                    let lane = method.priority.lane();
                    let result = result.unwrap_or_else(|_| Err(panicked()));
                    self.reply_inline((id, lane), result, shared);
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
                if method.held > 0 || !method.may_start() || !self.has_handlers_left(conn) {
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
                self.reply_inline((id, method.priority.lane()), Err(rejection), None);
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
            let lane = method.priority.lane();
            self.scratch.clear();
            self.reply_context = reply_context(&message);
            let (result, shared) = match outcome {
                Ok(reply) => (Ok(()), Some(reply)),
                Err(rejection) => (Err(rejection), None),
            };
            self.reply_inline((message.request_id, lane), result, shared);
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

    /// A frame must wait until handlers have ended.
    #[cold]
    fn hold(
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

    fn holds_much(&self) -> bool {
        self.held.len() >= self.limits.held_max || self.held_bytes >= self.limits.handler_bytes_max
    }

    /// A held frame waits no longer.
    fn unhold(&mut self, held: &Held) {
        if let Some(Some(method)) = self.methods.get_mut(usize::from(held.header.method)) {
            method.held -= 1;
        }
    }

    fn may_start(&self, held: &Held) -> bool {
        let method = self.methods.get(usize::from(held.header.method));
        method
            .and_then(Option::as_ref)
            .is_some_and(Method::may_start)
    }

    /// Starts handlers of held frames, as many as may run, those of a method in their order. A message of a few bytes costs a task, so the bound
    /// on handlers is kept message by message here, not read by read. Costs a look at each held frame.
    fn start_held(&mut self, conn: &Arc<Conn>) {
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

    /// Nobody waits for the answer to a request any more.
    fn cancel(&mut self, id: u64, conn: &Conn) {
        if conn.channel.windows() > 0 {
            conn.channel.stop_window(CallKey::from_id(id));
        }
        conn.running.stop(id);
        let is_it = |held: &Held| held.header.kind == Kind::Request && held.header.id == id;
        if let Some(place) = self.held.iter().position(is_it)
            && let Some(held) = self.held.remove(place)
        {
            self.held_bytes -= held.payload.len();
            self.unhold(&held);
        }
    }

    #[inline]
    fn has_handlers_left(&self, conn: &Conn) -> bool {
        conn.handlers.load(Ordering::SeqCst) < self.limits.handlers_max
            && conn.handler_bytes.load(Ordering::SeqCst) < self.limits.handler_bytes_max
    }

    #[inline]
    fn reply_inline(
        &mut self,
        (id, lane): (u64, Lane),
        result: Result<(), Rejection>,
        shared: Option<Bytes>,
    ) {
        let length = self.scratch.len() + shared.as_ref().map_or(0, Bytes::len);
        let result = if length > self.limits.frame_bytes_max {
            Err(too_long(length, self.limits.frame_bytes_max))
        } else {
            result
        };
        let place = usize::from(lane == Lane::Second);
        let replies = self.replies[place].get_or_insert_default();
        match result {
            Ok(()) => {
                let mut header = Header::new(Kind::Reply, 0, id);
                let context = self.reply_context.take();
                let fits = length + TRACE_BYTES <= self.limits.frame_bytes_max;
                if let Some(context) = context.filter(|_| fits) {
                    header.kind = Kind::TracedReply;
                    self.scratch.splice(..0, context.encode());
                }
                let payload = match &shared {
                    None => Payload::Borrowed(&self.scratch),
                    Some(shared) => Payload::Parts {
                        head: &self.scratch,
                        parts: std::slice::from_ref(shared),
                    },
                };
                replies.push(header, &payload, self.checksum);
            }
            Err(rejection) => {
                self.reply_context = None;
                let header = Header::new(Kind::Failure, 0, id);
                let payload = Payload::Shared(rejection.encode());
                replies.push(header, &payload, self.checksum);
            }
        }
        self.is_full |= replies.is_full();
    }

    fn responder(
        &self,
        method: &Method,
        wants_reply: bool,
        message: &Message,
        conn: &Arc<Conn>,
    ) -> Responder {
        let id = message.request_id;
        let bytes = message.payload.len();
        let is_cancellable = wants_reply && method.is_cancellable;
        if is_cancellable {
            conn.running.begin(id, message.limit);
        }
        conn.handlers.fetch_add(1, Ordering::Relaxed);
        method.running.fetch_add(1, Ordering::Relaxed);
        conn.handler_bytes.fetch_add(bytes, Ordering::Relaxed);
        Responder {
            conn: Arc::clone(conn),
            id,
            lane: method.priority.lane(),
            wants_reply,
            is_cancellable,
            bytes,
            frame_bytes_max: self.limits.frame_bytes_max,
            running: Arc::clone(&method.running),
            trace: message.trace.clone(),
            measure: Some(method.measure(bytes)),
        }
    }

    /// A message that may live long, without the memory around it.
    fn detached(&self, mut message: Message) -> Message {
        message.payload = self.kept(message.payload);
        message
    }

    /// Bytes that may be kept for long: copied, unless that would save little. What is kept from reuse is at most four times what is counted.
    #[inline]
    fn kept(&self, bytes: Bytes) -> Bytes {
        let length = bytes.len();
        if length < READ_BYTES_KEPT || length < self.memory_bytes / 4 {
            return Bytes::copy_from_slice(&bytes);
        }
        bytes
    }

    /// A request with a body, or whose answer comes in chunks, to its handler.
    fn open(
        &mut self,
        number: u16,
        (id, limit): (u64, TimeLimit),
        (sequence, trace, payload): (u64, Option<TraceContext>, Bytes),
        (body, in_chunks): (Option<Arc<BodyState>>, bool),
        conn: &Arc<Conn>,
    ) -> Result<(), FrameError> {
        let key = CallKey::from_id(id);
        if in_chunks && conn.channel.has_window(key) {
            return Err(FrameError::Malformed { kind: Kind::Watch });
        }
        let Some(Some(method)) = self.methods.get(usize::from(number)) else {
            return Ok(());
        };
        let lane = method.priority.lane();
        let refuse = |role: &mut Self, code, text| {
            if let Some(body) = &body {
                body.end(false);
            }
            role.scratch.clear();
            role.reply_inline((id, lane), Err(Rejection::new(code, text)), None);
            Ok(())
        };
        let handler = match (&method.handler, &body, in_chunks) {
            (Some(handler @ Handler::Streamed(_)), Some(_), false)
            | (Some(handler @ Handler::Watch(_)), None, true)
            | (Some(handler @ Handler::Exchange(_)), Some(_), true) => handler.clone(),
            _ => {
                let text = "no handler of this service and method that reads and answers so";
                return refuse(self, RejectionCode::NotFound, text);
            }
        };
        if !method.may_start() {
            let text = "as many requests of this method run as may";
            return refuse(self, RejectionCode::Busy, text);
        }
        let message = method.message(self.origin_of(sequence), (id, limit), trace, payload);
        let responder = self.responder(method, true, &message, conn);
        let message = self.detached(message);
        let item_bytes_max = self.limits.frame_bytes_max;
        let body = body.map(|body| Body::new(body, Arc::clone(conn), (id, item_bytes_max)));
        let answer = in_chunks.then(|| {
            let credit = self.answer_window_bytes.into();
            let bytes_max = self.limits.frame_bytes_max;
            // As many as handlers may run.
            let window = conn.channel.open_window(key, credit, usize::MAX);
            let window = window.unwrap_or_else(|| Arc::new(SendWindow::new(0)));
            let chunks = Chunks::new(Arc::clone(conn), (key, lane), window, bytes_max);
            ItemSender::new(chunks, false)
        });
        let span = HandlerSpan::new(&message);
        responder.spawn(span, move || match (handler, body, answer) {
            (Handler::Streamed(handler), Some(body), _) => handler(message, body),
            (Handler::Watch(handler), _, Some(answer)) => handler(message, answer),
            (Handler::Exchange(handler), Some(body), Some(answer)) => {
                handler(message, body, answer)
            }
            // Looked at above.
            _ => Box::pin(std::future::ready(Err(panicked()))),
        });
        Ok(())
    }

    /// What is no message and no request.
    fn receive_other(&mut self, mut frame: Frame, conn: &Arc<Conn>) -> Result<(), FrameError> {
        if frame.header.kind == Kind::StreamChunk {
            frame.payload = self.kept(frame.payload);
        }
        match self.server.receive(frame)? {
            Incoming::Defined(number, name) => self.define(number, name),
            Incoming::Opened {
                method,
                id,
                sequence,
                limit,
                trace,
                payload,
                body,
                in_chunks,
            } => {
                let how = (Some(body), in_chunks);
                self.open(method, (id, limit), (sequence, trace, payload), how, conn)?;
            }
            Incoming::Message {
                in_chunks: true,
                method,
                id,
                sequence,
                limit,
                trace,
                payload,
                ..
            } => {
                let how = (None, true);
                self.open(method, (id, limit), (sequence, trace, payload), how, conn)?;
            }
            Incoming::Granted { id, bytes } => {
                conn.channel.grant(CallKey::from_id(id), bytes.into());
            }
            Incoming::TooManyBodies { id } => {
                let text = "too many bodies are open on this connection";
                let rejection = Rejection::new(RejectionCode::Busy, text);
                self.scratch.clear();
                // The method is not known here, and any lane will do: it is rare, and short.
                self.reply_inline((id, Lane::Second), Err(rejection), None);
            }
            Incoming::Cancelled { id } => self.cancel(id, conn),
            Incoming::Goodbye => self.has_said_goodbye = true,
            Incoming::Ping(id) => {
                let pong = Header::new(Kind::Pong, 0, id);
                conn.channel.lanes.push_sign_of_life(pong);
                self.queued = true;
            }
            // Messages have come another way, see `receive`.
            Incoming::Message { .. } | Incoming::Batch { .. } | Incoming::Handled => {}
        }
        Ok(())
    }
}

/// The context that a handler has given to its reply.
fn reply_context(message: &Message) -> Option<TraceContext> {
    let traced = message.trace.as_ref()?;
    traced.reply.get().copied()
}

/// Payloads of spawned handlers shorter than this are copied out of the read buffer.
const READ_BYTES_KEPT: usize = 64 * 1024;

fn panicked() -> Rejection {
    Rejection::new(RejectionCode::Internal, "the handler panicked")
}

fn too_long(bytes: usize, bytes_max: usize) -> Rejection {
    let text = format!("the reply has {bytes} bytes, at most {bytes_max} are allowed");
    Rejection::new(RejectionCode::Internal, text)
}

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

/// Answers one request of a spawned handler, once, also if the handler panics or is dropped.
struct Responder {
    conn: Arc<Conn>,
    id: u64,
    lane: Lane,
    wants_reply: bool,
    is_cancellable: bool,
    bytes: usize,
    frame_bytes_max: usize,
    /// Handlers of the method that run.
    running: Arc<AtomicUsize>,
    trace: Option<Arc<Traced>>,
    /// Ended with the handler; dropped with a handler that is stopped.
    measure: Option<Measure>,
}

impl Responder {
    /// Runs a handler in a task of its own, and answers with what it returns.
    fn spawn(self, span: HandlerSpan, handle: impl FnOnce() -> HandlerFuture + Send + 'static) {
        let cancellable = self
            .is_cancellable
            .then(|| (Arc::clone(&self.conn), self.id));
        let task = tokio::spawn(async move {
            let outcome = spans::instrumented(span, async move { handle().await }).await;
            self.answer(outcome).await;
        });
        if let Some((conn, id)) = cancellable {
            conn.running.started(id, task.abort_handle());
        }
    }

    /// From now on it answers, or it was stopped.
    fn ends(&mut self) {
        if mem::take(&mut self.is_cancellable) {
            self.wants_reply = self.conn.running.end(self.id);
        }
    }

    async fn answer(mut self, outcome: Result<Bytes, Rejection>) {
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
        send_wait(&conn, self.lane, header, &payload, direct).await;
    }

    /// Whether a reply may have a trace context besides.
    fn has_room_for(&self, payload: &Payload<'_>) -> bool {
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
            let lanes = &self.conn.channel.lanes;
            lanes.push_past_limit(self.lane, header, &payload);
            self.conn.notify(false);
            if let Some(measure) = self.measure.take() {
                measure.ended(Err(RejectionCode::Internal));
            }
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.conn.handlers.fetch_sub(1, Ordering::SeqCst);
        self.conn
            .handler_bytes
            .fetch_sub(self.bytes, Ordering::SeqCst);
        self.conn.handler_ended();
    }
}

/// Queues a frame of an accepted connection, and waits for room. Gives up when the connection ends.
async fn send_wait(conn: &Conn, lane: Lane, header: Header, payload: &Payload<'_>, direct: bool) {
    let mut waiting = Waiting {
        conn,
        lane,
        waiter: Waiter::default(),
    };
    let queued = poll_fn(|cx| {
        if conn.closing().is_some() {
            return Poll::Ready(false);
        }
        let lanes = &conn.channel.lanes;
        let waiter = &mut waiting.waiter;
        let (result, next) = lanes.push_or_wait(waiter, cx.waker(), lane, header, payload, None);
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
    pub(crate) lane: Lane,
    pub(crate) waiter: Waiter,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let lanes = &self.conn.channel.lanes;
        if let Some(next) = lanes.forget(&mut self.waiter, self.lane) {
            next.wake();
        }
    }
}
