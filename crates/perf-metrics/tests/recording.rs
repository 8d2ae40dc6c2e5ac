//! What is recorded is what is read, whatever threads do.

use perf_metrics::{
    Buckets, DEFAULT_BOUNDARIES, EMPTY_ATTRS, KeyValue, MetricsError, Registry, Temporality, Value,
    label_set,
};
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

label_set! {
    enum Kind: "kind" { A => "a", B => "b", C => "c" }
}
label_set! {
    enum Outcome: "outcome" { Good => "good", Bad => "bad" }
}

fn number(registry: &Registry, name: &str, attributes: &[KeyValue]) -> Option<Value> {
    registry.collect().metric(name)?.find(attributes)?.value()
}

#[test]
fn all_instruments_take_the_call_shape_of_opentelemetry() {
    let registry = Registry::new();
    let attrs = [KeyValue::new("peer", "n2"), KeyValue::new("n", 7)];
    let counter = registry
        .u64_counter("c")
        .with_unit("{x}")
        .with_description("d")
        .build()
        .unwrap();
    counter.add(1, EMPTY_ATTRS);
    counter.add(2, &[]);
    counter.add(5, &attrs);
    let float = registry.f64_counter("fc").build().unwrap();
    float.add(1.5, EMPTY_ATTRS);
    float.add(-1.0, EMPTY_ATTRS);
    float.add(f64::NAN, EMPTY_ATTRS);
    float.add(f64::INFINITY, EMPTY_ATTRS);
    let updown = registry.i64_up_down_counter("u").build().unwrap();
    updown.add(-3, &attrs);
    updown.add(1, &[attrs[1].clone(), attrs[0].clone()]);
    let gauge = registry.f64_gauge("g").build().unwrap();
    gauge.record(0.5, &attrs);
    gauge.set(2.5, &attrs);
    gauge.add(0.25, &attrs);

    assert_eq!(number(&registry, "c", &[]), Some(Value::U64(3)));
    assert_eq!(number(&registry, "c", &attrs), Some(Value::U64(5)));
    assert_eq!(number(&registry, "fc", &[]), Some(Value::F64(1.5)));
    assert_eq!(number(&registry, "u", &attrs), Some(Value::I64(-2)));
    assert_eq!(number(&registry, "g", &attrs), Some(Value::F64(2.75)));
    assert_eq!(number(&registry, "g", &[]), None);
    let snapshot = registry.collect();
    let descriptor = snapshot.metric("c").unwrap().descriptor();
    assert_eq!((descriptor.unit(), descriptor.description()), ("{x}", "d"));
}

#[test]
fn what_cannot_be_made_says_why() {
    let registry = Registry::new();
    registry.u64_counter("taken").build().unwrap();
    let taken = registry.u64_gauge("TAKEN").build().unwrap_err();
    assert!(
        matches!(taken, MetricsError::DuplicateName { .. }),
        "{taken}"
    );
    let name = registry.u64_counter("9 lives").build().unwrap_err();
    assert!(name.to_string().contains("letters, digits"), "{name}");
    let unit = registry
        .u64_counter("x")
        .with_unit("é")
        .build()
        .unwrap_err();
    assert!(matches!(unit, MetricsError::InvalidUnit { .. }), "{unit}");
    for boundaries in [
        vec![1.0, 1.0],
        vec![2.0, 1.0],
        vec![f64::NAN],
        vec![f64::INFINITY],
        vec![0.5; 2000],
    ] {
        let error = registry
            .f64_histogram("h")
            .with_boundaries(boundaries)
            .build()
            .unwrap_err();
        assert!(
            matches!(error, MetricsError::InvalidBoundaries { .. }),
            "{error}"
        );
    }
    for (scale, zero_threshold, magnitude_max) in [
        (21, 1.0, 2.0),
        (20, 1.0, 4.0),
        (3, 0.0, 1.0),
        (3, 2.0, 1.0),
        (3, 1.0, f64::INFINITY),
    ] {
        let buckets = Buckets::Exponential {
            scale,
            zero_threshold,
            magnitude_max,
        };
        assert!(
            registry
                .f64_histogram("h")
                .with_buckets(buckets.clone())
                .build()
                .is_err(),
            "{buckets:?}"
        );
    }
    registry.f64_histogram("h").build().unwrap();
}

