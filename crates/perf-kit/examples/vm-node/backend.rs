//! What the API needs of a node, whichever way the node is built.

use std::sync::Arc;
use std::time::Duration;

use perf_kit::metrics::node::Operation;

use crate::answer::{Members, Refusal, Status};
use crate::inventory::command::{Action, Host, Outcome, Size, Vm};
use crate::naive::NaiveNode;
use crate::node::FastNode;
use crate::placement::Strategy;
use crate::view::Page;

/// A node of the cluster.
#[derive(Clone)]
pub(crate) enum Backend {
    /// On the crates of this workspace.
    Fast(Arc<FastNode>),
    /// The way one writes it first, with the same interface and the same durability.
    Naive(Arc<NaiveNode>),
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

    /// Waits until what this node shows of a VM, or of all without a name, has everything that was acknowledged
    /// before the call.
    pub(crate) async fn barrier(&self, vm: Option<&str>) -> Result<(), Refusal> {
        match self {
            Self::Fast(node) => node.barrier(vm).await,
            Self::Naive(node) => node.barrier().await,
        }
    }

    /// Chooses a host for a VM; `None` where none has room.
    pub(crate) async fn place(
        &self,
        vm: &str,
        size: Size,
        apart: &str,
        strategy: Strategy,
    ) -> Option<u64> {
        match self {
            Self::Fast(node) => node.place(vm, size, apart, strategy).await,
            Self::Naive(node) => node.place(size, apart, strategy).await,
        }
    }

    pub(crate) async fn vm(&self, name: &str) -> Option<Arc<Vm>> {
        match self {
            Self::Fast(node) => node.view().vm(name),
            Self::Naive(node) => node.vm(name).await,
        }
    }

    /// Up to `limit` VMs by name, those behind `after`.
    pub(crate) async fn page(&self, after: Option<&str>, limit: usize) -> Page {
        match self {
            Self::Fast(node) => node.view().page(after, limit),
            Self::Naive(node) => node.page(after, limit).await,
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

    /// Removes a voter from the group, and its host from the inventory.
    pub(crate) async fn remove_member(&self, id: u64) -> Result<(), Refusal> {
        match self {
            Self::Fast(node) => node.remove_member(id).await,
            Self::Naive(_) => Err(naive_cannot("remove members")),
        }
    }

    /// The members of the group, as this node knows them.
    pub(crate) fn members(&self) -> Result<Members, Refusal> {
        match self {
            Self::Fast(node) => Ok(node.members()),
            Self::Naive(_) => Err(naive_cannot("list members")),
        }
    }
}

fn naive_cannot(what: &str) -> Refusal {
    Refusal::Refused(format!(
        "the naive node cannot {what}: start it without --naive"
    ))
}
