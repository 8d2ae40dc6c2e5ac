//! Reads what this crate's encoder writes, straight into the types of the `raft` crate.
//!
//! A frame of entries is most of what a follower reads, and prost's general way takes some 800 instructions for each: it looks at
//! every byte through a `Buf` and builds an entry twice. Here is the short way for what the encoder writes; it says `None` to all else (an unknown field, a
//! snapshot, a second body, anything damaged), and prost reads that, or says what is wrong with it.

use super::{Body, Frame, FrameHeader, convert, limits};
use crate::GroupId;
use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message};

// Wire types of protobuf: <https://protobuf.dev/programming-guides/encoding/#structure>.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const DELIMITED: u8 = 2;

/// Where payloads go.
pub(super) enum Payloads<'a> {
    /// They are slices of this frame.
    Slices(&'a Bytes),
    /// They are slices of a copy of this frame, made when there is something to slice.
    Copied(&'a [u8], Option<Bytes>),
}

impl Payloads<'_> {
    /// `part` lies within the frame.
    fn slice(&mut self, part: &[u8]) -> Bytes {
        let (frame, memory): (&[u8], &Bytes) = match self {
            Self::Slices(frame) => (frame, frame),
            Self::Copied(frame, copy) => (
                frame,
                copy.get_or_insert_with(|| Bytes::copy_from_slice(frame)),
            ),
        };
        let start = part.as_ptr().addr() - frame.as_ptr().addr();
        memory.slice(start..start + part.len())
    }
}

/// What is left of a part that has a length.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next field's number and wire type, `None` at the end. Numbers above 15, whose keys are longer, come out as some above 15.
    fn key(&mut self) -> Option<(u8, u8)> {
        let (key, rest) = self.0.split_first()?;
        self.0 = rest;
        Some((key >> 3, key & 7))
    }

    /// Up to nine bytes here: ten may be too much for 64 bits, which is for prost to say.
    #[inline]
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (place, &byte) in self.0.iter().take(9).enumerate() {
            value |= u64::from(byte & 0x7F) << (7 * place);
            if byte < 0x80 {
                self.0 = &self.0[place + 1..];
                return Some(value);
            }
        }
        None
    }

    #[inline]
    fn part(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.varint()?).ok()?;
        let (part, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(part)
    }

    fn fixed64(&mut self) -> Option<u64> {
        let (value, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*value))
    }
}

pub(super) fn frame(bytes: &[u8], payloads: &mut Payloads<'_>) -> Option<Frame> {
    // Filled in where it is: a message has hundreds of bytes, and each step that hands it on would move them.
    let mut frame = Frame {
        header: FrameHeader::default(),
        body: Body::Raft(Message::default()),
    };
    let Frame { header, body } = &mut frame;
    let Body::Raft(message) = body else {
        return None;
    };
    let mut fields = Fields(bytes);
    let mut has_body = false;
    while let Some(key) = fields.key() {
        match key {
            (1, VARINT) => header.to = fields.varint()?,
            (2, VARINT) => header.from = fields.varint()?,
            (3, VARINT) => header.group = GroupId(fields.varint()?),
            (4, FIXED64) => header.session = fields.fixed64()?,
            (5, VARINT) => header.sequence = fields.varint()?,
            (9, FIXED64) => header.cluster = fields.fixed64()?,
            (10, FIXED64) => header.incarnation = fields.fixed64()?,
            (6, DELIMITED) if !has_body => {
                fill_in(message, fields.part()?, payloads)?;
                has_body = true;
            }
            _ => return None,
        }
    }
    has_body.then_some(frame)
}

pub(super) fn message(bytes: &[u8], payloads: &mut Payloads<'_>) -> Option<Message> {
    let mut message = Message::default();
    fill_in(&mut message, bytes, payloads)?;
    Some(message)
}

/// Reads into a message that has nothing in it yet.
fn fill_in(message: &mut Message, bytes: &[u8], payloads: &mut Payloads<'_>) -> Option<()> {
    let mut entries = Vec::new();
    let mut fields = Fields(bytes);
    while let Some(key) = fields.key() {
        match key {
            (1, VARINT) => {
                message.msg_type = convert::message_type(fields.varint()? as i32).ok()?;
            }
            (2, VARINT) => message.to = fields.varint()?,
            (3, VARINT) => message.from = fields.varint()?,
            (4, VARINT) => message.term = fields.varint()?,
            (5, VARINT) => message.log_term = fields.varint()?,
            (6, VARINT) => message.index = fields.varint()?,
            (7, DELIMITED) => {
                let part = fields.part()?;
                if entries.is_empty() {
                    entries.reserve(entries_like(part, fields.0));
                }
                if entries.len() == limits::ENTRIES_MAX {
                    return None;
                }
                entries.push(entry(part, payloads)?);
            }
            (8, VARINT) => message.commit = fields.varint()?,
            (10, VARINT) => message.reject = fields.varint()? != 0,
            (11, VARINT) => message.reject_hint = fields.varint()?,
            (12, DELIMITED) => message.context = payloads.slice(fields.part()?),
            (13, VARINT) => message.request_snapshot = fields.varint()?,
            (14, VARINT) => message.deprecated_priority = fields.varint()?,
            (15, VARINT) => message.commit_term = fields.varint()?,
            _ => return None,
        }
    }
    message.set_entries(entries.into());
    Some(())
}

/// How many entries there are at most if none is shorter than the first.
fn entries_like(first: &[u8], rest: &[u8]) -> usize {
    // Each with its key and a length of one byte or more.
    (1 + rest.len() / (first.len() + 2)).min(limits::ENTRIES_MAX)
}