#[test]
fn a_table_has_a_series_for_each_combination() {
    let registry = Registry::new();
    let one = registry
        .u64_counter("one")
        .build_table::<(Kind,)>()
        .unwrap();
    let two = registry
        .u64_counter("two")
        .build_table::<(Kind, Outcome)>()
        .unwrap();
    let three = registry
        .u64_histogram("three")
        .build_table::<(Kind, Outcome, Kind)>()
        .unwrap();
    one[Kind::C].add(3);
    two[Kind::B][Outcome::Bad].increment();
    three[Kind::A][Outcome::Good][Kind::B].record(9);
    let snapshot = registry.collect();
    let series = |name: &str| snapshot.metric(name).unwrap().series().len();
    assert_eq!((series("one"), series("two"), series("three")), (3, 6, 18));
    let bad_b = [KeyValue::new("outcome", "bad"), KeyValue::new("kind", "b")];
    for series in snapshot.metric("two").unwrap().series() {
        let expected = u64::from(series.attributes().iter().all(|kv| bad_b.contains(kv)));
        assert_eq!(series.value(), Some(Value::U64(expected)));
    }
    assert_eq!(
        snapshot
            .metric("one")
            .unwrap()
            .find(&[KeyValue::new("kind", "c")])
            .unwrap()
            .value(),
        Some(Value::U64(3))
    );
}

#[test]
fn nothing_is_lost_over_thousands_of_threads_with_two_delta_readers_and_a_cumulative_one() {
    // Far more threads than there can be chunks of cells at once: each is handed on hundreds of times.
    const WAVES: u64 = if cfg!(debug_assertions) { 500 } else { 2_500 };
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let histogram = registry.u64_histogram("h").build().unwrap();
    let done = AtomicBool::new(false);
    let total_of = |reader: &mut perf_metrics::Reader| {
        let snapshot = reader.collect();
        let count = snapshot
            .metric("c")
            .unwrap()
            .series()
            .iter()
            .map(|s| match s.value() {
                Some(Value::U64(n)) => n,
                _ => 0,
            });
        let histogram = snapshot.metric("h").unwrap().series()[0]
            .histogram()
            .unwrap();
        (count.sum::<u64>(), histogram.count())
    };
    let totals = thread::scope(|scope| {
        let deltas: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut reader = registry.reader(Temporality::Delta).unwrap();
                    let mut totals = (0, 0);
                    loop {
                        let last = done.load(Ordering::Acquire);
                        let delta = total_of(&mut reader);
                        totals = (totals.0 + delta.0, totals.1 + delta.1);
                        if last {
                            return totals;
                        }
                    }
                })
            })
            .collect();
        for wave in 0..WAVES {
            thread::scope(|threads| {
                for thread in 0..4 {
                    let (counter, histogram) = (&counter, &histogram);
                    threads.spawn(move || {
                        for n in 0..5 {
                            counter.add(1, EMPTY_ATTRS);
                            counter.add(1, &[KeyValue::new("thread", thread)]);
                            histogram.record(wave * n, EMPTY_ATTRS);
                        }
                    });
                }
            });
        }
        done.store(true, Ordering::Release);
        deltas
            .into_iter()
            .map(|delta| delta.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert_eq!(totals, [(WAVES * 40, WAVES * 20); 2]);
    let mut cumulative = registry.reader(Temporality::Cumulative).unwrap();
    assert_eq!(total_of(&mut cumulative), (WAVES * 40, WAVES * 20));
    let snapshot = registry.collect();
    let all = snapshot.metric("h").unwrap().series()[0]
        .histogram()
        .unwrap();
    assert_eq!(
        (all.min(), all.max()),
        (Some(Value::U64(0)), Some(Value::U64((WAVES - 1) * 4)))
    );
    assert_eq!(all.sum(), Value::U64((0..WAVES).sum::<u64>() * 10 * 4));
}

