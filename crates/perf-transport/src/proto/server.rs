//! The side of a connection that accepted: it gets requests and sends replies.

use super::batch::Messages;
use super::decoder::Frame;
use super::frame::{FrameError, Header, Kind};
use super::handshake::Define;
use super::queue::METHODS_MAX;
use super::stream::BodyState;
use super::time_limit::TimeLimit;
use crate::primitive::mutant;
use crate::trace::{TRACE_BYTES, TraceContext};
use bytes::{Buf, Bytes};
use prost::Message;
use std::fmt;
use std::sync::Arc;

/// The most bytes of a service's or a method's name.
pub const NAME_BYTES_MAX: usize = 128;

/// A service and one of its methods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MethodName {
    service: Box<str>,
    method: Box<str>,
}

impl MethodName {
    /// A name, if both parts have at most 128 bytes and the service is not empty.
    #[must_use]
    pub fn new(service: &str, method: &str) -> Option<Self> {
        let fits = service.len().max(method.len()) <= NAME_BYTES_MAX && !service.is_empty();
        fits.then(|| Self {
            service: service.into(),
            method: method.into(),
        })
    }

    /// The service.
    #[inline]
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The method.
    #[inline]
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }
}

impl fmt::Display for MethodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.method)
    }
}

/// Takes the trace context off the front of a message: the context, the header of the message without it, and the
/// message.
///
/// # Errors
/// [`FrameError::Malformed`] if there is no room for a context, or the kind has none.
pub(crate) fn split_trace<'a>(
    header: &Header,
    payload: &'a [u8],
) -> Result<(Option<TraceContext>, Header, &'a [u8]), FrameError> {
    let malformed = FrameError::Malformed { kind: header.kind };
    let kind = header.kind.untraced().ok_or(malformed)?;
    let (context, rest) = payload.split_first_chunk().ok_or(malformed)?;
    let header = Header {
        kind,
        length: header.length - TRACE_BYTES as u32,
        ..*header
    };
    Ok((TraceContext::decode(context), header, rest))
}

/// Bounds of a [`Server`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Bodies that may be open at once.
    pub streams_max: usize,
    /// Bytes of each that may be under way or unread.
    pub stream_window_bytes: u32,
}

/// A message or a request, as it arrived.
#[derive(Debug)]
pub struct ArrivedMessage {
    /// Number of its method, defined before.
    pub method: u16,
    /// Its id.
    pub id: u64,
    /// Its place among the messages of this connection, from 1.
    pub sequence: u64,
    /// How long the peer waits for an answer.
    pub limit: TimeLimit,
    /// Where it belongs in a trace.
    pub trace: Option<TraceContext>,
    /// Its bytes.
    pub payload: Bytes,
}

impl ArrivedMessage {
    fn new(header: &Header, sequence: u64, payload: Bytes) -> Self {
        Self {
            method: header.method,
            id: header.id,
            sequence,
            limit: header.limit,
            trace: None,
            payload,
        }
    }
}

/// What arrived.
#[derive(Debug)]
pub enum Incoming {
    /// A number has a meaning from now on.
    Defined(u16, Arc<MethodName>),
    /// A message, or a request.
    Message {
        /// Whether an answer is wanted.
        wants_reply: bool,
        /// Whether the answer comes in chunks: it is a `Watch`.
        in_chunks: bool,
        /// What arrived.
        arrived: ArrivedMessage,
    },
    /// Several messages, see [`Messages`]: at least one, and well formed.
    Batch {
        /// Number of their method, defined before.
        method: u16,
        /// The place of the first among the messages of this connection; the others follow.
        sequence: u64,
        /// All of them.
        payload: Bytes,
    },
    /// A request with a body in chunks.
    Opened {
        /// What arrived.
        arrived: ArrivedMessage,
        /// Where its body arrives.
        body: Arc<BodyState>,
        /// Whether the answer comes in chunks, too: it is an `Exchange`.
        in_chunks: bool,
    },
    /// The reader of an answer in chunks allows more.
    Granted {
        /// The request's id.
        id: u64,
        /// How many bytes.
        bytes: u32,
    },
    /// A body is complete. What its reader has not read yet is no part of [`Server::buffered`] any more.
    Completed {
        /// To be counted by the caller, until [`BodyState::take_released`] gives them back.
        unread_bytes: usize,
    },
    /// A body more than may be open: answer that this side is busy. Its chunks will be ignored.
    TooManyBodies {
        /// The request's id.
        id: u64,
    },
    /// The caller of this request has given up. The request may have been answered.
    Cancelled {
        /// The request's id.
        id: u64,
    },
    /// Answer with a pong of this id.
    Ping(u64),
    /// The peer will send nothing more, and closes in good order.
    Goodbye,
    /// Nothing for anybody else.
    Handled,
}

