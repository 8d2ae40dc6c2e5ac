//! Exemplars: the traces of measurements, from the record to each exporter.

use perf_metrics::{
    Counter, EMPTY_ATTRS, Exemplar, KeyValue, MetricsSnapshot, Registry, Temporality, TraceContext,
    Value,
};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

thread_local! {
    static TRACE: Cell<Option<TraceContext>> = const { Cell::new(None) };
}

fn trace(n: u8) -> TraceContext {
    TraceContext {
        trace_id: [n; 16],
        span_id: [n; 8],
    }
}

fn within(n: u8, run: impl FnOnce()) {
    TRACE.set(Some(trace(n)));
    run();
    TRACE.set(None);
}

fn registry() -> Registry {
    let registry = Registry::new();
    registry.set_exemplar_source(|| TRACE.get());
    registry
}

/// Value and trace.
fn pairs(exemplars: &[Exemplar]) -> Vec<(Value, TraceContext)> {
    let pair = |exemplar: &Exemplar| (exemplar.value(), exemplar.trace());
    exemplars.iter().map(pair).collect()
}

#[test]
fn measurements_within_a_trace_are_kept_and_all_are_counted() {
    let registry = registry();
    let counter = registry.u64_counter("c").build().unwrap();
    let up_down = registry.i64_up_down_counter("u").build().unwrap();
    let histogram = registry
        .f64_histogram("h")
        .with_boundaries([1.0, 10.0])
        .build()
        .unwrap();
    let set = [KeyValue::new("k", "v")];
    counter.add(1, EMPTY_ATTRS);
    histogram.record(0.5, &set);
    within(1, || {
        counter.add(2, EMPTY_ATTRS);
        up_down.add(-3, &set);
        histogram.record(0.25, &set);
        histogram.record(f64::NAN, &set);
    });
    within(2, || {
        counter.add(4, EMPTY_ATTRS);
        histogram.record(100.0, &set);
    });
    histogram.record(5.0, &set);
    let snapshot = registry.collect();
    let series = |name, set| snapshot.metric(name).unwrap().find(set).unwrap();
    let c = series("c", EMPTY_ATTRS);
    assert_eq!(c.value(), Some(Value::U64(7)));
    assert_eq!(pairs(c.exemplars()), [(Value::U64(4), trace(2))]);
    let u = series("u", &set);
    assert_eq!(u.value(), Some(Value::I64(-3)));
    assert_eq!(pairs(u.exemplars()), [(Value::I64(-3), trace(1))]);
    let h = series("h", &set);
    assert_eq!(h.histogram().unwrap().buckets()[..], [2, 1, 1]);
    assert_eq!(h.histogram().unwrap().rejected(), 1);
    let expected = [(Value::F64(0.25), trace(1)), (Value::F64(100.0), trace(2))];
    assert_eq!(pairs(h.exemplars()), expected);
    assert!(h.exemplars()[0].time() <= h.exemplars()[1].time());
}

#[test]
fn a_delta_has_the_exemplars_of_its_time_and_others_have_none() {
    let before = Registry::new();
    let without = before.u64_counter("without").build().unwrap();
    before.set_exemplar_source(|| TRACE.get());
    let counter = before.u64_counter("c").build().unwrap();
    let mut reader = before.reader(Temporality::Delta).unwrap();
    let mut found = |name: &str| {
        let snapshot = reader.collect();
        pairs(snapshot.metric(name).unwrap().series()[0].exemplars())
    };
    within(1, || {
        counter.add(1, EMPTY_ATTRS);
        without.add(1, EMPTY_ATTRS);
    });
    assert_eq!(found("c"), [(Value::U64(1), trace(1))]);
    counter.add(1, EMPTY_ATTRS);
    assert_eq!(found("c"), []);
    within(2, || counter.add(1, EMPTY_ATTRS));
    assert_eq!(found("c"), [(Value::U64(1), trace(2))]);
    assert_eq!(found("without"), []);
}

