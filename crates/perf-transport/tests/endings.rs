//! How transports end: with their runtime, in good order, and what is left then.

#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::{CloseReason, Config, Envelope, PeerEvent, Router, Transport, TransportError};
use std::sync::Arc;
use std::time::Duration;
use support::{PATIENCE, address, pair, plain, soon};
use tokio::runtime::{Builder, Runtime};

fn echo() -> Router {
    Router::new()
        .inline("vm", "echo", |message, reply| {
            reply.put_slice(message.payload());
            Ok(())
        })
        .spawned("vm", "never", |_| std::future::pending())
}

fn runtime() -> Runtime {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.expect("a runtime")
}

/// Whoever uses a transport on another runtime than its own is told when that has ended.
#[test]
fn nobody_waits_for_a_runtime_that_has_ended() {
    for is_connected in [true, false] {
        let (own, other, servers) = (runtime(), runtime(), runtime());
        let server = servers.block_on(async {
            let server = plain(2).router(echo()).listen("127.0.0.1:0");
            server.start().await.expect("starts")
        });
        let client: Transport = own.block_on(async {
            let client = plain(1).peer(2, address(&server));
            client.start().await.expect("starts")
        });
        let call = |method: &'static str| client.call(Envelope::new(2, "vm", method, b"x"));
        let hanging = is_connected.then(|| {
            let echoed = other.block_on(soon(call("echo")));
            assert_eq!(echoed.as_deref(), Ok(&b"x"[..]));
            other.spawn(soon(call("never")))
        });
        own.shutdown_background();
        other.block_on(async {
            if let Some(hanging) = hanging {
                let ended = hanging.await.expect("no panics");
                let is_it = matches!(ended, Err(TransportError::Disconnected { peer: 2, .. }));
                assert!(is_it, "{ended:?}");
            }
            // What is begun now or later fails, at once or with the connection.
            soon(async {
                while call("echo").await != Err(TransportError::ShuttingDown) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
            .await;
            let sent = soon(client.send_wait(Envelope::new(2, "vm", "echo", b"x"))).await;
            assert_eq!(sent, Err(TransportError::ShuttingDown));
            let sent = soon(client.call_wait(Envelope::new(2, "vm", "echo", b"x"))).await;
            assert_eq!(sent, Err(TransportError::ShuttingDown));
            client.add_peer(3, "127.0.0.1:1");
            let refused = soon(client.call(Envelope::new(3, "vm", "echo", b"x"))).await;
            assert_eq!(refused, Err(TransportError::ShuttingDown));
            assert!(client.stream(Envelope::new(2, "vm", "echo", b"x")).is_err());
            soon(client.drain(Duration::from_secs(5))).await;
        });
    }
}

/// The same while calls are begun all the time: none of them is forgotten.
#[test]
fn no_call_hangs_while_the_runtime_ends() {
    for round in 0..10 {
        let (own, other) = (runtime(), runtime());
        let server = other.block_on(async {
            let server = plain(2).router(echo()).listen("127.0.0.1:0");
            server.start().await.expect("starts")
        });
        let client: Transport = own.block_on(async {
            let client = plain(1).peer(2, address(&server));
            client.start().await.expect("starts")
        });
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let client = client.clone();
                other.spawn(async move {
                    loop {
                        let reply = client.call(Envelope::new(2, "vm", "echo", b"x")).await;
                        if reply == Err(TransportError::ShuttingDown) {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(5 + round));
        own.shutdown_background();
        for caller in callers {
            other.block_on(soon(caller)).expect("no panics");
        }
    }
}

/// Its peers know that it left on purpose, and its address can be used again at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_leaves_nothing_behind() {
    for _ in 0..20 {
        let (client, server) = pair(echo(), Config::default()).await;
        let mut events = server.events();
        let reply = soon(client.call(Envelope::new(2, "vm", "echo", b"x"))).await;
        reply.expect("a reply");
        assert!(soon(client.drain(PATIENCE)).await);
        let reason = soon(async {
            loop {
                if let PeerEvent::Ended { reason, .. } = events.recv().await.expect("events") {
                    break reason;
                }
            }
        });
        assert_eq!(reason.await, CloseReason::PeerDrained);
        let bound = address(&server);
        assert!(soon(server.drain(PATIENCE)).await);
        let again = plain(2).listen(bound).start().await;
        assert!(again.is_ok(), "{again:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_calls_wait_for_room_instead_of_failing() {
    let router = Router::new().spawned("vm", "length", |message| async move {
        Ok(Bytes::from(message.payload().len().to_string()))
    });
    let mut config = Config::default();
    config.calls_max = 16;
    let (client, _server) = pair(router, config).await;
    let large = Bytes::from(vec![7; 256 << 10]);
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let (client, large) = (client.clone(), large.clone());
            tokio::spawn(async move {
                let envelope = Envelope::new(2, "vm", "length", large).with_timeout(PATIENCE);
                client.call_wait(envelope).await
            })
        })
        .collect();
    for call in calls {
        let reply = soon(call).await.expect("no panics");
        assert_eq!(reply.as_deref(), Ok(&b"262144"[..]));
    }
    // Nobody waits for ever.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback");
    client.add_peer(3, listener.local_addr().expect("bound").to_string());
    let wait = |_| {
        let envelope = Envelope::new(3, "vm", "length", large.clone());
        let client = client.clone();
        tokio::spawn(async move {
            client
                .call_wait(envelope.with_timeout(Duration::from_millis(200)))
                .await
        })
    };
    for call in (0..20).map(wait).collect::<Vec<_>>() {
        assert!(soon(call).await.expect("no panics").is_err());
    }
}

/// A caller that waits because of `calls_max` goes on when a call ends, not at some later look: the only tick of this
/// transport is a minute away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_waits_for_a_slot_is_woken() {
    let mut config = Config::default();
    config.calls_max = 1;
    config.tick = Duration::from_secs(60);
    let (client, _server) = pair(echo(), config).await;
    let method = client.method(2, "vm", "never").expect("known");
    let method = method.with_timeout(Duration::from_secs(600));
    for _ in 0..20 {
        let hanging = method.call(b"x");
        let waiting = {
            let client = client.clone();
            tokio::spawn(async move {
                let envelope = Envelope::new(2, "vm", "echo", b"y").with_timeout(PATIENCE);
                client.call_wait(envelope).await
            })
        };
        tokio::task::yield_now().await;
        drop(hanging);
        let reply = soon(waiting).await.expect("no panics");
        assert_eq!(reply.as_deref(), Ok(&b"y"[..]));
    }
    // Who gives up leaves the turn to the next one.
    let hanging = method.call(b"x");
    let short = Envelope::new(2, "vm", "echo", b"z").with_timeout(Duration::from_millis(20));
    let full = soon(client.call_wait(short)).await;
    let calls_max = 1;
    assert_eq!(
        full,
        Err(TransportError::TooManyCalls { peer: 2, calls_max })
    );
    drop(hanging);
    let echo = client.method(2, "vm", "echo").expect("known");
    let reply = soon(echo.call_wait(b"after")).await;
    assert_eq!(reply.as_deref(), Ok(&b"after"[..]));
}

/// The connection fails under a call: the error says why, as its source.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_in_flight_says_why_its_connection_failed() {
    use std::error::Error;
    use tokio::io::AsyncWriteExt;
    // A peer that answers with what is no frame.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback");
    let at = listener.local_addr().expect("bound").to_string();
    let client = plain(1).peer(2, at).start().await.expect("starts");
    let calling = {
        let client = client.clone();
        tokio::spawn(async move { client.call(Envelope::new(2, "vm", "echo", b"x")).await })
    };
    let (mut stream, _) = soon(listener.accept()).await.expect("it dials");
    support::raw::welcome(&mut stream).await;
    while soon(support::raw::read(&mut stream))
        .await
        .expect("frames")
        .0
        != perf_transport::proto::Kind::Request as u8
    {}
    stream.write_all(&[0xFF; 64]).await.expect("it reads");
    let error = soon(calling)
        .await
        .expect("no panics")
        .expect_err("it is cut off");
    assert!(!error.is_unsent());
    let source = error.source().expect("a cause");
    let reason: &CloseReason = source.downcast_ref().expect("the reason of the end");
    assert!(matches!(reason, CloseReason::Protocol(_)), "{reason:?}");
    assert!(reason.source().is_some());
    let of_peer = |status: &perf_transport::ConnectionStatus| status.last_close.is_some();
    assert!(client.connections().iter().any(of_peer));
}

/// Chunks of a body as a `futures` stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_a_stream() {
    async fn total(
        mut body: impl futures_core::Stream<Item = Result<Bytes, TransportError>> + Unpin,
    ) -> usize {
        let mut bytes = 0;
        while let Some(chunk) =
            std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_next(cx)).await
        {
            bytes += chunk.map_or(0, |chunk| chunk.len());
        }
        bytes
    }
    let router = Router::new().streamed("vm", "body", |_, body| async move {
        Ok(Bytes::from(total(body).await.to_string()))
    });
    let (client, _server) = pair(router, Config::default()).await;
    let mut body = client
        .stream(Envelope::new(2, "vm", "body", b""))
        .expect("room");
    soon(body.send(Bytes::from(vec![1; 100_000])))
        .await
        .expect("wanted");
    assert_eq!(soon(body.finish()).await.as_deref(), Ok(&b"100000"[..]));
}