#[test]
fn each_delta_has_its_own_extremes() {
    let registry = Registry::new();
    let histogram = registry.f64_histogram("h").build().unwrap();
    let mut often = registry.reader(Temporality::Delta).unwrap();
    let mut seldom = registry.reader(Temporality::Delta).unwrap();
    let ends = |reader: &mut perf_metrics::Reader| {
        let snapshot = reader.collect();
        let histogram = snapshot.metric("h").unwrap().series()[0]
            .histogram()
            .unwrap();
        (histogram.count(), histogram.min(), histogram.max())
    };
    let float = |value: f64| Some(Value::F64(value));
    histogram.record(5.0, EMPTY_ATTRS);
    histogram.record(-2.0, EMPTY_ATTRS);
    assert_eq!(ends(&mut often), (2, float(-2.0), float(5.0)));
    histogram.record(3.0, EMPTY_ATTRS);
    assert_eq!(ends(&mut often), (1, float(3.0), float(3.0)));
    assert_eq!(ends(&mut often), (0, None, None));
    assert_eq!(ends(&mut seldom), (3, float(-2.0), float(5.0)));
    let late = &mut registry.reader(Temporality::Delta).unwrap();
    assert_eq!(ends(late), (3, float(-2.0), float(5.0)));
    let snapshot = registry.collect();
    assert_eq!(
        snapshot.metric("h").unwrap().series()[0]
            .histogram()
            .unwrap()
            .max(),
        float(5.0)
    );
}

#[test]
fn recording_goes_on_while_all_locks_are_held() {
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let gauge = registry.u64_gauge("g").build().unwrap();
    let histogram = registry.f64_histogram("h").build().unwrap();
    let table = registry
        .u64_counter("t")
        .build_table::<(Kind, Outcome)>()
        .unwrap();
    let attrs = [KeyValue::new("a", 1), KeyValue::new("b", "x")];
    let record = move || {
        counter.add(1, EMPTY_ATTRS);
        counter.add(1, &attrs);
        gauge.set(4, &attrs);
        histogram.record(1.5, &attrs);
        table[Kind::A][Outcome::Bad].increment();
    };
    let (start, started) = mpsc::channel();
    let (finish, finished) = mpsc::channel();
    let recorder = thread::spawn(move || {
        record();
        finish.send(()).unwrap();
        started.recv().unwrap();
        (0..1000).for_each(|_| record());
        finish.send(()).unwrap();
    });
    finished.recv().unwrap();
    let mut went_on = false;
    registry.__hold_locks(&mut || {
        start.send(()).unwrap();
        // Bounded: a recorder that waits for a lock would wait for ever.
        went_on = finished
            .recv_timeout(std::time::Duration::from_secs(60))
            .is_ok();
    });
    assert!(went_on, "recording waits for a lock");
    recorder.join().unwrap();
    assert_eq!(number(&registry, "c", &[]), Some(Value::U64(1001)));
}

