//! A node whose committed entries are not the leader's.
//!
//! Raft excludes that as long as voters keep their disks. Until a group is formed a voter may lose its disk and come back as if it was new, and with another
//! one that is really new elect a leader that lacks what the rest has committed: entries of Raft's own and no client's, since nothing is acknowledged
//! before. The node that is left over gets a snapshot, which takes the place of its log. A node of a group that was formed stops instead: what it has may have
//! been acknowledged.

use super::Core;
use crate::codec::Body;
use crate::primitive::mutant;
use raft::eraftpb::{Message, MessageType};

impl<T> Core<T> {
    /// The term of an entry that is in this node's log.
    fn known_term(&self, index: u64) -> Option<u64> {
        let term = self.node.raft.raft_log.term(index).ok();
        term.filter(|term| *term != 0)
    }

    /// Whether the append of a leader would replace something that is committed here.
    pub(super) fn contradicts_committed(&self, message: &Message) -> bool {
        let raft = &self.node.raft;
        let committed = raft.raft_log.committed;
        if message.index > committed || message.term < raft.term || self.restoring.is_some() {
            return false;
        }
        let differs = |index: u64, term: u64| self.known_term(index).is_some_and(|t| t != term);
        let entries = message.entries.iter();
        let mut covered = entries.take_while(|entry| entry.index <= committed);
        differs(message.index, message.log_term)
            || covered.any(|entry| differs(entry.index, entry.term))
    }

    /// Tells the leader what is committed here, which is what it needs to know; or stops the node.
    pub(super) fn refuse_contradiction(&mut self, message: &Message) {
        if self.is_formed() {
            self.defect = Some(
                "the leader contradicts what is committed here: disks of a quorum were lost, or a node started from an old copy of its log; \
                 keep this node's files, they may have what the others lost",
            );
            return;
        }
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

    /// Whether a peer's refusal shows that what it has committed is not in this leader's log. Then it gets a snapshot of what lies beyond.
    pub(super) fn send_to_forked(&mut self, message: &Message) -> bool {
        let is_refusal = message.get_msg_type() == MessageType::MsgAppendResponse
            && message.reject
            && message.term == self.node.raft.term
            && message.reject_hint <= message.commit
            && self.is_leader();
        let is_forked = is_refusal
            && message.log_term != 0
            && self
                .known_term(message.reject_hint)
                .is_some_and(|term| term != message.log_term);
        if !is_forked || mutant::is("forked_stays_forked") {
            return false;
        }
        let last = self.node.raft.raft_log.last_index();
        if let Some(progress) = self.node.raft.mut_prs().get_mut(message.from) {
            progress.pending_request_snapshot = (message.commit + 1).min(last);
        }
        true
    }
}
