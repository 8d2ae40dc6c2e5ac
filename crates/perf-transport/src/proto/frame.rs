//! The fixed header of every frame.

use super::time_limit::TimeLimit;
use std::fmt;

/// Bytes of the header before each payload.
pub const HEADER_BYTES: usize = 16;
/// Bytes of the checksum behind each payload, where the connection has checksums.
pub const CHECKSUM_BYTES: usize = 4;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// First frame of the side that dials: who it is.
    Hello = 1,
    /// First frame of the side that accepts.
    Welcome = 2,
    /// The accepting side says why it closes.
    Refuse = 3,
    /// Gives a number to a service and method.
    Define = 4,
    /// Asks whether the other side lives.
    Ping = 5,
    /// It does.
    Pong = 6,
    /// The sender will take no new requests on this connection.
    Goodbye = 7,
    /// A message without an answer.
    OneWay = 8,
    /// A message with an answer; its id comes back in the answer.
    Request = 9,
    /// The answer.
    Reply = 10,
    /// The answer is an error: a code of one byte, then a text.
    Failure = 11,
    /// A request whose body follows in chunks.
    StreamOpen = 12,
    /// A part of a body.
    StreamChunk = 13,
    /// The body is complete.
    StreamEnd = 14,
    /// The body will not be completed, or is no longer wanted.
    StreamReset = 15,
    /// The reader of a body allows so many more bytes (four bytes, little endian).
    StreamCredit = 16,
    /// Several messages without an answer, to one method: each has its length (two bytes, little endian) before it. The
    /// id is 0.
    Batch = 17,
    /// The caller of the request with this id has given up. It follows the request in the same queue.
    Cancel = 18,
    /// The accepting side lives, but has too much to do to read.
    Busy = 19,
    /// A request whose answer comes in chunks; they go as those of a `StreamOpen` do, the other way. `Reply` or
    /// `Failure` ends it.
    Watch = 20,
    /// A `Watch` whose own body follows in chunks, too.
    Exchange = 21,
    /// A `OneWay` with a trace context before its payload.
    TracedOneWay = 128 + 8,
    /// A `Request` with a trace context before its payload.
    TracedRequest = 128 + 9,
    /// A `Reply` with a trace context before its payload.
    TracedReply = 128 + 10,
    /// A `StreamOpen` with a trace context before its payload.
    TracedStreamOpen = 128 + 12,
    /// A `Watch` with a trace context before its payload.
    TracedWatch = 128 + 20,
    /// An `Exchange` with a trace context before its payload.
    TracedExchange = 128 + 21,
}

impl Kind {
    /// The kind with this number.
    #[inline]
    #[must_use]
    pub const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refuse,
            4 => Self::Define,
            5 => Self::Ping,
            6 => Self::Pong,
            7 => Self::Goodbye,
            8 => Self::OneWay,
            9 => Self::Request,
            10 => Self::Reply,
            11 => Self::Failure,
            12 => Self::StreamOpen,
            13 => Self::StreamChunk,
            14 => Self::StreamEnd,
            15 => Self::StreamReset,
            16 => Self::StreamCredit,
            17 => Self::Batch,
            18 => Self::Cancel,
            19 => Self::Busy,
            20 => Self::Watch,
            21 => Self::Exchange,
            136 => Self::TracedOneWay,
            137 => Self::TracedRequest,
            138 => Self::TracedReply,
            140 => Self::TracedStreamOpen,
            148 => Self::TracedWatch,
            149 => Self::TracedExchange,
            _ => return None,
        })
    }

    /// The most bytes that a payload of this kind may have, whatever the connection's cap.
    #[inline]
    #[must_use]
    pub const fn payload_bytes_max(self) -> u32 {
        match self {
            Self::Ping
            | Self::Pong
            | Self::Goodbye
            | Self::StreamEnd
            | Self::StreamReset
            | Self::Cancel
            | Self::Busy => 0,
            Self::StreamCredit => 4,
            Self::Batch => super::batch::BATCH_BYTES_MAX as u32,
            Self::Define => 1024,
            Self::Failure => 512,
            Self::Hello | Self::Welcome | Self::Refuse => super::HANDSHAKE_BYTES_MAX,
            _ => u32::MAX,
        }
    }

    /// Whether the sender waits for an answer, and may say for how long.
    #[inline]
    #[must_use]
    pub const fn wants_answer(self) -> bool {
        matches!(
            self,
            Self::Request | Self::StreamOpen | Self::TracedRequest | Self::TracedStreamOpen
        ) || self.is_watch()
    }

    /// Whether it is a request whose answer comes in chunks.
    #[inline]
    #[must_use]
    pub const fn is_watch(self) -> bool {
        matches!(
            self,
            Self::Watch | Self::Exchange | Self::TracedWatch | Self::TracedExchange
        )
    }

    /// The same with a trace context before its payload, if there is such a kind.
    #[inline]
    #[must_use]
    pub const fn traced(self) -> Option<Self> {
        Some(match self {
            Self::OneWay => Self::TracedOneWay,
            Self::Request => Self::TracedRequest,
            Self::Reply => Self::TracedReply,
            Self::StreamOpen => Self::TracedStreamOpen,
            Self::Watch => Self::TracedWatch,
            Self::Exchange => Self::TracedExchange,
            _ => return None,
        })
    }

    /// The same without a trace context, if this one has one.
    #[inline]
    #[must_use]
    pub const fn untraced(self) -> Option<Self> {
        Some(match self {
            Self::TracedOneWay => Self::OneWay,
            Self::TracedRequest => Self::Request,
            Self::TracedReply => Self::Reply,
            Self::TracedStreamOpen => Self::StreamOpen,
            Self::TracedWatch => Self::Watch,
            Self::TracedExchange => Self::Exchange,
            _ => return None,
        })
    }
}

