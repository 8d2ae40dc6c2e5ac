//! What a transport records.
#![cfg(all(feature = "metrics", not(perf_loom)))]

mod support;

use perf_metrics::node::{ConnectionState, Direction, NodeMetrics, Outcome, Transport as Kind};
use perf_metrics::{Registry, Value};
use perf_transport::{Envelope, Router};
use std::time::Duration;
use support::{address, plain, soon, until};

const CALLS: u64 = 50;
const PAYLOAD: [u8; 1000] = [7; 1000];

fn catalogue() -> &'static NodeMetrics {
    let metrics = NodeMetrics::new(&Registry::new()).expect("a new registry");
    Box::leak(Box::new(metrics))
}

fn bytes(metrics: &NodeMetrics, direction: Direction) -> u64 {
    match metrics.network_io[Kind::Tcp][direction].get() {
        Value::U64(bytes) => bytes,
        other => panic!("bytes are counted, not {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_their_bytes_are_recorded() {
    let (ours, theirs) = (catalogue(), catalogue());
    let router = Router::new().inline("vm", "echo", |message, reply| {
        reply.put_slice(message.payload());
        Ok(())
    });
    let server = plain(2).router(router).metrics(theirs);
    let server = soon(server.listen("127.0.0.1:0").start()).await;
    let server = server.expect("loopback can be listened on");
    let client = plain(1).metrics(ours).peer(2, address(&server));
    let client = soon(client.start()).await.expect("starts");
    for _ in 0..CALLS {
        let call = client.call(Envelope::new(2, "vm", "echo", &PAYLOAD[..]));
        soon(call).await.expect("it is answered");
    }
    assert_eq!(ours.pool_dials[Outcome::Success].get(), Value::U64(1));
    let used = &ours.pool_connections[ConnectionState::Used];
    assert_eq!(used.get(), Value::I64(1));
    let least = CALLS * PAYLOAD.len() as u64;
    // While it is open, at each tick.
    until(|| bytes(ours, Direction::Transmit) > least).await;
    until(|| bytes(ours, Direction::Receive) > least).await;
    assert!(soon(client.drain(Duration::from_secs(5))).await);
    // What came after the last tick, at its end.
    until(|| used.get() == Value::I64(0)).await;
    until(|| bytes(theirs, Direction::Receive) == bytes(ours, Direction::Transmit)).await;
    server.shutdown();
}
