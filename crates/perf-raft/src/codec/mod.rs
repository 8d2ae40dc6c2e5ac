//! A wire codec for the messages of the `raft` crate.
//!
//! It writes the same bytes as raft's own codec and reads what that writes. Bytes from a network are only parsed
//! by [prost](https://docs.rs/prost) types, never by `protobuf` 2 ([RUSTSEC-2024-0437](https://rustsec.org/advisories/RUSTSEC-2024-0437)).
//!
//! - [`encoded_len`] is exact and [`encode`] writes into any buffer: no allocation, no intermediate form.
//! - [`encode_pooled`] does it into a buffer of `perf-pool`, whose memory comes back when the last clone of the result is dropped.
//! - [`decode`] slices payloads out of the frame. They keep the frame's memory alive: see [`detach_payloads`].
//!
//! ```
//! use perf_raft::codec;
//! use raft::eraftpb::{Message, MessageType};
//!
//! let mut message = Message::default();
//! message.set_msg_type(MessageType::MsgHeartbeat);
//! message.term = 7;
//! let frame = codec::encode_pooled(&message)?;
//! assert_eq!(frame.len(), codec::encoded_len(&message));
//! assert_eq!(codec::decode(frame)?, message);
//! # Ok::<(), codec::CodecError>(())
//! ```

mod bundle;
pub(crate) mod convert;
mod decode;
mod encode;
mod frame;
mod limits;
pub(crate) mod wire;
mod writer;

pub(crate) use bundle::bundle;
pub use bundle::for_each_frame;
pub(crate) use frame::BEAT_TAG;
pub use frame::{
    Beat, Body, ChunkAck, Frame, FrameHeader, MessagePart, Notice, SleepKind, SleepNote,
    SnapshotChunk,
};
pub use limits::{ENTRIES_MAX, SNAPSHOT_METADATA_BYTES_MAX};
pub(crate) use limits::{ENTRY_ROOM_BYTES, SNAPSHOT_ROOM_BYTES};

use bytes::{BufMut, Bytes, BytesMut};
use decode::Payloads;
use perf_pool::{BytesGuard, PoolError};
use prost::Message as _;
use raft::eraftpb::{Entry, Message};
use writer::Writer;

/// Why bytes are no message, or a message becomes no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The bytes are not protobuf, or not of this message.
    #[error(
        "the bytes are no Raft message ({reason}): drop them and the connection they came from"
    )]
    Malformed {
        /// What prost says.
        reason: String,
    },
    /// A number that names no type of message.
    #[error("{number} is no type of Raft message (0 to 18 are): the peer speaks a newer protocol")]
    UnknownMessageType {
        /// The number.
        number: i32,
    },
    /// A number that names no type of entry.
    #[error("{number} is no type of log entry (0 to 2 are): the peer speaks a newer protocol")]
    UnknownEntryType {
        /// The number.
        number: i32,
    },
    /// A number that names no kind or transition of a membership change.
    #[error(
        "{number} is no kind of membership change (0 to 2 are): the peer speaks a newer protocol"
    )]
    UnknownConfChange {
        /// The number.
        number: i32,
    },
    /// A frame without a body.
    #[error("the frame has no body: the peer speaks a newer protocol")]
    EmptyFrame,
    /// More entries than a message may have. Each takes far more memory than its bytes on the wire.
    #[error(
        "{entries} entries in one message where {ENTRIES_MAX} are allowed: send them as several appends; if a peer sent it, drop its connection"
    )]
    TooManyEntries {
        /// How many there are.
        entries: usize,
    },
    /// The metadata of a snapshot are larger than any membership.
    #[error(
        "{bytes} bytes of snapshot metadata where {SNAPSHOT_METADATA_BYTES_MAX} are allowed: drop the message and the connection it came from"
    )]
    MetadataTooLarge {
        /// Their size.
        bytes: usize,
    },
    /// There is no buffer for it.
    #[error("no buffer for the message: {0}")]
    NoBuffer(#[from] PoolError),
}

impl From<prost::DecodeError> for CodecError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Malformed {
            reason: error.to_string(),
        }
    }
}

/// How many bytes [`encode`] writes: exact. Linear in the number of entries.
#[must_use]
pub fn encoded_len(message: &Message) -> usize {
    encode::message_len(message, message.to)
}

