//! What can be chosen about a node.

use crate::error::StartError;
use std::time::Duration;

/// Where the state machine runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ApplyMode {
    /// In a thread of its own: a slow [`apply`](crate::StateMachine::apply) delays no heartbeat, and blocks no task.
    #[default]
    Thread,
    /// In the task that drives Raft: one hand-over between threads less per batch. For state machines that take
    /// microseconds, such as maps in memory. That task is the node's own or, where a caller is alone, the caller's: the state machine must not wait for anything that a
    /// caller holds while it proposes.
    Inline,
}

/// Bounds and periods of a node. All nodes of a group should have the same.
///
/// ```
/// let mut options = perf_raft::RaftOptions::default();
/// options.tick = std::time::Duration::from_millis(20);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RaftOptions {
    /// The unit of Raft's time: 50 ms.
    pub tick: Duration,
    /// A follower campaigns after this many ticks without its leader, up to twice as many at random: 10.
    pub election_ticks: usize,
    /// The leader sends heartbeats every so many ticks: 2.
    pub heartbeat_ticks: usize,
    /// Entries of one message to a peer, in bytes: 1 MiB. A single larger entry is sent alone.
    pub message_bytes_max: usize,
    /// Messages with entries on their way to one peer: 256.
    pub inflight_messages_max: usize,
    /// Proposals that wait, in the queue and in the log: 16 384. Beyond, [`Busy`](crate::ProposeError::Busy).
    pub proposals_max: usize,
    /// Size of one proposal: 1 MiB.
    pub proposal_bytes_max: usize,
    /// Bytes of proposals that are not committed: 64 MiB. Beyond, [`Busy`](crate::ProposeError::Busy).
    pub uncommitted_bytes_max: usize,
    /// Entries that are committed and not applied: 65 536. Beyond, a leader answers [`Busy`](crate::ProposeError::Busy), and a
    /// follower that is twice as far behind takes no more entries.
    pub unapplied_entries_max: u64,
    /// Reads that wait: 65 536. Beyond, [`Busy`](crate::ReadError::Busy).
    pub reads_max: usize,
    /// Messages from peers that wait, for each class: 4096. Beyond, they are dropped and sent again by Raft.
    pub inbound_messages_max: usize,
    /// Bytes of messages from peers that wait, for each class: 64 MiB.
    pub inbound_bytes_max: usize,
    /// Entries after which a snapshot is made: 100 000.
    pub snapshot_entries: u64,
    /// Bytes of the log after which a snapshot is made: 64 MiB. The log is in memory from the last snapshot on.
    pub snapshot_log_bytes: usize,
    /// Bytes of the log at which proposals get [`Busy`](crate::ProposeError::Busy): 256 MiB.
    pub log_bytes_max: usize,
    /// Entries kept behind a snapshot, for followers that lag a little: 10 000.
    pub log_entries_kept: u64,
    /// Size of a snapshot, made or received: 256 MiB. Larger ones are refused.
    pub snapshot_bytes_max: usize,
    /// Size of the parts a snapshot is sent in: 256 KiB.
    pub snapshot_chunk_bytes: usize,
    /// Parts on their way to one peer: 8.
    pub snapshot_window_chunks: usize,
    /// Whether [`lease_read`](crate::RaftHandle::lease_read) may be used. Must be the same on all nodes: with it, a node that
    /// restarts votes for nobody during its first election timeout.
    pub lease_reads: bool,
    /// How much faster or slower than this node's clock another node's may run, in per cent: 10. A lease is
    /// shorter by as much.
    pub clock_drift_max_percent: u32,
    /// Where the state machine runs.
    pub apply: ApplyMode,
}

