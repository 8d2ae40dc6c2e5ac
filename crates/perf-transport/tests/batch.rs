//! Batches: the messages of one sender, queued together.
#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::{Batch, Config, Payload, Router, Transport, TransportError};
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
    assert_eq!((batch.len(), batch.bytes()), (3, 3 * 16 + 1 + 2 + 3));
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
