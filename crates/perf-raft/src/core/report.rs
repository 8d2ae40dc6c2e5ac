//! What a node says of its group, for operators.

use super::Core;
use crate::members::Member;
use raft::ProgressState;
use std::fmt;
use std::sync::Arc;

/// What a node knows of its group, and what is the matter with it. See [`RaftHandle::report`](crate::RaftHandle::report).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RaftReport {
    /// The leader's id, 0 if none is known.
    pub leader_id: u64,
    /// The members, by growing id. Empty on a node that has not joined.
    pub members: Vec<Member>,
    /// Whether several memberships hold at once, while a change is going on.
    pub is_joint: bool,
    /// On the leader: how far the others are, by growing id.
    pub peers: Vec<Peer>,
    /// What an operator should look at.
    pub troubles: Vec<Trouble>,
}

/// How far a peer is, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// The node's id.
    pub id: u64,
    /// It has the log up to this index.
    pub matched: u64,
    /// Entries of the leader's log that it does not have.
    pub lag: u64,
    /// Whether it is getting a snapshot.
    pub in_snapshot: bool,
    /// Whether it was heard of within two election timeouts.
    pub is_live: bool,
}

/// Something that does not mend by itself, or takes long to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// The group is new, and some of its first voters do not follow the leader: nothing is acknowledged until they do.
    NotFormed {
        /// Those voters.
        missing: Vec<u64>,
    },
    /// A peer belongs to another group of the same number, with other founders.
    ForeignPeer {
        /// The peer.
        peer: u64,
        /// Its founders.
        theirs: Vec<u64>,
        /// This node's.
        ours: Vec<u64>,
    },
    /// The group knows this node's id as another node: this one lost its log, or is a second one under the same id. It takes no part until the leader takes
    /// it in again, which it does by itself if the other is silent.
    Replaced,
    /// This node is no member any more.
    Removed,
    /// A peer cannot get an entry, not even in parts: the transport takes hardly any frame for it.
    FrameTooLong {
        /// The peer.
        peer: u64,
        /// Bytes of the frame.
        bytes: usize,
        /// Bytes that the peer takes.
        limit: usize,
    },
    /// The log was damaged when the node started, and began anew. It stays until the leader has taken the node in again.
    LogBegunAnew {
        /// What was found, and where the files are.
        damage: Arc<str>,
    },
    /// The state machine makes no snapshot, so the log grows.
    NoSnapshot {
        /// Why.
        reason: Arc<str>,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFormed { missing } => write!(
                f,
                "the group is new, and its first voters {missing:?} do not follow the leader yet: start them"
            ),
            Self::ForeignPeer { peer, theirs, ours } => write!(
                f,
                "node {peer} belongs to a group that was founded by {theirs:?}, this one by {ours:?}: give both the same `bootstrap` list and an empty log"
            ),
            Self::Replaced => f.write_str(
                "the group knows this node's id as another node: this one takes no part until the leader takes it in again",
            ),
            Self::Removed => f.write_str("this node was removed from its group"),
            Self::FrameTooLong { peer, bytes, limit } => write!(
                f,
                "node {peer} takes frames of {limit} bytes and needs an entry in one of {bytes}: raise its transport's bound to that of the others and restart it"
            ),
            Self::LogBegunAnew { damage } => write!(
                f,
                "the log was damaged and began anew, until the leader has taken this node in again: {damage}"
            ),
            Self::NoSnapshot { reason } => write!(f, "no snapshot can be made, so the log grows: {reason}"),
        }
    }
}

impl<T> Core<T> {
    /// What the node knows of its group now. Linear in the number of members.
    #[must_use]
    pub fn report(&self) -> RaftReport {
        let mut report = RaftReport::default();
        self.put_report(&mut report);
        report
    }

    /// [`Self::report`] in the place of what `report` holds, whose memory serves again.
    pub(crate) fn put_report(&self, report: &mut RaftReport) {
        report.leader_id = self.node.raft.leader_id;
        report.is_joint = self
            .configuration()
            .is_some_and(|now| !now.state.voters_outgoing.is_empty());
        self.put_members(&mut report.members);
        self.put_peers(&mut report.peers);
        report.troubles = self.troubles();
    }

    fn put_peers(&self, peers: &mut Vec<Peer>) {
        peers.clear();
        if !self.is_leader() {
            return;
        }
        let last = self.node.raft.raft_log.last_index();
        let progress = self.node.raft.prs().iter();
        peers.extend(
            progress
                .filter(|(id, _)| **id != self.id)
                .map(|(&id, progress)| Peer {
                    id,
                    matched: progress.matched,
                    lag: last.saturating_sub(progress.matched),
                    in_snapshot: progress.state == ProgressState::Snapshot,
                    is_live: self.is_live(id),
                }),
        );
        peers.sort_unstable_by_key(|peer| peer.id);
    }

    /// Says in the report that the log was damaged and began anew.
    pub fn set_log_damage(&mut self, damage: String) {
        self.log_damage = Some(damage.into());
    }

    /// Whether the group knows this node as what it is, and lets it vote.
    fn is_taken_in(&self) -> bool {
        self.configuration().is_some_and(|now| {
            now.state.voters.contains(&self.id)
                && now.members.incarnation(self.id) == Some(self.incarnation)
        })
    }

    fn troubles(&self) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        if self.is_leader() && !self.is_formed() {
            let missing = self.missing_voters();
            if !missing.is_empty() {
                troubles.push(Trouble::NotFormed { missing });
            }
        }
        if let (Some((peer, theirs)), Some(now)) = (&self.foreign, self.configuration()) {
            troubles.push(Trouble::ForeignPeer {
                peer: *peer,
                theirs: theirs.clone(),
                ours: now.members.founders.clone(),
            });
        }
        if !self.is_itself() {
            troubles.push(Trouble::Replaced);
        }
        if self.removed {
            troubles.push(Trouble::Removed);
        }
        let stuck = self.peer_limits.all_stuck();
        let lacks = |peer: u64, index: u64| {
            let progress = self.node.raft.prs().get(peer);
            self.is_leader() && progress.is_some_and(|progress| progress.matched < index)
        };
        troubles.extend(
            stuck
                .filter(|(peer, index, ..)| lacks(*peer, *index))
                .map(|(peer, _, bytes, limit)| Trouble::FrameTooLong { peer, bytes, limit }),
        );
        if let Some(damage) = self.log_damage.as_ref().filter(|_| !self.is_taken_in()) {
            troubles.push(Trouble::LogBegunAnew {
                damage: Arc::clone(damage),
            });
        }
        if let Some(reason) = self.snapshot_failure() {
            troubles.push(Trouble::NoSnapshot {
                reason: Arc::clone(reason),
            });
        }
        troubles
    }
}
