//! Every interleaving of a recorder and a collector, and the mutant that the models must catch.
//!
//! `RUSTFLAGS="--cfg perf_loom" cargo test -p perf-metrics --release --test loom --target-dir target/loom`
//!
//! Only what is written without a lock is modelled: the registry's locks are real, so one thread alone may take them.
#![cfg(perf_loom)]

use loom::thread;
use perf_metrics::{__loom, KeyValue, Reader, Registry, Temporality, Value};
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Mutants are chosen for the whole process, so models run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All interleavings with at most three forced switches between threads.
fn check(model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn assert_holds(model: fn()) {
    let _alone = alone();
    __loom::set_mutant(None);
    check(model);
}

fn assert_caught(mutant: &'static str, model: fn()) {
    let _alone = alone();
    __loom::set_mutant(Some(mutant));
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| check(model)));
    __loom::set_mutant(None);
    assert!(
        outcome.is_err(),
        "no interleaving shows what the mutant {mutant} breaks"
    );
}

fn counted(reader: &mut Reader) -> u64 {
    match reader.collect().metric("c").unwrap().series()[0].value() {
        Some(Value::U64(count)) => count,
        other => panic!("{other:?}"),
    }
}

/// Two delta readers collect while another thread counts.
fn deltas_add_up() {
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build_table::<()>().unwrap();
    let mut readers = [Temporality::Delta; 2].map(|delta| registry.reader(delta).unwrap());
    let recorder = {
        let counter = counter.clone();
        thread::spawn(move || (0..2).for_each(|_| counter.increment()))
    };
    let [first, second] = &mut readers;
    let early = [counted(first), counted(second)];
    recorder.join().unwrap();
    assert_eq!(
        early[0] + counted(first),
        2,
        "the first reader lost something or counted it twice"
    );
    assert_eq!(
        early[1] + counted(second),
        2,
        "the second reader lost something or counted it twice"
    );
    assert_eq!(counter.get(), Value::U64(2));
}

#[test]
fn deltas_of_two_readers_add_up_to_what_was_recorded() {
    assert_holds(deltas_add_up);
}

/// One delta reader, for which clearing could seem to be enough.
fn one_reader_adds_up() {
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build_table::<()>().unwrap();
    let mut reader = registry.reader(Temporality::Delta).unwrap();
    let recorder = {
        let counter = counter.clone();
        thread::spawn(move || (0..2).for_each(|_| counter.increment()))
    };
    let early = counted(&mut reader);
    recorder.join().unwrap();
    assert_eq!(
        early + counted(&mut reader),
        2,
        "something was lost or counted twice"
    );
}

#[test]
fn a_collector_that_clears_cells_is_caught() {
    assert_caught("slab_reader_clears", one_reader_adds_up);
}

/// A histogram's extremes and count while it is recorded to.
fn histogram_is_exact() {
    let registry = Registry::new();
    let histogram = registry
        .u64_histogram("h")
        .with_boundaries([4.0])
        .build_table::<()>()
        .unwrap();
    let mut reader = registry.reader(Temporality::Delta).unwrap();
    let recorder = {
        let histogram = histogram.clone();
        thread::spawn(move || [3, 5].into_iter().for_each(|value| histogram.record(value)))
    };
    let read = |reader: &mut Reader| {
        let snapshot = reader.collect();
        snapshot.metric("h").unwrap().series()[0]
            .histogram()
            .unwrap()
            .clone()
    };
    let early = read(&mut reader);
    recorder.join().unwrap();
    let late = read(&mut reader);
    assert_eq!(early.count() + late.count(), 2);
    let all = registry.collect();
    let all = all.metric("h").unwrap().series()[0].histogram().unwrap();
    assert_eq!((all.count(), all.sum()), (2, Value::U64(8)));
    assert_eq!(
        (all.min(), all.max()),
        (Some(Value::U64(3)), Some(Value::U64(5))),
        "an extreme was lost"
    );
}

#[test]
fn a_histogram_loses_neither_counts_nor_extremes() {
    assert_holds(histogram_is_exact);
}

#[test]
fn extremes_that_are_taken_by_load_and_store_are_caught() {
    assert_caught("slab_take_by_store", histogram_is_exact);
}

/// A series is removed and told while a thread that has found it records to it.
fn removal_is_exact() {
    let registry = Registry::new();
    let counter = registry
        .u64_counter("c")
        .with_cardinality_limit(1)
        .build()
        .unwrap();
    let set = || [KeyValue::new("n", 1)];
    let record = || {
        let counter = counter.clone();
        thread::spawn(move || counter.add(1, &set()))
    };
    record().join().unwrap();
    let mut reader = registry.reader(Temporality::Delta).unwrap();
    let recorder = record();
    let collect = |reader: &mut Reader| -> u64 {
        let snapshot = reader.collect();
        let series = snapshot.metric("c").unwrap().series().iter();
        series
            .filter_map(|series| match series.value() {
                Some(Value::U64(count)) if series.is_recorded() => Some(count),
                _ => None,
            })
            .sum()
    };
    counter.remove(&set());
    let mut total = collect(&mut reader) + collect(&mut reader);
    recorder.join().unwrap();
    total += collect(&mut reader) + collect(&mut reader);
    assert_eq!(total, 2, "a record was lost or counted twice");
}

#[test]
fn what_is_recorded_to_a_series_that_leaves_is_told() {
    assert_holds(removal_is_exact);
}

#[test]
fn a_series_that_goes_while_a_recorder_has_it_is_caught() {
    assert_caught("series_gone_while_found", removal_is_exact);
}
