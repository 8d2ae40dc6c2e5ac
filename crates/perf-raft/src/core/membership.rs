//! Who is in the group, which nodes their ids stand for, and how that changes.
//!
//! A leader sees to it, one change at a time:
//!
//! - A new group is *formed*: once every voter follows the leader, their incarnations are pinned by an entry, and once every voter has that
//!   entry, another one says so. Before that, nothing is acknowledged. From then on each node that can be elected has the table, so a voter that
//!   lost its disk counts for nothing until it has joined again.
//! - A member that answers as another incarnation than the table's is *replaced*: it becomes a learner of its new incarnation, and a voter
//!   again once it has caught up. This holds from the moment the incarnations are pinned.
//! - A new voter is a learner first. It is *promoted* once a round of the log reached it within an election timeout (Ongaro's thesis, 4.2.1).

use super::{Change, ChangeKind, Core, Reply};
use crate::codec::FrameHeader;
use crate::error::ProposeError;
use crate::members::{Member, MemberRole, Members, PINNED, Row, Update, update_of};
use crate::primitive::mutant;
use prost::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message,
    MessageType,
};
use raft::{Progress, ProgressState, StateRole};

/// A step of a change of the membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MembershipChange {
    /// The node gets a vote. If it is new, it is a learner until it has caught up.
    AddVoter(u64),
    /// The node gets the log and no vote; a voter loses its vote.
    AddLearner(u64),
    /// The node leaves.
    Remove(u64),
}

impl MembershipChange {
    fn node(self) -> u64 {
        match self {
            Self::AddVoter(id) | Self::AddLearner(id) | Self::Remove(id) => id,
        }
    }

    fn to_single(self) -> ConfChangeSingle {
        let change_type = match self {
            Self::AddVoter(_) => ConfChangeType::AddNode,
            Self::AddLearner(_) => ConfChangeType::AddLearnerNode,
            Self::Remove(_) => ConfChangeType::RemoveNode,
        };
        ConfChangeSingle {
            change_type,
            node_id: self.node(),
            ..Default::default()
        }
    }
}

/// A membership with its table, and the index from which on it holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Configuration {
    pub(super) from: u64,
    pub(super) state: ConfState,
    pub(super) members: Members,
}

/// What a leader heard of a peer since it took office.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    id: u64,
    incarnation: u64,
    /// Of its frames: which start of the node it is.
    session: u64,
    last_tick: u64,
    /// Another incarnation than the table's: which, since when, and when last.
    stranger: Option<(u64, u64, u64)>,
    /// The present round of catching up: the index to reach, and when it began.
    round: Option<(u64, u64)>,
}

/// Whether the message says what a member has or wants, so that it counts for a quorum.
pub(super) fn is_answer(kind: MessageType) -> bool {
    matches!(
        kind,
        MessageType::MsgAppendResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse
    )
}

impl<T> Core<T> {
    pub(super) fn configuration(&self) -> Option<&Configuration> {
        self.configurations.back()
    }

    fn table(&self) -> &[Row] {
        let applied = self.configuration().map(|now| now.members.rows.as_slice());
        match applied {
            Some(rows) if !rows.is_empty() => rows,
            // The first table counts as soon as it is in the log.
            _ => self.first_table.as_ref().map_or(&[], |(_, rows)| rows),
        }
    }

    /// The incarnation that counts for an id: `None` if none is known, 0 for a learner that is yet to be heard of.
    fn incarnation_of(&self, id: u64) -> Option<u64> {
        let row = self.table().iter().find(|row| row.id == id);
        row.map(|row| row.incarnation)
    }

    /// Whether nothing in the table speaks against this node's votes.
    pub(super) fn is_itself(&self) -> bool {
        let counts = self.incarnation_of(self.id);
        counts.is_none_or(|counts| counts == self.incarnation || counts == 0)
            || mutant::is("old_incarnation_counts")
    }

    /// Whether the group has said that all its first voters know each other. For simulations.
    #[doc(hidden)]
    #[must_use]
    pub fn is_formed(&self) -> bool {
        self.configuration().is_some_and(|now| now.members.formed)
    }

