//! Who is let in.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use perf_transport::proto::{Header, Kind, Local, accept, check_welcome, refusal};

fuzz_target!(|input: &[u8]| {
    let Some((&kind, payload)) = input.split_first() else {
        return;
    };
    let local = Local {
        cluster: "fuzz".to_owned(),
        node: 2,
        incarnation: 1,
        frame_bytes_max: 1 << 20,
        stream_window_bytes: 1 << 20,
        streams_max: 8,
        checksum: false,
    };
    let header = Header::new(Kind::from_u8(kind).unwrap_or(Kind::Hello), 0, 0);
    let payload = Bytes::copy_from_slice(payload);
    match accept(&local, &header, &payload) {
        // Nobody of another cluster, nobody who wants another node.
        Ok(accepted) => assert_eq!(accepted.welcome.node, 2),
        Err(error) => assert!(refusal(&error).reason.chars().count() <= 256),
    }
    if let Ok(welcome) = check_welcome(&local, 7, &header, &payload) {
        assert_eq!(welcome.node, 7);
    }
});
