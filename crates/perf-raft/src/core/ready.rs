//! The drive loop: what Raft wants done, in the order that keeps its promises.
//!
//! A leader's messages leave at once, beside its own write of the same entries (Ongaro's thesis, 10.2.1). Everything a
//! follower or candidate says about its log or its vote waits for the write. What is committed goes to the state machine.

use super::backlog::Backlog;
use super::membership::Configuration;
use super::snapshots::Content;
use super::step::unpack;
use super::{AfterPersist, ApplyJob, ChangeKind, Core, Making, Outputs, Reply, lost_reply};
use crate::codec::{convert, wire};
use crate::error::ProposeError;
use crate::log::{LogJob, StoredSnapshot};
use crate::members::{Update, update_of};
use crate::primitive::mutant;
use prost::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, MessageType};
use raft::{Ready, StateRole};
use std::sync::Arc;

const UNREADABLE: &str =
    "a committed entry holds commands in a format that this version cannot read";

/// The longest list whose memory is kept: messages for some peers.
const SPARE_MAX: usize = 64;

impl<T> Core<T> {
    /// Moves everything there is to do into `out`, behind what it holds.
    pub fn poll(&mut self, out: &mut Outputs<T>) {
        self.draw_timeout();
        self.begin_reads();
        loop {
            while self.node.has_ready() {
                let is_empty = self.handle_ready();
                self.draw_timeout();
                self.begin_reads();
                if is_empty {
                    // What is committed is on disk, and being fetched.
                    break;
                }
            }
            // Each tick sees to the members of a group that is formed.
            if self.formed_now || !self.is_leader() {
                break;
            }
            self.see_to_members();
            if !self.node.has_ready() {
                break;
            }
        }
        let committed = self.node.raft.raft_log.committed;
        while self.batch_ends.front().is_some_and(|end| *end <= committed) {
            self.batch_ends.pop_front();
        }
        let applied = self.applied;
        let replies = &mut self.out.replies;
        self.reads.take_ready(applied, |token, result| {
            replies.push((token, super::read_reply(result)))
        });
        self.send_all_chunks();
        self.consider_snapshot();
        self.evict_entries();
        self.consider_fetch();
        self.take_outputs(out);
    }

    /// All jobs up to `sequence` are durable.
    pub fn persisted(&mut self, sequence: u64) {
        self.persisted_job = self.persisted_job.max(sequence);
        while self
            .after_persist
            .front()
            .is_some_and(|after| after.sequence <= self.persisted_job)
        {
            let Some(after) = self.after_persist.pop_front() else {
                break;
            };
            self.is_durable(after);
        }
        let saved = matches!(&self.making, Making::Saving(job, _) if *job <= self.persisted_job);
        if saved
            && let Making::Saving(_, snapshot) = std::mem::replace(&mut self.making, Making::No)
        {
            self.snapshot_saved(*snapshot);
        }
    }

    fn is_durable(&mut self, after: AfterPersist) {
        if let Some(hard_state) = after.hard_state {
            self.persisted_hard_state = hard_state;
        }
        self.node.on_persist_ready(after.number);
        let mut frames = after.frames;
        for mut frame in frames.drain(..) {
            // Numbered as they leave, so that those that did not wait do not make these look old.
            self.sequence += 1;
            frame.header.sequence = self.sequence;
            self.out.frames.push(frame);
        }
        keep(&mut self.spare_frames, frames);
        if let Some(snapshot) = after.install {
            self.out.apply_jobs.push(ApplyJob::Restore(snapshot));
        }
    }

