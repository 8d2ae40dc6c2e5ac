//! Metrics by the OpenTelemetry SDK, with attributes made anew for each record.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, MeterProvider as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};

/// The instruments.
pub(super) struct NaiveMetrics {
    provider: SdkMeterProvider,
    text: Arc<Mutex<String>>,
    meter: Meter,
    operations: Counter<u64>,
    duration: Histogram<f64>,
}

impl NaiveMetrics {
    pub(super) fn new() -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let reader = PeriodicReader::builder(TextExporter(Arc::clone(&text)))
            .with_interval(Duration::from_secs(3600))
            .build();
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        let meter = provider.meter("vm-node");
        Self {
            operations: meter.u64_counter("vm.operations").build(),
            duration: meter.f64_histogram("vm.operation.duration").build(),
            provider,
            text,
            meter,
        }
    }

    pub(super) fn record(&self, operation: &str, is_done: bool, took: Duration) {
        let attributes = [
            KeyValue::new("operation", operation.to_owned()),
            KeyValue::new(
                "status",
                if is_done { "success" } else { "failed" }.to_owned(),
            ),
        ];
        self.operations.add(1, &attributes);
        self.duration.record(took.as_secs_f64(), &attributes);
    }

    pub(super) fn gauge(&self, name: &'static str, value: u64, node: u64) {
        let attributes = [KeyValue::new("node.id", node.to_string())];
        self.meter
            .u64_gauge(name)
            .build()
            .record(value, &attributes);
    }

    pub(super) fn text(&self) -> String {
        // A failed flush leaves the text of the one before.
        let _ = self.provider.force_flush();
        self.text
            .lock()
            .map(|text| text.clone())
            .unwrap_or_default()
    }
}

/// Renders what it is given as Prometheus text.
struct TextExporter(Arc<Mutex<String>>);

impl PushMetricExporter for TextExporter {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let mut text = String::new();
        for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
            let name = metric.name().replace('.', "_");
            match metric.data() {
                AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                    for point in sum.data_points() {
                        line(
                            &mut text,
                            &format!("{name}_total"),
                            point.attributes(),
                            point.value(),
                        );
                    }
                }
                AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
                    for point in gauge.data_points() {
                        line(&mut text, &name, point.attributes(), point.value());
                    }
                }
                AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                    for point in histogram.data_points() {
                        line(
                            &mut text,
                            &format!("{name}_count"),
                            point.attributes(),
                            point.count(),
                        );
                        line(
                            &mut text,
                            &format!("{name}_sum"),
                            point.attributes(),
                            point.sum(),
                        );
                    }
                }
                _ => {}
            }
        }
        if let Ok(mut shown) = self.0.lock() {
            *shown = text;
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
        Temporality::Cumulative
    }
}

fn line<'a>(
    text: &mut String,
    name: &str,
    attributes: impl Iterator<Item = &'a KeyValue>,
    value: impl std::fmt::Display,
) {
    let labels: Vec<String> = attributes
        .map(|pair| format!("{}=\"{}\"", pair.key.as_str().replace('.', "_"), pair.value))
        .collect();
    // Writing to a string does not fail.
    let _ = writeln!(text, "{name}{{{}}} {value}", labels.join(","));
}