/// A connector that fails when it is told to.
struct Failing(Arc<tokio::sync::Notify>);

impl perf_transport::Connector for Failing {
    fn connect<'a>(
        &'a self,
        _: &'a str,
        _: perf_transport::StreamOptions,
    ) -> perf_transport::BoxFuture<'a, std::io::Result<Box<dyn perf_transport::ByteStream>>> {
        Box::pin(async {
            self.0.notified().await;
            Err(std::io::ErrorKind::ConnectionRefused.into())
        })
    }
}

/// A caller that sends another message when it is woken, within the wake-up.
struct SendsWhenWoken(Transport, parking_lot::Mutex<Option<TransportError>>);

impl std::task::Wake for SendsWhenWoken {
    fn wake(self: Arc<Self>) {
        let sent = self.0.send(Envelope::new(2, "vm", "note", b"x"));
        if let Err(undelivered) = sent {
            self.1.lock().get_or_insert(undelivered.error);
        }
    }
}

/// Between the end of an attempt to dial and the moment at which that is known a message is refused as unreachable: no
/// queue is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_meets_the_end_of_a_dial_is_told_so() {
    let fail = Arc::new(tokio::sync::Notify::new());
    let mut config = Config::default();
    config.calls_max = 1;
    config.dial_timeout = PATIENCE;
    let client = plain(1)
        .config(config)
        .connector(Failing(Arc::clone(&fail)));
    let client = client.peer(2, "nowhere").start().await.expect("starts");
    let first = client.call(Envelope::new(2, "vm", "echo", b"x"));
    let waits = client.call_wait(Envelope::new(2, "vm", "echo", b"y"));
    let mut waits = std::pin::pin!(waits);
    let woken = SendsWhenWoken(client.clone(), parking_lot::Mutex::new(None));
    let woken = Arc::new(woken);
    let waker = std::task::Waker::from(Arc::clone(&woken));
    let polled = waits
        .as_mut()
        .poll(&mut std::task::Context::from_waker(&waker));
    assert!(polled.is_pending());
    fail.notify_one();
    assert!(matches!(
        soon(first).await,
        Err(TransportError::Unreachable { .. })
    ));
    support::until(|| woken.1.lock().is_some()).await;
    let told = woken.1.lock().take().expect("told");
    assert!(told.is_unsent());
    // The attempt's own error: another attempt is not waited for.
    let TransportError::Unreachable { cause, .. } = &told else {
        panic!("{told:?}");
    };
    let cause = cause.as_ref().expect("a cause").to_string();
    assert!(cause.contains("refused"), "{cause}");
    // Once the failure is noted the time until the next attempt is known.
    support::until(|| {
        let refused = client.send(Envelope::new(2, "vm", "note", b"x"));
        let error = refused.expect_err("refused").error;
        matches!(error, TransportError::Unreachable { retry_in_ms, .. } if retry_in_ms > 0)
    })
    .await;
}