/// The callback of another instrument makes it, before the counter is read or after that.
#[test]
fn an_exemplar_that_is_made_during_a_collection_is_in_one_delta() {
    for is_before in [true, false] {
        let registry = registry();
        let slot = Arc::new(OnceLock::<Counter>::new());
        let seen = Arc::clone(&slot);
        let observe = || {
            let is_first = AtomicBool::new(true);
            let gauge = registry.u64_observable_gauge("g").with_callback(move |_| {
                if is_first.swap(false, Ordering::Relaxed) {
                    within(1, || seen.get().unwrap().add(1, EMPTY_ATTRS));
                }
            });
            gauge.build().unwrap()
        };
        let make = || registry.u64_counter("c").build().unwrap();
        // Instruments are read in the order in which they were made.
        let (counter, _observed) = if is_before {
            let observed = observe();
            (make(), observed)
        } else {
            (make(), observe())
        };
        slot.set(counter).unwrap();
        let mut reader = registry.reader(Temporality::Delta).unwrap();
        let count = |snapshot: &MetricsSnapshot| {
            let series = &snapshot.metric("c").unwrap().series()[0];
            series.exemplars().len()
        };
        let counts = [(); 3].map(|()| count(reader.collect()));
        let expected = if is_before { [1, 0, 0] } else { [0, 1, 0] };
        assert_eq!(counts, expected);
    }
}

/// Nothing is lost on the way that instruments with exemplars take, and each exemplar is a measurement that was made.
#[test]
fn threads_lose_nothing() {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let registry = Registry::new();
    registry.set_exemplar_source(|| {
        let n = NEXT.fetch_add(1, Ordering::Relaxed) as u8;
        n.is_multiple_of(3).then(|| trace(n))
    });
    let counter = registry.u64_counter("c").build().unwrap();
    let histogram = registry.u64_histogram("h").build().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..5000 {
                    counter.add(1, EMPTY_ATTRS);
                    histogram.record(n, EMPTY_ATTRS);
                }
            });
        }
        for _ in 0..50 {
            let snapshot = registry.collect();
            let exemplars = snapshot.metric("h").unwrap().series()[0].exemplars();
            for exemplar in exemplars {
                let byte = exemplar.trace().span_id[0];
                assert_eq!(exemplar.trace(), trace(byte));
                assert!(byte.is_multiple_of(3) && exemplar.value().as_f64() < 5000.0);
            }
        }
    });
    let snapshot = registry.collect();
    let series = |name| &snapshot.metric(name).unwrap().series()[0];
    assert_eq!(series("c").value(), Some(Value::U64(20_000)));
    assert_eq!(series("h").histogram().unwrap().count(), 20_000);
    assert!(!series("h").exemplars().is_empty());
}

#[cfg(feature = "otlp")]
#[test]
fn otlp_has_them() {
    use perf_metrics::otlp::encode::{Origin, request};
    let registry = registry();
    let counter = registry.u64_counter("c").build().unwrap();
    let exponential = registry.f64_histogram("e").build().unwrap();
    let explicit = registry
        .u64_histogram("x")
        .with_boundaries([1.0])
        .build()
        .unwrap();
    within(9, || {
        counter.add(3, EMPTY_ATTRS);
        exponential.record(1.5, EMPTY_ATTRS);
        explicit.record(7, EMPTY_ATTRS);
    });
    let request = request(
        &registry.collect(),
        Temporality::Cumulative,
        &Origin::default(),
    );
    let request = request.unwrap();
    let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
    use opentelemetry_proto::tonic::metrics::v1::{self as proto, exemplar, metric::Data};
    let found: Vec<&proto::Exemplar> = metrics
        .iter()
        .flat_map(|metric| match metric.data.as_ref().unwrap() {
            Data::Sum(sum) => &sum.data_points[0].exemplars,
            Data::Histogram(histogram) => &histogram.data_points[0].exemplars,
            Data::ExponentialHistogram(histogram) => &histogram.data_points[0].exemplars,
            other => panic!("{other:?}"),
        })
        .collect();
    let values: Vec<_> = found
        .iter()
        .map(|exemplar| exemplar.value.unwrap())
        .collect();
    let expected = [
        exemplar::Value::AsInt(3),
        exemplar::Value::AsDouble(1.5),
        exemplar::Value::AsInt(7),
    ];
    assert_eq!(values, expected);
    for exemplar in found {
        assert_eq!(
            (&exemplar.trace_id[..], &exemplar.span_id[..]),
            (&[9; 16][..], &[9; 8][..])
        );
        assert!(exemplar.time_unix_nano > 0);
    }
}

