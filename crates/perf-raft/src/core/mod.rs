//! A Raft node without clock, thread, disk or socket.
//!
//! [`Core`] takes inputs (messages, proposals, ticks, "persisted up to", "applied up to") and yields [`Outputs`] (frames to
//! send, jobs for the log, jobs for the state machine, answers). The runtime drives it with tokio, the tests with a
//! simulated world: the same code, the same order of things.
//!
//! A driver calls any inputs, then [`Core::poll`], then does what the outputs say, and so on:
//!
//! - frames may be sent at once: whatever must be durable first is held back until [`Core::persisted`];
//! - log jobs go through [`run_jobs`](crate::log::run_jobs) in order, as many at a time as there are;
//! - jobs for the state machine are done in order;
//! - data of snapshots is read and written beside all that ([`SnapshotJob`]), if the driver
//!   [says](Core::stream_snapshots) that it can.

mod addresses;
mod backlog;
mod beginning;
mod fetching;
mod fork;
mod handover;
mod liveness;
mod log_segments;
mod membership;
mod messages;
mod outputs;
mod parts;
mod peer_limits;
mod pending;
mod reads;
mod ready;
mod receiving;
mod report;
mod requests;
mod sending;
mod sleep;
mod snapshots;
mod step;
mod terms;
mod validate;
mod view;

pub use crate::transport::encode_frames;
pub(crate) use addresses::ADDRESS_BYTES_MAX;
pub use beginning::{Start, bootstrap_state, open_log};
pub use fetching::Fetch;
#[doc(hidden)]
pub use fork::FORKED_BEFORE_FORMING;
pub use liveness::{HostView, Liveness, Reliance};
pub use membership::MembershipChange;
pub use outputs::{ApplyJob, Outputs, Reply};
pub use report::{Peer, RaftReport, Trouble};
pub(crate) use snapshots::too_large;
pub use snapshots::{SnapshotDone, SnapshotJob};

use crate::GroupId;
use crate::codec::Frame;
use crate::dedup::MessageDedup;
use crate::error::{LeaderHint, ProposeError, ReadError, StartError, StopReason};
use crate::log::{LogJob, LogOutline, LogState, StoredSnapshot};
use crate::members::Row;
use crate::memory::EntryMemory;
use crate::options::RaftOptions;
use crate::primitive::mutant;
use crate::transport::SendError;
use addresses::Addresses;
use backlog::Backlog;
use bytes::Bytes;
use fetching::Fetching;
use handover::Handover;
use membership::{Configuration, Heard};
use parts::Parts;
use peer_limits::PeerLimits;
use pending::{Lost, PendingProposals};
use perf_atomics::{RaftStatus, Role};
use raft::eraftpb::{ConfState, Entry, HardState};
use raft::{Config, NO_LIMIT, RawNode, StateRole};
use reads::Reads;
use receiving::Incoming;
use sending::{Delivered, Transfer};
use sleep::Sleep;
use std::collections::VecDeque;
use std::sync::Arc;
use view::LogView;

/// For so many election timeouts a proposal waits for its commit. The leader keeps its office while its peers answer heartbeats, which they do though their
/// disks hang.
const PROPOSAL_ELECTIONS_MAX: u64 = 60;

/// Streams of peers whose recent frames are remembered, four for each run of a peer.
const SESSIONS_MAX: usize = 256;

/// What a core starts from.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// This node's id, not 0.
    pub id: u64,
    /// The group.
    pub group: GroupId,
    /// Bounds and periods.
    pub options: RaftOptions,
    /// Where election timeouts come from.
    pub seed: u64,
    /// Which node this is, kept in its log: [`LogState::identity`].
    pub incarnation: u64,
    /// Names this start of the node in its frames and reads. Must be random and different for each start of each node: what two starts share
    /// their peers take for repeated deliveries.
    pub session: u64,
    /// The bound on the memory that entries take, which may be that of others too. For a core that is made by [`Core::open`].
    pub entry_memory: EntryMemory,
}

