//! Nodes that come, go and come again, for as long as a cluster lives: what a node holds does not grow, and callers go
//! on.

#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::{Config, Envelope, Router, Transport};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support::{PATIENCE, address, plain, raw, soon, until};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Nodes that are there at once.
const NODES: u64 = 12;
/// Rounds of connecting and ending, before what is held is noted and after.
const ROUNDS: (usize, usize) = (6, 24);
/// What pools and tables may still add after the first rounds.
const SLACK_BYTES: usize = 512 << 10;

/// One handler of each kind, which do not end by themselves where the peer can be waited for.
fn router() -> Router {
    Router::new()
        .inline("vm", "echo", |message, reply| {
            reply.put_slice(message.payload());
            Ok(())
        })
        .spawned("vm", "hangs", |_| std::future::pending())
        .with_cancellation("vm", "hangs")
        .streamed("vm", "store", |_, mut body| async move {
            let _ = body.collect(1 << 20).await;
            Ok(Bytes::new())
        })
        .exchange("vm", "talk", |_, mut body, mut answer| async move {
            while let Some(Ok(item)) = body.next_item().await {
                let _ = answer.send(item).await;
            }
            std::future::pending().await
        })
}

#[derive(Debug)]
struct Held {
    tasks: usize,
    files: usize,
    bytes: usize,
}

fn held() -> Held {
    let memory = ALLOCATOR.stats();
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    Held {
        tasks: Handle::current().metrics().num_alive_tasks(),
        files,
        bytes: memory
            .bytes_allocated
            .saturating_sub(memory.bytes_deallocated),
    }
}

/// Comes, begins something of each kind, and goes in the middle of all that.
async fn visit(node: u64, to: String, round: usize) {
    let client = plain(node).peer(2, to).start().await.expect("starts");
    let envelope = |method| Envelope::new(2, "vm", method, b"x").with_timeout(PATIENCE);
    soon(client.call(envelope("echo"))).await.expect("a reply");
    let hanging = client.call(envelope("hangs"));
    let mut body = client.stream(envelope("store")).expect("room");
    soon(body.send(vec![7; 100_000].into()))
        .await
        .expect("room");
    let (mut items, mut answer) = client.exchange(envelope("talk")).expect("room");
    soon(items.send(vec![7; 1000])).await.expect("room");
    soon(answer.next()).await.expect("an item").expect("sound");
    match (round + node as usize) % 4 {
        0 => drop(client),
        1 => {
            client.shutdown();
            assert!(soon(hanging).await.is_err());
            assert!(soon(answer.next()).await.expect("an end").is_err());
            assert!(soon(body.finish()).await.is_err());
        }
        2 => {
            drop((hanging, body, items, answer));
            assert!(soon(client.drain(PATIENCE)).await);
        }
        _ => {
            // Longer than the calls may take, which do not end: what is open is cut off.
            assert!(!soon(client.drain(Duration::from_millis(5))).await);
        }
    }
}

/// A peer that is cut off by the network: the connection is reset, in the middle of a frame.
async fn crash(node: u64, to: String) {
    let stream: TcpStream = raw::connect(node, &to).await;
    let half = &raw::define(0, "vm", "echo")[..20];
    let _ = stream.try_write(half);
    stream.set_zero_linger().expect("a socket");
}

async fn round(server: &Transport, number: usize) {
    let visits: Vec<_> = (10..10 + NODES)
        .map(|node| {
            let to = address(server);
            tokio::spawn(async move {
                visit(node, to.clone(), number).await;
                crash(node, to).await;
            })
        })
        .collect();
    for visit in visits {
        soon(visit).await.expect("no panics");
    }
    until(|| {
        let stats = server.stats();
        (stats.inbound, stats.handlers) == (0, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_holds_does_not_grow_with_those_that_come_and_go() {
    let server = plain(2).router(router()).listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    for number in 0..ROUNDS.0 {
        round(&server, number).await;
    }
    // The tasks of clients that are gone have one tick to see it.
    let own = 2;
    until(|| held().tasks <= own).await;
    let before = held();
    for number in 0..ROUNDS.1 {
        round(&server, number).await;
    }
    until(|| held().tasks <= own).await;
    let after = held();
    println!("{before:?}, then {after:?}");
    assert!(after.files <= before.files, "{before:?}, then {after:?}");
    let grown = after.bytes.saturating_sub(before.bytes);
    assert!(grown < SLACK_BYTES, "{before:?}, then {after:?}");
}

/// A server at an address that its predecessor may be about to leave.
async fn start(at: &str) -> Transport {
    soon(async {
        loop {
            match plain(2).router(router()).listen(at).start().await {
                Ok(server) => break server,
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    })
    .await
}

/// Many callers wait for few slots while the peer restarts under the same id and address, again and again. Each call
/// ends, and all callers go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_in_line_go_on_when_their_peer_restarts() {
    let mut config = Config::default();
    config.calls_max = 4;
    config.backoff = (Duration::from_millis(5), Duration::from_millis(20));
    let mut server = start("127.0.0.1:0").await;
    let at = address(&server);
    let client = plain(1).config(config).peer(2, at.clone());
    let client = client.start().await.expect("starts");
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..64)
        .map(|_| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            let answered = Arc::new(AtomicUsize::new(0));
            let counts = Arc::clone(&answered);
            let caller = tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let envelope = Envelope::new(2, "vm", "echo", b"x").with_timeout(PATIENCE);
                    match soon(client.call_wait(envelope)).await {
                        Ok(_) => drop(counts.fetch_add(1, Ordering::SeqCst)),
                        // Nobody is there for a while.
                        Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                    }
                }
            });
            (caller, answered)
        })
        .collect();
    for _ in 0..10 {
        let seen: Vec<_> = callers
            .iter()
            .map(|(_, answered)| answered.load(Ordering::SeqCst))
            .collect();
        let go_on = || {
            let mut pairs = callers.iter().zip(&seen);
            pairs.all(|((_, answered), seen)| answered.load(Ordering::SeqCst) > *seen)
        };
        until(go_on).await;
        server.shutdown();
        server = start(&at).await;
    }
    stop.store(true, Ordering::SeqCst);
    for (caller, _) in callers {
        soon(caller).await.expect("no panics");
    }
}
