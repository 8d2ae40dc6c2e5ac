//! Cases of `perf-metrics`: what a node records, and what it costs to collect that.

use std::hint::black_box;
use std::sync::{Arc, Weak};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{
    InstrumentKind, ManualReader, Pipeline, SdkMeterProvider, Temporality,
};
use perf_metrics::node::{Operation, Outcome};
use perf_metrics::{EMPTY_ATTRS, MetricsSnapshot, NodeMetrics, Registry};

use super::shared;
use crate::case::{Case, Goal, Path, Prepare, summed};
use crate::experiment::Experiment;
use crate::team::pair;

mod drop_in;
mod lasting;
#[cfg(feature = "peers")]
mod peers;

/// Series of the registry that is collected.
const SERIES: usize = 1000;

/// The cases of `perf-metrics`.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        counter(),
        counter_pair(),
        vm_operation(),
        histogram_u64(),
        histogram_f64(),
        dynamic_attrs(),
        drop_in::otel(),
        drop_in::by_macro(),
        drop_in::by_handle(),
        collect(),
    ]
}

/// The experiments of `perf-metrics`.
#[must_use]
pub fn experiments() -> Vec<Experiment> {
    lasting::experiments().into()
}

/// A case with a goal for its instructions too.
fn case(
    id_and_threads: (&'static str, u32),
    about: &'static str,
    [before, after]: [Prepare; 2],
    peers: Vec<Path>,
    instructions: Option<f64>,
    ratios: &[(&'static str, f64)],
) -> Case {
    let mut case = super::case(id_and_threads, about, before, after, peers, ratios);
    case.goals.extend(instructions.map(Goal::Instructions));
    case
}

no_peers!(counter counter_pair vm_operation histogram_u64 histogram_f64 dynamic_attrs);

fn registry() -> &'static Registry {
    shared(Registry::new())
}

/// A meter of the SDK, with a reader that collects when it is asked: never, here.
fn meter() -> Meter {
    let provider = shared(
        SdkMeterProvider::builder()
            .with_reader(ManualReader::builder().build())
            .build(),
    );
    provider.meter("node")
}

/// Two attributes as most call sites write them.
fn attributes() -> [KeyValue; 2] {
    [
        KeyValue::new("operation", "create"),
        KeyValue::new("status", "success"),
    ]
}

/// The naive path: texts are made for each record, and the instrument is looked up by its name.
fn naive(meter: &Meter, operation: &str, success: bool) {
    let status = if success { "success" } else { "failed" };
    meter.u64_counter("vm.operations").build().add(
        1,
        &[
            KeyValue::new("operation", operation.to_owned()),
            KeyValue::new("status", status.to_owned()),
        ],
    );
}

/// Values as a size or a duration in µs has them: spread over four decades.
fn next(value: &mut u64) -> u64 {
    // Weyl's sequence: one addition, which every path has.
    *value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    *value >> 50
}

const MADE: &str = "a registry of a few instruments has room";

fn counter() -> Case {
    case(
        ("metrics/counter", 1),
        "an event is counted",
        [
            || {
                let counter = meter().u64_counter("events").build();
                summed(move || {
                    counter.add(1, &[]);
                    0
                })
            },
            || {
                let counter = registry().u64_counter("events").build().expect(MADE);
                summed(move || {
                    counter.add(1, EMPTY_ATTRS);
                    0
                })
            },
        ],
        peers::counter(),
        Some(8.0),
        &[("otel bound", 10.0)],
    )
}

fn counter_pair() -> Case {
    case(
        ("metrics/counter_2_threads", 2),
        "two threads count the same event at the same time",
        [
            || {
                let counter = shared(meter().u64_counter("events").build());
                pair(|| {
                    move || {
                        counter.add(1, &[]);
                        0
                    }
                })
            },
            || {
                let counter = shared(registry().u64_counter("events").build().expect(MADE));
                pair(|| {
                    move || {
                        counter.add(1, EMPTY_ATTRS);
                        0
                    }
                })
            },
        ],
        peers::counter_pair(),
        None,
        &[("prometheus", 4.0), ("fast-telemetry", 4.0)],
    )
}

fn vm_operation() -> Case {
    case(
        ("metrics/vm_operation", 1),
        "an operation on a VM is counted by its name and how it ended",
        [
            || {
                let meter = meter();
                summed(move || {
                    naive(&meter, black_box("create"), black_box(true));
                    0
                })
            },
            || {
                let metrics = shared(NodeMetrics::new(registry()).expect(MADE));
                summed(move || {
                    metrics.vm_operations[black_box(Operation::Create)]
                        [Outcome::of(black_box(true))]
                    .increment();
                    0
                })
            },
        ],
        peers::vm_operation(),
        Some(15.0),
        &[("otel", 40.0), ("before", 150.0)],
    )
}

fn histogram_u64() -> Case {
    case(
        ("metrics/histogram_u64", 1),
        "the size of a message is recorded, with the smallest and the largest",
        [
            || {
                let (histogram, mut value) = (meter().u64_histogram("size").build(), 0);
                summed(move || {
                    histogram.record(next(&mut value), &[]);
                    0
                })
            },
            || {
                let (histogram, mut value) =
                    (registry().u64_histogram("size").build().expect(MADE), 0);
                summed(move || {
                    histogram.record(next(&mut value), EMPTY_ATTRS);
                    0
                })
            },
        ],
        peers::histogram_u64(),
        Some(28.0),
        &[("otel bound", 8.0), ("prometheus", 10.0)],
    )
}

fn histogram_f64() -> Case {
    case(
        ("metrics/histogram_f64", 1),
        "a duration in seconds is recorded, with the smallest and the largest",
        [
            || {
                let (histogram, mut value) = (meter().f64_histogram("duration").build(), 0);
                summed(move || {
                    histogram.record(next(&mut value) as f64, &[]);
                    0
                })
            },
            || {
                let (histogram, mut value) =
                    (registry().f64_histogram("duration").build().expect(MADE), 0);
                summed(move || {
                    histogram.record(next(&mut value) as f64, EMPTY_ATTRS);
                    0
                })
            },
        ],
        peers::histogram_f64(),
        Some(40.0),
        &[],
    )
}

fn dynamic_attrs() -> Case {
    case(
        ("metrics/dynamic_attrs", 1),
        "an event is counted by two attributes that are given as such",
        [
            || {
                let meter = meter();
                summed(move || {
                    naive(&meter, black_box("create"), black_box(true));
                    0
                })
            },
            || {
                let (counter, attributes) = (
                    registry().u64_counter("operations").build().expect(MADE),
                    attributes(),
                );
                summed(move || {
                    counter.add(1, black_box(&attributes));
                    0
                })
            },
        ],
        peers::dynamic_attrs(),
        Some(150.0),
        &[],
    )
}

/// One operation collects one series: the time is that of a whole collection, divided.
fn collect() -> Case {
    case(
        ("metrics/collect", 1),
        "one of a thousand series of counters is collected",
        [
            || {
                let reader = shared(Arc::new(ManualReader::builder().build()));
                let provider = shared(
                    SdkMeterProvider::builder()
                        .with_reader(Shared(Arc::clone(reader)))
                        .build(),
                );
                let counter = provider.meter("node").u64_counter("events").build();
                (0..SERIES).for_each(|n| counter.add(1, &[KeyValue::new("n", n as i64)]));
                let mut metrics = ResourceMetrics::default();
                let mut place = 0;
                summed(move || {
                    if place == 0 {
                        let _ = MetricReader::collect(&**reader, &mut metrics);
                    }
                    place = (place + 1) % SERIES;
                    0
                })
            },
            || {
                let registry = registry();
                // Kept: an instrument that is dropped leaves.
                let counter = shared(registry.u64_counter("events").build().expect(MADE));
                (0..SERIES).for_each(|n| counter.add(1, &[KeyValue::new("n", n as i64)]));
                let mut snapshot = MetricsSnapshot::new();
                let mut place = 0;
                summed(move || {
                    if place == 0 {
                        registry.collect_into(&mut snapshot);
                    }
                    place = (place + 1) % SERIES;
                    0
                })
            },
        ],
        Vec::new(),
        None,
        &[],
    )
}

/// A reader that the provider has and the case keeps.
#[derive(Clone, Debug)]
struct Shared(Arc<ManualReader>);

impl MetricReader for Shared {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}
