//! Frames out of pieces.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use perf_transport::proto::{Decoder, ReadBuffer};

fuzz_target!(|input: &[u8]| {
    let Some((&[cut, checksum], wire)) = input.split_first_chunk::<2>() else {
        return;
    };
    let decoder = Decoder::new(4096, checksum & 1 == 1);
    let mut at_once = BytesMut::from(wire);
    let mut expected = Vec::new();
    let verdict = loop {
        match decoder.next(&mut at_once) {
            Ok(Some(frame)) => expected.push((frame.header, frame.payload.to_vec())),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let mut buffer = ReadBuffer::new(1024, 4096);
    let mut found = Vec::new();
    let mut ended = None;
    'pieces: for piece in wire.chunks(usize::from(cut).max(1)) {
        let Ok(needed) = decoder.needed(buffer.buffer()) else {
            break;
        };
        buffer.prepare(needed);
        assert!(buffer.buffer().capacity() <= 16 * 4096);
        buffer.buffer().extend_from_slice(piece);
        loop {
            match decoder.next(buffer.buffer()) {
                Ok(Some(frame)) => found.push((frame.header, frame.payload.to_vec())),
                Ok(None) => break,
                Err(error) => {
                    ended = Some(error);
                    break 'pieces;
                }
            }
        }
    }
    assert_eq!(found, expected);
    assert_eq!(ended, verdict);
});
