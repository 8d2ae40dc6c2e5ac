//! The origin's samples compile and do what they say.

use perf_metrics::helpers::{
    record_vm_operation_fast, update_cluster_metrics_fast, update_resource_metrics_fast,
};
use perf_metrics::node::{Operation, Outcome, ResourceState};
use perf_metrics::string_constants::*;
use perf_metrics::{
    EMPTY_ATTRS, KeyValue, NodeMetrics, Registry, Value, create_node_id_attr,
    create_operation_attr, create_service_attr, record_vm_operation,
};

#[test]
fn the_constants_are_the_last_words_in_lower_case() {
    let all = [
        OPERATION_CREATE,
        OPERATION_START,
        OPERATION_STOP,
        OPERATION_DELETE,
        SERVICE_HEALTH,
        SERVICE_CLUSTER,
        SERVICE_VM,
        SERVICE_RAFT,
        METHOD_CHECK,
        METHOD_STATUS,
        METHOD_APPEND,
        METHOD_VOTE,
        STATUS_SUCCESS,
        STATUS_FAILED,
        TRANSPORT_IROH,
        TRANSPORT_GRPC,
    ];
    let expected = "create start stop delete health cluster vm raft check status append vote success failed iroh grpc";
    assert_eq!(all.join(" "), expected);
}

#[test]
fn attributes_are_opentelemetry_key_values() {
    let attributes: [opentelemetry::KeyValue; 3] = [
        create_operation_attr(OPERATION_CREATE),
        create_node_id_attr(42),
        create_service_attr(SERVICE_VM),
    ];
    assert_eq!(attributes[0], KeyValue::new("operation", "create"));
    assert_eq!(attributes[1], KeyValue::new("node.id", 42i64));
    assert_eq!(attributes[2], KeyValue::new("service", "vm"));
}

#[test]
fn operations_are_counted_and_totals_are_set() {
    let registry = Registry::new();
    let metrics = &NodeMetrics::new(&registry).unwrap();
    record_vm_operation_fast(OPERATION_CREATE, true, metrics);
    record_vm_operation_fast(OPERATION_CREATE, true, metrics);
    record_vm_operation_fast(OPERATION_STOP, false, metrics);
    record_vm_operation_fast("migrate", false, metrics);
    assert_eq!(
        metrics.vm_operations[Operation::Create][Outcome::Success].get(),
        Value::U64(2)
    );
    assert_eq!(
        metrics.vm_operations[Operation::Stop][Outcome::Failed].get(),
        Value::U64(1)
    );
    for _ in 0..3 {
        update_resource_metrics_fast(7, 8, 16_384, 100, metrics);
        update_cluster_metrics_fast(3, 24, 10, 49_152, 20_000, metrics);
    }
    assert_eq!(metrics.cluster_nodes.get(), Some(Value::U64(3)));
    assert_eq!(
        metrics.cluster_vcpus[ResourceState::Used].get(),
        Some(Value::U64(10))
    );
    assert_eq!(
        metrics.cluster_memory[ResourceState::Total].get(),
        Some(Value::U64(49_152))
    );
    let snapshot = registry.collect();
    let find = |name: &str, attributes: &[KeyValue]| {
        snapshot
            .metric(name)
            .unwrap()
            .find(attributes)
            .unwrap()
            .value()
    };
    assert_eq!(
        find("node.memory", &[create_node_id_attr(7)]),
        Some(Value::U64(16_384))
    );
    let other = [
        create_operation_attr("migrate"),
        KeyValue::new("status", "failed"),
    ];
    assert_eq!(find("vm.operations.other", &other), Some(Value::U64(1)));
    metrics.vm_operations_other.add(1, EMPTY_ATTRS);
}

#[test]
fn the_catalogue_keeps_to_the_conventions() {
    let registry = Registry::new();
    let first = NodeMetrics::new(&registry).unwrap();
    let second = NodeMetrics::new(&registry).unwrap();
    first.raft_elections.increment();
    second.raft_elections.increment();
    assert_eq!(
        first.raft_elections.get(),
        Value::U64(2),
        "the same instruments"
    );
    let snapshot = registry.collect();
    for metric in snapshot.metrics() {
        let descriptor = metric.descriptor();
        let name = descriptor.name();
        assert!(
            !name.ends_with("_total") && !name.ends_with(".total"),
            "{name}"
        );
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b == b'.' || b == b'_'),
            "{name}"
        );
        assert!(
            !descriptor.unit().is_empty() && !descriptor.description().is_empty(),
            "{name}"
        );
        assert!(
            !name.contains("seconds") && !name.contains("bytes"),
            "{name} names its unit"
        );
        if name.ends_with("duration") {
            assert_eq!(descriptor.unit(), "s", "{name}");
        }
    }
    assert!(snapshot.metrics().len() > 30);
}

#[test]
fn the_cold_path_needs_no_catalogue_at_hand() {
    record_vm_operation("custom", false);
    record_vm_operation(&String::from("create"), true);
    let metrics = NodeMetrics::global().unwrap();
    assert_eq!(
        metrics.vm_operations[Operation::Create][Outcome::Success].get(),
        Value::U64(1)
    );
    let snapshot = NodeMetrics::global_registry().collect();
    let custom = [
        KeyValue::new("operation", "custom"),
        KeyValue::new("status", "failed"),
    ];
    let series = snapshot
        .metric("vm.operations.other")
        .unwrap()
        .find(&custom)
        .unwrap();
    assert_eq!(series.value(), Some(Value::U64(1)));
}
