//! What a snapshot as a stream costs the rest of a node: memory over idle of both ends, and how long proposals take beside it. The link is
//! cut in the middle once.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use perf_raft::inbound::MessageClass;
use perf_raft::{
    ChannelNetwork, ChannelTransport, Command, Inbox, Machine, MembershipChange, OutboundMessage,
    RaftHandle, RaftNode, SegmentLog, SendError, StateMachineError, StreamedStateMachine,
    Transport,
};
use tempfile::TempDir;

use super::ours::options;
use super::runtime;
use crate::experiment::{Bound, Depth, Experiment, Figure, Unit};

const CLIENTS: u64 = 16;
const MIB: u64 = 1024 * 1024;
/// The link is down for so long, once half of the snapshot has gone.
const CUT: Duration = Duration::from_millis(500);
/// Nothing takes longer: whatever does is an error.
const WAIT: Duration = Duration::from_secs(600);

pub(super) fn experiment() -> Experiment {
    Experiment {
        id: "raft/snapshot_stream",
        about: "a learner gets a state of 2 GiB as a stream that is cut in the middle once; bounds: 64 MiB of memory over idle on both ends, proposals' p99 3 times that without, nothing sent twice but what was under way",
        measure,
    }
}

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

/// Counts the bytes of snapshots, and can be cut.
struct Link {
    inner: ChannelTransport,
    sent: Arc<AtomicU64>,
    is_cut: Arc<AtomicBool>,
}

impl Transport for Link {
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.inner.start(inbox)
    }

    fn send(&self, message: OutboundMessage) -> Result<(), SendError> {
        if self.is_cut.load(Ordering::Relaxed) {
            return Err(SendError::Unreachable);
        }
        if message.class == MessageClass::Snapshot {
            self.sent
                .fetch_add(message.frame.len() as u64, Ordering::Relaxed);
        }
        self.inner.send(message)
    }

    fn stop(&self) {
        self.inner.stop();
    }
}

/// What the process takes of memory, as the kernel counts it: of its own, without pages of files.
fn resident_bytes() -> Result<u64, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: u64 = kib
        .and_then(|kib| kib.parse().ok())
        .ok_or("the kernel does not tell RssAnon")?;
    Ok(kib * 1024)
}

async fn start(
    link: Link,
    folder: &Path,
    id: u64,
    voters: &[u64],
    machine: Large,
) -> Result<RaftHandle, String> {
    let log = SegmentLog::open(folder.join(id.to_string())).map_err(|error| error.to_string())?;
    let node = RaftNode::builder(id)
        .log_store(log)
        .transport(link)
        .state_machine(Machine::streamed(machine))
        .options(options())
        .bootstrap(voters.iter().copied())
        .start();
    node.await.map_err(|error| error.to_string())
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

/// The 99th percentile of proposals of all clients, beside some work.
async fn beside<W>(leader: &RaftHandle, work: impl Future<Output = W>) -> Result<(W, f64), String> {
    let is_over = Arc::new(AtomicBool::new(false));
    let client = || tokio::spawn(propose(leader.clone(), Arc::clone(&is_over)));
    let clients: Vec<_> = (0..CLIENTS).map(|_| client()).collect();
    let outcome = work.await;
    is_over.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.map_err(|error| error.to_string())?);
    }
    times.sort_unstable();
    let late = times.get(times.len() * 99 / 100);
    let late = late.ok_or("no proposal was answered")?;
    Ok((outcome, late.as_nanos() as f64))
}

fn measure(depth: Depth) -> Result<Vec<Figure>, String> {
    let (bytes, idle_time) = match depth {
        Depth::Quick => (64 * MIB, Duration::from_millis(500)),
        Depth::Full => (2048 * MIB, Duration::from_secs(5)),
    };
    let folder = TempDir::new().map_err(|error| error.to_string())?;
    runtime().block_on(run(folder.path(), bytes, idle_time))
}

async fn run(folder: &Path, bytes: u64, idle_time: Duration) -> Result<Vec<Figure>, String> {
    let network = ChannelNetwork::new();
    let (sent, is_cut) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
    let link = |id| Link {
        inner: network.transport(id),
        sent: Arc::clone(&sent),
        is_cut: Arc::clone(&is_cut),
    };
    let restored = Arc::new(AtomicU64::new(0));
    // The group begins with an empty state, which is in memory.
    let empty = || Large {
        bytes: 0,
        restored: Arc::clone(&restored),
    };
    let node = start(link(1), folder, 1, &[1], empty()).await?;
    node.wait_for_leader(WAIT).await;
    node.shutdown().await;
    drop(node);
    let large = Large {
        bytes,
        restored: Arc::default(),
    };
    let leader = start(link(1), folder, 1, &[1], large).await?;
    leader.wait_for_leader(WAIT).await;
    let peer = start(link(2), folder, 2, &[], empty()).await?;

    let ((), late) = beside(&leader, tokio::time::sleep(idle_time)).await?;
    let idle = resident_bytes()?;
    sent.store(0, Ordering::Relaxed);
    let begin = Instant::now();
    let work = async {
        let (mut most, mut was_cut) = (idle, false);
        let add = vec![MembershipChange::AddLearner(2)];
        let added = leader.change_membership(add).await;
        added.map_err(|error| error.to_string())?;
        while restored.load(Ordering::SeqCst) < bytes {
            if begin.elapsed() > WAIT {
                return Err(format!("no snapshot after {WAIT:?}"));
            }
            most = most.max(resident_bytes()?);
            if !was_cut && sent.load(Ordering::Relaxed) > bytes / 2 {
                was_cut = true;
                is_cut.store(true, Ordering::Relaxed);
                tokio::time::sleep(CUT).await;
                is_cut.store(false, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok::<_, String>((most, was_cut))
    };
    let (outcome, late_beside) = beside(&leader, work).await?;
    let (most, was_cut) = outcome?;
    let seconds = begin.elapsed().as_secs_f64();
    for node in [peer, leader] {
        node.shutdown().await;
    }
    if !was_cut {
        return Err("the snapshot arrived before the link was cut".to_owned());
    }
    Ok(vec![
        Figure::new("bytes of the state", bytes as f64, Unit::Count),
        Figure::new(
            "bytes made, sent and restored",
            bytes as f64 / seconds,
            Unit::PerSecond,
        ),
        Figure::new(
            "bytes of memory over idle, both ends",
            (most - idle) as f64,
            Unit::Count,
        )
        .expected(Bound::AtMost((64 * MIB) as f64)),
        Figure::new(
            "bytes sent",
            sent.load(Ordering::Relaxed) as f64,
            Unit::Count,
        )
        .expected(Bound::AtMost(bytes as f64 * 1.01 + (8 * MIB) as f64)),
        Figure::new("p99 of proposals, without", late, Unit::Nanoseconds),
        Figure::new(
            "p99 of proposals, beside it",
            late_beside,
            Unit::Nanoseconds,
        )
        .expected(Bound::AtMost(3.0 * late)),
    ])
}
