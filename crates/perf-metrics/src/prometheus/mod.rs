//! The Prometheus text format, version 0.0.4:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.
//!
//! Names follow OpenTelemetry's rules for Prometheus,
//! <https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>: what the format does not allow becomes `_`, the
//! unit is appended in words, and `_total` to counters. Exponential histograms are written with a bucket for each power of two
//! of their range, which is exact: powers of two are bounds at every scale. Values below zero are below all of these.
//!
//! Series of tables are written from the start, as zeros; the overflow series once it holds something.

#[cfg(feature = "http")]
pub mod http;
mod names;

use crate::descriptor::InstrumentKind;
use crate::histogram::HistogramSnapshot;
use crate::number::Value;
use crate::snapshot::{MetricSnapshot, MetricsSnapshot, Point, SeriesSnapshot};
use std::collections::HashSet;
use std::fmt::Write;

/// What a response with this text must declare.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes a snapshot, which must be cumulative: Prometheus knows no deltas. Appends to `out`, whose memory can be reused.
///
/// Of two instruments whose names become the same, the second is left out, with a comment that says so.
pub fn write(snapshot: &MetricsSnapshot, out: &mut String) {
    let mut written = HashSet::new();
    for metric in snapshot.metrics() {
        let name = names::metric(metric.descriptor());
        if !metric.series.iter().any(is_written) {
            continue;
        }
        if !written.insert(name.clone()) {
            comment(
                out,
                &format!(
                    "left out `{}`: its name is written `{name}` like another's",
                    metric.descriptor().name()
                ),
            );
            continue;
        }
        write_metric(metric, &name, out);
    }
}

fn is_written(series: &SeriesSnapshot) -> bool {
    let is_overflow =
        || matches!(series.attributes(), [one] if one.key.as_str() == "otel.metric.overflow");
    !matches!(series.point, Point::Nothing) && (series.is_recorded || !is_overflow())
}

fn comment(out: &mut String, text: &str) {
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(out, "# {}", text.replace('\n', " "));
}

fn write_metric(metric: &MetricSnapshot, name: &str, out: &mut String) {
    let descriptor = metric.descriptor();
    if !descriptor.description().is_empty() {
        let help = descriptor
            .description()
            .replace('\\', "\\\\")
            .replace('\n', "\\n");
        let _ = writeln!(out, "# HELP {name} {help}");
    }
    let kind = match descriptor.kind() {
        InstrumentKind::Counter => "counter",
        InstrumentKind::UpDownCounter | InstrumentKind::Gauge => "gauge",
        InstrumentKind::Histogram => "histogram",
    };
    let _ = writeln!(out, "# TYPE {name} {kind}");
    for series in metric.series.iter().filter(|series| is_written(series)) {
        let labels = names::labels(series.attributes());
        match &series.point {
            Point::Number(value) => sample(out, name, "", &labels, None, *value),
            Point::Histogram(histogram) => write_histogram(histogram, name, &labels, out),
            Point::Nothing => {}
        }
    }
}

fn write_histogram(histogram: &HistogramSnapshot, name: &str, labels: &str, out: &mut String) {
    let mut bucket = |bound: f64, count: u64| {
        sample(out, name, "_bucket", labels, Some(bound), Value::U64(count))
    };
    if let Some(boundaries) = histogram.boundaries() {
        let mut count = 0;
        for (bound, n) in boundaries.iter().zip(histogram.buckets()) {
            count += n;
            bucket(*bound, count);
        }
    } else {
        for bound in histogram.octaves() {
            bucket(bound, histogram.count_up_to(bound));
        }
    }
    bucket(f64::INFINITY, histogram.count());
    sample(out, name, "_sum", labels, None, histogram.sum());
    sample(
        out,
        name,
        "_count",
        labels,
        None,
        Value::U64(histogram.count()),
    );
}

fn sample(
    out: &mut String,
    name: &str,
    suffix: &str,
    labels: &str,
    bound: Option<f64>,
    value: Value,
) {
    out.push_str(name);
    out.push_str(suffix);
    if !labels.is_empty() || bound.is_some() {
        out.push('{');
        out.push_str(labels);
        if let Some(bound) = bound {
            if !labels.is_empty() {
                out.push(',');
            }
            out.push_str("le=\"");
            float(out, bound);
            out.push('"');
        }
        out.push('}');
    }
    out.push(' ');
    match value {
        Value::U64(value) => drop(write!(out, "{value}")),
        Value::I64(value) => drop(write!(out, "{value}")),
        Value::F64(value) => float(out, value),
    }
    out.push('\n');
}

fn float(out: &mut String, value: f64) {
    let _ = if value == f64::INFINITY {
        write!(out, "+Inf")
    } else if value == f64::NEG_INFINITY {
        write!(out, "-Inf")
    } else {
        // NaN is written like that; others with an exponent where that is shorter.
        write!(out, "{value:?}")
    };
}
