//! What peers that send much, or read nothing, can make a node hold.

#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::proto::{ConnectionClass, Define, Header, Kind, Local, WriteBuffer};
use perf_transport::{Config, Router};
use prost::Message;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{address, plain, raw, soon, until};
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
    assert_eq!(
        frame.len(),
        WriteBuffer::frame_bytes(frame.len() - 16, false)
    );
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

#[cfg_attr(
    perf_mutants,
    ignore = "measures all of its process: see `shell_mutants.rs`"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_frames_in_parallel_stay_within_the_budget() {
    let _turn = TURN.lock().await;
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

/// The allocator is the process's: one test at a time.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The most that is held while something goes on.
async fn most_held<T>(region: &Region<'_, System>, what: impl Future<Output = T>) -> (T, usize) {
    let mut most = 0;
    let mut what = std::pin::pin!(what);
    loop {
        let pause = tokio::time::sleep(Duration::from_millis(1));
        tokio::select! {
            done = &mut what => return (done, most.max(held(region))),
            () = pause => most = most.max(held(region)),
        }
    }
}

/// A peer that lets node 1 in, and from then on asks whether it lives, says that it is busy, and reads nothing.
async fn asking(busy_timeout: Duration) -> (perf_transport::Transport, TcpStream) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(8 << 10).expect("it is small");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("loopback");
    let listener = socket.listen(1).expect("loopback");
    let peer = listener.local_addr().expect("bound").to_string();
    let mut config = Config::default();
    config.heartbeat_interval = Duration::from_millis(100);
    config.heartbeat_timeout = Duration::from_millis(400);
    config.busy_timeout = busy_timeout;
    config.bulk_send_buffer_bytes = Some(8 << 10);
    let client = plain(1).config(config).peer(2, peer);
    let client = client.start().await.expect("starts");
    let sent = client.send(perf_transport::Envelope::new(2, "vm", "x", b"x"));
    assert!(sent.is_ok());
    let (mut stream, _) = soon(listener.accept()).await.expect("it dials");
    raw::welcome(&mut stream).await;
    (client, stream)
}

fn questions() -> Vec<u8> {
    let (ping, busy) = (
        raw::frame(Kind::Ping, (0, 1), b""),
        raw::frame(Kind::Busy, (0, 1), b""),
    );
    let mut both = ping.repeat(999);
    both.extend(busy);
    both
}

#[cfg_attr(
    perf_mutants,
    ignore = "measures all of its process: see `shell_mutants.rs`"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_asks_and_reads_nothing_costs_a_dialler_little() {
    let _turn = TURN.lock().await;
    let (_client, mut stream) = asking(Duration::from_secs(3600)).await;
    let region = Region::new(ALLOCATOR);
    let questions = questions();
    let flood = async {
        for _ in 0..300 {
            stream.write_all(&questions).await.expect("it reads");
        }
    };
    let ((), most) = most_held(&region, soon(flood)).await;
    // Each would have an answer of 16 bytes.
    assert!(most < 1 << 20, "{most} bytes are held");
}

#[cfg_attr(
    perf_mutants,
    ignore = "measures all of its process: see `shell_mutants.rs`"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_only_says_that_it_is_busy_is_cut_off() {
    let _turn = TURN.lock().await;
    let (client, mut stream) = asking(Duration::from_millis(800)).await;
    let mut events = client.events();
    let questions = questions();
    soon(async { while stream.write_all(&questions).await.is_ok() {} }).await;
    let reason = soon(async {
        loop {
            let event = events.recv().await.expect("events");
            if let perf_transport::PeerEvent::Lost { reason, .. } = event {
                break reason;
            }
        }
    });
    assert_eq!(reason.await, perf_transport::CloseReason::Stalled);
}