#[cfg(feature = "prometheus")]
#[test]
fn open_metrics_has_them_behind_counters_and_their_buckets() {
    use perf_metrics::prometheus::{Format, expose};
    let registry = registry();
    let counter = registry.u64_counter("c").build().unwrap();
    let histogram = registry
        .f64_histogram("h")
        .with_boundaries([1.0, 10.0])
        .build()
        .unwrap();
    within(0xab, || {
        counter.add(3, EMPTY_ATTRS);
        histogram.record(5.0, EMPTY_ATTRS);
        histogram.record(50.0, EMPTY_ATTRS);
    });
    let write = |format| {
        let mut out = Vec::new();
        expose(&registry.collect(), format, &mut out);
        String::from_utf8(out).unwrap()
    };
    let text = write(Format::OpenMetrics);
    let id = |bytes| "ab".repeat(bytes);
    let behind = format!("# {{trace_id=\"{}\",span_id=\"{}\"}}", id(16), id(8));
    let starts = |line: &str| {
        let found = text.lines().find(|found| found.starts_with(line)).unwrap();
        found
            .split_once(" # ")
            .map(|(_, exemplar)| format!("# {exemplar}"))
    };
    assert!(
        starts("c_total 3")
            .unwrap()
            .starts_with(&format!("{behind} 3 "))
    );
    assert_eq!(starts("h_bucket{le=\"1.0\"} 0"), None);
    let ten = starts("h_bucket{le=\"10.0\"} 1").unwrap();
    assert!(ten.starts_with(&format!("{behind} 5.0 ")), "{ten}");
    let rest = starts("h_bucket{le=\"+Inf\"} 2").unwrap();
    assert!(rest.starts_with(&format!("{behind} 50.0 ")), "{rest}");
    assert!(
        !write(Format::Text).contains("trace_id"),
        "the older format has none"
    );
}

#[cfg(feature = "trace-context")]
#[test]
fn the_current_context_of_opentelemetry_is_a_source() {
    use opentelemetry::trace::{TraceContextExt, Tracer, TracerProvider};
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
    let registry = Registry::new();
    registry.set_exemplar_source(TraceContext::current);
    let counter = registry.u64_counter("c").build().unwrap();
    let exemplars = || {
        let snapshot = registry.collect();
        pairs(snapshot.metric("c").unwrap().series()[0].exemplars())
    };
    let provider = |sampler| SdkTracerProvider::builder().with_sampler(sampler).build();
    let unsampled = provider(Sampler::AlwaysOff);
    counter.add(1, EMPTY_ATTRS);
    unsampled
        .tracer("t")
        .in_span("s", |_| counter.add(1, EMPTY_ATTRS));
    assert_eq!(exemplars(), []);
    let sampled = provider(Sampler::AlwaysOn);
    let expected = sampled.tracer("t").in_span("s", |context| {
        counter.add(1, EMPTY_ATTRS);
        let span = context.span();
        let span = span.span_context();
        TraceContext {
            trace_id: span.trace_id().to_bytes(),
            span_id: span.span_id().to_bytes(),
        }
    });
    assert_eq!(exemplars(), [(Value::U64(1), expected)]);
}
