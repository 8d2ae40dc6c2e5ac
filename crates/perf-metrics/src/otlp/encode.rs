//! Snapshots as messages of the protocol.

use crate::attributes::{AttributeValue, KeyValue};
use crate::descriptor::{InstrumentKind, Scope};
use crate::exemplar::Exemplar;
use crate::histogram::{ExponentialBuckets, HistogramSnapshot};
use crate::number::Value;
use crate::reader::Temporality;
use crate::snapshot::{InstrumentSnapshot, MetricsSnapshot, Point, SeriesSnapshot};
use opentelemetry::Array;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1 as common;
use opentelemetry_proto::tonic::metrics::v1 as proto;
use opentelemetry_proto::tonic::resource::v1::Resource;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The most buckets on a side of an exponential histogram: what the SDK proposes,
/// <https://opentelemetry.io/docs/specs/otel/metrics/sdk/#base2-exponential-bucket-histogram-aggregation>.
pub const EXPONENTIAL_BUCKETS_MAX: usize = 160;

/// Who reports.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// What the metrics are about: `service.name`, `host.name`. If it is empty, the registry's resource.
    pub resource: Vec<KeyValue>,
    /// The name of the instrumentation, for instruments that were made in no [`Scope`].
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
    // In the order in which they were made, those of a scope together.
    let mut scopes: Vec<(Option<&Arc<Scope>>, Vec<proto::Metric>)> = Vec::new();
    for metric in snapshot.metrics() {
        let Some(encoded) = encode(metric, snapshot, temporality) else {
            continue;
        };
        let scope = metric.descriptor().scope_arc();
        match scopes.iter_mut().find(|(other, _)| *other == scope) {
            Some((_, metrics)) => metrics.push(encoded),
            None => scopes.push((scope, vec![encoded])),
        }
    }
    if scopes.is_empty() {
        return None;
    }
    let scope = |scope: Option<&Arc<Scope>>| match scope {
        None => common::InstrumentationScope {
            name: origin.scope_name.clone(),
            version: origin.scope_version.clone(),
            ..Default::default()
        },
        Some(scope) => common::InstrumentationScope {
            name: scope.name().to_owned(),
            version: scope.version().to_owned(),
            attributes: attributes(scope.attributes()),
            ..Default::default()
        },
    };
    let scope_metrics = scopes.into_iter().map(|(of, metrics)| proto::ScopeMetrics {
        scope: Some(scope(of)),
        metrics,
        schema_url: of
            .map(|scope| scope.schema_url().to_owned())
            .unwrap_or_default(),
    });
    let resource = if origin.resource.is_empty() {
        snapshot.resource()
    } else {
        &origin.resource
    };
    Some(ExportMetricsServiceRequest {
        resource_metrics: vec![proto::ResourceMetrics {
            resource: Some(Resource {
                attributes: attributes(resource),
                ..Default::default()
            }),
            scope_metrics: scope_metrics.collect(),
            schema_url: String::new(),
        }],
    })
}

fn encode(
    metric: &InstrumentSnapshot,
    snapshot: &MetricsSnapshot,
    temporality: Temporality,
) -> Option<proto::Metric> {
    let end = nanos(snapshot.time());
    let descriptor = metric.descriptor();
    let series: Vec<_> = metric
        .series()
        .iter()
        .filter(|series| series.is_recorded())
        .collect();
    let first = series.first()?;
    let is_delta = temporality.is_delta(descriptor);
    let temporality = match is_delta {
        true => proto::AggregationTemporality::Delta,
        false => proto::AggregationTemporality::Cumulative,
    } as i32;
    let times = |series: &SeriesSnapshot| {
        // What was removed ends before that which may follow it begins.
        let end = series.end().map_or(end, |time| nanos(Some(time)).min(end));
        let start = match (descriptor.kind(), nanos(series.start())) {
            // A gauge has no beginning.
            (InstrumentKind::Gauge, _) => 0,
            (_, start) if start <= end => start,
            (_, _) if is_delta => end,
            // The clock was set back to before the beginning, which is unknown then: a beginning that moves with each collection would look
            // like a sum that is begun again.
            _ => 0,
        };
        Times { start, end }
    };
    let numbers = || {
        series
            .iter()
            .filter_map(|series| number(series, &times(series)))
            .collect()
    };
    let data = match descriptor.kind() {
        InstrumentKind::Gauge => proto::metric::Data::Gauge(proto::Gauge {
            data_points: numbers(),
        }),
        kind @ (InstrumentKind::Counter | InstrumentKind::UpDownCounter) => {
            proto::metric::Data::Sum(proto::Sum {
                data_points: numbers(),
                aggregation_temporality: temporality,
                is_monotonic: kind == InstrumentKind::Counter,
            })
        }
        InstrumentKind::Histogram if first.histogram()?.boundaries().is_some() => {
            proto::metric::Data::Histogram(proto::Histogram {
                data_points: series
                    .iter()
                    .filter_map(|series| explicit(series, &times(series)))
                    .collect(),
                aggregation_temporality: temporality,
            })
        }
        InstrumentKind::Histogram => {
            proto::metric::Data::ExponentialHistogram(proto::ExponentialHistogram {
                data_points: series
                    .iter()
                    .filter_map(|series| exponential(series, &times(series)))
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

struct Times {
    start: u64,
    end: u64,
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
        exemplars: exemplars(series),
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
        bucket_counts: histogram.buckets().into_owned(),
        explicit_bounds: histogram.boundaries()?.to_vec(),
        min: histogram.min().map(Value::as_f64),
        max: histogram.max().map(Value::as_f64),
        exemplars: exemplars(series),
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
        exemplars: exemplars(series),
        ..Default::default()
    })
}

fn exemplars(series: &SeriesSnapshot) -> Vec<proto::Exemplar> {
    let encode = |exemplar: &Exemplar| proto::Exemplar {
        time_unix_nano: nanos(Some(exemplar.time())),
        span_id: exemplar.trace().span_id.to_vec(),
        trace_id: exemplar.trace().trace_id.to_vec(),
        value: Some(match exemplar.value() {
            Value::I64(value) => proto::exemplar::Value::AsInt(value),
            Value::U64(value) => match i64::try_from(value) {
                Ok(value) => proto::exemplar::Value::AsInt(value),
                Err(_) => proto::exemplar::Value::AsDouble(value as f64),
            },
            Value::F64(value) => proto::exemplar::Value::AsDouble(value),
        }),
        ..Default::default()
    };
    series.exemplars().iter().map(encode).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EMPTY_ATTRS, Registry};
    use std::time::Duration;

    #[test]
    fn a_clock_that_is_set_back_moves_no_beginning() {
        for (temporality, is_delta) in
            [(Temporality::Cumulative, false), (Temporality::Delta, true)]
        {
            let registry = Registry::new();
            let counter = registry.u64_counter("c").build().unwrap();
            counter.add(1, EMPTY_ATTRS);
            let mut snapshot = registry.collect();
            let now = snapshot.time().unwrap();
            for seconds in [7200, 3600] {
                let time = now - Duration::from_secs(seconds);
                snapshot.time = Some(time);
                let request = request(&snapshot, temporality, &Origin::default()).unwrap();
                let metric = &request.resource_metrics[0].scope_metrics[0].metrics[0];
                let Some(proto::metric::Data::Sum(sum)) = &metric.data else {
                    panic!("{metric:?}")
                };
                let point = &sum.data_points[0];
                let end = nanos(Some(time));
                let expected = if is_delta { end } else { 0 };
                assert_eq!(
                    (point.start_time_unix_nano, point.time_unix_nano),
                    (expected, end)
                );
            }
        }
    }
}
