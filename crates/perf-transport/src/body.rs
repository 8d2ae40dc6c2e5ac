//! Bodies that are sent and received in chunks.

use crate::call::Call;
use crate::error::TransportError;
use crate::event::CloseReason;
use crate::items::ItemReader;
use crate::payload::Payload;
use crate::proto::{
    BodyState, BodyStep, CallKey, Header, Kind, NotQueued, SendQueue, SendWindow, Waiter,
};
use crate::shell::conn::Conn;
use crate::shell::serve::Waiting;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

/// A body as it arrives, for a streamed handler: also a `futures` stream of its chunks, which ends behind an error.
///
/// Unread chunks are bounded by the window, [`Config::stream_window_bytes`](crate::Config::stream_window_bytes): a
/// sender waits for its reader. Dropping it tells the sender to stop.
pub struct Body {
    state: Arc<BodyState>,
    conn: Arc<Conn>,
    id: u64,
    ended: bool,
    items: ItemReader,
    item_bytes_max: usize,
}

impl Body {
    pub(crate) fn new(
        state: Arc<BodyState>,
        conn: Arc<Conn>,
        (id, item_bytes_max): (u64, usize),
    ) -> Self {
        Self {
            state,
            conn,
            id,
            ended: false,
            items: ItemReader::default(),
            item_bytes_max,
        }
    }

    /// The node that sends it.
    #[must_use]
    pub fn peer(&self) -> u64 {
        self.conn.peer
    }

    /// The next item of an [`exchange`](crate::Transport::exchange), as the caller sent it; `None` when there are no
    /// more, or behind an error. Not to be mixed with [`next`](Self::next), which gives the chunks that items are put
    /// together from.
    ///
    /// # Errors
    /// As [`next`](Self::next), also if the last item is not whole; [`TransportError::TooLarge`] if an item is longer
    /// than [`Config::frame_bytes_max`](crate::Config::frame_bytes_max).
    pub async fn next_item(&mut self) -> Option<Result<Bytes, TransportError>> {
        poll_fn(|cx| self.poll_next_item(cx)).await
    }

