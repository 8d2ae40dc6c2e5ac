//! What can go wrong.

use crate::envelope::Envelope;
use crate::event::CloseReason;
use crate::proto::{Fault, HandshakeError};
use bytes::Bytes;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Why a message was not sent, or a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportError {
    /// No peer of this id has been added.
    UnknownPeer {
        /// The id.
        peer: u64,
    },
    /// The queue of this class to this peer is full, or callers wait in turn for its room. Nothing was sent: try later,
    /// or use `send_wait`.
    QueueFull {
        /// The peer.
        peer: u64,
    },
    /// As many calls to this peer are in flight as the configuration allows, or callers wait in turn for a slot.
    /// Nothing was sent.
    TooManyCalls {
        /// The peer.
        peer: u64,
        /// What is allowed.
        calls_max: usize,
    },
    /// As many bodies are being sent to this peer as it allows. Nothing was sent.
    TooManyStreams {
        /// The peer.
        peer: u64,
        /// What is allowed.
        streams_max: usize,
    },
    /// The deadline passed. The peer may or may not have handled the call.
    Timeout {
        /// The peer.
        peer: u64,
    },
    /// The connection was lost while the call was in flight. The peer may or may not have handled it.
    Disconnected {
        /// The peer.
        peer: u64,
        /// Why the last connection to the peer ended: also the error's `source`. `None` if it never ended, as while a
        /// transport shuts down.
        cause: Option<Arc<CloseReason>>,
    },
    /// The peer could not be reached. Nothing was sent.
    ///
    /// Messages and calls that are queued while a dial is under way share its outcome: if it fails they fail with its
    /// error at once, although the next attempt may succeed. Until the next attempt others are refused.
    Unreachable {
        /// The peer.
        peer: u64,
        /// When the next attempt to dial is made at the earliest. 0 where an attempt has just failed, or a connection
        /// has just ended: the next message finds out.
        retry_in_ms: u64,
        /// Why the last attempt failed, if it did: also the error's `source`. Of the connection that messages of this
        /// priority take.
        cause: Option<Arc<TransportError>>,
    },
    /// The peer is shutting down. Nothing was sent.
    PeerDraining {
        /// The peer.
        peer: u64,
    },
    /// The peer answered with an error.
    PeerRejected {
        /// The peer.
        peer: u64,
        /// What kind of error.
        code: RejectionCode,
        /// The peer's words.
        message: String,
    },
    /// The payload is longer than a frame may be: use `stream`, or raise `frame_bytes_max` on both sides.
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// The service or method has no valid name, or there are more than 2048 of them.
    InvalidName {
        /// What is wrong.
        reason: &'static str,
    },
    /// A body ended before it was complete.
    BodyBroken {
        /// The peer.
        peer: u64,
    },
    /// The peer's version does not know requests with answers in parts. Nothing was sent.
    Unsupported {
        /// The peer.
        peer: u64,
    },
    /// What the peer sent is no message of the type that was expected: the two ends have different versions of a
    /// service.
    Malformed {
        /// The peer.
        peer: u64,
    },
    /// This transport is shutting down. Nothing was sent.
    ShuttingDown,
    /// A handshake failed.
    Handshake {
        /// The peer, if it is known.
        peer: Option<u64>,
        /// Why.
        error: HandshakeError,
    },
    /// The configuration cannot work.
    Configuration {
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// The system refused: an address in use, for example.
    Io {
        /// What was done.
        action: &'static str,
        /// The system's words.
        reason: String,
    },
}

impl TransportError {
    #[cold]
    pub(crate) fn from_fault(
        fault: Fault,
        peer: u64,
        ended: impl FnOnce() -> Option<Arc<CloseReason>>,
        failed: impl FnOnce() -> Option<Arc<Self>>,
    ) -> Self {
        match fault {
            Fault::Timeout => Self::Timeout { peer },
            Fault::Disconnected => Self::Disconnected {
                peer,
                cause: ended(),
            },
            Fault::Unreachable => Self::Unreachable {
                peer,
                retry_in_ms: 0,
                cause: failed(),
            },
            Fault::TooLarge { bytes, bytes_max } => Self::TooLarge {
                bytes: bytes as usize,
                bytes_max: bytes_max as usize,
            },
            Fault::Unsupported => Self::Unsupported { peer },
            // The caller has taken it off, see `Call`.
            Fault::Traced(_) => Self::Disconnected { peer, cause: None },
            Fault::Rejected { code, text } => Self::PeerRejected {
                peer,
                code: RejectionCode::from_u8(code),
                message: String::from_utf8_lossy(&text).into_owned(),
            },
        }
    }

    /// Whether it is certain that the peer has not handled the message.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        !matches!(
            self,
            Self::Timeout { .. }
                | Self::Disconnected { .. }
                | Self::PeerRejected { .. }
                | Self::BodyBroken { .. }
                | Self::Malformed { .. }
        )
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPeer { peer } => {
                write!(f, "no peer {peer} is known: add it with `add_peer`")
            }
            Self::QueueFull { peer } => write!(
                f,
                "the queue to node {peer} is full: try later, or use `send_wait`"
            ),
            Self::TooManyCalls { peer, calls_max } => write!(
                f,
                "{calls_max} calls to node {peer} are in flight, no more are allowed: raise `calls_max`"
            ),
            Self::TooManyStreams { peer, streams_max } => write!(
                f,
                "{streams_max} bodies are being sent to node {peer}, no more are allowed: raise its `streams_max`"
            ),
            Self::Timeout { peer } => write!(f, "node {peer} did not answer in time"),
            Self::Disconnected { peer, .. } => write!(
                f,
                "the connection to node {peer} was lost; it may or may not have handled the message"
            ),
            Self::Unreachable {
                peer, retry_in_ms, ..
            } => write!(
                f,
                "node {peer} cannot be reached, the next attempt is in {retry_in_ms} ms"
            ),
            Self::PeerDraining { peer } => write!(f, "node {peer} is shutting down"),
            Self::PeerRejected {
                peer,
                code,
                message,
            } => write!(f, "node {peer} answered {code:?}: {message}"),
            Self::TooLarge { bytes, bytes_max } => write!(
                f,
                "payload of {bytes} bytes, at most {bytes_max} are allowed: use `stream`, or raise `frame_bytes_max`"
            ),
            Self::InvalidName { reason } => write!(f, "service or method: {reason}"),
            Self::BodyBroken { peer } => {
                write!(f, "the body from node {peer} ended before it was complete")
            }
            Self::Unsupported { peer } => {
                write!(f, "node {peer} does not know answers in parts: upgrade it")
            }
            Self::Malformed { peer } => write!(
                f,
                "what node {peer} sent is no message of the expected type: compare the versions of the service"
            ),
            Self::ShuttingDown => f.write_str("this transport is shutting down"),
            Self::Handshake { peer, error } => match peer {
                Some(peer) => write!(f, "handshake with node {peer}: {error}"),
                None => write!(f, "handshake: {error}"),
            },
            Self::Configuration { reason } => f.write_str(reason),
            Self::Io { action, reason } => write!(f, "cannot {action}: {reason}"),
        }
    }
}

