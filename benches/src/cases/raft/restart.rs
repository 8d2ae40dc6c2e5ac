//! How long a node takes to start on a long log, and how much memory.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use perf_raft::eraftpb::{Entry, HardState};
use perf_raft::log::{LogJob, run_jobs};
use perf_raft::{
    ChannelNetwork, Command, GroupId, Identity, LogStore, RaftNode, SegmentLog, StateMachine,
    StateMachineError,
};
use tempfile::TempDir;

use super::ours::options;
use super::runtime;
use crate::experiment::{Bound, Depth, Experiment, Figure, Unit};

const MIB: usize = 1024 * 1024;
const ENTRY_BYTES: usize = 1024;
/// Entries of a write.
const BATCH: u64 = 256;
const GROUP: GroupId = GroupId(1);
/// Memory that a start on the long log may take beside that of a start on an empty one.
const MEMORY_BYTES_MAX: f64 = 128.0 * MIB as f64;

pub(super) fn experiment() -> Experiment {
    Experiment {
        id: "raft/restart_1gib",
        about: "a node starts on a log of 1 GiB that no snapshot covers, and has applied it; bounds: 1.5 times reading the files once, 128 MiB of memory",
        measure,
    }
}

fn measure(depth: Depth) -> Result<Vec<Figure>, String> {
    let log_bytes = match depth {
        Depth::Quick => 64 * MIB,
        Depth::Full => 1024 * MIB,
    };
    let failed = |error: std::io::Error| error.to_string();
    let folder = TempDir::new().map_err(failed)?;
    let empty = TempDir::new().map_err(failed)?;
    let last = write_log(folder.path(), log_bytes)?;
    // Both find the files in the page cache, if they fit there.
    read_files(folder.path())?;
    let read = read_files(folder.path())?;
    start_on(empty.path(), 0)?;
    let before = peak_bytes()?;
    let start = start_on(folder.path(), last)?;
    let memory = (peak_bytes()? - before).max(0.0);
    let seconds = |time: Duration| time.as_nanos() as f64;
    Ok(vec![
        Figure::new("bytes of the log", log_bytes as f64, Unit::Count),
        Figure::new("the files, read once", seconds(read), Unit::Nanoseconds),
        Figure::new("the log is open", seconds(start.opened), Unit::Nanoseconds),
        Figure::new(
            "the node has started",
            seconds(start.started),
            Unit::Nanoseconds,
        )
        .expected(Bound::AtMost(1.5 * seconds(read))),
        Figure::new("and applied all", seconds(start.applied), Unit::Nanoseconds),
        Figure::new(
            "bytes of memory at the peak, beyond an empty start",
            memory,
            Unit::Count,
        )
        .expected(Bound::AtMost(MEMORY_BYTES_MAX)),
    ])
}

/// A log of a group of one whose entries are all committed. Returns the last index.
fn write_log(folder: &Path, log_bytes: usize) -> Result<u64, String> {
    let failed = |error: perf_raft::LogError| error.to_string();
    let mut log = SegmentLog::open(folder).map_err(failed)?;
    let mut identity = Identity::default();
    (identity.node, identity.incarnation) = (1, 7);
    let beginning = perf_raft::core::bootstrap_state(&[1], Bytes::new());
    let mut jobs = [LogJob {
        group: GROUP,
        replaces_log: true,
        snapshot: beginning.snapshot,
        hard_state: Some(beginning.hard_state),
        identity: Some(identity),
        ..LogJob::default()
    }];
    run_jobs(&mut log, &mut jobs).map_err(failed)?;
    let mut next = 2;
    let data = Bytes::from(vec![0x5A; ENTRY_BYTES]);
    while (next as usize) * ENTRY_BYTES < log_bytes {
        let entry = |index| Entry {
            index,
            term: 1,
            data: data.clone(),
            ..Entry::default()
        };
        let entries: Vec<Entry> = (next..next + BATCH).map(entry).collect();
        next += BATCH;
        let jobs = [LogJob {
            group: GROUP,
            entries: entries.into(),
            hard_state: Some(HardState {
                term: 1,
                vote: 1,
                commit: next - 1,
                ..HardState::default()
            }),
            ..LogJob::default()
        }];
        // As a node writes: what is not confirmed is written again at the start.
        log.write(&jobs, true).map_err(failed)?;
    }
    Ok(next - 1)
}

/// Reads all files of a folder.
fn read_files(folder: &Path) -> Result<Duration, String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut buffer = vec![0; MIB];
    let begin = Instant::now();
    for file in fs::read_dir(folder).map_err(failed)? {
        let mut file = File::open(file.map_err(failed)?.path()).map_err(failed)?;
        while file.read(&mut buffer).map_err(failed)? > 0 {
            std::hint::black_box(&buffer);
        }
    }
    Ok(begin.elapsed())
}

/// Keeps a count of bytes alone, so that memory is the node's.
struct Sum(u64);

impl StateMachine for Sum {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        for command in batch {
            self.0 += command.data.len() as u64;
            responses.push(Bytes::new());
        }
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        Ok(Bytes::copy_from_slice(&self.0.to_le_bytes()))
    }

    fn restore(&mut self, _: Bytes) -> Result<(), StateMachineError> {
        self.0 = 0;
        Ok(())
    }
}

/// Since the beginning of a start.
struct Start {
    opened: Duration,
    started: Duration,
    applied: Duration,
}

/// Starts a node and waits until it has applied up to `last`.
fn start_on(folder: &Path, last: u64) -> Result<Start, String> {
    let mut options = options();
    // No snapshot is made meanwhile.
    options.snapshot_entries = 1 << 40;
    options.snapshot_log_bytes = 1 << 40;
    options.log_bytes_max = 1 << 40;
    let runtime = runtime();
    let begin = Instant::now();
    runtime.block_on(async {
        let log = SegmentLog::open(folder).map_err(|error| error.to_string())?;
        let opened = begin.elapsed();
        let node = RaftNode::builder(1)
            .group(GROUP)
            .log_store(log)
            .transport(ChannelNetwork::new().transport(1))
            .state_machine(Sum(0))
            .options(options)
            .bootstrap([1])
            .start();
        let node = node.await.map_err(|error| error.to_string())?;
        let started = begin.elapsed();
        while node.status().applied_index < last {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let applied = begin.elapsed();
        node.shutdown().await;
        Ok(Start {
            opened,
            started,
            applied,
        })
    })
}

/// The most memory that this process ever had.
fn peak_bytes() -> Result<f64, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0)
        .ok_or_else(|| "the system does not say how much memory this process had".to_owned())
}
