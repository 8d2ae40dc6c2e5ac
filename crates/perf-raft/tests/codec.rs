//! The wire codec against raft's own, both ways.
//!
//! `PERF_CODEC_MESSAGES` sets how many random messages there are: 20 000 by default, a million for the full run (in release).

mod messages;

use bytes::Bytes;
use messages::message;
use perf_raft::codec::{self, Body, ChunkAck, CodecError, Frame, FrameHeader};
use proptest::prelude::*;
use protobuf::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};
use rand::SeedableRng;
use rand::rngs::StdRng;

fn count(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

#[test]
fn it_writes_and_reads_the_bytes_of_rafts_codec() {
    let mut random = StdRng::seed_from_u64(count("PERF_CODEC_SEED", 1));
    for number in 0..count("PERF_CODEC_MESSAGES", 20_000) {
        let message = message(&mut random);
        let theirs = Bytes::from(message.write_to_bytes().expect("it can be written"));
        let ours = codec::encode_pooled(&message).expect("it is small");
        assert_eq!(ours, theirs, "message {number}: {message:?}");
        assert_eq!(codec::encoded_len(&message), ours.len(), "message {number}");
        let parsed = Message::parse_from_bytes(&ours).expect("raft reads it");
        assert_eq!(parsed, message, "message {number}");
        assert_eq!(
            codec::decode(theirs).as_ref(),
            Ok(&message),
            "message {number}"
        );
    }
}

#[test]
fn payloads_are_slices_of_the_frame() {
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgAppend);
    let data = Bytes::from(vec![7; 1000]);
    message.set_entries(
        vec![Entry {
            data,
            ..Default::default()
        }]
        .into(),
    );
    let frame = codec::encode_pooled(&message).expect("it is small");
    let within = frame.as_ptr_range();
    let decoded = codec::decode(frame.clone()).expect("it was encoded");
    let start = decoded.entries[0].data.as_ptr();
    assert!(within.contains(&start), "the payload was copied");
}

/// Nothing takes more memory in relation to its bytes than entries and ids of members: both are counted before they are decoded.
#[test]
fn memory_is_bounded_by_the_frame_and_stated_limits() {
    let announced: Bytes = [0x3A, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F].to_vec().into();
    assert!(
        codec::decode(announced).is_err(),
        "an entry of 4 GiB in 6 bytes"
    );
    let empty_entries = |count| Bytes::from([0x3A, 0x00].repeat(count));
    let decoded = codec::decode(empty_entries(codec::ENTRIES_MAX)).expect("as many as allowed");
    assert_eq!(decoded.entries.len(), codec::ENTRIES_MAX);
    let entries = codec::ENTRIES_MAX + 1;
    let refused = Err(CodecError::TooManyEntries { entries });
    assert_eq!(codec::decode(empty_entries(entries)), refused);
    assert_eq!(
        codec::encode_pooled(&decoded).map(|bytes| bytes.len()),
        Ok(2 * codec::ENTRIES_MAX)
    );

    // In a frame, spread over bodies that protobuf adds up, and in a part of a snapshot.
    let delimited = |tag: u8, content: &[u8]| {
        let mut bytes = vec![tag << 3 | 2];
        prost::encoding::encode_varint(content.len() as u64, &mut bytes);
        bytes.extend(content);
        bytes
    };
    let half = delimited(6, &empty_entries(codec::ENTRIES_MAX / 2 + 1));
    assert!(Frame::decode(half.clone().into()).is_ok());
    let entries = codec::ENTRIES_MAX + 2;
    let refused = |frame: Vec<u8>| {
        assert_eq!(
            Frame::decode(frame.into()).err(),
            Some(CodecError::TooManyEntries { entries })
        )
    };
    refused(half.repeat(2));
    refused(delimited(7, &delimited(1, &empty_entries(entries))));

    // A membership of one byte for each id, packed: eight bytes each in memory.
    let ids = |count: usize| {
        let state = delimited(1, &vec![1; count]);
        delimited(9, &delimited(2, &delimited(1, &state)))
    };
    assert!(codec::decode(ids(60 * 1024).into()).is_ok());
    let too_large = codec::decode(ids(codec::SNAPSHOT_METADATA_BYTES_MAX).into());
    assert!(matches!(
        too_large,
        Err(CodecError::MetadataTooLarge { .. })
    ));
}

#[test]
fn a_message_with_too_many_entries_is_not_encoded() {
    let entries = codec::ENTRIES_MAX + 1;
    let mut message = Message::default();
    message.set_entries(vec![Entry::default(); entries].into());
    let refused = CodecError::TooManyEntries { entries };
    assert_eq!(codec::encode_pooled(&message), Err(refused.clone()));
    let frame = Frame {
        header: FrameHeader::default(),
        body: Body::Raft(message),
    };
    assert_eq!(frame.encode_pooled(), Err(refused));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let frame = Bytes::from(bytes);
        let _ = codec::decode(frame.clone());
        let _ = Frame::decode(frame.clone());
        let _ = FrameHeader::peek(&frame);
    }

    #[test]
    fn damaged_frames_are_a_message_or_an_error(seed in any::<u64>(), place in any::<prop::sample::Index>(), bit in 0_u8..8, cut in any::<prop::sample::Index>()) {
        let message = message(&mut StdRng::seed_from_u64(seed));
        let header = FrameHeader { to: 2, from: 1, group: perf_raft::GroupId(3), session: seed, sequence: 9, cluster: seed >> 3, incarnation: seed >> 5 };
        let frame = Frame { header, body: Body::Raft(message) };
        let mut bytes = frame.encode_pooled().expect("it is small").to_vec();
        let at = place.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = Frame::decode(Bytes::copy_from_slice(&bytes));
        bytes.truncate(cut.index(bytes.len()));
        let _ = Frame::decode(bytes.into());
    }

    #[test]
    fn frames_come_back(seed in any::<u64>(), to in any::<u64>(), from in any::<u64>(), group in any::<u64>(), session in any::<u64>(), sequence in any::<u64>()) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut message = message(&mut random);
        message.to = to;
        let header = FrameHeader { to, from, group: perf_raft::GroupId(group), session, sequence, cluster: session.rotate_left(7), incarnation: to };
        for body in [Body::Raft(message), Body::Ack(ChunkAck { transfer: from, received: to, refused: seed % 2 == 0 })] {
            let frame = Frame { header, body };
            let bytes = frame.encode_pooled().expect("it is small");
            prop_assert_eq!(bytes.len(), frame.encoded_len());
            prop_assert_eq!(FrameHeader::peek(&bytes), Ok(header));
            prop_assert_eq!(Frame::decode(bytes), Ok(frame));
        }
    }
}
