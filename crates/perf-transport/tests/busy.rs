//! A transport that keeps its runtime from sleeping.

#![cfg(not(perf_loom))]

mod support;

use perf_transport::{Config, Envelope, Router};
use support::{pair, soon, until};

fn tasks() -> usize {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks()
}

async fn tasks_of_a_pair(busy_poll: bool) -> usize {
    let mut config = Config::default();
    config.busy_poll = busy_poll;
    let router = Router::new().inline("vm", "echo", |message, reply| {
        reply.put_slice(message.payload());
        Ok(())
    });
    let (client, server) = pair(router, config).await;
    for number in 0..1000_u32 {
        let payload = number.to_le_bytes();
        let reply = soon(client.call(Envelope::new(2, "vm", "echo", &payload))).await;
        assert_eq!(reply.as_deref(), Ok(&payload[..]));
    }
    let tasks = tasks();
    client.shutdown();
    server.shutdown();
    tasks
}

/// Both sides are served by a runtime of one thread that never sleeps, and it may sleep again when the transports have
/// shut down: one task more for each, and none afterwards.
#[tokio::test]
async fn a_busy_transport_serves_and_ends() {
    let asleep = tasks_of_a_pair(false).await;
    until(|| tasks() == 0).await;
    let awake = tasks_of_a_pair(true).await;
    assert_eq!(awake, asleep + 2);
    until(|| tasks() == 0).await;
}