#[test]
fn far_too_many_sets_of_attributes_stay_within_the_bound_and_are_all_counted() {
    // Two hundred times the limit, or two thousand times.
    const SETS: u64 = if cfg!(debug_assertions) {
        100_000
    } else {
        1_000_000
    };
    let registry = Registry::new();
    let counter = registry
        .u64_counter("c")
        .with_cardinality_limit(500)
        .build()
        .unwrap();
    let histogram = registry.u64_histogram("h").build().unwrap();
    for n in 0..SETS {
        counter.add(1, &[KeyValue::new("n", n as i64)]);
        if n < 1000 {
            histogram.record(n, &[KeyValue::new("n", n as i64)]);
        }
    }
    // Those that are known are still found, in any shape.
    counter.add(1, &[KeyValue::new("n", 7)]);
    counter.add(1, &[KeyValue::new("n", 1), KeyValue::new("n", 7)]);
    let snapshot = registry.collect();
    let series = snapshot.metric("c").unwrap().series();
    assert_eq!(
        series.len(),
        500 + 2,
        "the limit, overflow, and no attributes"
    );
    let total: f64 = series.iter().map(|s| s.value().unwrap().as_f64()).sum();
    assert_eq!(total, (SETS + 2) as f64);
    let overflow = [KeyValue::new("otel.metric.overflow", true)];
    assert_eq!(
        number(&registry, "c", &overflow),
        Some(Value::U64(SETS - 500))
    );
    assert_eq!(
        number(&registry, "c", &[KeyValue::new("n", 7)]),
        Some(Value::U64(3))
    );
    let series = snapshot.metric("h").unwrap().series();
    assert_eq!(series.len(), perf_metrics::HISTOGRAM_SERIES_MAX_DEFAULT + 2);
    let count: u64 = series.iter().map(|s| s.histogram().unwrap().count()).sum();
    assert_eq!(count, 1000);
    let huge: Vec<_> = (0..200)
        .map(|n| KeyValue::new(format!("k{n}"), n))
        .collect();
    counter.add(1, &huge);
    assert_eq!(
        number(&registry, "c", &overflow),
        Some(Value::U64(SETS - 499))
    );
}

#[test]
fn readers_and_instruments_are_bounded() {
    let registry = Registry::new();
    let readers: Vec<_> = (0..perf_metrics::READERS_MAX)
        .map(|_| registry.reader(Temporality::Delta).unwrap())
        .collect();
    assert!(matches!(
        registry.reader(Temporality::Delta),
        Err(MetricsError::TooManyReaders { .. })
    ));
    drop(readers);
    assert!(registry.reader(Temporality::Delta).is_ok());
    for n in 0..perf_metrics::INSTRUMENTS_MAX {
        registry.u64_gauge(format!("g{n}")).build().unwrap();
    }
    let error = registry.u64_gauge("more").build().unwrap_err();
    assert!(
        matches!(error, MetricsError::TooManyInstruments { .. }),
        "{error}"
    );
}

#[test]
fn special_floats_are_documented_cases() {
    let registry = Registry::new();
    let histogram = registry.f64_histogram("h").build().unwrap();
    let explicit = registry
        .f64_histogram("e")
        .with_boundaries(DEFAULT_BOUNDARIES)
        .build()
        .unwrap();
    for value in [
        f64::NAN,
        -f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        0.0,
        -0.0,
        5e-324,
        -5e-324,
        1.0,
        -1.0,
        f64::MAX,
        f64::MIN,
    ] {
        histogram.record(value, EMPTY_ATTRS);
        explicit.record(value, EMPTY_ATTRS);
    }
    let snapshot = registry.collect();
    let read = |name: &str| {
        snapshot.metric(name).unwrap().series()[0]
            .histogram()
            .unwrap()
            .clone()
    };
    let h = read("h");
    assert_eq!((h.count(), h.rejected(), h.zero_count()), (8, 4, 4));
    assert_eq!(
        (h.min(), h.max(), h.sum()),
        (
            Some(Value::F64(f64::MIN)),
            Some(Value::F64(f64::MAX)),
            Value::F64(0.0)
        )
    );
    let (scale, positive, negative) = h.exponential_buckets(10_000).unwrap();
    assert_eq!(scale, 3);
    // 1 closes the bucket of index -1; what is beyond the range is in the last bucket.
    for side in [positive, negative] {
        assert_eq!(
            (side.offset, side.counts.first(), side.counts.last()),
            (-1, Some(&1), Some(&1))
        );
        assert_eq!(side.counts.len(), 34 * 8 + 1);
    }
    let e = read("e");
    assert_eq!((e.count(), e.rejected()), (8, 4));
    assert_eq!((e.buckets()[0], e.buckets()[1], e.buckets()[15]), (5, 2, 1));
}

