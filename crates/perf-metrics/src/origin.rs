//! The names under which the code this crate grew out of records.

use crate::attributes::KeyValue;
use crate::node::{NodeMetrics, Operation, Outcome};
use crate::{LabelSet, helpers};

/// Names that occur as attributes.
pub mod string_constants {
    /// An operation on a VM.
    pub const OPERATION_CREATE: &str = "create";
    /// An operation on a VM.
    pub const OPERATION_START: &str = "start";
    /// An operation on a VM.
    pub const OPERATION_STOP: &str = "stop";
    /// An operation on a VM.
    pub const OPERATION_DELETE: &str = "delete";
    /// A service.
    pub const SERVICE_HEALTH: &str = "health";
    /// A service.
    pub const SERVICE_CLUSTER: &str = "cluster";
    /// A service.
    pub const SERVICE_VM: &str = "vm";
    /// A service.
    pub const SERVICE_RAFT: &str = "raft";
    /// A method.
    pub const METHOD_CHECK: &str = "check";
    /// A method.
    pub const METHOD_STATUS: &str = "status";
    /// A method.
    pub const METHOD_APPEND: &str = "append";
    /// A method.
    pub const METHOD_VOTE: &str = "vote";
    /// How something ended.
    pub const STATUS_SUCCESS: &str = "success";
    /// How something ended.
    pub const STATUS_FAILED: &str = "failed";
    /// A transport.
    pub const TRANSPORT_IROH: &str = "iroh";
    /// A transport.
    pub const TRANSPORT_GRPC: &str = "grpc";
}

/// The attribute `operation`. Allocates nothing.
#[inline]
#[must_use]
pub fn create_operation_attr(operation: &'static str) -> KeyValue {
    KeyValue::new("operation", operation)
}

/// The attribute `node.id`. Attributes know no unsigned numbers: ids beyond `i64::MAX` become negative, and stay distinct.
#[inline]
#[must_use]
pub fn create_node_id_attr(node_id: u64) -> KeyValue {
    KeyValue::new("node.id", node_id as i64)
}

/// The attribute `service`. Allocates nothing.
#[inline]
#[must_use]
pub fn create_service_attr(service: &'static str) -> KeyValue {
    KeyValue::new("service", service)
}

/// Counts an operation on a VM in [`NodeMetrics::global`]. Allocates for names that are none of [`Operation`]; does nothing if the
/// process had no cells left for the catalogue.
pub fn record_vm_operation(operation: &str, success: bool) {
    let Ok(metrics) = NodeMetrics::global() else {
        return;
    };
    match Operation::from_value(operation) {
        Some(known) => helpers::record_vm_operation_fast(known.value(), success, metrics),
        None => {
            let name = KeyValue::new("operation", operation.to_owned());
            metrics.vm_operations_other.add(1, &[name, status(success)]);
        }
    }
}

#[cold]
pub(crate) fn record_other_operation(
    operation: &'static str,
    success: bool,
    metrics: &NodeMetrics,
) {
    metrics
        .vm_operations_other
        .add(1, &[create_operation_attr(operation), status(success)]);
}

fn status(success: bool) -> KeyValue {
    KeyValue::new(Outcome::KEY, Outcome::of(success).value())
}