/// Counts of what a core did. All grow from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoreStats {
    /// Proposals that got a place in the log.
    pub proposals: u64,
    /// Proposals of this node that were given to the state machine with their waiter.
    pub proposals_applied: u64,
    /// Requests that were refused because this node does not lead.
    pub requests_redirected: u64,
    /// Proposals, changes of the membership and transfers that were refused for other reasons, were dropped, or have an unknown outcome.
    pub proposals_failed: u64,
    /// Reads that were refused for other reasons or were not confirmed in time.
    pub reads_failed: u64,
    /// Steps of Raft that proposed them: `proposals / proposal_batches` is the mean batch.
    pub proposal_batches: u64,
    /// Commands given to the state machine.
    pub entries_applied: u64,
    /// Jobs for the state machine that applied them.
    pub apply_batches: u64,
    /// Reads confirmed by a quorum.
    pub read_rounds: u64,
    /// Frames from peers.
    pub messages_received: u64,
    /// Frames to peers.
    pub messages_sent: u64,
    /// Frames that came a second time.
    pub messages_duplicate: u64,
    /// Frames that no correct peer sends.
    pub messages_invalid: u64,
    /// Appends refused because the state machine or the log is too far behind.
    pub appends_refused: u64,
    /// Elections this node began.
    pub elections: u64,
    /// Changes of the leader seen.
    pub leader_changes: u64,
    /// Snapshots made and durable.
    pub snapshots_made: u64,
    /// Snapshots the state machine could not make, or too large ones.
    pub snapshots_failed: u64,
    /// Snapshots sent whole.
    pub snapshots_sent: u64,
    /// Snapshots received whole.
    pub snapshots_received: u64,
    /// Snapshots that arrived and are not what their sender announced: they are sent anew.
    pub snapshots_damaged: u64,
    /// Votes and answers of nodes that have the id of a member and are not it.
    pub answers_of_strangers: u64,
    /// Frames of nodes that belong to another group, by its founders.
    pub messages_foreign: u64,
    /// Entries that were read from the log because they were not in memory: after the start, and for slow followers.
    pub entries_fetched: u64,
    /// Members that lost their disks and were made learners of their new incarnations.
    pub members_replaced: u64,
    /// Times the group fell asleep here.
    pub sleeps: u64,
    /// Times it was woken.
    pub wakes: u64,
}

/// Frames, a hard state and a snapshot that wait for jobs to be durable.
#[derive(Debug)]
struct AfterPersist {
    /// The job it waits for.
    sequence: u64,
    /// The `Ready` of raft-rs it belongs to.
    number: u64,
    frames: Vec<Frame>,
    /// The term and vote that are durable then.
    hard_state: Option<(u64, u64)>,
    /// The snapshot to restore then.
    install: Option<StoredSnapshot>,
}

/// A snapshot of our own between the state machine and the disk.
#[derive(Debug)]
enum Making {
    No,
    /// The state machine makes it.
    Asked,
    /// The log saves it, by this job.
    Saving(u64, Box<StoredSnapshot>),
}

/// When to try again to make a snapshot, after some that failed.
#[derive(Debug, Default)]
struct Retry {
    failures: u32,
    not_before_tick: u64,
    reason: Option<Arc<str>>,
}

/// A change of membership or a transfer that is going on.
#[derive(Debug)]
struct Change<T> {
    token: T,
    deadline_tick: u64,
    kind: ChangeKind,
}

#[derive(Debug)]
enum ChangeKind {
    /// Proposed at this index and term; entered once applied.
    Membership {
        index: u64,
        term: u64,
        entered: bool,
    },
    /// Not proposed yet: nodes that are to get a vote are learners until they have caught up, or another change is going on.
    Asked {
        steps: Vec<MembershipChange>,
        forced: bool,
    },
    Transfer {
        to: u64,
        term: u64,
    },
}

