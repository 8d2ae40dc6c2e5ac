//! Every interleaving of small models, and mutants that the models must catch.
//!
//! Run by `cargo xtask test`, or by hand:
//! `RUSTFLAGS="--cfg perf_loom" cargo test -p perf-cache --release --test loom --target-dir target/loom`
#![cfg(perf_loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;
use perf_cache::__loom::{self, Reader, Table, Waiting};
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Mutants are chosen for the whole process, so models run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// With at most three forced switches between threads. Few switches find most faults: "Iterative Context
/// Bounding", Musuvathi and Qadeer, PLDI 2007.
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

/// A value is taken out while a reader is filling its front, and replaced.
fn fronts_follow_pinned() {
    fronts_follow(false);
}

/// The same where entries lie in the table and the front has copies.
fn fronts_follow_in_place() {
    fronts_follow(true);
}

fn fronts_follow(in_place: bool) {
    let table = Arc::new(Table::new(in_place));
    table.put(1);
    let changed = Arc::new(AtomicU64::new(1));
    let writer = {
        let (table, changed) = (Arc::clone(&table), Arc::clone(&changed));
        thread::spawn(move || {
            table.invalidate();
            changed.store(2, Ordering::Release);
            table.put(3);
            changed.store(3, Ordering::Release);
        })
    };
    let mut reader = Reader::new();
    for _ in 0..2 {
        let known = changed.load(Ordering::Acquire);
        let value = reader.get(&table);
        match known {
            1 => assert!(value.is_none_or(|value| value == 1 || value == 3)),
            2 => assert_ne!(value, Some(1), "served after its invalidation had returned"),
            _ => assert_eq!(value, Some(3)),
        }
    }
    writer.join().unwrap();
    assert_eq!(reader.get(&table), Some(3));
}

#[test]
fn no_front_serves_what_was_invalidated() {
    assert_holds(fronts_follow_pinned);
    assert_holds(fronts_follow_in_place);
}

#[test]
fn a_front_that_reads_the_version_after_the_fetch_is_caught() {
    assert_caught("front_version_after_fetch", fronts_follow_pinned);
    assert_caught("front_version_after_fetch", fronts_follow_in_place);
}

/// Two ask for one missing key.
fn one_computes_pinned() {
    one_computes(false);
}

fn one_computes_in_place() {
    one_computes(true);
}

fn one_computes(in_place: bool) {
    let table = Arc::new(Table::new(in_place));
    let computations = Arc::new(AtomicU64::new(0));
    let ask = |table: &Table, computations: &AtomicU64| {
        table.ask(|| {
            computations.fetch_add(1, Ordering::Relaxed);
            Some(5)
        })
    };
    let other = {
        let (table, computations) = (Arc::clone(&table), Arc::clone(&computations));
        thread::spawn(move || ask(&table, &computations))
    };
    assert_eq!(ask(&table, &computations), Some(5));
    assert_eq!(other.join().unwrap(), Some(5));
    assert_eq!(computations.load(Ordering::Relaxed), 1);
}

#[test]
fn two_that_ask_at_once_compute_once() {
    assert_holds(one_computes_pinned);
    assert_holds(one_computes_in_place);
}

#[test]
fn a_leader_without_a_second_look_is_caught() {
    assert_caught("flight_without_second_look", one_computes_pinned);
    assert_caught("flight_without_second_look", one_computes_in_place);
}

/// One abandons its computation; the other gets a value all the same, and nobody waits for ever.
fn a_successor_computes_pinned() {
    a_successor_computes(false);
}

fn a_successor_computes_in_place() {
    a_successor_computes(true);
}

fn a_successor_computes(in_place: bool) {
    let table = Arc::new(Table::new(in_place));
    let has_value = Arc::new(AtomicBool::new(false));
    let quitter = {
        let table = Arc::clone(&table);
        thread::spawn(move || table.ask(|| None))
    };
    let value = table.ask(|| {
        has_value.store(true, Ordering::Relaxed);
        Some(5)
    });
    assert_eq!(value, Some(5));
    assert!(has_value.load(Ordering::Relaxed));
    let given_up = quitter.join().unwrap();
    assert!(given_up.is_none_or(|value| value == 5));
}