fn quantile_of(sorted: &[f64], q: f64) -> f64 {
    sorted[((q * sorted.len() as f64).ceil() as usize).max(1) - 1]
}

proptest! {
    // Each case makes layouts of buckets, which takes long where nothing is optimised.
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 64 } else { 256 }))]

    #[test]
    fn quantiles_are_within_their_stated_error(
        mut values in proptest::collection::vec(prop_oneof![1e-6..1e6f64, -1e3..1e3f64, Just(0.0)], 1..300),
        q in 0.0..=1.0f64,
        scale in 0u8..=6,
    ) {
        let registry = Registry::new();
        let histogram = registry.f64_histogram("h").with_scale(scale).build().unwrap();
        values.iter().for_each(|value| histogram.record(*value, EMPTY_ATTRS));
        values.sort_by(f64::total_cmp);
        let exact = quantile_of(&values, q);
        let snapshot = registry.collect();
        let estimate = snapshot.metric("h").unwrap().series()[0].histogram().unwrap().quantile(q).unwrap();
        let slack = 1e-12 * exact.abs();
        prop_assert!(estimate.low - slack <= exact && exact <= estimate.high + slack, "{exact} {estimate:?}");
        let error = 2f64.powf(1.0 / f64::from(1 << (scale + 1))) * (1.0 + 1e-9);
        let threshold = 2f64.powi(-30);
        if exact.abs() > threshold {
            let ratio = estimate.value / exact;
            prop_assert!(1.0 / error <= ratio && ratio <= error, "{exact} {estimate:?}");
        }
        prop_assert_eq!(snapshot.metric("h").unwrap().series()[0].histogram().unwrap().quantile(1.5), None);
    }

    #[test]
    fn integers_and_explicit_buckets_agree_with_a_sorted_list(
        values in proptest::collection::vec(prop_oneof![0u64..20, any::<u64>(), 0u64..20_000], 1..200),
        explicit: bool,
    ) {
        let registry = Registry::new();
        let builder = registry.u64_histogram("h");
        let builder = if explicit { builder.with_boundaries(DEFAULT_BOUNDARIES) } else { builder };
        let histogram = builder.build().unwrap();
        values.iter().for_each(|value| histogram.record(*value, EMPTY_ATTRS));
        let snapshot = registry.collect();
        let read = snapshot.metric("h").unwrap().series()[0].histogram().unwrap();
        prop_assert_eq!(read.count(), values.len() as u64);
        prop_assert_eq!(read.sum(), Value::U64(values.iter().fold(0, |a: u64, b| a.wrapping_add(*b))));
        prop_assert_eq!(read.min(), values.iter().min().map(|v| Value::U64(*v)));
        prop_assert_eq!(read.max(), values.iter().max().map(|v| Value::U64(*v)));
        if explicit {
            let mut expected = [0u64; 16];
            values.iter().for_each(|v| expected[DEFAULT_BOUNDARIES.partition_point(|b| *b < *v as f64)] += 1);
            prop_assert_eq!(&read.buckets()[..], &expected[..]);
        } else {
            prop_assert_eq!(read.zero_count(), values.iter().filter(|v| **v == 0).count() as u64);
            for power in [0, 1, 4, 10, 40] {
                let bound = 2f64.powi(power);
                let below = values.iter().filter(|v| **v <= 1 << power).count() as u64;
                prop_assert_eq!(read.count_up_to(bound), below);
            }
            let (_, merged, _) = read.exponential_buckets(20).unwrap();
            prop_assert!(merged.counts.len() <= 20);
            prop_assert_eq!(merged.counts.iter().sum::<u64>() + read.zero_count(), read.count());
        }
    }
}

