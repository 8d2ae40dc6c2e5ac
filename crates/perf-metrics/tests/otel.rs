//! What arrives through an OpenTelemetry meter is what the SDK itself would have counted.
#![cfg(feature = "otel")]

mod common;

use common::{Op, Ours, Sdk, assert_same, ops, sdk_points};
use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{
    Aggregation, InMemoryMetricExporter, InMemoryMetricExporterBuilder, Instrument, PeriodicReader,
    SdkMeterProvider, Stream, Temporality,
};
use perf_metrics::otel::{self, OtelError};
use perf_metrics::{EMPTY_ATTRS, Registry};
use proptest::prelude::*;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

struct Pipeline {
    provider: SdkMeterProvider,
    exporters: [InMemoryMetricExporter; 2],
}

impl Pipeline {
    /// A cumulative and a delta reader at once, which collect when asked.
    fn new() -> Self {
        let exporters = [Temporality::Cumulative, Temporality::Delta].map(|t| {
            InMemoryMetricExporterBuilder::new()
                .with_temporality(t)
                .build()
        });
        let [cumulative, delta] = exporters.clone().map(|exporter| {
            PeriodicReader::builder(exporter)
                .with_interval(Duration::from_secs(3600))
                .build()
        });
        let provider = SdkMeterProvider::builder()
            .with_reader(cumulative)
            .with_reader(delta)
            .build();
        Self {
            provider,
            exporters,
        }
    }