    /// What this node's frames say of its group.
    pub(super) fn cluster(&self) -> u64 {
        let members = self.configuration().map(|now| &now.members);
        let cluster = members.map_or(0, |members| members.cluster(self.group));
        let pinned = if self.table().is_empty() { 0 } else { PINNED };
        cluster | pinned
    }

    /// Looks for the first table among entries that come into the log.
    pub(super) fn note_first_table(&mut self, entries: &[Entry]) {
        let applied = self
            .configuration()
            .is_some_and(|now| !now.members.rows.is_empty());
        let Some(first) = entries.first().filter(|_| !applied) else {
            return;
        };
        if self
            .first_table
            .as_ref()
            .is_some_and(|(at, _)| *at >= first.index)
        {
            self.first_table = None;
        }
        let is_change = |entry: &&Entry| entry.entry_type == EntryType::EntryConfChangeV2;
        for entry in entries.iter().filter(is_change) {
            let rows = super::ready::table_update(entry).map(|update| update.rows);
            if let Some(rows) = rows.filter(|rows| !rows.is_empty()) {
                self.first_table = Some((entry.index, rows));
            }
        }
        self.cluster_now = self.cluster();
    }

    /// Looks for the first table among entries that were in the log and come into memory. Later ones may be there by then.
    pub(super) fn note_fetched_table(&mut self, entries: &[Entry]) {
        let later = self.first_table.take();
        self.note_first_table(entries);
        self.first_table = self.first_table.take().or(later);
        self.cluster_now = self.cluster();
    }

    /// Whether a frame of a peer with this incarnation counts. Notes what a leader needs to know of it.
    pub(super) fn counts(&mut self, message: &Message, header: &FrameHeader) -> bool {
        let (kind, incarnation) = (message.get_msg_type(), header.incarnation);
        if !is_answer(kind) {
            return true;
        }
        let counted = self.incarnation_of(message.from);
        let is_stranger = counted.is_some_and(|counted| counted != 0 && counted != incarnation);
        let leads = self.is_leader() && message.term == self.node.raft.term;
        if leads {
            let is_unknown = counted.is_none_or(|counted| counted == 0);
            self.note_answer(header, is_stranger, is_unknown);
            if !is_stranger {
                self.note_lease_answer(message);
            }
        }
        if is_stranger {
            self.stats.answers_of_strangers += 1;
        }
        !is_stranger || mutant::is("old_incarnation_counts")
    }

    /// Whether what a node says beside Raft's messages is said by the member of that id.
    pub(super) fn ack_counts(&self, id: u64, incarnation: u64) -> bool {
        let counted = self.incarnation_of(id);
        counted.is_none_or(|counted| counted == 0 || counted == incarnation)
    }

    fn note_answer(&mut self, header: &FrameHeader, is_stranger: bool, is_unknown: bool) {
        let (id, incarnation, now) = (header.from, header.incarnation, self.ticks);
        let place = self.heard.iter().position(|heard| heard.id == id);
        let place = place.unwrap_or_else(|| {
            self.heard.push(Heard {
                id,
                incarnation: if is_stranger { 0 } else { incarnation },
                session: 0,
                // Not heard, if this was a stranger.
                last_tick: if is_stranger { self.office_tick } else { now },
                stranger: None,
                round: None,
            });
            self.heard.len() - 1
        });
        let heard = &mut self.heard[place];
        if is_stranger {
            heard.stranger = match heard.stranger {
                Some((of, since, _)) if of == incarnation => Some((of, since, now)),
                _ => Some((incarnation, now, now)),
            };
            return;
        }
        let changed = heard.incarnation != incarnation;
        (heard.incarnation, heard.session, heard.last_tick) = (incarnation, header.session, now);
        if changed && is_unknown {
            // It lost its disk before the table said which node it was: a learner, or a first voter.
            heard.round = None;
            self.forget_progress(id);
        }
    }

