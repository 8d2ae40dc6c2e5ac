//! What a node answers besides outcomes: why not, and how it is.

use perf_kit::atomics::{RaftStatus, Role};
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
}

/// What `GET /status` says.
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
