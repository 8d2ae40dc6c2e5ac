//! Series and instruments that go away: their last value is told once, what comes back starts anew, memory stays flat.

use perf_metrics::{
    EMPTY_ATTRS, KeyValue, MetricsError, Reader, Registry, Temporality, Value, label_set,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

label_set! {
    enum Kind: "kind" { A => "a", B => "b" }
}

fn set(n: i64) -> [KeyValue; 1] {
    [KeyValue::new("n", n)]
}

/// The recorded series of `c` by their attribute `n`; what leaves and what follows it are added up.
fn counts(snapshot: &perf_metrics::MetricsSnapshot) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let series = snapshot
        .metric("c")
        .map_or(&[][..], |metric| metric.series());
    for series in series.iter().filter(|series| series.is_recorded()) {
        let Some(Value::U64(value)) = series.value() else {
            panic!()
        };
        let key = series
            .attributes()
            .iter()
            .map(|kv| format!("{}={}", kv.key, kv.value))
            .collect();
        *all.entry(key).or_default() += value;
    }
    all
}

fn of(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), *value))
        .collect()
}

#[test]
fn a_removed_series_is_told_once_to_each_reader_and_starts_anew() {
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let mut delta = registry.reader(Temporality::Delta).unwrap();
    let mut total = registry.reader(Temporality::Cumulative).unwrap();
    counter.add(5, &set(1));
    counter.add(7, &set(2));
    assert_eq!(counts(delta.collect()), of(&[("n=1", 5), ("n=2", 7)]));
    let start = |reader: &mut Reader| {
        let snapshot = reader.collect();
        snapshot
            .metric("c")
            .unwrap()
            .find(&set(1))
            .unwrap()
            .start()
            .unwrap()
    };
    let first_start = start(&mut total);
    counter.add(1, &set(1));
    assert!(counter.remove(&set(1)) && !counter.remove(&set(1)) && !counter.remove(&set(9)));
    std::thread::sleep(Duration::from_millis(2));
    counter.add(100, &set(1));
    // The last value, then the successor.
    assert_eq!(counts(delta.collect()), of(&[("n=1", 101)]));
    assert_eq!(counts(delta.collect()), of(&[]));
    assert_eq!(counts(total.collect()), of(&[("n=1", 106), ("n=2", 7)]));
    assert_eq!(counts(total.collect()), of(&[("n=1", 100), ("n=2", 7)]));
    assert!(
        start(&mut total) > first_start,
        "what comes back has a start of its own"
    );
}

/// The interval of what leaves ends before that of what follows it begins.
#[cfg(feature = "otlp")]
#[test]
fn otlp_has_no_two_points_of_one_series_for_the_same_time() {
    use opentelemetry_proto::tonic::metrics::v1::metric::Data;
    use perf_metrics::otlp::encode::{Origin, request};
    for temporality in [Temporality::Delta, Temporality::Cumulative] {
        let registry = Registry::new();
        let counter = registry.u64_counter("c").build().unwrap();
        let mut reader = registry.reader(temporality).unwrap();
        counter.add(5, &set(1));
        reader.collect();
        counter.add(1, &set(1));
        counter.remove(&set(1));
        std::thread::sleep(Duration::from_millis(2));
        counter.add(100, &set(1));
        let request = request(reader.collect(), temporality, &Origin::default()).unwrap();
        let metric = &request.resource_metrics[0].scope_metrics[0].metrics[0];
        let Some(Data::Sum(sum)) = &metric.data else {
            panic!("{metric:?}")
        };
        let [first, second] = &sum.data_points[..] else {
            panic!("{sum:?}")
        };
        assert!(first.start_time_unix_nano < first.time_unix_nano);
        assert!(first.time_unix_nano < second.start_time_unix_nano);
        assert!(second.start_time_unix_nano <= second.time_unix_nano);
    }
}

/// Were the sum of both exposed, and then the second alone, Prometheus would count the second twice.
#[cfg(feature = "prometheus")]
#[test]
fn prometheus_sees_what_leaves_and_then_what_follows() {
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let gauge = registry.u64_gauge("g").build().unwrap();
    let scrape = || {
        let mut text = String::new();
        perf_metrics::prometheus::write(&registry.collect(), &mut text);
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(str::to_owned).collect::<Vec<_>>()
    };
    counter.add(5, &set(1));
    gauge.set(5, &set(1));
    assert_eq!(scrape(), ["c_total{n=\"1\"} 5", "g{n=\"1\"} 5"]);
    counter.add(1, &set(1));
    counter.remove(&set(1));
    gauge.remove(&set(1));
    counter.add(100, &set(1));
    gauge.set(7, &set(1));
    assert_eq!(scrape(), ["c_total{n=\"1\"} 6", "g{n=\"1\"} 5"]);
    for _ in 0..2 {
        assert_eq!(scrape(), ["c_total{n=\"1\"} 100", "g{n=\"1\"} 7"]);
    }
}

