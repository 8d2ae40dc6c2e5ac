//! What a message may weigh, and what becomes of messages when a peer takes less than this node.

#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::{Config, Envelope, Router, TransportError};
use std::time::Duration;
use support::{address, pair, plain, soon};

fn echo() -> Router {
    Router::new().inline("vm", "length", |message, reply| {
        reply.put_slice(&message.payload().len().to_le_bytes());
        Ok(())
    })
}

fn capped(frame_bytes_max: u32) -> Config {
    let mut config = Config::default();
    config.frame_bytes_max = frame_bytes_max;
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_payload_can_be_asked_for_and_is_sent() {
    let server = plain(2)
        .router(echo())
        .config(capped(10_000))
        .listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let client = plain(1).config(capped(20_000)).peer(2, address(&server));
    let client = client.start().await.expect("starts");
    assert_eq!(client.payload_bytes_max(), 20_000);
    let method = client.method(2, "vm", "length").expect("known");
    assert_eq!(method.payload_bytes_max(), 20_000);
    soon(method.call(b"x")).await.expect("a reply");
    let bytes_max = method.payload_bytes_max();
    assert_eq!(bytes_max, 10_000);
    let reply = soon(method.call(vec![7; bytes_max]))
        .await
        .expect("a reply");
    assert_eq!(reply[..], bytes_max.to_le_bytes());
    let refused = soon(method.call(vec![7; bytes_max + 1])).await;
    assert_eq!(
        refused,
        Err(TransportError::TooLarge {
            bytes: bytes_max + 1,
            bytes_max
        })
    );
}

/// Messages were queued before it was known that the peer takes less: those that it takes arrive, and the others are
/// refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smaller_frame_cap_costs_only_what_is_too_long() {
    let server = plain(2)
        .router(echo())
        .config(capped(10_000))
        .listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let client = plain(1).config(capped(20_000)).peer(2, address(&server));
    let client = client.start().await.expect("starts");
    let lengths = [1, 5000, 10_001, 15_000, 9999, 10_000, 3];
    let calls =
        lengths.map(|length| client.call(Envelope::new(2, "vm", "length", vec![7; length])));
    for (call, length) in calls.into_iter().zip(lengths) {
        match soon(call).await {
            Ok(reply) => assert_eq!(reply[..], length.to_le_bytes()),
            Err(TransportError::TooLarge {
                bytes_max: 10_000, ..
            }) => assert!(length > 10_000),
            Err(error) => panic!("{length} bytes: {error}"),
        }
    }
}

/// Callers on several threads queue messages of all lengths while the connection comes about on which it is learned
/// that the peer takes less. None of those that are too long gets in behind the look at what is queued: the peer would
/// cut the connection off, and all others would be lost with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_that_is_learned_while_messages_are_queued_holds_for_all_of_them() {
    let server = plain(2)
        .router(echo())
        .config(capped(10_000))
        .listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    for _ in 0..40 {
        let client = plain(1).config(capped(20_000)).peer(2, address(&server));
        let client = client.start().await.expect("starts");
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move {
                    for round in 0..100 {
                        let length = if round % 2 == 0 { 11_000 } else { 7 };
                        let envelope = Envelope::new(2, "vm", "length", vec![7; length]);
                        match client.call_wait(envelope).await {
                            Ok(reply) => assert_eq!(reply[..], length.to_le_bytes()),
                            Err(TransportError::TooLarge { bytes, .. }) => {
                                assert_eq!(bytes, 11_000)
                            }
                            Err(error) => panic!("{length} bytes: {error}"),
                        }
                    }
                })
            })
            .collect();
        for caller in callers {
            soon(caller).await.expect("no panics");
        }
    }
}

/// Users that want no bound say so by the greatest number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_greatest_bounds_are_no_trap() {
    let mut config = Config::default();
    config.frame_bytes_max = 64 << 20;
    config.queue_bytes = [usize::MAX; 4];
    config.queue_frames = [usize::MAX; 4];
    config.weights = [u32::MAX; 4];
    config.calls_max = 1 << 16;
    config.outbox_bytes = usize::MAX;
    config.handlers_max = usize::MAX;
    config.handler_bytes_max = usize::MAX;
    config.handlers_per_method_max = usize::MAX;
    config.stream_window_bytes = u32::MAX;
    config.streams_max = u32::MAX;
    config.inbound_max = usize::MAX;
    config.handshakes_max = usize::MAX;
    config.inbound_per_node_max = usize::MAX;
    for time in [
        &mut config.call_timeout,
        &mut config.stream_timeout,
        &mut config.dial_timeout,
        &mut config.handshake_timeout,
        &mut config.heartbeat_interval,
        &mut config.heartbeat_timeout,
        &mut config.busy_timeout,
        &mut config.idle_timeout,
        &mut config.backoff.1,
    ] {
        *time = Duration::MAX;
    }
    config.backoff.0 = Duration::MAX;
    let router = echo()
        .spawned(
            "vm",
            "echo",
            |message| async move { Ok(message.into_payload()) },
        )
        .streamed("vm", "store", |_, mut body| async move {
            let all = body.collect(1 << 20).await.expect("short");
            Ok(all)
        });
    let (client, _server) = pair(router, config).await;
    let envelope = |method| Envelope::new(2, "vm", method, b"x");
    for method in ["length", "echo"] {
        soon(client.call(envelope(method))).await.expect("a reply");
        let waits = client.call_wait(envelope(method).with_timeout(Duration::MAX));
        soon(waits).await.expect("a reply");
    }
    let mut body = client.stream(envelope("store")).expect("room");
    soon(body.send(Bytes::from_static(b"part")))
        .await
        .expect("room");
    assert_eq!(soon(body.finish()).await.as_deref(), Ok(&b"part"[..]));
    // A peer that is not there stays so until it is told of anew.
    client.add_peer(3, "127.0.0.1:1");
    for _ in 0..3 {
        let call = client.call(Envelope::new(3, "vm", "length", b"x"));
        let refused = soon(call).await.expect_err("nobody listens");
        assert!(
            matches!(refused, TransportError::Unreachable { .. }),
            "{refused}"
        );
    }
    // No time at all is no time for a reply.
    let hanging = client.call(envelope("length").with_timeout(Duration::ZERO));
    let outcome = soon(hanging).await;
    assert!(
        matches!(outcome, Ok(_) | Err(TransportError::Timeout { .. })),
        "{outcome:?}"
    );
}

