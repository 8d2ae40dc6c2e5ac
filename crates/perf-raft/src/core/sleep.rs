//! Groups without news sleep: no tick, no frame, until something happens.
//!
//! A leader that has had nothing to do for some ticks asks its members to sleep. A member that has everything, applied and committed, says that it does
//! and stops ticking. Once all have said so the leader stops too; a member may be left out whose host is silent. From then on a
//! [`Liveness`](super::Liveness) stands in for heartbeats.
//!
//! | what | who wakes |
//! |---|---|
//! | a request | the node that got it; a follower tells its leader |
//! | a message of another kind than heartbeats and their answers | its receiver; a follower whose leader did not send it tells its leader |
//! | a host that the group relies on is silent, has another run, or stopped the group | the driver calls [`Core::wake`] |
//!
//! Leases: a sleeping leader renews none, and its clock goes on, so its lease ends. A sleeping follower answers heartbeats, and its promise to vote for no
//! other leader for an election timeout is counted from the last message of its leader, by its clock.

use super::{Core, Making};
use crate::codec::{Body, FrameHeader, SleepKind, SleepNote};
use crate::core::Reliance;
use crate::primitive::mutant;
use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, StateRole};
use std::sync::Arc;

/// Whether the group sleeps, and what it needs to know for that.
#[derive(Debug, Default)]
pub(super) struct Sleep {
    /// Ticks without news before a leader asks for sleep, 0 for never.
    after_ticks: u64,
    is_asleep: bool,
    quiet_ticks: u64,
    /// Members that sleep, with what the group relies on.
    agreed: Vec<(u64, u64, u64)>,
    /// On a member that sleeps: its leader, likewise.
    leader: Option<(u64, u64, u64)>,
    /// This host's run, and its stops.
    host: (u64, u64),
    /// Hosts that are silent.
    silent: Arc<[u64]>,
    /// When the last message of the leader came, by this node's clock.
    heard_ns: u64,
}

impl<T> Core<T> {
    /// Lets the group sleep once its leader has had nothing to do for so many ticks, from 1. `run` and `stops` are those of its host's
    /// [`Liveness`](super::Liveness), which must be told of each sleep and each wake; `silent` are its hosts that are silent. To be called again when they
    /// change.
    pub fn allow_sleep(&mut self, after_ticks: u64, (run, stops): (u64, u64), silent: Arc<[u64]>) {
        let sleep = &mut self.sleep;
        (sleep.after_ticks, sleep.host, sleep.silent) = (after_ticks, (run, stops), silent);
    }

