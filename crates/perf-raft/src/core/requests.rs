//! What clients ask for.

use super::step::Step;
use super::{Change, ChangeKind, Core, Reply, read_reply};
use crate::codec::ENTRY_ROOM_BYTES;
use crate::error::{ProposeError, ReadError};
use crate::primitive::mutant;
use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use std::sync::Arc;

/// Bytes of an entry with several commands. More per entry would save little more.
const SHARED_ENTRY_BYTES_MAX: usize = 64 * 1024;

/// No less than an entry with several commands takes beside its data, compared with one that has one.
const PACKED_ROOM_BYTES: usize = 16;

/// For so many election timeouts a caller waits for the snapshot that it asked for.
const SNAPSHOT_ELECTIONS_MAX: u64 = 1000;

impl<T> Core<T> {
    /// Proposes all of `batch` in as few steps as [`RaftOptions::message_bytes_max`](crate::RaftOptions::message_bytes_max)
    /// allows. Each token gets one answer: with its command when that is applied, or as a reply.
    pub fn propose(&mut self, batch: &mut Vec<(Bytes, T)>) {
        if batch.is_empty() {
            return;
        }
        if !self.is_leader() {
            let hint = self.hint();
            self.refuse(batch, |_| ProposeError::NotLeader { hint });
            return;
        }
        self.note_news();
        if !self.formed_now {
            self.wait_for_forming(batch);
            return;
        }
        // Other groups may have come above the bound that they share with this one. Entries that are applied here
        // make room before anything is refused.
        self.evict_entries();
        if let Some(error) = self.full() {
            self.refuse(batch, |_| error.clone());
            return;
        }
        let room = self
            .options
            .proposals_max
            .saturating_sub(self.pending.len());
        let limit = self.options.proposals_max as u64;
        let mut step = self.new_step(batch);
        for (data, token) in batch.drain(..) {
            let refused = if data.is_empty() {
                Some(ProposeError::Empty)
            } else if data.len() > self.options.proposal_bytes_max {
                Some(ProposeError::TooLarge {
                    bytes: data.len(),
                    limit: self.options.proposal_bytes_max,
                })
            } else if self.out_of_room(step.len(), room) {
                Some(ProposeError::Busy {
                    what: "proposals that wait",
                    limit,
                })
            } else {
                None
            };
            if let Some(error) = refused {
                self.out.replies.push((token, Reply::Failed(error)));
                continue;
            }
            if !step.takes(data.len()) {
                self.propose_step(&mut step);
            }
            step.push(data, token);
        }
        self.propose_step(&mut step);
    }

    fn new_step(&self, batch: &[(Bytes, T)]) -> Step<T> {
        let options = &self.options;
        // What carries the longest proposal carries an entry with several, also to a peer that takes shorter frames.
        let shortest = self.peer_limits.least().unwrap_or(usize::MAX);
        let entry_bytes_max = SHARED_ENTRY_BYTES_MAX
            .min(options.proposal_bytes_max.saturating_sub(PACKED_ROOM_BYTES))
            .min(shortest.saturating_sub(ENTRY_ROOM_BYTES));
        let bytes = batch.iter().map(|(data, _)| data.len()).sum();
        Step::new(
            options.message_bytes_max / 2,
            entry_bytes_max,
            batch.len(),
            bytes,
        )
    }

    /// Proposals of a group that is being formed wait for that, up to two election timeouts.
    fn wait_for_forming(&mut self, batch: &mut Vec<(Bytes, T)>) {
        let deadline = self.ticks + 2 * self.options.election_ticks as u64;
        let room = self
            .options
            .proposals_max
            .saturating_sub(self.waiting.len());
        let taken = batch.len().min(room);
        let waiting = batch
            .drain(..taken)
            .map(|(data, token)| (data, token, deadline));
        self.waiting.extend(waiting);
        let limit = self.options.proposals_max as u64;
        self.refuse(batch, |_| ProposeError::Busy {
            what: "proposals that wait",
            limit,
        });
    }

    /// The group is formed, or this node does not lead any more.
    pub(super) fn propose_waiting(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let mut batch = waiting
            .into_iter()
            .map(|(data, token, _)| (data, token))
            .collect();
        self.propose(&mut batch);
    }

    fn out_of_room(&self, gathered: usize, room_at_start: usize) -> bool {
        gathered >= room_at_start || self.pending.len() + gathered >= self.options.proposals_max
    }

