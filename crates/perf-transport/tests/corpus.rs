//! The seeds of the fuzz targets: made here, and run through what the targets do.
//!
//! `PERF_WRITE_CORPUS=1 cargo test -p perf-transport --test corpus` writes them anew.

#![cfg(not(perf_loom))]

use bytes::BytesMut;
use perf_transport::Payload;
use perf_transport::proto::{
    Block, ConnectionClass, Decoder, Define, Header, Kind, Local, Outbox, Refuse, SLICES_MAX,
    Server, ServerLimits, accept,
};
use prost::Message;
use std::collections::BTreeMap;
use std::fs;
use std::io::IoSlice;
use std::path::Path;

type Seeds = BTreeMap<(&'static str, String), Vec<u8>>;

fn wire(frames: &[(Kind, u16, u64, &[u8])], checksum: bool) -> Vec<u8> {
    let mut outbox = Outbox::default();
    for (kind, method, id, payload) in frames {
        let mut block = Block::new();
        let header = Header::new(*kind, *method, *id);
        block.push(header, &Payload::Borrowed(payload), checksum);
        outbox.push(block);
    }
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let count = outbox.slices(&mut slices);
    slices[..count]
        .iter()
        .flat_map(|slice| slice.to_vec())
        .collect()
}

fn local(node: u64) -> Local {
    Local {
        cluster: "fuzz".to_owned(),
        node,
        incarnation: 1,
        frame_bytes_max: 1 << 20,
        stream_window_bytes: 1 << 20,
        streams_max: 8,
        checksum: false,
    }
}

fn seeds() -> Seeds {
    let mut seeds = Seeds::new();
    let hello = local(1).hello(2, 1, ConnectionClass::Bulk).encode_to_vec();
    let header = Header::new(Kind::Hello, 0, 0);
    let accepted = accept(&local(2), &header, &hello.clone().into()).expect("they fit");
    let welcome = accepted.welcome.encode_to_vec();
    let refuse = Refuse {
        reason: "no".to_owned(),
    }
    .encode_to_vec();
    for (kind, payload) in [
        (Kind::Hello, &hello),
        (Kind::Welcome, &welcome),
        (Kind::Refuse, &refuse),
    ] {
        let seed = [&[kind as u8], &payload[..]].concat();
        seeds.insert(("handshake", format!("{kind:?}").to_lowercase()), seed);
    }
    let define = Define {
        service: "raft".to_owned(),
        method: "append".to_owned(),
    }
    .encode_to_vec();
    for number in 1..=19 {
        let kind = Kind::from_u8(number).expect("a kind");
        let payload: &[u8] = match kind {
            Kind::Hello => &hello,
            Kind::Welcome => &welcome,
            Kind::Refuse => &refuse,
            Kind::Define => &define,
            Kind::StreamCredit => &[0, 1, 0, 0],
            Kind::Batch => &[2, 0, 1, 2, 0, 0],
            kind if kind.payload_bytes_max() == 0 => b"",
            _ => b"payload",
        };
        for checksum in [false, true] {
            let bytes = wire(&[(kind, 1, 5, payload)], checksum);
            let seed = [&[7, u8::from(checksum)], &bytes[..]].concat();
            let name = format!("{kind:?}_{checksum}").to_lowercase();
            seeds.insert(("decoder", name), seed);
        }
    }
    let conversation: [(Kind, u16, u64, &[u8]); 12] = [
        (Kind::Define, 1, 0, &define),
        (Kind::OneWay, 1, 9, b"heartbeat"),
        (
            Kind::Batch,
            1,
            0,
            &[5, 0, b'f', b'i', b'r', b's', b't', 0, 0],
        ),
        (Kind::Request, 1, 65_536, b"vote"),
        (Kind::Cancel, 0, 65_536, b""),
        (Kind::StreamOpen, 1, 65_537, b"snapshot"),
        (Kind::StreamChunk, 0, 65_537, &[3; 2000]),
        (Kind::Ping, 0, 1, b""),
        (Kind::StreamChunk, 0, 65_537, &[3; 2000]),
        (Kind::StreamEnd, 0, 65_537, b""),
        (Kind::StreamOpen, 1, 65_538, b"another"),
        (Kind::StreamReset, 0, 65_538, b""),
    ];
    seeds.insert(
        ("server", "conversation".to_owned()),
        wire(&conversation, false),
    );
    seeds
}

#[test]
fn every_seed_is_what_it_should_be() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    // The fuzz folder is no part of the published package.
    if !folder.is_dir() {
        return;
    }
    for ((target, name), seed) in seeds() {
        let path = folder.join(target).join(&name);
        if std::env::var_os("PERF_WRITE_CORPUS").is_some() {
            fs::write(&path, &seed).expect("the corpus can be written");
        }
        let found = fs::read(&path).expect("the corpus is complete");
        assert_eq!(found, seed, "{target}/{name}: run with PERF_WRITE_CORPUS=1");
        if target == "decoder" {
            let decoder = Decoder::new(4096, seed[1] == 1);
            let mut wire = BytesMut::from(&seed[2..]);
            assert!(matches!(decoder.next(&mut wire), Ok(Some(_))), "{name}");
        }
    }
    let conversation = &seeds()[&("server", "conversation".to_owned())];
    let mut wire = BytesMut::from(&conversation[..]);
    let mut server = Server::new(ServerLimits {
        streams_max: 2,
        stream_window_bytes: 4096,
    });
    let mut frames = 0;
    while let Some(frame) = Decoder::new(4096, false).next(&mut wire).expect("sound") {
        server.receive(frame).expect("allowed");
        frames += 1;
    }
    assert_eq!(frames, 12);
}