/// What an accepting side does with received frames.
#[derive(Debug)]
pub struct Server {
    limits: ServerLimits,
    defined: Vec<bool>,
    bodies: Vec<(u64, Arc<BodyState>)>,
    sequence: u64,
}

impl Server {
    /// A new connection.
    #[must_use]
    pub fn new(limits: ServerLimits) -> Self {
        Self {
            limits,
            defined: Vec::new(),
            bodies: Vec::new(),
            sequence: 0,
        }
    }

    /// Handles a frame.
    ///
    /// # Errors
    /// [`FrameError`] if the frame does not belong here: close the connection.
    #[inline]
    pub fn receive(&mut self, frame: Frame) -> Result<Incoming, FrameError> {
        let Frame { header, payload } = frame;
        match header.kind {
            Kind::Request | Kind::OneWay => {
                let sequence = self.admit(&header)?;
                Ok(Incoming::Message {
                    wants_reply: header.kind == Kind::Request,
                    in_chunks: false,
                    arrived: ArrivedMessage::new(&header, sequence, payload),
                })
            }
            _ => self.receive_other(Frame { header, payload }),
        }
    }

    fn receive_other(&mut self, frame: Frame) -> Result<Incoming, FrameError> {
        let Frame { header, payload } = frame;
        match header.kind {
            Kind::Define => self.define(header.method, payload),
            Kind::Batch => {
                let (sequence, _) = self.admit_batch(&header, &payload)?;
                Ok(Incoming::Batch {
                    method: header.method,
                    sequence,
                    payload,
                })
            }
            Kind::Watch => {
                let sequence = self.admit(&header)?;
                Ok(Incoming::Message {
                    wants_reply: true,
                    in_chunks: true,
                    arrived: ArrivedMessage::new(&header, sequence, payload),
                })
            }
            Kind::StreamCredit => {
                let malformed = FrameError::Malformed { kind: header.kind };
                let mut payload = payload;
                let bytes = payload.try_get_u32_le().map_err(|_| malformed)?;
                if mutant::is("answer_credit_ignored") {
                    return Ok(Incoming::Handled);
                }
                Ok(Incoming::Granted {
                    id: header.id,
                    bytes,
                })
            }
            Kind::StreamOpen | Kind::Exchange => {
                let sequence = self.admit(&header)?;
                if self.bodies.iter().any(|(id, _)| *id == header.id) {
                    return Err(FrameError::Malformed { kind: header.kind });
                }
                // The peer keeps to the bound, but what it has broken off may arrive behind what it has begun since.
                if self.bodies.len() >= self.limits.streams_max {
                    return Ok(Incoming::TooManyBodies { id: header.id });
                }
                let body = Arc::new(BodyState::new(self.limits.stream_window_bytes));
                self.bodies.push((header.id, Arc::clone(&body)));
                Ok(Incoming::Opened {
                    arrived: ArrivedMessage::new(&header, sequence, payload),
                    body,
                    in_chunks: header.kind == Kind::Exchange,
                })
            }
            Kind::StreamChunk => {
                // A chunk of no open body was on its way when that was broken off.
                let open = self.bodies.iter().find(|(id, _)| *id == header.id);
                if let Some((_, body)) = open {
                    body.receive(payload).map_err(|_| self.over_budget())?;
                }
                Ok(Incoming::Handled)
            }
            Kind::StreamEnd | Kind::StreamReset => {
                let place = self.bodies.iter().position(|(id, _)| *id == header.id);
                if let Some(place) = place {
                    let (_, body) = self.bodies.swap_remove(place);
                    if header.kind == Kind::StreamEnd {
                        let unread_bytes = body.complete();
                        return Ok(Incoming::Completed { unread_bytes });
                    }
                    body.end(false);
                }
                Ok(Incoming::Handled)
            }
            Kind::Cancel => Ok(Incoming::Cancelled { id: header.id }),
            Kind::Ping => Ok(Incoming::Ping(header.id)),
            Kind::Pong => Ok(Incoming::Handled),
            Kind::Goodbye => Ok(Incoming::Goodbye),
            Kind::TracedOneWay
            | Kind::TracedRequest
            | Kind::TracedStreamOpen
            | Kind::TracedWatch
            | Kind::TracedExchange => {
                let (context, header, rest) = split_trace(&header, &payload)?;
                let payload = payload.slice_ref(rest);
                let mut incoming = self.receive(Frame { header, payload })?;
                if let Incoming::Message { arrived, .. } | Incoming::Opened { arrived, .. } =
                    &mut incoming
                {
                    arrived.trace = context;
                }
                Ok(incoming)
            }
            kind => Err(FrameError::Unexpected { kind }),
        }
    }

