//! Peers that open, cancel and reopen as the protocol lets them, to make a node run or hold more than it should.

#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::proto::Kind;
use perf_transport::{CloseReason, Config, Envelope, PeerEvent, Router, Transport};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{address, plain, raw, soon, until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

async fn server(router: Router, config: Config) -> Transport {
    let server = plain(2).router(router).config(config).listen("127.0.0.1:0");
    server.start().await.expect("starts")
}

/// The next frame that is no sign of life.
async fn answer(peer: &mut TcpStream) -> (u8, u64, Vec<u8>) {
    soon(async {
        loop {
            let frame = raw::read(peer).await.expect("a frame");
            if frame.0 != Kind::Busy as u8 && frame.0 != Kind::Ping as u8 {
                return frame;
            }
        }
    })
    .await
}

/// A handler that never answers.
fn endless(router: Router, method: &str) -> Router {
    router.watch("vm", method, |_, _answer| async move {
        std::future::pending::<()>().await;
        Ok(())
    })
}

/// Watches never end by themselves. As many as may be handled must not end the reading: their cancellation and their
/// credit come that way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_the_bound_are_refused_and_the_connection_goes_on() {
    let mut config = Config::default();
    config.handlers_max = 4;
    let router = endless(endless(Router::new(), "one"), "two");
    let router = router
        .inline("vm", "echo", |_, _| Ok(()))
        .spawned("vm", "work", |_| async { Ok(Bytes::new()) });
    let server = server(router, config).await;
    let mut peer = raw::connect(7, &address(&server)).await;
    let mut frames = raw::define(0, "vm", "one");
    frames.extend(raw::define(1, "vm", "two"));
    frames.extend(raw::define(2, "vm", "echo"));
    frames.extend(raw::define(3, "vm", "work"));
    for id in 0..20 {
        frames.extend(raw::frame(Kind::Watch, ((id % 2) as u16, id), b""));
    }
    peer.write_all(&frames).await.expect("it reads");
    for id in 4..20 {
        let (kind, to, _) = answer(&mut peer).await;
        assert_eq!((kind, to), (Kind::Failure as u8, id));
    }
    assert_eq!(server.stats().handlers, 4);
    // Other requests are answered, the small and the large ones.
    for (method, id) in [(2, 100), (3, 101)] {
        let request = raw::frame(Kind::Request, (method, id), b"");
        peer.write_all(&request).await.expect("it reads");
        let (kind, to, _) = answer(&mut peer).await;
        assert_eq!((kind, to), (Kind::Reply as u8, id));
    }
    // One that is given up makes room for one.
    let cancel = raw::frame(Kind::Cancel, (0, 2), b"");
    peer.write_all(&cancel).await.expect("it reads");
    until(|| server.stats().handlers == 3).await;
    let mut again = raw::frame(Kind::Watch, (1, 50), b"");
    again.extend(raw::frame(Kind::Watch, (1, 51), b""));
    peer.write_all(&again).await.expect("it reads");
    let (kind, to, _) = answer(&mut peer).await;
    assert_eq!((kind, to), (Kind::Failure as u8, 51));
    assert_eq!(server.stats().handlers, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_has_its_limit_once_whatever_numbers_a_peer_gives_it() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let peak = Arc::clone(&most);
    let router = Router::new()
        .spawned("vm", "heavy", move |_| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(Bytes::new())
            }
        })
        .with_limit("vm", "heavy", 2);
    let server = server(router, Config::default()).await;
    let mut peer = raw::connect(7, &address(&server)).await;
    let mut frames = Vec::new();
    for number in 0..10 {
        frames.extend(raw::define(number, "vm", "heavy"));
        frames.extend(raw::frame(Kind::Request, (number, number.into()), b""));
    }
    // A number whose name is given anew keeps what waits for it.
    frames.extend(raw::define(9, "vm", "heavy"));
    peer.write_all(&frames).await.expect("it reads");
    for _ in 0..10 {
        assert_eq!(answer(&mut peer).await.0, Kind::Reply as u8);
    }
    assert_eq!(peak.load(Ordering::SeqCst), 2);
}

/// An id that is used again must not hide the handler that runs for it: it would never be stopped, and keep the
/// connection's place for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_is_used_twice_leaves_no_handler_behind() {
    let router = endless(Router::new(), "watch")
        .spawned("vm", "short", |_| async { Ok(Bytes::new()) })
        .with_cancellation("vm", "short");
    let server = server(router, Config::default()).await;
    let mut peer = raw::connect(7, &address(&server)).await;
    let mut frames = raw::define(0, "vm", "watch");
    frames.extend(raw::define(1, "vm", "short"));
    frames.extend(raw::frame(Kind::Watch, (0, 1), b""));
    frames.extend(raw::frame(Kind::Request, (1, 1), b""));
    peer.write_all(&frames).await.expect("it reads");
    assert_eq!(answer(&mut peer).await.0, Kind::Reply as u8);
    drop(peer);
    until(|| server.stats().inbound == 0).await;
    assert_eq!(server.stats().handlers, 0);
}