/// How many bytes one entry takes within a message, its own header included: exact. For limits on batches.
#[must_use]
pub fn encoded_entry_len(entry: &Entry) -> usize {
    encode::len_delimited(7, encode::entry_len(entry))
}

/// No less than [`encoded_entry_len`], for what its payloads are long: keys, lengths and numbers take 44 bytes at most.
pub(crate) fn entry_len_max(entry: &Entry) -> usize {
    payload_len_max(entry.data.len() + entry.context.len())
}

/// The longest frame for an entry whose data and context have so many bytes together.
pub(crate) fn payload_len_max(bytes: usize) -> usize {
    44 + bytes
}

/// Appends the message to `buf`: one copy of each payload, no allocation of its own.
///
/// Fields that raft's codec would not know are not written.
///
/// # Panics
/// As `buf` does when it is full: make room for [`encoded_len`] bytes.
pub fn encode(message: &Message, buf: &mut impl BufMut) {
    encode::put_message(&mut Writer::new(buf), message, message.to);
}

/// Writes the message into a pooled buffer of its exact size.
///
/// # Errors
/// [`CodecError::NoBuffer`] if it is larger than the pool serves, [`CodecError::TooManyEntries`] beyond [`ENTRIES_MAX`].
pub fn encode_pooled(message: &Message) -> Result<Bytes, CodecError> {
    limits::check_entries(message.entries.len())?;
    let mut buffer = BytesGuard::try_new(encoded_len(message))?;
    encode(message, &mut buffer.buf_mut());
    Ok(buffer.freeze())
}

/// Reads a message. Payloads are slices of `frame`, nothing is copied.
///
/// Memory is taken as the bytes justify it, never for a length that they only announce. What takes more memory than its bytes is bounded:
/// [`ENTRIES_MAX`], some 6 MiB of entries at most while it decodes, and [`SNAPSHOT_METADATA_BYTES_MAX`]. That is looked at before anything is decoded.
///
/// # Errors
/// [`CodecError`] for anything but a message; never a panic.
pub fn decode(frame: Bytes) -> Result<Message, CodecError> {
    match decode::message(&frame, &mut Payloads::Slices(&frame)) {
        Some(read) => Ok(read),
        None => {
            limits::check_message(&frame)?;
            convert::message(wire::Message::decode(frame)?)
        }
    }
}

/// Copies the payloads of `entries` into one allocation of their exact size, so that the frames they were decoded from
/// are free at once.
///
/// Entries stay in the log for long, and a few bytes would keep a whole receive buffer alive. This is the one copy of a payload that a
/// follower makes. Entries without payload cost nothing.
pub fn detach_payloads(entries: &mut [Entry]) {
    let total: usize = entries
        .iter()
        .map(|entry| entry.data.len() + entry.context.len())
        .sum();
    if total == 0 {
        return;
    }
    let mut memory = BytesMut::with_capacity(total);
    for entry in entries.iter() {
        memory.put_slice(&entry.data);
        memory.put_slice(&entry.context);
    }
    let mut memory = memory.freeze();
    for entry in entries {
        entry.data = memory.split_to(entry.data.len());
        entry.context = memory.split_to(entry.context.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_entry_is_no_longer_than_its_bound() {
        for len in [0, 1, 127, 128, 20_000, 3 << 20] {
            let mut entry = Entry {
                index: u64::MAX,
                term: u64::MAX,
                data: vec![1; len].into(),
                context: vec![1; len].into(),
                sync_log: true,
                ..Default::default()
            };
            entry.set_entry_type(raft::eraftpb::EntryType::EntryConfChangeV2);
            assert!(encoded_entry_len(&entry) <= entry_len_max(&entry), "{len}");
        }
    }

    #[test]
    fn detached_payloads_are_equal_and_elsewhere() {
        let frame = Bytes::from(vec![7_u8; 100]);
        let mut entries: Vec<Entry> = (0..3_usize)
            .map(|place| Entry {
                data: frame.slice(place..place + 5),
                context: frame.slice(0..place),
                ..Default::default()
            })
            .collect();
        let before = entries.clone();
        detach_payloads(&mut entries);
        assert_eq!(entries, before);
        drop(before);
        assert!(frame.is_unique(), "an entry still holds the frame");
    }
}