    /// The bound that is reached, if one is.
    fn full(&self) -> Option<ProposeError> {
        if self.backlog.commands() > self.options.unapplied_entries_max {
            return Some(ProposeError::Busy {
                what: "commands that are not applied",
                limit: self.options.unapplied_entries_max,
            });
        }
        let view = self.node.store();
        if view.excess(1) > 0 {
            return Some(ProposeError::Busy {
                what: "bytes of entries in memory that are not applied",
                limit: view.memory_bytes_max() as u64,
            });
        }
        if view.bytes() <= self.options.log_bytes_max {
            return None;
        }
        if let Some(reason) = self.snapshot_failure() {
            return Some(ProposeError::NoSnapshot {
                reason: Arc::clone(reason),
            });
        }
        let what = if self.lowest_transfer().is_some() {
            "bytes of the log, kept for a follower that is getting a snapshot,"
        } else {
            "bytes of the log"
        };
        Some(ProposeError::Busy {
            what,
            limit: self.options.log_bytes_max as u64,
        })
    }

    fn refuse(&mut self, batch: &mut Vec<(Bytes, T)>, error: impl Fn(&Bytes) -> ProposeError) {
        let failed = batch
            .drain(..)
            .map(|(data, token)| (token, Reply::Failed(error(&data))));
        self.out.replies.extend(failed);
    }

    fn propose_step(&mut self, step: &mut Step<T>) {
        let (bytes, count) = (step.bytes(), step.len() as u64);
        let (entries, tokens) = step.take();
        if entries.is_empty() {
            return;
        }
        let first = self.node.raft.raft_log.last_index() + 1;
        let last = first + entries.len() as u64 - 1;
        let mut message = Message {
            from: self.id,
            ..Default::default()
        };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(entries.into());
        if self.node.step(message).is_ok() {
            self.stats.proposals += count;
            self.stats.proposal_batches += 1;
            self.batch_ends.push_back(last);
            let term = self.node.raft.term;
            for (place, token) in tokens {
                self.pending
                    .push(term, first + place as u64, token, self.ticks);
            }
            return;
        }
        let limit = self.options.uncommitted_bytes_max;
        let full = self.node.raft.uncommitted_size().saturating_add(bytes) > limit;
        let error = if full {
            ProposeError::Busy {
                what: "bytes of uncommitted proposals",
                limit: limit as u64,
            }
        } else {
            ProposeError::ProposalDropped
        };
        let failed = tokens.map(|(_, token)| (token, Reply::Failed(error.clone())));
        self.out.replies.extend(failed);
    }

    /// Asks for a linearizable read: answered with [`Reply::Read`] once the state machine is at least as far as the group was
    /// when it was asked. On a follower the leader is asked.
    pub fn read(&mut self, token: T) {
        self.note_news();
        if self.reads.len() >= self.options.reads_max {
            let error = ReadError::Busy {
                what: "reads that wait",
                limit: self.options.reads_max as u64,
            };
            self.out.replies.push((token, Reply::ReadFailed(error)));
            return;
        }
        self.reads.push(token, self.ticks);
    }

    /// Asks for a linearizable read without a round trip: only a leader whose lease holds can say yes.
    ///
    /// `now_ns` is the node's clock, read *after* the request was made: at an earlier time the lease may have held, and another leader may
    /// have acknowledged a write between that and the request.
    pub fn lease_read(&mut self, token: T, now_ns: u64) {
        if !mutant::is("lease_of_an_earlier_time") {
            self.set_now(now_ns);
        }
        if self.is_leader() {
            // A leader that sleeps renews no lease: the next one finds it again.
            self.note_news();
        }
        if !self.has_lease() {
            self.out
                .replies
                .push((token, Reply::ReadFailed(ReadError::NoLease)));
            return;
        }
        let index = self.node.raft.raft_log.committed;
        self.reads.push_confirmed(token, index, self.ticks);
    }

    /// Whether a quorum heard of this leader so recently that none of it votes for another yet.
    fn has_lease(&self) -> bool {
        let leads =
            self.options.lease_reads && self.is_leader() && self.node.raft.commit_to_current_term();
        if mutant::is("lease_without_quorum") {
            return leads;
        }
        leads && !self.handover.may_happen(self.node.raft.term) && self.now_ns < self.lease_until_ns
    }

    /// How long after a round began no member of its quorum votes for another. The first tick after a heartbeat may come
    /// at once, so one tick is not counted.
    pub(super) fn lease_ns(&self) -> u64 {
        let ticks = (self.options.election_ticks as u64).saturating_sub(1);
        let tick_ns = u64::try_from(self.options.tick.as_nanos()).unwrap_or(u64::MAX);
        let percent = u64::from(100 - self.options.clock_drift_max_percent.min(99));
        ticks.saturating_mul(tick_ns) / 100 * percent
    }

