//! The envelope around messages: who, which group, which of the sender's messages.

use super::decode::{self, Payloads};
use super::writer::Writer;
use super::{CodecError, convert, encode, limits, wire};
use crate::GroupId;
use crate::inbound::{MessageClass, Queued};
use bytes::{Buf, BufMut, Bytes};
use perf_pool::BytesGuard;
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encoded_len_varint};
use raft::eraftpb::Message;

/// No less than the fields of a frame and its message take beside entries.
const HEAD_BYTES_MAX: usize = 256;

/// What is at the start of a frame, readable without decoding the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FrameHeader {
    /// The receiver's id; 0 in frames whose bytes go to several peers alike.
    pub to: u64,
    /// The sender's id.
    pub from: u64,
    /// The group the message belongs to.
    pub group: GroupId,
    /// The sender's run: a random number chosen when it starts.
    pub session: u64,
    /// The place among the session's frames, from 1. Growing, not necessarily without gaps.
    pub sequence: u64,
    /// Names the nodes that were founded together, in the lower 63 bits; 0 for a node that has not joined. The highest bit says that the sender
    /// has the table of members in its log.
    pub cluster: u64,
    /// Which node the sender's id stands for: drawn when its log was made.
    pub incarnation: u64,
}

/// A part of a snapshot on its way to a peer.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotChunk {
    /// The `MsgSnapshot`, without its data.
    pub message: Message,
    /// Tells the sender's transfers apart.
    pub transfer: u64,
    /// The size of the whole snapshot.
    pub total_bytes: u64,
    /// Where this part starts.
    pub offset: u64,
    /// This part.
    pub data: Bytes,
    /// CRC-32 of the whole snapshot.
    pub crc: u32,
    /// The table of members at the snapshot, encoded.
    pub members: Bytes,
}

/// A part of an encoded message that is too long for one frame to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessagePart {
    /// Tells the sender's messages apart.
    pub number: u64,
    /// Bytes of the whole message.
    pub total_bytes: u64,
    /// Where this part starts.
    pub offset: u64,
    /// This part.
    pub data: Bytes,
}

/// What a node says of itself: why it takes no part with another, or where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The founders of the sender's group.
    pub founders: Vec<u64>,
    /// The receiver is no member any more.
    pub removed: bool,
    /// Where the sender's peers reach it; empty in other notices.
    pub address: String,
}

/// What a group's members say of its sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepNote {
    /// What is said.
    pub kind: SleepKind,
    /// The sender's term.
    pub term: u64,
    /// The end of its log, all of it committed and applied.
    pub index: u64,
    /// The run of the sender's host, as its beats name it.
    pub host: u64,
    /// [`Beat::stops`] of the sender's host.
    pub stops: u64,
}

/// See [`SleepNote`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepKind {
    /// The leader asks a member to sleep.
    Ask,
    /// The member sleeps.
    Asleep,
    /// The sender was woken, and needs its leader.
    Woken,
}

/// A sign of life of a host, in the place of heartbeats of its groups that sleep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// How many groups stopped in this run of the sender.
    pub stops: u64,
    /// How many stops of the receiver's run the sender has seen.
    pub seen_stops: u64,
    /// The groups of the last stops, the latest last: those that the receiver has not seen, or fewer.
    pub stopped: Vec<u64>,
}

/// How much of a snapshot has arrived without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkAck {
    /// The transfer.
    pub transfer: u64,
    /// Bytes from the start.
    pub received: u64,
    /// The receiver will not take this snapshot: too large, or of no use.
    pub refused: bool,
}

/// What a frame carries.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Body {
    /// A message of the `raft` crate.
    Raft(Message),
    /// A part of a snapshot.
    Chunk(Box<SnapshotChunk>),
    /// The answer to one.
    Ack(ChunkAck),
    /// Why the sender takes no part with the receiver.
    Notice(Notice),
    /// A part of a message of the `raft` crate.
    Part(MessagePart),
    /// Whether a group sleeps.
    Sleep(SleepNote),
    /// A host lives. It is of no group: [`FrameHeader::group`] is 0 and without a meaning.
    Beat(Box<Beat>),
}

/// What goes from node to node.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Who, which group, which message.
    pub header: FrameHeader,
    /// The content.
    pub body: Body,
}

