//! A call allocates nothing in steady state, on either side.

#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::{Config, Envelope, Payload, Router, Transport};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use support::{pair, soon};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

async fn calls(client: &Transport, payload: &Bytes, count: u64) {
    for _ in 0..count {
        let borrowed = Payload::Borrowed(payload);
        let reply = soon(client.call(Envelope::new(2, "vm", "echo", borrowed))).await;
        assert_eq!(reply.map(|reply| reply.len()), Ok(payload.len()));
    }
}

/// One test, since the counter is the process's. It counts both ends and the runtime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_allocate_next_to_nothing() {
    let router = Router::new().inline("vm", "echo", |message, reply| {
        reply.put_slice(message.payload());
        Ok(())
    });
    let (client, _server) = pair(router, Config::default()).await;
    for (bytes, per_call_max) in [(64, 0.01), (1024, 0.01), (65_536, 0.1)] {
        let payload = Bytes::from(vec![7; bytes]);
        calls(&client, &payload, 2000).await;
        let region = Region::new(ALLOCATOR);
        calls(&client, &payload, 5000).await;
        let change = region.change();
        let per_call = (change.allocations + change.reallocations) as f64 / 5000.0;
        assert!(
            per_call <= per_call_max,
            "{bytes} bytes: {per_call} allocations per call"
        );
    }
}
