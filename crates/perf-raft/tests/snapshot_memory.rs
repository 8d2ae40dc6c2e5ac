//! What a snapshot takes in memory, made, sent, received and restored in one process: the windows, whatever its size.
#![cfg(feature = "durable")]

mod common;

use bytes::Bytes;
use perf_raft::{
    ChannelNetwork, Command, Machine, MembershipChange, RaftHandle, RaftNode, SegmentLog,
    StateMachineError, StreamedStateMachine,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const STATE_BYTES: u64 = 96 * 1024 * 1024;
/// Windows of 2 MiB on each end, as a piece that is read and as frames under way, and what the logs and the runtime
/// take.
const LIVE_BYTES_MAX: usize = 16 * 1024 * 1024;

fn live_bytes() -> usize {
    let stats = GLOBAL.stats();
    stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
}

/// A state that is made as it is read, and checked as it is restored.
#[derive(Clone, Default)]
struct Large {
    bytes: u64,
    restored: Arc<AtomicU64>,
}

impl StreamedStateMachine for Large {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        self.bytes = STATE_BYTES;
        responses.extend(batch.iter().map(|_| Bytes::new()));
    }

    fn snapshot(&mut self) -> Result<Box<dyn Read + Send>, StateMachineError> {
        Ok(Box::new(std::io::repeat(7).take(self.bytes)))
    }

    fn restore(&mut self, snapshot: &mut dyn Read, _: u64) -> Result<(), StateMachineError> {
        let mut piece = vec![0; 64 * 1024];
        self.bytes = 0;
        loop {
            let read = snapshot.read(&mut piece)?;
            if read == 0 {
                self.restored.store(self.bytes, Ordering::SeqCst);
                return Ok(());
            }
            assert!(piece[..read].iter().all(|byte| *byte == 7));
            self.bytes += read as u64;
        }
    }
}

async fn start(
    network: &ChannelNetwork,
    folder: &Path,
    id: u64,
    voters: &[u64],
    machine: Large,
) -> RaftHandle {
    let builder = RaftNode::builder(id)
        .log_store(SegmentLog::open(folder).expect("it opens"))
        .transport(network.transport(id))
        .state_machine(Machine::streamed(machine))
        .options(common::options())
        .bootstrap(voters.iter().copied());
    builder.start().await.expect("it starts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_takes_its_windows_in_memory_whatever_its_size() {
    let folders = [(); 2].map(|()| TempDir::new().expect("a folder"));
    let network = ChannelNetwork::new();
    let leader = start(&network, folders[0].path(), 1, &[1], Large::default()).await;
    leader.wait_for_leader(Duration::from_secs(60)).await;
    let joins = Large::default();
    let restored = Arc::clone(&joins.restored);
    let peer = start(&network, folders[1].path(), 2, &[], joins).await;
    leader
        .propose(Bytes::from_static(b"grow"))
        .await
        .expect("it leads");

    let idle = live_bytes();
    let work = async {
        leader.snapshot().await.expect("it is made");
        let add = vec![MembershipChange::AddLearner(2)];
        leader.change_membership(add).await.expect("it is added");
        while restored.load(Ordering::SeqCst) < STATE_BYTES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut work = std::pin::pin!(work);
    let mut most = idle;
    let watched = async {
        loop {
            tokio::select! {
                biased;
                () = &mut work => return,
                () = tokio::time::sleep(Duration::from_millis(2)) => most = most.max(live_bytes()),
            }
        }
    };
    let watched = tokio::time::timeout(Duration::from_secs(300), watched).await;
    watched.expect("it is sent");
    assert_eq!(restored.load(Ordering::SeqCst), STATE_BYTES);
    let over_idle = most.saturating_sub(idle);
    println!("{over_idle} bytes over idle for a state of {STATE_BYTES}");
    assert!(over_idle <= LIVE_BYTES_MAX, "{over_idle} bytes over idle");
    for node in [&peer, &leader] {
        node.shutdown().await;
    }
}