    /// What a peer is known to have does not hold for its new node.
    fn forget_progress(&mut self, id: u64) {
        let next = self.node.raft.raft_log.last_index() + 1;
        let window = self.options.inflight_messages_max;
        if let Some(progress) = self.node.raft.mut_prs().get_mut(id) {
            *progress = Progress::new(next, window);
        }
        self.transfers.retain(|transfer| transfer.to != id);
    }

    /// Whether a leader has nothing to see to among its members: all are known, none is to be promoted or replaced. Members whose hosts are silent
    /// can wait.
    pub(super) fn members_are_settled(&self) -> bool {
        let Some(now) = self.configuration() else {
            return false;
        };
        // A learner that never joined may know no member, and cannot say that it is there.
        let is_known = |row: &Row| {
            let heard = self
                .heard(row.id)
                .is_some_and(|heard| heard.incarnation != 0);
            row.incarnation != 0 || heard
        };
        let is_settled = |row: &Row| (is_known(row) && !row.promote) || self.host_is_silent(row.id);
        let patience = 2 * self.options.election_ticks as u64;
        let mut strangers = self.heard.iter().filter_map(|heard| heard.stranger);
        now.members.rows.iter().all(is_settled)
            && strangers.all(|(_, _, last)| self.ticks - last > patience)
    }

    /// The session of a peer's last answer, 0 if there was none.
    pub(super) fn session_of(&self, id: u64) -> u64 {
        self.heard(id).map_or(0, |heard| heard.session)
    }

    fn heard(&self, id: u64) -> Option<&Heard> {
        self.heard.iter().find(|heard| heard.id == id)
    }

    /// Heard of within two election timeouts. A new leader gives its peers that time.
    pub(super) fn is_live(&self, id: u64) -> bool {
        let patience = 2 * self.options.election_ticks as u64;
        let last = self
            .heard(id)
            .map_or(self.office_tick, |heard| heard.last_tick);
        id == self.id || (self.ticks - last < patience && !self.host_is_silent(id))
    }

    /// A leader sees to its members: forms the group, replaces and promotes. One entry at a time.
    pub(super) fn see_to_members(&mut self) {
        let raft = &self.node.raft;
        let settled = raft.state == StateRole::Leader
            && self.restoring.is_none()
            && raft.commit_to_current_term()
            && !raft.has_pending_conf();
        let Some(now) = self.configuration().filter(|_| settled) else {
            return;
        };
        if !now.state.voters_outgoing.is_empty() {
            return;
        }
        if now.members.formed {
            let _ = self.replace_stranger()
                || self.finish_change()
                || self.promote_learner()
                || self.enter_address();
        } else {
            // A first voter may lose its disk once the table is pinned: the group would wait for its former self for ever.
            let is_pinned = !now.members.rows.is_empty();
            let is_replaced = is_pinned && self.replace_stranger();
            if !is_replaced && !self.finish_change() {
                self.form_group();
            }
        }
    }

    /// Voters that the leader has not heard of since it took office, while the group is being formed.
    pub(super) fn missing_voters(&self) -> Vec<u64> {
        let voters = self.configuration().map(|now| now.state.voters.as_slice());
        let is_missing = |id: &&u64| {
            let matched = self
                .node
                .raft
                .prs()
                .get(**id)
                .map_or(0, |progress| progress.matched);
            let table_at = self.first_table.as_ref().map_or(0, |(at, _)| *at);
            **id != self.id
                && (self.heard(**id).is_none_or(|heard| heard.incarnation == 0)
                    || matched < table_at)
        };
        voters
            .unwrap_or_default()
            .iter()
            .filter(is_missing)
            .copied()
            .collect()
    }

    fn form_group(&mut self) {
        if !self.missing_voters().is_empty() && !mutant::is("formed_by_a_quorum") {
            return;
        }
        let Some(now) = self.configuration() else {
            return;
        };
        let is_pinned = !now.members.rows.is_empty();
        let voters = &now.state.voters;
        let incarnation = |id: u64| match self.heard(id) {
            _ if id == self.id => self.incarnation,
            Some(heard) => heard.incarnation,
            None => 0,
        };
        let rows = voters.iter().map(|&id| Row {
            id,
            incarnation: incarnation(id),
            ..Row::default()
        });
        let update = Update {
            forms: is_pinned,
            rows: if is_pinned {
                Vec::new()
            } else {
                rows.collect()
            },
        };
        // A change that changes nothing but the table: of a voter to a voter.
        self.propose_change(&[MembershipChange::AddVoter(self.id)], &update);
    }