    /// Whether it sleeps: it needs no tick.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.sleep.is_asleep
    }

    /// What a group that sleeps relies on.
    #[must_use]
    pub fn reliance(&self) -> Reliance {
        let sleep = &self.sleep;
        let hosts = match sleep.leader {
            Some(leader) => vec![leader],
            None => sleep.agreed.clone(),
        };
        let mut reliance = Reliance {
            hosts,
            ..Reliance::default()
        };
        if self.is_leader() {
            reliance.voters = self.membership().voters;
            let is_absent =
                |id: &u64| *id != self.id && !sleep.agreed.iter().any(|(other, ..)| other == id);
            let members = self.node.raft.prs().iter().map(|(id, _)| *id);
            reliance.absent = members.filter(is_absent).collect();
        }
        reliance
    }

    /// Ends the sleep, if it sleeps: what it relied on may be no more.
    pub fn wake(&mut self) {
        let leader = self.node.raft.leader_id;
        if self.end_sleep()
            && leader != 0
            && leader != self.id
            && !self.sleep.silent.contains(&leader)
        {
            self.send_sleep_note(leader, SleepKind::Woken);
        }
    }

    /// Returns whether it slept.
    fn end_sleep(&mut self) -> bool {
        let sleep = &mut self.sleep;
        if !std::mem::take(&mut sleep.is_asleep) {
            return false;
        }
        sleep.quiet_ticks = 0;
        sleep.agreed.clear();
        sleep.leader = None;
        self.stats.wakes += 1;
        let raft = &mut self.node.raft;
        if raft.state != StateRole::Leader && sleep.silent.contains(&raft.leader_id) {
            // The leader's host is silent. Time went on without ticks: the promise to the leader may be over by now.
            let tick_ns = u64::try_from(self.options.tick.as_nanos())
                .unwrap_or(u64::MAX)
                .max(1);
            let since_heard = self.now_ns.saturating_sub(sleep.heard_ns) / tick_ns;
            let elapsed = match mutant::is("lease_ends_with_the_sleep") {
                true => self.options.election_ticks,
                false => usize::try_from(since_heard).unwrap_or(usize::MAX),
            };
            raft.election_elapsed = raft
                .election_elapsed
                .max(elapsed.min(self.options.election_ticks));
        }
        true
    }

    /// Something happened that ends a leader's quiet time too.
    pub(super) fn note_news(&mut self) {
        self.sleep.quiet_ticks = 0;
        if self.sleep.is_asleep {
            self.wake();
        }
    }

    /// A message of a peer is given to Raft.
    pub(super) fn note_message(&mut self, message: &Message) {
        let raft = &self.node.raft;
        let is_of_leader = message.from == raft.leader_id && message.term == raft.term;
        if is_of_leader {
            self.sleep.heard_ns = self.now_ns;
        }
        if !self.sleep.is_asleep {
            return;
        }
        let is_idle = match message.get_msg_type() {
            MessageType::MsgHeartbeat => is_of_leader && message.commit <= raft.raft_log.committed,
            MessageType::MsgHeartbeatResponse => message.term == raft.term,
            MessageType::MsgAppendResponse => {
                let progress = raft.prs().get(message.from);
                message.term == raft.term
                    && !message.reject
                    && progress.is_some_and(|progress| message.index <= progress.matched)
            }
            // A node that was removed and does not know it. What changes the term or the leader wakes all the same.
            MessageType::MsgRequestPreVote | MessageType::MsgRequestVote => {
                raft.prs().get(message.from).is_none()
            }
            _ => false,
        };
        if is_idle || mutant::is("sleeper_misses_a_message") {
            return;
        }
        if is_of_leader {
            self.end_sleep();
        } else {
            self.wake();
        }
    }

    /// Whether a node's host was heard of and is silent now.
    pub(super) fn host_is_silent(&self, id: u64) -> bool {
        self.sleep.silent.contains(&id)
    }

    fn send_sleep_note(&mut self, to: u64, kind: SleepKind) {
        let (host, stops) = self.sleep.host;
        let note = SleepNote {
            kind,
            term: self.node.raft.term,
            index: self.node.raft.raft_log.last_index(),
            host,
            stops,
        };
        let frame = self.frame(to, Body::Sleep(note));
        self.out.frames.push(frame);
    }

    pub(super) fn receive_sleep_note(&mut self, header: &FrameHeader, note: SleepNote) {
        let counts = self.ack_counts(header.from, header.incarnation);
        if !counts || note.term != self.node.raft.term || self.sleep.after_ticks == 0 {
            return;
        }
        match note.kind {
            SleepKind::Ask => self.sleep_as_asked(header.from, note),
            SleepKind::Asleep => self.note_sleeper(header.from, note),
            SleepKind::Woken => {
                self.sleep.agreed.retain(|(id, ..)| *id != header.from);
                if self.is_leader() {
                    self.note_news();
                }
            }
        }
    }

    fn sleep_as_asked(&mut self, leader: u64, note: SleepNote) {
        let raft = &self.node.raft;
        let is_follower = raft.state == StateRole::Follower && raft.leader_id == leader;
        let is_whole = note.index == raft.raft_log.last_index() && self.has_no_work();
        if !is_follower || !is_whole {
            return;
        }
        self.begin_sleep();
        self.sleep.leader = Some((leader, note.host, note.stops));
        self.send_sleep_note(leader, SleepKind::Asleep);
    }

    fn note_sleeper(&mut self, from: u64, note: SleepNote) {
        if !self.is_leader()
            || self.sleep.is_asleep
            || note.index != self.node.raft.raft_log.last_index()
        {
            return;
        }
        let agreed = &mut self.sleep.agreed;
        agreed.retain(|(id, ..)| *id != from);
        agreed.push((from, note.host, note.stops));
        self.sleep_if_all_do();
    }

    /// Counts ticks without news on a leader, and asks for sleep.
    pub(super) fn tick_sleep(&mut self) {
        if self.sleep.after_ticks == 0 || !self.is_leader() {
            return;
        }
        if !self.is_quiet() {
            self.sleep.quiet_ticks = 0;
            self.sleep.agreed.clear();
            return;
        }
        self.sleep.quiet_ticks += 1;
        let over = self.sleep.quiet_ticks.checked_sub(self.sleep.after_ticks);
        let Some(over) = over else {
            return;
        };
        self.sleep_if_all_do();
        if self.sleep.is_asleep || !over.is_multiple_of(self.options.heartbeat_ticks as u64) {
            return;
        }
        for id in self.members_awake() {
            self.send_sleep_note(id, SleepKind::Ask);
        }
    }

    /// Members that are to be asked: those that do not sleep, and whose hosts are not known to be silent.
    fn members_awake(&self) -> Vec<u64> {
        let sleep = &self.sleep;
        let ids = self.node.raft.prs().iter().map(|(id, _)| *id);
        ids.filter(|id| {
            *id != self.id
                && !sleep.silent.contains(id)
                && !sleep.agreed.iter().any(|(other, ..)| other == id)
        })
        .collect()
    }

    fn sleep_if_all_do(&mut self) {
        let may = self.sleep.quiet_ticks >= self.sleep.after_ticks && self.is_quiet();
        if !may || !self.members_awake().is_empty() {
            return;
        }
        let agreed = self.sleep.agreed.iter().map(|(id, ..)| *id);
        let asleep = agreed.chain([self.id]).collect();
        if self.node.raft.prs().has_quorum(&asleep) {
            self.begin_sleep();
        }
    }

    fn begin_sleep(&mut self) {
        if !self.sleep.is_asleep {
            self.sleep.is_asleep = true;
            self.stats.sleeps += 1;
            // Of a snapshot that was not needed in the end.
            self.assembly = None;
        }
    }

    /// Whether a leader has nothing to do, and knows that its members have not either.
    fn is_quiet(&self) -> bool {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        let is_settled = |id: u64, progress: &raft::Progress| {
            let has_all = progress.matched == last && progress.state == ProgressState::Replicate;
            id == self.id || has_all || self.sleep.silent.contains(&id)
        };
        self.has_no_work()
            && self.formed_now
            && raft.lead_transferee.is_none()
            && self.told_commit == last
            && self.transfers.is_empty()
            && self.delivered.is_empty()
            && self.full_ticks == 0
            && self.membership().voters_outgoing.is_empty()
            && raft
                .prs()
                .iter()
                .all(|(id, progress)| is_settled(*id, progress))
            && self.members_are_settled()
    }

    /// Whether everything in the log is committed, applied and durable, and nothing waits.
    fn has_no_work(&self) -> bool {
        let log = &self.node.raft.raft_log;
        let last = log.last_index();
        let is_applied = last == log.committed
            && last == self.handed
            && last == self.applied
            && last == log.applied;
        is_applied
            && self.pending.len() == 0
            && self.reads.len() == 0
            && self.changes.is_empty()
            && self.waiting.is_empty()
            && self.snapshot_waiters.is_empty()
            && self.after_persist.is_empty()
            && self.arrived.is_none()
            && self.restoring.is_none()
            && matches!(self.making, Making::No)
            && !self.fetching.is_under_way()
            && self.forked_since.is_none()
            && self.ticks >= self.silent_ticks
            && self.is_itself()
            && !self.removed
            && self.address_is_told()
    }
}
