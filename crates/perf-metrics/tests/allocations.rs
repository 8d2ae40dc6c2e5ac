//! After warm-up recording allocates nothing, and collecting into the same snapshot neither.

use perf_metrics::helpers::{
    record_vm_operation_fast, update_cluster_metrics_fast, update_resource_metrics_fast,
};
use perf_metrics::string_constants::OPERATION_CREATE;
use perf_metrics::{
    EMPTY_ATTRS, KeyValue, MetricsSnapshot, NodeMetrics, Registry, TraceContext,
    record_vm_operation,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test alone in its process: the allocator counts for all threads.
#[test]
fn nothing_is_allocated_after_warm_up() {
    let registry = Registry::new();
    let metrics = NodeMetrics::new(&registry).unwrap();
    let counter = registry.u64_counter("c").build().unwrap();
    let gauge = registry.f64_gauge("g").build().unwrap();
    let integers = registry.u64_histogram("hu").build().unwrap();
    let floats = registry.f64_histogram("hf").build().unwrap();
    // With exemplars, which each measurement here is.
    let traced = Registry::new();
    traced.set_exemplar_source(|| {
        Some(TraceContext {
            trace_id: [1; 16],
            span_id: [2; 8],
        })
    });
    let traced_counter = traced.u64_counter("c").build().unwrap();
    let traced_histogram = traced.f64_histogram("h").build().unwrap();
    let constant = [
        KeyValue::new("operation", "create"),
        KeyValue::new("node", 7),
    ];
    let owned = [
        KeyValue::new(String::from("peer"), String::from("n2")),
        KeyValue::new("ok", true),
    ];
    let record = |n: u64| {
        counter.add(n, EMPTY_ATTRS);
        counter.add(n, &constant);
        counter.add(n, &owned);
        counter.add(n, &[constant[1].clone(), constant[0].clone()]);
        gauge.set(n as f64, &constant);
        integers.record(n, EMPTY_ATTRS);
        integers.record(n, &constant);
        floats.record(n as f64 - 5.0, EMPTY_ATTRS);
        floats.record(f64::NAN, EMPTY_ATTRS);
        traced_counter.add(n, &constant);
        traced_histogram.record(n as f64, EMPTY_ATTRS);
        record_vm_operation_fast(OPERATION_CREATE, n.is_multiple_of(2), &metrics);
        record_vm_operation("create", true);
        update_cluster_metrics_fast(3, n, n, n, n, &metrics);
        update_resource_metrics_fast(7, n, n, n, &metrics);
    };
    let mut snapshot = MetricsSnapshot::new();
    let mut traced_snapshot = MetricsSnapshot::new();
    // All slots of exemplars, so that snapshots have room for all.
    (0..1000).for_each(record);
    registry.collect_into(&mut snapshot);
    traced.collect_into(&mut traced_snapshot);

    let region = Region::new(ALLOCATOR);
    (0..1000).for_each(record);
    let recording = region.change();
    assert_eq!(
        (
            recording.allocations,
            recording.reallocations,
            recording.deallocations
        ),
        (0, 0, 0),
        "{recording:?}"
    );

    let region = Region::new(ALLOCATOR);
    for _ in 0..10 {
        registry.collect_into(&mut snapshot);
        traced.collect_into(&mut traced_snapshot);
    }
    let collecting = region.change();
    assert_eq!(
        (collecting.allocations, collecting.reallocations),
        (0, 0),
        "{collecting:?}"
    );
}