    /// [`next_item`](Self::next_item) for those who poll.
    pub fn poll_next_item(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, TransportError>>> {
        loop {
            match self.items.next(self.item_bytes_max) {
                Ok(Some(item)) => return Poll::Ready(Some(Ok(item))),
                Ok(None) => {}
                Err(bytes) => {
                    // The rest has no meaning any more.
                    self.give_up();
                    self.items = ItemReader::default();
                    let bytes_max = self.item_bytes_max;
                    return Poll::Ready(Some(Err(TransportError::TooLarge { bytes, bytes_max })));
                }
            }
            match self.poll_next(cx) {
                Poll::Ready(Some(Ok(chunk))) => self.items.receive(chunk),
                Poll::Ready(None) if self.items.is_within_item() => {
                    self.items = ItemReader::default();
                    let peer = self.conn.peer;
                    return Poll::Ready(Some(Err(TransportError::BodyBroken { peer })));
                }
                other => return other,
            }
        }
    }

    /// The next chunk; `None` when the body is complete, or behind an error. Chunks are at most 64 KiB, not as the
    /// sender cut them.
    ///
    /// # Errors
    /// [`TransportError::BodyBroken`] if the sender gave up or the connection was lost: what came so far is not all.
    pub async fn next(&mut self) -> Option<Result<Bytes, TransportError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`next`](Self::next) for those who poll.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, TransportError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let step = match self.state.poll_next(cx) {
            Poll::Ready(step) => step,
            Poll::Pending => return Poll::Pending,
        };
        match step {
            BodyStep::Chunk(chunk, grant) => {
                if grant > 0 {
                    self.queue(Kind::StreamCredit, &grant.to_le_bytes());
                } else {
                    self.release();
                }
                Poll::Ready(Some(Ok(chunk)))
            }
            BodyStep::Complete => {
                self.ended = true;
                Poll::Ready(None)
            }
            BodyStep::Broken => {
                self.ended = true;
                let peer = self.conn.peer;
                Poll::Ready(Some(Err(TransportError::BodyBroken { peer })))
            }
        }
    }

    /// The rest of the body in one piece.
    ///
    /// # Errors
    /// [`TransportError::BodyBroken`], or [`TransportError::TooLarge`] if it has more than `bytes_max` bytes.
    pub async fn collect(&mut self, bytes_max: usize) -> Result<Bytes, TransportError> {
        let mut all = BytesMut::new();
        while let Some(chunk) = self.next().await {
            let chunk = chunk?;
            let bytes = all.len() + chunk.len();
            if bytes > bytes_max {
                return Err(TransportError::TooLarge { bytes, bytes_max });
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    }

    /// Nothing more is read: the sender may stop.
    fn give_up(&mut self) {
        if !mem::replace(&mut self.ended, true) {
            self.state.end(false);
            self.queue(Kind::StreamReset, &[]);
            self.release();
        }
    }

    /// Takes the bytes that were read of a complete body off the connection's count.
    fn release(&self) {
        let released = self.state.take_released();
        if released > 0 {
            let conn = &self.conn;
            // The connection's task may not have added these bytes yet. It reads the count only after it has added
            // them.
            conn.handler_bytes.fetch_sub(released, Ordering::SeqCst);
            conn.handler_ended();
        }
    }

    /// Queues a system frame of a few bytes: at most two for each half window that was read.
    fn queue(&self, kind: Kind, payload: &[u8]) {
        let header = Header::new(kind, 0, self.id);
        let queues = &self.conn.channel.queues;
        let payload = Payload::Borrowed(payload);
        if queues
            .push(SendQueue::System, header, &payload, None)
            .is_ok()
        {
            self.conn.notify(true);
        }
    }
}

impl futures_core::Stream for Body {
    type Item = Result<Bytes, TransportError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Body::poll_next(&mut self, cx)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("peer", &self.conn.peer)
            .finish_non_exhaustive()
    }
}

/// Chunks are cut to this size: a message of the other class waits for at most one of them in front of it.
const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// System frames that may always wait when this side grants credit for an answer: 20 KiB.
const GRANTS_MAX: usize = 1024;
/// Bytes of parts that a sender keeps when the futures that sent them were dropped. The part that reaches the bound is
/// kept, too. As many as the default window.
const UNSENT_BYTES_MAX: usize = 1 << 20;

/// Sends chunks in one queue, within the credit of the reader.
pub(crate) struct Chunks {
    pub(crate) conn: Arc<Conn>,
    key: CallKey,
    queue: SendQueue,
    window: Arc<SendWindow>,
    /// The longest payload that the reader takes, if that is less than what the connection takes.
    bytes_max: usize,
    /// Parts that are to be sent, and the one that has its credit already. Both outlive futures that are dropped.
    /// Callers bound what they add.
    unsent: VecDeque<Bytes>,
    unsent_bytes: usize,
    credited: Bytes,
    sent_bytes: u64,
}

impl Chunks {
    pub(crate) fn new(
        conn: Arc<Conn>,
        (key, queue): (CallKey, SendQueue),
        window: Arc<SendWindow>,
        bytes_max: usize,
    ) -> Self {
        Self {
            conn,
            key,
            queue,
            window,
            bytes_max,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            credited: Bytes::new(),
            sent_bytes: 0,
        }
    }

