//! Code that knows another API alone, on what it runs on today and on ours.

use std::hint::black_box;

use metrics::{Key, Label, Level, Metadata};
use metrics_exporter_prometheus::PrometheusBuilder;
use opentelemetry::metrics::MeterProvider;
use perf_metrics::meter_provider::RegistryMeterProvider;
use perf_metrics::recorder::Recorder;

use super::super::shared;
use super::{attributes, case, meter, registry};
use crate::case::{Case, Prepare, summed};

static METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// What the macros of `metrics` make of constant labels.
fn key(name: &'static str) -> Key {
    let labels = shared([
        Label::from_static_parts("operation", "create"),
        Label::from_static_parts("status", "success"),
    ]);
    Key::from_static_labels(name, labels)
}

fn exporter() -> &'static dyn metrics::Recorder {
    shared(PrometheusBuilder::new().build_recorder())
}

fn ours() -> &'static dyn metrics::Recorder {
    shared(Recorder::builder(registry()).build())
}

pub(super) fn otel() -> Case {
    let record: [Prepare; 2] = [
        || {
            let (counter, attributes) = (meter().u64_counter("operations").build(), attributes());
            summed(move || {
                black_box(&counter).add(1, black_box(&attributes));
                0
            })
        },
        || {
            let meter = RegistryMeterProvider::new(registry()).meter("node");
            let (counter, attributes) = (meter.u64_counter("operations").build(), attributes());
            summed(move || {
                black_box(&counter).add(1, black_box(&attributes));
                0
            })
        },
    ];
    case(
        ("metrics/drop_in_otel", 1),
        "a counter of OpenTelemetry's API is added to with two attributes: the SDK, and our provider",
        record,
        Vec::new(),
        None,
        &[("before", 5.0)],
    )
}

pub(super) fn by_macro() -> Case {
    let record: [Prepare; 2] = [
        || {
            let (recorder, key) = (exporter(), key("operations"));
            summed(move || {
                recorder
                    .register_counter(black_box(&key), &METADATA)
                    .increment(1);
                0
            })
        },
        || {
            let (recorder, key) = (ours(), key("operations"));
            summed(move || {
                recorder
                    .register_counter(black_box(&key), &METADATA)
                    .increment(1);
                0
            })
        },
    ];
    case(
        ("metrics/drop_in_metrics", 1),
        "what `counter!` of the crate `metrics` does with two constant labels: metrics-exporter-prometheus, and our recorder",
        record,
        Vec::new(),
        None,
        &[("before", 2.5)],
    )
}

pub(super) fn by_handle() -> Case {
    let record: [Prepare; 2] = [
        || {
            let counter = exporter().register_counter(&key("operations"), &METADATA);
            summed(move || {
                black_box(&counter).increment(1);
                0
            })
        },
        || {
            let counter = ours().register_counter(&key("operations"), &METADATA);
            summed(move || {
                black_box(&counter).increment(1);
                0
            })
        },
    ];
    case(
        ("metrics/drop_in_metrics_handle", 1),
        "a counter of the crate `metrics` that the program keeps: metrics-exporter-prometheus, and our recorder",
        record,
        Vec::new(),
        None,
        &[("before", 5.0)],
    )
}
