//! What a peer that sends the largest legal frames can make a node hold.

#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::proto::{Block, ConnectionClass, Define, Header, Kind, Local};
use perf_transport::{Config, Router};
use prost::Message;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{address, plain, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const FRAME_BYTES: usize = 1 << 20;
const HANDLER_BYTES_MAX: usize = 4 << 20;
const CONNECTIONS: usize = 3;
/// Eight times what the handlers of a connection may hold.
const FRAMES: usize = 8 * HANDLER_BYTES_MAX / FRAME_BYTES;

fn header(kind: Kind, length: usize) -> [u8; 16] {
    let mut header = Header::new(kind, 0, 1);
    header.length = u32::try_from(length).expect("short");
    header.encode()
}

fn small(kind: Kind, message: &impl Message) -> Vec<u8> {
    let payload = message.encode_to_vec();
    let mut frame = header(kind, payload.len()).to_vec();
    frame.extend(payload);
    assert_eq!(frame.len(), Block::frame_bytes(frame.len() - 16, false));
    frame
}

/// Shakes hands as node `node`, and sends as fast as it can.
async fn flood(node: u64, address: String) {
    let local = Local {
        cluster: "test".to_owned(),
        node,
        incarnation: 1,
        frame_bytes_max: 1 << 20,
        stream_window_bytes: 1 << 20,
        streams_max: 8,
        checksum: false,
    };
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let hello = local.hello(2, node, ConnectionClass::Bulk);
    let define = Define {
        service: "vm".to_owned(),
        method: "slow".to_owned(),
    };
    let mut first = small(Kind::Hello, &hello);
    first.extend(small(Kind::Define, &define));
    stream.write_all(&first).await.expect("it reads");
    let mut welcome = [0; 16];
    soon(stream.read_exact(&mut welcome)).await.expect("let in");
    let payload = vec![7; FRAME_BYTES];
    for _ in 0..FRAMES {
        let head = header(Kind::OneWay, FRAME_BYTES);
        stream.write_all(&head).await.expect("it reads");
        stream.write_all(&payload).await.expect("it reads");
    }
    // Until the server has read all of it.
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}

fn held(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change
        .bytes_allocated
        .saturating_sub(change.bytes_deallocated)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_frames_in_parallel_stay_within_the_budget() {
    let (gate, handled) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (wait, count) = (Arc::clone(&gate), Arc::clone(&handled));
    let router = Router::new().spawned("vm", "slow", move |message| {
        let (wait, count) = (Arc::clone(&wait), Arc::clone(&count));
        async move {
            let opened = wait.acquire().await.map(drop);
            assert!(opened.is_ok() && message.payload().len() == FRAME_BYTES);
            count.fetch_add(1, Ordering::SeqCst);
            Ok(Bytes::new())
        }
    });
    let mut config = Config::default();
    config.handler_bytes_max = HANDLER_BYTES_MAX;
    let server = plain(2).router(router).config(config).listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let region = Region::new(ALLOCATOR);
    let peers: Vec<_> = (0..CONNECTIONS as u64)
        .map(|peer| tokio::spawn(flood(10 + peer, address(&server))))
        .collect();
    let running = CONNECTIONS * HANDLER_BYTES_MAX / FRAME_BYTES;
    until(|| server.stats().handlers >= running).await;
    // Each connection has stopped to read; whatever else it were to read would have come by then.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.stats().handlers, running);
    // What handlers hold, the frame that has begun to arrive, the read buffers; and the sender's own copy of a frame.
    let each = HANDLER_BYTES_MAX + FRAME_BYTES + (1 << 20) + FRAME_BYTES;
    let held = held(&region);
    assert!(
        held <= CONNECTIONS * each,
        "{held} bytes are held, at most {} may be",
        CONNECTIONS * each
    );
    gate.add_permits(Semaphore::MAX_PERMITS / 2);
    until(|| handled.load(Ordering::SeqCst) == CONNECTIONS * FRAMES).await;
    until(|| server.stats().handlers == 0).await;
    server.shutdown();
    for peer in peers {
        soon(peer).await.expect("no panics");
    }
}