impl std::error::Error for TransportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreachable {
                cause: Some(cause), ..
            } => Some(cause.as_ref()),
            Self::Disconnected {
                cause: Some(cause), ..
            } => Some(cause.as_ref()),
            Self::Handshake { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// A message that was not sent, with the reason: the caller has it back.
#[derive(Clone, Debug)]
pub struct Undelivered<'a> {
    /// The message.
    pub envelope: Envelope<'a>,
    /// Why it was not sent.
    pub error: TransportError,
}

impl fmt::Display for Undelivered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Undelivered<'_> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl From<Undelivered<'_>> for TransportError {
    fn from(undelivered: Undelivered<'_>) -> Self {
        undelivered.error
    }
}

/// What kind of error a handler answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionCode {
    /// No handler has this service and method, or not of this kind.
    NotFound,
    /// The request makes no sense.
    Invalid,
    /// Not now: try later.
    Busy,
    /// Another node is responsible.
    NotHere,
    /// The caller may not do this.
    Forbidden,
    /// The handler failed, or panicked.
    Internal,
    /// A code of the application's own: 128 to 255.
    Custom(u8),
}

impl RejectionCode {
    /// Its number on the wire.
    #[must_use]
    pub const fn as_u8(self) -> u8 {
        match self {
            Self::NotFound => 1,
            Self::Invalid => 2,
            Self::Busy => 3,
            Self::NotHere => 4,
            Self::Forbidden => 5,
            Self::Internal => 6,
            Self::Custom(code) => code | 0x80,
        }
    }

    /// The code of a number; unknown ones are `Internal`.
    #[must_use]
    pub const fn from_u8(number: u8) -> Self {
        match number {
            1 => Self::NotFound,
            2 => Self::Invalid,
            3 => Self::Busy,
            4 => Self::NotHere,
            5 => Self::Forbidden,
            128..=255 => Self::Custom(number),
            _ => Self::Internal,
        }
    }
}

/// A handler's error: what the caller gets as [`TransportError::PeerRejected`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What kind of error.
    pub code: RejectionCode,
    /// For people: the first 256 bytes are sent.
    pub message: Cow<'static, str>,
}

/// The most bytes of a rejection's text on the wire.
const REJECTION_BYTES_MAX: usize = 256;

impl Rejection {
    /// An error of this kind.
    #[must_use]
    pub fn new(code: RejectionCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// As the payload of a `Failure` frame.
    pub(crate) fn encode(&self) -> Bytes {
        let mut end = self.message.len().min(REJECTION_BYTES_MAX);
        while !self.message.is_char_boundary(end) {
            end -= 1;
        }
        let mut payload = Vec::with_capacity(1 + end);
        payload.push(self.code.as_u8());
        payload.extend_from_slice(&self.message.as_bytes()[..end]);
        payload.into()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for Rejection {}
