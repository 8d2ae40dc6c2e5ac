//! Batches: the messages of one sender, queued together.
#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::{
    Batch, Config, Message, Payload, Rejection, Router, Transport, TransportError,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{PATIENCE, address, pair, plain, soon, until};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// What a handler saw: place on the connection, and bytes.
type Seen = UnboundedReceiver<(u64, Vec<u8>)>;

/// One handler that is given the message, one that looks at it, one that keeps what it looked at.
fn log() -> (Router, Seen) {
    let (sender, seen) = mpsc::unbounded_channel();
    let (refer, share) = (sender.clone(), sender.clone());
    let router = Router::new()
        .one_way("audit", "log", move |message| {
            assert_eq!((message.service(), message.method()), ("audit", "log"));
            let _ = sender.send((message.origin().sequence, message.payload().to_vec()));
        })
        .one_way_ref("audit", "look", move |message| {
            assert_eq!((message.service(), message.method()), ("audit", "look"));
            assert_eq!((message.from(), message.request_id()), (1, 0));
            let _ = refer.send((message.origin().sequence, message.payload().to_vec()));
        })
        .one_way_ref("audit", "keep", move |message| {
            let kept = message.shared_payload();
            let _ = share.send((message.origin().sequence, kept.to_vec()));
        });
    (router, seen)
}

fn payload(number: usize) -> Vec<u8> {
    // All sizes around the bounds at which a payload is copied, pooled or shared; some blocks are filled by few.
    let length = match number % 50 {
        0 => 0,
        10 => 1025,
        20 => 4097,
        30 => 20_000,
        40 => 70_000,
        small => small,
    };
    (0..length).map(|place| (place + number) as u8).collect()
}

async fn feed(batch: &mut Batch, number: usize) {
    let bytes = payload(number);
    let shared = Bytes::from(bytes.clone());
    let fed = match number % 3 {
        0 => batch.feed(&bytes[..]).await,
        1 => batch.feed(shared).await,
        _ => {
            let middle = bytes.len() / 2;
            let parts = [shared.slice(middle..)];
            let head = &bytes[..middle];
            let parts = &parts;
            batch.feed(Payload::Parts { head, parts }).await
        }
    };
    assert_eq!(fed, Ok(()), "message {number}");
}

async fn expect(seen: &mut Seen, sequence: usize, number: usize) {
    let (at, bytes) = soon(seen.recv()).await.expect("a message");
    assert_eq!(at, sequence as u64, "message {number}");
    assert!(bytes == payload(number), "message {number}");
}

