//! What a handler gets.

use crate::names::Named;
use crate::proto::{FrameRef, MethodName, TimeLimit};
use crate::trace::{TraceContext, Traced};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// Where a message came from: proven by the certificate where there is TLS, said by the peer otherwise.
///
/// A connection's messages have the sequence 1, 2, 3 and so on, in the order in which they were sent. `(node,
/// incarnation, connection, sequence)` occurs once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Origin {
    /// The node.
    pub node: u64,
    /// A number that its process chose when it started.
    pub incarnation: u64,
    /// Number of the connection in that process: it grows with each one it dials.
    pub connection: u64,
    /// The message's place on the connection.
    pub sequence: u64,
}

/// A message that arrived, or a request.
///
/// Its payload is a view of the memory the connection reads into: holding on to it keeps that memory (up to
/// [`Config::read_bytes`](crate::Config::read_bytes)) from being used again. Copy what is kept for long. A spawned
/// handler gets a copy where the payload is small beside the memory.
#[derive(Clone, Debug)]
pub struct Message {
    pub(crate) origin: Origin,
    pub(crate) name: Named,
    pub(crate) request_id: u64,
    pub(crate) limit: TimeLimit,
    pub(crate) trace: Option<Arc<Traced>>,
    pub(crate) payload: Bytes,
}

impl Message {
    /// Id of the node that sent it.
    #[inline]
    #[must_use]
    pub fn from(&self) -> u64 {
        self.origin.node
    }

    /// Node, connection and place on it.
    #[inline]
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The service it is for.
    #[inline]
    #[must_use]
    pub fn service(&self) -> &str {
        self.name.service()
    }

    /// The method it is for.
    #[inline]
    #[must_use]
    pub fn method(&self) -> &str {
        self.name.method()
    }

    /// The sender's number of a one-way message, the transport's own of a request.
    #[inline]
    #[must_use]
    pub fn request_id(&self) -> u64 {
        self.request_id
    }

    /// How long the caller of a request waits for the answer, from when it sent it; `None` for one-way messages, and
    /// for callers that wait longer than 43 days. It came in one byte: up to an eighth longer than what the caller
    /// said, never shorter.
    #[inline]
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        self.limit.duration()
    }

    /// Where it belongs in a distributed trace, if its sender said so.
    #[inline]
    #[must_use]
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref().map(|traced| &traced.context)
    }

    /// Sets the context that the reply carries, usually that of the handler's own span: the caller has it from
    /// [`Call::reply_trace`](crate::Call::reply_trace). The first one counts. Does nothing where the request has no
    /// context.
    pub fn set_reply_trace(&self, context: TraceContext) {
        if let Some(traced) = &self.trace {
            // The first one counts.
            let _ = traced.reply.set(context);
        }
    }

    /// Its bytes.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Its bytes, without a copy.
    #[inline]
    #[must_use]
    pub fn into_payload(self) -> Bytes {
        self.payload
    }
}

/// A message that is looked at where it arrived.
#[derive(Clone, Copy, Debug)]
pub struct MessageRef<'a> {
    pub(crate) frame: FrameRef<'a>,
    /// Of the connection: all but the sequence.
    pub(crate) from: &'a Origin,
    pub(crate) sequence: u64,
    pub(crate) name: &'a MethodName,
    pub(crate) trace: Option<&'a TraceContext>,
}

impl<'a> MessageRef<'a> {
    /// Id of the node that sent it.
    #[inline]
    #[must_use]
    pub fn from(&self) -> u64 {
        self.from.node
    }

    /// Node, connection and place on it.
    #[inline]
    #[must_use]
    pub fn origin(&self) -> Origin {
        Origin {
            sequence: self.sequence,
            ..*self.from
        }
    }

    /// The service it is for.
    #[inline]
    #[must_use]
    pub fn service(&self) -> &'a str {
        self.name.service()
    }

    /// The method it is for.
    #[inline]
    #[must_use]
    pub fn method(&self) -> &'a str {
        self.name.method()
    }

    /// Where it belongs in a distributed trace, if its sender said so.
    #[inline]
    #[must_use]
    pub fn trace(&self) -> Option<&'a TraceContext> {
        self.trace
    }

    /// The sender's number.
    #[inline]
    #[must_use]
    pub fn request_id(&self) -> u64 {
        self.frame.header.id
    }

    /// Its bytes.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.frame.payload
    }

    /// Its bytes, to be kept without a copy: as a [`Message`]'s payload, they keep the memory that the connection reads
    /// into.
    #[inline]
    #[must_use]
    pub fn shared_payload(&self) -> Bytes {
        self.frame.shared_payload()
    }
}

/// The reply of an inline handler: bytes put together in memory that is used again, or shared ones.
///
/// The reply is what was written to [`buffer`](Self::buffer), followed by what was given to [`set`](Self::set).
#[derive(Debug)]
pub struct Reply<'a> {
    pub(crate) buffer: &'a mut Vec<u8>,
    pub(crate) shared: Option<Bytes>,
}

impl Reply<'_> {
    /// Appends bytes.
    #[inline]
    pub fn put_slice(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The memory that the reply is put together in, empty at first: for encoders that take a `BufMut`.
    #[inline]
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.buffer
    }

    /// Sends shared bytes behind what is in the buffer, without copying them where they are larger than 1 KiB.
    #[inline]
    pub fn set(&mut self, bytes: Bytes) {
        self.shared = Some(bytes);
    }
}
