//! Nodes whose logs are larger than the memory that entries may take: a follower that was down is sent the log from disk, and a node that
//! starts replays its log in parts.

mod common;

use bytes::Bytes;
use common::{Cluster, options};
use perf_raft::log::{LogJob, LogOutline, LogState, SegmentLog, SnapshotStore, StoredSnapshot};
use perf_raft::{
    EntryMemory, GroupId, LogError, LogReader, LogStore, RaftHandle, RaftNode, RaftOptions,
    StopReason,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const MEMORY_BYTES: usize = 64 * 1024;
const VALUE_BYTES: usize = 2000;
const WRITES: u64 = 400;

/// No snapshot is made, so that only the log helps.
fn long_log() -> RaftOptions {
    let mut options = options();
    options.snapshot_entries = 1 << 40;
    options.message_bytes_max = 8 * 1024;
    options
}

fn open(folder: &TempDir) -> SegmentLog {
    SegmentLog::open(folder.path()).expect("a sound log")
}

async fn add(cluster: &mut Cluster, id: u64, log: impl LogStore, memory: &EntryMemory) {
    let map = common::Map::default();
    let handle = RaftNode::builder(id)
        .group(GroupId(5))
        .log_store(log)
        .transport(cluster.network.transport(id))
        .state_machine(map.clone())
        .options(long_log())
        .bootstrap([1, 2, 3])
        .entry_memory(memory)
        .start()
        .await
        .expect("it starts");
    cluster.nodes.insert(id, (handle, map));
}

async fn write(leader: &RaftHandle, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let value = "v".repeat(VALUE_BYTES);
        let command = Bytes::from(format!("{number} {value}"));
        leader.propose(command).await.expect("it is applied");
    }
}

async fn catch_up(cluster: &Cluster, count: u64) {
    let all = async {
        while cluster.nodes.keys().any(|id| cluster.applied(*id) < count) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(60), all).await;
    assert!(done.is_ok(), "all nodes apply {count} commands");
}

/// Ticks publish the statistics.
async fn stats(handle: &RaftHandle) -> perf_raft::RaftStats {
    tokio::time::sleep(Duration::from_millis(100)).await;
    handle.stats()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_down_and_a_node_that_starts_get_the_log_from_disk() {
    let folders: Vec<TempDir> = (0..3).map(|_| TempDir::new().expect("a folder")).collect();
    let memories: Vec<EntryMemory> = (0..3)
        .map(|_| EntryMemory::new(MEMORY_BYTES).expect("it is in range"))
        .collect();
    let folder = |id: u64| &folders[id as usize - 1];
    let memory = |id: u64| &memories[id as usize - 1];
    let mut cluster = Cluster::start(&[], options()).await;
    for id in 1..=3 {
        add(&mut cluster, id, open(folder(id)), memory(id)).await;
    }
    let leader = cluster.leader().await;
    write(&leader, 0..10).await;
    let leading = leader.status().node_id;
    let down = leading % 3 + 1;
    let (handle, _) = cluster.nodes.remove(&down).expect("it is there");
    handle.shutdown().await;
    assert_eq!(
        memory(down).used_bytes(),
        0,
        "a node that ends gives its memory back"
    );
    write(&leader, 10..WRITES).await;
    let now = stats(&leader).await;
    assert!(now.log_bytes as usize > 8 * MEMORY_BYTES, "{now:?}");
    // Whole segments leave memory, so it is at or below the bound when nothing is under way.
    assert!(now.log_memory_bytes as usize <= MEMORY_BYTES, "{now:?}");
    assert!(memory(leading).used_bytes() <= MEMORY_BYTES);
    assert_eq!(now.core.entries_fetched, 0, "nobody needed any");

    add(&mut cluster, down, open(folder(down)), memory(down)).await;
    catch_up(&cluster, WRITES).await;
    cluster.assert_equal();
    let now = stats(&leader).await;
    assert!(now.core.entries_fetched >= WRITES - 100, "{now:?}");
    assert_eq!(now.core.snapshots_sent, 0, "the log was enough: {now:?}");
    assert!(memory(leading).used_bytes() <= MEMORY_BYTES);

    // All start again, on logs that are larger than their memory.
    let ids: Vec<u64> = cluster.nodes.keys().copied().collect();
    for id in ids {
        let (handle, _) = cluster.nodes.remove(&id).expect("it is there");
        handle.shutdown().await;
        add(&mut cluster, id, open(folder(id)), memory(id)).await;
    }
    let leader = cluster.leader().await;
    write(&leader, WRITES..WRITES + 5).await;
    catch_up(&cluster, WRITES + 5).await;
    cluster.assert_equal();
    for handle in cluster.handles() {
        let now = stats(handle).await;
        assert!(now.core.entries_fetched >= WRITES, "{now:?}");
        assert!(now.log_memory_bytes as usize <= MEMORY_BYTES, "{now:?}");
    }
    cluster.stop().await;
}

/// A log whose readers fail once they are told to.
struct Unreadable(SegmentLog, Arc<AtomicBool>);

impl LogStore for Unreadable {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        self.0.load(group)
    }

    fn outline(&mut self, group: GroupId) -> Result<Option<LogOutline>, LogError> {
        self.0.outline(group)
    }

    fn save_snapshot(&mut self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        self.0.save_snapshot(group, snapshot)
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        self.0.write(jobs, sync)
    }

    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, LogError> {
        self.0.snapshots()
    }

    fn reader(&mut self) -> Result<Option<Box<dyn LogReader>>, LogError> {
        let reader = self.0.reader()?.expect("it has one");
        Ok(Some(Box::new(FailingReader(reader, Arc::clone(&self.1)))))
    }
}

