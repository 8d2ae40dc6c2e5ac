//! What a group that sleeps takes in memory, on all its hosts and in their logs.
#![cfg(feature = "durable")]

mod common;

use bytes::Bytes;
use common::options;
use perf_raft::{
    ChannelNetwork, Command, GroupId, RaftHost, SegmentLog, StateMachine, StateMachineError,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const GROUPS: u64 = 200;
/// Of a node with its log's index, its part of the host and its handle. A third of the replicas lead.
const REPLICA_BYTES_MAX: usize = 18 * 1024;

fn live_bytes() -> usize {
    let stats = GLOBAL.stats();
    stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
}

/// Takes nothing itself.
struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        responses.extend(batch.iter().map(|_| Bytes::new()));
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        Ok(Bytes::new())
    }

    fn restore(&mut self, _: Bytes) -> Result<(), StateMachineError> {
        Ok(())
    }
}

async fn host(id: u64, network: &ChannelNetwork, folder: &Path) -> RaftHost {
    let mut options = options();
    options.sleep_after_ticks = 4;
    RaftHost::builder(id)
        .log_store(SegmentLog::open(folder).expect("it opens"))
        .transport(network.transport(id))
        .options(options)
        .start()
        .await
        .expect("it starts")
}

/// Begins the groups from `first` to `last`, and waits until all of them sleep: each has a leader then.
async fn sleep(hosts: &[RaftHost], first: u64, last: u64) {
    for group in first..=last {
        for host in hosts {
            let made = host.create_group(GroupId(group), Nothing, [1, 2, 3]);
            made.await.expect("a new group");
        }
    }
    let waited = tokio::time::timeout(Duration::from_secs(120), async {
        while hosts.iter().any(|host| host.groups_asleep() as u64 != last) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("all groups sleep");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleeping_replica_is_small() {
    let folders = [1, 2, 3].map(|id| (id, TempDir::new().expect("a folder")));
    let network = ChannelNetwork::new();
    let mut hosts = Vec::new();
    for (id, folder) in &folders {
        hosts.push(host(*id, &network, folder.path()).await);
    }
    sleep(&hosts, 1, 30).await;
    let before = live_bytes();
    sleep(&hosts, 31, 30 + GROUPS).await;
    let taken = live_bytes().saturating_sub(before) / (3 * GROUPS as usize);
    assert!(taken <= REPLICA_BYTES_MAX, "{taken} bytes for each replica");
    for host in &hosts {
        host.shutdown().await;
    }
}
