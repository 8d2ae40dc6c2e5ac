//! The slot in which an answer is waited for, in every interleaving.
//!
//! `RUSTFLAGS="--cfg perf_loom" cargo test -p perf-raft --release --test loom --target-dir target/loom`
#![cfg(perf_loom)]

use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;
use perf_raft::__loom::Slot;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// The mutant switch is the process's: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Whoever waits gets the answer, whenever it comes.
fn answered() {
    loom::model(|| {
        let slot = Arc::new(Slot::new());
        let its = Arc::clone(&slot);
        let answerer = thread::spawn(move || {
            if let Some(waker) = its.answer(7) {
                waker.wake();
            }
        });
        let answer = block_on(poll_fn(|context| slot.poll(context.waker())));
        assert_eq!(answer, 7);
        answerer.join().expect("it does not panic");
    });
}

#[test]
fn an_answer_is_never_missed() {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    perf_raft::__mutants::set(None);
    answered();
}

#[test]
fn a_forgotten_waker_is_found() {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    perf_raft::__mutants::set(Some("slot_forgets_waker"));
    let outcome = catch_unwind(AssertUnwindSafe(answered));
    perf_raft::__mutants::set(None);
    assert!(outcome.is_err(), "no interleaving shows it");
}
