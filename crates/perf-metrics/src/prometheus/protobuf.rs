//! Prometheus' protobuf format, which alone has native histograms:
//! <https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto>.

use super::model::{Distribution, Family, Kind, Sample, Series};
use super::native::Native;
use crate::histogram::ExponentialBuckets;
use prost::Message;
use std::time::{SystemTime, UNIX_EPOCH};

/// The scales that Prometheus knows.
const SCALE_MAX: i32 = 8;

#[derive(Clone, PartialEq, Message)]
struct MetricFamily {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    help: Option<String>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
    #[prost(message, repeated, tag = "4")]
    metric: Vec<Metric>,
    #[prost(string, optional, tag = "5")]
    unit: Option<String>,
}

const COUNTER: i32 = 0;
const GAUGE: i32 = 1;
const HISTOGRAM: i32 = 4;

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Gauge>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Counter>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Gauge {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct Exemplar {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(double, optional, tag = "2")]
    value: Option<f64>,
    #[prost(message, optional, tag = "3")]
    timestamp: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Message)]
struct Counter {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
    #[prost(message, optional, tag = "2")]
    exemplar: Option<Exemplar>,
    #[prost(message, optional, tag = "3")]
    created: Option<Timestamp>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    bucket: Vec<Bucket>,
    #[prost(message, optional, tag = "15")]
    created: Option<Timestamp>,
    #[prost(sint32, optional, tag = "5")]
    schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    zero_count: Option<u64>,
    #[prost(message, repeated, tag = "9")]
    negative_span: Vec<Span>,
    #[prost(sint64, repeated, tag = "10")]
    negative_delta: Vec<i64>,
    #[prost(message, repeated, tag = "12")]
    positive_span: Vec<Span>,
    #[prost(sint64, repeated, tag = "13")]
    positive_delta: Vec<i64>,
    /// Of native histograms.
    #[prost(message, repeated, tag = "16")]
    exemplars: Vec<Exemplar>,
}

#[derive(Clone, PartialEq, Message)]
struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    upper_bound: Option<f64>,
    #[prost(message, optional, tag = "3")]
    exemplar: Option<Exemplar>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Span {
    #[prost(sint32, optional, tag = "1")]
    offset: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    length: Option<u32>,
}

/// Appends each family behind its length.
pub(super) fn write(families: &[Family], out: &mut Vec<u8>) {
    for family in families {
        let message = MetricFamily {
            name: Some(match family.kind {
                Kind::Counter => format!("{}_total", family.name),
                _ => family.name.clone(),
            }),
            help: Some(family.help.clone()),
            kind: Some(match family.kind {
                Kind::Counter => COUNTER,
                Kind::Gauge | Kind::Info => GAUGE,
                Kind::Histogram => HISTOGRAM,
            }),
            metric: family
                .series
                .iter()
                .map(|series| metric(series, family.kind))
                .collect(),
            unit: Some(family.unit.clone()).filter(|unit| !unit.is_empty()),
        };
        // Writing to a vector cannot fail.
        let _ = message.encode_length_delimited(out);
    }
}

/// Seconds and nanoseconds since 1970.
fn since_epoch(time: SystemTime) -> (i64, i32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        since.subsec_nanos() as i32,
    )
}

fn label(name: &str, value: String) -> LabelPair {
    LabelPair {
        name: Some(name.to_owned()),
        value: Some(value),
    }
}

fn exemplar(exemplar: &crate::exemplar::Exemplar) -> Exemplar {
    let (trace, span) = exemplar.trace().to_hex();
    let (seconds, nanos) = since_epoch(exemplar.time());
    Exemplar {
        label: vec![label("trace_id", trace), label("span_id", span)],
        value: Some(exemplar.value().as_f64()),
        timestamp: Some(Timestamp { seconds, nanos }),
    }
}