/// Requests that are held and cancelled in every order, by a peer that uses ids twice and cancels what there is not:
/// those that are left are answered, in order, and nothing stays behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_requests_are_cancelled_in_any_order() {
    let (gate, seen) = (Arc::new(Semaphore::new(0)), Arc::default());
    let (wait, note) = (
        Arc::clone(&gate),
        Arc::<parking_lot::Mutex<Vec<u8>>>::clone(&seen),
    );
    let router = Router::new()
        .spawned("vm", "slow", move |message| {
            let (wait, note) = (Arc::clone(&wait), Arc::clone(&note));
            async move {
                note.lock().push(message.payload()[0]);
                let opened = wait.acquire().await;
                opened.expect("it is never closed").forget();
                Ok(message.into_payload())
            }
        })
        .inline("vm", "echo", |_, _| Ok(()))
        .with_limit("vm", "slow", 1);
    let server = server(router, Config::default()).await;
    let mut peer = raw::connect(7, &address(&server)).await;
    let mut frames = raw::define(0, "vm", "slow");
    frames.extend(raw::define(1, "vm", "echo"));
    for id in 0..100_u64 {
        frames.extend(raw::frame(Kind::Request, (0, id), &[id as u8]));
    }
    let kept = |id: u64| id == 0 || id % 9 == 4;
    for id in (0..100).map(|count| (count * 37 + 11) % 100) {
        if !kept(id) {
            frames.extend(raw::frame(Kind::Cancel, (0, id), b"").repeat(2));
        }
    }
    frames.extend(raw::frame(Kind::Cancel, (0, 5000), b""));
    frames.extend(raw::frame(Kind::Request, (1, 200), b""));
    peer.write_all(&frames).await.expect("it reads");
    assert_eq!(answer(&mut peer).await.1, 200);
    gate.add_permits(Semaphore::MAX_PERMITS / 2);
    let wanted: Vec<u64> = (0..100).filter(|&id| kept(id)).collect();
    for &id in &wanted {
        let found = answer(&mut peer).await;
        assert_eq!(found, (Kind::Reply as u8, id, vec![id as u8]));
    }
    let wanted: Vec<u8> = wanted.iter().map(|&id| id as u8).collect();
    assert_eq!(*seen.lock(), wanted);
    until(|| server.stats().handlers == 0).await;
}

/// A peer that sends an answer without end and never reads the credit for it is cut off: its credit would pile up here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_sends_answers_and_reads_no_credit_is_cut_off() {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4 << 10).expect("it is small");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("loopback");
    let listener = socket.listen(1).expect("loopback");
    let at = listener.local_addr().expect("bound").to_string();
    let mut config = Config::default();
    config.stream_window_bytes = 64;
    config.outbox_bytes = 4096;
    config.bulk_send_buffer_bytes = Some(4 << 10);
    // Silence is not what it is cut off for.
    config.heartbeat_timeout = Duration::from_secs(600);
    config.busy_timeout = Duration::from_secs(600);
    let client = plain(1).config(config).peer(2, at);
    let client = client.start().await.expect("starts");
    let mut events = client.events();
    let mut watch = client
        .watch(Envelope::new(2, "vm", "events", b""))
        .expect("room");
    let (mut stream, _) = soon(listener.accept()).await.expect("it dials");
    raw::welcome_with(&mut stream, perf_transport::proto::FEATURE_WATCH).await;
    let id = soon(async {
        loop {
            let (kind, id, _) = raw::read(&mut stream).await.expect("a frame");
            if kind == Kind::Watch as u8 {
                return id;
            }
        }
    })
    .await;
    // Each chunk is one item of 28 bytes, half a window with its length: it is answered by a grant at once.
    let item = [&28_u32.to_le_bytes()[..], &[7; 28]].concat();
    let chunk = raw::frame(Kind::StreamChunk, (0, id), &item);
    let mut items = 0;
    // One at a time: the window holds two.
    while items < 20_000 && soon(stream.write_all(&chunk)).await.is_ok() {
        let Some(Ok(item)) = soon(watch.next()).await else {
            break;
        };
        assert_eq!(item.len(), 28);
        items += 1;
    }
    // As many grants as an honest peer may be owed, at least.
    assert!(items > 1024, "{items}");
    let reason = soon(async {
        loop {
            let event = events.recv().await.expect("events");
            if let PeerEvent::Lost { reason, .. } = event {
                break reason;
            }
        }
    });
    let reason = reason.await;
    assert_eq!(reason, CloseReason::Stalled);
}