#[test]
fn what_is_removed_while_it_is_bound_comes_back_as_itself() {
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let bound = counter.bind(&set(1));
    bound.add(1);
    let mut reader = registry.reader(Temporality::Cumulative).unwrap();
    assert_eq!(counts(reader.collect()), of(&[("n=1", 1)]));
    assert!(counter.remove(&set(1)));
    reader.collect();
    assert_eq!(counts(reader.collect()), of(&[]));
    counter.add(2, &set(1));
    bound.add(4);
    for _ in 0..3 {
        let snapshot = reader.collect();
        assert_eq!(counts(snapshot), of(&[("n=1", 7)]));
        assert_eq!(
            snapshot.metric("c").unwrap().find(&set(1)).unwrap().end(),
            None
        );
    }
    // And it leaves like any other.
    drop(bound);
    assert!(counter.remove(&set(1)));
    assert_eq!(counts(reader.collect()), of(&[("n=1", 7)]));
    let snapshot = reader.collect();
    assert!(snapshot.metric("c").unwrap().find(&set(1)).is_none());
}

#[test]
fn what_is_bound_stays_until_its_handle_is_dropped() {
    let registry = Registry::new();
    let counter = registry
        .u64_counter("c")
        .with_retention(Duration::ZERO)
        .build()
        .unwrap();
    let bound = counter.bind(&set(1));
    bound.add(1);
    counter.add(1, &set(2));
    let mut reader = registry.reader(Temporality::Delta).unwrap();
    assert_eq!(counts(reader.collect()), of(&[("n=1", 1), ("n=2", 1)]));
    bound.add(2);
    assert_eq!(
        counts(reader.collect()),
        of(&[("n=1", 2)]),
        "idle, but bound; the other has left"
    );
    assert!(counter.remove(&set(1)));
    bound.add(4);
    assert_eq!(counts(reader.collect()), of(&[("n=1", 4)]));
    bound.add(8);
    assert_eq!(
        counts(reader.collect()),
        of(&[("n=1", 8)]),
        "removed, but its handle still counts"
    );
    drop(bound);
    assert_eq!(counts(reader.collect()), of(&[]));
}

#[test]
fn idle_series_leave_and_gauges_that_are_set_again_stay() {
    let registry = Registry::new();
    let idle = Duration::from_millis(300);
    let gauge = registry
        .u64_gauge("g")
        .with_retention(idle)
        .build()
        .unwrap();
    let counter = registry
        .u64_counter("c")
        .with_retention(idle)
        .build()
        .unwrap();
    gauge.set(3, &set(1));
    gauge.set(3, &set(2));
    counter.add(1, &set(1));
    let there = || {
        let snapshot = registry.collect();
        let gauge = snapshot.metric("g").unwrap();
        // What has left stays in the snapshot for a while, and does not count.
        [1, 2].map(|n| {
            gauge
                .find(&set(n))
                .is_some_and(|series| series.is_recorded())
        })
    };
    assert_eq!(there(), [true, true]);
    // However long a turn takes: the first is set before each collection, so that it is never idle at one.
    let mut turns = 0;
    while there()[1] {
        gauge.set(3, &set(1));
        std::thread::sleep(Duration::from_millis(20));
        gauge.set(3, &set(1));
        turns += 1;
        assert!(turns < 3000, "an idle series never leaves");
    }
    gauge.set(3, &set(1));
    assert!(there()[0], "set again and again to the same value");
}

#[test]
fn labels_of_one_value_are_cleared_at_once() {
    let registry = Registry::new();
    let histogram = registry.f64_histogram("h").build().unwrap();
    for n in 0..20 {
        histogram.record(1.0, &[KeyValue::new("peer", n % 4), KeyValue::new("n", n)]);
    }
    histogram.remove_if(|attributes| attributes.contains(&KeyValue::new("peer", 3)));
    let series = || {
        registry
            .collect()
            .metric("h")
            .unwrap()
            .series()
            .iter()
            .filter(|s| s.is_recorded())
            .count()
    };
    assert_eq!(series(), 20, "once more");
    assert_eq!(series(), 15);
}

