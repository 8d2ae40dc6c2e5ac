//! The word to campaign (`MsgTimeoutNow`) and the leader's lease.
//!
//! A leader that hands over tells a peer to campaign at once, and voters of that peer do not respect the leader's lease. So
//! there is no lease while the peer may still obey. The message may be late for any time, and the hand-over be given up meanwhile. Two
//! rules bound it, so that the lease comes back:
//!
//! - The word names the start of the peer that it is for (its session). Another start does not obey.
//! - A peer that has seen a later heartbeat of the same leader does not obey.
//!
//! Once the peer has answered a heartbeat that was sent after the word, in the leader's term, it has not obeyed and never will, whichever start of it
//! answered: an earlier start cannot answer a later heartbeat.

use crate::codec::FrameHeader;
use crate::primitive::mutant;

/// A word that a peer may still obey.
#[derive(Clone, Copy, Debug)]
struct Word {
    to: u64,
    /// The last round of reads before it.
    round: u64,
}

/// What a leader told its peers, and what a peer knows of its leader.
#[derive(Debug, Default)]
pub(super) struct Handover {
    term: u64,
    words: Vec<Word>,
    /// Session and sequence of the latest heartbeat from the leader of the highest term.
    heartbeat: (u64, u64),
}

impl Handover {
    /// A leader tells a peer to campaign.
    pub(super) fn told(&mut self, to: u64, term: u64, round: u64) {
        if self.term != term {
            self.words.clear();
            self.term = term;
        }
        self.words.retain(|word| word.to != to);
        self.words.push(Word { to, round });
    }

    /// Whether a peer may still obey a word of this term.
    pub(super) fn may_happen(&self, term: u64) -> bool {
        self.term == term && !self.words.is_empty()
    }

    /// A peer answered a heartbeat of the present term, of this round of reads.
    pub(super) fn answered(&mut self, from: u64, round: u64) {
        let is_any_round = mutant::is("early_answer_counts");
        self.words
            .retain(|word| word.to != from || round <= word.round && !is_any_round);
    }

    /// A heartbeat arrived, of no lower term than this node's: a late one of a former leader must not erase what is known of the present one.
    pub(super) fn heartbeat(&mut self, header: &FrameHeader) {
        let (session, sequence) = self.heartbeat;
        if session != header.session || sequence < header.sequence {
            self.heartbeat = (header.session, header.sequence);
        }
    }

    /// Whether a word to campaign is for this start of this node, and no later heartbeat of its sender came.
    pub(super) fn is_timely(&self, header: &FrameHeader, context: &[u8], session: u64) -> bool {
        let (sender, sequence) = self.heartbeat;
        let is_overtaken = sender == header.session && sequence > header.sequence;
        let is_for_this_start = context == session.to_le_bytes();
        (is_for_this_start && !is_overtaken) || mutant::is("late_word_counts")
    }
}
