//! Snapshots: of this node's own state, and on their way to and from peers.
//!
//! Where the log keeps data in pieces ([`SnapshotStore`](crate::log::SnapshotStore)), none of it stays here: the core
//! asks its driver to read what the window of a transfer allows next, and to write what has come. Else snapshots are in
//! memory as a whole. [`sending`](super::sending) and [`receiving`](super::receiving) are the same for both, but for
//! where bytes come from and go to.

use super::{ApplyJob, Core, Making, Retry};
use crate::codec::{Body, ChunkAck};
use crate::error::ProposeError;
use crate::log::{LogJob, StoredData, StoredSnapshot};
use crate::members::Members;
use crate::primitive::mutant;
use bytes::Bytes;
use raft::eraftpb::{Message, SnapshotMetadata};
use std::sync::Arc;

/// Work on the data of snapshots in the log, to be done beside everything else. Jobs with one number are done one after
/// the other; the core asks for the next one when it knows the outcome of the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotJob {
    /// Read a piece for a peer, then [`SnapshotDone::Read`].
    Read {
        /// Names the transfer.
        transfer: u64,
        /// Which data.
        data: StoredData,
        /// Where the piece starts.
        offset: u64,
        /// Its length: at most what the window has room for.
        bytes: usize,
    },
    /// Nothing more is read for a transfer. A read under way is of no use.
    EndRead {
        /// Names the transfer.
        transfer: u64,
    },
    /// Append pieces to the data of a snapshot that arrives, then [`SnapshotDone::Written`]. A new number begins new
    /// data.
    Write {
        /// Names the snapshot that arrives.
        number: u64,
        /// At most what the window has room for.
        pieces: Vec<Bytes>,
        /// The data is whole: make it durable.
        is_last: bool,
    },
    /// The rest does not come: what was written goes. A write under way is of no use.
    EndWrite {
        /// Names the snapshot that arrived.
        number: u64,
    },
    /// Data that was made durable will not be named by a job.
    Discard(StoredData),
}

/// What became of a [`SnapshotJob`]. An error of the log ends the node, as it does elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotDone {
    /// Of [`SnapshotJob::Read`].
    Read {
        /// Names the transfer.
        transfer: u64,
        /// Where the piece starts.
        offset: u64,
        /// As many bytes as were asked for; `None` if another snapshot took the place of this one.
        data: Option<Bytes>,
    },
    /// Of [`SnapshotJob::Write`].
    Written {
        /// Names the snapshot that arrives.
        number: u64,
        /// The data, if it is whole and durable.
        stored: Option<StoredData>,
    },
}

/// What a snapshot consists of.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Memory(Bytes),
    Log(StoredData),
}

impl Content {
    pub(super) fn of(snapshot: &StoredSnapshot) -> Self {
        match snapshot.stored {
            Some(stored) => Self::Log(stored),
            None => Self::Memory(snapshot.data.clone()),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Memory(data) => data.len() as u64,
            Self::Log(stored) => stored.bytes,
        }
    }

    pub(super) fn into_snapshot(
        self,
        metadata: SnapshotMetadata,
        members: Members,
    ) -> StoredSnapshot {
        let (data, stored) = match self {
            Self::Memory(data) => (data, None),
            Self::Log(stored) => (Bytes::new(), Some(stored)),
        };
        StoredSnapshot {
            metadata,
            data,
            members,
            stored,
        }
    }
}

impl<T> Core<T> {
    /// Keeps data of snapshots in the log, in pieces. For a driver that does [`SnapshotJob`]s; to be called before the
    /// first input.
    pub fn stream_snapshots(&mut self) {
        self.streams = true;
    }

    /// A [`SnapshotJob`] is done.
    pub fn snapshot_done(&mut self, done: SnapshotDone) {
        match done {
            SnapshotDone::Read {
                transfer,
                offset,
                data,
            } => self.piece_read(transfer, offset, data),
            SnapshotDone::Written { number, stored } => self.pieces_written(number, stored),
        }
    }

    /// The state machine made a snapshot when it was at `index`, or says why it could not. After a failure it is asked
    /// again after some ticks, twice as many each time, up to eight election timeouts.
    pub fn snapshot_made(&mut self, index: u64, data: Result<Bytes, String>) {
        self.own_snapshot(index, data.map(Content::Memory));
    }

    /// The same for data that was written in pieces and is durable.
    pub fn snapshot_stored(&mut self, index: u64, data: Result<StoredData, String>) {
        self.own_snapshot(index, data.map(Content::Log));
    }

    fn own_snapshot(&mut self, index: u64, content: Result<Content, String>) {
        if !matches!(self.making, Making::Asked) {
            return;
        }
        self.making = Making::No;
        let content = match content {
            Ok(content) => content,
            Err(reason) => return self.snapshot_failed(reason.into()),
        };
        let (bytes, bytes_max) = (content.bytes(), self.options.snapshot_bytes_max as u64);
        if bytes > bytes_max {
            self.discard(&content);
            return self.snapshot_failed(too_large(bytes, bytes_max).into());
        }
        let term = self.node.store().term_at(index);
        let configuration = self
            .configurations
            .iter()
            .rev()
            .find(|configuration| configuration.from <= index);
        let (Some(term), Some(configuration)) = (term, configuration) else {
            // The leader's snapshot took the place of the log meanwhile.
            self.discard(&content);
            return self.snapshot_failed("the log moved on".into());
        };
        self.snapshot_retry = Retry::default();
        let mut metadata = SnapshotMetadata {
            index,
            term,
            ..Default::default()
        };
        metadata.set_conf_state(configuration.state.clone());
        let snapshot = content.into_snapshot(metadata, configuration.members.clone());
        let sequence = self.push_job(LogJob {
            snapshot: Some(snapshot.clone()),
            ..Default::default()
        });
        self.making = Making::Saving(sequence, Box::new(snapshot));
    }

