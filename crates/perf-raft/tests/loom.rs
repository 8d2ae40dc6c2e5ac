//! The slot in which an answer is waited for, and the combining lock around the driver, in every interleaving.
//!
//! `RUSTFLAGS="--cfg perf_loom" cargo test -p perf-raft --release --test loom --target-dir target/loom`
#![cfg(perf_loom)]

use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;
use perf_raft::__loom::{CombiningLock, DriveOutcome, Slot};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// The mutant switch is the process's: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Whether a model fails with this fault, or with none.
fn fails(mutant: Option<&'static str>, model: fn()) -> bool {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    perf_raft::__mutants::set(mutant);
    let outcome = catch_unwind(AssertUnwindSafe(model));
    perf_raft::__mutants::set(None);
    outcome.is_err()
}

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
    assert!(!fails(None, answered));
}

#[test]
fn a_forgotten_waker_is_found() {
    assert!(
        fails(Some("slot_forgets_waker"), answered),
        "no interleaving shows it"
    );
}

/// A node that counts what it takes out of its mailbox.
struct Node {
    driver: CombiningLock<u32>,
    mailbox: loom::sync::Mutex<u32>,
}

impl Node {
    /// Queues something and sees to it, as callers do; whether the node's task is to come.
    fn queue(&self) -> bool {
        *self.mailbox.lock().expect("sound") += 1;
        self.driver.drive(2, |taken| self.turn(taken)) == DriveOutcome::More
    }

    fn turn(&self, taken: &mut u32) -> bool {
        *taken += std::mem::take(&mut *self.mailbox.lock().expect("sound"));
        false
    }
}

/// What two callers queue is taken by one of them, or the task is notified.
fn seen_to() {
    loom::model(|| {
        let node = Arc::new(Node {
            driver: CombiningLock::empty(),
            mailbox: loom::sync::Mutex::new(0),
        });
        node.driver.set(0);
        let its = Arc::clone(&node);
        let other = thread::spawn(move || its.queue());
        let mut notified = node.queue();
        notified |= other.join().expect("it does not panic");
        if notified {
            let outcome = node.driver.drive(1, |taken| node.turn(taken));
            assert_eq!(outcome, DriveOutcome::Done, "the lock is free again");
        }
        assert_eq!(node.driver.take(), Some(2), "something was forgotten");
    });
}

#[test]
fn nothing_queued_is_forgotten() {
    assert!(!fails(None, seen_to));
}

#[test]
fn a_forgotten_arrival_is_found() {
    assert!(
        fails(Some("combining_lock_forgets_arrival"), seen_to),
        "no interleaving shows it"
    );
}
