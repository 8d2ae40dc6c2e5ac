//! A node whose committed entries are not the leader's.
//!
//! Raft excludes that as long as voters keep their disks. Until a group is formed a voter may lose its disk and come back as if it was new, and with another
//! one that is really new elect a leader that lacks what the rest has committed: entries of Raft's own and no client's, since nothing is acknowledged
//! before. The node that is left over gets a snapshot, which takes the place of its log. If the leader can make none, since too few agree with it, the node
//! stops and says that its files may go. A node of a group that was formed stops at once: what it has may have been acknowledged.

use super::Core;
use crate::codec::Body;
use crate::primitive::mutant;
use raft::eraftpb::{Message, MessageType};

const FORKED: &str = "the leader contradicts what is committed here: disks of a quorum were lost, or a node started from an old copy of its log; keep \
     this node's files, they may have what the others lost";

/// Why a node stops that has something of a group that was never formed. Its files may go.
#[doc(hidden)]
pub const FORKED_BEFORE_FORMING: &str = "what is committed here contradicts the leader, and belongs to a group that was never formed, so nothing of it was \
     acknowledged: empty this node's folder and start it again";

/// For so many election timeouts a leader may send a snapshot to a node that contradicts it. One without a quorum of its own cannot make one.
const FORKED_ELECTIONS_MAX: u64 = 10;

impl<T> Core<T> {
    /// The term of an entry that is in this node's log.
    fn known_term(&self, index: u64) -> Option<u64> {
        let term = self.node.raft.raft_log.term(index).ok();
        term.filter(|term| *term != 0)
    }

    /// Whether the append of a leader would replace something that is committed here.
    pub(super) fn contradicts_committed(&mut self, message: &Message) -> bool {
        let raft = &self.node.raft;
        if message.term < raft.term || self.restoring.is_some() {
            return false;
        }
        if message.index > raft.raft_log.committed {
            // Another leader's entries fit: what they bring may be acknowledged, so this node must not stop and say that its files may go.
            if self.forked_since.is_some()
                && self.known_term(message.index) == Some(message.log_term)
            {
                self.forked_since = None;
            }
            return false;
        }
        let committed = raft.raft_log.committed;
        let entries = message.entries.iter();
        let mut covered = entries.take_while(|entry| entry.index <= committed);
        let is_fork = self.is_other(message.index, message.log_term)
            || covered.any(|entry| self.is_other(entry.index, entry.term));
        if !is_fork {
            self.forked_since = None;
        }
        is_fork
    }

    /// Whether Raft takes no snapshot at this place: what this node has committed goes as far. One at the very index of a forked node it takes.
    pub(super) fn is_useless(&self, index: u64, term: u64) -> bool {
        let committed = self.node.raft.raft_log.committed;
        index < committed || (index == committed && !self.is_other(index, term))
    }

    /// Whether a leader's snapshot contradicts what is committed in a formed group. Then this node stops.
    pub(super) fn stops_at_snapshot(&mut self, index: u64, term: u64, of_term: u64) -> bool {
        let raft = &self.node.raft;
        let is_fork = index <= raft.raft_log.committed
            && of_term >= raft.term
            && self.is_formed()
            && self.is_other(index, term);
        if is_fork {
            self.defect = Some(FORKED);
        }
        is_fork
    }

    fn is_other(&self, index: u64, term: u64) -> bool {
        self.known_term(index).is_some_and(|known| known != term)
    }

    /// Tells the leader what is committed here, which is what it needs to know; or stops the node.
    pub(super) fn refuse_contradiction(&mut self, message: &Message) {
        if self.is_formed() {
            self.defect = Some(FORKED);
            return;
        }
        self.forked_since.get_or_insert(self.ticks);
        let raft = &self.node.raft;
        if message.term != raft.term {
            // A heartbeat raises the term.
            return;
        }
        let committed = raft.raft_log.committed;
        let mut refusal = Message {
            from: self.id,
            to: message.from,
            term: raft.term,
            index: message.index,
            reject: true,
            reject_hint: committed,
            log_term: self.known_term(committed).unwrap_or(0),
            commit: committed,
            ..Default::default()
        };
        refusal.set_msg_type(MessageType::MsgAppendResponse);
        let frame = self.frame(message.from, Body::Raft(refusal));
        self.out.frames.push(frame);
    }

    /// Stops a node that got no snapshot in the place of what it has.
    pub(super) fn tick_fork(&mut self) {
        if self.is_leader() {
            // A quorum takes what this node has.
            self.forked_since = None;
        }
        let patience = FORKED_ELECTIONS_MAX * self.options.election_ticks as u64;
        let is_late = |since: u64| self.ticks - since >= patience;
        let is_over =
            self.forked_since.is_some_and(is_late) && self.restoring.is_none() && !self.is_formed();
        if is_over && !mutant::is("forked_stays_forked") {
            self.defect = Some(FORKED_BEFORE_FORMING);
        }
    }

    /// Whether a peer's refusal shows that what it has committed is not in this leader's log. Then it gets a snapshot that goes at least as far.
    pub(super) fn send_to_forked(&mut self, message: &Message) -> bool {
        let is_refusal = message.get_msg_type() == MessageType::MsgAppendResponse
            && message.reject
            && message.term == self.node.raft.term
            && message.reject_hint <= message.commit
            // Else there is no snapshot that goes as far.
            && message.commit <= self.node.raft.raft_log.committed
            && self.is_leader();
        let is_forked = is_refusal
            && message.log_term != 0
            && self.is_other(message.reject_hint, message.log_term);
        if !is_forked || mutant::is("forked_stays_forked") {
            return false;
        }
        if let Some(progress) = self.node.raft.mut_prs().get_mut(message.from) {
            progress.pending_request_snapshot = message.commit;
        }
        true
    }
}