#[test]
fn a_million_series_made_and_removed_leave_no_trace() {
    const KEPT: i64 = 100;
    let registry = Registry::new();
    let counter = registry
        .u64_counter("c")
        .with_cardinality_limit(1000)
        .build()
        .unwrap();
    let histogram = registry.u64_histogram("h").build().unwrap();
    let mut reader = registry.reader(Temporality::Delta).unwrap();
    let free = || [false, true].map(perf_atomics::slab::free_cells);
    let (mut total, mut free_then) = (0, None);
    // Several times as many as the table of the instrument has slots, so that it is replaced again and again.
    let rounds = if cfg!(debug_assertions) {
        40_000
    } else {
        1_000_000
    };
    for n in 0..rounds {
        counter.add(1, &set(n));
        if n % 100 == 0 {
            histogram.record(n as u64, &set(n));
        }
        if n >= KEPT {
            assert!(counter.remove(&set(n - KEPT)));
            histogram.remove(&set(n - KEPT));
        }
        if n % 500 == 499 {
            let snapshot = reader.collect();
            let series = snapshot.metric("c").unwrap().series();
            assert!(series.len() < 4000, "{}", series.len());
            total += series
                .iter()
                .map(|s| s.value().unwrap().as_f64() as u64)
                .sum::<u64>();
            if n > 10_000 {
                // Other tests of this process run beside, with fewer cells than this.
                let now = free();
                let then = *free_then.get_or_insert(now);
                assert!(
                    now[0] + 10_000 > then[0] && now[1] + 200_000 > then[1],
                    "{then:?} {now:?}"
                );
            }
        }
    }
    total += (0..3)
        .flat_map(|_| counts(reader.collect()).into_values())
        .sum::<u64>();
    assert_eq!(total, rounds as u64, "nothing lost, nothing twice");
    assert_eq!(
        counts(&registry.collect()).get("otel.metric.overflow=true"),
        None
    );
}

/// Threads record to series that another removes all the while: each record is in one delta.
#[test]
fn nothing_is_lost_or_counted_twice_while_series_are_removed() {
    const EACH: u64 = 5_000;
    let registry = Registry::new();
    let counter = registry
        .u64_counter("c")
        .with_cardinality_limit(64)
        .build()
        .unwrap();
    let mut readers = [(); 2].map(|()| registry.reader(Temporality::Delta).unwrap());
    let done = AtomicBool::new(false);
    let mut totals = [0u64; 2];
    let mut read = |totals: &mut [u64; 2]| {
        for (reader, total) in readers.iter_mut().zip(totals) {
            *total += counts(reader.collect()).values().sum::<u64>();
        }
    };
    std::thread::scope(|scope| {
        let recorders: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| (0..EACH).for_each(|n| counter.add(1, &set(n as i64 % 8)))))
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                for n in 0..8 {
                    counter.remove(&set(n));
                }
                std::thread::yield_now();
            }
        });
        while !recorders.iter().all(|recorder| recorder.is_finished()) {
            read(&mut totals);
        }
        done.store(true, Ordering::Release);
    });
    (0..3).for_each(|_| read(&mut totals));
    assert_eq!(totals, [2 * EACH; 2]);
}

#[test]
fn dropped_instruments_are_told_once_and_can_be_made_again() {
    let registry = Registry::new();
    let mut reader = registry.reader(Temporality::Delta).unwrap();
    registry
        .u64_counter("c")
        .build()
        .unwrap()
        .add(3, EMPTY_ATTRS);
    // Made again before it left it is the same.
    registry
        .u64_counter("c")
        .build()
        .unwrap()
        .add(4, EMPTY_ATTRS);
    assert_eq!(counts(reader.collect()), of(&[("", 7)]));
    assert!(reader.collect().metric("c").is_none());
    // Later it is another, even of another kind.
    registry
        .f64_histogram("c")
        .build()
        .unwrap()
        .record(1.0, EMPTY_ATTRS);
    let snapshot = reader.collect();
    assert_eq!(
        snapshot.metric("c").unwrap().series()[0]
            .histogram()
            .unwrap()
            .count(),
        1
    );
    reader.collect();
    // A bound series or a cell of a table keeps its instrument.
    let bound = registry.u64_counter("c").build().unwrap().bind(&set(1));
    let table = registry.u64_counter("t").build_table::<(Kind,)>().unwrap();
    let cell = table[Kind::B].clone();
    drop(table);
    for _ in 0..4 {
        bound.add(1);
        cell.add(1);
        assert_eq!(counts(reader.collect()), of(&[("n=1", 1)]));
    }
    drop((bound, cell));
    reader.collect();
    assert_eq!(reader.collect().metrics().len(), 0);
}