fn metric(series: &Series, kind: Kind) -> Metric {
    let created = series
        .start
        .map(since_epoch)
        .map(|(seconds, nanos)| Timestamp { seconds, nanos });
    let mut metric = Metric {
        label: series
            .labels
            .iter()
            .map(|(name, value)| label(name, value.clone()))
            .collect(),
        ..Metric::default()
    };
    match &series.sample {
        Sample::Number(value) if kind == Kind::Counter => {
            metric.counter = Some(Counter {
                value: Some(value.as_f64()),
                exemplar: series
                    .exemplar(f64::NEG_INFINITY, f64::INFINITY)
                    .map(exemplar),
                created,
            });
        }
        Sample::Number(value) => {
            metric.gauge = Some(Gauge {
                value: Some(value.as_f64()),
            });
        }
        Sample::Histogram(histogram) => {
            metric.histogram = Some(self::histogram(histogram, series, created))
        }
    }
    metric
}

fn histogram(histogram: &Distribution, series: &Series, created: Option<Timestamp>) -> Histogram {
    let (mut count, mut low) = (0u64, f64::NEG_INFINITY);
    let mut bucket: Vec<Bucket> = histogram
        .classic()
        .iter()
        .map(|(bound, n)| {
            count = count.wrapping_add(*n);
            Bucket {
                cumulative_count: Some(count),
                upper_bound: Some(*bound),
                exemplar: series
                    .exemplar(std::mem::replace(&mut low, *bound), *bound)
                    .map(exemplar),
            }
        })
        .collect();
    bucket.push(Bucket {
        cumulative_count: Some(histogram.count),
        upper_bound: Some(f64::INFINITY),
        exemplar: series.exemplar(low, f64::INFINITY).map(exemplar),
    });
    let mut message = Histogram {
        count: Some(histogram.count),
        sum: Some(histogram.sum.as_f64()),
        bucket,
        created,
        ..Histogram::default()
    };
    if let Some(native) = histogram.native() {
        message.exemplars = series.exemplars.iter().map(exemplar).collect();
        add_native(native, &mut message);
    }
    message
}

fn add_native(native: &Native, message: &mut Histogram) {
    let native = native.coarser(u32::try_from(native.scale - SCALE_MAX).unwrap_or(0));
    message.schema = Some(native.scale);
    message.zero_threshold = Some(native.zero_threshold);
    message.zero_count = Some(native.zero_count);
    let (span, delta) = spans(&native.positive);
    (message.positive_span, message.positive_delta) = (span, delta);
    let (span, delta) = spans(&native.negative);
    (message.negative_span, message.negative_delta) = (span, delta);
    if message.positive_span.is_empty()
        && message.negative_span.is_empty()
        && native.zero_count == 0
    {
        // Told apart from a classic histogram by a span without buckets.
        message.positive_span.push(Span {
            offset: Some(0),
            length: Some(0),
        });
    }
}

/// Runs of buckets that hold something, and the differences of their counts. Prometheus counts buckets by their upper bound: its index
/// is one more than OpenTelemetry's.
fn spans(side: &ExponentialBuckets) -> (Vec<Span>, Vec<i64>) {
    let (mut spans, mut deltas): (Vec<Span>, Vec<i64>) = (Vec::new(), Vec::new());
    let (mut before, mut gap) = (0i64, i64::from(side.offset) + 1);
    for count in &side.counts {
        if *count == 0 {
            gap += 1;
            continue;
        }
        match spans.last_mut() {
            Some(span) if gap == 0 => span.length = span.length.map(|length| length + 1),
            _ => spans.push(Span {
                offset: i32::try_from(gap).ok(),
                length: Some(1),
            }),
        }
        gap = 0;
        deltas.push((*count as i64).wrapping_sub(before));
        before = *count as i64;
    }
    (spans, deltas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_say_where_the_buckets_are() {
        let side = ExponentialBuckets {
            offset: -3,
            counts: vec![5, 7, 0, 0, 2, 0, 1],
        };
        let (spans, deltas) = spans(&side);
        let spans: Vec<_> = spans
            .iter()
            .map(|span| (span.offset(), span.length()))
            .collect();
        assert_eq!(spans, [(-2, 2), (2, 1), (1, 1)]);
        assert_eq!(deltas, [5, 2, -5, -1]);
    }
}
