//! Snapshots as messages of the protocol.

use crate::attributes::{AttributeValue, KeyValue};
use crate::descriptor::InstrumentKind;
use crate::histogram::{ExponentialBuckets, HistogramSnapshot};
use crate::number::Value;
use crate::reader::Temporality;
use crate::snapshot::{MetricSnapshot, MetricsSnapshot, Point, SeriesSnapshot};
use opentelemetry::Array;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1 as common;
use opentelemetry_proto::tonic::metrics::v1 as proto;
use opentelemetry_proto::tonic::resource::v1::Resource;
use std::time::{SystemTime, UNIX_EPOCH};

/// The most buckets on a side of an exponential histogram: what the SDK proposes,
/// <https://opentelemetry.io/docs/specs/otel/metrics/sdk/#base2-exponential-bucket-histogram-aggregation>.
pub const EXPONENTIAL_BUCKETS_MAX: usize = 160;

/// Who reports.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// What the metrics are about: `service.name`, `host.name`.
    pub resource: Vec<KeyValue>,
    /// The name of the instrumentation.
    pub scope_name: String,
    /// Its version.
    pub scope_version: String,
}

/// A snapshot of the given temporality as a request. Series that were never recorded to, and deltas that are nothing, are left out;
/// `None` if that is all.
#[must_use]
pub fn request(
    snapshot: &MetricsSnapshot,
    temporality: Temporality,
    origin: &Origin,
) -> Option<ExportMetricsServiceRequest> {
    let metrics: Vec<_> = snapshot
        .metrics()
        .iter()
        .filter_map(|metric| encode(metric, snapshot, temporality))
        .collect();
    if metrics.is_empty() {
        return None;
    }
    let scope = common::InstrumentationScope {
        name: origin.scope_name.clone(),
        version: origin.scope_version.clone(),
        ..Default::default()
    };
    Some(ExportMetricsServiceRequest {
        resource_metrics: vec![proto::ResourceMetrics {
            resource: Some(Resource {
                attributes: attributes(&origin.resource),
                ..Default::default()
            }),
            scope_metrics: vec![proto::ScopeMetrics {
                scope: Some(scope),
                metrics,
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    })
}

struct Times {
    start: u64,
    end: u64,
}

fn encode(
    metric: &MetricSnapshot,
    snapshot: &MetricsSnapshot,
    temporality: Temporality,
) -> Option<proto::Metric> {
    let times = Times {
        start: nanos(snapshot.start()),
        end: nanos(snapshot.time()),
    };
    let descriptor = metric.descriptor();
    let series: Vec<_> = metric
        .series()
        .iter()
        .filter(|series| series.is_recorded())
        .collect();
    let first = series.first()?;
    let temporality = match (temporality, descriptor.kind()) {
        (Temporality::Delta, InstrumentKind::Counter | InstrumentKind::Histogram) => {
            proto::AggregationTemporality::Delta
        }
        _ => proto::AggregationTemporality::Cumulative,
    } as i32;
    let numbers = |times: &Times| {
        series
            .iter()
            .filter_map(|series| number(series, times))
            .collect()
    };
    let data = match descriptor.kind() {
        InstrumentKind::Gauge => proto::metric::Data::Gauge(proto::Gauge {
            // A gauge has no beginning.
            data_points: numbers(&Times {
                start: 0,
                end: times.end,
            }),
        }),
        kind @ (InstrumentKind::Counter | InstrumentKind::UpDownCounter) => {
            proto::metric::Data::Sum(proto::Sum {
                data_points: numbers(&match kind {
                    InstrumentKind::Counter => times,
                    // Cumulative whatever the others are.
                    _ => Times {
                        start: nanos(snapshot.cumulative_start),
                        end: times.end,
                    },
                }),
                aggregation_temporality: temporality,
                is_monotonic: kind == InstrumentKind::Counter,
            })
        }
        InstrumentKind::Histogram if first.histogram()?.boundaries().is_some() => {
            proto::metric::Data::Histogram(proto::Histogram {
                data_points: series
                    .iter()
                    .filter_map(|series| explicit(series, &times))
                    .collect(),
                aggregation_temporality: temporality,
            })
        }
        InstrumentKind::Histogram => {
            proto::metric::Data::ExponentialHistogram(proto::ExponentialHistogram {
                data_points: series
                    .iter()
                    .filter_map(|series| exponential(series, &times))
                    .collect(),
                aggregation_temporality: temporality,
            })
        }
    };
    Some(proto::Metric {
        name: descriptor.name().to_owned(),
        description: descriptor.description().to_owned(),
        unit: descriptor.unit().to_owned(),
        metadata: Vec::new(),
        data: Some(data),
    })
}

/// Since 1970; zero, which is "unknown", for a clock that is set before it.
fn nanos(time: Option<SystemTime>) -> u64 {
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}

fn number(series: &SeriesSnapshot, times: &Times) -> Option<proto::NumberDataPoint> {
    use proto::number_data_point::Value as Number;
    let Point::Number(value) = series.point else {
        return None;
    };
    let value = match value {
        // The protocol has no unsigned numbers; beyond its range a rounded number is better than a negative one.
        Value::U64(value) => {
            i64::try_from(value).map_or(Number::AsDouble(value as f64), Number::AsInt)
        }
        Value::I64(value) => Number::AsInt(value),
        Value::F64(value) => Number::AsDouble(value),
    };
    Some(proto::NumberDataPoint {
        attributes: attributes(series.attributes()),
        start_time_unix_nano: times.start,
        time_unix_nano: times.end,
        value: Some(value),
        ..Default::default()
    })
}

fn explicit(series: &SeriesSnapshot, times: &Times) -> Option<proto::HistogramDataPoint> {
    let histogram = series.histogram()?;
    Some(proto::HistogramDataPoint {
        attributes: attributes(series.attributes()),
        start_time_unix_nano: times.start,
        time_unix_nano: times.end,
        count: histogram.count(),
        sum: Some(histogram.sum().as_f64()),
        bucket_counts: histogram.buckets().to_vec(),
        explicit_bounds: histogram.boundaries()?.to_vec(),
        min: histogram.min().map(Value::as_f64),
        max: histogram.max().map(Value::as_f64),
        ..Default::default()
    })
}

fn exponential(
    series: &SeriesSnapshot,
    times: &Times,
) -> Option<proto::ExponentialHistogramDataPoint> {
    let histogram: &HistogramSnapshot = series.histogram()?;
    let (scale, positive, negative) = histogram.exponential_buckets(EXPONENTIAL_BUCKETS_MAX)?;
    let side = |side: ExponentialBuckets| {
        Some(proto::exponential_histogram_data_point::Buckets {
            offset: side.offset,
            bucket_counts: side.counts,
        })
    };
    Some(proto::ExponentialHistogramDataPoint {
        attributes: attributes(series.attributes()),
        start_time_unix_nano: times.start,
        time_unix_nano: times.end,
        count: histogram.count(),
        sum: Some(histogram.sum().as_f64()),
        scale,
        zero_count: histogram.zero_count(),
        zero_threshold: histogram.zero_threshold(),
        positive: side(positive),
        negative: side(negative),
        min: histogram.min().map(Value::as_f64),
        max: histogram.max().map(Value::as_f64),
        ..Default::default()
    })
}

fn attributes(set: &[KeyValue]) -> Vec<common::KeyValue> {
    let encode = |attribute: &KeyValue| common::KeyValue {
        key: attribute.key.as_str().to_owned(),
        value: Some(value(&attribute.value)),
        ..Default::default()
    };
    set.iter().map(encode).collect()
}

fn value(value: &AttributeValue) -> common::AnyValue {
    use common::any_value::Value as Any;
    let array = |values: Vec<Any>| {
        let values = values
            .into_iter()
            .map(|value| common::AnyValue { value: Some(value) })
            .collect();
        Any::ArrayValue(common::ArrayValue { values })
    };
    let value = match value {
        AttributeValue::Bool(flag) => Any::BoolValue(*flag),
        AttributeValue::I64(number) => Any::IntValue(*number),
        AttributeValue::F64(number) => Any::DoubleValue(*number),
        AttributeValue::String(text) => Any::StringValue(text.as_str().to_owned()),
        AttributeValue::Array(Array::Bool(items)) => {
            array(items.iter().map(|item| Any::BoolValue(*item)).collect())
        }
        AttributeValue::Array(Array::I64(items)) => {
            array(items.iter().map(|item| Any::IntValue(*item)).collect())
        }
        AttributeValue::Array(Array::F64(items)) => {
            array(items.iter().map(|item| Any::DoubleValue(*item)).collect())
        }
        AttributeValue::Array(Array::String(items)) => array(
            items
                .iter()
                .map(|item| Any::StringValue(item.as_str().to_owned()))
                .collect(),
        ),
        // Unknown to this version: as text.
        other => Any::StringValue(other.to_string()),
    };
    common::AnyValue { value: Some(value) }
}