    /// A member whose disk was lost joins again as a learner of its new incarnation. Its former self must be silent for an election timeout
    /// and the new one speak for longer than a heartbeat's period: a frame that was under way for long is no reason.
    fn replace_stranger(&mut self) -> bool {
        let silence = self.options.election_ticks as u64;
        let speech = self.options.heartbeat_ticks as u64;
        let found = self.heard.iter().find_map(|heard| {
            let (incarnation, since, last) = heard.stranger?;
            let is_settled = last - since >= speech
                && self.ticks - last <= 2 * speech
                && self.ticks - heard.last_tick >= silence;
            let counted = self.incarnation_of(heard.id)?;
            (is_settled && counted != incarnation).then_some((heard.id, incarnation))
        });
        let (Some((id, incarnation)), Some(now)) = (found, self.configuration()) else {
            return false;
        };
        let was_voter = now.state.voters.contains(&id);
        let promote = was_voter || now.members.row(id).is_some_and(|row| row.promote);
        let update = Update {
            forms: false,
            rows: vec![Row {
                id,
                incarnation,
                promote,
                ..Row::default()
            }],
        };
        self.stats.members_replaced += 1;
        self.propose_change(&[MembershipChange::AddLearner(id)], &update)
            .is_some()
    }

    /// Whether a learner has as good as everything: a round that began when it was last asked ended within an election timeout.
    fn has_caught_up(&mut self, id: u64) -> bool {
        let patience = self.options.election_ticks as u64;
        let (now, committed) = (self.ticks, self.node.raft.raft_log.committed);
        let progress = self.node.raft.prs().get(id);
        let Some(matched) = progress
            .filter(|progress| progress.state != ProgressState::Snapshot)
            .map(|progress| progress.matched)
        else {
            return false;
        };
        let is_known = |heard: &&mut Heard| heard.id == id && heard.incarnation != 0;
        let Some(heard) = self.heard.iter_mut().find(is_known) else {
            return false;
        };
        if now - heard.last_tick > patience {
            return false;
        }
        let (target, since) = *heard.round.get_or_insert((committed, now));
        if matched < target {
            return false;
        }
        if now - since <= patience {
            return true;
        }
        heard.round = Some((committed, now));
        false
    }

    /// The row that makes a voter of the node that has caught up.
    fn voter_row(&self, id: u64) -> Row {
        let known = self.incarnation_of(id).filter(|known| *known != 0);
        let heard = self.heard(id).map_or(0, |heard| heard.incarnation);
        Row {
            id,
            incarnation: known.unwrap_or(heard),
            ..Row::default()
        }
    }

    fn promote_learner(&mut self) -> bool {
        let Some(now) = self.configuration() else {
            return false;
        };
        let waiting: Vec<u64> = now
            .members
            .rows
            .iter()
            .filter(|row| row.promote && now.state.learners.contains(&row.id))
            .map(|row| row.id)
            .collect();
        for id in waiting {
            let change = [MembershipChange::AddVoter(id)];
            if self.has_caught_up(id) && self.quorum_refusal(&change).is_none() {
                let update = Update {
                    forms: false,
                    rows: vec![self.voter_row(id)],
                };
                return self.propose_change(&change, &update).is_some();
            }
        }
        false
    }

