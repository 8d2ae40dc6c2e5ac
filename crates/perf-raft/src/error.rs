//! What can go wrong.

use crate::log::LogError;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Why a proposal, a change of the membership or a transfer of leadership has no response.
///
/// Each request gets exactly one answer, at the latest some election timeouts after the node lost its quorum.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// This node does not lead; nothing was proposed. Ask the node of the hint, or try again later.
    #[error("this node is not the leader ({hint}): nothing was proposed; send it to the leader")]
    NotLeader {
        /// Who leads, as far as this node knows.
        hint: LeaderHint,
    },
    /// The proposal is certainly not in the log and never will be: another leader's entry took its place, or leadership
    /// was being transferred. Safe to propose again.
    #[error("the proposal was dropped and will not be applied: propose it again")]
    ProposalDropped,
    /// The proposal may or may not be applied: leadership was lost before it was committed. Propose again
    /// only what may be applied twice, or ask the state machine first.
    #[error("leadership was lost before the proposal was committed: it may be applied or not")]
    Unknown,
    /// A bound is reached; nothing was proposed. Try again after a moment.
    #[error("{what} reached the bound of {limit}: nothing was proposed; try again after a moment")]
    Busy {
        /// What is full.
        what: &'static str,
        /// Its bound.
        limit: u64,
    },
    /// The proposal is larger than [`RaftOptions::proposal_bytes_max`](crate::RaftOptions::proposal_bytes_max).
    #[error(
        "a proposal of {bytes} bytes is above `proposal_bytes_max` = {limit}: split it or raise the option"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The option.
        limit: usize,
    },
    /// The log is full and cannot be compacted, since no snapshot can be made; or the snapshot that was asked for cannot be. Nothing
    /// was proposed.
    #[error(
        "no snapshot can be made ({reason}): see to the state machine, or raise `snapshot_bytes_max`; it is tried again by itself"
    )]
    NoSnapshot {
        /// What the state machine said, or what is too large.
        reason: Arc<str>,
    },
    /// An empty proposal: Raft has empty entries of its own.
    #[error("a proposal must have at least one byte")]
    Empty,
    /// A request that makes no sense as things are.
    #[error("refused: {reason}")]
    Refused {
        /// Why, and what to do.
        reason: Cow<'static, str>,
    },
    /// The group is new, and not all of its first voters have been heard of. Nothing was proposed. Until each has the table of members in its log, a
    /// voter that loses its disk could not be told from one that is new, so nothing is acknowledged.
    #[error(
        "the group is new, and its first voters {missing:?} do not follow the leader yet: start them, or force their removal; nothing was proposed"
    )]
    NotFormed {
        /// Voters that are missing.
        missing: Vec<u64>,
    },
    /// Nodes that are to get a vote have not caught up in time. They are learners now.
    #[error(
        "nodes {nodes:?} have not caught up with the log within ten election timeouts and are learners: see that they run and are reachable, or \
         remove them; promoted later by itself: {is_promoted_later}"
    )]
    NotCaughtUp {
        /// Those nodes.
        nodes: Vec<u64>,
        /// Whether the group makes them voters by itself once they have caught up; where other steps were asked for with them, it does not.
        is_promoted_later: bool,
    },
    /// The node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why a read may not go ahead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No leader is known.
    #[error("no leader could confirm the read ({hint}): try again, or ask the leader")]
    NotLeader {
        /// Who leads, as far as this node knows.
        hint: LeaderHint,
    },
    /// The leader did not confirm the read within some election timeouts: its quorum is silent, or the group is new and not all first voters are
    /// there yet, which [`RaftReport::troubles`](crate::RaftReport::troubles) says.
    #[error("no quorum confirmed the read in time: try again")]
    TimedOut,
    /// This node holds no lease now. A read by [`read_index`](crate::RaftHandle::read_index) may still go ahead.
    #[error(
        "this node holds no lease: use `read_index`, or enable `RaftOptions::lease_reads` on all nodes"
    )]
    NoLease,
    /// A bound is reached. Try again after a moment.
    #[error("{what} reached the bound of {limit}: try again after a moment")]
    Busy {
        /// What is full.
        what: &'static str,
        /// Its bound.
        limit: u64,
    },
    /// The node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// The leader's id, if it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LeaderHint(pub Option<u64>);

impl LeaderHint {
    /// From an id that is 0 for none.
    #[must_use]
    pub fn of(leader_id: u64) -> Self {
        Self((leader_id != 0).then_some(leader_id))
    }

    /// The id.
    #[must_use]
    pub fn id(self) -> Option<u64> {
        self.0
    }
}

impl fmt::Display for LeaderHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(id) => write!(f, "node {id} leads"),
            None => f.write_str("none is known"),
        }
    }
}

/// Why a node has stopped. Cheap to clone: every waiting request gets one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopReason {
    /// [`RaftHandle::shutdown`](crate::RaftHandle::shutdown) was called, or the runtime ended.
    #[error("the node was shut down")]
    Shutdown,
    /// The log could not be written. The node may not go on: what it promised may not be on disk. Restart it once the disk is
    /// sound; it then reads what is really there.
    #[error("the log failed, and the node stopped: {0}")]
    Log(Arc<LogError>),
    /// The state machine failed.
    #[error("the state machine failed, and the node stopped: {0}")]
    StateMachine(Arc<str>),
    /// The consensus core found its state contradictory. A defect, or a peer that lies.
    #[error("the consensus core gave up, and the node stopped: {0}")]
    Core(Arc<str>),
}

/// Why a host does not close or remove a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// Another call opens, closes or removes the group.
    #[error("group {group} is being opened, closed or removed by another call: wait for that")]
    GroupChanges {
        /// The group.
        group: u64,
    },
    /// The log cannot be written.
    #[error("the log cannot be written: {0}")]
    Log(#[from] LogError),
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The builder lacks something.
    #[error("the builder has no {what}: give it one by `.{what}(..)`")]
    Missing {
        /// What.
        what: &'static str,
    },
    /// Options contradict each other or are out of range.
    #[error("option `{option}`: {reason}")]
    Options {
        /// Which.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The log could not be read.
    #[error("the log cannot be read: {0}")]
    Log(#[from] LogError),
    /// The log belongs to another node or group.
    #[error(
        "the log is that of {theirs}, and this is {ours}: give each node a log of its own, and keep it"
    )]
    WrongLog {
        /// Whose it is.
        theirs: String,
        /// Who wanted to start from it.
        ours: String,
    },
    /// The stored state contradicts itself.
    #[error(
        "the stored log of group {group} is inconsistent: {reason}; restore the node from a healthy one"
    )]
    Inconsistent {
        /// The group.
        group: u64,
        /// How.
        reason: String,
    },
    /// The state machine does not take its own snapshot.
    #[error("the state machine failed: {0}")]
    StateMachine(String),
    /// A thread could not be started.
    #[error("no thread for the log or the state machine: {0}")]
    Thread(#[from] std::io::Error),
    /// The host runs the group already, or opens or closes it at the moment.
    #[error(
        "group {group} is open, or being opened or closed: use `RaftHost::group`, or close it first"
    )]
    GroupRuns {
        /// The group.
        group: u64,
    },
    /// The host was shut down.
    #[error("the host was shut down: start another one")]
    HostStopped,
    /// The transport cannot start.
    #[error("the transport failed: {0}")]
    Transport(String),
}

/// What a panic says.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic")
        .to_owned()
}
