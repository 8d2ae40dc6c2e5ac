//! One instrument's cardinality never takes the cells of others. Alone in its process, as it takes all there are.

use perf_atomics::slab;
use perf_metrics::{KeyValue, Registry, Value};

#[test]
fn a_hog_leaves_room_and_what_it_frees_serves_again() {
    // Held by others, so that the hog comes to the bound after some ten thousand series and not after some hundred thousand.
    let ballast = slab::reserve(slab::CELLS_MAX * 3 / 4 - 40_000).unwrap();
    let registry = Registry::new();
    let hog = registry
        .u64_counter("hog")
        .with_cardinality_limit(1 << 20)
        .build()
        .unwrap();
    let set = |n: i64| [KeyValue::new("n", n)];
    for n in 0..1 << 16 {
        hog.add(1, &set(n));
    }
    assert!(
        slab::free_cells(false) >= slab::CELLS_MAX / 4 - 64,
        "{}",
        slab::free_cells(false)
    );
    // In another registry too.
    for registry in [&registry, &Registry::new()] {
        let other = registry.u64_counter("other").build().unwrap();
        (0..60).for_each(|n| other.add(1, &set(n)));
        let snapshot = registry.collect();
        let alone = (0..60).all(|n| {
            snapshot
                .metric("other")
                .unwrap()
                .find(&set(n))
                .unwrap()
                .value()
                == Some(Value::U64(1))
        });
        assert!(alone, "a series of another instrument went to the overflow");
    }
    // What is over its share is counted, and what is freed is taken again.
    let overflow = [KeyValue::new("otel.metric.overflow", true)];
    let over = |registry: &Registry| {
        registry
            .collect()
            .metric("hog")
            .unwrap()
            .find(&overflow)
            .unwrap()
            .value()
    };
    let before = over(&registry).unwrap().as_f64();
    assert!(before > 20_000.0, "{before}");
    assert!(
        before < 30_000.0,
        "what others hold is no less its own: {before}"
    );
    drop(hog);
    // Told once more, then gone, and its cells with it.
    let _ = registry.collect();
    let _ = registry.collect();
    let next = registry.u64_counter("next").build().unwrap();
    (0..1000).for_each(|n| next.add(1, &set(n)));
    let snapshot = registry.collect();
    let next = snapshot.metric("next").unwrap();
    assert!(
        next.find(&overflow)
            .unwrap()
            .value()
            .is_none_or(|over| over == Value::U64(0))
    );
    assert!(
        (0..1000).all(|n| next.find(&set(n)).is_some()),
        "there is room again"
    );
    // Ten histograms at their default limit are nothing.
    let histograms: Vec<_> = (0..10)
        .map(|n| registry.f64_histogram(format!("h{n}")).build().unwrap())
        .collect();
    for histogram in &histograms {
        (0..100).for_each(|n| histogram.record(1.0, &set(n)));
    }
    let snapshot = registry.collect();
    for n in 0..10 {
        let series = snapshot.metric(&format!("h{n}")).unwrap().series();
        assert_eq!(
            series.iter().filter(|series| series.is_recorded()).count(),
            100
        );
    }
    drop(ballast);
}