/// A reader that takes the extremes again and again while others record: whatever it sees is possible.
#[test]
fn extremes_of_deltas_stay_within_what_was_recorded() {
    let registry = Registry::new();
    let integers = registry.u64_histogram("u").build().unwrap();
    let floats = registry.f64_histogram("f").build().unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let recorders: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for n in 0..50_000u64 {
                        integers.record(n % 900 + 100, EMPTY_ATTRS);
                        floats.record((n % 900 + 100) as f64, EMPTY_ATTRS);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut reader = registry.reader(Temporality::Delta).unwrap();
            while !done.load(Ordering::Acquire) {
                let snapshot = reader.collect();
                for name in ["u", "f"] {
                    let histogram = snapshot.metric(name).unwrap().series()[0]
                        .histogram()
                        .unwrap();
                    if let (Some(min), Some(max)) = (histogram.min(), histogram.max()) {
                        // The bound of a bucket at scale 3 is within a factor of 1.1.
                        let (min, max) = (min.as_f64(), max.as_f64());
                        assert!(
                            (90.0..=1100.0).contains(&min) && (90.0..=1100.0).contains(&max),
                            "{name} {min} {max}"
                        );
                    }
                }
            }
        });
        recorders
            .into_iter()
            .for_each(|recorder| recorder.join().unwrap());
        done.store(true, Ordering::Release);
    });
}

/// Threads that meet new sets of attributes at the same time make each series once.
#[test]
fn threads_that_make_the_same_series_at_once_make_one() {
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let start = std::sync::Barrier::new(4);
    thread::scope(|scope| {
        for turn in 0..4 {
            let (counter, start) = (&counter, &start);
            scope.spawn(move || {
                start.wait();
                for n in 0..500i64 {
                    let mut set = [
                        KeyValue::new("n", n),
                        KeyValue::new("text", format!("t{n}")),
                        KeyValue::new("c", "x"),
                    ];
                    set.rotate_left(turn % 3);
                    counter.add(1, &set);
                }
            });
        }
    });
    let snapshot = registry.collect();
    let series = snapshot.metric("c").unwrap().series();
    assert_eq!(series.len(), 500 + 2);
    assert!(
        series[2..]
            .iter()
            .all(|series| series.value() == Some(Value::U64(4)))
    );
}

/// Recorded to by name, before the overflow and after it: there are not two series of the same attributes.
#[test]
fn the_attributes_of_the_overflow_are_those_of_one_series() {
    let overflow = overflow_set();
    for is_first in [true, false] {
        let registry = Registry::new();
        let counter = registry.u64_counter("c").with_cardinality_limit(2);
        let counter = counter.build().unwrap();
        let sets = (0..5).map(|n| [KeyValue::new("n", n)]);
        registry
            .u64_observable_counter("o")
            .with_cardinality_limit(2)
            .with_callback(move |observer| {
                let named = overflow_set();
                if is_first {
                    observer.observe(1, &named);
                }
                (0..5).for_each(|n| observer.observe(1, &[KeyValue::new("n", n)]));
                if !is_first {
                    observer.observe(1, &named);
                }
            })
            .build()
            .unwrap()
            .keep();
        if is_first {
            counter.add(1, &overflow);
        }
        sets.for_each(|set| counter.add(1, &set));
        if !is_first {
            counter.add(1, &overflow);
        }
        let snapshot = registry.collect();
        for name in ["c", "o"] {
            let series = snapshot.metric(name).unwrap().series();
            let found = series
                .iter()
                .filter(|series| series.attributes() == overflow);
            let values: Vec<_> = found.map(|series| series.value()).collect();
            assert_eq!(values, [Some(Value::U64(4))], "{name}");
        }
    }
}

fn overflow_set() -> [KeyValue; 1] {
    [KeyValue::new("otel.metric.overflow", true)]
}