    /// Does the next part of what a client asked for: nodes that are to get a vote become learners, and once they have caught up, all of it is
    /// proposed at once.
    fn finish_change(&mut self) -> bool {
        let is_formed = self.formed_now;
        let asked = self.changes.iter().find_map(|change| match &change.kind {
            ChangeKind::Asked { steps, forced } if is_formed || *forced => Some(steps.clone()),
            _ => None,
        });
        let (Some(steps), Some(now)) = (asked, self.configuration()) else {
            return false;
        };
        let fresh = self.fresh_voters(&steps);
        let is_learner = |id: &u64| now.state.learners.contains(id);
        // If nothing else is asked for, the group itself remembers to promote them, under any leader.
        let promote = fresh.len() == steps.len();
        let is_promised =
            |id: &u64| !promote || now.members.row(*id).is_some_and(|row| row.promote);
        let unknown: Vec<u64> = fresh
            .iter()
            .copied()
            .filter(|id| !is_learner(id) || !is_promised(id))
            .collect();
        if !unknown.is_empty() {
            let rows = unknown
                .iter()
                .map(|id| self.learner_row(*id, promote))
                .collect();
            let update = Update { forms: false, rows };
            let learners: Vec<MembershipChange> = unknown
                .iter()
                .map(|id| MembershipChange::AddLearner(*id))
                .collect();
            return self.propose_change(&learners, &update).is_some();
        }
        let ready = fresh.iter().filter(|id| self.has_caught_up(**id)).count() == fresh.len();
        if !ready || (!fresh.is_empty() && self.quorum_refusal(&steps).is_some()) {
            return false;
        }
        let mut rows: Vec<Row> = fresh.iter().map(|id| self.voter_row(*id)).collect();
        rows.extend(steps.iter().filter_map(|step| match step {
            MembershipChange::AddLearner(id) => Some(self.learner_row(*id, false)),
            _ => None,
        }));
        let update = Update { forms: false, rows };
        let logged = self.propose_change(&steps, &update);
        if let Some((index, term)) = logged {
            for change in &mut self.changes {
                if matches!(change.kind, ChangeKind::Asked { .. }) {
                    change.kind = ChangeKind::Membership {
                        index,
                        term,
                        entered: false,
                    };
                }
            }
        }
        logged.is_some()
    }

    fn learner_row(&self, id: u64, promote: bool) -> Row {
        Row {
            id,
            incarnation: self.incarnation_of(id).unwrap_or(0),
            promote,
            ..Row::default()
        }
    }

    /// Nodes that the steps make voters and that are none.
    fn fresh_voters(&self, steps: &[MembershipChange]) -> Vec<u64> {
        let voters = self.configuration().map(|now| now.state.voters.as_slice());
        let voters = voters.unwrap_or_default();
        steps
            .iter()
            .filter_map(|step| match step {
                MembershipChange::AddVoter(id) if !voters.contains(id) => Some(*id),
                _ => None,
            })
            .collect()
    }

    /// Where the entry is, if Raft took it.
    pub(super) fn propose_change(
        &mut self,
        steps: &[MembershipChange],
        update: &Update,
    ) -> Option<(u64, u64)> {
        let changes: Vec<ConfChangeSingle> = steps.iter().map(|step| step.to_single()).collect();
        let change = ConfChangeV2 {
            changes: changes.into(),
            context: update.encode_to_vec().into(),
            ..Default::default()
        };
        let index = self.node.raft.raft_log.last_index() + 1;
        let term = self.node.raft.term;
        let pending = self.node.raft.pending_conf_index;
        let proposed = self.node.propose_conf_change(Vec::new(), change);
        if proposed.is_err() && !mutant::is("refused_change_is_pending") {
            // Raft counts it as pending before it finds no room for it: no other change would be taken until somebody writes.
            self.node.raft.pending_conf_index = pending;
        }
        proposed.ok().map(|()| (index, term))
    }

    /// Changes the membership: one step directly, several at once by joint consensus, which is left by itself. Nodes that are to get a vote are
    /// learners first, until they have caught up. Answered with [`Reply::Membership`] once the group is in the new one, after ten
    /// election timeouts at the latest with an error that says what has been done.
    ///
    /// A change is refused that would leave fewer live voters than a quorum of them, unless it is `forced`.
    pub fn change_membership(&mut self, steps: &[MembershipChange], forced: bool, token: T) {
        let mut refusal = self.refuse_change(steps);
        if !forced {
            refusal = refusal.or_else(|| self.quorum_refusal(steps));
        }
        if let Some(error) = refusal {
            self.out.replies.push((token, Reply::Failed(error)));
            return;
        }
        self.note_news();
        self.changes.push(Change {
            token,
            deadline_tick: self.ticks + 10 * self.options.election_ticks as u64,
            kind: ChangeKind::Asked {
                steps: steps.to_vec(),
                forced,
            },
        });
        self.see_to_members();
    }