    fn collect(&self) -> [Vec<common::Point>; 2] {
        self.provider.force_flush().unwrap();
        self.exporters.clone().map(|exporter| {
            let all = exporter.get_finished_metrics().unwrap();
            exporter.reset();
            all.last().map(sdk_points).unwrap_or_default()
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_same_operations_give_the_same_data_points(ops in ops()) {
        let (ours_pipeline, sdk_pipeline) = (Pipeline::new(), Pipeline::new());
        let registry = Registry::new();
        let attachment = otel::attach(&registry, &ours_pipeline.provider.meter("test")).unwrap();
        let ours = Ours::new(&registry);
        let sdk = Sdk::new(&sdk_pipeline.provider.meter("test"));
        for op in ops.iter().chain([&Op::Collect, &Op::Collect]) {
            ours.apply(op);
            sdk.apply(op);
            if matches!(op, Op::Collect) {
                let ([ours, mut ours_delta], [sdk, mut sdk_delta]) = (ours_pipeline.collect(), sdk_pipeline.collect());
                assert_same(&ours, &sdk);
                // Ours reports a gauge at each collection, the SDK when it was set again.
                ours_delta.retain(|point| point.kind != "gauge");
                sdk_delta.retain(|point| point.kind != "gauge");
                // A delta of zero is reported by the SDK if zero was added.
                sdk_delta.retain(|point| !(point.kind.starts_with("sum Delta") && point.numbers == [0.0]));
                assert_same(&ours_delta, &sdk_delta);
            }
        }
        prop_assert!(attachment.is_live());
    }
}

#[test]
fn series_and_instruments_that_come_later_arrive_too() {
    let pipeline = Pipeline::new();
    let registry = Registry::new();
    let early = registry.u64_counter("early").build().unwrap();
    early.add(3, EMPTY_ATTRS);
    let attachment = otel::attach(&registry, &pipeline.provider.meter("test")).unwrap();
    let [first, _] = pipeline.collect();
    assert_eq!(first[0].numbers, [3.0]);
    let late = registry.u64_counter("late").build().unwrap();
    late.add(4, &[KeyValue::new("k", "v")]);
    early.add(1, &[KeyValue::new("k", "v")]);
    let [second, delta] = pipeline.collect();
    assert_eq!(second.iter().map(|p| p.numbers[0]).sum::<f64>(), 8.0);
    assert_eq!(delta.iter().map(|p| p.numbers[0]).sum::<f64>(), 5.0);
    late.add(1, EMPTY_ATTRS);
    drop(attachment);
    late.add(100, EMPTY_ATTRS);
    let [last, _] = pipeline.collect();
    assert_eq!(
        last.iter().map(|p| p.numbers[0]).sum::<f64>(),
        9.0,
        "what was recorded before the detachment, and no more"
    );
}

#[test]
fn a_replay_beyond_its_budget_lags_and_loses_nothing() {
    let pipeline = Pipeline::new();
    let registry = Registry::new();
    let attachment = otel::attach(&registry, &pipeline.provider.meter("test")).unwrap();
    attachment.set_replay_max(100);
    let histogram = registry.u64_histogram("h").build().unwrap();
    let values: Vec<u64> = (0..1000u64).map(|n| n * n % 7919).collect();
    values
        .iter()
        .for_each(|value| histogram.record(*value, EMPTY_ATTRS));
    attachment.flush().unwrap();
    assert_eq!(attachment.replay_pending(), 900);
    while attachment.replay_pending() > 0 {
        attachment.flush().unwrap();
    }
    let [points, _] = pipeline.collect();
    let expected = [
        1000.0,
        values.iter().sum::<u64>() as f64,
        0.0,
        *values.iter().max().unwrap() as f64,
    ];
    assert_eq!(points[0].numbers[..4], expected);
}

#[test]
fn a_view_that_drops_everything_is_an_error_the_user_sees() {
    let drop_all = |_: &Instrument| {
        Stream::builder()
            .with_aggregation(Aggregation::Drop)
            .build()
            .ok()
    };
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder()
        .with_periodic_exporter(exporter)
        .with_view(drop_all)
        .build();
    let error = otel::attach(&Registry::new(), &provider.meter("test")).unwrap_err();
    assert_eq!(error, OtelError::NotCollected);
    assert!(error.to_string().contains("view"), "{error}");

    let keep_hook = |i: &Instrument| {
        (i.name() != otel::HOOK_NAME).then(|| {
            Stream::builder()
                .with_aggregation(Aggregation::Drop)
                .build()
                .ok()
        })?
    };
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder()
        .with_periodic_exporter(exporter)
        .with_view(keep_hook)
        .build();
    let attachment = otel::attach(&Registry::new(), &provider.meter("test")).unwrap();
    assert!(attachment.is_live());
}

#[test]
fn a_provider_that_is_gone_is_an_error_the_user_sees() {
    let provider = Pipeline::new().provider;
    provider.shutdown().unwrap();
    assert_eq!(
        otel::attach(&Registry::new(), &provider.meter("late")).unwrap_err(),
        OtelError::NotCollected
    );

    let pipeline = Pipeline::new();
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let meter = pipeline.provider.meter("test");
    let attachment = otel::attach(&registry, &meter).unwrap();
    pipeline.provider.shutdown().unwrap();
    counter.add(1, EMPTY_ATTRS);
    assert!(pipeline.provider.force_flush().is_err());
    drop((pipeline, meter));
    // Whether the SDK has let go of the callback or not: no hang, no panic, and the registry still counts.
    let _ = attachment.flush();
    drop(attachment);
    assert_eq!(
        registry.collect().metric("c").unwrap().series()[0].value(),
        Some(perf_metrics::Value::U64(1))
    );
}

/// Exports nothing until it is let go.
#[derive(Clone, Debug, Default)]
struct Hanging(Arc<(Mutex<bool>, Condvar)>);

impl PushMetricExporter for Hanging {
    async fn export(&self, _metrics: &ResourceMetrics) -> OTelSdkResult {
        let mut go = self.0.0.lock().unwrap();
        while !*go {
            go = self.0.1.wait(go).unwrap();
        }
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Delta
    }
}

#[test]
fn an_exporter_that_hangs_stops_neither_recording_nor_collecting() {
    let hanging = Hanging::default();
    let reader = PeriodicReader::builder(hanging.clone())
        .with_interval(Duration::from_millis(1))
        .build();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    let registry = Registry::new();
    let attachment = otel::attach(&registry, &provider.meter("test")).unwrap();
    let counter = registry.u64_counter("c").build().unwrap();
    for _ in 0..100 {
        counter.add(1, EMPTY_ATTRS);
        attachment.flush().unwrap();
    }
    let late = registry.u64_counter("made.meanwhile").build().unwrap();
    late.add(1, EMPTY_ATTRS);
    attachment.flush().unwrap();
    assert!(
        provider
            .shutdown_with_timeout(Duration::from_millis(20))
            .is_err(),
        "the user sees that it hangs"
    );
    *hanging.0.0.lock().unwrap() = true;
    hanging.0.1.notify_all();
}