/// A Raft node without clock, thread, disk or socket. `T` is what answers are addressed by.
pub struct Core<T> {
    id: u64,
    group: GroupId,
    options: RaftOptions,
    node: RawNode<LogView>,
    seed: u64,
    session: u64,
    sequence: u64,
    ticks: u64,
    now_ns: u64,
    /// Counts changes of role, term and leader: election timeouts are drawn anew for each.
    epoch: u64,
    /// The epoch of the last draw and what was drawn.
    timeout: (u64, usize),
    seen: (StateRole, u64, u64),
    /// Ticks during which this node gives no vote, as the lease of a leader from before its start may hold.
    silent_ticks: u64,
    /// The first member of a group that never had a leader.
    begins: bool,
    dedup: MessageDedup,
    pending: PendingProposals<T>,
    reads: Reads<T>,
    changes: Vec<Change<T>>,
    /// With the tick at which they give up.
    snapshot_waiters: Vec<(T, u64)>,
    after_persist: VecDeque<AfterPersist>,
    /// Memory of a list of frames that waited for the log.
    spare_frames: Vec<Frame>,
    last_job: u64,
    persisted_job: u64,
    persisted_hard_state: (u64, u64),
    /// A commit that was in no job yet.
    unwritten_hard_state: Option<HardState>,
    /// What the state machine has been given, and what it has done.
    handed: u64,
    applied: u64,
    backlog: Backlog,
    /// The index of the snapshot that the state machine is being restored from.
    restoring: Option<u64>,
    incarnation: u64,
    log_damage: Option<Arc<str>>,
    /// Memberships by the index they hold from.
    configurations: VecDeque<Configuration>,
    /// The first table of members and its index, once it is in the log and as long as it is not applied.
    first_table: Option<(u64, Vec<Row>)>,
    /// [`Self::cluster`], for each frame.
    cluster_now: u64,
    /// [`Self::is_formed`], for each proposal.
    formed_now: bool,
    /// Proposals that wait for the group to be formed, with the tick at which they give up.
    waiting: VecDeque<(Bytes, T, u64)>,
    /// Of peers, since this node took office.
    heard: Vec<Heard>,
    office_tick: u64,
    /// The last tick at which a node of another group was told so.
    noticed_tick: u64,
    /// A peer of another group, with its founders.
    foreign: Option<(u64, Vec<u64>)>,
    /// A member said that this node is none any more.
    removed: bool,
    making: Making,
    snapshot_retry: Retry,
    /// [`LogView::appended_bytes`] when the last snapshot was asked for.
    snapshot_mark_bytes: u64,
    /// For so many ticks the log has been full.
    full_ticks: u64,
    transfers: Vec<Transfer>,
    transfer_count: u64,
    delivered: Vec<Delivered>,
    /// Data of snapshots is in the log, in pieces.
    streams: bool,
    /// The state machine says up to where it is durable: the log needs no snapshot to be compacted.
    is_machine_durable: bool,
    /// The last command that the machine was given.
    last_command: u64,
    /// When the machine is asked again up to where it is durable.
    durable_asked_again: u64,
    /// A peer needs a snapshot that there is not.
    is_snapshot_wanted: bool,
    /// Apart, as other things that most groups never have: a host may have ten thousand groups.
    incoming: Option<Box<Incoming>>,
    incoming_count: u64,
    /// A snapshot that arrived whole and is being given to Raft.
    arrived: Option<Box<StoredSnapshot>>,
    fetching: Fetching,
    lease_until_ns: u64,
    lease_renewed_tick: u64,
    handover: Handover,
    sleep: Sleep,
    addresses: Addresses,
    peer_limits: PeerLimits,
    parts: Parts,
    /// Messages that were sent in parts.
    part_count: u64,
    /// The tick since which the leader contradicts what is committed here.
    forked_since: Option<u64>,
    /// The last indexes of batches that are not committed.
    batch_ends: VecDeque<u64>,
    /// The commit index at the last tick.
    told_commit: u64,
    out: Outputs<T>,
    stats: CoreStats,
    defect: Option<&'static str>,
}

impl<T> std::fmt::Debug for Core<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("group", &self.group)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl<T> Core<T> {
    /// A node that starts from what its log holds; an empty state is a node that waits to be added to a group. All entries stay in memory until
    /// they are compacted: for a log that cannot be read beside its writes.
    ///
    /// If there is a snapshot, the first output restores it.
    ///
    /// # Errors
    /// [`StartError`] if an option is out of range or the state contradicts itself.
    pub fn new(config: CoreConfig, state: LogState) -> Result<Self, StartError> {
        config.options.check()?;
        let portion_bytes = config.options.message_bytes_max as u64;
        let view = LogView::load(config.group, state, portion_bytes)?;
        Self::with_view(config, view)
    }