    /// Whether it was empty.
    // Apart from `poll`, which often finds nothing and needs none of its stack.
    #[inline(never)]
    fn handle_ready(&mut self) -> bool {
        let mut ready = self.node.ready();
        let mut early = ready.take_messages();
        let mut late = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        let read_states = ready.take_read_states();
        let number = ready.number();
        let is_empty = early.is_empty()
            && late.is_empty()
            && committed.is_empty()
            && read_states.is_empty()
            && ready.ss().is_none()
            && ready.hs().is_none()
            && !ready.must_sync();
        let snapshot = self.take_snapshot(&ready);
        let entries = Some(ready.take_entries()).filter(|entries| !entries.is_empty());
        let entries = entries.map(Arc::new);
        // A commit alone needs no write, but must be there with the next entries: a node whose log holds a change of membership must find the
        // change before it committed when it starts again, or it campaigns with a membership too old to meet the quorums of today.
        let unwritten = self.unwritten_hard_state.take();
        let unwritten = unwritten.filter(|_| !mutant::is("commit_forgotten"));
        let hard_state = ready.hs().cloned().or(unwritten);
        let must_persist = ready.must_sync();
        if !must_persist {
            self.unwritten_hard_state.clone_from(&hard_state);
        }

        if let Some(snapshot) = &snapshot {
            self.node.mut_store().install(snapshot.clone());
            self.log_replaced(snapshot);
        }
        if let Some(entries) = &entries {
            self.note_first_table(entries);
            self.node.mut_store().append(entries);
        }
        self.node.advance_append_async(ready);

        // A single voter leads before its vote is durable; no peer may hear of that term yet.
        let term_is_durable = self.persisted_hard_state.0 == self.node.raft.term;
        let mut now = std::mem::take(&mut self.out.frames);
        let mut held = std::mem::take(&mut self.spare_frames);
        for message in early.drain(..) {
            let frames = if term_is_durable { &mut now } else { &mut held };
            self.put_frames(message, frames);
        }
        for message in late.drain(..) {
            // What a follower or candidate says waits, except that it heard the leader: that says nothing about the log, and a slow
            // disk must not cost the leader its office.
            let is_urgent = message.get_msg_type() == MessageType::MsgHeartbeatResponse;
            let goes = term_is_durable && is_urgent;
            self.put_frames(message, if goes { &mut now } else { &mut held });
        }
        self.out.frames = now;
        // One of the two has none: raft-rs makes a list anew for each `Ready`.
        keep(&mut self.node.raft.msgs, early);
        keep(&mut self.node.raft.msgs, late);
        let vote = hard_state.as_ref().map(|state| (state.term, state.vote));
        let install = snapshot.clone();
        let mut sequence = self.last_job;
        if must_persist {
            // No default for the rest: that would make a list of entries only to drop it.
            sequence = self.push_job(LogJob {
                sequence: 0,
                group: self.group,
                replaces_log: snapshot.is_some(),
                snapshot,
                compacted: None,
                entries: entries.unwrap_or_default(),
                hard_state,
                identity: None,
                removes_group: false,
            });
        }
        let after = AfterPersist {
            sequence,
            number,
            frames: held,
            // A hard state that was not written holds the durable term and vote too.
            hard_state: vote,
            install,
        };
        let premature = mutant::is("ack_before_persist");
        if sequence <= self.persisted_job || premature {
            self.is_durable(after);
        } else {
            self.after_persist.push_back(after);
        }
        self.hand_over(committed);
        for state in read_states {
            self.read_round_done(&state.request_ctx, state.index);
        }
        is_empty
    }

    /// Notes changes of role, term and leader since the last look.
    pub(super) fn note_role(&mut self) {
        let raft = &self.node.raft;
        let now = (raft.state, raft.term, raft.leader_id);
        if now == self.seen {
            return;
        }
        let (role_before, term_before, leader_before) = std::mem::replace(&mut self.seen, now);
        self.epoch += 1;
        self.note_news();
        let (role, term, leader) = now;
        if role != role_before && matches!(role, StateRole::Candidate | StateRole::PreCandidate) {
            self.stats.elections += u64::from(role_before != StateRole::PreCandidate);
        }
        let office_lost =
            role_before == StateRole::Leader && (role != StateRole::Leader || term != term_before);
        if office_lost {
            let deadline = self.ticks + 2 * self.options.election_ticks as u64;
            self.pending.orphan(deadline);
            self.batch_ends.clear();
            self.lease_until_ns = 0;
            self.end_transfers(|_| true);
            self.leave_office();
        }
        if role == StateRole::Leader && (role_before != StateRole::Leader || term != term_before) {
            self.office_tick = self.ticks;
            self.heard.clear();
        }
        if leader != leader_before || term != term_before {
            self.stats.leader_changes += u64::from(leader != 0);
            self.reads.leader_changed();
            self.settle_transfers(leader, term);
        }
    }

    /// What only the leader could have done is not done. Proposals that wait for the group to be formed are refused.
    fn leave_office(&mut self) {
        let replies = &mut self.out.replies;
        for change in self
            .changes
            .extract_if(.., |change| matches!(change.kind, ChangeKind::Asked { .. }))
        {
            replies.push((change.token, Reply::Failed(ProposeError::Unknown)));
        }
        self.forget_told();
        let hint = self.hint();
        for (_, token, _) in self.waiting.drain(..) {
            let error = ProposeError::NotLeader { hint };
            self.out.replies.push((token, Reply::Failed(error)));
        }
    }

