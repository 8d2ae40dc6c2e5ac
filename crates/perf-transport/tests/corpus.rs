//! The seeds of the fuzz targets: made here, and run through what the targets do.
//!
//! `PERF_WRITE_CORPUS=1 cargo test -p perf-transport --test corpus` writes them anew.

#![cfg(not(perf_loom))]

use bytes::BytesMut;
use perf_transport::Payload;
use perf_transport::proto::{
    ConnectionClass, Decoder, Define, Header, Kind, Local, Outbox, Refuse, SLICES_MAX, Server,
    ServerLimits, WriteBuffer, accept,
};
use prost::Message;
use std::collections::BTreeMap;
use std::fs;
use std::io::IoSlice;
use std::path::Path;

type Seeds = BTreeMap<(&'static str, String), Vec<u8>>;

/// Kind, method, id and payload.
type Part<'a> = (Kind, u16, u64, &'a [u8]);

fn wire(frames: &[Part<'_>], checksum: bool) -> Vec<u8> {
    let mut outbox = Outbox::default();
    for (kind, method, id, payload) in frames {
        let mut buffer = WriteBuffer::new();
        let header = Header::new(*kind, *method, *id);
        buffer.push(header, &Payload::Borrowed(payload), checksum);
        outbox.push(buffer);
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
    shell_seeds(&mut seeds);
    seeds
}

/// What node 10 sends to node 2 in whole connections: see `tests/shell_fuzz.rs`.
fn shell_seeds(seeds: &mut Seeds) {
    let mut node = local(10);
    node.cluster = "test".to_owned();
    let methods = [
        "inline", "one_way", "shown", "spawned", "stopped", "streamed", "watch", "exchange",
    ];
    let defines = methods.map(|method| {
        let service = "fuzz".to_owned();
        let method = method.to_owned();
        Define { service, method }.encode_to_vec()
    });
    let item = [&5_u32.to_le_bytes()[..], b"items"].concat();
    let credit = 4096_u32.to_le_bytes();
    let traced = [&[0; 25][..], b"payload"].concat();
    let batch = [3, 0, b'a', b'b', b'c', 0, 0, 1, 0, b'd'];
    let conversations: [(&str, Vec<Part<'_>>); 5] = [
        ("hello", Vec::new()),
        (
            "requests",
            vec![
                (Kind::Request, 0, 1, b"inline"),
                (Kind::OneWay, 1, 0, b"one way"),
                (Kind::OneWay, 2, 0, b"shown"),
                (Kind::Batch, 2, 0, &batch),
                (Kind::Batch, 3, 0, &batch),
                (Kind::Request, 3, 2, b"spawned"),
                (Kind::Request, 3, 3, b"spawned"),
                (Kind::Request, 4, 4, b"stopped"),
                (Kind::Cancel, 0, 4, b""),
                (Kind::Cancel, 0, 3, b""),
                (Kind::TracedRequest, 0, 5, &traced),
                (Kind::TracedOneWay, 1, 0, &traced),
                (Kind::Ping, 0, 7, b""),
                (Kind::Goodbye, 0, 0, b""),
            ],
        ),
        (
            "bodies",
            vec![
                (Kind::StreamOpen, 5, 1, b"head"),
                (Kind::StreamChunk, 0, 1, &[3; 2000]),
                (Kind::TracedStreamOpen, 5, 2, &traced),
                (Kind::StreamChunk, 0, 1, &[3; 2000]),
                (Kind::StreamEnd, 0, 1, b""),
                (Kind::StreamChunk, 0, 2, &[4; 4000]),
                (Kind::StreamReset, 0, 2, b""),
                (Kind::StreamOpen, 5, 3, b""),
                (Kind::StreamEnd, 0, 3, b""),
            ],
        ),
        (
            "watches",
            vec![
                (Kind::Watch, 6, 1, &[5; 1000]),
                (Kind::StreamCredit, 0, 1, &credit),
                (Kind::TracedWatch, 6, 2, &traced),
                (Kind::StreamReset, 0, 1, b""),
                (Kind::Cancel, 0, 2, b""),
                (Kind::Watch, 6, 3, b""),
            ],
        ),
        (
            "exchanges",
            vec![
                (Kind::Exchange, 7, 1, b""),
                (Kind::StreamChunk, 0, 1, &item),
                (Kind::TracedExchange, 7, 2, &traced),
                (Kind::StreamChunk, 0, 2, &item[..6]),
                (Kind::StreamChunk, 0, 2, &item[6..]),
                (Kind::StreamCredit, 0, 2, &credit),
                (Kind::StreamEnd, 0, 1, b""),
                (Kind::Cancel, 0, 2, b""),
            ],
        ),
    ];
    for (name, frames) in conversations {
        let hello = node.hello(2, 10, ConnectionClass::Bulk).encode_to_vec();
        let mut all: Vec<Part<'_>> = vec![(Kind::Hello, 0, 0, &hello)];
        all.extend(
            (0..)
                .zip(&defines)
                .map(|(number, define)| (Kind::Define, number, 0, &define[..])),
        );
        all.extend(frames);
        let mut bytes = Vec::new();
        for frame in &all {
            bytes.extend(wire(std::slice::from_ref(frame), false));
        }
        seeds.insert(("shell", name.to_owned()), bytes);
    }
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
