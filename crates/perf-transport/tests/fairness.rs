//! One peer or one method does not take a node away from the others.

#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::proto::Kind;
use perf_transport::{
    Config, Envelope, Priority, RejectionCode, Router, Transport, TransportError,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{PATIENCE, address, pair, plain, raw, soon, until};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

/// Handlers that wait until the gate opens, and count how many of them run and ran at once.
#[derive(Clone)]
struct Hung {
    gate: Arc<Semaphore>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Hung {
    fn new() -> Self {
        Self {
            gate: Arc::new(Semaphore::new(0)),
            running: Arc::default(),
            most: Arc::default(),
        }
    }

    fn serve(&self, router: Router, method: &str) -> Router {
        let hung = self.clone();
        router.spawned("vm", method, move |message| {
            let hung = hung.clone();
            async move {
                let running = hung.running.fetch_add(1, Ordering::SeqCst) + 1;
                hung.most.fetch_max(running, Ordering::SeqCst);
                let opened = hung.gate.acquire().await.map(|permit| permit.forget());
                hung.running.fetch_sub(1, Ordering::SeqCst);
                assert!(opened.is_ok());
                Ok(message.into_payload())
            }
        })
    }

    fn open(&self, handlers: usize) {
        self.gate.add_permits(handlers);
    }

    fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }
}

fn patient() -> Config {
    let mut config = Config::default();
    config.heartbeat_timeout = PATIENCE;
    config.call_timeout = PATIENCE;
    config
}

/// All of these arrive in a few reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_more_handlers_run_than_may() {
    let hung = Hung::new();
    let router = hung.serve(hung.serve(Router::new(), "one"), "two");
    let mut config = patient();
    config.handlers_max = 100;
    let server = plain(2).router(router).config(config).listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let mut peer = raw::connect(7, &address(&server)).await;
    let mut bytes = raw::define(0, "vm", "one");
    bytes.extend(raw::define(1, "vm", "two"));
    for number in 0..4000 {
        let kind = [Kind::Request, Kind::OneWay][usize::from(number % 3 == 0)];
        bytes.extend(raw::frame(kind, ((number % 2) as u16, number), b"x"));
    }
    peer.write_all(&bytes).await.expect("it reads");
    until(|| hung.running() == 100).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    hung.open(4000);
    until(|| hung.running() == 0 && server.stats().handlers == 0).await;
    assert_eq!(hung.most.load(Ordering::SeqCst), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_one_method_that_hang_leave_room_for_the_others() {
    let hung = Hung::new();
    let router = hung
        .serve(Router::new(), "hang")
        .spawned(
            "vm",
            "echo",
            |message| async move { Ok(message.into_payload()) },
        );
    let (client, server) = pair(router, patient()).await;
    let hang = |_| client.call(Envelope::new(2, "vm", "hang", b"x"));
    let calls: Vec<_> = (0..1024).map(hang).collect();
    until(|| hung.running() == 768).await;
    // Nobody waits for any of them: those that run go on, those that did not begin never do.
    drop(calls);
    for _ in 0..10 {
        let echoed = soon(client.call(Envelope::new(2, "vm", "echo", b"y"))).await;
        assert_eq!(echoed.as_deref(), Ok(&b"y"[..]));
    }
    assert_eq!((hung.running(), server.stats().handlers), (768, 768));
    hung.open(1024);
    until(|| server.stats().handlers == 0).await;
    assert_eq!(hung.gate.available_permits(), 1024 - 768);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_has_the_limit_that_it_was_given_and_says_when_it_is_reached() {
    let hung = Hung::new();
    let router = hung.serve(Router::new(), "hang").with_limit("vm", "*", 2);
    let mut config = patient();
    config.calls_max = 8;
    let server = plain(2).router(router).config(config).listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let client = plain(1).config(patient()).peer(2, address(&server));
    let client = client.start().await.expect("starts");
    let hang = |_| client.call(Envelope::new(2, "vm", "hang", b"x"));
    let mut calls: Vec<_> = (0..12).map(hang).collect();
    // Two run and eight wait.
    for late in calls.split_off(10) {
        let outcome = soon(late).await;
        let is_busy = matches!(
            &outcome,
            Err(TransportError::PeerRejected {
                code: RejectionCode::Busy,
                ..
            })
        );
        assert!(is_busy, "{outcome:?}");
    }
    until(|| hung.running() == 2).await;
    assert_eq!(server.stats().handlers, 2);
    hung.open(10);
    for call in calls {
        assert_eq!(soon(call).await.as_deref(), Ok(&b"x"[..]));
    }
    assert_eq!(hung.most.load(Ordering::SeqCst), 2);
}

/// The order in which a method's requests begin is that in which they were sent, also of those that had to wait.
// One thread, on which tasks begin in the order in which they are spawned.
#[tokio::test]
async fn held_messages_keep_their_order() {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let router = Router::new()
        .spawned("vm", "one", move |message| {
            let _ = sender.send(message.request_id());
            async move {
                tokio::task::yield_now().await;
                Ok(Bytes::new())
            }
        })
        .with_limit("vm", "one", 3);
    let (client, _server) = pair(router, patient()).await;
    for number in 0..500 {
        let envelope = Envelope::new(2, "vm", "one", b"x").with_request_id(number);
        soon(client.send_wait(envelope)).await.expect("queued");
    }
    for number in 0..500 {
        assert_eq!(soon(receiver.recv()).await, Some(number));
    }
}

async fn keep_calling(client: Transport, method: &'static str, count: Arc<AtomicUsize>) {
    while client
        .call(Envelope::new(2, "vm", method, b"x"))
        .await
        .is_ok()
    {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Replies of inline handlers have the priority of their method, as those of others have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inline_replies_do_not_starve_more_urgent_ones() {
    let big = Bytes::from(vec![7; 64 << 10]);
    for (urgent, other) in [
        (Priority::Normal, Priority::Low),
        (Priority::Critical, Priority::High),
    ] {
        let big = big.clone();
        let router = Router::new()
            .inline("vm", "flood", move |_, reply| {
                reply.set(big.clone());
                Ok(())
            })
            .spawned("vm", "urgent", |message| async move {
                Ok(message.into_payload())
            })
            .with_priority("vm", "flood", other)
            .with_priority("vm", "urgent", urgent);
        let server = plain(2).router(router.clone()).listen("127.0.0.1:0");
        let server = server.start().await.expect("starts");
        let client = plain(1).router(router).peer(2, address(&server));
        let client = client.start().await.expect("starts");
        let flooded = Arc::new(AtomicUsize::new(0));
        let floods: Vec<_> = (0..256)
            .map(|_| tokio::spawn(keep_calling(client.clone(), "flood", Arc::clone(&flooded))))
            .collect();
        until(|| flooded.load(Ordering::Relaxed) > 500).await;
        for _ in 0..10 {
            let reply = client.call(Envelope::new(2, "vm", "urgent", b"now"));
            assert_eq!(soon(reply).await.as_deref(), Ok(&b"now"[..]), "{urgent:?}");
        }
        floods.iter().for_each(|flood| flood.abort());
    }
}