/// Bodies and watches that are begun and given up at once, by the ten thousand, credit of nothing and of more than
/// there is, chunks and ends of what is over or never was: each costs this peer a place at most, and nobody else
/// anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_ends_and_credit_leave_nothing_behind() {
    let stopped = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&stopped);
    let router = Router::new()
        .streamed("vm", "store", move |_, mut body| {
            let counts = Arc::clone(&counts);
            async move {
                while let Some(chunk) = body.next().await {
                    // An error is told once: who goes on behind it comes to the end.
                    if chunk.is_err() {
                        counts.fetch_add(1, Ordering::SeqCst);
                    }
                }
                Ok(Bytes::new())
            }
        })
        .watch("vm", "events", |_, mut answer| async move {
            while answer.send(vec![7; 100]).await.is_ok() {}
            Ok(())
        })
        .inline("vm", "echo", |_, _| Ok(()));
    let server = server(router, Config::default()).await;
    let (mut reader, mut writer) = raw::connect(7, &address(&server)).await.into_split();
    // It takes what it gets, so that it is not stopped for not reading.
    let reading = tokio::spawn(async move {
        let mut bytes = vec![0; 1 << 16];
        while tokio::io::AsyncReadExt::read(&mut reader, &mut bytes)
            .await
            .is_ok_and(|read| read > 0)
        {}
    });
    let mut frames = raw::define(0, "vm", "store");
    frames.extend(raw::define(1, "vm", "events"));
    writer.write_all(&frames).await.expect("it reads");
    for round in 0..200_u64 {
        let mut frames = Vec::new();
        for number in 0..50 {
            let id = round * 50 + number;
            let mut say = |kind, method, payload: &[u8]| {
                frames.extend(raw::frame(kind, (method, id), payload));
            };
            say(Kind::StreamOpen, 0, b"");
            say(Kind::StreamChunk, 0, b"part");
            say(Kind::StreamReset, 0, b"");
            say(Kind::StreamChunk, 0, b"behind its end");
            say(Kind::StreamEnd, 0, b"");
            say(Kind::Watch, 1, b"");
            for bytes in [0, u32::MAX, u32::MAX, 1] {
                say(Kind::StreamCredit, 0, &bytes.to_le_bytes());
            }
            say(Kind::Cancel, 0, b"");
            say(Kind::StreamCredit, 0, &7_u32.to_le_bytes());
            say(Kind::Cancel, 0, b"");
        }
        soon(writer.write_all(&frames)).await.expect("it reads");
    }
    until(|| server.stats().handlers == 0).await;
    assert_eq!(server.stats().inbound, 1);
    assert!(stopped.load(Ordering::SeqCst) > 0);
    let other = plain(8)
        .peer(2, address(&server))
        .start()
        .await
        .expect("starts");
    let call = other.call(Envelope::new(2, "vm", "echo", b""));
    soon(call).await.expect("a reply");
    drop(writer);
    until(|| server.stats().inbound <= 1).await;
    soon(reading).await.expect("no panics");
}

/// A node that answers with what no caller waits for, credit without end, and ends of what is over: its caller goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_takes_no_harm_from_what_it_did_not_ask_for() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback");
    let at = listener.local_addr().expect("bound").to_string();
    let client = plain(1).peer(2, at).start().await.expect("starts");
    let call = client.call(Envelope::new(2, "vm", "echo", b"x"));
    let mut body = client
        .stream(Envelope::new(2, "vm", "store", b""))
        .expect("room");
    let (mut stream, _) = soon(listener.accept()).await.expect("it dials");
    raw::welcome_with(&mut stream, perf_transport::proto::FEATURE_WATCH).await;
    let (mut call_id, mut body_id) = (None, None);
    while call_id.is_none() || body_id.is_none() {
        let (kind, id, _) = answer(&mut stream).await;
        if kind == Kind::Request as u8 {
            call_id = Some(id);
        } else if kind == Kind::StreamOpen as u8 {
            body_id = Some(id);
        }
    }
    let (call_id, body_id) = (call_id.expect("asked"), body_id.expect("begun"));
    let mut frames = Vec::new();
    for id in [0, 1, body_id, call_id ^ (1 << 20), u64::MAX] {
        for bytes in [0, u32::MAX, u32::MAX] {
            frames.extend(raw::frame(
                Kind::StreamCredit,
                (0, id),
                &bytes.to_le_bytes(),
            ));
        }
    }
    for id in [0, call_id ^ (1 << 20), u64::MAX] {
        frames.extend(raw::frame(Kind::Reply, (0, id), b"to nobody"));
        frames.extend(raw::frame(Kind::Failure, (0, id), b"\x01to nobody"));
        frames.extend(raw::frame(Kind::StreamChunk, (0, id), b"to nobody"));
        frames.extend(raw::frame(Kind::StreamReset, (0, id), b""));
    }
    for _ in 0..2 {
        frames.extend(raw::frame(Kind::StreamReset, (0, body_id), b""));
        frames.extend(raw::frame(Kind::Reply, (0, body_id), b"enough"));
        frames.extend(raw::frame(Kind::Reply, (0, call_id), b"once"));
    }
    stream.write_all(&frames).await.expect("it reads");
    assert_eq!(soon(call).await.as_deref(), Ok(&b"once"[..]));
    let _ = soon(body.send(vec![7; 100].into())).await;
    assert_eq!(soon(body.finish()).await.as_deref(), Ok(&b"enough"[..]));
    assert_eq!(
        client.connections().iter().filter(|one| one.is_up).count(),
        1
    );
}
