//! Observable instruments: what callbacks say is exact for every reader, and a callback that misbehaves harms no other.

use perf_metrics::{KeyValue, MetricsError, MetricsSnapshot, Registry, Temporality, Value};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

fn value(snapshot: &MetricsSnapshot, name: &str, attributes: &[KeyValue]) -> Option<Value> {
    let series = snapshot.metric(name)?.find(attributes)?;
    series.value().filter(|_| series.is_recorded())
}

fn set(n: i64) -> [KeyValue; 1] {
    [KeyValue::new("n", n)]
}

/// A counter whose sum is that of an atomic.
fn counter(registry: &Registry) -> (Arc<AtomicU64>, perf_metrics::Observable) {
    let sum = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&sum);
    let observed = registry
        .u64_observable_counter("c")
        .with_callback(move |observer| observer.observe(seen.load(Ordering::Relaxed), &[]))
        .build()
        .unwrap();
    (sum, observed)
}

#[test]
fn deltas_and_sums_are_exact_for_several_readers() {
    let registry = Registry::new();
    let (sum, _observed) = counter(&registry);
    let mut delta = registry.reader(Temporality::Delta).unwrap();
    let mut late = registry.reader(Temporality::Delta).unwrap();
    let mut total = registry.reader(Temporality::Cumulative).unwrap();
    for (now, change) in [(5, 5), (5, 0), (9, 4)] {
        sum.store(now, Ordering::Relaxed);
        let found = value(delta.collect(), "c", &[]);
        assert_eq!(found, Some(Value::U64(change)), "zeros are told too");
        assert_eq!(value(total.collect(), "c", &[]), Some(Value::U64(now)));
    }
    assert_eq!(value(late.collect(), "c", &[]), Some(Value::U64(9)));
    // What is counted from the beginning again is a new series.
    let start = |snapshot: &MetricsSnapshot| snapshot.metric("c").unwrap().series()[0].start();
    let before = start(total.collect());
    sum.store(3, Ordering::Relaxed);
    assert_eq!(value(delta.collect(), "c", &[]), Some(Value::U64(3)));
    let snapshot = total.collect();
    assert_eq!(value(snapshot, "c", &[]), Some(Value::U64(3)));
    assert!(start(snapshot) > before);
    sum.store(1, Ordering::Relaxed);
    let snapshot = total.collect();
    assert!(start(snapshot) <= snapshot.time(), "it begins meanwhile");
}

#[test]
fn a_set_is_the_same_in_another_order() {
    let registry = Registry::new();
    let rounds = AtomicU64::new(0);
    let _observed = registry
        .u64_observable_counter("c")
        .with_callback(move |observer| {
            let round = rounds.fetch_add(1, Ordering::Relaxed);
            let mut set = [KeyValue::new("a", 1), KeyValue::new("b", 2)];
            set.rotate_left(round as usize % 2);
            observer.observe(100 + 50 * round, &set);
        })
        .build()
        .unwrap();
    let mut delta = registry.reader(Temporality::Delta).unwrap();
    let set = [KeyValue::new("a", 1), KeyValue::new("b", 2)];
    let found = [(); 3].map(|()| value(delta.collect(), "c", &set));
    assert_eq!(found, [100, 50, 50].map(|change| Some(Value::U64(change))));
}

/// As the SDK has it; the second is no counter that was begun again.
#[test]
fn of_what_is_observed_twice_at_once_the_last_counts() {
    let registry = Registry::new();
    let rounds = AtomicU64::new(0);
    let _observed = registry
        .u64_observable_counter("c")
        .with_callback(move |observer| {
            let round = rounds.fetch_add(1, Ordering::Relaxed);
            observer.observe(round + 5, &set(1));
            observer.observe(round + 3, &set(1));
        })
        .build()
        .unwrap();
    let mut total = registry.reader(Temporality::Cumulative).unwrap();
    let mut starts = Vec::new();
    for round in 0..3 {
        let snapshot = total.collect();
        assert_eq!(value(snapshot, "c", &set(1)), Some(Value::U64(round + 3)));
        let series = snapshot.metric("c").unwrap().series();
        assert_eq!(series.len(), 1);
        starts.push(series[0].start());
    }
    starts.dedup();
    assert_eq!(starts.len(), 1);
}