/// The header of a frame: 16 bytes, little endian.
///
/// | bytes | |
/// |---|---|
/// | 0..4 | length of the payload |
/// | 4 | [`Kind`] |
/// | 5 | [`TimeLimit`] of a request, 0 otherwise: for later versions |
/// | 6..8 | number of the service and method, given by a `Define` of the same sender |
/// | 8..16 | id: of a call, of a stream, or what the sender of a one-way message chose |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the payload.
    pub length: u32,
    /// What the frame is.
    pub kind: Kind,
    /// How long the sender of a request waits.
    pub limit: TimeLimit,
    /// Number of the service and method.
    pub method: u16,
    /// Of a call or a stream, or the sender's own.
    pub id: u64,
}

impl Header {
    /// A header; the length is set when the frame is written.
    #[inline]
    #[must_use]
    pub const fn new(kind: Kind, method: u16, id: u64) -> Self {
        Self {
            length: 0,
            kind,
            limit: TimeLimit::NONE,
            method,
            id,
        }
    }

    /// Of a request whose sender waits so long.
    #[inline]
    #[must_use]
    pub const fn within(self, limit: TimeLimit) -> Self {
        Self { limit, ..self }
    }

    /// Of one of the messages of a frame of several.
    #[inline]
    #[must_use]
    pub(crate) const fn of_message(self) -> Self {
        Self::new(Kind::OneWay, self.method, self.id)
    }

    /// The header as on the wire.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = self.limit.code();
        bytes[6..8].copy_from_slice(&self.method.to_le_bytes());
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`FrameError::UnknownKind`], or [`FrameError::ReservedBits`] if byte 5 is not 0 and it is no request.
    #[inline]
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [a, b, c, d, kind, limit, e, f, id @ ..] = *bytes;
        let kind = Kind::from_u8(kind).ok_or(FrameError::UnknownKind { kind })?;
        if limit != 0 && !kind.wants_answer() {
            return Err(FrameError::ReservedBits { bits: limit });
        }
        Ok(Self {
            length: u32::from_le_bytes([a, b, c, d]),
            kind,
            limit: TimeLimit::from_code(limit),
            method: u16::from_le_bytes([e, f]),
            id: u64::from_le_bytes(id),
        })
    }
}

/// Why received bytes are no frames of this protocol. The connection is closed; no payload is part of the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// No kind has this number.
    UnknownKind {
        /// The number.
        kind: u8,
    },
    /// Bits that must be 0 in this version are not.
    ReservedBits {
        /// The byte.
        bits: u8,
    },
    /// The payload is longer than the connection, or its kind, allows.
    TooLong {
        /// What the header says.
        length: u32,
        /// What is allowed.
        length_max: u32,
    },
    /// The checksum is not that of the frame.
    Checksum {
        /// Of the bytes received.
        computed: u32,
        /// As received.
        received: u32,
    },
    /// A frame of this kind is not allowed here.
    Unexpected {
        /// Its kind.
        kind: Kind,
    },
    /// The payload of a frame of this kind has the wrong form.
    Malformed {
        /// Its kind.
        kind: Kind,
    },
    /// More bytes of bodies than were allowed, or more bodies.
    BudgetExceeded {
        /// What is allowed.
        bytes_max: u64,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind { kind } => write!(
                f,
                "no frame has kind {kind}: the other side speaks another protocol or version"
            ),
            Self::ReservedBits { bits } => {
                write!(f, "reserved byte is {bits:#04x}, must be 0 in this version")
            }
            Self::TooLong { length, length_max } => write!(
                f,
                "frame of {length} bytes, at most {length_max} are allowed: raise frame_bytes_max or stream the body"
            ),
            Self::Checksum { computed, received } => write!(
                f,
                "checksum {received:#010x} received, {computed:#010x} computed: the bytes were changed on the way"
            ),
            Self::Unexpected { kind } => write!(f, "a frame {kind:?} is not allowed here"),
            Self::Malformed { kind } => write!(f, "the payload of a frame {kind:?} is malformed"),
            Self::BudgetExceeded { bytes_max } => write!(
                f,
                "the peer sent more of its bodies than it was allowed, {bytes_max} bytes in all"
            ),
        }
    }
}

impl std::error::Error for FrameError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_wire_and_numbers_are_their_kinds() {
        for number in 0..=u8::MAX {
            let Some(kind) = Kind::from_u8(number) else {
                continue;
            };
            assert_eq!(kind as u8, number);
            if let Some(traced) = kind.traced() {
                assert_eq!(traced.untraced(), Some(kind));
                assert_eq!(traced.wants_answer(), kind.wants_answer());
            }
            let mut header = Header::new(kind, 0x1234, 0x0102_0304_0506_0708);
            header.length = 77;
            if kind.wants_answer() {
                header = header.within(TimeLimit::from_millis(500));
            }
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn reserved_bits_and_unknown_kinds_are_refused() {
        let mut bytes = Header::new(Kind::Ping, 0, 0).encode();
        bytes[5] = 1;
        assert_eq!(
            Header::decode(&bytes),
            Err(FrameError::ReservedBits { bits: 1 })
        );
        bytes[4] = 200;
        assert_eq!(
            Header::decode(&bytes),
            Err(FrameError::UnknownKind { kind: 200 })
        );
    }
}
