//! What arrives at an OTLP receiver is what the SDK would have counted.
#![cfg(feature = "otlp-grpc")]

mod common;
#[path = "common/grpc.rs"]
mod grpc;
#[path = "common/receiver.rs"]
mod receiver;

use common::{Op, Ours, Point, Sdk, assert_same, normal, ops, sdk_points};
use opentelemetry::metrics::MeterProvider;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, metric::Data, number_data_point::Value as Number,
};
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};
use opentelemetry_sdk::metrics::{
    Aggregation, InMemoryMetricExporter, InMemoryMetricExporterBuilder, Instrument, PeriodicReader,
    SdkMeterProvider, Stream, Temporality as SdkTemporality,
};
use perf_metrics::otlp::encode::{self, Origin};
use perf_metrics::otlp::{
    Accepted, ExportMetricsServiceRequest, OtlpBuilder, OtlpError, OtlpExporter, OtlpStats,
    SendError, Transport,
};
use perf_metrics::{EMPTY_ATTRS, KeyValue, Registry, Temporality};
use proptest::prelude::*;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn text(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue]) -> String {
    let value = |value: &Any| match value {
        Any::StringValue(text) => text.clone(),
        Any::BoolValue(flag) => flag.to_string(),
        Any::IntValue(number) => number.to_string(),
        Any::DoubleValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let mut pairs: Vec<String> = attributes
        .iter()
        .map(|kv| {
            format!(
                "{}={}",
                kv.key,
                value(kv.value.as_ref().unwrap().value.as_ref().unwrap())
            )
        })
        .collect();
    pairs.sort();
    pairs.join(",")
}

fn otlp_points(request: &ExportMetricsServiceRequest) -> Vec<Point> {
    let temporality = |t: i32| match AggregationTemporality::try_from(t).unwrap() {
        AggregationTemporality::Delta => "Delta",
        AggregationTemporality::Cumulative => "Cumulative",
        AggregationTemporality::Unspecified => panic!("no temporality"),
    };
    let number = |n: &Option<Number>| match n.as_ref().unwrap() {
        Number::AsInt(n) => *n as f64,
        Number::AsDouble(n) => *n,
    };
    let mut all = Vec::new();
    for metric in request
        .resource_metrics
        .iter()
        .flat_map(|r| &r.scope_metrics)
        .flat_map(|s| &s.metrics)
    {
        let points: Vec<(String, String, Vec<f64>)> = match metric.data.as_ref().unwrap() {
            Data::Gauge(gauge) => gauge
                .data_points
                .iter()
                .map(|p| {
                    (
                        "gauge".to_owned(),
                        text(&p.attributes),
                        vec![number(&p.value)],
                    )
                })
                .collect(),
            Data::Sum(sum) => {
                let kind = format!(
                    "sum {} {}",
                    temporality(sum.aggregation_temporality),
                    sum.is_monotonic
                );
                sum.data_points
                    .iter()
                    .map(|p| {
                        assert!(
                            0 < p.start_time_unix_nano
                                && p.start_time_unix_nano <= p.time_unix_nano
                        );
                        (kind.clone(), text(&p.attributes), vec![number(&p.value)])
                    })
                    .collect()
            }
            Data::Histogram(histogram) => {
                let kind = format!(
                    "histogram {}",
                    temporality(histogram.aggregation_temporality)
                );
                let numbers = |p: &opentelemetry_proto::tonic::metrics::v1::HistogramDataPoint| {
                    let mut numbers = vec![
                        p.count as f64,
                        p.sum.unwrap(),
                        p.min.unwrap(),
                        p.max.unwrap(),
                    ];
                    numbers.extend(&p.explicit_bounds);
                    numbers.extend(p.bucket_counts.iter().map(|n| *n as f64));
                    numbers
                };
                histogram
                    .data_points
                    .iter()
                    .map(|p| (kind.clone(), text(&p.attributes), numbers(p)))
                    .collect()
            }
            other => panic!("{other:?}"),
        };
        all.extend(points.into_iter().map(|(kind, attributes, numbers)| Point {
            name: metric.name.clone(),
            unit: metric.unit.clone(),
            description: metric.description.clone(),
            kind,
            attributes,
            numbers,
        }));
    }
    normal(all)
}

fn quiet(builder: OtlpBuilder) -> OtlpBuilder {
    builder
        .with_interval(Duration::from_secs(3600))
        .with_error_handler(|_| {})
}

fn check(
    ops: &[Op],
    start: impl Fn(&Registry, Temporality) -> OtlpExporter,
    arrived: &receiver::Arrived,
    temporality: (Temporality, SdkTemporality),
) {
    arrived.lock().unwrap().clear();
    let memory = InMemoryMetricExporterBuilder::new()
        .with_temporality(temporality.1)
        .build();
    let reader = PeriodicReader::builder(memory.clone())
        .with_interval(LONG)
        .build();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    let registry = Registry::new();
    let exporter = start(&registry, temporality.0);
    let (ours, sdk) = (Ours::new(&registry), Sdk::new(&provider.meter("test")));
    for op in ops.iter().chain([&Op::Collect]) {
        ours.apply(op);
        sdk.apply(op);
        if matches!(op, Op::Collect) {
            exporter.flush(LONG).unwrap();
            provider.force_flush().unwrap();
            let mut found = arrived
                .lock()
                .unwrap()
                .drain(..)
                .next_back()
                .map(|r| otlp_points(&r))
                .unwrap_or_default();
            let mut expected = memory
                .get_finished_metrics()
                .unwrap()
                .last()
                .map(sdk_points)
                .unwrap_or_default();
            memory.reset();
            if temporality.0 == Temporality::Delta {
                // Ours reports a gauge at each collection, the SDK when it was set again.
                found.retain(|point| point.kind != "gauge");
                expected.retain(|point| point.kind != "gauge");
            }
            assert_same(&found, &expected);
        }
    }
    exporter.shutdown(LONG).unwrap();
}

const BOTH: [(Temporality, SdkTemporality); 2] = [
    (Temporality::Cumulative, SdkTemporality::Cumulative),
    (Temporality::Delta, SdkTemporality::Delta),
];

fn grpc_receiver() -> (std::net::SocketAddr, receiver::Arrived) {
    grpc::serve(tonic::transport::Server::builder(), grpc::BYTES_MAX, None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn http_and_grpc_deliver_what_the_sdk_counts(ops in ops()) {
        static HTTP: std::sync::OnceLock<(std::net::SocketAddr, receiver::Arrived)> = std::sync::OnceLock::new();
        static GRPC: std::sync::OnceLock<(std::net::SocketAddr, receiver::Arrived)> = std::sync::OnceLock::new();
        let (http, http_arrived) = HTTP.get_or_init(|| receiver::http(vec![]));
        let (grpc, grpc_arrived) = GRPC.get_or_init(grpc_receiver);
        for temporality in BOTH {
            let start = |registry: &Registry, t| quiet(OtlpExporter::http(&format!("http://{http}"))).with_temporality(t).start(registry).unwrap();
            check(&ops, start, http_arrived, temporality);
            let start = |registry: &Registry, t| quiet(OtlpExporter::grpc(&format!("http://{grpc}"))).with_temporality(t).start(registry).unwrap();
            check(&ops, start, grpc_arrived, temporality);
        }
    }

    #[test]
    fn exponential_histograms_are_the_sdks(values in proptest::collection::vec(prop_oneof![4 => 1e-6..1e6f64, 1 => -1e3..-1e-3f64, 1 => Just(0.0)], 1..100)) {
        let memory = InMemoryMetricExporter::default();
        let view = |_: &Instrument| {
            let aggregation = Aggregation::Base2ExponentialHistogram { max_size: 160, max_scale: 3, record_min_max: true };
            Stream::builder().with_aggregation(aggregation).build().ok()
        };
        let reader = PeriodicReader::builder(memory.clone()).with_interval(LONG).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).with_view(view).build();
        let sdk = provider.meter("test").f64_histogram("h").build();
        let registry = Registry::new();
        let ours = registry.f64_histogram("h").build().unwrap();
        for value in &values {
            sdk.record(*value, EMPTY_ATTRS);
            ours.record(*value, EMPTY_ATTRS);
        }
        provider.force_flush().unwrap();
        let request = encode::request(&registry.reader(Temporality::Cumulative).unwrap().collect().clone(), Temporality::Cumulative, &Origin::default()).unwrap();
        let Some(Data::ExponentialHistogram(found)) = &request.resource_metrics[0].scope_metrics[0].metrics[0].data else { panic!() };
        let found = &found.data_points[0];
        let all = memory.get_finished_metrics().unwrap();
        let metric = all[0].scope_metrics().next().unwrap().metrics().next().unwrap();
        let AggregatedMetrics::F64(MetricData::ExponentialHistogram(expected)) = metric.data() else { panic!() };
        let expected = expected.data_points().next().unwrap();
        prop_assert_eq!((found.count as usize, found.zero_count, found.scale), (expected.count(), expected.zero_count(), i32::from(expected.scale())));
        prop_assert_eq!((found.min, found.max), (expected.min(), expected.max()));
        prop_assert!((found.sum.unwrap() - expected.sum()).abs() <= 1e-9 * values.iter().map(|v| v.abs()).sum::<f64>());
        for (found, expected) in [(&found.positive, expected.positive_bucket()), (&found.negative, expected.negative_bucket())] {
            let found = found.as_ref().unwrap();
            let counts: Vec<u64> = expected.counts().collect();
            prop_assert_eq!(&found.bucket_counts, &counts);
            prop_assert!(counts.is_empty() || found.offset == expected.offset());
        }
    }
}

#[test]
fn a_receiver_that_is_busy_gets_every_count_once() {
    let (address, arrived) = receiver::http(vec![503, 429]);
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let exporter = quiet(OtlpExporter::http(&format!("http://{address}")))
        .with_temporality(Temporality::Delta)
        .with_resource([KeyValue::new("service.name", "node")])
        .with_scope("scope", "1.2.3")
        .start(&registry)
        .unwrap();
    counter.add(3, EMPTY_ATTRS);
    exporter.flush(LONG).unwrap();
    counter.add(4, EMPTY_ATTRS);
    let stats = exporter.stats();
    assert_eq!(
        (
            stats.retries,
            stats.delivered,
            stats.queued,
            stats.last_error
        ),
        (2, 1, 0, None)
    );
    exporter.shutdown(LONG).unwrap();
    let arrived = arrived.lock().unwrap();
    let sums: Vec<f64> = arrived
        .iter()
        .map(|request| otlp_points(request)[0].numbers[0])
        .collect();
    assert_eq!(sums, [3.0, 4.0]);
    let resource = &arrived[0].resource_metrics[0];
    assert_eq!(
        text(&resource.resource.as_ref().unwrap().attributes),
        "service.name=node"
    );
    let scope = resource.scope_metrics[0].scope.as_ref().unwrap();
    assert_eq!(
        (scope.name.as_str(), scope.version.as_str()),
        ("scope", "1.2.3")
    );
    // The second delta starts where the first ends.
    let times = |r: &ExportMetricsServiceRequest| match &r.resource_metrics[0].scope_metrics[0]
        .metrics[0]
        .data
    {
        Some(Data::Sum(sum)) => (
            sum.data_points[0].start_time_unix_nano,
            sum.data_points[0].time_unix_nano,
        ),
        _ => panic!(),
    };
    assert!(times(&arrived[0]).1 <= times(&arrived[1]).0);
}

#[test]
fn a_request_that_is_refused_is_reported_and_dropped() {
    let (address, arrived) = receiver::http(vec![400]);
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    counter.add(1, EMPTY_ATTRS);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let exporter = OtlpExporter::http(&format!("http://{address}"))
        .with_error_handler(move |error| tell.lock().unwrap().push(error.to_owned()))
        .start(&registry)
        .unwrap();
    let error = exporter.flush(LONG).unwrap_err();
    assert!(matches!(error, OtlpError::Refused { .. }), "{error}");
    assert_eq!(exporter.stats().refused, 1);
    assert!(told.lock().unwrap()[0].contains("400"));
    drop(exporter);
    assert_eq!(
        arrived.lock().unwrap().len(),
        1,
        "the cumulative value arrives with the next request"
    );
}

#[test]
fn a_receiver_that_hangs_or_is_not_there_is_an_error_in_bounded_time() {
    // Accepts connections and answers nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hanging = listener.local_addr().unwrap();
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    counter.add(1, EMPTY_ATTRS);
    for endpoint in [format!("http://{hanging}"), "http://127.0.0.1:1".to_owned()] {
        for builder in [OtlpExporter::http(&endpoint), OtlpExporter::grpc(&endpoint)] {
            let exporter = quiet(builder)
                .with_timeout(Duration::from_millis(50))
                .start(&registry)
                .unwrap();
            let error = exporter.flush(Duration::from_millis(200)).unwrap_err();
            assert!(matches!(error, OtlpError::Undelivered { .. }), "{error}");
            let error = exporter.shutdown(Duration::from_millis(200)).unwrap_err();
            assert!(error.to_string().contains("not delivered"), "{error}");
        }
    }
    assert!(matches!(
        OtlpExporter::http("ftp://x").start(&registry),
        Err(OtlpError::InvalidEndpoint { .. })
    ));
    assert!(matches!(
        OtlpExporter::grpc("a b").start(&registry),
        Err(OtlpError::InvalidEndpoint { .. })
    ));
}

/// Fails while it is told to.
struct Moody(Arc<AtomicBool>, receiver::Arrived);

impl Transport for Moody {
    fn send(
        &mut self,
        request: &ExportMetricsServiceRequest,
        _timeout: Duration,
    ) -> Result<Accepted, SendError> {
        if self.0.load(Ordering::Acquire) {
            return Err(SendError::Retry {
                reason: "moody".to_owned(),
                after: None,
            });
        }
        self.1.lock().unwrap().push(request.clone());
        Ok(Accepted::default())
    }
}

#[test]
fn a_full_queue_of_deltas_loses_nothing() {
    let is_down = Arc::new(AtomicBool::new(true));
    let arrived = receiver::Arrived::default();
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let exporter = quiet(OtlpExporter::custom(Moody(
        Arc::clone(&is_down),
        Arc::clone(&arrived),
    )))
    .with_temporality(Temporality::Delta)
    .with_interval(Duration::from_millis(1))
    .with_queue_max(2)
    .start(&registry)
    .unwrap();
    for n in 0..200 {
        counter.add(1, EMPTY_ATTRS);
        std::thread::sleep(Duration::from_millis(1));
        if n == 150 {
            assert!(exporter.stats().queued <= 2);
            is_down.store(false, Ordering::Release);
        }
    }
    exporter.shutdown(LONG).unwrap();
    let total: f64 = arrived
        .lock()
        .unwrap()
        .iter()
        .map(|request| otlp_points(request)[0].numbers[0])
        .sum();
    assert_eq!(total, 200.0);
}

#[test]
fn a_flush_waits_for_the_collection_that_a_full_queue_held_up() {
    let is_down = Arc::new(AtomicBool::new(true));
    let arrived = receiver::Arrived::default();
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let moody = Moody(Arc::clone(&is_down), Arc::clone(&arrived));
    let exporter = quiet(OtlpExporter::custom(moody))
        .with_temporality(Temporality::Delta)
        .with_queue_max(1)
        .start(&registry)
        .unwrap();
    counter.add(1, EMPTY_ATTRS);
    assert!(exporter.flush(Duration::from_millis(50)).is_err());
    assert_eq!(exporter.stats().queued, 1);
    counter.add(2, EMPTY_ATTRS);
    is_down.store(false, Ordering::Release);
    exporter.flush(LONG).unwrap();
    let arrived = arrived.lock().unwrap();
    let sums: Vec<f64> = arrived
        .iter()
        .map(|request| otlp_points(request)[0].numbers[0])
        .collect();
    assert_eq!(sums, [1.0, 2.0], "before the flush returned");
}

#[test]
fn the_last_values_of_what_left_while_the_receiver_was_down_arrive() {
    let is_down = Arc::new(AtomicBool::new(true));
    let arrived = receiver::Arrived::default();
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let dropped = registry
        .f64_histogram("h")
        .with_boundaries([1.0])
        .build()
        .unwrap();
    let moody = Moody(Arc::clone(&is_down), Arc::clone(&arrived));
    let exporter = quiet(OtlpExporter::custom(moody))
        .with_interval(Duration::from_millis(1))
        .start(&registry)
        .unwrap();
    let set = |n: i64| [KeyValue::new("n", n)];
    let wait_for = |is_it: &dyn Fn(&OtlpStats) -> bool| {
        while !is_it(&exporter.stats()) {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    counter.add(1, &set(0));
    counter.add(5, &set(1));
    dropped.record(2.0, EMPTY_ATTRS);
    wait_for(&|stats| stats.retries > 0);
    counter.add(2, &set(1));
    assert!(counter.remove(&set(1)));
    drop(dropped);
    let replaced = exporter.stats().replaced;
    // Many collections that do not have the series any more take the place of those that have.
    wait_for(&|stats| stats.replaced > replaced + 20);
    counter.add(10, &set(1));
    let replaced = exporter.stats().replaced;
    wait_for(&|stats| stats.replaced > replaced + 3);
    assert!(exporter.stats().queued <= 2, "{:?}", exporter.stats());
    is_down.store(false, Ordering::Release);
    let delivery = exporter.shutdown(LONG).unwrap();
    assert_eq!(delivery.lost_points, 0);
    let arrived = arrived.lock().unwrap();
    let points: Vec<Point> = arrived.iter().flat_map(otlp_points).collect();
    let values = |name: &str, attributes: &str| {
        let of = |point: &&Point| point.name == name && point.attributes == attributes;
        let mut values: Vec<f64> = points
            .iter()
            .filter(of)
            .map(|point| point.numbers[0])
            .collect();
        values.dedup();
        values
    };
    assert_eq!(values("c", "n=0"), [1.0]);
    assert_eq!(
        values("c", "n=1"),
        [7.0, 10.0],
        "the last of the first, then the second"
    );
    assert_eq!(
        values("h", ""),
        [1.0],
        "the count of the instrument that was dropped"
    );
}

#[test]
fn what_left_is_bounded_and_what_is_lost_is_told() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let moody = Moody(
        Arc::new(AtomicBool::new(true)),
        receiver::Arrived::default(),
    );
    let exporter = OtlpExporter::custom(moody)
        .with_error_handler(move |error| tell.lock().unwrap().push(error.to_owned()))
        .with_interval(Duration::from_millis(1))
        .with_queue_max(2)
        .with_request_max(1 << 20, 3)
        .start(&registry)
        .unwrap();
    counter.add(1, EMPTY_ATTRS);
    for n in 0i64.. {
        let set = [KeyValue::new("n", n)];
        counter.add(1, &set);
        counter.remove(&set);
        std::thread::sleep(Duration::from_millis(1));
        let stats = exporter.stats();
        // Two requests of what left, and the collection.
        assert!(stats.queued <= 2 + 2, "{stats:?}");
        if stats.lost_points > 5 {
            break;
        }
    }
    let error = exporter.shutdown(Duration::ZERO).unwrap_err();
    assert!(matches!(error, OtlpError::Undelivered { .. }), "{error}");
    let told = told.lock().unwrap();
    assert!(
        told.iter().any(|error| error.contains("are lost")),
        "{told:?}"
    );
}

#[test]
fn a_stop_makes_one_attempt_whatever_failed_before() {
    // The pause after so many failures is longer than the test runs.
    let is_down = Arc::new(AtomicBool::new(true));
    let arrived = receiver::Arrived::default();
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    counter.add(1, EMPTY_ATTRS);
    for asked in [None, Some(Duration::from_secs(3000))] {
        let transport = Asking(Moody(Arc::clone(&is_down), Arc::clone(&arrived)), asked);
        is_down.store(true, Ordering::Release);
        let exporter = quiet(OtlpExporter::custom(transport))
            .start(&registry)
            .unwrap();
        assert!(exporter.flush(Duration::from_millis(100)).is_err());
        is_down.store(false, Ordering::Release);
        let outcome = exporter.shutdown(Duration::from_millis(400));
        assert_eq!(outcome.is_ok(), asked.is_none(), "{outcome:?}");
    }
    assert!(!arrived.lock().unwrap().is_empty());
}

/// Asks for this pause when it fails.
struct Asking(Moody, Option<Duration>);

impl Transport for Asking {
    fn send(
        &mut self,
        request: &ExportMetricsServiceRequest,
        timeout: Duration,
    ) -> Result<Accepted, SendError> {
        self.0.send(request, timeout).map_err(|error| match error {
            SendError::Retry { reason, .. } => SendError::Retry {
                reason,
                after: self.1,
            },
            other => other,
        })
    }
}

#[test]
fn durations_without_end_are_no_fault() {
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    counter.add(1, EMPTY_ATTRS);
    let ends = Duration::MAX;
    for builder in [
        OtlpExporter::http(&format!("http://{}", receiver::http(vec![]).0)),
        OtlpExporter::grpc(&format!("http://{}", grpc_receiver().0)),
    ] {
        let exporter = quiet(builder)
            .with_interval(ends)
            .with_timeout(ends)
            .start(&registry)
            .unwrap();
        assert_eq!(exporter.flush(ends).unwrap().delivered, 1);
        assert_eq!(exporter.shutdown(ends).unwrap().delivered, 1);
    }
}

#[test]
fn of_a_repeated_key_of_the_resource_the_last_value_counts() {
    let (address, arrived) = receiver::http(vec![]);
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    counter.add(1, EMPTY_ATTRS);
    let exporter = quiet(OtlpExporter::http(&format!("http://{address}")))
        .with_resource([
            KeyValue::new("b", 1),
            KeyValue::new("a", 1),
            KeyValue::new("b", 2),
        ])
        .start(&registry)
        .unwrap();
    exporter.shutdown(LONG).unwrap();
    let arrived = arrived.lock().unwrap();
    let resource = arrived[0].resource_metrics[0].resource.as_ref().unwrap();
    assert_eq!(text(&resource.attributes), "a=1,b=2");
}

#[test]
fn a_sum_that_has_overflown_is_no_series_of_what_is_no_number() {
    use perf_metrics::Value;
    let registry = Registry::new();
    let counter = registry.f64_counter("c").build().unwrap();
    let mut reader = registry.reader(Temporality::Delta).unwrap();
    counter.add(f64::MAX, EMPTY_ATTRS);
    counter.add(f64::MAX, EMPTY_ATTRS);
    let mut read = || {
        let metric = reader.collect().metric("c").unwrap();
        metric.find(EMPTY_ATTRS).unwrap().value()
    };
    assert_eq!(read(), Some(Value::F64(f64::INFINITY)));
    counter.add(1.0, EMPTY_ATTRS);
    assert_eq!(read(), Some(Value::F64(0.0)));
}

#[test]
fn a_transport_that_panics_is_an_error_of_every_call() {
    struct Panicking;
    impl Transport for Panicking {
        fn send(
            &mut self,
            _request: &ExportMetricsServiceRequest,
            _timeout: Duration,
        ) -> Result<Accepted, SendError> {
            panic!("as the test wants")
        }
    }
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    counter.add(1, EMPTY_ATTRS);
    let exporter = quiet(OtlpExporter::custom(Panicking))
        .start(&registry)
        .unwrap();
    for outcome in [
        exporter.flush(LONG),
        exporter.flush(LONG),
        exporter.shutdown(LONG),
    ] {
        let error = outcome.unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
    }
}