#[test]
fn an_abandoned_computation_has_a_successor() {
    assert_holds(a_successor_computes_pinned);
    assert_holds(a_successor_computes_in_place);
}

/// Remembers that it was called.
struct Bell(AtomicBool);

impl std::task::Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// A computation ends while a task begins to wait for it.
fn whoever_waits_is_woken() {
    let waiting = Arc::new(Waiting::new());
    let leader = {
        let waiting = Arc::clone(&waiting);
        thread::spawn(move || waiting.settle())
    };
    let bell = std::sync::Arc::new(Bell(AtomicBool::new(false)));
    let is_settled = waiting.is_settled(&std::sync::Arc::clone(&bell).into());
    leader.join().unwrap();
    assert!(
        is_settled || bell.0.load(Ordering::Acquire),
        "it waits for ever"
    );
}

#[test]
fn no_wake_up_is_lost() {
    assert_holds(whoever_waits_is_woken);
}

#[test]
fn a_task_that_registers_without_a_second_look_is_caught() {
    assert_caught("flight_registers_without_look", whoever_waits_is_woken);
}

/// What is computed from changes, and the key is invalidated after the change.
fn nothing_outdated_is_kept_pinned() {
    nothing_outdated_is_kept(false);
}

fn nothing_outdated_is_kept_in_place() {
    nothing_outdated_is_kept(true);
}

fn nothing_outdated_is_kept(in_place: bool) {
    let table = Arc::new(Table::new(in_place));
    let source = Arc::new(AtomicU64::new(1));
    let writer = {
        let (table, source) = (Arc::clone(&table), Arc::clone(&source));
        thread::spawn(move || {
            source.store(2, Ordering::Release);
            table.invalidate();
        })
    };
    table.ask(|| Some(source.load(Ordering::Acquire)));
    writer.join().unwrap();
    let kept = table.held();
    assert_ne!(kept, Some(1), "computed before the invalidation, and kept");
}

#[test]
fn what_was_computed_before_an_invalidation_is_not_kept() {
    assert_holds(nothing_outdated_is_kept_pinned);
    assert_holds(nothing_outdated_is_kept_in_place);
}

#[test]
fn a_flight_that_lands_after_an_invalidation_is_caught() {
    assert_caught(
        "flight_lands_after_invalidate",
        nothing_outdated_is_kept_pinned,
    );
    assert_caught(
        "flight_lands_after_invalidate",
        nothing_outdated_is_kept_in_place,
    );
}

/// A key is invalidated while one caller computes and a task may wait for it.
fn followers_outlive_an_invalidation_pinned() {
    followers_outlive_an_invalidation(false);
}

fn followers_outlive_an_invalidation_in_place() {
    followers_outlive_an_invalidation(true);
}

fn followers_outlive_an_invalidation(in_place: bool) {
    let table = Arc::new(Table::new(in_place));
    let leader = {
        let table = Arc::clone(&table);
        thread::spawn(move || table.ask(|| Some(5)))
    };
    let writer = {
        let table = Arc::clone(&table);
        thread::spawn(move || table.invalidate())
    };
    let bell = std::sync::Arc::new(Bell(AtomicBool::new(false)));
    let waiting = table.follow();
    let waker = std::sync::Arc::clone(&bell).into();
    let is_settled = waiting.as_ref().is_none_or(|it| it.is_settled(&waker));
    assert_eq!(leader.join().unwrap(), Some(5));
    writer.join().unwrap();
    assert!(
        is_settled || bell.0.load(Ordering::Acquire),
        "it waits for ever"
    );
}

#[test]
fn who_waits_gets_the_value_though_the_key_is_invalidated() {
    assert_holds(followers_outlive_an_invalidation_pinned);
    assert_holds(followers_outlive_an_invalidation_in_place);
}

#[test]
fn an_invalidation_that_forgets_who_waits_is_caught() {
    let mutant = "outdated_flight_forgotten";
    assert_caught(mutant, followers_outlive_an_invalidation_pinned);
    assert_caught(mutant, followers_outlive_an_invalidation_in_place);
}