#[test]
fn instruments_made_and_dropped_for_ever_do_not_fill_the_registry() {
    let registry = Registry::new();
    let mut reader = registry.reader(Temporality::Cumulative).unwrap();
    for n in 0..perf_metrics::INSTRUMENTS_MAX + 1000 {
        registry
            .u64_counter(format!("c{n}"))
            .build()
            .unwrap()
            .add(1, EMPTY_ATTRS);
        if n % 1000 == 0 {
            reader.collect();
            reader.collect();
        }
    }
}

#[test]
fn an_instrument_that_is_made_twice_is_one_if_it_is_described_the_same() {
    let registry = Registry::new();
    let make = |unit: &'static str| registry.u64_counter("c").with_unit(unit).build();
    let (first, second) = (make("By").unwrap(), make("By").unwrap());
    first.add(1, EMPTY_ATTRS);
    second.add(2, EMPTY_ATTRS);
    assert_eq!(counts(&registry.collect()), of(&[("", 3)]));
    assert!(matches!(make("s"), Err(MetricsError::DuplicateName { .. })));
    assert!(
        registry
            .u64_counter("c")
            .with_unit("By")
            .build_table::<(Kind,)>()
            .is_err()
    );
    let histogram = |bounds: Vec<f64>| registry.f64_histogram("h").with_boundaries(bounds).build();
    let _kept = histogram(vec![1.0]).unwrap();
    assert!(histogram(vec![1.0]).is_ok() && histogram(vec![2.0]).is_err());
    let table = registry.u64_counter("t").build_table::<(Kind,)>().unwrap();
    registry.u64_counter("t").build_table::<(Kind,)>().unwrap()[Kind::A].add(5);
    assert_eq!(table[Kind::A].get(), Value::U64(5));
    assert!(registry.u64_counter("t").build_table::<()>().is_err());
}

#[test]
fn what_cannot_be_made_is_reported_and_recorded_nowhere() {
    let registry = Registry::new();
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let tell = std::sync::Arc::clone(&told);
    registry.set_error_handler(move |error| tell.lock().unwrap().push(error.to_string()));
    let counter = registry.u64_counter("not a name").build_or_detached();
    let histogram = registry.f64_histogram("9").build_or_detached();
    let gauge = registry.f64_gauge("").build_or_detached();
    for attributes in [EMPTY_ATTRS, &set(1)] {
        counter.add(1, attributes);
        histogram.record(1.0, attributes);
        gauge.set(1.0, attributes);
    }
    assert_eq!(
        (
            told.lock().unwrap().len(),
            registry.collect().metrics().len()
        ),
        (3, 0)
    );
    assert_eq!(counter.plain().get(), Value::U64(0));
    assert!(
        registry
            .u64_counter("fine")
            .build_or_detached()
            .plain()
            .get()
            == Value::U64(0)
    );
    assert_eq!(told.lock().unwrap().len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a map of totals: all deltas of a series and its successors together are what was recorded.
    #[test]
    fn deltas_add_up_over_any_removals(ops in proptest::collection::vec((0..4u8, 0..12i64), 1..300)) {
        let registry = Registry::new();
        let counter = registry.u64_counter("c").with_cardinality_limit(12).build().unwrap();
        let mut reader = registry.reader(Temporality::Delta).unwrap();
        let (mut expected, mut found) = (BTreeMap::new(), BTreeMap::new());
        let collect = |reader: &mut Reader, found: &mut BTreeMap<String, u64>| {
            for (key, value) in counts(reader.collect()) {
                *found.entry(key).or_default() += value;
            }
        };
        for (op, n) in ops {
            match op {
                0 | 1 => {
                    counter.add(1, &set(n));
                    *expected.entry(format!("n={n}")).or_default() += 1;
                }
                2 => drop(counter.remove(&set(n))),
                _ => collect(&mut reader, &mut found),
            }
        }
        (0..3).for_each(|_| collect(&mut reader, &mut found));
        found.retain(|_, value| *value > 0);
        prop_assert_eq!(found, expected);
    }
}