struct FailingReader(Box<dyn LogReader>, Arc<AtomicBool>);

impl LogReader for FailingReader {
    fn read(
        &mut self,
        group: GroupId,
        first: u64,
        end: u64,
        bytes_max: u64,
    ) -> Result<Vec<perf_raft::eraftpb::Entry>, LogError> {
        if self.1.load(Ordering::Acquire) {
            return Err(LogError::Corrupted {
                file: "segment".into(),
                offset: 4096,
                reason: "of the test".to_owned(),
            });
        }
        self.0.read(group, first, end, bytes_max)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_reads_damage_stops_and_the_others_go_on() {
    let folders: Vec<TempDir> = (0..3).map(|_| TempDir::new().expect("a folder")).collect();
    let folder = |id: u64| &folders[id as usize - 1];
    let memory = EntryMemory::new(MEMORY_BYTES).expect("it is in range");
    let mut damaged: Vec<Arc<AtomicBool>> = Vec::new();
    let mut cluster = Cluster::start(&[], options()).await;
    for id in 1..=3 {
        let is_damaged = Arc::new(AtomicBool::new(false));
        let log = Unreadable(open(folder(id)), Arc::clone(&is_damaged));
        damaged.push(is_damaged);
        add(&mut cluster, id, log, &memory).await;
    }
    let leader = cluster.leader().await;
    let leading = leader.status().node_id;
    let down = leading % 3 + 1;
    write(&leader, 0..5).await;
    let (handle, _) = cluster.nodes.remove(&down).expect("it is there");
    handle.shutdown().await;
    write(&leader, 5..WRITES / 2).await;
    damaged[leading as usize - 1].store(true, Ordering::Release);
    add(&mut cluster, down, open(folder(down)), &memory).await;
    let reason = tokio::time::timeout(Duration::from_secs(60), leader.stopped()).await;
    let reason = reason.expect("it stops");
    let StopReason::Log(error) = &reason else {
        panic!("{reason}");
    };
    assert!(error.is_damage(), "{error}");
    assert!(reason.to_string().contains("offset 4096"), "{reason}");
    cluster.nodes.remove(&leading);
    // The other one has all, and its reader works.
    let leader = cluster.leader().await;
    write(&leader, WRITES / 2..WRITES / 2 + 5).await;
    catch_up(&cluster, WRITES / 2 + 5).await;
    cluster.assert_equal();
    cluster.stop().await;
}

async fn alone(id: u64, map: common::Map, memory: &EntryMemory, folder: &TempDir) -> RaftHandle {
    let mut options = long_log();
    // No tick in between makes room.
    options.tick = Duration::from_millis(500);
    let node = RaftNode::builder(id)
        .log_store(open(folder))
        .transport(perf_raft::ChannelNetwork::new().transport(id))
        .state_machine(map)
        .options(options)
        .bootstrap([id])
        .entry_memory(memory)
        .start()
        .await
        .expect("it starts");
    let leader = node.wait_for_leader(Duration::from_secs(60)).await;
    assert_eq!(leader, Some(id));
    node
}

/// Another group takes the memory above the bound, and cannot give any back. This group has entries that are applied: they make room, and
/// nothing is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_applied_makes_room_before_a_proposal_is_refused() {
    let folders = [0; 2].map(|_| TempDir::new().expect("a folder"));
    let memory = EntryMemory::new(MEMORY_BYTES).expect("it is in range");
    let full = alone(1, common::Map::default(), &memory, &folders[0]).await;
    write(&full, 0..24).await;
    assert!(memory.used_bytes() > MEMORY_BYTES / 2);
    let slow = common::Map {
        delay: Duration::from_secs(1),
        ..common::Map::default()
    };
    let other = alone(2, slow, &memory, &folders[1]).await;
    let large = Bytes::from("x ".repeat(MEMORY_BYTES / 4));
    let proposed = tokio::spawn({
        let other = other.clone();
        async move { other.propose(large).await }
    });
    while memory.used_bytes() <= MEMORY_BYTES {
        tokio::task::yield_now().await;
    }
    write(&full, 24..25).await;
    proposed.await.expect("no panic").expect("it leads");
    full.shutdown().await;
    other.shutdown().await;
}