/// Sums that are kept elsewhere need not be remembered for a difference.
#[test]
fn with_low_memory_only_what_is_recorded_to_has_deltas() {
    let registry = Registry::new();
    let (sum, _observed) = counter(&registry);
    let recorded = registry.u64_counter("recorded").build().unwrap();
    let mut reader = registry.reader(Temporality::LowMemory).unwrap();
    let mut starts = Vec::new();
    for now in [5, 9] {
        sum.store(now, Ordering::Relaxed);
        recorded.add(2, &[]);
        let snapshot = reader.collect();
        assert_eq!(value(snapshot, "c", &[]), Some(Value::U64(now)));
        assert_eq!(value(snapshot, "recorded", &[]), Some(Value::U64(2)));
        starts
            .push(["c", "recorded"].map(|name| snapshot.metric(name).unwrap().series()[0].start()));
    }
    assert_eq!(starts[0][0], starts[1][0]);
    assert!(starts[0][1] < starts[1][1]);
}

#[test]
fn what_is_not_observed_is_left_out_and_goes_on_where_it_was() {
    let registry = Registry::new();
    let is_there = Arc::new(AtomicBool::new(true));
    let there = Arc::clone(&is_there);
    let sum = AtomicU64::new(0);
    let _observed = registry
        .u64_observable_counter("c")
        .with_callback(move |observer| {
            let sum = sum.fetch_add(1, Ordering::Relaxed) + 1;
            if there.load(Ordering::Relaxed) {
                observer.observe(sum * 10, &set(1));
            }
            observer.observe(sum, &set(2));
        })
        .build()
        .unwrap();
    let mut delta = registry.reader(Temporality::Delta).unwrap();
    let mut read = || {
        let snapshot = delta.collect();
        [1, 2].map(|n| value(snapshot, "c", &set(n)))
    };
    let some = |n| Some(Value::U64(n));
    assert_eq!(read(), [some(10), some(1)]);
    is_there.store(false, Ordering::Relaxed);
    assert_eq!(read(), [None, some(1)]);
    is_there.store(true, Ordering::Relaxed);
    assert_eq!(read(), [some(20), some(1)], "not counted again from zero");
}

#[test]
fn the_last_of_the_same_attributes_counts_and_what_is_no_sum_is_ignored() {
    let registry = Registry::new();
    let reversed = |n: i64| [KeyValue::new("b", n), KeyValue::new("a", 1)];
    let ordered = |n: i64| [KeyValue::new("a", 1), KeyValue::new("b", n)];
    let _kept = [
        registry
            .f64_observable_counter("c")
            .with_callback(move |observer| {
                observer.observe(1.0, &ordered(1));
                observer.observe(2.0, &reversed(1));
                observer.observe(-1.0, &ordered(2));
                observer.observe(f64::NAN, &ordered(3));
            })
            .build()
            .unwrap(),
        registry
            .i64_observable_up_down_counter("u")
            .with_callback(|observer| observer.observe(-7, &[]))
            .build()
            .unwrap(),
        registry
            .f64_observable_gauge("g")
            .with_callback(|observer| observer.observe(f64::INFINITY, &[]))
            .build()
            .unwrap(),
    ];
    let snapshot = registry.collect();
    assert_eq!(snapshot.metric("c").unwrap().series().len(), 1);
    let found = value(&snapshot, "c", &ordered(1));
    assert_eq!(found, Some(Value::F64(2.0)));
    assert_eq!(value(&snapshot, "u", &[]), Some(Value::I64(-7)));
    let found = value(&snapshot, "g", &[]);
    assert_eq!(found, Some(Value::F64(f64::INFINITY)));
}

#[test]
fn more_attributes_than_the_limit_are_one_series_with_their_sum() {
    let registry = Registry::new();
    let _observed = registry
        .u64_observable_counter("c")
        .with_cardinality_limit(3)
        .with_callback(|observer| (0..10).for_each(|n| observer.observe(n as u64, &set(n))))
        .build()
        .unwrap();
    for _ in 0..2 {
        let snapshot = registry.collect();
        assert_eq!(snapshot.metric("c").unwrap().series().len(), 4);
        let over = value(
            &snapshot,
            "c",
            &[KeyValue::new("otel.metric.overflow", true)],
        );
        assert_eq!(over, Some(Value::U64((3..10).sum())));
    }
}

#[test]
fn a_callback_that_panics_is_told_once_and_harms_no_other() {
    let registry = Registry::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    registry.set_error_handler(move |error| tell.lock().unwrap().push(error.clone()));
    let panics = Arc::new(AtomicBool::new(true));
    let does = Arc::clone(&panics);
    let _observed = registry
        .u64_observable_gauge("g")
        .with_callback(move |observer| {
            observer.observe(1, &set(1));
            assert!(!does.load(Ordering::Relaxed), "as the test wants");
        })
        .with_callback(|observer| observer.observe(2, &set(2)))
        .build()
        .unwrap();
    let read = || {
        let snapshot = registry.collect();
        [1, 2].map(|n| value(&snapshot, "g", &set(n)).is_some())
    };
    assert_eq!([read(), read()], [[false, true]; 2]);
    let expected = MetricsError::CallbackPanicked { name: "g".into() };
    assert_eq!(*told.lock().unwrap(), [expected]);
    panics.store(false, Ordering::Relaxed);
    assert_eq!(read(), [true, true]);
    panics.store(true, Ordering::Relaxed);
    read();
    assert_eq!(
        told.lock().unwrap().len(),
        2,
        "told again after it was well"
    );
}

