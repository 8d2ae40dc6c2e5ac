//! The origin's shorthands on [`NodeMetrics`].

use crate::create_node_id_attr;
use crate::node::{NodeMetrics, Operation, Outcome, ResourceState};
use crate::origin::record_other_operation;

/// Counts an operation on a VM.
///
/// The names of [`Operation`] are an index into a table, found at compile time where `operation` is a constant; any other
/// name is an attribute of [`NodeMetrics::vm_operations_other`].
#[inline]
pub fn record_vm_operation_fast(operation: &'static str, success: bool, metrics: &NodeMetrics) {
    match Operation::from_value(operation) {
        Some(operation) => metrics.vm_operations[operation][Outcome::of(success)].increment(),
        None => record_other_operation(operation, success, metrics),
    }
}

/// Sets what a node has: values, not amounts, so that an update can be repeated.
pub fn update_resource_metrics_fast(
    node_id: u64,
    vcpus: u64,
    memory_mb: u64,
    disk_gb: u64,
    metrics: &NodeMetrics,
) {
    let node = [create_node_id_attr(node_id)];
    metrics.node_vcpus.set(vcpus, &node);
    metrics.node_memory.set(memory_mb, &node);
    metrics.node_disk.set(disk_gb, &node);
}

/// Sets what the cluster has: values, not amounts, so that an update can be repeated.
pub fn update_cluster_metrics_fast(
    total_nodes: u64,
    total_vcpus: u64,
    used_vcpus: u64,
    total_memory_mb: u64,
    used_memory_mb: u64,
    metrics: &NodeMetrics,
) {
    metrics.cluster_nodes.set(total_nodes);
    metrics.cluster_vcpus[ResourceState::Total].set(total_vcpus);
    metrics.cluster_vcpus[ResourceState::Used].set(used_vcpus);
    metrics.cluster_memory[ResourceState::Total].set(total_memory_mb);
    metrics.cluster_memory[ResourceState::Used].set(used_memory_mb);
}