/// Chunks of a body that lie between large messages keep no memory but their own.
#[cfg_attr(
    perf_mutants,
    ignore = "measures all of its process: see `shell_mutants.rs`"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_chunks_of_an_unread_body_cost_what_they_are() {
    let _turn = TURN.lock().await;
    for chunk_bytes in [1, 64, 70_000] {
        let (gate, heard) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let (wait, count) = (Arc::clone(&gate), Arc::clone(&heard));
        let router = Router::new()
            .streamed("vm", "body", move |_, mut body| {
                let wait = Arc::clone(&wait);
                async move {
                    let _opened = wait.acquire().await.map(drop);
                    let body = body.collect(1 << 20).await.map_err(|_| {
                        perf_transport::Rejection::new(perf_transport::RejectionCode::Invalid, "")
                    })?;
                    let is_sound = body.iter().all(|&byte| byte == 9);
                    Ok(format!("{} {is_sound}", body.len()).into())
                }
            })
            .one_way("vm", "big", move |_| {
                count.fetch_add(1, Ordering::SeqCst);
            });
        let server = plain(2).router(router).listen("127.0.0.1:0");
        let server = server.start().await.expect("starts");
        let mut peer = raw::connect(7, &address(&server)).await;
        let mut begin = raw::define(0, "vm", "body");
        begin.extend(raw::define(1, "vm", "big"));
        begin.extend(raw::frame(Kind::StreamOpen, (0, 1), b""));
        peer.write_all(&begin).await.expect("it reads");
        let big = raw::frame(Kind::OneWay, (1, 1), &vec![1; FRAME_BYTES]);
        let chunk = raw::frame(Kind::StreamChunk, (0, 1), &vec![9; chunk_bytes]);
        let many = chunk.repeat((8000 / chunk_bytes).max(1));
        // As many as the window allows, at most.
        let rounds = (FRAME_BYTES / 70_000).min(14);
        until(|| server.stats().handlers == 1).await;
        let region = Region::new(ALLOCATOR);
        let mut sent = 0;
        for _ in 0..rounds {
            peer.write_all(&big).await.expect("it reads");
            peer.write_all(&many).await.expect("it reads");
            sent += many.len() / chunk.len() * chunk_bytes;
        }
        until(|| heard.load(Ordering::SeqCst) == rounds).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        // The window four times at most, what the peer of the test holds, and the read buffers with a frame.
        let held = held(&region);
        assert!(
            held < 6 << 20,
            "{chunk_bytes}: {held} bytes are held for {sent}"
        );
        gate.add_permits(1);
        peer.write_all(&raw::frame(Kind::StreamEnd, (0, 1), b""))
            .await
            .expect("it reads");
        let reply = soon(async {
            loop {
                let (kind, _, payload) = raw::read(&mut peer).await.expect("a reply");
                if kind == Kind::Reply as u8 {
                    break payload;
                }
            }
        });
        assert_eq!(reply.await, format!("{sent} true").into_bytes());
    }
}

#[cfg_attr(
    perf_mutants,
    ignore = "measures all of its process: see `shell_mutants.rs`"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_with_large_inline_replies_stay_within_the_backlog() {
    let _turn = TURN.lock().await;
    const REPLY_BYTES: usize = 256 << 10;
    const CALLS: u64 = 4000;
    let router = Router::new().inline("vm", "big", |_, reply| {
        reply.buffer().resize(REPLY_BYTES, 7);
        Ok(())
    });
    let server = plain(2).router(router).listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let mut peer = raw::connect(7, &address(&server)).await;
    let region = Region::new(ALLOCATOR);
    let mut calls = raw::define(0, "vm", "big");
    for id in 0..CALLS {
        calls.extend(raw::frame(Kind::Request, (0, id), b""));
    }
    let work = async {
        peer.write_all(&calls).await.expect("it reads");
        // It reads nothing for a while, then everything.
        tokio::time::sleep(Duration::from_millis(300)).await;
        for id in 0..CALLS {
            let (kind, reply_to, payload) = loop {
                let frame = raw::read(&mut peer).await.expect("a reply");
                if frame.0 != Kind::Busy as u8 && frame.0 != Kind::Ping as u8 {
                    break frame;
                }
            };
            assert_eq!(
                (kind, reply_to, payload.len()),
                (Kind::Reply as u8, id, REPLY_BYTES)
            );
        }
    };
    let ((), most) = most_held(&region, soon(work)).await;
    // The backlog of 4 MiB and an outbox, a buffer of replies, and what the test itself holds.
    assert!(most < 9 << 20, "{most} bytes were held");
}