/// Bodies of no byte, of the window, and of one byte more on either side, with items of the bound and of one more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_and_items_at_their_bounds() {
    const WINDOW: usize = 10_000;
    const CAP: usize = 8192;
    let router = Router::new()
        .streamed("vm", "store", |_, mut body| async move {
            let all = body.collect(1 << 20).await.expect("short");
            Ok(Bytes::from(all.len().to_string()))
        })
        .exchange("vm", "echo", |_, mut body, mut answer| async move {
            let mut errors = 0;
            while let Some(item) = body.next_item().await {
                match item {
                    Ok(item) => answer.send(item).await.expect("it is read"),
                    Err(error) => {
                        errors += 1;
                        assert!(matches!(error, TransportError::TooLarge { bytes, .. } if bytes == CAP + 1));
                    }
                }
            }
            assert!(body.next().await.is_none());
            answer.send(vec![errors]).await.expect("it is read");
            Ok(())
        });
    let mut config = capped(8192);
    config.stream_window_bytes = WINDOW as u32;
    let (client, _server) = pair(router, config).await;
    for length in [0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW] {
        let mut body = client
            .stream(Envelope::new(2, "vm", "store", b""))
            .expect("room");
        soon(body.send(vec![7; length].into()))
            .await
            .expect("it is read");
        let stored = soon(body.finish()).await.expect("a reply");
        assert_eq!(stored, length.to_string());
    }
    for (length, errors) in [(0, 0), (CAP, 0), (CAP + 1, 1)] {
        let (mut items, mut answer) = client
            .exchange(Envelope::new(2, "vm", "echo", b""))
            .expect("room");
        let _ = soon(items.send(vec![7; length])).await;
        let _ = soon(items.finish()).await;
        if errors == 0 {
            let echoed = soon(answer.next()).await.expect("an item").expect("sound");
            assert_eq!(echoed.len(), length);
        }
        // An error is told once, and the handler goes on.
        let said = soon(answer.next()).await.expect("an item").expect("sound");
        assert_eq!(said[..], [errors]);
        assert_eq!(soon(answer.next()).await, None);
    }
}

/// The deadline of a call holds for its body, too: a sender that waits for credit, or for the end, does not wait for a
/// handler that never reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_nobody_reads_ends_at_its_deadline() {
    let router = Router::new()
        .streamed("vm", "body", |_, body| async move {
            std::future::pending::<()>().await;
            drop(body);
            Ok(Bytes::new())
        })
        .exchange("vm", "talk", |_, body, _answer| async move {
            std::future::pending::<()>().await;
            drop(body);
            Ok(())
        });
    let (client, _server) = pair(router, Config::default()).await;
    let envelope = |method| {
        let envelope = Envelope::new(2, "vm", method, b"");
        envelope.with_timeout(Duration::from_millis(300))
    };
    let mut body = client.stream(envelope("body")).expect("room");
    let part = Bytes::from(vec![1; 2 << 20]);
    let sent = soon(body.send(part.clone())).await;
    assert_eq!(sent, Err(TransportError::BodyBroken { peer: 2 }));
    let ended = soon(body.finish()).await;
    assert_eq!(ended, Err(TransportError::Timeout { peer: 2 }));
    let (mut items, mut answer) = client.exchange(envelope("talk")).expect("room");
    assert!(soon(items.send(part.clone())).await.is_err());
    let ended = soon(answer.next()).await;
    assert_eq!(ended, Some(Err(TransportError::Timeout { peer: 2 })));
    // A caller that wants no answer any more sends nothing either.
    let envelope = Envelope::new(2, "vm", "talk", b"");
    let (mut items, answer) = client.exchange(envelope).expect("room");
    drop(answer);
    assert!(soon(items.send(part)).await.is_err());
}

/// The same for a sender that waits for room in a queue that moves no further.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_finds_no_room_ends_at_its_deadline() {
    // It takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let silent = silent.expect("a port");
    let mut config = Config::default();
    config.handshake_timeout = support::PATIENCE * 10;
    let at = silent.local_addr().expect("bound").to_string();
    let client = plain(1).config(config).peer(2, at).start();
    let client = client.await.expect("starts");
    let envelope = Envelope::new(2, "vm", "body", b"").with_timeout(Duration::from_millis(300));
    let mut body = client.stream(envelope).expect("room");
    let part = Bytes::from(vec![1; 64 << 10]);
    while client
        .send(Envelope::new(2, "vm", "note", part.clone()))
        .is_ok()
    {}
    let sent = tokio::select! {
        // First: it must be woken, and not only be looked at again.
        biased;
        () = tokio::time::sleep(support::PATIENCE) => panic!("the deadline woke nothing"),
        sent = body.send(part) => sent,
    };
    assert_eq!(sent, Err(TransportError::BodyBroken { peer: 2 }));
    let ended = soon(body.finish()).await;
    assert_eq!(ended, Err(TransportError::Timeout { peer: 2 }));
}