    pub(super) fn not_formed(&self) -> ProposeError {
        ProposeError::NotFormed {
            missing: self.missing_voters(),
        }
    }

    /// Whether too few of the voters that the steps lead to are alive.
    fn quorum_refusal(&self, steps: &[MembershipChange]) -> Option<ProposeError> {
        let mut voters = self.membership().voters;
        for step in steps {
            voters.retain(|id| *id != step.node());
            if let MembershipChange::AddVoter(id) = step {
                voters.push(*id);
            }
        }
        let fresh = self.fresh_voters(steps);
        let is_dead = |id: &u64| !self.is_live(*id) && !fresh.contains(id);
        let dead: Vec<u64> = voters.iter().copied().filter(is_dead).collect();
        let (live, quorum) = (voters.len() - dead.len(), voters.len() / 2 + 1);
        (live < quorum).then(|| ProposeError::Refused {
            reason: format!(
                "of the {} voters that it leads to, {dead:?} have not been heard of for two election timeouts, and {quorum} must be alive: \
                 start them or remove them first, or force the change",
                voters.len()
            )
            .into(),
        })
    }

    fn refuse_change(&self, steps: &[MembershipChange]) -> Option<ProposeError> {
        let refused = |reason: &'static str| {
            Some(ProposeError::Refused {
                reason: reason.into(),
            })
        };
        if !self.is_leader() {
            return Some(ProposeError::NotLeader { hint: self.hint() });
        }
        if steps.is_empty() || steps.iter().any(|step| step.node() == 0) {
            return refused("a change needs at least one step, and 0 is no node");
        }
        if steps.len() > MEMBERS_MAX {
            return refused("a change has at most 1000 steps");
        }
        let mut nodes: Vec<u64> = steps.iter().map(|step| step.node()).collect();
        nodes.sort_unstable();
        if nodes.windows(2).any(|pair| pair[0] == pair[1]) {
            return refused("a node may be in a change only once");
        }
        let leaves = |step: &MembershipChange| matches!(step, MembershipChange::Remove(id) | MembershipChange::AddLearner(id) if *id == self.id);
        if steps.iter().any(leaves) {
            return refused("a leader does not remove itself: transfer the leadership first");
        }
        let membership = self.membership();
        let members = membership.voters.len() + membership.learners.len();
        let fresh = steps
            .iter()
            .filter(|step| !matches!(step, MembershipChange::Remove(_)));
        if members + fresh.count() > MEMBERS_MAX {
            return refused("a group has at most 1000 members");
        }
        let is_going_on = self
            .changes
            .iter()
            .any(|change| !matches!(change.kind, ChangeKind::Transfer { .. }));
        // What the leader itself began is waited for.
        if is_going_on {
            return refused("another change of the membership is going on: wait for it");
        }
        None
    }

    /// Enters the membership of a committed change, and returns it unless the change is impossible.
    pub(super) fn enter_membership(
        &mut self,
        index: u64,
        change: &ConfChangeV2,
    ) -> Option<ConfState> {
        let entered = self.node.apply_conf_change(change).ok();
        if let Some(state) = &entered {
            self.lease_until_ns = 0;
            let update = update_of(&change.context).unwrap_or_default();
            let before = self.configuration().map(|now| now.members.clone());
            let before = before.unwrap_or_default();
            let members = before.changed(&update, state);
            self.configurations.push_back(Configuration {
                from: index,
                state: state.clone(),
                members,
            });
            for row in &update.rows {
                let is_other = before
                    .incarnation(row.id)
                    .is_some_and(|old| old != 0 && old != row.incarnation);
                if is_other {
                    self.forget_progress(row.id);
                    self.heard.retain(|heard| heard.id != row.id);
                }
            }
            self.table_changed();
        }
        let raft = &self.node.raft;
        if raft.state == StateRole::Leader && !raft.promotable() {
            // Removed while it led: raft-rs would go on and stumble over its own absence.
            let term = raft.term;
            self.node.raft.become_follower(term, 0);
        }
        entered
    }

    /// What depends on the table and is asked often.
    pub(super) fn table_changed(&mut self) {
        self.cluster_now = self.cluster();
        let is_formed = self.is_formed();
        let was_formed = std::mem::replace(&mut self.formed_now, is_formed);
        if is_formed && !was_formed {
            self.propose_waiting();
        }
    }

    /// Answers changes of membership: `entered` is the membership from `index` on, or `None` if there is nothing new.
    pub(super) fn settle_changes(&mut self, index: u64, term: u64, entered: Option<&ConfState>) {
        for change in &mut self.changes {
            if let ChangeKind::Membership {
                index: at,
                term: of,
                entered: inside,
            } = &mut change.kind
                && (*at, *of) == (index, term)
            {
                *inside = entered.is_some();
            }
        }
        let is_whole = entered.is_some_and(|state| state.voters_outgoing.is_empty());
        let settled = self.changes.extract_if(.., |change| match &change.kind {
            ChangeKind::Membership {
                index: at,
                term: of,
                entered: inside,
            } => {
                (*inside && is_whole)
                    || (!*inside
                        && *at <= index
                        && (*at < index || *of != term || entered.is_none()))
            }
            // Promoted by another leader, or by what the group remembers.
            ChangeKind::Asked { steps, .. } => entered.is_some_and(|state| {
                steps.iter().all(|step| {
                    matches!(step, MembershipChange::AddVoter(id) if state.voters.contains(id))
                })
            }),
            ChangeKind::Transfer { .. } => false,
        });
        for change in settled {
            let entered_it = matches!(
                change.kind,
                ChangeKind::Membership { entered: true, .. } | ChangeKind::Asked { .. }
            );
            let reply = match entered {
                Some(state) if entered_it => Reply::Membership(Box::new(state.clone())),
                _ => Reply::Failed(ProposeError::ProposalDropped),
            };
            self.out.replies.push((change.token, reply));
        }
    }

    /// The error for a change whose time is over.
    pub(super) fn late_change(&self, kind: &ChangeKind) -> ProposeError {
        match kind {
            ChangeKind::Membership { .. } => ProposeError::Unknown,
            ChangeKind::Transfer { .. } => ProposeError::ProposalDropped,
            ChangeKind::Asked { .. } if !self.formed_now => self.not_formed(),
            ChangeKind::Asked { steps, .. } => match self.fresh_voters(steps) {
                nodes if nodes.is_empty() => ProposeError::ProposalDropped,
                nodes => ProposeError::NotCaughtUp {
                    is_promoted_later: nodes.len() == steps.len(),
                    nodes,
                },
            },
        }
    }

    /// The present members with what they are.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let mut members = Vec::new();
        self.put_members(&mut members);
        members
    }

    /// [`Self::members`] in the place of what `members` holds.
    pub(super) fn put_members(&self, members: &mut Vec<Member>) {
        members.clear();
        let Some(now) = self.configuration() else {
            return;
        };
        let state = &now.state;
        let role = |id: u64| {
            if state.voters.contains(&id) {
                MemberRole::Voter
            } else if state.voters_outgoing.contains(&id) {
                MemberRole::LeavingVoter
            } else if now.members.row(id).is_some_and(|row| row.promote) {
                MemberRole::JoiningVoter
            } else {
                MemberRole::Learner
            }
        };
        let voting = state.voters.iter().chain(&state.voters_outgoing);
        members.extend(voting.chain(&state.learners).map(|&id| Member {
            id,
            role: role(id),
            incarnation: self.incarnation_of(id).filter(|of| *of != 0),
            address: now.members.address(id).map(str::to_owned),
        }));
        members.sort_unstable_by_key(|member| member.id);
        members.dedup_by_key(|member| member.id);
    }
}

/// Members of a group: their table fits a frame's metadata.
pub(super) const MEMBERS_MAX: usize = 1000;
