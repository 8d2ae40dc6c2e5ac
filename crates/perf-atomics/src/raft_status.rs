//! What a Raft node knows of itself.

use crate::snapshot_value;
use crate::words::Word;

/// What a node is in its Raft group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks whether it could win an election, without raising the term.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// Receives the log and has no vote.
    Learner,
}

impl Word for Role {
    #[inline]
    fn to_word(self) -> u64 {
        self as u64
    }

    #[inline]
    fn from_word(word: u64) -> Self {
        match word {
            1 => Self::PreCandidate,
            2 => Self::Candidate,
            3 => Self::Leader,
            4 => Self::Learner,
            // `to_word` makes no other number.
            _ => Self::Follower,
        }
    }
}

snapshot_value! {
    /// The state of a Raft node at one moment, with Raft's own terms.
    ///
    /// Ids start at 1; 0 stands for none, as in the `raft` crate.
    #[derive(Debug, Default, PartialEq, Eq, Hash)]
    pub struct RaftStatus {
        /// This node's role.
        pub role: Role,
        /// The current term.
        pub term: u64,
        /// The id of the leader, 0 if none is known; see [`leader`](Self::leader).
        pub leader_id: u64,
        /// This node's id.
        pub node_id: u64,
        /// The index of the last log entry known to be committed.
        pub commit_index: u64,
        /// The index of the last log entry given to the state machine.
        pub applied_index: u64,
    }
}

impl RaftStatus {
    /// Whether this node leads.
    #[inline]
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    /// The leader's id, if one is known.
    #[inline]
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        (self.leader_id != 0).then_some(self.leader_id)
    }

    /// How many committed entries the state machine has yet to see.
    #[inline]
    #[must_use]
    pub fn apply_lag(&self) -> u64 {
        self.commit_index.saturating_sub(self.applied_index)
    }
}