impl FrameHeader {
    /// Reads the header alone, in a few nanoseconds, wherever the frame is to go.
    ///
    /// # Errors
    /// [`CodecError::Malformed`] if the bytes do not start like a frame.
    pub fn peek(frame: &[u8]) -> Result<Self, CodecError> {
        Self::peek_with_tag(frame).map(|(header, _)| header)
    }

    /// Reads the header and the tag of the body.
    pub(crate) fn peek_with_tag(mut frame: &[u8]) -> Result<(Self, u32), CodecError> {
        Self::read(&mut frame)
    }

    /// The same; what is left starts with the length of the body.
    pub(super) fn read(frame: &mut &[u8]) -> Result<(Self, u32), CodecError> {
        let mut header = Self::default();
        while frame.has_remaining() {
            let (tag, wire_type) = decode_key(frame)?;
            match (tag, wire_type) {
                (1, WireType::Varint) => header.to = decode_varint(frame)?,
                (2, WireType::Varint) => header.from = decode_varint(frame)?,
                (3, WireType::Varint) => header.group = GroupId(decode_varint(frame)?),
                (4, WireType::SixtyFourBit) => {
                    prost::encoding::fixed64::merge(
                        wire_type,
                        &mut header.session,
                        frame,
                        DecodeContext::default(),
                    )?;
                }
                (5, WireType::Varint) => header.sequence = decode_varint(frame)?,
                (9, WireType::SixtyFourBit) => {
                    prost::encoding::fixed64::merge(
                        wire_type,
                        &mut header.cluster,
                        frame,
                        DecodeContext::default(),
                    )?;
                }
                (10, WireType::SixtyFourBit) => {
                    prost::encoding::fixed64::merge(
                        wire_type,
                        &mut header.incarnation,
                        frame,
                        DecodeContext::default(),
                    )?;
                }
                (6..=8 | 11..=15, WireType::LengthDelimited) => return Ok((header, tag)),
                _ => {
                    return Err(CodecError::Malformed {
                        reason: format!("field {tag} where a frame's header is expected"),
                    });
                }
            }
        }
        Err(CodecError::EmptyFrame)
    }

    pub(super) fn encoded_len(&self) -> usize {
        let fixed = [self.session, self.cluster, self.incarnation];
        let session: usize = fixed
            .iter()
            .map(|value| if *value == 0 { 0 } else { 9 })
            .sum();
        encode::len_uint(1, self.to)
            + encode::len_uint(2, self.from)
            + encode::len_uint(3, self.group.0)
            + session
            + encode::len_uint(5, self.sequence)
    }

    pub(super) fn put(&self, writer: &mut Writer<impl BufMut>) {
        writer.uint(1, self.to);
        writer.uint(2, self.from);
        writer.uint(3, self.group.0);
        writer.fixed64(4, self.session);
        writer.uint(5, self.sequence);
        writer.fixed64(9, self.cluster);
        writer.fixed64(10, self.incarnation);
    }
}

impl SnapshotChunk {
    fn encoded_len(&self) -> usize {
        let crc = if self.crc == 0 { 0 } else { 5 };
        encode::len_delimited(1, encode::message_len(&self.message, self.message.to))
            + encode::len_uint(2, self.transfer)
            + encode::len_uint(3, self.total_bytes)
            + encode::len_uint(4, self.offset)
            + encode::len_bytes(5, &self.data)
            + crc
            + encode::len_bytes(7, &self.members)
    }

    fn put(&self, writer: &mut Writer<impl BufMut>) {
        writer.header(1, encode::message_len(&self.message, self.message.to));
        encode::put_message(writer, &self.message, self.message.to);
        writer.uint(2, self.transfer);
        writer.uint(3, self.total_bytes);
        writer.uint(4, self.offset);
        writer.bytes(5, &self.data);
        writer.fixed32(6, self.crc);
        writer.bytes(7, &self.members);
    }
}

impl ChunkAck {
    fn encoded_len(self) -> usize {
        encode::len_uint(1, self.transfer)
            + encode::len_uint(2, self.received)
            + if self.refused { 2 } else { 0 }
    }

    fn put(self, writer: &mut Writer<impl BufMut>) {
        writer.uint(1, self.transfer);
        writer.uint(2, self.received);
        writer.bool(3, self.refused);
    }
}

