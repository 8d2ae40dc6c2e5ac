//! What can be chosen about a node.

use crate::codec::{ENTRY_ROOM_BYTES, SNAPSHOT_ROOM_BYTES};
use crate::error::StartError;
use std::ops::RangeInclusive;
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
    /// Entries of one message to a peer, in bytes: 960 KiB. A single larger entry is sent alone.
    pub message_bytes_max: usize,
    /// The groups of a [`RaftHost`](crate::RaftHost) sleep after this many ticks without news: 20. A sleeping group costs no tick and no message. 0 for never.
    /// A [`RaftNode`](crate::RaftNode) never sleeps, nor does a group with one among its members.
    pub sleep_after_ticks: usize,
    /// Messages with entries on their way to one peer: 256.
    pub inflight_messages_max: usize,
    /// Proposals that wait, in the queue and in the log: 16 384. Beyond, [`Busy`](crate::ProposeError::Busy).
    pub proposals_max: usize,
    /// Size of one proposal: 960 KiB, so that a message with one fits a transport that takes 1 MiB.
    pub proposal_bytes_max: usize,
    /// Bytes of proposals that are not committed: 64 MiB. Beyond, [`Busy`](crate::ProposeError::Busy).
    pub uncommitted_bytes_max: usize,
    /// Commands that are committed and not applied: 65 536. Beyond, a leader answers [`Busy`](crate::ProposeError::Busy), and a
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
    /// Bytes of the log after which a snapshot is made: 64 MiB. Those in memory have a bound of their own: [`EntryMemory`](crate::EntryMemory).
    pub snapshot_log_bytes: usize,
    /// Bytes of the log at which proposals get [`Busy`](crate::ProposeError::Busy): 256 MiB.
    pub log_bytes_max: usize,
    /// Entries kept behind a snapshot, for followers that lag a little: 10 000.
    pub log_entries_kept: u64,
    /// Size of a snapshot, made or received: 64 GiB. Larger ones are refused. A snapshot takes as much memory where the
    /// log store does not keep it in pieces ([`LogStore::snapshots`](crate::LogStore::snapshots)), and where the state
    /// machine makes it as a whole.
    pub snapshot_bytes_max: usize,
    /// Size of the parts a snapshot is sent in: 256 KiB.
    pub snapshot_chunk_bytes: usize,
    /// Parts on their way to one peer: 8. This many parts are the memory that a snapshot takes on both ends where the
    /// log store keeps it in pieces.
    pub snapshot_window_chunks: usize,
    /// Snapshots that a process sends at a time: 4. Others wait. A host has one bound for all its groups. Only where the
    /// log store keeps snapshots in pieces.
    pub snapshot_transfers_max: usize,
    /// Bytes of snapshots that a process sends in a second, `None` for no bound, the default. A host has one bound for
    /// all its groups. Only where the log store keeps snapshots in pieces.
    pub snapshot_bytes_per_second: Option<u64>,
    /// Whether [`lease_read`](crate::RaftHandle::lease_read) may be used. Must be the same on all nodes: with it, a node that
    /// restarts gives no vote during its first election timeout.
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
            sleep_after_ticks: 20,
            message_bytes_max: 960 * KIB,
            inflight_messages_max: 256,
            proposals_max: 16 * KIB,
            proposal_bytes_max: 960 * KIB,
            uncommitted_bytes_max: 64 * MIB,
            unapplied_entries_max: 64 * KIB as u64,
            reads_max: 64 * KIB,
            inbound_messages_max: 4 * KIB,
            inbound_bytes_max: 64 * MIB,
            snapshot_entries: 100_000,
            snapshot_log_bytes: 64 * MIB,
            log_bytes_max: 256 * MIB,
            log_entries_kept: 10_000,
            snapshot_bytes_max: 64 * KIB * MIB,
            snapshot_chunk_bytes: 256 * KIB,
            snapshot_window_chunks: 8,
            snapshot_transfers_max: 4,
            snapshot_bytes_per_second: None,
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
        if self.election_ticks > 10_000 {
            return wrong("election_ticks", "must be at most 10 000");
        }
        if self.clock_drift_max_percent >= 50 {
            return wrong("clock_drift_max_percent", "must be below 50");
        }
        for (option, value, range) in self.ranges() {
            if !range.contains(&value) {
                let (least, most) = (range.start(), range.end());
                return wrong(
                    option,
                    &format!("is {value}, allowed are {least} to {most}"),
                );
            }
        }
        if self.election_ticks < 2 * self.heartbeat_ticks {
            return wrong("election_ticks", "must be at least twice `heartbeat_ticks`");
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
        if self.snapshot_window_chunks > self.inbound_messages_max {
            return wrong(
                "snapshot_window_chunks",
                "must be at most `inbound_messages_max`: a peer would drop what is above it",
            );
        }
        if self.snapshot_log_bytes > self.log_bytes_max {
            return wrong("snapshot_log_bytes", "must be at most `log_bytes_max`");
        }
        Ok(())
    }

    /// Each bound with what is allowed. Nothing that is computed from allowed values overflows, and no list of a fixed size is made that
    /// takes more than a megabyte.
    fn ranges(&self) -> [(&'static str, u64, RangeInclusive<u64>); 20] {
        const COUNT_MOST: u64 = 1 << 24;
        const BYTES_MOST: u64 = 1 << 40;
        // What the pool of buffers serves at most, headers included.
        const FRAME_MOST: u64 = (32 << 20) - SNAPSHOT_ROOM_BYTES as u64;
        let number = |value: usize| value as u64;
        [
            ("heartbeat_ticks", number(self.heartbeat_ticks), 1..=5000),
            (
                "sleep_after_ticks",
                number(self.sleep_after_ticks),
                0..=1_000_000,
            ),
            (
                "message_bytes_max",
                number(self.message_bytes_max),
                1..=FRAME_MOST,
            ),
            (
                "inflight_messages_max",
                number(self.inflight_messages_max),
                1..=16 * 1024,
            ),
            ("proposals_max", number(self.proposals_max), 1..=COUNT_MOST),
            (
                "proposal_bytes_max",
                number(self.proposal_bytes_max),
                1..=FRAME_MOST,
            ),
            (
                "uncommitted_bytes_max",
                number(self.uncommitted_bytes_max),
                1..=BYTES_MOST,
            ),
            (
                "unapplied_entries_max",
                self.unapplied_entries_max,
                1..=BYTES_MOST,
            ),
            ("reads_max", number(self.reads_max), 1..=COUNT_MOST),
            (
                "inbound_messages_max",
                number(self.inbound_messages_max),
                1..=COUNT_MOST,
            ),
            (
                "inbound_bytes_max",
                number(self.inbound_bytes_max),
                1..=BYTES_MOST,
            ),
            ("snapshot_entries", self.snapshot_entries, 1..=BYTES_MOST),
            (
                "snapshot_log_bytes",
                number(self.snapshot_log_bytes),
                1..=BYTES_MOST,
            ),
            ("log_bytes_max", number(self.log_bytes_max), 1..=BYTES_MOST),
            ("log_entries_kept", self.log_entries_kept, 0..=BYTES_MOST),
            (
                "snapshot_bytes_max",
                number(self.snapshot_bytes_max),
                1..=BYTES_MOST,
            ),
            (
                "snapshot_chunk_bytes",
                number(self.snapshot_chunk_bytes),
                1..=FRAME_MOST,
            ),
            (
                "snapshot_window_chunks",
                number(self.snapshot_window_chunks),
                1..=64 * 1024,
            ),
            (
                "snapshot_transfers_max",
                number(self.snapshot_transfers_max),
                1..=64 * 1024,
            ),
            (
                "snapshot_bytes_per_second",
                self.snapshot_bytes_per_second.unwrap_or(BYTES_MOST),
                1024..=BYTES_MOST,
            ),
        ]
    }

    /// The longest frame that these options lead to, its headers included.
    pub(crate) fn frame_bytes_max(&self) -> usize {
        let entries = self.proposal_bytes_max.max(self.message_bytes_max);
        (entries + ENTRY_ROOM_BYTES).max(self.snapshot_chunk_bytes + SNAPSHOT_ROOM_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound_and_each_flaw_is_named() {
        assert!(RaftOptions::default().check().is_ok());
        type Flaw = (&'static str, fn(&mut RaftOptions));
        let flaws: [Flaw; 11] = [
            ("snapshot_transfers_max", |options| {
                options.snapshot_transfers_max = 0
            }),
            ("snapshot_bytes_per_second", |options| {
                options.snapshot_bytes_per_second = Some(1023)
            }),
            ("inflight_messages_max", |options| {
                options.inflight_messages_max = 1 << 40
            }),
            ("heartbeat_ticks", |options| {
                options.heartbeat_ticks = usize::MAX
            }),
            ("log_bytes_max", |options| {
                options.log_bytes_max = usize::MAX
            }),
            ("unapplied_entries_max", |options| {
                options.unapplied_entries_max = u64::MAX
            }),
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