async fn all_arrive(config: Config) {
    let (router, mut seen) = log();
    let (client, _server) = pair(router, config).await;
    let mut sequence = 0;
    for method in ["log", "look", "keep"] {
        let log = client.method(2, "audit", method).expect("a known peer");
        let mut batch = log.batch();
        for number in 0..1000 {
            feed(&mut batch, number).await;
            if number % 170 == 0 {
                soon(batch.flush()).await.expect("queued");
                assert!(batch.is_empty());
                // What is sent otherwise comes behind what was flushed.
                soon(log.send_wait(&payload(7)[..])).await.expect("sent");
            }
        }
        soon(batch.flush()).await.expect("queued");
        for number in 0..1000 {
            sequence += 1;
            expect(&mut seen, sequence, number).await;
            if number % 170 == 0 {
                sequence += 1;
                expect(&mut seen, sequence, 7).await;
            }
        }
    }
    assert!(seen.try_recv().is_err());
    let sent = client.peer_stats(2).expect("known").bulk.messages_sent;
    assert_eq!(sent, sequence as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_batch_arrive_as_others_do() {
    all_arrive(Config::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_checksums_and_a_queue_of_three_messages() {
    let mut config = Config::default();
    config.checksum = true;
    config.queue_frames = [3; 4];
    all_arrive(config).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_before_it_is_flushed_and_never_what_was_dropped() {
    let (router, mut seen) = log();
    let (client, _server) = pair(router, Config::default()).await;
    let log = client.method(2, "audit", "log").expect("a known peer");
    let mut batch = log.batch();
    soon(batch.flush()).await.expect("nothing to do");
    let mut dropped = log.batch();
    for number in 1..4 {
        feed(&mut batch, number).await;
        feed(&mut dropped, number).await;
    }
    assert_eq!((batch.len(), batch.bytes()), (3, 58));
    drop(dropped);
    batch.clear();
    assert_eq!((batch.len(), batch.bytes()), (0, 0));
    feed(&mut batch, 9).await;
    soon(log.send_wait(&payload(8)[..])).await.expect("sent");
    expect(&mut seen, 1, 8).await;
    soon(batch.flush()).await.expect("queued");
    expect(&mut seen, 2, 9).await;
    assert!(seen.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_long_is_refused_alone() {
    let (router, mut seen) = log();
    let (client, _server) = pair(router, Config::default()).await;
    let log = client.method(2, "audit", "log").expect("a known peer");
    let mut batch = log.batch();
    feed(&mut batch, 1).await;
    let bytes_max = Config::default().frame_bytes_max as usize;
    let bytes = bytes_max + 1;
    let refused = batch.feed(&vec![0; bytes][..]).await;
    assert_eq!(refused, Err(TransportError::TooLarge { bytes, bytes_max }));
    let longest = vec![7; bytes_max];
    soon(batch.feed(&longest[..])).await.expect("fits");
    soon(batch.flush()).await.expect("queued");
    expect(&mut seen, 1, 1).await;
    let (_, arrived) = soon(seen.recv()).await.expect("a message");
    assert!(arrived == longest);
}

/// Handlers in tasks of their own that count how many of them run.
#[derive(Default)]
struct Running {
    now: AtomicUsize,
    most: AtomicUsize,
    done: AtomicUsize,
}

impl Running {
    async fn handle(self: Arc<Self>, message: Message) -> Result<Bytes, Rejection> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        assert_eq!(message.payload().len(), 1);
        self.done.fetch_add(1, Ordering::SeqCst);
        Ok(Bytes::new())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_starts_no_more_handlers_than_may_run() {
    let running = Arc::new(Running::default());
    let handler = Arc::clone(&running);
    let (sender, mut seen) = mpsc::unbounded_channel();
    let router = Router::new()
        .spawned("audit", "store", move |message| {
            Arc::clone(&handler).handle(message)
        })
        .inline("audit", "answer", move |message, _reply| {
            let _ = sender.send(message.payload().to_vec());
            Ok(())
        });
    let mut config = Config::default();
    config.handlers_max = 3;
    let (client, server) = pair(router, config).await;
    let store = client.method(2, "audit", "store").expect("a known peer");
    let mut batch = store.batch();
    for _ in 0..500 {
        batch.push(b"x").expect("there is room");
    }
    soon(batch.flush()).await.expect("queued");
    // What comes behind a batch waits for it.
    let behind = soon(store.call(b"x")).await;
    assert_eq!(behind, Ok(Bytes::new()));
    assert!(running.done.load(Ordering::SeqCst) > 500 - 3);
    for _ in 0..500 {
        batch.push(b"x").expect("there is room");
    }
    soon(batch.flush()).await.expect("queued");
    until(|| running.done.load(Ordering::SeqCst) > 510).await;
    // A node that leaves in good order does what has arrived.
    assert!(server.drain(PATIENCE).await);
    assert_eq!(running.done.load(Ordering::SeqCst), 1001);
    let most = running.most.load(Ordering::SeqCst);
    assert!((2..=3).contains(&most), "{most} handlers at once");
    assert!(seen.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_handlers_get_the_messages_one_by_one() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let all = sender.clone();
    let router = Router::new()
        .inline("audit", "answer", move |message, reply| {
            reply.put_slice(b"nobody waits for this");
            let _ = sender.send((message.method().to_owned(), message.payload().to_vec()));
            Ok(())
        })
        .one_way("all", "*", move |message| {
            let _ = all.send((message.method().to_owned(), message.payload().to_vec()));
        });
    let (client, server) = pair(router, Config::default()).await;
    for (service, name) in [("audit", "answer"), ("all", "others"), ("no", "handler")] {
        let method = client.method(2, service, name).expect("a known peer");
        let mut batch = method.batch();
        for payload in [&b"a"[..], b"", b"bc"] {
            batch.push(payload).expect("there is room");
        }
        soon(batch.flush()).await.expect("queued");
    }
    for name in ["answer", "others"] {
        for payload in [&b"a"[..], b"", b"bc"] {
            let seen = soon(seen.recv()).await.expect("a message");
            assert_eq!((seen.0.as_str(), &seen.1[..]), (name, payload));
        }
    }
    until(|| server.stats().unhandled == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_full_says_so() {
    let (router, mut seen) = log();
    let (client, _server) = pair(router, Config::default()).await;
    let log = client.method(2, "audit", "log").expect("a known peer");
    let mut batch = log.batch();
    let mut pushed = 0;
    while batch.push(&payload(41)[..]).is_ok() {
        pushed += 1;
    }
    let full = batch.push(&payload(41)[..]);
    assert_eq!(full, Err(TransportError::QueueFull { peer: 2 }));
    assert_eq!(batch.len(), pushed);
    assert!((28 * 1024..40 * 1024).contains(&batch.bytes()), "{batch:?}");
    soon(batch.flush()).await.expect("queued");
    for sequence in 1..=pushed {
        expect(&mut seen, sequence, 41).await;
    }
}

/// Somebody who accepts connections and says nothing: what is sent there waits in the queue.
async fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

async fn over(client: &Transport) {
    let stats = || client.peer_stats(2).expect("known").bulk;
    until(|| stats().queued_frames == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_queued_is_still_there() {
    let (router, mut seen) = log();
    let server = plain(2).router(router).listen("127.0.0.1:0");
    let server = server.start().await.expect("loopback can be listened on");
    let (_listener, nowhere) = silent().await;
    let mut config = Config::default();
    config.queue_frames = [5; 4];
    let client = plain(1).config(config).peer(2, nowhere);
    let client = client.start().await.expect("starts");
    let log = client.method(2, "audit", "log").expect("a known peer");
    let mut first = log.batch();
    for number in 0..5 {
        feed(&mut first, number).await;
    }
    soon(first.flush()).await.expect("there is room for five");
    let mut second = log.batch();
    for number in [11, 12, 13] {
        feed(&mut second, number).await;
    }
    // No room: it waits, and can be given up.
    let waited = tokio::time::timeout(Duration::from_millis(50), second.flush()).await;
    assert!(waited.is_err(), "{waited:?}");
    assert_eq!(second.len(), 3);
    // The peer never answers, so the queue is lost and those who wait are told.
    let failed = soon(second.flush()).await;
    let is_unsent = failed.as_ref().is_err_and(TransportError::is_unsent);
    assert!(is_unsent, "{failed:?}");
    assert_eq!(second.len(), 3);
    over(&client).await;

    client.add_peer(2, address(&server));
    let begin = std::time::Instant::now();
    while second.flush().await.is_err() {
        assert!(begin.elapsed() < PATIENCE, "the peer is never tried again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for (sequence, number) in [(1, 11), (2, 12), (3, 13)] {
        expect(&mut seen, sequence, number).await;
    }
    assert!(seen.try_recv().is_err());

    // Other peers came: the method looks its peer up anew.
    client.add_peer(3, "127.0.0.1:9");
    feed(&mut second, 14).await;
    soon(second.flush()).await.expect("queued");
    expect(&mut seen, 4, 14).await;
    assert!(client.remove_peer(2));
    feed(&mut second, 15).await;
    let gone = soon(second.flush()).await;
    assert_eq!(gone, Err(TransportError::UnknownPeer { peer: 2 }));
    assert_eq!(second.len(), 1);
    client.shutdown();
    assert!(soon(second.flush()).await.is_err());
}