    /// The place of a message, or of a request, among those of this connection, from 1: what [`receive`](Self::receive)
    /// asks first.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] if its method was not defined before.
    #[inline]
    pub fn admit(&mut self, header: &Header) -> Result<u64, FrameError> {
        if self.defined.get(usize::from(header.method)) != Some(&true) {
            return Err(FrameError::Malformed { kind: header.kind });
        }
        self.sequence += 1;
        Ok(self.sequence)
    }

    /// The same for a frame of several messages: the place of the first, and all of them.
    ///
    /// # Errors
    /// [`FrameError::Malformed`], also if the frame is no sequence of messages.
    #[inline]
    pub fn admit_batch<'a>(
        &mut self,
        header: &Header,
        payload: &'a [u8],
    ) -> Result<(u64, Messages<'a>), FrameError> {
        let (messages, count) = Messages::new(payload)?;
        let first = self.admit(header)?;
        self.sequence += count - 1;
        Ok((first, messages))
    }

    fn define(&mut self, number: u16, payload: Bytes) -> Result<Incoming, FrameError> {
        let malformed = FrameError::Malformed { kind: Kind::Define };
        let place = usize::from(number);
        if place >= METHODS_MAX {
            return Err(malformed);
        }
        let define = Define::decode(payload).map_err(|_| malformed)?;
        let name = MethodName::new(&define.service, &define.method).ok_or(malformed)?;
        if self.defined.len() <= place {
            self.defined.resize(place + 1, false);
        }
        self.defined[place] = true;
        Ok(Incoming::Defined(number, Arc::new(name)))
    }

    fn over_budget(&self) -> FrameError {
        let windows = u64::from(self.limits.stream_window_bytes);
        FrameError::BudgetExceeded {
            bytes_max: windows.saturating_mul(self.limits.streams_max as u64),
        }
    }

    /// Bytes of bodies that wait for their readers.
    #[must_use]
    pub fn buffered(&self) -> u64 {
        self.bodies.iter().map(|(_, body)| body.buffered()).sum()
    }

    /// Breaks off all open bodies: the connection is lost. Dropping the server does so, too.
    pub fn lost(&mut self) {
        for (_, body) in self.bodies.drain(..) {
            body.end(false);
        }
    }
}

/// The task of a connection may end without a word, by a stream that panics or with its runtime: no reader of a body
/// waits for ever.
impl Drop for Server {
    fn drop(&mut self) {
        self.lost();
    }
}