    /// Hands the leadership to a voter. Answered with [`Reply::Transferred`] once it leads, or as dropped after two election
    /// timeouts. Proposals are dropped meanwhile.
    pub fn transfer_leader(&mut self, to: u64, token: T) {
        let refusal = if !self.is_leader() {
            Some(ProposeError::NotLeader { hint: self.hint() })
        } else if !self.membership().voters.contains(&to) {
            Some(ProposeError::Refused {
                reason: "only a voter can lead".into(),
            })
        } else {
            None
        };
        if let Some(error) = refusal {
            self.out.replies.push((token, Reply::Failed(error)));
            return;
        }
        if to == self.id {
            self.out.replies.push((token, Reply::Transferred));
            return;
        }
        self.note_news();
        let term = self.node.raft.term;
        self.node.transfer_leader(to);
        self.changes.push(Change {
            token,
            deadline_tick: self.ticks + 2 * self.options.election_ticks as u64,
            kind: ChangeKind::Transfer { to, term },
        });
    }

    /// Asks for a snapshot now. Answered with [`Reply::Snapshot`] once one is durable, or with what hinders it, after 1000 election timeouts
    /// at the latest.
    pub fn make_snapshot(&mut self, token: T) {
        if self.configurations.is_empty() {
            let error = ProposeError::NoSnapshot {
                reason: "this node has not joined its group yet".into(),
            };
            self.out.replies.push((token, Reply::Failed(error)));
            return;
        }
        self.note_news();
        let deadline = self.ticks + SNAPSHOT_ELECTIONS_MAX * self.options.election_ticks as u64;
        self.snapshot_waiters.push((token, deadline));
        self.ask_for_snapshot();
    }

    /// Whether this leader may confirm reads: its group is formed, so no other group acknowledges writes under the same number.
    pub(super) fn may_answer(&self) -> bool {
        self.formed_now || mutant::is("read_before_formed")
    }

    /// Begins rounds for reads that wait, and renews the lease.
    pub(super) fn begin_reads(&mut self) {
        let raft = &self.node.raft;
        let leads = self.is_leader();
        let renew = leads
            && !self.is_asleep()
            && self.options.lease_reads
            && !self.reads.has_rounds()
            && self.ticks >= self.lease_renewed_tick + self.options.heartbeat_ticks as u64;
        if !renew && !self.reads.wants_round() {
            return;
        }
        // Before the group is formed, another one may have answered clients. The second is asked last: it takes a look into the log.
        if leads && (!self.may_answer() || !raft.commit_to_current_term()) {
            return;
        }
        if !leads && raft.leader_id == 0 {
            let hint = self.hint();
            let replies = &mut self.out.replies;
            self.reads.refuse_waiting(hint, |token, result| {
                replies.push((token, read_reply(result)))
            });
            return;
        }
        self.lease_renewed_tick = self.ticks;
        let number = self.reads.begin_round(self.ticks, self.now_ns, raft.term);
        // Unique over restarts: an answer to an earlier run's round must not confirm one of this run.
        let mut context = Vec::with_capacity(16);
        context.extend_from_slice(&self.session.to_le_bytes());
        context.extend_from_slice(&number.to_le_bytes());
        self.node.read_index(context);
    }

    /// The number of a round of this run, by the context of its heartbeats.
    fn round_of(&self, context: &[u8]) -> Option<u64> {
        let (session, number) = context.split_first_chunk::<8>()?;
        let is_ours = u64::from_le_bytes(*session) == self.session;
        let number = number.first_chunk::<8>().filter(|_| is_ours)?;
        Some(u64::from_le_bytes(*number))
    }

    /// An answer to a heartbeat, of this term, may end what stood against the lease.
    pub(super) fn note_lease_answer(&mut self, message: &Message) {
        if self.handover.may_happen(message.term)
            && message.get_msg_type() == MessageType::MsgHeartbeatResponse
            && let Some(round) = self.round_of(&message.context)
        {
            self.handover.answered(message.from, round);
        }
    }

    pub(super) fn read_round_done(&mut self, context: &[u8], index: u64) {
        let round = self.round_of(context);
        let Some((issued_ns, term)) = round.and_then(|number| self.reads.round_done(number, index))
        else {
            return;
        };
        self.stats.read_rounds += 1;
        if self.is_leader() && term == self.node.raft.term {
            self.lease_until_ns = self
                .lease_until_ns
                .max(issued_ns.saturating_add(self.lease_ns()));
        }
    }
}
