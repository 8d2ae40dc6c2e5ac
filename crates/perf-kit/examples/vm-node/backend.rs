//! What the API needs of a node, whichever way the node is built.

use std::sync::Arc;
use std::time::Duration;

use perf_kit::atomics::{RaftStatus, Role};
use perf_kit::metrics::node::Operation;
use serde::Serialize;

use crate::inventory::HostState;
use crate::inventory::command::{Action, Host, Outcome, Size, Vm};
use crate::naive::NaiveNode;
use crate::node::FastNode;
use crate::placement::Strategy;

/// A node of the cluster.
#[derive(Clone)]
pub(crate) enum Backend {
    /// On the crates of this workspace.
    Fast(Arc<FastNode>),
    /// The way one writes it first, with the same interface and the same durability.
    Naive(Arc<NaiveNode>),
}

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

impl Backend {
    /// Replicates a change and returns what became of it.
    pub(crate) async fn write(
        &self,
        request_id: String,
        action: Action,
    ) -> Result<Outcome, Refusal> {
        match self {
            Self::Fast(node) => node.write(request_id, action).await,
            Self::Naive(node) => node.write(request_id, action).await,
        }
    }

    /// Waits until what this node shows has everything that was acknowledged before the call.
    pub(crate) async fn barrier(&self) -> Result<(), Refusal> {
        match self {
            Self::Fast(node) => node.barrier().await,
            Self::Naive(node) => node.barrier().await,
        }
    }

    /// Chooses a host for a VM; `None` where none has room.
    pub(crate) async fn place(&self, size: Size, apart: &str, strategy: Strategy) -> Option<u64> {
        match self {
            Self::Fast(node) => node.place(size, apart, strategy),
            Self::Naive(node) => node.place(size, apart, strategy).await,
        }
    }

    pub(crate) async fn vm(&self, name: &str) -> Option<Arc<Vm>> {
        match self {
            Self::Fast(node) => node.view().vm(name),
            Self::Naive(node) => node.vm(name).await,
        }
    }

    pub(crate) async fn vms(&self) -> Vec<Arc<Vm>> {
        match self {
            Self::Fast(node) => node.view().vms(),
            Self::Naive(node) => node.vms().await,
        }
    }

    pub(crate) async fn status(&self) -> Status {
        match self {
            Self::Fast(node) => node.status(),
            Self::Naive(node) => node.status().await,
        }
    }

    /// Whether the node knows a leader and has not stopped.
    pub(crate) async fn is_healthy(&self) -> bool {
        match self {
            Self::Fast(node) => node.is_healthy(),
            Self::Naive(node) => node.is_healthy().await,
        }
    }

    /// Notes that an operation on a VM ended.
    pub(crate) fn record(&self, operation: Operation, is_done: bool, took: Duration) {
        match self {
            Self::Fast(node) => node.record(operation, is_done, took),
            Self::Naive(node) => node.record(operation, is_done, took),
        }
    }

    /// All metrics as Prometheus text.
    pub(crate) fn metrics(&self) -> String {
        match self {
            Self::Fast(node) => node.metrics(),
            Self::Naive(node) => node.metrics(),
        }
    }

    /// Adds a voter to the group, and its host to the inventory.
    pub(crate) async fn add_member(&self, host: Host) -> Result<(), Refusal> {
        match self {
            Self::Fast(node) => node.add_member(host).await,
            Self::Naive(node) => node.add_member(host).await,
        }
    }
}