impl Notice {
    fn to_wire(&self) -> wire::Notice {
        wire::Notice {
            founders: self.founders.clone(),
            removed: self.removed,
            address: self.address.clone(),
        }
    }
}

impl MessagePart {
    fn encoded_len(&self) -> usize {
        encode::len_uint(1, self.number)
            + encode::len_uint(2, self.total_bytes)
            + encode::len_uint(3, self.offset)
            + encode::len_bytes(4, &self.data)
    }

    fn put(&self, writer: &mut Writer<impl BufMut>) {
        writer.uint(1, self.number);
        writer.uint(2, self.total_bytes);
        writer.uint(3, self.offset);
        writer.bytes(4, &self.data);
    }
}

impl SleepNote {
    fn to_wire(self) -> wire::SleepNote {
        wire::SleepNote {
            kind: self.kind as u32,
            term: self.term,
            index: self.index,
            host: self.host,
            stops: self.stops,
        }
    }
}

impl Beat {
    fn to_wire(&self) -> wire::Beat {
        wire::Beat {
            stops: self.stops,
            seen_stops: self.seen_stops,
            stopped: self.stopped.clone(),
        }
    }
}

/// The tag of a host's beat.
pub(crate) const BEAT_TAG: u32 = 14;

impl Body {
    /// The message's own receiver is written as the frame's, so that bytes for several peers are equal.
    fn encoded_len(&self, to: u64) -> usize {
        match self {
            Self::Raft(message) => encode::message_len(message, to),
            Self::Chunk(chunk) => chunk.encoded_len(),
            Self::Ack(ack) => ack.encoded_len(),
            Self::Notice(notice) => notice.to_wire().encoded_len(),
            Self::Part(part) => part.encoded_len(),
            Self::Sleep(note) => note.to_wire().encoded_len(),
            Self::Beat(beat) => beat.to_wire().encoded_len(),
        }
    }

    fn put(&self, writer: &mut Writer<impl BufMut>, to: u64) {
        match self {
            Self::Raft(message) => encode::put_message(writer, message, to),
            Self::Chunk(chunk) => chunk.put(writer),
            Self::Ack(ack) => ack.put(writer),
            Self::Notice(notice) => writer.raw(&notice.to_wire().encode_to_vec()),
            Self::Part(part) => part.put(writer),
            Self::Sleep(note) => writer.raw(&note.to_wire().encode_to_vec()),
            Self::Beat(beat) => writer.raw(&beat.to_wire().encode_to_vec()),
        }
    }

    /// How urgent it is.
    #[must_use]
    pub fn class(&self) -> MessageClass {
        match self {
            Self::Raft(message) => MessageClass::of(message),
            // Appends alone are ever so long.
            Self::Part(_) => MessageClass::Append,
            Self::Sleep(_) | Self::Beat(_) => MessageClass::Heartbeat,
            Self::Chunk(_) | Self::Ack(_) | Self::Notice(_) => MessageClass::Snapshot,
        }
    }

    const fn tag(&self) -> u64 {
        match self {
            Self::Raft(_) => 6,
            Self::Chunk(_) => 7,
            Self::Ack(_) => 8,
            Self::Notice(_) => 11,
            Self::Part(_) => 12,
            Self::Sleep(_) => 13,
            Self::Beat(_) => BEAT_TAG as u64,
        }
    }
}

impl Queued for Frame {
    fn raft_message_mut(&mut self) -> Option<&mut Message> {
        match &mut self.body {
            Body::Raft(message) => Some(message),
            _ => None,
        }
    }
}

