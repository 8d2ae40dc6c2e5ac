//! What the core asks its driver to do.

use super::{Fetch, SnapshotJob};
use crate::codec::Frame;
use crate::error::{ProposeError, ReadError};
use crate::log::{LogJob, StoredSnapshot};
use crate::state_machine::Command;
use raft::eraftpb::ConfState;

/// Work for the state machine, to be done in order.
#[derive(Debug)]
pub enum ApplyJob<T> {
    /// Apply the commands, then tell [`Core::applied`](super::Core::applied) the index.
    Apply {
        /// Commands, maybe none: Raft's own entries count too.
        commands: Vec<Command>,
        /// Who waits for the response of a command: place in `commands` and token, growing.
        waiting: Vec<(usize, T)>,
        /// The state machine is at this index afterwards.
        index: u64,
    },
    /// Restore the snapshot, whose data may be [in the log](StoredSnapshot::stored), then tell
    /// [`Core::applied`](super::Core::applied) its index.
    Restore(StoredSnapshot),
    /// Make a snapshot and give it to [`Core::snapshot_made`](super::Core::snapshot_made), or write it to the log
    /// beside the jobs that follow and tell [`Core::snapshot_stored`](super::Core::snapshot_stored).
    Snapshot,
    /// Ask the state machine up to where it is durable, and tell [`Core::durable_up_to`](super::Core::durable_up_to).
    /// Only of a core that was told of a [durable machine](super::Core::machine_is_durable).
    DurableIndex,
}

/// An answer to a request.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reply {
    /// No proposal, membership change or transfer came of it.
    Failed(ProposeError),
    /// A read may go ahead, the state machine being at this index.
    Read(u64),
    /// A read may not.
    ReadFailed(ReadError),
    /// The membership is this now.
    Membership(Box<ConfState>),
    /// The other node leads.
    Transferred,
    /// A snapshot at this index is durable.
    Snapshot(u64),
}

/// What the core asks its driver to do. All lists are in order and to be emptied by the driver.
#[derive(Debug)]
pub struct Outputs<T> {
    /// Frames to send, each to the node in its header. What cannot be sent may be dropped; tell
    /// [`Core::not_sent`](super::Core::not_sent).
    pub frames: Vec<Frame>,
    /// Jobs for the log, to be done in order; then [`Core::persisted`](super::Core::persisted).
    pub log_jobs: Vec<LogJob>,
    /// Entries to read from the log, beside everything else, one at a time; then [`Core::fetched`](super::Core::fetched). Only of a core that was
    /// made by [`Core::open`](super::Core::open).
    pub fetches: Vec<Fetch>,
    /// Work on the data of snapshots in the log, beside everything else; then
    /// [`Core::snapshot_done`](super::Core::snapshot_done). Only of a core that was told to
    /// [stream](super::Core::stream_snapshots).
    pub snapshot_jobs: Vec<SnapshotJob>,
    /// Jobs for the state machine.
    pub apply_jobs: Vec<ApplyJob<T>>,
    /// Answers. Those to proposals that are applied come with [`ApplyJob::Apply`].
    pub replies: Vec<(T, Reply)>,
}

impl<T> Default for Outputs<T> {
    fn default() -> Self {
        Self {
            frames: Vec::new(),
            log_jobs: Vec::new(),
            fetches: Vec::new(),
            snapshot_jobs: Vec::new(),
            apply_jobs: Vec::new(),
            replies: Vec::new(),
        }
    }
}

impl<T> Outputs<T> {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
            && self.log_jobs.is_empty()
            && self.fetches.is_empty()
            && self.snapshot_jobs.is_empty()
            && self.apply_jobs.is_empty()
            && self.replies.is_empty()
    }

    /// Gives memory back that is kept for the next turns.
    pub fn shrink_to_fit(&mut self) {
        self.frames.shrink_to_fit();
        self.log_jobs.shrink_to_fit();
        self.fetches.shrink_to_fit();
        self.snapshot_jobs.shrink_to_fit();
        self.apply_jobs.shrink_to_fit();
        self.replies.shrink_to_fit();
    }
}