    fn settle_transfers(&mut self, leader: u64, term: u64) {
        let settled = self.changes.extract_if(.., |change| {
            matches!(change.kind, ChangeKind::Transfer { term: began, .. } if leader != 0 && term > began)
        });
        for change in settled {
            let reply = match change.kind {
                ChangeKind::Transfer { to, .. } if to == leader => Reply::Transferred,
                _ => Reply::Failed(ProposeError::ProposalDropped),
            };
            self.out.replies.push((change.token, reply));
        }
    }

    /// The snapshot that Raft accepted, with the data that arrived for it.
    fn take_snapshot(&mut self, ready: &Ready) -> Option<StoredSnapshot> {
        let metadata = ready.snapshot().get_metadata();
        if metadata.index == 0 {
            // Raft had no use for what arrived.
            if let Some(arrived) = self.arrived.take() {
                self.discard(&Content::of(&arrived));
            }
            return None;
        }
        let arrived = self
            .arrived
            .take()
            .filter(|arrived| arrived.metadata.index == metadata.index);
        let Some(arrived) = arrived else {
            self.defect = Some("Raft accepted a snapshot whose data did not arrive");
            return None;
        };
        Some(StoredSnapshot {
            metadata: metadata.clone(),
            ..*arrived
        })
    }

    fn log_replaced(&mut self, snapshot: &StoredSnapshot) {
        let index = snapshot.metadata.index;
        self.restoring = Some(index);
        self.handed = index;
        self.backlog = Backlog::default();
        self.configurations.clear();
        self.configurations.push_back(Configuration {
            from: index,
            state: snapshot.metadata.get_conf_state().clone(),
            members: snapshot.members.clone(),
        });
        self.first_table = None;
        self.table_changed();
        let replies = &mut self.out.replies;
        self.pending
            .skipped_to(index, |token, lost| replies.push((token, lost_reply(lost))));
    }

    /// Gives committed entries to the state machine, and those of Raft's own to Raft.
    fn hand_over(&mut self, committed: Vec<Entry>) {
        let Some(last) = committed.last() else {
            return;
        };
        let index = last.index;
        let expected = self.pending.len_up_to(index).max(committed.len());
        let mut commands = Vec::with_capacity(expected);
        let mut waiting = Vec::with_capacity(expected.min(self.pending.len()));
        for entry in committed {
            let (at, term) = (entry.index, entry.term);
            let mut entered = None;
            let replies = &mut self.out.replies;
            let lost = |token, lost| replies.push((token, lost_reply(lost)));
            let first = commands.len();
            let found = |place, token| waiting.push((first + place, token));
            self.pending.committed(at, term, found, lost);
            match entry.entry_type {
                EntryType::EntryNormal if !entry.data.is_empty() => {
                    if unpack(entry, &mut commands).is_err() {
                        self.defect = Some(UNREADABLE);
                    }
                }
                // A leader's first entry, or a change of membership that Raft refused.
                EntryType::EntryNormal => {}
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    let change = conf_change(&entry);
                    entered = self.enter_membership(at, &change);
                }
            }
            if !self.changes.is_empty() {
                self.settle_changes(at, term, entered.as_ref());
            }
        }
        self.handed = index;
        if let Some(last) = commands.last() {
            self.last_command = last.index;
        }
        self.backlog.given(index, commands.len() as u64);
        self.stats.entries_applied += commands.len() as u64;
        self.stats.apply_batches += 1;
        self.stats.proposals_applied += waiting.len() as u64;
        self.out.apply_jobs.push(ApplyJob::Apply {
            commands,
            waiting,
            index,
        });
    }

    /// Asks for a snapshot when the log is long, or when a peer needs one.
    fn consider_snapshot(&mut self) {
        let view = self.node.store();
        self.is_snapshot_wanted |= view.take_wanted();
        if self.ticks < self.snapshot_retry.not_before_tick {
            return;
        }
        let entries = self.applied.saturating_sub(view.snapshot_index());
        // Since the last snapshot was asked for: the log itself may be kept longer, for a peer.
        let bytes = view.appended_bytes() - self.snapshot_mark_bytes;
        let limit = self
            .options
            .snapshot_log_bytes
            .min(self.options.log_bytes_max / 2);
        // Entries that were appended and not applied then are not in it: the log may be full before that much is new.
        let full = view.bytes() > self.options.log_bytes_max;
        let long = entries >= self.options.snapshot_entries
            || (entries > 0 && (full || bytes >= limit as u64));
        let is_asked_for = self.is_snapshot_wanted || !self.snapshot_waiters.is_empty();
        if is_asked_for || (long && !self.is_machine_durable) {
            self.ask_for_snapshot();
        } else if long && self.ticks >= self.durable_asked_again {
            self.ask_for_durable_index();
        }
    }

    fn snapshot_saved(&mut self, snapshot: StoredSnapshot) {
        let index = snapshot.metadata.index;
        if index < self.node.store().snapshot_index() {
            return;
        }
        self.stats.snapshots_made += 1;
        self.node.mut_store().set_snapshot(snapshot);
        let waiters = self
            .snapshot_waiters
            .drain(..)
            .map(|(token, _)| (token, Reply::Snapshot(index)));
        self.out.replies.extend(waiters);
        self.compact_log();
        // The latest membership at or before the snapshot must stay.
        while self
            .configurations
            .get(1)
            .is_some_and(|next| next.from <= index)
        {
            self.configurations.pop_front();
        }
    }
}

