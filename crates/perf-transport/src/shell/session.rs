//! The task of one connection: reads, hands frames to its role, and writes when that is its job.

use super::conn::{Conn, DIRECT_CALLS_MAX, bump};
use crate::connect::{BoxRead, BoxWrite};
use crate::event::CloseReason;
use crate::proto::{Decoder, FrameError, FrameRef, ReadBuffer};
use bytes::Bytes;
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use tokio::io::AsyncReadExt;

/// After so many reads in one go the task lets others run.
const READS_MAX: usize = 16;

/// What a side of a connection does with frames.
pub(crate) trait Role {
    /// Handles a frame.
    fn receive(&mut self, frame: FrameRef<'_>, conn: &Arc<Conn>) -> Result<(), FrameError>;
    /// All frames that arrived together are handled. `true` if something was queued.
    fn batch_end(&mut self, conn: &Conn) -> bool;
    /// Frames of a batch follow, which lies in so many bytes of memory.
    fn begin(&mut self, _memory_bytes: usize) {}
    /// Whether the next frame of the batch must wait until there is less to do: looked at behind each frame.
    fn must_stop(&self) -> bool {
        false
    }
    /// Goes on with what was put off.
    fn resume(&mut self, _conn: &Arc<Conn>) {}
    /// Whether nothing is put off. The end of what the peer sends is not looked at before.
    fn is_done(&self) -> bool {
        true
    }
    /// Whether the peer has said that it will close.
    fn has_said_goodbye(&self) -> bool;
    /// Whether reading must wait.
    fn is_overloaded(&self, conn: &Conn) -> bool;
    /// Others who may be about to queue something.
    fn in_flight(&self, conn: &Conn) -> usize;
}

/// An established stream.
pub(crate) struct Established {
    pub(crate) read: BoxRead,
    pub(crate) write: BoxWrite,
    /// What was received behind the handshake.
    pub(crate) buffer: ReadBuffer,
    pub(crate) decoder: Decoder,
}

struct Session<R> {
    conn: Arc<Conn>,
    read: BoxRead,
    buffer: ReadBuffer,
    decoder: Decoder,
    role: R,
    yielded: bool,
    /// What was received and not handled yet, from `at` on: not empty only while there was too much to do.
    batch: Bytes,
    at: usize,
    memory_bytes: usize,
    /// The peer sends nothing more.
    has_ended: bool,
}

enum Step {
    /// Others should queue what they have before the next write.
    Yield,
    Closed(CloseReason),
}

/// Runs a connection until it ends, and returns why. The role comes back for its last duties.
pub(crate) async fn run<R: Role>(
    conn: Arc<Conn>,
    established: Established,
    outbox_bytes: usize,
    role: R,
) -> (CloseReason, R) {
    let Established {
        read,
        write,
        buffer,
        decoder,
    } = established;
    let mut session = Session {
        conn,
        read,
        buffer,
        decoder,
        role,
        yielded: false,
        batch: Bytes::new(),
        at: 0,
        memory_bytes: 0,
        has_ended: false,
    };
    let mut write = Some(write);
    // What arrived with the handshake, and what was queued before it.
    let start = poll_fn(|cx| {
        if let Some(write) = write.take() {
            session.conn.connect(write, outbox_bytes, cx.waker());
        }
        let received = session.buffer.buffer().len();
        bump(&session.conn.bytes_received, received as u64);
        let begun = session.handle(cx);
        session.conn.notify_from_task(cx);
        // The task may have been the owner since before there was a stream.
        session.conn.poll_write(cx);
        Poll::Ready(begun)
    });
    if let Err(reason) = start.await {
        return (reason, session.role);
    }
    loop {
        match poll_fn(|cx| session.poll(cx)).await {
            Step::Yield => tokio::task::yield_now().await,
            Step::Closed(reason) => return (reason, session.role),
        }
    }
}

impl<R: Role> Session<R> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        self.conn.keep_waker(cx.waker());
        if let Some(reason) = self.conn.closing() {
            return Poll::Ready(Step::Closed(reason));
        }
        if self.conn.channel.ownership.is_tasks() {
            if !self.yielded && self.role.in_flight(&self.conn) > DIRECT_CALLS_MAX {
                self.yielded = true;
                return Poll::Ready(Step::Yield);
            }
            self.yielded = false;
            self.conn.poll_write(cx);
        }
        match self.poll_read(cx) {
            Ok(()) => Poll::Pending,
            Err(reason) => Poll::Ready(Step::Closed(reason)),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<(), CloseReason> {
        for _ in 0..READS_MAX {
            self.role.resume(&self.conn);
            if self.role.is_overloaded(&self.conn) {
                self.conn.paused.store(true, Ordering::SeqCst);
                // What was in the way may have gone before `paused` was set.
                self.role.resume(&self.conn);
                if self.role.is_overloaded(&self.conn) {
                    return Ok(());
                }
                self.conn.paused.store(false, Ordering::SeqCst);
            }
            if self.has_ended {
                self.conn.paused.store(true, Ordering::SeqCst);
                self.role.resume(&self.conn);
                if self.role.is_done() {
                    return Err(if self.role.has_said_goodbye() {
                        CloseReason::PeerDrained
                    } else {
                        CloseReason::PeerClosed
                    });
                }
                return Ok(());
            }
            if !self.batch.is_empty() {
                self.handle(cx)?;
                continue;
            }
            let needed = self.decoder.needed(self.buffer.buffer());
            self.buffer.prepare(needed.map_err(CloseReason::Protocol)?);
            let buffer = self.buffer.buffer();
            let read = pin!(self.read.read_buf(buffer)).poll(cx);
            let read = match read {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => {
                    self.has_ended = true;
                    continue;
                }
                Poll::Ready(Ok(read)) => read,
                // What rustls says of a peer that went without a word.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.has_ended = true;
                    continue;
                }
                Poll::Ready(Err(error)) => return Err(CloseReason::Io(error.to_string())),
            };
            bump(&self.conn.bytes_received, read as u64);
            let is_full = buffer.len() == buffer.capacity();
            self.handle(cx)?;
            if is_full {
                self.buffer.filled();
            } else {
                self.buffer.not_filled(read);
            }
        }
        // There may be more. Others first.
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Hands over all whole frames, unless there is too much to do before, then writes the answers.
    fn handle(&mut self, cx: &Context<'_>) -> Result<(), CloseReason> {
        let mut frames = 0;
        let mut result = Ok(());
        if self.batch.is_empty() {
            let buffer = self.buffer.buffer();
            let whole = self.decoder.whole_bytes(buffer);
            if whole > 0 {
                self.memory_bytes = buffer.capacity();
                self.batch = buffer.split_to(whole).freeze();
                self.at = 0;
            }
        }
        if !self.batch.is_empty() {
            let batch = mem::take(&mut self.batch);
            let mut at = self.at;
            self.role.begin(self.memory_bytes);
            while let Some(frame) = self
                .decoder
                .view(&batch, &mut at)
                .map_err(CloseReason::Protocol)?
            {
                frames += 1;
                result = self.role.receive(frame, &self.conn);
                if result.is_err() {
                    break;
                }
                if self.role.must_stop() {
                    if at < batch.len() {
                        self.batch = batch;
                        self.at = at;
                    }
                    break;
                }
            }
        }
        bump(&self.conn.frames_received, frames);
        if self.role.batch_end(&self.conn) {
            self.conn.notify_from_task(cx);
        }
        result.map_err(CloseReason::Protocol)
    }
}
