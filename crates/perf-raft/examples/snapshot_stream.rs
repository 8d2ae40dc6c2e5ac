//! What a snapshot as a stream costs the rest of a node: memory over idle of both ends, and how long proposals take
//! beside it.
//!
//! `cargo run --release -p perf-raft --example snapshot_stream [MIB]`: a state of so many MiB, 2048 by default. Compare
//! the ratios within one run; the times are the machine's.

use bytes::Bytes;
use perf_raft::{
    ChannelNetwork, Command, Machine, MembershipChange, RaftHandle, RaftNode, SegmentLog,
    StateMachineError, StreamedStateMachine,
};
use std::error::Error;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: u64 = 16;
const MIB: u64 = 1024 * 1024;
/// Proposals are timed for so long without a snapshot.
const IDLE: Duration = Duration::from_secs(5);

/// A state that is made as it is read, and counted as it is restored.
struct Large {
    bytes: u64,
    restored: Arc<AtomicU64>,
}

impl StreamedStateMachine for Large {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        responses.extend(batch.iter().map(|_| Bytes::new()));
    }

    fn snapshot(&mut self) -> Result<Box<dyn Read + Send>, StateMachineError> {
        Ok(Box::new(std::io::repeat(7).take(self.bytes)))
    }

    fn restore(&mut self, snapshot: &mut dyn Read, _: u64) -> Result<(), StateMachineError> {
        let bytes = std::io::copy(snapshot, &mut std::io::sink())?;
        self.restored.store(bytes, Ordering::SeqCst);
        Ok(())
    }
}

/// What the process takes of memory, as the kernel counts it: of its own, without pages of files.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0) * 1024
}

async fn start(
    network: &ChannelNetwork,
    folder: &Path,
    id: u64,
    voters: &[u64],
    machine: Large,
) -> Result<RaftHandle, Box<dyn Error>> {
    Ok(RaftNode::builder(id)
        .log_store(SegmentLog::open(folder.join(id.to_string()))?)
        .transport(network.transport(id))
        .state_machine(Machine::streamed(machine))
        .bootstrap(voters.iter().copied())
        .start()
        .await?)
}

/// Proposes until it is told to stop, and tells how long each proposal took.
async fn propose(leader: RaftHandle, is_over: Arc<AtomicBool>) -> Vec<Duration> {
    let mut times = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let begin = Instant::now();
        if leader.propose(Bytes::from_static(&[7; 100])).await.is_ok() {
            times.push(begin.elapsed());
        }
    }
    times
}

/// Proposals of all clients beside some work: the median and the 99th percentile.
async fn beside<W>(
    leader: &RaftHandle,
    work: impl Future<Output = W>,
) -> Result<(W, Duration, Duration), Box<dyn Error>> {
    let is_over = Arc::new(AtomicBool::new(false));
    let client = || tokio::spawn(propose(leader.clone(), Arc::clone(&is_over)));
    let clients: Vec<_> = (0..CLIENTS).map(|_| client()).collect();
    let outcome = work.await;
    is_over.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await?);
    }
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied();
    let (median, late) = (at(50).unwrap_or_default(), at(99).unwrap_or_default());
    Ok((outcome, median, late))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mib: u64 = match std::env::args().nth(1) {
        Some(mib) => mib.parse()?,
        None => 2048,
    };
    let bytes = mib * MIB;
    let folder = tempfile::tempdir()?;
    let network = ChannelNetwork::new();
    let restored = Arc::new(AtomicU64::new(0));
    // The group begins with an empty state, which is in memory.
    let empty = |restored: &Arc<AtomicU64>| Large {
        bytes: 0,
        restored: Arc::clone(restored),
    };
    let node = start(&network, folder.path(), 1, &[1], empty(&restored)).await?;
    node.wait_for_leader(Duration::from_secs(10)).await;
    node.shutdown().await;
    drop(node);
    let large = Large {
        bytes,
        restored: Arc::default(),
    };
    let leader = start(&network, folder.path(), 1, &[1], large).await?;
    leader.wait_for_leader(Duration::from_secs(10)).await;
    let peer = start(&network, folder.path(), 2, &[], empty(&restored)).await?;

    let ((), median, late) = beside(&leader, tokio::time::sleep(IDLE)).await?;
    println!("without a snapshot: median {median:?}, 99th percentile {late:?}");
    let idle = resident_bytes();
    let mut most = idle;
    let begin = Instant::now();
    let work = async {
        let add = vec![MembershipChange::AddLearner(2)];
        leader.change_membership(add).await?;
        while restored.load(Ordering::SeqCst) < bytes {
            most = most.max(resident_bytes());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok::<(), perf_raft::ProposeError>(())
    };
    let (outcome, median_beside, late_beside) = beside(&leader, work).await?;
    outcome?;
    println!("beside one of {mib} MiB: median {median_beside:?}, 99th percentile {late_beside:?}");
    let ratio = late_beside.as_secs_f64() / late.as_secs_f64();
    println!("ratio of the 99th percentiles: {ratio:.2}");
    println!(
        "made, sent and restored at {:.0} MiB/s",
        mib as f64 / begin.elapsed().as_secs_f64()
    );
    println!(
        "memory over idle, both ends and the clients' times: {:.1} MiB",
        (most - idle) as f64 / MIB as f64
    );
    for node in [peer, leader] {
        node.shutdown().await;
    }
    Ok(())
}