/// A buffer of frames has more memory than a frame: many batches of one message each must not have one each.
#[cfg_attr(
    perf_mutants,
    ignore = "measures all of its process: see `shell_mutants.rs`"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_small_batches_costs_about_what_its_messages_are() {
    let _turn = TURN.lock().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback");
    let peer = listener.local_addr().expect("bound").to_string();
    let mut config = Config::default();
    config.handshake_timeout = Duration::from_secs(20);
    let client = plain(1).config(config).peer(2, peer);
    let client = client.start().await.expect("starts");
    // The peer never answers, so everything waits.
    let method = client.method(2, "vm", "x").expect("known");
    let region = Region::new(ALLOCATOR);
    for _ in 0..8000 {
        let mut batch = method.batch();
        batch.push(b"x").expect("room");
        soon(batch.flush()).await.expect("room");
    }
    let held = held(&region);
    assert!(held < 4 << 20, "{held} bytes are held");
    client.shutdown();
}

/// A complete body that its handler has not read yet has no window any more: its bytes count as those of requests do,
/// and end the reading.
#[cfg_attr(
    perf_mutants,
    ignore = "measures all of its process: see `shell_mutants.rs`"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complete_bodies_that_nobody_reads_stay_within_the_budget() {
    let _turn = TURN.lock().await;
    const WINDOW_BYTES: usize = 256 << 10;
    const BODIES: u64 = 100;
    let gate = Arc::new(Semaphore::new(0));
    let wait = Arc::clone(&gate);
    let router = Router::new().streamed("vm", "body", move |_, mut body| {
        let wait = Arc::clone(&wait);
        async move {
            let opened = wait.acquire().await.map(drop);
            assert!(opened.is_ok());
            let read = body.collect(WINDOW_BYTES).await;
            Ok(read.map_or(0, |read| read.len()).to_string().into())
        }
    });
    let mut config = Config::default();
    config.stream_window_bytes = WINDOW_BYTES as u32;
    config.handler_bytes_max = HANDLER_BYTES_MAX;
    let server = plain(2).router(router).config(config).listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let mut peer = raw::connect(7, &address(&server)).await;
    let define = raw::define(0, "vm", "body");
    peer.write_all(&define).await.expect("it reads");
    let region = Region::new(ALLOCATOR);
    let (mut read, mut write) = peer.split();
    let chunk = vec![9; WINDOW_BYTES];
    let send = async {
        for id in 0..BODIES {
            for (kind, payload) in [
                (Kind::StreamOpen, &b""[..]),
                (Kind::StreamChunk, &chunk),
                (Kind::StreamEnd, b""),
            ] {
                let frame = raw::frame(kind, (0, id), payload);
                write.write_all(&frame).await.expect("it reads");
            }
        }
    };
    let watch = async {
        let stopped = HANDLER_BYTES_MAX / WINDOW_BYTES;
        until(|| server.stats().handlers >= stopped).await;
        // If it were to read on, the others would have come by then.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let held = held(&region);
        gate.add_permits(Semaphore::MAX_PERMITS / 2);
        held
    };
    let answers = async {
        let mut answered = 0;
        while answered < BODIES {
            let mut header = [0; 16];
            read.read_exact(&mut header).await.expect("a reply");
            let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
            let mut payload = vec![0; length as usize];
            read.read_exact(&mut payload).await.expect("a reply");
            if header[4] == Kind::Reply as u8 {
                assert_eq!(payload, WINDOW_BYTES.to_string().into_bytes());
                answered += 1;
            }
            assert_ne!(header[4], Kind::Failure as u8);
        }
    };
    let ((), held, ()) = soon(async { tokio::join!(send, watch, answers) }).await;
    // What is unread, the body that is arriving, the read buffers, and what the test itself sends.
    let most = HANDLER_BYTES_MAX + 2 * WINDOW_BYTES + (2 << 20);
    assert!(
        held <= most,
        "{held} bytes were held, at most {most} may be"
    );
    until(|| server.stats().handlers == 0).await;
}

