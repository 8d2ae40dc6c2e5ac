//! Every interleaving of the two protocols that threads share, and of their seeded faults.
//!
//! `RUSTFLAGS="--cfg perf_loom" cargo test -p perf-pool --release --test loom --target-dir target/loom`
#![cfg(perf_loom)]

use loom::sync::Arc;
use loom::thread;
use perf_pool::model::{Budget, Depot, set_mutant};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// The mutant switch is the process's: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

fn holds(model: fn()) {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    set_mutant("");
    loom::model(model);
}

fn catches(mutant: &'static str, model: fn()) {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    set_mutant(mutant);
    let outcome = catch_unwind(AssertUnwindSafe(|| loom::model(model)));
    set_mutant("");
    assert!(outcome.is_err(), "no interleaving shows {mutant}");
}

/// Two threads charge what only one can have; a third look sees no more than the limit.
fn budget() {
    let budget = Arc::new(Budget::new(10));
    let its = Arc::clone(&budget);
    let other = thread::spawn(move || {
        let charged = its.reserve(6);
        if charged {
            its.release(6);
        }
    });
    let charged = budget.reserve(6);
    assert!(budget.charged() <= 10);
    if charged {
        budget.release(6);
    }
    other.join().expect("no panics");
    assert!(budget.peak() <= 10);
    assert_eq!(budget.charged(), 0);
}

/// A thread returns to a depot that closes: in the end nothing lies in it, and nothing is lost.
fn depot() {
    let depot = Arc::new(Depot::new(2));
    let its = Arc::clone(&depot);
    let other = thread::spawn(move || its.put(1_u32).is_err());
    let mut freed = 0;
    depot.close(|_| freed += 1);
    let handed_back = other.join().expect("no panics");
    assert_eq!(depot.len(), 0, "left behind");
    assert_eq!(freed + u32::from(handed_back), 1, "lost or doubled");
    assert!(depot.put(2).is_err());
}

/// Two threads return while a third takes: each item is seen once.
fn depot_in_use() {
    let depot = Arc::new(Depot::new(1));
    let its = Arc::clone(&depot);
    let other = thread::spawn(move || its.put(1_u32).is_ok());
    let mine = depot.put(2).is_ok();
    let taken = depot.take().is_some();
    let theirs = other.join().expect("no panics");
    let kept = u32::from(mine) + u32::from(theirs);
    assert_eq!(
        kept,
        u32::from(taken) + u32::try_from(depot.len()).expect("few")
    );
}

/// The same where the second item has no place in the ring: an open depot refuses none, a closed one keeps none.
fn growing_depot() {
    let depot = Arc::new(Depot::growing(1));
    assert!(depot.put(0_u32).is_ok());
    let its = Arc::clone(&depot);
    let other = thread::spawn(move || its.put(1).is_err());
    assert!(depot.take().is_some());
    let mut freed = 1;
    depot.close(|_| freed += 1);
    let handed_back = other.join().expect("no panics");
    assert_eq!(depot.len(), 0, "left behind");
    assert_eq!(freed + u32::from(handed_back), 2, "lost or doubled");
    assert!(depot.put(2).is_err());
}

#[test]
fn the_budget_is_never_exceeded() {
    holds(budget);
}

#[test]
fn a_check_before_the_addition_is_caught() {
    catches("budget_check_then_add", budget);
}

#[test]
fn a_closed_depot_is_empty() {
    holds(depot);
    holds(depot_in_use);
    holds(growing_depot);
}

#[test]
fn a_missing_second_look_is_caught() {
    catches("depot_no_recheck", depot);
    catches("depot_no_recheck", growing_depot);
}
