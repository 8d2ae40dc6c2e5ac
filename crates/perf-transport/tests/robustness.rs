//! Peers that do not play by the rules, callers that push too hard, and what both may cost.

#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::proto::{
    ConnectionClass, Header, Kind, Local, Outbox, SLICES_MAX, WriteBuffer,
};
use perf_transport::{
    CloseReason, Config, Envelope, Payload, PeerEvent, Priority, RejectionCode, Router, Transport,
    TransportError,
};
use prost::Message;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use support::{PATIENCE, address, pair, plain, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, broadcast};

fn brisk() -> Config {
    let mut config = Config::default();
    config.handshake_timeout = Duration::from_millis(200);
    config.dial_timeout = Duration::from_millis(200);
    config.heartbeat_interval = Duration::from_millis(40);
    config.heartbeat_timeout = Duration::from_millis(160);
    config.backoff = (Duration::from_millis(10), Duration::from_millis(80));
    config
}

fn echo() -> Router {
    Router::new().inline("vm", "echo", |message, reply| {
        reply.put_slice(message.payload());
        Ok(())
    })
}

/// Waits until node 2 answers calls.
async fn until_answered(client: &Transport) {
    soon(async {
        while client
            .call(Envelope::new(2, "vm", "echo", b"x"))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn event(
    events: &mut broadcast::Receiver<PeerEvent>,
    mut wanted: impl FnMut(&PeerEvent) -> bool,
) -> PeerEvent {
    soon(async {
        loop {
            match events.recv().await {
                Ok(event) if wanted(&event) => return event,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => panic!("no more events"),
            }
        }
    })
    .await
}

fn frame(kind: Kind, method: u16, payload: &[u8]) -> Vec<u8> {
    let mut buffer = WriteBuffer::new();
    buffer.push(
        Header::new(kind, method, 1),
        &Payload::Borrowed(payload),
        false,
    );
    let mut outbox = Outbox::default();
    outbox.push(buffer);
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let count = outbox.slices(&mut slices);
    slices[..count]
        .iter()
        .flat_map(|slice| slice.to_vec())
        .collect()
}

fn local(node: u64, cluster: &str) -> Local {
    Local {
        cluster: cluster.to_owned(),
        node,
        incarnation: 1,
        frame_bytes_max: 1 << 20,
        stream_window_bytes: 1 << 20,
        streams_max: 8,
        checksum: false,
    }
}

fn hello(cluster: &str, target: u64) -> Vec<u8> {
    let hello = local(9, cluster).hello(target, 1, ConnectionClass::Bulk);
    frame(Kind::Hello, 0, &hello.encode_to_vec())
}

/// What is sent before and after the handshake, and how the server must see it.
async fn cut_off(before: &[u8], after: Option<&[u8]>) -> PeerEvent {
    let server = plain(2)
        .router(echo())
        .config(brisk())
        .listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let mut events = server.events();
    let mut stream = TcpStream::connect(address(&server)).await.expect("listens");
    stream.write_all(before).await.expect("it reads");
    if let Some(after) = after {
        stream.write_all(&hello("test", 2)).await.expect("it reads");
        let mut welcome = [0; 16];
        soon(stream.read_exact(&mut welcome))
            .await
            .expect("it is let in");
        assert_eq!(welcome[4], Kind::Welcome as u8);
        stream.write_all(after).await.expect("it reads");
    }
    let found = event(&mut events, |event| {
        matches!(event, PeerEvent::Refused { .. } | PeerEvent::Ended { .. })
    })
    .await;
    // It is closed, not left open.
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    until(|| server.stats().inbound == 0).await;
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_with_the_reason() {
    let mut old = local(9, "test").hello(2, 1, ConnectionClass::Bulk);
    (old.version_min, old.version_max) = (7, 9);
    let old = frame(Kind::Hello, 0, &old.encode_to_vec());
    let mut long = Header::new(Kind::Hello, 0, 0);
    long.length = 1 << 30;
    for (bytes, wanted) in [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "kind"),
        (long.encode().to_vec(), "at most"),
        (frame(Kind::Ping, 0, b""), "before the handshake"),
        (hello("other", 2), "cluster"),
        (hello("test", 3), "expected"),
        (old, "versions"),
        (frame(Kind::Hello, 0, &[0xFF; 50]), "handshake"),
        // Nothing, or too little: the time is up.
        (Vec::new(), "longer than 200 ms"),
        (hello("test", 2)[..20].to_vec(), "longer than 200 ms"),
    ] {
        let found = cut_off(&bytes, None).await;
        let PeerEvent::Refused { error, .. } = found else {
            panic!("{wanted}: let in");
        };
        assert!(error.to_string().contains(wanted), "{wanted}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_peers_that_break_the_rules_are_cut_off() {
    let mut long = Header::new(Kind::Request, 0, 0);
    long.length = 2 << 20;
    for (bytes, wanted) in [
        (vec![0xAB; 100], "kind"),
        (long.encode().to_vec(), "at most"),
        // A method that was never defined.
        (frame(Kind::Request, 77, b"x"), "malformed"),
        (frame(Kind::Define, 5000, b""), "malformed"),
        (frame(Kind::Reply, 0, b"x"), "not allowed"),
        (frame(Kind::Hello, 0, b""), "not allowed"),
        // Half a frame, then silence.
        (
            frame(Kind::Request, 0, &[1; 100])[..50].to_vec(),
            "heartbeat timeout",
        ),
        (Vec::new(), "heartbeat timeout"),
    ] {
        let found = cut_off(b"", Some(&bytes)).await;
        let PeerEvent::Ended { peer, reason, .. } = found else {
            panic!("{wanted}: {found:?}");
        };
        assert_eq!(peer, 9);
        assert!(reason.to_string().contains(wanted), "{wanted}: {reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_at_a_time_is_cut_off() {
    let server = plain(2)
        .router(echo())
        .config(brisk())
        .listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let mut events = server.events();
    let stream = TcpStream::connect(address(&server)).await.expect("listens");
    let (mut read, mut write) = stream.into_split();
    write.write_all(&hello("test", 2)).await.expect("it reads");
    let drip = tokio::spawn(async move {
        for byte in frame(Kind::Define, 0, &[0; 900]) {
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    // It even reads what is sent to it.
    tokio::spawn(async move { while let Ok(1..) = read.read(&mut [0; 64]).await {} });
    let is_end = |event: &PeerEvent| matches!(event, PeerEvent::Ended { .. });
    let PeerEvent::Ended { reason, .. } = event(&mut events, is_end).await else {
        unreachable!("that was asked for");
    };
    assert_eq!(reason, CloseReason::Silent);
    drip.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_holed_peer_is_reported_and_used_again_when_it_is_back() {
    // It accepts, shakes hands, and then says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let hole = listener.local_addr().expect("bound").to_string();
    let silent = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let welcome = perf_transport::proto::Welcome {
            version: 1,
            features: 0,
            node: 2,
            incarnation: 1,
            frame_bytes_max: 1 << 20,
            stream_window_bytes: 1 << 20,
            streams_max: 8,
        };
        let welcome = frame(Kind::Welcome, 0, &welcome.encode_to_vec());
        stream.write_all(&welcome).await.expect("it reads");
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    });
    let client = plain(1).config(brisk()).peer(2, hole);
    let client = client.start().await.expect("starts");
    let mut events = client.events();
    let call = client.call(Envelope::new(2, "vm", "echo", b"x"));
    assert_eq!(
        soon(call).await,
        Err(TransportError::Disconnected {
            peer: 2,
            cause: Some(Arc::new(CloseReason::Silent))
        })
    );
    let lost = event(&mut events, |event| event.unreachable_peer() == Some(2)).await;
    assert!(
        matches!(
            lost,
            PeerEvent::Lost {
                reason: CloseReason::Silent,
                ..
            }
        ),
        "{lost:?}"
    );
    silent.abort();
    // Nobody listens now: failures are reported, and messages refused until the next attempt.
    let failed = |event: &PeerEvent| matches!(event, PeerEvent::Unreachable { failures: 2.., .. });
    let pushing = client.clone();
    let pusher = tokio::spawn(async move {
        loop {
            let _ = pushing.call(Envelope::new(2, "vm", "echo", b"x")).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    event(&mut events, failed).await;
    pusher.abort();
    let server = plain(2)
        .router(echo())
        .config(brisk())
        .listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    client.add_peer(2, address(&server));
    until_answered(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_callers_dial_once() {
    let (client, server) = pair(echo(), Config::default()).await;
    let mut tasks = Vec::new();
    for _ in 0..1000 {
        let client = client.clone();
        tasks.push(tokio::spawn(async move {
            client.call(Envelope::new(2, "vm", "echo", b"x")).await
        }));
    }
    for task in tasks {
        soon(task).await.expect("no panics").expect("a reply");
    }
    let stats = client.peer_stats(2).expect("known").bulk;
    assert_eq!((stats.dials, stats.connects), (1, 1));
    assert_eq!(server.stats().inbound, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_callers_and_a_peer_that_does_not_read_stay_within_the_budget() {
    // It lets the client in and then reads nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let hole = listener.local_addr().expect("bound").to_string();
    let welcome = perf_transport::proto::Welcome {
        version: 1,
        features: 0,
        node: 2,
        incarnation: 1,
        frame_bytes_max: 1 << 20,
        stream_window_bytes: 1 << 20,
        streams_max: 8,
    };
    let holding = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let welcome = frame(Kind::Welcome, 0, &welcome.encode_to_vec());
        stream.write_all(&welcome).await.expect("it reads");
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    });
    let mut config = Config::default();
    config.frame_bytes_max = 64 * 1024;
    config.queue_bytes = [256 * 1024; 4];
    let budget = 2 * 256 * 1024 + config.outbox_bytes + 64 * 1024;
    let client = plain(1).config(config).peer(2, hole);
    let client = client.start().await.expect("starts");
    let payload = Bytes::from(vec![7; 60_000]);
    let mut tasks = Vec::new();
    for number in 0..10_000_u64 {
        let (client, payload) = (client.clone(), payload.clone());
        tasks.push(tokio::spawn(async move {
            let priority = if number.is_multiple_of(2) {
                Priority::Normal
            } else {
                Priority::Low
            };
            let envelope = Envelope::new(2, "vm", "echo", payload)
                .with_priority(priority)
                .with_timeout(Duration::from_millis(300));
            client.call(envelope).await
        }));
    }
    let mut kinds = [0; 2];
    for task in tasks {
        let stats = client.peer_stats(2).expect("known").bulk;
        assert!(
            stats.queued_bytes <= budget,
            "{} bytes are queued",
            stats.queued_bytes
        );
        match soon(task).await.expect("no panics") {
            Err(TransportError::QueueFull { .. } | TransportError::TooManyCalls { .. }) => {
                kinds[0] += 1
            }
            Err(TransportError::Timeout { .. } | TransportError::Disconnected { .. }) => {
                kinds[1] += 1
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(kinds[0] > 0 && kinds[1] > 0, "{kinds:?}");
    let stats = client.peer_stats(2).expect("known").bulk;
    assert_eq!(stats.calls_in_flight, 0);
    holding.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_gives_the_message_back_and_urgent_ones_still_pass() {
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = Arc::clone(&release);
    let arrived = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&arrived);
    let router = echo().spawned("bulk", "hold", move |_| {
        let gate = Arc::clone(&gate);
        async move {
            let _ = gate.acquire().await;
            Ok(Bytes::new())
        }
    });
    let router = router.one_way("raft", "beat", move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let mut config = Config::default();
    // The server stops reading the connection when four requests run.
    config.handlers_max = 4;
    config.queue_frames = [64; 4];
    let (client, _server) = pair(router, config).await;
    let payload = Bytes::from(vec![1; 200_000]);
    let mut refused = None;
    for _ in 0..1000 {
        if let Err(back) = client.send(Envelope::new(2, "bulk", "hold", payload.clone())) {
            refused = Some(back);
            break;
        }
        tokio::task::yield_now().await;
    }
    let back = refused.expect("nobody reads, so the queue fills");
    assert_eq!(back.error, TransportError::QueueFull { peer: 2 });
    assert_eq!(back.envelope.payload.len(), 200_000);
    // Low is full to the brim, Critical does not notice.
    for _ in 0..10 {
        client
            .send(Envelope::new(2, "raft", "beat", b"term"))
            .expect("room");
    }
    until(|| arrived.load(Ordering::Relaxed) == 10).await;
    // Whoever waits gets a turn when the peer goes on.
    let waiting = client.send_wait(back.envelope);
    release.add_permits(10_000);
    soon(waiting).await.expect("there is room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_cancellation_and_late_replies() {
    let router = echo().spawned("vm", "late", |message| async move {
        tokio::time::sleep(Duration::from_millis(150)).await;
        Ok(message.into_payload())
    });
    let mut config = Config::default();
    // One slot, so that a late reply would meet the next call.
    config.calls_max = 1;
    let (client, _server) = pair(router, config).await;
    for number in 0..5_u8 {
        let late = Envelope::new(2, "vm", "late", b"late").with_timeout(Duration::from_millis(30));
        assert_eq!(
            soon(client.call(late)).await,
            Err(TransportError::Timeout { peer: 2 })
        );
        let dropped = client.call(Envelope::new(2, "vm", "late", b"late"));
        let second = client.call(Envelope::new(2, "vm", "echo", b"x"));
        let full = TransportError::TooManyCalls {
            peer: 2,
            calls_max: 1,
        };
        assert_eq!(soon(second).await, Err(full));
        drop(dropped);
        let own = [number; 8];
        let reply = soon(client.call(Envelope::new(2, "vm", "echo", &own))).await;
        assert_eq!(reply.as_deref(), Ok(&own[..]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_dropped_is_broken_for_its_reader() {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let router = Router::new().streamed("snapshot", "install", move |_, mut body| {
        let sender = sender.clone();
        async move {
            let outcome = body.collect(1 << 30).await;
            let _ = sender.send(outcome.clone().map(|bytes| bytes.len()));
            Ok(Bytes::new())
        }
    });
    let router = router.streamed("snapshot", "refuse", |_, _| async {
        Err(perf_transport::Rejection::new(RejectionCode::Busy, "full"))
    });
    let (client, _server) = pair(router, Config::default()).await;
    let mut body = client
        .stream(Envelope::new(2, "snapshot", "install", b""))
        .expect("room");
    soon(body.send(Bytes::from(vec![1; 100_000])))
        .await
        .expect("wanted");
    drop(body);
    let outcome = soon(receiver.recv()).await.expect("it ends");
    assert_eq!(outcome, Err(TransportError::BodyBroken { peer: 1 }));
    // A reader that gives up stops its sender, and says why.
    let mut body = client
        .stream(Envelope::new(2, "snapshot", "refuse", b""))
        .expect("room");
    soon(async { while body.send(Bytes::from(vec![1; 100_000])).await.is_ok() {} }).await;
    let outcome = soon(body.finish()).await;
    let is_so = matches!(
        &outcome,
        Err(TransportError::PeerRejected {
            code: RejectionCode::Busy,
            ..
        })
    );
    assert!(is_so, "{outcome:?}");
    // The place is free again, more often than there are places.
    for _ in 0..20 {
        let body = client
            .stream(Envelope::new(2, "snapshot", "install", b""))
            .expect("room");
        soon(body.finish()).await.expect("a reply");
        assert_eq!(soon(receiver.recv()).await, Some(Ok(0)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_close_and_come_back() {
    let mut config = brisk();
    config.idle_timeout = Duration::from_millis(100);
    let (client, server) = pair(echo(), config).await;
    for round in 1..=3 {
        soon(client.call(Envelope::new(2, "vm", "echo", b"x")))
            .await
            .expect("a reply");
        assert_eq!(client.peer_stats(2).expect("known").bulk.connects, round);
        until(|| client.stats().outbound == 0 && server.stats().inbound == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_finishes_what_was_begun_and_takes_nothing_new() {
    let router = echo().spawned("vm", "slow", |message| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(message.into_payload())
    });
    let (client, server) = pair(router, Config::default()).await;
    let begun = client.call(Envelope::new(2, "vm", "slow", b"begun"));
    until(|| server.stats().handlers == 1).await;
    let draining = tokio::spawn(async move { server.drain(Duration::from_secs(20)).await });
    assert_eq!(soon(begun).await.as_deref(), Ok(&b"begun"[..]));
    assert!(soon(draining).await.expect("no panics"), "in time");
    let later = soon(client.call(Envelope::new(2, "vm", "echo", b"x"))).await;
    assert!(later.is_err());
    let stopped: Transport = client.clone();
    assert!(soon(client.drain(Duration::from_secs(5))).await);
    let refused = soon(stopped.call(Envelope::new(2, "vm", "echo", b"x"))).await;
    assert_eq!(refused, Err(TransportError::ShuttingDown));
}

#[tokio::test]
async fn addresses_that_do_not_answer_say_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let nobody = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let client = plain(1)
        .config(brisk())
        .peer(2, nobody)
        .peer(3, "127.0.0.1:1");
    let client = client.start().await.expect("starts");
    let mut events = client.events();
    let refused = soon(client.call(Envelope::new(2, "vm", "echo", b"x"))).await;
    assert!(
        matches!(refused, Err(TransportError::Unreachable { peer: 2, .. })),
        "{refused:?}"
    );
    let event = event(&mut events, |event| event.unreachable_peer() == Some(2)).await;
    assert!(matches!(event, PeerEvent::Unreachable { failures: 1, .. }));
    let too_large = Envelope::new(2, "vm", "echo", vec![0; 2 << 20]);
    let refused = client.send(too_large).expect_err("it is too large").error;
    assert!(matches!(refused, TransportError::TooLarge { .. }));
    assert!(refused.is_unsent());
}

/// Whoever drains waits for what is on its way: a caller learns that its peer takes nothing new, or has its reply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_loses_no_call_that_was_sent() {
    for round in 0..20 {
        let router = echo().spawned("vm", "spawned", |message| async move {
            tokio::task::yield_now().await;
            Ok(message.into_payload())
        });
        let (client, server) = pair(router, Config::default()).await;
        let mut callers = Vec::new();
        for number in 0..32 {
            let method = ["echo", "spawned"][number % 2];
            let method = client.method(2, "vm", method).expect("a known peer");
            callers.push(tokio::spawn(async move {
                let mut answered = 0;
                loop {
                    match method.call(b"x").await {
                        Ok(reply) => assert_eq!(&reply[..], b"x"),
                        Err(error) => return (answered, error),
                    }
                    answered += 1;
                }
            }));
        }
        tokio::time::sleep(Duration::from_millis(5 + round)).await;
        assert!(soon(server.drain(PATIENCE)).await);
        for caller in callers {
            let (answered, error) = soon(caller).await.expect("no panics");
            assert!(
                error.is_unsent(),
                "round {round}, {answered} calls: {error}"
            );
        }
    }
}

/// A handler outlives its connection, and keeps the connection's place: nobody gets more handlers by connecting again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_of_lost_connections_count_until_they_end() {
    let release = Arc::new(Notify::new());
    let done = Arc::new(AtomicU64::new(0));
    let (released, ended) = (Arc::clone(&release), Arc::clone(&done));
    let router = echo().spawned("vm", "long", move |message| {
        let (released, ended) = (Arc::clone(&released), Arc::clone(&ended));
        async move {
            released.notified().await;
            ended.fetch_add(1, Ordering::SeqCst);
            Ok(message.into_payload())
        }
    });
    let mut config = brisk();
    config.inbound_max = 1;
    let server = plain(2).router(router).config(config.clone());
    let server = soon(server.listen("127.0.0.1:0").start()).await;
    let server = server.expect("loopback can be listened on");
    let start = async |node| {
        let client = plain(node).config(config.clone()).peer(2, address(&server));
        client.start().await.expect("starts")
    };
    let first = start(1).await;
    soon(first.send_wait(Envelope::new(2, "vm", "long", b"x")))
        .await
        .expect("queued");
    until(|| server.stats().handlers == 1).await;
    first.shutdown();
    until(|| server.stats().inbound == 0).await;
    assert_eq!(server.stats().handlers, 1);
    let second = start(3).await;
    let refused = soon(second.call(Envelope::new(2, "vm", "echo", b"x"))).await;
    assert!(refused.is_err(), "there is no place");
    release.notify_one();
    until(|| server.stats().handlers == 0).await;
    until_answered(&second).await;
    // Who leaves in good order waits for them as well.
    soon(second.send_wait(Envelope::new(2, "vm", "long", b"x")))
        .await
        .expect("queued");
    until(|| server.stats().handlers == 1).await;
    assert!(soon(second.drain(PATIENCE)).await);
    until(|| server.stats().inbound == 0).await;
    let draining = tokio::spawn(async move { server.drain(PATIENCE).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!draining.is_finished());
    release.notify_one();
    assert!(soon(draining).await.expect("no panics"), "in time");
    assert_eq!(done.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_node_takes_no_new_connections() {
    let release = Arc::new(Notify::new());
    let released = Arc::clone(&release);
    let router = echo().spawned("vm", "long", move |message| {
        let released = Arc::clone(&released);
        async move {
            released.notified().await;
            Ok(message.into_payload())
        }
    });
    let (client, server) = pair(router, brisk()).await;
    let begun = client.call(Envelope::new(2, "vm", "long", b"begun"));
    until(|| server.stats().handlers == 1).await;
    let latecomer = plain(3).config(brisk()).peer(2, address(&server));
    let latecomer = latecomer.start().await.expect("starts");
    let draining = tokio::spawn(async move { server.drain(PATIENCE).await });
    let draining_error = TransportError::PeerDraining { peer: 2 };
    soon(async {
        while client.call(Envelope::new(2, "vm", "echo", b"x")).await != Err(draining_error.clone())
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let refused = soon(latecomer.call(Envelope::new(2, "vm", "echo", b"x"))).await;
    assert!(
        matches!(refused, Err(TransportError::Unreachable { .. })),
        "{refused:?}"
    );
    assert!(!draining.is_finished());
    release.notify_one();
    assert_eq!(soon(begun).await.as_deref(), Ok(&b"begun"[..]));
    assert!(soon(draining).await.expect("no panics"), "in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_ends_when_a_silent_peer_is_given_up() {
    let server = plain(2).router(echo()).config(brisk());
    let server = server.listen("127.0.0.1:0").start().await.expect("starts");
    let mut silent = TcpStream::connect(address(&server))
        .await
        .expect("it listens");
    silent.write_all(&hello("test", 2)).await.expect("it reads");
    until(|| server.stats().inbound == 1).await;
    // It is told, and says nothing.
    assert!(soon(server.drain(PATIENCE)).await, "in time");
}

/// Connections that end because nobody used them, beside callers who begin to use them at that moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_takes_nothing_with_it() {
    let mut config = brisk();
    config.heartbeat_timeout = PATIENCE;
    config.dial_timeout = PATIENCE;
    config.handshake_timeout = PATIENCE;
    config.idle_timeout = Duration::from_millis(2);
    config.tick = Duration::from_millis(1);
    let heard = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&heard);
    let router = echo().one_way("vm", "told", move |_| {
        counts.fetch_add(1, Ordering::Relaxed);
    });
    let (client, _server) = pair(router, config).await;
    let rounds = 400;
    for round in 0..rounds {
        // As long as it takes until the connection ends, a little more each time.
        let begin = std::time::Instant::now();
        let wait = Duration::from_micros(2000 + round % 100 * 20);
        tokio::time::sleep(Duration::from_millis(1)).await;
        while begin.elapsed() < wait {
            tokio::task::yield_now().await;
        }
        let told = client.send(Envelope::new(2, "vm", "told", b"x"));
        assert!(told.is_ok(), "round {round}: {told:?}");
        let echoed = soon(client.call(Envelope::new(2, "vm", "echo", b"x"))).await;
        assert_eq!(echoed.as_deref(), Ok(&b"x"[..]), "round {round}");
    }
    let connects = client.peer_stats(2).expect("known").bulk.connects;
    assert!(connects > 1, "none of them has ended");
    assert_eq!(heard.load(Ordering::Relaxed) as u64, rounds);
}
