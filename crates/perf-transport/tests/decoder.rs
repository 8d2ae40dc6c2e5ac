//! The decoder beside a simple one: the same frames and the same verdict, however the bytes are cut.

#![cfg(not(perf_loom))]

use bytes::{Bytes, BytesMut};
use perf_transport::Payload;
use perf_transport::proto::{
    Decoder, FrameError, HEADER_BYTES, Header, Kind, Outbox, ReadBuffer, SLICES_MAX, TimeLimit,
    WriteBuffer,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::io::IoSlice;

const FRAME_BYTES_MAX: u32 = 2000;

/// What a whole input means: its frames, and the error that ends it.
type Meaning = (Vec<(Header, Vec<u8>)>, Option<FrameError>);

/// Reads everything at once, field by field, as the documentation of the header says.
fn reference(input: &[u8], checksum: bool) -> Meaning {
    let mut frames = Vec::new();
    let mut rest = input;
    loop {
        if rest.len() < 16 {
            return (frames, None);
        }
        let length = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
        let Some(kind) = Kind::from_u8(rest[4]) else {
            return (frames, Some(FrameError::UnknownKind { kind: rest[4] }));
        };
        // A request's limit of time.
        // 9, 12, 20 and 21, and the same with a trace context.
        if rest[5] != 0 && ![9, 12, 20, 21].contains(&(rest[4] & 0x7F)) {
            return (frames, Some(FrameError::ReservedBits { bits: rest[5] }));
        }
        let length_max = kind.payload_bytes_max().min(FRAME_BYTES_MAX);
        if length > length_max {
            return (frames, Some(FrameError::TooLong { length, length_max }));
        }
        let end = 16 + length as usize;
        let total = end + if checksum { 4 } else { 0 };
        if rest.len() < total {
            return (frames, None);
        }
        if checksum {
            let received =
                u32::from_le_bytes([rest[end], rest[end + 1], rest[end + 2], rest[end + 3]]);
            let computed = slow_crc(&rest[..end]);
            if received != computed {
                return (frames, Some(FrameError::Checksum { computed, received }));
            }
        }
        let method = u16::from_le_bytes([rest[6], rest[7]]);
        let mut id = [0; 8];
        id.copy_from_slice(&rest[8..16]);
        let mut header = Header::new(kind, method, u64::from_le_bytes(id));
        header.length = length;
        header.limit = TimeLimit::from_code(rest[5]);
        frames.push((header, rest[16..end].to_vec()));
        rest = &rest[total..];
    }
}

/// CRC-32 of IEEE 802.3, a bit at a time.
fn slow_crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xEDB8_8320
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

/// Reads in pieces, through the memory that connections read into: frame by frame, and in batches as connections do.
fn in_pieces(input: &[u8], cuts: &[usize], checksum: bool) -> Meaning {
    let single = pieces(input, cuts, checksum, false);
    assert_eq!(pieces(input, cuts, checksum, true), single);
    single
}

fn pieces(input: &[u8], cuts: &[usize], checksum: bool, batches: bool) -> Meaning {
    let decoder = Decoder::new(FRAME_BYTES_MAX, checksum);
    let mut buffer = ReadBuffer::new(1024, 4096);
    let mut frames = Vec::new();
    let mut kept = Vec::new();
    let mut cuts = cuts.iter().copied().cycle();
    let mut rest = input;
    while !rest.is_empty() {
        let needed = match decoder.needed(buffer.buffer()) {
            Ok(needed) => needed,
            Err(error) => return (frames, Some(error)),
        };
        buffer.prepare(needed);
        let room = buffer.buffer().capacity() - buffer.buffer().len();
        assert!(room > 0, "no room for the next read");
        let now = rest.len().min(room).min(cuts.next().unwrap_or(1).max(1));
        buffer.buffer().extend_from_slice(&rest[..now]);
        rest = &rest[now..];
        let (mut batch, mut at) = (Bytes::new(), 0);
        if batches {
            let whole = decoder.whole_bytes(buffer.buffer());
            batch = buffer.buffer().split_to(whole).freeze();
        }
        loop {
            let next = if batches {
                let view = decoder.view(&batch, &mut at);
                view.map(|frame| frame.map(|frame| frame.to_frame()))
            } else {
                decoder.next(buffer.buffer())
            };
            match next {
                Ok(Some(frame)) => {
                    let header = frame.header;
                    frames.push((header, frame.payload.to_vec()));
                    // Some frames live on, so that memory is in use.
                    if header.id.is_multiple_of(3) {
                        kept.push((frame.payload.clone(), frame.payload.to_vec()));
                    }
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        assert_eq!(at, batch.len(), "a batch is of whole frames");
    }
    // What has not all arrived may be wrong already.
    if let Err(error) = decoder.needed(buffer.buffer()) {
        return (frames, Some(error));
    }
    for (shared, copy) in kept {
        assert_eq!(&shared[..], &copy[..], "a frame in use was written over");
    }
    (frames, None)
}

/// Frames as this crate writes them.
fn encode(frames: &[(u16, u64, Vec<u8>)], checksum: bool) -> Vec<u8> {
    let mut outbox = Outbox::default();
    for (method, id, payload) in frames {
        let mut buffer = WriteBuffer::new();
        let limit = TimeLimit::from_code(*id as u8);
        let header = Header::new(Kind::Request, *method, *id).within(limit);
        buffer.push(header, &Payload::Borrowed(payload), checksum);
        outbox.push(buffer);
    }
    let mut all = Vec::new();
    while !outbox.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = outbox.slices(&mut slices);
        let before = all.len();
        slices[..count]
            .iter()
            .for_each(|slice| all.extend_from_slice(slice));
        outbox.advance(all.len() - before, |_| ());
    }
    all
}

fn frames() -> impl Strategy<Value = Vec<(u16, u64, Vec<u8>)>> {
    let payload = prop_oneof![vec(any::<u8>(), 0..100), vec(any::<u8>(), 0..2000)];
    vec((any::<u16>(), any::<u64>(), payload), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn frames_survive_every_way_of_cutting(
        frames in frames(), cuts in vec(1_usize..700, 1..8), checksum: bool,
    ) {
        let wire = encode(&frames, checksum);
        let meaning = in_pieces(&wire, &cuts, checksum);
        prop_assert_eq!(&meaning, &reference(&wire, checksum));
        prop_assert_eq!(meaning.1, None);
        let back: Vec<_> = meaning.0.into_iter().map(|(header, payload)| (header.method, header.id, payload)).collect();
        prop_assert_eq!(back, frames);
    }

    #[test]
    fn damaged_and_truncated_frames_end_the_same_way(
        frames in frames(), cuts in vec(1_usize..700, 1..8), checksum: bool,
        place: prop::sample::Index, bit in 0_u32..8, length: prop::sample::Index,
    ) {
        let mut wire = encode(&frames, checksum);
        if !wire.is_empty() {
            let place = place.index(wire.len());
            wire[place] ^= 1 << bit;
            wire.truncate(length.index(wire.len()) + 1);
        }
        prop_assert_eq!(in_pieces(&wire, &cuts, checksum), reference(&wire, checksum));
    }

    #[test]
    fn garbage_is_never_more_than_an_error(
        garbage in vec(any::<u8>(), 0..3000), cuts in vec(1_usize..700, 1..8), checksum: bool,
    ) {
        prop_assert_eq!(in_pieces(&garbage, &cuts, checksum), reference(&garbage, checksum));
    }
}

#[test]
fn every_single_split_of_a_stream_gives_the_same() {
    let frames = [
        (1, 2, vec![3; 70]),
        (4, 5, Vec::new()),
        (6, 7, vec![8; 300]),
    ];
    let wire = encode(&frames, true);
    let whole = reference(&wire, true);
    assert_eq!(whole.0.len(), 3);
    for split in 1..wire.len() {
        let cuts = [split, wire.len()];
        assert_eq!(in_pieces(&wire, &cuts, true), whole, "split at {split}");
    }
}

#[test]
fn what_a_frame_needs_is_known_from_its_header() {
    let wire = encode(&[(1, 2, vec![3; 70])], false);
    let decoder = Decoder::new(FRAME_BYTES_MAX, false);
    assert_eq!(decoder.needed(&wire[..10]), Ok(HEADER_BYTES));
    assert_eq!(decoder.needed(&wire[..16]), Ok(wire.len()));
    let mut partial = BytesMut::from(&wire[..wire.len() - 1]);
    assert_eq!(decoder.next(&mut partial), Ok(None));
    assert_eq!(partial.len(), wire.len() - 1);
}
