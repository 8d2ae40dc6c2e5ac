//! Bodies that are sent and received in chunks.

use crate::call::Call;
use crate::error::TransportError;
use crate::payload::Payload;
use crate::proto::{
    BodyState, BodyStep, CallKey, Header, Kind, Lane, NotQueued, SendWindow, Waiter,
};
use crate::shell::conn::Conn;
use crate::shell::serve::Waiting;
use bytes::{Bytes, BytesMut};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

/// A body as it arrives, for a streamed handler: also a `futures` stream of its chunks, which ends behind an error.
///
/// Unread chunks are bounded by the window, [`Config::stream_window_bytes`](crate::Config::stream_window_bytes): a sender waits for its reader. Dropping
/// it tells the sender to stop.
pub struct Body {
    state: Arc<BodyState>,
    conn: Arc<Conn>,
    id: u64,
    ended: bool,
}

impl Body {
    pub(crate) fn new(state: Arc<BodyState>, conn: Arc<Conn>, id: u64) -> Self {
        Self {
            state,
            conn,
            id,
            ended: false,
        }
    }

    /// The next chunk; `None` when the body is complete. Chunks are at most 64 KiB, not as the sender cut them.
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
        let step = match self.state.poll_next(cx) {
            Poll::Ready(step) => step,
            Poll::Pending => return Poll::Pending,
        };
        match step {
            BodyStep::Chunk(chunk, grant) => {
                if grant > 0 {
                    self.queue(Kind::StreamCredit, &grant.to_le_bytes());
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

    /// Queues a frame of the connection's own: a few bytes, at most two for each half window that was read.
    fn queue(&self, kind: Kind, payload: &[u8]) {
        let header = Header::new(kind, 0, self.id);
        let lanes = &self.conn.channel.lanes;
        let payload = Payload::Borrowed(payload);
        if lanes.push(Lane::System, header, &payload, None).is_ok() {
            self.conn.notify(true);
        }
    }
}

impl futures_core::Stream for Body {
    type Item = Result<Bytes, TransportError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        Body::poll_next(&mut self, cx)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if !self.ended {
            self.state.end(false);
            self.queue(Kind::StreamReset, &[]);
        }
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

/// Sends a body in chunks, made by [`Transport::stream`](crate::Transport::stream).
///
/// Dropping it before [`finish`](Self::finish) breaks the body off: the receiver gets [`TransportError::BodyBroken`], never a body that looks
/// complete.
#[must_use = "a body that is not finished is broken off"]
pub struct BodySender {
    pub(crate) conn: Arc<Conn>,
    pub(crate) key: CallKey,
    pub(crate) window: Arc<SendWindow>,
    pub(crate) lane: Lane,
    pub(crate) call: Option<Call>,
    pub(crate) sent_bytes: u64,
}

impl BodySender {
    /// Sends the next part of the body, cut into chunks of 64 KiB at most. Waits while the receiver has a window full of unread bytes, or the
    /// queue is full. The bytes are shared, not copied.
    ///
    /// # Errors
    /// [`TransportError::BodyBroken`] if the receiver wants no more or the connection was lost. [`finish`](Self::finish) says why.
    pub async fn send(&mut self, mut part: Bytes) -> Result<(), TransportError> {
        while !part.is_empty() {
            let bytes_max = self.conn.frame_bytes_max.load(Ordering::Relaxed) as usize;
            let wanted = part.len().min(bytes_max).min(CHUNK_BYTES_MAX);
            let taken = poll_fn(|cx| self.window.poll_take(wanted as u64, cx)).await;
            let Some(taken) = taken else {
                return Err(self.broken());
            };
            let mut chunk = part.split_to(usize::try_from(taken).unwrap_or(wanted));
            self.sent_bytes += chunk.len() as u64;
            let mut bytes_max = chunk.len();
            while !chunk.is_empty() {
                let piece = chunk.slice(..bytes_max.min(chunk.len()));
                let length = piece.len();
                match self
                    .queue(Kind::StreamChunk, Payload::Shared(piece))
                    .await?
                {
                    Queued::Whole => chunk = chunk.split_off(length),
                    // What the peer takes has become known since the chunk was cut.
                    Queued::TooLong(most) => bytes_max = most as usize,
                }
            }
        }
        Ok(())
    }

    /// Bytes sent so far.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Ends the body and waits for the receiver's reply.
    ///
    /// # Errors
    /// What a call can fail with; [`TransportError::PeerRejected`] if the handler gave up early.
    pub async fn finish(mut self) -> Result<Bytes, TransportError> {
        // If the receiver has stopped, its answer says why.
        let _ = self.queue(Kind::StreamEnd, Payload::default()).await;
        self.conn.channel.close_window(self.key);
        match self.call.take() {
            Some(call) => call.await,
            None => Err(self.broken()),
        }
    }

    fn broken(&self) -> TransportError {
        TransportError::BodyBroken {
            peer: self.conn.peer,
        }
    }

    async fn queue(&self, kind: Kind, payload: Payload<'_>) -> Result<Queued, TransportError> {
        let header = Header::new(kind, 0, self.key.id());
        let mut waiting = Waiting {
            conn: &self.conn,
            lane: self.lane,
            waiter: Waiter::default(),
        };
        let conn = &self.conn;
        let queued = poll_fn(|cx| {
            // A body is of one connection: once that is lost, no chunk may go to the next one.
            match self.window.poll_take(0, cx) {
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(_)) | Poll::Pending => {}
            }
            let lanes = &conn.channel.lanes;
            let waiter = &mut waiting.waiter;
            let (result, next) =
                lanes.push_or_wait(waiter, cx.waker(), waiting.lane, header, &payload, None);
            if let Some(next) = next {
                next.wake();
            }
            match result {
                Ok(()) => Poll::Ready(Some(Queued::Whole)),
                Err(NotQueued::TooLong { bytes_max }) => {
                    Poll::Ready(Some(Queued::TooLong(bytes_max)))
                }
                Err(NotQueued::Full | NotQueued::Closed | NotQueued::Untraced) => Poll::Pending,
            }
        })
        .await;
        drop(waiting);
        let queued = queued.ok_or_else(|| self.broken())?;
        self.conn.notify(false);
        Ok(queued)
    }
}

/// What became of a frame of a body.
enum Queued {
    Whole,
    /// The peer takes so many bytes at most.
    TooLong(u32),
}

impl Drop for BodySender {
    fn drop(&mut self) {
        if self.call.is_none() {
            return;
        }
        self.conn.channel.close_window(self.key);
        // Behind the body's other frames.
        let header = Header::new(Kind::StreamReset, 0, self.key.id());
        let lanes = &self.conn.channel.lanes;
        lanes.push_past_limit(self.lane, header, &Payload::default());
        self.conn.notify(false);
    }
}

impl fmt::Debug for BodySender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodySender")
            .field("peer", &self.conn.peer)
            .field("sent_bytes", &self.sent_bytes)
            .finish_non_exhaustive()
    }
}