    /// Adds a part, which [`flush`](Self::flush) sends behind the others.
    pub(crate) fn add(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.unsent_bytes += part.len();
            self.unsent.push_back(part);
        }
    }

    /// Sends all parts. If the future is dropped the next call goes on where it was: nothing is lost or doubled.
    pub(crate) async fn flush(&mut self) -> Result<(), TransportError> {
        loop {
            self.queue_credited().await?;
            let Some(part) = self.unsent.front_mut() else {
                return Ok(());
            };
            let known = self.conn.frame_bytes_max.load(Ordering::Relaxed) as usize;
            let bytes_max = known.min(self.bytes_max).min(CHUNK_BYTES_MAX);
            let wanted = part.len().min(bytes_max);
            let window = &self.window;
            let taken = poll_fn(|cx| window.poll_take(wanted as u64, cx)).await;
            let Some(taken) = taken else {
                return Err(self.broken());
            };
            self.credited = part.split_to(usize::try_from(taken).unwrap_or(wanted));
            self.unsent_bytes -= self.credited.len();
            if part.is_empty() {
                self.unsent.pop_front();
            }
        }
    }

    async fn queue_credited(&mut self) -> Result<(), TransportError> {
        let mut bytes_max = self.credited.len();
        while !self.credited.is_empty() {
            let piece = self.credited.slice(..bytes_max.min(self.credited.len()));
            let length = piece.len();
            match self.try_queue(Kind::StreamChunk, piece).await? {
                Queued::Whole => {
                    self.credited.advance(length);
                    self.sent_bytes += length as u64;
                }
                // The peer has said since that it takes less.
                Queued::TooLong(most) => bytes_max = most as usize,
            }
        }
        Ok(())
    }

    fn broken(&self) -> TransportError {
        TransportError::BodyBroken {
            peer: self.conn.peer,
        }
    }

    /// Queues the end of a body, behind its chunks.
    pub(crate) async fn queue(&self, kind: Kind, payload: Bytes) -> Result<(), TransportError> {
        self.try_queue(kind, payload).await.map(|_| ())
    }

    /// Queues the end of a body whether there is room or not: the body was within the limit when it began.
    pub(crate) fn queue_past_limit(&self, kind: Kind) {
        let header = Header::new(kind, 0, self.key.id());
        let queues = &self.conn.channel.queues;
        queues.push_past_limit(self.queue, header, &Payload::default());
        self.conn.notify(false);
    }

    /// Forgets the window: nothing more is sent.
    pub(crate) fn close(&self) {
        self.conn.channel.close_window(self.key);
    }

    async fn try_queue(&self, kind: Kind, payload: Bytes) -> Result<Queued, TransportError> {
        let header = Header::new(kind, 0, self.key.id());
        let payload = Payload::Shared(payload);
        let mut waiting = Waiting {
            conn: &self.conn,
            queue: self.queue,
            waiter: Waiter::default(),
        };
        let conn = &self.conn;
        let queued = poll_fn(|cx| {
            // A body belongs to one connection: no chunk may go to the next one.
            if self.window.poll_closed(cx).is_ready() {
                return Poll::Ready(None);
            }
            let queues = &conn.channel.queues;
            let waiter = &mut waiting.waiter;
            let (result, next) =
                queues.push_or_wait(waiter, cx.waker(), waiting.queue, header, &payload, None);
            if let Some(next) = next {
                next.wake();
            }
            match result {
                Ok(()) => Poll::Ready(Some(Queued::Whole)),
                Err(NotQueued::TooLong { bytes_max }) => {
                    Poll::Ready(Some(Queued::TooLong(bytes_max)))
                }
                Err(_) => Poll::Pending,
            }
        })
        .await;
        drop(waiting);
        let queued = queued.ok_or_else(|| self.broken())?;
        self.conn.notify(false);
        Ok(queued)
    }
}

/// The outcome of queueing a frame of a body.
enum Queued {
    Whole,
    /// The peer takes so many bytes at most.
    TooLong(u32),
}

/// An answer in chunks, as it arrives at the caller.
pub(crate) struct AnswerBody {
    state: Arc<BodyState>,
    conn: Arc<Conn>,
    key: CallKey,
    /// How many system frames may wait when credit is granted.
    frames_max: usize,
}

impl AnswerBody {
    /// One of at most `answers_max` of its connection.
    pub(crate) fn new(
        state: Arc<BodyState>,
        conn: Arc<Conn>,
        (key, answers_max): (CallKey, usize),
    ) -> Self {
        // An honest peer reaches 64 signs of life and two grants for each answer.
        let frames_max = answers_max.saturating_mul(4).max(GRANTS_MAX);
        Self {
            state,
            conn,
            key,
            frames_max,
        }
    }