impl Frame {
    /// How many bytes [`encode_pooled`](Self::encode_pooled) makes of it: exact.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let body = self.body.encoded_len(self.header.to);
        // Bodies' tags are one byte.
        self.header.encoded_len() + 1 + encoded_len_varint(body as u64) + body
    }

    /// Writes the frame into a pooled buffer of its exact size: one copy of each payload, no allocation in steady state.
    ///
    /// With [`FrameHeader::to`] 0 the message's own receiver is left out too, so the same bytes serve several peers.
    ///
    /// # Errors
    /// [`CodecError::NoBuffer`] if it is larger than the pool serves, [`CodecError::TooManyEntries`] beyond
    /// [`ENTRIES_MAX`](super::ENTRIES_MAX).
    pub fn encode_pooled(&self) -> Result<Bytes, CodecError> {
        if let Body::Raft(message) = &self.body {
            limits::check_entries(message.entries.len())?;
        }
        let body = self.body.encoded_len(self.header.to);
        let len = self.header.encoded_len() + 1 + encoded_len_varint(body as u64) + body;
        let mut buffer = BytesGuard::try_new(len)?;
        let mut buf = buffer.buf_mut();
        let mut writer = Writer::new(&mut buf);
        self.header.put(&mut writer);
        writer.header(self.body.tag(), body);
        self.body.put(&mut writer, self.header.to);
        drop(writer);
        drop(buf);
        Ok(buffer.freeze())
    }

    /// Reads a frame. Payloads are slices of it; memory is bounded as for [`decode`](super::decode).
    ///
    /// # Errors
    /// [`CodecError`] for anything but a frame; never a panic.
    pub fn decode(frame: Bytes) -> Result<Self, CodecError> {
        match decode::frame(&frame, &mut Payloads::Slices(&frame)) {
            Some(read) => Ok(read),
            None => Self::decode_any(frame),
        }
    }

    /// The same, except that the payloads of entries are slices of a copy, so that the frame's memory is free at once: entries stay in the
    /// log for long, and would keep a receive buffer alive. It is the one copy of a payload that a follower makes.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_detached(frame: Bytes) -> Result<Self, CodecError> {
        let (mut read, is_compact) =
            match decode::frame(&frame, &mut Payloads::Copied(&frame, None)) {
                Some(read) => {
                    let is_compact = read.is_most_of(frame.len());
                    (read, is_compact)
                }
                None => (Self::decode_any(frame)?, false),
            };
        if !is_compact {
            read.detach_payloads();
        }
        Ok(read)
    }

    /// Whether a frame of `bytes` bytes holds little else than what was read of it. Fields that are repeated count once, so a peer could
    /// make a large copy stay for the sake of a few bytes.
    fn is_most_of(&self, bytes: usize) -> bool {
        let Body::Raft(message) = &self.body else {
            return true;
        };
        let entries = message.entries.iter().map(super::entry_len_max);
        bytes <= HEAD_BYTES_MAX + entries.sum::<usize>()
    }

    /// As [`detach_payloads`](super::detach_payloads) does for the entries of a message.
    pub(crate) fn detach_payloads(&mut self) {
        if let Body::Raft(message) = &mut self.body {
            super::detach_payloads(&mut message.entries);
        }
    }

    /// Reads what the encoder of another version may have written too.
    pub(super) fn decode_any(frame: Bytes) -> Result<Self, CodecError> {
        limits::check_frame(&frame)?;
        let frame = wire::Frame::decode(frame)?;
        let body = match frame.body.ok_or(CodecError::EmptyFrame)? {
            wire::Body::Raft(message) => Body::Raft(convert::message(message)?),
            wire::Body::Chunk(chunk) => Body::Chunk(Box::new(SnapshotChunk {
                message: convert::message(chunk.message.ok_or(CodecError::EmptyFrame)?)?,
                transfer: chunk.transfer,
                total_bytes: chunk.total_bytes,
                offset: chunk.offset,
                data: chunk.data,
                crc: chunk.crc,
                members: chunk.members,
            })),
            wire::Body::Notice(notice) => Body::Notice(Notice {
                founders: notice.founders,
                removed: notice.removed,
                address: notice.address,
            }),
            wire::Body::Part(part) => Body::Part(MessagePart {
                number: part.number,
                total_bytes: part.total_bytes,
                offset: part.offset,
                data: part.data,
            }),
            wire::Body::Sleep(note) => Body::Sleep(SleepNote {
                kind: match note.kind {
                    0 => SleepKind::Ask,
                    1 => SleepKind::Asleep,
                    2 => SleepKind::Woken,
                    kind => {
                        return Err(CodecError::Malformed {
                            reason: format!("{kind} where the kind of a note on sleep is expected"),
                        });
                    }
                },
                term: note.term,
                index: note.index,
                host: note.host,
                stops: note.stops,
            }),
            wire::Body::Beat(beat) => Body::Beat(Box::new(Beat {
                stops: beat.stops,
                seen_stops: beat.seen_stops,
                stopped: beat.stopped,
            })),
            wire::Body::Ack(ack) => Body::Ack(ChunkAck {
                transfer: ack.transfer,
                received: ack.received,
                refused: ack.refused,
            }),
        };
        Ok(Self {
            header: FrameHeader {
                to: frame.to,
                from: frame.from,
                group: GroupId(frame.group),
                session: frame.session,
                sequence: frame.sequence,
                cluster: frame.cluster,
                incarnation: frame.incarnation,
            },
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: Body) -> Frame {
        let header = FrameHeader {
            to: 2,
            from: 300,
            group: GroupId(9),
            session: 0x0123_4567_89AB_CDEF,
            sequence: 1 << 40,
            cluster: 7 << 60,
            incarnation: u64::MAX - 1,
        };
        Frame { header, body }
    }

    #[test]
    fn detached_frames_are_let_go_and_copies_hold_little_else() {
        let entry = |index, data| raft::eraftpb::Entry {
            index,
            term: 1 << 60,
            data: Bytes::from_static(data),
            ..Default::default()
        };
        let mut message = Message {
            to: 2,
            ..Default::default()
        };
        message.set_entries(vec![entry(1 << 61, b"one"), entry((1 << 61) + 1, b"two")].into());
        let sound = frame(Body::Raft(message)).encode_pooled().expect("small");
        // A sequence said a thousand times, of which the last counts, and an unknown field.
        let padded = [&[0x28, 1].repeat(1000), &sound[..]].concat();
        let unknown = [&sound[..], &[0x78, 1]].concat();
        for (bytes, is_whole_copied) in [(sound.to_vec(), true), (padded, false), (unknown, false)]
        {
            let bytes = Bytes::from(bytes);
            let read = Frame::decode_detached(bytes.clone()).expect("sound");
            assert_eq!(Frame::decode(bytes.clone()).as_ref(), Ok(&read));
            assert!(bytes.is_unique(), "an entry still holds the frame");
            let Body::Raft(message) = &read.body else {
                panic!("it is an append");
            };
            let [one, two] = [&message.entries[0].data, &message.entries[1].data];
            // Payloads alone lie side by side.
            let are_neighbours = two.as_ptr().addr() - one.as_ptr().addr() == one.len();
            assert_eq!(are_neighbours, !is_whole_copied, "{} bytes", bytes.len());
        }
    }

    fn snapshot_message() -> Message {
        let mut message = Message {
            to: 2,
            ..Default::default()
        };
        message.mut_snapshot().mut_metadata().index = 12;
        message
    }

    #[test]
    fn every_body_comes_back_and_its_size_is_exact() {
        let chunk = SnapshotChunk {
            message: snapshot_message(),
            transfer: 3,
            total_bytes: 1000,
            offset: 128,
            data: Bytes::from_static(b"part"),
            crc: 0xDEAD_BEEF,
            members: Bytes::from_static(b"table"),
        };
        let ack = ChunkAck {
            transfer: 3,
            received: 132,
            refused: true,
        };
        for body in [
            Body::Raft(snapshot_message()),
            Body::Chunk(Box::new(chunk)),
            Body::Ack(ack),
            Body::Part(MessagePart {
                number: 3,
                total_bytes: 1 << 20,
                offset: 700,
                data: Bytes::from_static(b"part"),
            }),
            Body::Notice(Notice {
                founders: vec![1, 2, 300],
                removed: true,
                address: "node-1:7000".to_owned(),
            }),
        ] {
            let frame = frame(body);
            let bytes = frame.encode_pooled().expect("small");
            assert_eq!(bytes.len(), frame.encoded_len());
            assert_eq!(FrameHeader::peek(&bytes), Ok(frame.header));
            assert_eq!(Frame::decode(bytes), Ok(frame));
        }
    }

    #[test]
    fn a_frame_for_several_peers_names_none() {
        let mut frame = frame(Body::Raft(snapshot_message()));
        frame.header.to = 0;
        let back = Frame::decode(frame.encode_pooled().expect("small")).expect("sound");
        assert!(matches!(back.body, Body::Raft(message) if message.to == 0));
    }
}
