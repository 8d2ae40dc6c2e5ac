//! Replies of inline handlers, put together while a batch is read.

use crate::error::{Rejection, RejectionCode};
use crate::message::Message;
use crate::payload::Payload;
use crate::primitive::mutant;
use crate::proto::{Header, Kind, SendQueue};
use crate::shell::conn::Conn;
use crate::trace::{TRACE_BYTES, TraceContext};
use bytes::Bytes;
use std::sync::atomic::Ordering;

use super::ServeRole;

/// Memory that is kept for the next inline reply.
const SCRATCH_BYTES_KEPT: usize = 64 * 1024;

/// The context that a handler has given to its reply.
pub(super) fn reply_context(message: &Message) -> Option<TraceContext> {
    let traced = message.trace.as_ref()?;
    traced.reply.get().copied()
}

pub(super) fn panicked() -> Rejection {
    Rejection::new(RejectionCode::Internal, "the handler panicked")
}

pub(super) fn too_long(bytes: usize, bytes_max: usize) -> Rejection {
    let text = format!("the reply has {bytes} bytes, at most {bytes_max} are allowed");
    Rejection::new(RejectionCode::Internal, text)
}

impl ServeRole {
    #[inline]
    pub(super) fn queue_replies(&mut self, conn: &Conn) {
        let queues = &conn.channel.queues;
        for (queue, buffer) in [SendQueue::First, SendQueue::Second]
            .into_iter()
            .zip(&mut self.replies)
        {
            if let Some(buffer) = buffer.as_mut().filter(|buffer| !buffer.is_empty()) {
                queues.exchange_buffer(queue, buffer);
                self.queued = true;
            }
        }
        self.is_full = false;
        if self.scratch.capacity() > SCRATCH_BYTES_KEPT {
            // One long reply must not stay in memory for as long as the connection lasts.
            self.scratch = Vec::new();
        }
    }

    /// A buffer of replies is full: they go on their way, and if too many wait there the rest of the batch waits too.
    #[cold]
    pub(super) fn replies_full(&mut self, conn: &Conn) {
        self.queue_replies(conn);
        self.must_stop |= self.has_backlog(conn) && !mutant::is("backlog_seen_between_reads");
    }

    /// Whether the peer has so much to read that it gets nothing more to read. Replies of spawned handlers that wait
    /// for room go before those of inline ones, which never wait.
    pub(super) fn has_backlog(&self, conn: &Conn) -> bool {
        let (queued, is_waited_for) = conn.channel.queues.pressure();
        let unwritten = conn.unwritten.load(Ordering::Relaxed);
        is_waited_for || queued + unwritten >= self.limits.backlog_bytes_max
    }

    #[inline]
    pub(super) fn reply_inline(
        &mut self,
        (id, queue): (u64, SendQueue),
        result: Result<(), Rejection>,
        shared: Option<Bytes>,
    ) {
        let length = self.scratch.len() + shared.as_ref().map_or(0, Bytes::len);
        let result = if length > self.limits.frame_bytes_max {
            Err(too_long(length, self.limits.frame_bytes_max))
        } else {
            result
        };
        let place = usize::from(queue == SendQueue::Second);
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
}