/// A peer is removed while callers wait for a slot and for room: they learn that it is not known any more, and not that
/// this node shuts down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_in_line_learn_whether_their_peer_or_their_node_is_gone() {
    for is_removed in [true, false] {
        let mut config = Config::default();
        config.calls_max = 1;
        config.queue_frames = [1; 4];
        config.dial_timeout = PATIENCE;
        let connector = Failing(Arc::default());
        let client = plain(1).config(config).connector(connector);
        let client = client.peer(2, "nowhere").start().await.expect("starts");
        let first = client.call(Envelope::new(2, "vm", "echo", b"x"));
        let waits_for_slot = client.call_wait(Envelope::new(2, "vm", "echo", b"y"));
        let waits_for_room = client.send_wait(Envelope::new(2, "vm", "note", b"z"));
        let method = client.method(2, "vm", "echo").expect("a name");
        let waits_along = method.call_wait(b"w");
        let waits = async { tokio::join!(waits_for_slot, waits_for_room, waits_along) };
        let mut waits = std::pin::pin!(waits);
        let mut noop = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waits.as_mut().poll(&mut noop).is_pending());
        let expected = if is_removed {
            client.remove_peer(2);
            TransportError::UnknownPeer { peer: 2 }
        } else {
            client.shutdown();
            TransportError::ShuttingDown
        };
        let (slot, room, along) = soon(waits).await;
        assert_eq!(slot, Err(expected.clone()));
        assert_eq!(room, Err(expected.clone()));
        assert_eq!(along, Err(expected));
        assert!(matches!(
            soon(first).await,
            Err(TransportError::Disconnected { .. })
        ));
    }
}
