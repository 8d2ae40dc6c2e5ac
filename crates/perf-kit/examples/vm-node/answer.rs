//! What a node answers besides outcomes: why not, and how it is.

use perf_kit::atomics::{RaftStatus, Role};
use perf_kit::raft::MemberRole;
use serde::Serialize;

use crate::inventory::HostState;
use crate::inventory::command::Size;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Refusal {
    /// Another node leads; its address for clients, if it is known.
    NotLeader(Option<String>),
    /// Too much is waiting.
    Busy(String),
    /// There is no quorum, or not yet again; nothing was done.
    NoQuorum(String),
    /// It may or may not have been done.
    OutcomeUnknown(String),
    /// The node has stopped.
    Stopped(String),
    /// It makes no sense as things are.
    Refused(String),
    /// There is no member of this id.
    UnknownMember(u64),
}

/// What `GET /members` says.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Members {
    /// Of the first Raft group; 0 while none is known.
    pub(crate) leader: u64,
    /// Whether a change of the membership is going on, or the groups have different members.
    pub(crate) is_changing: bool,
    /// Empty on a node that has not joined.
    pub(crate) members: Vec<Member>,
    /// What does not mend by itself, in sentences.
    pub(crate) troubles: Vec<String>,
}

/// A member in the list.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Member {
    pub(crate) id: u64,
    /// `voter` where it is one in every Raft group.
    pub(crate) role: &'static str,
    /// Entries of the log that it lacks, of all groups that this node leads; known to a leader alone, and of the
    /// others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lag: Option<u64>,
    /// Whether every leader that is asked heard of it lately.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) is_live: Option<bool>,
    pub(crate) http: Option<String>,
    pub(crate) raft: Option<String>,
}

/// The name of a member's role.
pub(crate) fn member_role(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Voter => "voter",
        MemberRole::JoiningVoter => "joining_voter",
        MemberRole::LeavingVoter => "leaving_voter",
        _ => "learner",
    }
}

/// What `GET /status` says. Role, term, leader and indices are those of the first Raft group.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) node: u64,
    pub(crate) role: &'static str,
    pub(crate) term: u64,
    /// 0 while none is known.
    pub(crate) leader: u64,
    pub(crate) commit_index: u64,
    pub(crate) applied_index: u64,
    pub(crate) vms: u64,
    pub(crate) running: u64,
    pub(crate) used_vcpus: u64,
    pub(crate) total_vcpus: u64,
    /// Requests answered since the start.
    pub(crate) requests: u64,
    /// Percentiles of the time of writes in milliseconds since the start; `null` before the first.
    pub(crate) write_ms_p50: Option<f64>,
    pub(crate) write_ms_p99: Option<f64>,
    pub(crate) naive: bool,
    pub(crate) hosts: Vec<HostStatus>,
    /// Each Raft group as this node knows it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) groups: Vec<GroupStatus>,
}

/// A Raft group in the status.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct GroupStatus {
    pub(crate) role: &'static str,
    pub(crate) term: u64,
    /// 0 while none is known.
    pub(crate) leader: u64,
    pub(crate) commit_index: u64,
    pub(crate) applied_index: u64,
}

impl From<&RaftStatus> for GroupStatus {
    fn from(status: &RaftStatus) -> Self {
        Self {
            role: role_name(status),
            term: status.term,
            leader: status.leader_id,
            commit_index: status.commit_index,
            applied_index: status.applied_index,
        }
    }
}

/// A host in the status.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HostStatus {
    pub(crate) id: u64,
    pub(crate) http: String,
    pub(crate) vms: u64,
    pub(crate) free: Size,
}

impl From<&HostState> for HostStatus {
    fn from(state: &HostState) -> Self {
        Self {
            id: state.host.id,
            http: state.host.http.clone(),
            vms: state.vms,
            free: state.free(),
        }
    }
}

/// The name of a role.
pub(crate) fn role_name(status: &RaftStatus) -> &'static str {
    match status.role {
        Role::Leader => "leader",
        Role::Candidate => "candidate",
        _ => "follower",
    }
}
