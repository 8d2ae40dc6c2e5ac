//! What a node says of its stages.

use crate::core::CoreStats;
use perf_atomics::RaftStatus;
use std::time::Duration;

/// One stage: how often it ran, for how many items, for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageStats {
    /// Runs.
    pub batches: u64,
    /// Items of all runs: `items / batches` is the mean batch.
    pub items: u64,
    /// The largest run.
    pub items_max: u64,
    /// Time of all runs.
    pub busy: Duration,
    /// The longest run.
    pub busy_max: Duration,
    /// Items that wait now.
    pub waiting: u64,
}

impl StageStats {
    pub(crate) fn add(&mut self, items: u64, busy: Duration) {
        self.batches += 1;
        self.items += items;
        self.items_max = self.items_max.max(items);
        self.busy += busy;
        self.busy_max = self.busy_max.max(busy);
    }

    /// Items per run.
    #[must_use]
    pub fn mean_items(&self) -> f64 {
        if self.batches == 0 {
            0.0
        } else {
            self.items as f64 / self.batches as f64
        }
    }

    /// Time per run.
    #[must_use]
    pub fn mean_busy(&self) -> Duration {
        let runs = u32::try_from(self.batches).unwrap_or(u32::MAX);
        if runs == 0 {
            Duration::ZERO
        } else {
            self.busy / runs
        }
    }
}

/// What a node says of itself; see [`RaftHandle::stats`](crate::RaftHandle::stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RaftStats {
    /// Role, term, leader, commit and applied index.
    pub status: RaftStatus,
    /// Counts of proposals, messages, elections and snapshots.
    pub core: CoreStats,
    /// Proposals: runs are batches handed to Raft, waiting are those in the queue.
    pub propose: StageStats,
    /// Durable writes of the log: runs are writes with their fsync, items are jobs. Those of all groups of a host, which share it.
    pub log: StageStats,
    /// The state machine: items are commands, waiting is the apply lag.
    pub apply: StageStats,
    /// Proposals in the log without an answer.
    pub proposals_in_log: u64,
    /// Bytes of the log from the last compaction on, in memory and on disk.
    pub log_bytes: u64,
    /// Bytes of the log's entries in memory: see [`EntryMemory`](crate::EntryMemory).
    pub log_memory_bytes: u64,
}
