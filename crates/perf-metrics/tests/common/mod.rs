//! The same random operations on our instruments and on the SDK's.
#![allow(dead_code, reason = "each test uses a part")]

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use perf_metrics::{DEFAULT_BOUNDARIES, Registry};
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Count(u64, usize),
    CountFloat(u32, usize),
    UpDown(i64, usize),
    Gauge(i64, usize),
    Size(u64, usize),
    Time(u32, usize),
    Collect,
}

pub(crate) fn ops() -> impl Strategy<Value = Vec<Op>> {
    let set = 0usize..4;
    let op = prop_oneof![
        4 => (0u64..1000, set.clone()).prop_map(|(n, a)| Op::Count(n, a)),
        2 => (0u32..1000, set.clone()).prop_map(|(n, a)| Op::CountFloat(n, a)),
        3 => (-50i64..50, set.clone()).prop_map(|(n, a)| Op::UpDown(n, a)),
        2 => (-50i64..50, set.clone()).prop_map(|(n, a)| Op::Gauge(n, a)),
        4 => (prop_oneof![0u64..20_000, Just(0), Just(10), Just(10_000)], set.clone()).prop_map(|(n, a)| Op::Size(n, a)),
        4 => (prop_oneof![0u32..80_000, Just(0), Just(40)], set).prop_map(|(n, a)| Op::Time(n, a)),
        1 => Just(Op::Collect),
    ];
    proptest::collection::vec(op, 1..120)
}

/// In different orders, which mean the same.
pub(crate) fn set(place: usize) -> Vec<KeyValue> {
    match place {
        0 => vec![],
        1 => vec![KeyValue::new("a", "x"), KeyValue::new("b", 2)],
        2 => vec![KeyValue::new("b", 2), KeyValue::new("a", "x")],
        _ => vec![KeyValue::new("a", true), KeyValue::new("f", 0.5)],
    }
}

pub(crate) struct Ours {
    count: perf_metrics::Counter<u64>,
    count_float: perf_metrics::Counter<f64>,
    updown: perf_metrics::UpDownCounter<i64>,
    gauge: perf_metrics::Gauge<i64>,
    size: perf_metrics::Histogram<u64>,
    time: perf_metrics::Histogram<f64>,
}

impl Ours {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            count: registry
                .u64_counter("count")
                .with_unit("{op}")
                .with_description("ops")
                .build()
                .unwrap(),
            count_float: registry
                .f64_counter("count.float")
                .with_unit("s")
                .build()
                .unwrap(),
            updown: registry.i64_up_down_counter("up.down").build().unwrap(),
            gauge: registry
                .i64_gauge("gauge")
                .with_description("a gauge")
                .build()
                .unwrap(),
            size: registry
                .u64_histogram("size")
                .with_unit("By")
                .with_boundaries(DEFAULT_BOUNDARIES)
                .build()
                .unwrap(),
            time: registry
                .f64_histogram("time")
                .with_unit("ms")
                .with_boundaries(DEFAULT_BOUNDARIES)
                .build()
                .unwrap(),
        }
    }

    pub(crate) fn apply(&self, op: &Op) {
        match *op {
            Op::Count(n, a) => self.count.add(n, &set(a)),
            Op::CountFloat(n, a) => self.count_float.add(f64::from(n) / 4.0, &set(a)),
            Op::UpDown(n, a) => self.updown.add(n, &set(a)),
            Op::Gauge(n, a) => self.gauge.record(n, &set(a)),
            Op::Size(n, a) => self.size.record(n, &set(a)),
            Op::Time(n, a) => self.time.record(f64::from(n) / 4.0, &set(a)),
            Op::Collect => {}
        }
    }
}

pub(crate) struct Sdk {
    count: opentelemetry::metrics::Counter<u64>,
    count_float: opentelemetry::metrics::Counter<f64>,
    updown: opentelemetry::metrics::UpDownCounter<i64>,
    gauge: opentelemetry::metrics::Gauge<i64>,
    size: opentelemetry::metrics::Histogram<u64>,
    time: opentelemetry::metrics::Histogram<f64>,
}

impl Sdk {
    pub(crate) fn new(meter: &Meter) -> Self {
        Self {
            count: meter
                .u64_counter("count")
                .with_unit("{op}")
                .with_description("ops")
                .build(),
            count_float: meter.f64_counter("count.float").with_unit("s").build(),
            updown: meter.i64_up_down_counter("up.down").build(),
            gauge: meter.i64_gauge("gauge").with_description("a gauge").build(),
            size: meter.u64_histogram("size").with_unit("By").build(),
            time: meter.f64_histogram("time").with_unit("ms").build(),
        }
    }