/// The collection that met the panic goes on holding the lock of the instrument.
#[test]
fn an_error_handler_may_collect_and_panic() {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let registry = Registry::new();
        let other = registry.clone();
        registry.set_error_handler(move |_| {
            let _ = other.collect();
            panic!("as the test wants");
        });
        let panics = Arc::new(AtomicBool::new(true));
        let does = Arc::clone(&panics);
        let observed = registry
            .u64_observable_gauge("g")
            .with_callback(move |observer| {
                assert!(!does.load(Ordering::Relaxed), "as the test wants");
                observer.observe(1, &[]);
            })
            .build()
            .unwrap();
        let collect = std::panic::AssertUnwindSafe(|| registry.collect());
        assert!(std::panic::catch_unwind(collect).is_err());
        panics.store(false, Ordering::Relaxed);
        tell.send(value(&registry.collect(), "g", &[])).unwrap();
        drop(observed);
    });
    let found = told.recv_timeout(std::time::Duration::from_secs(60));
    assert_eq!(found, Ok(Some(Value::U64(1))));
}

#[test]
fn a_callback_may_record_make_instruments_and_collect() {
    let registry = Registry::new();
    let other = registry.clone();
    let _observed = registry
        .u64_observable_gauge("g")
        .with_callback(move |observer| {
            let counter = other.u64_counter("made").build().unwrap();
            counter.add(1, &[]);
            // Its own instrument is not asked again.
            let inner = other.collect();
            observer.observe(inner.metric("g").unwrap().series().len() as u64, &[]);
        })
        .build()
        .unwrap();
    assert_eq!(value(&registry.collect(), "g", &[]), Some(Value::U64(0)));
}

#[test]
fn callbacks_end_with_their_handle_unless_they_are_kept() {
    let registry = Registry::new();
    let (sum, observed) = counter(&registry);
    sum.store(4, Ordering::Relaxed);
    assert_eq!(value(&registry.collect(), "c", &[]), Some(Value::U64(4)));
    drop(observed);
    assert_eq!(
        Arc::strong_count(&sum),
        1,
        "what the callback owned is gone"
    );
    assert_eq!(value(&registry.collect(), "c", &[]), None);
    let _ = registry.collect();
    assert!(registry.collect().metric("c").is_none());
    let (sum, observed) = counter(&registry);
    observed.keep();
    sum.store(6, Ordering::Relaxed);
    (0..3).for_each(|_| {
        let found = value(&registry.collect(), "c", &[]);
        assert_eq!(found, Some(Value::U64(6)));
    });
    assert!(matches!(
        registry.u64_counter("c").build(),
        Err(MetricsError::DuplicateName { .. })
    ));
}

#[cfg(feature = "tokio-runtime")]
#[test]
fn a_runtime_and_an_allocator_are_observed() {
    use perf_metrics::runtime::{AllocatorCounts, observe_allocator, observe_tokio};
    let registry = Registry::new();
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let _tokio = observe_tokio(&registry, tokio.handle()).unwrap();
    let _allocator = observe_allocator(&registry, || AllocatorCounts {
        allocations: 5,
        deallocations: 3,
        bytes_allocated: 500,
        bytes_deallocated: 100,
    })
    .unwrap();
    // A task that is alive while the registry is collected.
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio.spawn(stopped);
    let snapshot = registry.collect();
    stop.send(()).unwrap();
    tokio.block_on(task).unwrap().unwrap();
    assert_eq!(value(&snapshot, "tokio.workers", &[]), Some(Value::U64(2)));
    assert_eq!(value(&snapshot, "tokio.tasks", &[]), Some(Value::U64(1)));
    let worker = [KeyValue::new("worker", 1)];
    assert!(value(&snapshot, "tokio.worker.busy_time", &worker).is_some());
    assert!(value(&snapshot, "tokio.worker.parks", &worker).is_some());
    let in_use = value(&snapshot, "process.allocator.in_use", &[]);
    assert_eq!(in_use, Some(Value::I64(400)));
    let allocations = value(&snapshot, "process.allocator.allocations", &[]);
    assert_eq!(allocations, Some(Value::U64(5)));
}