    fn snapshot_failed(&mut self, reason: Arc<str>) {
        self.stats.snapshots_failed += 1;
        let retry = &mut self.snapshot_retry;
        let doublings = retry.failures.min(3);
        retry.failures += 1;
        retry.not_before_tick = self.ticks + ((self.options.election_ticks as u64) << doublings);
        for (token, _) in self.snapshot_waiters.drain(..) {
            let error = ProposeError::NoSnapshot {
                reason: Arc::clone(&reason),
            };
            self.out.replies.push((token, super::Reply::Failed(error)));
        }
        retry.reason = Some(reason);
    }

    /// Why the last snapshot could not be made, `None` if it could.
    #[must_use]
    pub fn snapshot_failure(&self) -> Option<&Arc<str>> {
        self.snapshot_retry.reason.as_ref()
    }

    pub(super) fn ask_for_snapshot(&mut self) {
        if self.ask_machine(ApplyJob::Snapshot) {
            self.is_snapshot_wanted = false;
        }
    }

    pub(super) fn ask_for_durable_index(&mut self) {
        self.ask_machine(ApplyJob::DurableIndex);
    }

    /// Whether the machine is asked now.
    fn ask_machine(&mut self, job: ApplyJob<T>) -> bool {
        let has_conf_state = !self.configurations.is_empty();
        let is_free = matches!(self.making, Making::No) && self.restoring.is_none();
        if is_free && has_conf_state {
            self.making = Making::Asked;
            self.snapshot_mark_bytes = self.node.store().appended_bytes();
            self.out.apply_jobs.push(job);
        }
        is_free && has_conf_state
    }

    /// The state machine is durable by itself: its [durable index](ApplyJob::DurableIndex) is as good as a snapshot for
    /// compacting the log. For a driver whose log keeps [`StoredData::IN_MACHINE`], and which starts the machine as
    /// [`Start::meet_machine`](super::Start::meet_machine) says; to be called before the first input.
    pub fn machine_is_durable(&mut self) {
        self.is_machine_durable = true;
    }

    /// The state machine says up to where it is durable, or why it cannot say. It is asked again later.
    pub fn durable_up_to(&mut self, index: Result<u64, String>) {
        if !matches!(self.making, Making::Asked) {
            return;
        }
        let known = self.node.store().snapshot_index();
        let index = match index {
            Ok(_) if mutant::is("durable_machine_says_more") => Ok(self.applied),
            // What is applied is committed.
            Ok(index) => Ok(index.min(self.applied)),
            Err(reason) => Err(reason),
        };
        let reason = match index {
            Ok(index) if index > known => {
                return self.own_snapshot(index, Ok(Content::Log(StoredData::IN_MACHINE)));
            }
            Ok(index) => format!("the state machine is durable up to {index}, and no further"),
            Err(reason) => reason,
        };
        self.making = Making::No;
        self.durable_asked_again = self.ticks + self.options.election_ticks as u64;
        // For those who are refused once the log is full.
        self.snapshot_retry.reason = Some(reason.into());
    }

    /// Data that no job will name goes.
    pub(super) fn discard(&mut self, content: &Content) {
        if let Content::Log(stored) = content
            && *stored != StoredData::IN_MACHINE
        {
            self.out.snapshot_jobs.push(SnapshotJob::Discard(*stored));
        }
    }

    /// A leader's snapshot that is whole and, where it is in the log, durable.
    pub(super) fn install(&mut self, message: Message, members: &Bytes, content: Content) {
        self.stats.snapshots_received += 1;
        let metadata = message.get_snapshot().get_metadata().clone();
        let (index, term) = (metadata.index, metadata.term);
        // The log may have come as far while the data was written.
        if self.stops_at_snapshot(index, term, message.term) {
            self.discard(&content);
            return;
        }
        let Ok(members) = Members::read(members) else {
            self.stats.messages_invalid += 1;
            self.discard(&content);
            return;
        };
        let _ = self.node.step(message);
        let accepted = self
            .node
            .snap()
            .is_some_and(|snapshot| snapshot.get_metadata().index == index);
        if accepted {
            self.arrived = Some(Box::new(content.into_snapshot(metadata, members)));
        } else {
            self.discard(&content);
        }
        self.draw_timeout();
    }

    pub(super) fn send_ack(&mut self, to: u64, ack: ChunkAck) {
        let frame = self.frame(to, Body::Ack(ack));
        self.out.frames.push(frame);
    }
}

/// Why a snapshot is not made.
pub(crate) fn too_large(bytes: u64, bytes_max: u64) -> String {
    format!("the state has {bytes} bytes, above `snapshot_bytes_max` = {bytes_max}")
}