    pub(crate) fn apply(&self, op: &Op) {
        match *op {
            Op::Count(n, a) => self.count.add(n, &set(a)),
            Op::CountFloat(n, a) => self.count_float.add(f64::from(n) / 4.0, &set(a)),
            Op::UpDown(n, a) => self.updown.add(n, &set(a)),
            Op::Gauge(n, a) => self.gauge.record(n, &set(a)),
            Op::Size(n, a) => self.size.record(n, &set(a)),
            Op::Time(n, a) => self.time.record(f64::from(n) / 4.0, &set(a)),
            Op::Collect => {}
        }
    }
}

/// One data point in a form that all exporters can be brought into.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub(crate) struct Point {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) description: String,
    pub(crate) kind: String,
    pub(crate) attributes: String,
    pub(crate) numbers: Vec<f64>,
}

pub(crate) fn attributes<'a>(set: impl Iterator<Item = &'a KeyValue>) -> String {
    let mut pairs: Vec<String> = set.map(|kv| format!("{}={}", kv.key, kv.value)).collect();
    pairs.sort();
    pairs.join(",")
}

/// Sorted, and without sums that are zero: those are told apart from never recorded by the SDK alone.
pub(crate) fn normal(mut points: Vec<Point>) -> Vec<Point> {
    points.retain(|point| !point.kind.starts_with("sum") || point.numbers != [0.0]);
    points.sort_by(|a, b| a.partial_cmp(b).unwrap());
    points
}

/// The SDK's data in that form.
pub(crate) fn sdk_points(
    metrics: &opentelemetry_sdk::metrics::data::ResourceMetrics,
) -> Vec<Point> {
    use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};
    fn points<T: Copy>(
        data: &MetricData<T>,
        float: fn(T) -> f64,
    ) -> Vec<(String, String, Vec<f64>)> {
        match data {
            MetricData::Gauge(gauge) => gauge
                .data_points()
                .map(|p| {
                    (
                        "gauge".to_owned(),
                        attributes(p.attributes()),
                        vec![float(p.value())],
                    )
                })
                .collect(),
            MetricData::Sum(sum) => {
                let kind = format!("sum {:?} {}", sum.temporality(), sum.is_monotonic());
                sum.data_points()
                    .map(|p| {
                        (
                            kind.clone(),
                            attributes(p.attributes()),
                            vec![float(p.value())],
                        )
                    })
                    .collect()
            }
            MetricData::Histogram(histogram) => {
                let kind = format!("histogram {:?}", histogram.temporality());
                let numbers = |p: &opentelemetry_sdk::metrics::data::HistogramDataPoint<T>| {
                    let mut numbers = vec![p.count() as f64, float(p.sum())];
                    numbers.extend([p.min(), p.max()].into_iter().flatten().map(float));
                    numbers.extend(p.bounds());
                    numbers.extend(p.bucket_counts().map(|n| n as f64));
                    numbers
                };
                histogram
                    .data_points()
                    .map(|p| (kind.clone(), attributes(p.attributes()), numbers(p)))
                    .collect()
            }
            MetricData::ExponentialHistogram(_) => panic!("no view asks for it"),
        }
    }
    let mut all = Vec::new();
    for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
        let found = match metric.data() {
            AggregatedMetrics::F64(data) => points(data, |v| v),
            AggregatedMetrics::U64(data) => points(data, |v| v as f64),
            AggregatedMetrics::I64(data) => points(data, |v| v as f64),
        };
        all.extend(found.into_iter().map(|(kind, attributes, numbers)| Point {
            name: metric.name().to_owned(),
            unit: metric.unit().to_owned(),
            description: metric.description().to_owned(),
            kind,
            attributes,
            numbers,
        }));
    }
    normal(all)
}

/// Equal, but for the rounding of sums of floats.
pub(crate) fn assert_same(ours: &[Point], sdk: &[Point]) {
    let close = |a: &f64, b: &f64| a == b || (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
    assert_eq!(ours.len(), sdk.len(), "ours {ours:#?}\nSDK {sdk:#?}");
    for (ours, sdk) in ours.iter().zip(sdk) {
        let same = ours.numbers.len() == sdk.numbers.len()
            && ours
                .numbers
                .iter()
                .zip(&sdk.numbers)
                .all(|(a, b)| close(a, b));
        let texts = |p: &Point| {
            [
                p.name.clone(),
                p.unit.clone(),
                p.description.clone(),
                p.kind.clone(),
                p.attributes.clone(),
            ]
        };
        assert!(
            same && texts(ours) == texts(sdk),
            "ours {ours:?}\nSDK {sdk:?}"
        );
    }
}