fn entry(bytes: &[u8], payloads: &mut Payloads<'_>) -> Option<Entry> {
    let mut kind = EntryType::EntryNormal;
    let (mut term, mut index, mut sync_log) = (0, 0, false);
    let (mut data, mut context) = (None, None);
    let mut fields = Fields(bytes);
    while let Some(key) = fields.key() {
        match key {
            (1, VARINT) => kind = convert::entry_type(fields.varint()? as i32).ok()?,
            (2, VARINT) => term = fields.varint()?,
            (3, VARINT) => index = fields.varint()?,
            (4, DELIMITED) => data = Some(payloads.slice(fields.part()?)),
            (5, VARINT) => sync_log = fields.varint()? != 0,
            (6, DELIMITED) => context = Some(payloads.slice(fields.part()?)),
            _ => return None,
        }
    }
    Some(Entry {
        entry_type: kind,
        term,
        index,
        data: data.unwrap_or_default(),
        context: context.unwrap_or_default(),
        sync_log,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    /// Any fields in any order, right and wrong types among them, with `content` in those that have a length.
    fn fields(content: BoxedStrategy<Vec<u8>>) -> BoxedStrategy<Vec<u8>> {
        let number = prop_oneof![Just(0), 1..4_u64, 100..400_u64, any::<u64>()];
        let varint = (1_u8..17, number).prop_map(|(tag, number)| {
            let mut field = key(tag, VARINT);
            prost::encoding::encode_varint(number, &mut field);
            field
        });
        let fixed = (1_u8..6, any::<u64>())
            .prop_map(|(tag, number)| [key(tag, FIXED64), number.to_le_bytes().to_vec()].concat());
        let delimited = (1_u8..17, content).prop_map(|(tag, content)| {
            let mut field = key(tag, DELIMITED);
            prost::encoding::encode_varint(content.len() as u64, &mut field);
            [field, content].concat()
        });
        let field = prop_oneof![6 => varint, 1 => fixed, 6 => delimited];
        prop::collection::vec(field, 0..6)
            .prop_map(|fields| fields.concat())
            .boxed()
    }

    fn key(tag: u8, wire_type: u8) -> Vec<u8> {
        let mut key = Vec::new();
        prost::encoding::encode_varint(u64::from(tag) << 3 | u64::from(wire_type), &mut key);
        key
    }

    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let payload = prop::collection::vec(any::<u8>(), 0..20).boxed();
        let header = [key(1, VARINT), vec![2], key(2, VARINT), vec![1]].concat();
        // A body in its place, else few would have one.
        fields(fields(payload)).prop_flat_map(move |message| {
            let mut body = key(6, DELIMITED);
            prost::encoding::encode_varint(message.len() as u64, &mut body);
            let frame = [header.clone(), body, message].concat();
            prop_oneof![3 => Just(frame.clone()), 1 => fields(Just(frame).boxed())]
        })
    }

    fn check(bytes: Vec<u8>) -> Result<bool, TestCaseError> {
        let bytes = Bytes::from(bytes);
        let slow = Frame::decode_any(bytes.clone());
        let sliced = frame(&bytes, &mut Payloads::Slices(&bytes));
        let copied = frame(&bytes, &mut Payloads::Copied(&bytes, None));
        prop_assert_eq!(&sliced, &copied);
        let read = sliced.is_some();
        if let Some(fast) = sliced {
            prop_assert_eq!(Ok(fast), slow);
        }
        Ok(read)
    }

    #[test]
    fn the_short_way_reads_nothing_otherwise_than_prost() {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(5000));
        let (read, left) = (Cell::new(0), Cell::new(0));
        let damage = (any::<prop::sample::Index>(), 0_u8..8);
        let run = runner.run(&(frames(), damage), |(mut bytes, (place, bit))| {
            let count = if check(bytes.clone())? { &read } else { &left };
            count.set(count.get() + 1);
            let place = place.index(bytes.len().max(1));
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << bit;
            }
            check(bytes.clone())?;
            bytes.truncate(place);
            check(bytes).map(|_| ())
        });
        assert!(run.is_ok(), "{run:?}");
        let (read, left) = (read.get(), left.get());
        assert!(
            read > 200 && left > 200,
            "{read} read, {left} left to prost"
        );
    }

    #[test]
    fn a_copy_is_made_for_payloads_alone_and_once() {
        let header = [key(1, VARINT), vec![2]].concat();
        let mut payloads = Payloads::Copied(&header, None);
        assert!(frame(&header, &mut payloads).is_none(), "no body");
        assert!(matches!(payloads, Payloads::Copied(_, None)));
        let entry = [key(4, DELIMITED), vec![3], b"abc".to_vec()].concat();
        let entries = [key(7, DELIMITED), vec![5], entry].concat().repeat(2);
        let bytes = [key(6, DELIMITED), vec![14], entries].concat();
        let mut payloads = Payloads::Copied(&bytes, None);
        let read = frame(&bytes, &mut payloads);
        let Some(Body::Raft(message)) = read.map(|frame| frame.body) else {
            panic!("it is what the encoder writes");
        };
        let Payloads::Copied(_, Some(copy)) = payloads else {
            panic!("there are payloads");
        };
        let within = copy.as_ptr_range();
        for entry in message.entries.iter() {
            assert_eq!(entry.data, b"abc"[..]);
            assert!(within.contains(&entry.data.as_ptr()));
        }
    }
}
