//! What others offer for the same work, each in its usual configuration.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use fast_telemetry::{LabelEnum, LabeledCounter};
use prometheus::{HistogramOpts, Opts};

use super::{attributes, meter, next, shared};
use crate::case::{Path, path, summed};
use crate::team::pair;

/// The shards that fast-telemetry's documentation proposes for a machine of few cores.
const SHARDS: usize = 4;

/// The boundaries of the SDK, for those that have no default of their own.
const BOUNDARIES: [f64; 15] = perf_metrics::DEFAULT_BOUNDARIES;

/// The same operations for one thread ([`summed`]) and for two ([`pair`]).
macro_rules! alone_and_pair {
    ($($name:literal: $make:expr, $record:expr;)+) => {
        pub(super) fn counter() -> Vec<Path> {
            vec![$(path($name, || {
                let counter = shared($make);
                summed(move || {
                    $record(counter);
                    0
                })
            })),+]
        }

        pub(super) fn counter_pair() -> Vec<Path> {
            vec![$(path($name, || {
                let counter = shared($make);
                pair(|| move || {
                    $record(counter);
                    0
                })
            })),+]
        }
    };
}

alone_and_pair! {
    "otel bound": meter().u64_counter("events").build().bind(&[]), |counter: &opentelemetry::metrics::BoundCounter<u64>| counter.add(1);
    "metrics": metrics::Counter::from_arc(Arc::new(AtomicU64::new(0))), |counter: &metrics::Counter| counter.increment(1);
    "prometheus": prometheus::IntCounter::new("events", "e").expect("the name is valid"), |counter: &prometheus::IntCounter| counter.inc();
    "prometheus-client": prometheus_client::metrics::counter::Counter::<u64>::default(), |counter: &prometheus_client::metrics::counter::Counter<u64>| counter.inc_by(1);
    "fast-telemetry": fast_telemetry::Counter::new(SHARDS), |counter: &fast_telemetry::Counter| counter.inc();
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    CreateSuccess,
    CreateFailed,
}

impl LabelEnum for Operation {
    const CARDINALITY: usize = 2;
    const LABEL_NAME: &'static str = "operation";

    fn as_index(self) -> usize {
        self as usize
    }

    fn from_index(index: usize) -> Self {
        if index == 0 {
            Self::CreateSuccess
        } else {
            Self::CreateFailed
        }
    }

    fn variant_name(self) -> &'static str {
        match self {
            Self::CreateSuccess => "create_success",
            Self::CreateFailed => "create_failed",
        }
    }
}

fn otel_two_attributes() -> Path {
    path("otel", || {
        let (counter, attributes) = (meter().u64_counter("operations").build(), attributes());
        summed(move || {
            counter.add(1, black_box(&attributes));
            0
        })
    })
}

fn prometheus_two_labels() -> Path {
    path("prometheus", || {
        let opts = Opts::new("operations", "o");
        let counter = prometheus::IntCounterVec::new(opts, &["operation", "status"])
            .expect("the names are valid");
        summed(move || {
            counter
                .with_label_values(black_box(&["create", "success"]))
                .inc();
            0
        })
    })
}

fn prometheus_client_two_labels() -> Path {
    type Labels = Vec<(&'static str, &'static str)>;
    path("prometheus-client", || {
        let family = prometheus_client::metrics::family::Family::<
            Labels,
            prometheus_client::metrics::counter::Counter,
        >::default();
        let labels: Labels = vec![("operation", "create"), ("status", "success")];
        summed(move || {
            family.get_or_create(black_box(&labels)).inc();
            0
        })
    })
}

pub(super) fn vm_operation() -> Vec<Path> {
    let fast = path("fast-telemetry", || {
        let counter: LabeledCounter<Operation> = LabeledCounter::new(SHARDS);
        summed(move || {
            counter.inc(black_box(Operation::CreateSuccess));
            0
        })
    });
    vec![
        otel_two_attributes(),
        prometheus_two_labels(),
        prometheus_client_two_labels(),
        fast,
    ]
}

pub(super) fn dynamic_attrs() -> Vec<Path> {
    vec![
        otel_two_attributes(),
        prometheus_two_labels(),
        prometheus_client_two_labels(),
    ]
}

pub(super) fn histogram_u64() -> Vec<Path> {
    vec![
        path("otel bound", || {
            let (histogram, mut value) = (meter().u64_histogram("size").build().bind(&[]), 0);
            summed(move || {
                histogram.record(next(&mut value));
                0
            })
        }),
        prometheus_histogram(),
        prometheus_client_histogram(),
        path("fast-telemetry", || {
            let bounds: Vec<u64> = BOUNDARIES.iter().map(|bound| *bound as u64).collect();
            let (histogram, mut value) = (fast_telemetry::Histogram::new(&bounds, SHARDS), 0);
            summed(move || {
                histogram.record(next(&mut value));
                0
            })
        }),
    ]
}

pub(super) fn histogram_f64() -> Vec<Path> {
    vec![
        path("otel bound", || {
            let (histogram, mut value) = (meter().f64_histogram("duration").build().bind(&[]), 0);
            summed(move || {
                histogram.record(next(&mut value) as f64);
                0
            })
        }),
        prometheus_histogram(),
        prometheus_client_histogram(),
    ]
}

fn prometheus_histogram() -> Path {
    path("prometheus", || {
        let opts = HistogramOpts::new("size", "s").buckets(BOUNDARIES.to_vec());
        let (histogram, mut value) = (
            prometheus::Histogram::with_opts(opts).expect("the name is valid"),
            0,
        );
        summed(move || {
            histogram.observe(next(&mut value) as f64);
            0
        })
    })
}

fn prometheus_client_histogram() -> Path {
    path("prometheus-client", || {
        let (histogram, mut value) = (
            prometheus_client::metrics::histogram::Histogram::new(BOUNDARIES),
            0,
        );
        summed(move || {
            histogram.observe(next(&mut value) as f64);
            0
        })
    })
}