/// A caller whose patience ends again and again, of a reader that reads nothing: its parts wait in the sender up to the
/// bound, and beyond that the body is broken off. A body with a hole would look complete.
#[cfg_attr(
    perf_mutants,
    ignore = "measures all of its process: see `shell_mutants.rs`"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_whose_futures_are_dropped_wait_within_a_bound() {
    let _turn = TURN.lock().await;
    const PART_BYTES: usize = 100_000;
    let gate = Arc::new(Semaphore::new(0));
    let wait = Arc::clone(&gate);
    let (ended, outcome) = tokio::sync::mpsc::unbounded_channel();
    let mut outcome: tokio::sync::mpsc::UnboundedReceiver<Option<usize>> = outcome;
    let router = Router::new().streamed("vm", "body", move |_, mut body| {
        let (wait, ended) = (Arc::clone(&wait), ended.clone());
        async move {
            wait.acquire().await.expect("it is never closed").forget();
            let read = body.collect(1 << 30).await;
            assert!(ended.send(read.ok().map(|read| read.len())).is_ok());
            Ok(Bytes::new())
        }
    });
    let mut config = Config::default();
    config.stream_window_bytes = 10_000;
    let (client, _server) = support::pair(router, config).await;
    let region = Region::new(ALLOCATOR);
    for parts in [5, 100] {
        let envelope = perf_transport::Envelope::new(2, "vm", "body", b"");
        let mut sender = client.stream(envelope).expect("room");
        for _ in 0..parts {
            let part = Bytes::from(vec![7; PART_BYTES]);
            let patience = Duration::from_millis(2);
            let sent = tokio::time::timeout(patience, sender.send(part)).await;
            assert!(!matches!(sent, Ok(Ok(()))), "nobody reads");
        }
        let held = held(&region);
        assert!(held < 3 << 20, "{held} bytes are held of {parts} parts");
        gate.add_permits(1);
        let finished = soon(sender.finish()).await;
        let read = soon(outcome.recv()).await.expect("it has read");
        if parts == 5 {
            assert!(finished.is_ok() && read == Some(5 * PART_BYTES));
        } else {
            assert!(finished.is_err() && read.is_none(), "{read:?}");
        }
    }
}

/// What a connection needed for bulk, long replies and many calls at once is given back when it has nothing but pings
/// to read.
#[cfg_attr(
    perf_mutants,
    ignore = "measures all of its process: see `shell_mutants.rs`"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_were_busy_and_are_idle_hold_little() {
    let _turn = TURN.lock().await;
    const CLIENTS: u64 = 16;
    const EACH_BYTES: usize = 256 << 10;
    let router = Router::new()
        .inline("vm", "long", |_, reply| {
            reply.put_slice(&vec![7; 1 << 20]);
            Ok(())
        })
        .inline("vm", "short", |_, _| Ok(()))
        .streamed("vm", "store", |_, mut body| async move {
            let mut chunks = Vec::new();
            // Several buffers are lent at once.
            while let Some(Ok(chunk)) = body.next().await {
                chunks.push(chunk);
                if chunks.len() > 8 {
                    chunks.clear();
                }
            }
            Ok(Bytes::new())
        });
    let mut config = Config::default();
    config.heartbeat_interval = Duration::from_millis(10);
    let server = plain(2).router(router).config(config.clone());
    let server = server.listen("127.0.0.1:0").start().await;
    let server = server.expect("starts");
    let envelope = |method| perf_transport::Envelope::new(2, "vm", method, b"");
    let mut clients = Vec::new();
    for node in 10..10 + CLIENTS {
        let client = plain(node).config(config.clone()).peer(2, address(&server));
        let client = client.start().await.expect("starts");
        soon(client.call(envelope("short"))).await.expect("a reply");
        clients.push(client);
    }
    let region = Region::new(ALLOCATOR);
    for client in &clients {
        let reply = soon(client.call(envelope("long"))).await.expect("a reply");
        assert_eq!(reply.len(), 1 << 20);
        let mut body = client.stream(envelope("store")).expect("room");
        for _ in 0..8 {
            let part = Bytes::from(vec![7; 1 << 20]);
            soon(body.send(part)).await.expect("it is read");
        }
        soon(body.finish()).await.expect("a reply");
        let calls: Vec<_> = (0..500).map(|_| client.call(envelope("short"))).collect();
        for call in calls {
            soon(call).await.expect("a reply");
        }
    }
    // Both ends of each connection are here.
    let most = 2 * CLIENTS as usize * EACH_BYTES;
    println!("busy: {} bytes more", held(&region));
    until(|| held(&region) < most).await;
    println!("idle: {} bytes more", held(&region));
}