impl Default for RaftOptions {
    fn default() -> Self {
        const KIB: usize = 1024;
        const MIB: usize = 1024 * KIB;
        Self {
            tick: Duration::from_millis(50),
            election_ticks: 10,
            heartbeat_ticks: 2,
            message_bytes_max: MIB,
            inflight_messages_max: 256,
            proposals_max: 16 * KIB,
            proposal_bytes_max: MIB,
            uncommitted_bytes_max: 64 * MIB,
            unapplied_entries_max: 64 * KIB as u64,
            reads_max: 64 * KIB,
            inbound_messages_max: 4 * KIB,
            inbound_bytes_max: 64 * MIB,
            snapshot_entries: 100_000,
            snapshot_log_bytes: 64 * MIB,
            log_bytes_max: 256 * MIB,
            log_entries_kept: 10_000,
            snapshot_bytes_max: 256 * MIB,
            snapshot_chunk_bytes: 256 * KIB,
            snapshot_window_chunks: 8,
            lease_reads: false,
            clock_drift_max_percent: 10,
            apply: ApplyMode::Thread,
        }
    }
}

impl RaftOptions {
    /// Says which option is out of range, if one is.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let wrong = |option, reason: &str| {
            Err(StartError::Options {
                option,
                reason: reason.to_owned(),
            })
        };
        if self.tick < Duration::from_millis(1) || self.tick > Duration::from_secs(60) {
            return wrong("tick", "must be from 1 ms to 60 s");
        }
        if self.heartbeat_ticks == 0 || self.election_ticks < 2 * self.heartbeat_ticks {
            return wrong(
                "election_ticks",
                "must be at least twice `heartbeat_ticks`, which must not be 0",
            );
        }
        if self.election_ticks > 10_000 {
            return wrong("election_ticks", "must be at most 10 000");
        }
        if self.clock_drift_max_percent >= 50 {
            return wrong("clock_drift_max_percent", "must be below 50");
        }
        let positive = [
            ("message_bytes_max", self.message_bytes_max),
            ("inflight_messages_max", self.inflight_messages_max),
            ("proposals_max", self.proposals_max),
            ("proposal_bytes_max", self.proposal_bytes_max),
            ("reads_max", self.reads_max),
            ("inbound_messages_max", self.inbound_messages_max),
            ("snapshot_log_bytes", self.snapshot_log_bytes),
            ("snapshot_chunk_bytes", self.snapshot_chunk_bytes),
            ("snapshot_window_chunks", self.snapshot_window_chunks),
        ];
        if let Some((option, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return wrong(option, "must not be 0");
        }
        if self.snapshot_entries == 0 || self.unapplied_entries_max == 0 {
            return wrong(
                "snapshot_entries",
                "and `unapplied_entries_max` must not be 0",
            );
        }
        if self.proposal_bytes_max > self.uncommitted_bytes_max {
            return wrong(
                "proposal_bytes_max",
                "must be at most `uncommitted_bytes_max`",
            );
        }
        if self.message_bytes_max > self.uncommitted_bytes_max {
            return wrong(
                "message_bytes_max",
                "must be at most `uncommitted_bytes_max`",
            );
        }
        if self.snapshot_log_bytes > self.log_bytes_max {
            return wrong("snapshot_log_bytes", "must be at most `log_bytes_max`");
        }
        // A frame must fit what the pool serves at most, headers included.
        let frame_bytes = self.proposal_bytes_max.max(self.message_bytes_max);
        if frame_bytes.max(self.snapshot_chunk_bytes) > 32 * 1024 * 1024 {
            return wrong(
                "message_bytes_max",
                "and `proposal_bytes_max`, `snapshot_chunk_bytes` must be at most 32 MiB",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound_and_each_flaw_is_named() {
        assert!(RaftOptions::default().check().is_ok());
        type Flaw = (&'static str, fn(&mut RaftOptions));
        let flaws: [Flaw; 5] = [
            ("tick", |options| options.tick = Duration::ZERO),
            ("election_ticks", |options| options.election_ticks = 3),
            ("proposals_max", |options| options.proposals_max = 0),
            ("clock_drift_max_percent", |options| {
                options.clock_drift_max_percent = 50
            }),
            ("proposal_bytes_max", |options| {
                options.proposal_bytes_max = usize::MAX
            }),
        ];
        for (name, flaw) in flaws {
            let mut options = RaftOptions::default();
            flaw(&mut options);
            let error = options.check().expect_err(name);
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