    pub(crate) fn peer(&self) -> u64 {
        self.conn.peer
    }

    /// The next chunk; `None` if there will be no more.
    pub(crate) fn poll_chunk(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let step = match self.state.poll_next(cx) {
            Poll::Ready(step) => step,
            Poll::Pending => return Poll::Pending,
        };
        let BodyStep::Chunk(chunk, grant) = step else {
            return Poll::Ready(None);
        };
        if grant > 0 {
            let header = Header::new(Kind::StreamCredit, 0, self.key.id());
            let queues = &self.conn.channel.queues;
            if queues.push_credit(header, grant, self.frames_max) {
                self.conn.notify(true);
            } else {
                // The peer sends on without reading the credit that it gets.
                self.conn.close(CloseReason::Stalled);
            }
        }
        Poll::Ready(Some(chunk))
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.conn.channel.close_answer(self.key);
    }
}

/// Sends a body in chunks, made by [`Transport::stream`](crate::Transport::stream).
///
/// Dropping it before [`finish`](Self::finish) breaks the body off: the receiver gets [`TransportError::BodyBroken`],
/// never a body that looks complete.
#[must_use = "a body that is not finished is broken off"]
pub struct BodySender {
    chunks: Chunks,
    call: Option<Call>,
    /// A part is missing: its future was dropped while it waited for room.
    is_cut: bool,
}

impl BodySender {
    pub(crate) fn new(chunks: Chunks, call: Call) -> Self {
        Self {
            chunks,
            call: Some(call),
            is_cut: false,
        }
    }

    /// Sends the next part of the body, cut into chunks of 64 KiB at most. Waits while the receiver has a window full
    /// of unread bytes, or the queue is full. The bytes are shared, not copied.
    ///
    /// Dropping the future before it is ready loses nothing: the rest goes with the next part, or with
    /// [`finish`](Self::finish). 1 MiB of such parts is kept. A further part waits until they are sent, and the body is
    /// broken off if its future is dropped before that: a body with a hole would look complete.
    ///
    /// # Errors
    /// [`TransportError::BodyBroken`] if the receiver wants no more, the connection was lost or the body was broken off
    /// here. [`finish`](Self::finish) says why.
    pub async fn send(&mut self, part: Bytes) -> Result<(), TransportError> {
        if self.is_cut {
            return Err(self.chunks.broken());
        }
        if self.chunks.unsent_bytes >= UNSENT_BYTES_MAX {
            self.is_cut = true;
            self.chunks.flush().await?;
            self.is_cut = false;
        }
        self.chunks.add(part);
        self.chunks.flush().await
    }

    /// Bytes sent so far.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.chunks.sent_bytes
    }

    /// Ends the body and waits for the receiver's reply.
    ///
    /// # Errors
    /// What a call can fail with; [`TransportError::PeerRejected`] if the handler gave up early.
    pub async fn finish(mut self) -> Result<Bytes, TransportError> {
        if self.is_cut && !self.chunks.window.is_closed() {
            return Err(self.chunks.broken());
        }
        // If the receiver has stopped, its answer says why.
        if self.chunks.flush().await.is_ok() {
            let _ = self.chunks.queue(Kind::StreamEnd, Bytes::new()).await;
        }
        self.chunks.close();
        match self.call.take() {
            Some(call) => call.await,
            None => Err(self.chunks.broken()),
        }
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        if self.call.is_none() {
            return;
        }
        self.chunks.close();
        // Behind the body's other frames.
        self.chunks.queue_past_limit(Kind::StreamReset);
    }
}

impl fmt::Debug for BodySender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodySender")
            .field("peer", &self.chunks.conn.peer)
            .field("sent_bytes", &self.chunks.sent_bytes)
            .finish_non_exhaustive()
    }
}