    /// A node that starts from what [`open_log`] found.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn start(config: CoreConfig, start: Start) -> Result<Self, StartError> {
        match start {
            Start::Entries(state) => Self::new(config, state),
            Start::Outline(outline) => Self::open(config, outline),
        }
    }

    /// A node that starts from a log without the contents of its entries. They are fetched when they are needed ([`Outputs::fetches`]), and leave memory
    /// when they are applied and [`CoreConfig::entry_memory`] is above its bound.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn open(config: CoreConfig, outline: LogOutline) -> Result<Self, StartError> {
        config.options.check()?;
        let portion_bytes = config.options.message_bytes_max as u64;
        let memory = &config.entry_memory;
        let view = LogView::fetching(config.group, outline, portion_bytes, memory)?;
        Self::with_view(config, view)
    }

    fn with_view(config: CoreConfig, view: LogView) -> Result<Self, StartError> {
        let CoreConfig {
            id,
            group,
            options,
            seed,
            incarnation,
            session,
            entry_memory: _,
        } = config;
        if id == 0 {
            return Err(StartError::Options {
                option: "id",
                reason: "0 stands for no node".to_owned(),
            });
        }
        let hard_state = view.initial_hard_state().clone();
        let snapshot = view.snapshot().cloned();
        let applied = view.snapshot_index();
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft_config(id, applied, &options), view, &logger);
        let mut node = node.map_err(|error| StartError::Inconsistent {
            group: group.0,
            reason: error.to_string(),
        })?;
        // With a limit it measures each entry it hands out, by its own codec. `LogView` and `put_frames` keep to the limit.
        node.raft.max_msg_size = NO_LIMIT;
        node.raft.set_max_committed_size_per_ready(NO_LIMIT);
        let configuration = snapshot.as_ref().map(|snapshot| Configuration {
            from: applied,
            state: snapshot.metadata.get_conf_state().clone(),
            members: snapshot.members.clone(),
        });
        // A group that was never up has no lease to respect.
        let was_up = hard_state.term > 1 || hard_state.vote != 0;
        let begins = configuration
            .as_ref()
            .is_some_and(|now| !was_up && now.state.voters.iter().min() == Some(&id));
        let silent_ticks = if options.lease_reads && was_up {
            options.election_ticks as u64
        } else {
            0
        };
        let mut core = Self {
            id,
            group,
            seed,
            session: if mutant::is("session_of_seed") {
                mix(seed)
            } else {
                session
            },
            sequence: 0,
            ticks: 0,
            now_ns: 0,
            epoch: 0,
            timeout: (0, 0),
            seen: (StateRole::Follower, hard_state.term, 0),
            silent_ticks,
            begins,
            dedup: MessageDedup::new(SESSIONS_MAX),
            pending: PendingProposals::new(),
            reads: Reads::new(),
            changes: Vec::new(),
            snapshot_waiters: Vec::new(),
            after_persist: VecDeque::new(),
            spare_frames: Vec::new(),
            last_job: 0,
            persisted_job: 0,
            persisted_hard_state: (hard_state.term, hard_state.vote),
            unwritten_hard_state: None,
            handed: applied,
            applied,
            backlog: Backlog::default(),
            restoring: None,
            defect: None,
            incarnation,
            log_damage: None,
            configurations: configuration.into_iter().collect(),
            first_table: None,
            cluster_now: 0,
            formed_now: false,
            waiting: VecDeque::new(),
            heard: Vec::new(),
            office_tick: 0,
            noticed_tick: 0,
            foreign: None,
            removed: false,
            making: Making::No,
            snapshot_retry: Retry::default(),
            snapshot_mark_bytes: 0,
            full_ticks: 0,
            transfers: Vec::new(),
            transfer_count: 0,
            delivered: Vec::new(),
            streams: false,
            is_machine_durable: false,
            last_command: 0,
            durable_asked_again: 0,
            is_snapshot_wanted: false,
            incoming: None,
            incoming_count: 0,
            arrived: None,
            fetching: Fetching::default(),
            lease_until_ns: 0,
            lease_renewed_tick: 0,
            handover: Handover::default(),
            sleep: Sleep::default(),
            addresses: Addresses::default(),
            peer_limits: PeerLimits::default(),
            parts: Parts::default(),
            part_count: 0,
            forked_since: None,
            batch_ends: VecDeque::new(),
            told_commit: 0,
            out: Outputs::default(),
            stats: CoreStats::default(),
            options,
            node,
        };
        let found: Vec<Entry> = core.node.store().first_entries();
        core.note_first_table(&found);
        core.table_changed();
        core.draw_timeout();
        if let Some(snapshot) = snapshot {
            core.restoring = Some(applied);
            core.out.apply_jobs.push(ApplyJob::Restore(snapshot));
        }
        Ok(core)
    }

    /// Time passes by one [`RaftOptions::tick`]. `now_ns` is this node's monotonic clock, for leases.
    ///
    /// A driver must never tick faster than the clock, not even to catch up: others' leases rely on it.
    /// A node that [sleeps](Self::is_asleep) needs none, and nothing happens.
    pub fn tick(&mut self, now_ns: u64) {
        self.set_now(now_ns);
        if self.is_asleep() {
            return;
        }
        self.ticks += 1;
        // While a snapshot is restored the log and the state machine are apart, and raft-rs may not campaign. Nor while entries are on disk only that
        // it would look at then.
        if self.restoring.is_none() && !self.is_replaying() {
            if !self.is_itself() {
                // Its id stands for another node: it never asks for votes.
                self.node.raft.election_elapsed = 0;
            }
            self.node.tick();
            self.begin_group();
            self.draw_timeout();
            self.tell_commit();
        }
        self.tick_waiters();
        if self.is_leader() {
            self.see_to_members();
        }
        self.tick_address();
        self.tick_handover();
        self.tick_transfers();
        self.tick_incoming();
        self.tick_delivered();
        self.tick_compaction();
        self.tick_fork();
        self.tick_sleep();
    }

    /// The clock, for inputs between ticks.
    pub fn set_now(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
    }

    /// The transport did not take a message for a peer.
    pub fn not_sent(&mut self, peer: u64, error: SendError) {
        if let SendError::TooLarge { limit } = error {
            let session = self.session_of(peer);
            self.peer_limits.lower(peer, session, limit);
        }
        self.node.report_unreachable(peer);
    }

    /// The state machine is at `index`, as an [`ApplyJob`] said. For [`ApplyJob::Apply`] and [`ApplyJob::Restore`].
    pub fn applied(&mut self, index: u64) {
        if index < self.applied {
            return;
        }
        self.applied = index;
        self.backlog.applied(index);
        if self.restoring.is_some_and(|snapshot| index >= snapshot) {
            self.restoring = None;
        }
        let log = &self.node.raft.raft_log;
        let limit = log.committed.min(log.persisted);
        if index >= log.applied && index <= limit {
            self.node.advance_apply_to(index);
        }
        self.evict_entries();
    }

    /// What the node knows of itself.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        let raft = &self.node.raft;
        let is_learner = raft.prs().get(self.id).is_some() && !raft.promotable();
        RaftStatus {
            role: match raft.state {
                StateRole::Leader => Role::Leader,
                StateRole::Candidate => Role::Candidate,
                StateRole::PreCandidate => Role::PreCandidate,
                StateRole::Follower if is_learner => Role::Learner,
                StateRole::Follower => Role::Follower,
            },
            term: raft.term,
            leader_id: raft.leader_id,
            node_id: self.id,
            commit_index: raft.raft_log.committed,
            applied_index: self.applied,
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> CoreStats {
        self.stats
    }

    /// The present membership.
    #[must_use]
    pub fn membership(&self) -> ConfState {
        self.configuration()
            .map(|now| now.state.clone())
            .unwrap_or_default()
    }

    /// First and last index of the log.
    #[must_use]
    pub fn log_range(&self) -> (u64, u64) {
        (
            self.node.store().first(),
            self.node.raft.raft_log.last_index(),
        )
    }

    /// The term of an entry, if the log still has it.
    #[must_use]
    pub fn log_term(&self, index: u64) -> Option<u64> {
        self.node.store().term_at(index)
    }

    /// Bytes of the log, in memory and on disk.
    #[must_use]
    pub fn log_bytes(&self) -> usize {
        self.node.store().bytes()
    }

    /// Bytes of the entries in memory.
    #[must_use]
    pub fn log_memory_bytes(&self) -> usize {
        self.node.store().present_bytes()
    }

    /// Proposals without an answer.
    #[must_use]
    pub fn proposals_waiting(&self) -> usize {
        self.pending.len()
    }

    /// Whether everything in the log is committed and handed over. For simulations.
    #[doc(hidden)]
    pub fn is_whole(&self) -> bool {
        self.handed == self.node.raft.raft_log.last_index()
    }

    /// Says which of its invariants does not hold. For simulations, after each step.
    ///
    /// # Errors
    /// The invariant, with its numbers.
    #[doc(hidden)]
    pub fn check_invariants(&self) -> Result<(), String> {
        let log = &self.node.raft.raft_log;
        let compacted = self.node.store().first() - 1;
        if self.restoring.is_none() && compacted > log.applied {
            return Err(format!(
                "compacted up to {compacted}, Raft has applied {}",
                log.applied
            ));
        }
        if self.restoring.is_none() && log.applied > self.applied {
            return Err(format!(
                "Raft has applied {}, the state machine {}",
                log.applied, self.applied
            ));
        }
        if self.applied > self.handed {
            return Err(format!(
                "applied {}, handed over {}",
                self.applied, self.handed
            ));
        }
        let (durable, term) = (self.persisted_hard_state.0, self.node.raft.term);
        if durable > term {
            return Err(format!("term {durable} is durable, {term} is current"));
        }
        let last = log.last_index();
        for (id, progress) in self.node.raft.prs().iter() {
            if self.is_leader() && progress.matched > last {
                return Err(format!(
                    "peer {id} is said to have everything up to {}, and this leader ends at {last}",
                    progress.matched
                ));
            }
            if progress.next_idx <= progress.matched && *id != self.id {
                return Err(format!(
                    "peer {id} has everything up to {} and would get {} next",
                    progress.matched, progress.next_idx
                ));
            }
        }
        Ok(())
    }

    /// Says what is wrong if the core found its state contradictory: end the node then.
    #[must_use]
    pub fn defect(&self) -> Option<&'static str> {
        self.defect
    }

    /// Steps of Raft with proposals that are not committed yet.
    ///
    /// A driver that lets proposals gather while two are on their way gets large batches from many clients, and makes none of a few
    /// wait.
    #[must_use]
    pub fn batches_in_flight(&self) -> usize {
        self.batch_ends.len()
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> &RaftOptions {
        &self.options
    }

    /// Ends the node: everything that waits is answered with the reason, also what is in `apply_jobs`.
    pub fn stop(&mut self, reason: &StopReason, out: &mut Outputs<T>) {
        self.take_outputs(out);
        let failed = || Reply::Failed(ProposeError::Stopped(reason.clone()));
        let read_failed = || Reply::ReadFailed(ReadError::Stopped(reason.clone()));
        out.replies
            .extend(self.reads.drain().map(|token| (token, read_failed())));
        // These may be committed later or not.
        out.replies.extend(
            self.pending
                .drain()
                .map(|token| (token, Reply::Failed(ProposeError::Unknown))),
        );
        out.replies.extend(
            self.changes
                .drain(..)
                .map(|change| (change.token, failed())),
        );
        out.replies.extend(
            self.waiting
                .drain(..)
                .map(|(_, token, _)| (token, failed())),
        );
        out.replies.extend(
            self.snapshot_waiters
                .drain(..)
                .map(|(token, _)| (token, failed())),
        );
    }

    #[inline]
    fn take_outputs(&mut self, out: &mut Outputs<T>) {
        out.frames.append(&mut self.out.frames);
        out.log_jobs.append(&mut self.out.log_jobs);
        out.fetches.append(&mut self.out.fetches);
        if !self.out.snapshot_jobs.is_empty() {
            out.snapshot_jobs.append(&mut self.out.snapshot_jobs);
        }
        out.apply_jobs.append(&mut self.out.apply_jobs);
        for (_, reply) in &self.out.replies {
            match reply {
                Reply::Failed(ProposeError::NotLeader { .. })
                | Reply::ReadFailed(ReadError::NotLeader { .. }) => {
                    self.stats.requests_redirected += 1;
                }
                Reply::Failed(_) => self.stats.proposals_failed += 1,
                Reply::ReadFailed(_) => self.stats.reads_failed += 1,
                _ => {}
            }
        }
        out.replies.append(&mut self.out.replies);
    }

    fn hint(&self) -> LeaderHint {
        LeaderHint::of(self.node.raft.leader_id)
    }

    fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn push_job(&mut self, mut job: LogJob) -> u64 {
        self.last_job += 1;
        (job.sequence, job.group) = (self.last_job, self.group);
        self.out.log_jobs.push(job);
        self.last_job
    }

    /// Sets the election timeout of raft-rs, which draws its own from the thread's generator: the same inputs must have
    /// the same outputs.
    fn draw_timeout(&mut self) {
        self.note_role();
        let (epoch, drawn) = self.timeout;
        if epoch == self.epoch && drawn == self.node.raft.randomized_election_timeout() {
            return;
        }
        let ticks = self.options.election_ticks;
        let chance = mix(self.seed ^ mix(self.id) ^ mix(self.epoch).rotate_left(17));
        let timeout = ticks + usize::try_from(chance % ticks as u64).unwrap_or(0);
        self.timeout = (self.epoch, timeout);
        self.node.raft.set_randomized_election_timeout(timeout);
    }

    /// The first of a new group's members asks for votes at once and for an election timeout on: the others need not find out that there is no leader.
    fn begin_group(&mut self) {
        let raft = &self.node.raft;
        let options = &self.options;
        self.begins &= self.ticks <= options.election_ticks as u64
            && (raft.term, raft.vote, raft.leader_id) == (1, 0, 0);
        if self.begins && (self.ticks - 1).is_multiple_of(options.heartbeat_ticks as u64) {
            // It can only be refused, and the usual time passes then.
            let _ = self.node.campaign();
        }
    }

    /// Tells followers of a commit that no entries told them of. An empty append for each commit would double the messages of
    /// a group with few clients.
    fn tell_commit(&mut self) {
        let committed = self.node.raft.raft_log.committed;
        if committed > self.told_commit {
            self.told_commit = committed;
            self.node.ping();
        }
    }

    /// Answers requests whose time is over.
    fn tick_waiters(&mut self) {
        let replies = &mut self.out.replies;
        let round_ticks = self.options.election_ticks as u64;
        let age_max = PROPOSAL_ELECTIONS_MAX * round_ticks;
        self.pending.tick(self.ticks, age_max, |token, lost| {
            replies.push((token, lost_reply(lost)))
        });
        self.reads
            .tick(self.ticks, round_ticks, 4 * round_ticks, |token, result| {
                replies.push((token, read_reply(result)));
            });
        let ticks = self.ticks;
        let late: Vec<Change<T>> = self
            .changes
            .extract_if(.., |change| change.deadline_tick <= ticks)
            .collect();
        for change in late {
            let error = self.late_change(&change.kind);
            self.out.replies.push((change.token, Reply::Failed(error)));
        }
        while self
            .waiting
            .front()
            .is_some_and(|(_, _, deadline)| *deadline <= ticks)
        {
            let error = self.not_formed();
            if let Some((_, token, _)) = self.waiting.pop_front() {
                self.out.replies.push((token, Reply::Failed(error)));
            }
        }
        let replies = &mut self.out.replies;
        for (token, _) in self
            .snapshot_waiters
            .extract_if(.., |(_, deadline)| *deadline <= ticks)
        {
            let error = ProposeError::NoSnapshot {
                reason: "the state machine or the log took too long".into(),
            };
            replies.push((token, Reply::Failed(error)));
        }
    }

    /// Asks again where leadership was to be handed over. raft-rs says the word to campaign once, which a node ignores as long as it has not applied the
    /// change that made it a voter, and gives up after an election timeout.
    fn tick_handover(&mut self) {
        let raft = &self.node.raft;
        if !self.is_leader() || raft.lead_transferee.is_some() {
            return;
        }
        let asked = self.changes.iter().find_map(|change| match change.kind {
            ChangeKind::Transfer { to, term } if term == raft.term => Some(to),
            _ => None,
        });
        if let Some(to) = asked {
            self.node.transfer_leader(to);
        }
    }
}

fn raft_config(id: u64, applied: u64, options: &RaftOptions) -> Config {
    Config {
        id,
        applied,
        election_tick: options.election_ticks,
        heartbeat_tick: options.heartbeat_ticks,
        max_size_per_msg: options.message_bytes_max as u64,
        max_inflight_msgs: options.inflight_messages_max,
        check_quorum: true,
        pre_vote: true,
        // Followers learn of a commit with the next entries, or with the next tick: `tell_commit`.
        skip_bcast_commit: true,
        max_uncommitted_size: options.uncommitted_bytes_max as u64,
        ..Config::default()
    }
}

fn lost_reply(lost: Lost) -> Reply {
    Reply::Failed(match lost {
        Lost::Dropped => ProposeError::ProposalDropped,
        Lost::Unknown => ProposeError::Unknown,
    })
}

fn read_reply(result: Result<u64, ReadError>) -> Reply {
    match result {
        Ok(index) => Reply::Read(index),
        Err(error) => Reply::ReadFailed(error),
    }
}

/// splitmix64's finaliser: <https://prng.di.unimi.it/splitmix64.c>.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
