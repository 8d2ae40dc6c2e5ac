//! What an accepted peer can send.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use perf_transport::proto::{Decoder, Server, ServerLimits};

fuzz_target!(|input: &[u8]| {
    let limits = ServerLimits {
        streams_max: 2,
        stream_window_bytes: 4096,
    };
    let mut server = Server::new(limits);
    let decoder = Decoder::new(4096, false);
    let mut wire = BytesMut::from(input);
    let mut kept = Vec::new();
    while let Ok(Some(frame)) = decoder.next(&mut wire) {
        match server.receive(frame) {
            Ok(incoming) => kept.push(incoming),
            Err(_) => break,
        }
        assert!(server.buffered() <= 2 * 4096);
    }
    server.lost();
});
