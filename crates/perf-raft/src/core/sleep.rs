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

use super::{Core, HostView, Making};
use crate::codec::{Body, FrameHeader, SleepKind, SleepNote};
use crate::core::Reliance;
use crate::primitive::mutant;
use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, StateRole};

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
    /// Of this host.
    host: HostView,
    /// The term and the membership in which hosts were expected last.
    expected: (u64, u64),
    /// When the last message of the leader came, by this node's clock.
    heard_ns: u64,
}

impl<T> Core<T> {
    /// Lets the group sleep once its leader has had nothing to do for so many ticks, from 1. To be called again when the view of its host's
    /// [`Liveness`](super::Liveness) has changed, which must be told of each sleep and each wake.
    pub fn allow_sleep(&mut self, after_ticks: u64, host: HostView) {
        (self.sleep.after_ticks, self.sleep.host) = (after_ticks, host);
    }

    /// Whether it sleeps: it needs no tick.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.sleep.is_asleep
    }

    /// Gives memory back that is kept for the next turns. For a driver whose group has fallen asleep.
    pub fn shrink_to_fit(&mut self) {
        self.after_persist.shrink_to_fit();
        self.spare_frames.shrink_to_fit();
        self.configurations.shrink_to_fit();
        self.waiting.shrink_to_fit();
        self.batch_ends.shrink_to_fit();
        self.changes.shrink_to_fit();
        self.snapshot_waiters.shrink_to_fit();
        self.transfers.shrink_to_fit();
        self.delivered.shrink_to_fit();
        self.heard.shrink_to_fit();
        self.out.shrink_to_fit();
        let raft = &mut self.node.raft;
        raft.msgs.shrink_to_fit();
        raft.raft_log.unstable.entries.shrink_to_fit();
        raft.maybe_free_inflight_buffers();
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
        if self.end_sleep() && leader != 0 && leader != self.id && !self.host_is_silent(leader) {
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
        if raft.state != StateRole::Leader && sleep.host.is_silent(raft.leader_id) {
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
        self.sleep.host.is_silent(id)
    }

    /// Whether a leader may leave a member out: its host is silent, or was never heard and the member is not either.
    fn is_away(&self, id: u64) -> bool {
        self.host_is_silent(id) || (self.sleep.host.is_missing(id) && !self.is_live(id))
    }

    /// On a leader, once for each term and membership: the members whose hosts should be [expected](super::Liveness::expect).
    pub fn take_expected(&mut self) -> Option<Vec<u64>> {
        let from = self.configuration()?.from;
        let now = (self.node.raft.term, from);
        if self.sleep.after_ticks == 0 || !self.is_leader() || self.sleep.expected == now {
            return None;
        }
        self.sleep.expected = now;
        let ids = self.node.raft.prs().iter().map(|(id, _)| *id);
        Some(ids.filter(|id| *id != self.id).collect())
    }

    fn send_sleep_note(&mut self, to: u64, kind: SleepKind) {
        let (host, stops) = self.sleep.host.note();
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
        let is_member = self.node.raft.prs().get(header.from).is_some();
        if note.kind == SleepKind::Woken && self.is_removed(header.from, note.index) {
            // A learner that was removed while it was away asks for its leader.
            if !mutant::is("removed_learner_is_not_told") {
                self.send_notice(header.from, true);
            }
            return;
        }
        let counts = is_member && self.ack_counts(header.from, header.incarnation);
        let is_current = note.term == self.node.raft.term || note.kind == SleepKind::Woken;
        if !counts || !is_current || self.sleep.after_ticks == 0 {
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
        let raft = &self.node.raft;
        let is_alone = raft.leader_id == 0 || raft.election_elapsed >= self.options.election_ticks;
        let is_learner = !raft.promotable() && raft.prs().get(self.id).is_some();
        let asks_for_leader = is_alone && is_learner && !self.removed;
        if asks_for_leader
            && self
                .ticks
                .is_multiple_of(self.options.election_ticks as u64)
        {
            // A learner asks for no votes, which would wake the others.
            let ids = raft.prs().iter().map(|(id, _)| *id);
            let peers: Vec<u64> = ids.filter(|id| *id != self.id).collect();
            for id in peers {
                self.send_sleep_note(id, SleepKind::Woken);
            }
        }
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

    /// Members that are to be asked: those that do not sleep, and are not away.
    fn members_awake(&self) -> Vec<u64> {
        let ids = self.node.raft.prs().iter().map(|(id, _)| *id);
        let is_asleep = |id: u64| self.sleep.agreed.iter().any(|(other, ..)| *other == id);
        ids.filter(|id| *id != self.id && !self.is_away(*id) && !is_asleep(*id))
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
            self.end_incoming();
        }
    }

    /// What keeps the group awake here, nothing if nothing does. For simulations.
    #[doc(hidden)]
    #[must_use]
    pub fn awake_for(&self) -> Vec<String> {
        let is = |(what, is): (&'static str, bool)| is.then(|| what.to_owned());
        let mut reasons: Vec<String> = self.work().filter_map(is).collect();
        if self.is_leader() {
            reasons.extend(self.members_work().filter_map(is));
            reasons.push(format!("members {:?} do not sleep", self.members_awake()));
        }
        reasons
    }

    /// Whether a leader has nothing to do, and knows that its members have not either.
    fn is_quiet(&self) -> bool {
        self.has_no_work() && !self.members_work().any(|(_, is)| is)
    }

    fn has_no_work(&self) -> bool {
        !self.work().any(|(_, is)| is)
    }

    /// What a leader has to do for its members.
    fn members_work(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        let lags = |id: u64, progress: &raft::Progress| {
            let has_all = progress.matched == last && progress.state != ProgressState::Snapshot;
            id != self.id && !has_all && !self.is_away(id)
        };
        let lags = raft.prs().iter().any(|(id, progress)| lags(*id, progress));
        [
            ("the group is not formed", !self.formed_now),
            ("leadership is handed over", raft.lead_transferee.is_some()),
            ("followers do not know the commit", self.told_commit < last),
            (
                "a member gets a snapshot",
                !self.transfers.is_empty() || !self.delivered.is_empty(),
            ),
            ("the log is full", self.full_ticks > 0),
            (
                "two memberships hold",
                !self.membership().voters_outgoing.is_empty(),
            ),
            ("a member lags", lags),
            (
                "members are to be replaced or promoted",
                !self.members_are_settled(),
            ),
        ]
        .into_iter()
    }

    /// What any member has to do.
    fn work(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let log = &self.node.raft.raft_log;
        let last = log.last_index();
        let applied = log.applied.min(self.applied).min(self.handed);
        [
            ("entries are not committed", log.committed < last),
            ("entries are not applied", applied < last),
            ("entries are not durable", !self.after_persist.is_empty()),
            (
                "proposals wait",
                self.pending.len() > 0 || !self.waiting.is_empty(),
            ),
            ("reads wait", self.reads.len() > 0),
            ("a change is going on", !self.changes.is_empty()),
            (
                "a snapshot is made",
                !matches!(self.making, Making::No) || !self.snapshot_waiters.is_empty(),
            ),
            (
                "a snapshot is restored",
                self.restoring.is_some() || self.arrived.is_some(),
            ),
            ("entries are fetched", self.fetching.is_under_way()),
            (
                "the leader contradicts the log",
                self.forked_since.is_some(),
            ),
            (
                "a lease of before the start may hold",
                self.ticks < self.silent_ticks,
            ),
            ("this node is no member", !self.is_itself() || self.removed),
            ("the address is not in the table", !self.address_is_told()),
        ]
        .into_iter()
    }
}
