//! Answers that come item by item, alone and with items the other way.

#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::proto::Kind;
use perf_transport::{
    CloseReason, Config, Envelope, Rejection, RejectionCode, Router, TransportError,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support::{pair, plain, raw, soon, until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::Notify;

const WINDOW_BYTES: u32 = 10_000;

fn config() -> Config {
    let mut config = Config::default();
    config.stream_window_bytes = WINDOW_BYTES;
    config
}

/// An item that knows its number, of a length that differs.
fn item(number: usize) -> Vec<u8> {
    let length = match number % 7 {
        0 => 0,
        1 => 70_000,
        2 => 1024,
        3 => 1025,
        length => length,
    };
    vec![number as u8; length]
}

/// Set when it is dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_arrive_as_they_were_sent() {
    let router = Router::new().watch("vm", "items", |message, mut answer| async move {
        for number in 0..message.payload().len() {
            answer.send(item(number)).await.expect("it is read");
        }
        Ok(())
    });
    let (client, _server) = pair(router, config()).await;
    for count in [0, 1, 200] {
        let envelope = Envelope::new(2, "vm", "items", vec![0; count]);
        let mut answer = client.watch(envelope).expect("room");
        for number in 0..count {
            let found = soon(answer.next()).await.expect("an item");
            assert!(found.expect("sound") == item(number), "item {number}");
        }
        assert_eq!(soon(answer.next()).await, None);
        assert_eq!(soon(answer.next()).await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_goes_both_ways_at_once() {
    let router = Router::new().exchange("vm", "echo", |_, mut body, mut answer| async move {
        while let Some(item) = body.next_item().await {
            let item = item.map_err(|_| Rejection::new(RejectionCode::Invalid, "cut off"))?;
            answer.send(item).await.expect("it is read");
        }
        Ok(())
    });
    let (client, _server) = pair(router, config()).await;
    let (mut sender, mut answer) = client
        .exchange(Envelope::new(2, "vm", "echo", b""))
        .expect("room");
    // One at a time first: neither side waits for the other's end.
    for number in 0..20 {
        soon(sender.send(item(number))).await.expect("it is read");
        let found = soon(answer.next()).await.expect("an item");
        assert!(found.expect("sound") == item(number));
    }
    let sending = tokio::spawn(async move {
        for number in 20..300 {
            // Impatient: what was begun must go on with the next.
            let sent = tokio::time::timeout(Duration::ZERO, sender.send(item(number)));
            if sent.await.is_err() {
                sender.flush().await.expect("it is read");
            }
        }
        sender.finish().await
    });
    for number in 20..300 {
        let found = soon(answer.next()).await.expect("an item");
        assert!(found.expect("sound") == item(number), "item {number}");
    }
    assert_eq!(soon(answer.next()).await, None);
    soon(sending).await.expect("no panics").expect("it is read");
    // A sender that is dropped cuts its side off.
    let (sender, mut answer) = client
        .exchange(Envelope::new(2, "vm", "echo", b""))
        .expect("room");
    drop(sender);
    let end = soon(answer.next()).await.expect("an error");
    let error = end.expect_err("it is cut off");
    assert!(error.to_string().contains("cut off"), "{error}");
}

/// A reader that does not read holds up its own handler, and costs no more than its window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_makes_its_handler_wait() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let router = Router::new()
        .watch("vm", "endless", move |_, mut answer| {
            let count = Arc::clone(&count);
            async move {
                while answer.send(vec![7; 996]).await.is_ok() {
                    count.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            }
        })
        .inline("vm", "echo", |_, _| Ok(()));
    let (client, _server) = pair(router, config()).await;
    let mut answer = client
        .watch(Envelope::new(2, "vm", "endless", b""))
        .expect("room");
    until(|| sent.load(Ordering::SeqCst) == 10).await;
    for _ in 0..20 {
        soon(client.call(Envelope::new(2, "vm", "echo", b"")))
            .await
            .expect("a reply");
    }
    assert_eq!(sent.load(Ordering::SeqCst), 10);
    for _ in 0..100 {
        soon(answer.next()).await.expect("an item").expect("sound");
    }
    until(|| sent.load(Ordering::SeqCst) >= 100).await;
    // A window behind what was read, and another one that was read as one chunk with the last item.
    assert!(sent.load(Ordering::SeqCst) <= 120);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_whose_answer_nobody_reads_is_dropped() {
    let dropped = Arc::new(AtomicBool::new(false));
    let guard = Arc::clone(&dropped);
    let router = Router::new().watch("vm", "wait", move |_, mut answer| {
        let guard = Dropped(Arc::clone(&guard));
        async move {
            answer.send(b"begun".to_vec()).await.expect("it is read");
            std::future::pending::<()>().await;
            drop(guard);
            Ok(())
        }
    });
    let (client, server) = pair(router, config()).await;
    let watch = |timeout| {
        let envelope = Envelope::new(2, "vm", "wait", b"").with_timeout(timeout);
        client.watch(envelope).expect("room")
    };
    let mut answer = watch(support::PATIENCE);
    let first = soon(answer.next()).await.expect("an item");
    assert_eq!(first.as_deref(), Ok(&b"begun"[..]));
    drop(answer);
    until(|| dropped.load(Ordering::SeqCst)).await;
    until(|| server.stats().handlers == 0).await;
    // The same at the deadline, of which the reader learns.
    let mut answer = watch(Duration::from_millis(100));
    soon(answer.next()).await.expect("an item").expect("sound");
    let end = soon(answer.next()).await;
    assert_eq!(end, Some(Err(TransportError::Timeout { peer: 2 })));
    assert_eq!(soon(answer.next()).await, None);
    until(|| server.stats().handlers == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_item_is_lost_by_an_error_behind_it() {
    let lose = Arc::new(Notify::new());
    let waits = Arc::clone(&lose);
    let router = Router::new()
        .watch("vm", "no", |_, mut answer| async move {
            for number in 0..50 {
                answer.send(vec![number; 100]).await.expect("it is read");
            }
            Err(Rejection::new(RejectionCode::Busy, "no more"))
        })
        .watch("vm", "cut", move |_, mut answer| {
            let waits = Arc::clone(&waits);
            async move {
                for number in 0..50 {
                    answer.send(vec![number; 100]).await.expect("it is read");
                }
                waits.notified().await;
                Ok(())
            }
        });
    let (client, server) = pair(router, config()).await;
    let all = async |answer: &mut perf_transport::Answer| {
        for number in 0..50 {
            let found = soon(answer.next()).await.expect("an item");
            assert_eq!(found.expect("sound")[..], [number; 100]);
        }
    };
    let watch = |method| {
        client
            .watch(Envelope::new(2, "vm", method, b""))
            .expect("room")
    };
    let mut answer = watch("no");
    // All of it is there before the first is read.
    until(|| server.stats().handlers == 0 && client.connections()[1].calls_in_flight == 1).await;
    all(&mut answer).await;
    let end = soon(answer.next()).await.expect("an error");
    let code = RejectionCode::Busy;
    assert!(matches!(end, Err(TransportError::PeerRejected { code: found, .. }) if found == code));
    let read = || client.peer_stats(2).expect("known").bulk.frames_received;
    // Looked at first: pings would have to stand for items that came before it, two a second.
    let before = read();
    let mut answer = watch("cut");
    until(|| read() >= before + 50).await;
    server.shutdown();
    until(|| client.stats().outbound == 0).await;
    all(&mut answer).await;
    let end = soon(answer.next()).await.expect("an error");
    let Err(TransportError::Disconnected { cause, .. }) = end else {
        panic!("{end:?}");
    };
    assert!(cause.is_some());
    drop(lose);
    let (client, _server) = {
        let router = Router::new().watch("vm", "panic", |_, mut answer| async move {
            for number in 0..50 {
                answer.send(vec![number; 100]).await.expect("it is read");
            }
            panic!("on purpose")
        });
        pair(router, config()).await
    };
    let mut answer = client
        .watch(Envelope::new(2, "vm", "panic", b""))
        .expect("room");
    all(&mut answer).await;
    let end = soon(answer.next()).await.expect("an error");
    let code = RejectionCode::Internal;
    assert!(matches!(end, Err(TransportError::PeerRejected { code: found, .. }) if found == code));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_their_handler_does_not_answer_so_are_refused() {
    let router = Router::new()
        .watch("vm", "watch", |_, _| async { Ok(()) })
        .exchange("vm", "exchange", |_, _, _| async { Ok(()) })
        .streamed("vm", "streamed", |_, _| async { Ok(Bytes::new()) })
        .spawned("vm", "spawned", |_| async { Ok(Bytes::new()) });
    let (client, _server) = pair(router, config()).await;
    let not_found = |error: &TransportError| {
        let code = RejectionCode::NotFound;
        matches!(error, TransportError::PeerRejected { code: found, .. } if *found == code)
    };
    for method in ["watch", "exchange", "streamed", "spawned"] {
        let envelope = Envelope::new(2, "vm", method, b"");
        let called = soon(client.call(envelope.clone())).await.err();
        assert_eq!(called.as_ref().is_some_and(not_found), method != "spawned");
        let streamed = client.stream(envelope.clone()).expect("room");
        let streamed = soon(streamed.finish()).await.err();
        assert_eq!(
            streamed.as_ref().is_some_and(not_found),
            method != "streamed"
        );
        let mut watched = client.watch(envelope.clone()).expect("room");
        let watched = soon(watched.next()).await.and_then(Result::err);
        assert_eq!(watched.as_ref().is_some_and(not_found), method != "watch");
        let (sender, mut exchanged) = client.exchange(envelope).expect("room");
        let exchanged = soon(exchanged.next()).await.and_then(Result::err);
        assert_eq!(
            exchanged.as_ref().is_some_and(not_found),
            method != "exchange"
        );
        drop(sender);
    }
    // All of them have ended, and leave their places to others.
    let endless = |_| {
        client
            .watch(Envelope::new(2, "vm", "watch", b""))
            .expect("room")
    };
    let open: Vec<_> = (0..8).map(endless).collect();
    let full = client.watch(Envelope::new(2, "vm", "watch", b"")).err();
    let streams_max = 8;
    assert_eq!(
        full,
        Some(TransportError::TooManyStreams {
            peer: 2,
            streams_max
        })
    );
    drop(open);
    assert!(client.watch(Envelope::new(2, "vm", "watch", b"")).is_ok());
}

/// A peer of an earlier version is not asked what it does not know, and loses nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_know_watches_is_not_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let at = listener.local_addr().expect("bound").to_string();
    let client = plain(1).peer(2, at).start().await.expect("starts");
    let envelope = Envelope::new(2, "vm", "any", b"x");
    let mut early = client.watch(envelope.clone()).expect("not known yet");
    client.send(envelope.clone()).expect("room");
    let (mut stream, _) = soon(listener.accept()).await.expect("it dials");
    raw::welcome(&mut stream).await;
    let unsupported = TransportError::Unsupported { peer: 2 };
    assert!(unsupported.is_unsent());
    let end = soon(early.next()).await;
    assert_eq!(end, Some(Err(unsupported.clone())));
    assert_eq!(
        client.watch(envelope.clone()).err(),
        Some(unsupported.clone())
    );
    assert_eq!(client.exchange(envelope).err(), Some(unsupported));
    let mut kinds = Vec::new();
    while kinds.last() != Some(&(Kind::OneWay as u8)) {
        kinds.push(soon(raw::read(&mut stream)).await.expect("frames").0);
    }
    assert!(!kinds.contains(&(Kind::Watch as u8)), "{kinds:?}");
}

/// A peer that sends more of an answer than it may is cut off; an answer that nobody reads is no fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_overruns_the_window_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let at = listener.local_addr().expect("bound").to_string();
    let client = plain(1).config(config()).peer(2, at);
    let client = client.start().await.expect("starts");
    let mut answer = client
        .watch(Envelope::new(2, "vm", "any", b"x"))
        .expect("room");
    let (mut stream, _) = soon(listener.accept()).await.expect("it dials");
    raw::welcome_with(&mut stream, perf_transport::proto::FEATURE_WATCH).await;
    let id = loop {
        let (kind, id, _) = soon(raw::read(&mut stream)).await.expect("frames");
        if kind == Kind::Watch as u8 {
            break id;
        }
    };
    let chunk = |id, bytes: usize| raw::frame(Kind::StreamChunk, (0, id), &vec![0; bytes]);
    let mut wire = chunk(id ^ 0xFF00, 50_000);
    // One byte more than may be under way.
    wire.extend(chunk(id, WINDOW_BYTES as usize + 1));
    stream.write_all(&wire).await.expect("it reads");
    let end = soon(answer.next()).await.expect("an error");
    let Err(TransportError::Disconnected { cause, .. }) = end else {
        panic!("{end:?}");
    };
    let cause = cause.expect("why");
    assert!(matches!(*cause, CloseReason::Protocol(_)), "{cause:?}");
}

/// A waker that runs its task at once, in the thread that wakes it, as some executors do. The task wants nothing more
/// then.
struct AtOnce(parking_lot::Mutex<Option<perf_transport::Answer>>);

impl std::task::Wake for AtOnce {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().take());
    }
}

/// The reader of an answer runs in the connection's task when the answer ends, and drops it there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_may_be_dropped_by_what_wakes_its_reader() {
    for ends in ["returns", "waits"] {
        let router = Router::new().watch("vm", "events", |message, _answer| async move {
            if message.payload()[..] == b"waits"[..] {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(())
        });
        let router = router.inline("vm", "echo", |_, _| Ok(()));
        let (client, server) = pair(router, config()).await;
        let mut answer = client
            .watch(Envelope::new(2, "vm", "events", ends.as_bytes()))
            .expect("room");
        let reader = Arc::new(AtOnce(parking_lot::Mutex::new(None)));
        let waker = std::task::Waker::from(Arc::clone(&reader));
        let polled = answer.poll_next(&mut std::task::Context::from_waker(&waker));
        assert!(polled.is_pending());
        *reader.0.lock() = Some(answer);
        // The connection is up, and its task lives.
        soon(client.call(Envelope::new(2, "vm", "echo", b"")))
            .await
            .expect("a reply");
        if ends == "waits" {
            server.shutdown();
        }
        until(|| reader.0.lock().is_none()).await;
        let call = client.call(Envelope::new(2, "vm", "echo", b""));
        assert_eq!(soon(call).await.is_ok(), ends == "returns");
    }
}