impl<T> Core<T> {
    /// Forgets entries that the snapshot holds, but for some that a peer may still need.
    ///
    /// A peer that is getting a snapshot needs what comes after it next. Without that it would get a newer snapshot each time, for ever, on a
    /// link that is hardly faster than the writes. So the log is kept for it, up to its bound, where proposals get `Busy`; and if it stays full
    /// for ten election timeouts, it is not kept any longer: one slow peer must not stop the others.
    fn compact_log(&mut self) {
        if !self.is_formed() {
            // Few entries, none of a client. A node whose entries are not those of the leader finds that out as long as
            // it has them.
            return;
        }
        let view = self.node.store();
        let crowded = view.bytes() >= self.options.snapshot_log_bytes;
        let kept = if crowded {
            0
        } else {
            self.options.log_entries_kept
        };
        // Raft itself reads from what it knows to be applied on, when it campaigns.
        let applied = match mutant::is("compact_above_applied") {
            true => u64::MAX,
            false => self.node.raft.raft_log.applied,
        };
        let mut limit = view.snapshot_index().saturating_sub(kept).min(applied);
        let patience = 10 * self.options.election_ticks as u64;
        if self.full_ticks < patience
            && !mutant::is("log_not_kept")
            && let Some(lowest) = self.lowest_transfer()
        {
            limit = limit.min(lowest);
        }
        // What live peers do not have yet, too, or who has just got a snapshot would need the next one; but not at the proposals' cost.
        if view.bytes() < self.options.log_bytes_max / 2
            && !mutant::is("log_not_kept")
            && let Some(lowest) = self.lowest_of_live_peers()
        {
            limit = limit.min(lowest);
        }
        if let Some(compacted) = self.node.mut_store().compact(limit) {
            self.push_job(LogJob {
                compacted: Some(compacted),
                ..Default::default()
            });
        }
    }

    /// What was kept for a peer goes when that has it, though no snapshot is made then.
    pub(super) fn tick_compaction(&mut self) {
        let bytes = self.node.store().bytes();
        self.full_ticks = if bytes > self.options.log_bytes_max {
            self.full_ticks + 1
        } else {
            0
        };
        if bytes >= self.options.snapshot_log_bytes {
            self.compact_log();
        }
    }
}

/// Keeps an emptied list's memory for the next one, where there is none and it is not that of a burst.
fn keep<T>(place: &mut Vec<T>, emptied: Vec<T>) {
    if place.capacity() == 0 && emptied.capacity() <= SPARE_MAX {
        *place = emptied;
    }
}

/// What an entry that changes the membership does to the table of members.
pub(super) fn table_update(entry: &Entry) -> Option<Update> {
    update_of(&conf_change(entry).context)
}

/// The change in a committed entry. Raft checked it when it was proposed; what cannot be read changes nothing.
fn conf_change(entry: &Entry) -> ConfChangeV2 {
    let read = match entry.entry_type {
        EntryType::EntryConfChange => wire::ConfChange::decode(entry.data.clone())
            .map_err(Into::into)
            .and_then(|change| {
                let single = convert::conf_change_single(change.change_type, change.node_id)?;
                Ok(ConfChangeV2 {
                    changes: vec![single].into(),
                    ..Default::default()
                })
            }),
        _ => wire::ConfChangeV2::decode(entry.data.clone())
            .map_err(Into::into)
            .and_then(convert::conf_change),
    };
    read.unwrap_or_else(|_: crate::codec::CodecError| ConfChangeV2 {
        transition: raft::eraftpb::ConfChangeTransition::Explicit,
        ..Default::default()
    })
}
