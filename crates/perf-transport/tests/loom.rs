//! Every interleaving of what threads share: ownership of the write side, turns in a queue, calls in flight.
//!
//! `RUSTFLAGS="--cfg perf_loom" cargo test -p perf-transport --release --test loom --target-dir target/loom`
#![cfg(perf_loom)]

use bytes::Bytes;
use loom::sync::Arc;
use loom::thread;
use perf_transport::__mutant::set;
use perf_transport::Payload;
use perf_transport::proto::{
    Channel, ChannelLimits, Header, Kind, Notified, Pending, QueueLimits, SendQueue, Waiter,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// The mutant switch is the process's: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

fn holds(model: fn()) {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    set(None);
    loom::model(model);
}

fn catches(mutant: &'static str, model: fn()) {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    set(Some(mutant));
    let outcome = catch_unwind(AssertUnwindSafe(|| loom::model(model)));
    set(None);
    assert!(outcome.is_err(), "no interleaving shows {mutant}");
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn channel() -> Channel {
    let queue = QueueLimits {
        bytes_max: 1 << 20,
        frames_max: 16,
        weight: 1,
    };
    Channel::new(ChannelLimits {
        first: queue,
        second: queue,
        calls_max: 2,
        checksum: false,
    })
}

/// Queues a frame and does what the shell does behind it: the owner of the write side takes what is queued.
fn queue_and_drive(channel: &Channel, taken: &AtomicUsize) {
    let header = Header::new(Kind::OneWay, 0, 1);
    let pushed = channel
        .queues
        .push(SendQueue::First, header, &Payload::default(), None);
    assert_eq!(pushed, Ok(()));
    if channel.ownership.notify() == Notified::Claimed {
        loop {
            channel.ownership.begin();
            let mut done = Vec::new();
            channel.queues.drain(usize::MAX, &mut done, |buffer| {
                taken.fetch_add(buffer.frames(), Ordering::SeqCst);
            });
            if channel.ownership.finish() {
                break;
            }
        }
    }
}

/// Two threads queue a frame each. When both are done, both frames were taken.
fn ownership() {
    let channel = Arc::new(channel());
    let taken = std::sync::Arc::new(AtomicUsize::new(0));
    let (its, counted) = (Arc::clone(&channel), std::sync::Arc::clone(&taken));
    let other = thread::spawn(move || queue_and_drive(&its, &counted));
    queue_and_drive(&channel, &taken);
    other.join().expect("no panics");
    assert_eq!(taken.load(Ordering::SeqCst), 2, "a frame is left behind");
}

/// A reply, a deadline and the caller meet: the call ends once, the caller is woken, the slot is free.
fn pending() {
    let pending = Arc::new(Pending::new(1));
    let key = pending.open(SendQueue::First, 10).expect("room");
    let count = std::sync::Arc::new(Count::default());
    let waker = Waker::from(std::sync::Arc::clone(&count));
    let its = Arc::clone(&pending);
    let reply = thread::spawn(move || its.complete(key, Ok(Bytes::from_static(b"reply"))));
    let mut cx = Context::from_waker(&waker);
    let first = pending.poll(key, &mut cx);
    let replied = reply.join().expect("no panics");
    match first {
        Poll::Ready(outcome) => assert!(outcome.is_ok() && replied),
        Poll::Pending => {
            assert_eq!(count.0.load(Ordering::SeqCst), 1, "nobody was woken");
            assert!(pending.poll(key, &mut cx).is_ready());
        }
    }
    assert_eq!(pending.in_flight(), 0);
    assert!(
        pending.open(SendQueue::First, 10).is_some(),
        "the slot is lost"
    );
}

/// A late reply meets the next call in the same slot: that one never gets it.
fn generations() {
    let pending = Arc::new(Pending::new(1));
    let first = pending.open(SendQueue::First, 10).expect("room");
    let its = Arc::clone(&pending);
    let late = thread::spawn(move || its.complete(first, Ok(Bytes::from_static(b"late"))));
    pending.cancel(first);
    let second = pending
        .open(SendQueue::First, 10)
        .expect("the slot is free");
    late.join().expect("no panics");
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        pending.poll(second, &mut cx).is_pending(),
        "another call's reply"
    );
    pending.cancel(second);
    assert_eq!(pending.in_flight(), 0);
}

/// Two that need more slots at once, where there may be one more: one of them gets it.
fn growth() {
    let pending = Arc::new(Pending::new(2));
    let first = pending.open(SendQueue::First, 10).expect("room");
    let its = Arc::clone(&pending);
    let other = thread::spawn(move || its.open(SendQueue::First, 10));
    let mine = pending.open(SendQueue::First, 10);
    let theirs = other.join().expect("no panics");
    assert_eq!(mine.is_some(), theirs.is_none(), "{mine:?}, {theirs:?}");
    assert_ne!(mine.or(theirs), Some(first));
    assert_eq!(pending.in_flight(), 2);
}

/// A call that is begun while the deadlines are looked through is found by this look or by the next.
fn deadlines() {
    let pending = Arc::new(Pending::new(2));
    let first = pending.open(SendQueue::First, 50).expect("room");
    let its = Arc::clone(&pending);
    let begun = thread::spawn(move || its.open(SendQueue::First, 50).expect("room"));
    pending.expire(100, |_, _| ());
    let second = begun.join().expect("no panics");
    pending.expire(100, |_, _| ());
    let mut cx = Context::from_waker(Waker::noop());
    for key in [first, second] {
        let ended = pending.poll(key, &mut cx);
        assert!(ended.is_ready(), "a deadline is overlooked");
    }
}

/// A call ends while another caller looks for a slot: that one gets it, at once or when it is woken.
fn slot_line() {
    let pending = Arc::new(Pending::new(1));
    let key = pending.open(SendQueue::First, 10).expect("room");
    let its = Arc::clone(&pending);
    let other = thread::spawn(move || its.cancel(key));
    let count = std::sync::Arc::new(Count::default());
    let waker = Waker::from(std::sync::Arc::clone(&count));
    let mut waiter = Waiter::default();
    let (first, _) = pending.open_or_wait(&mut waiter, &waker, SendQueue::First, 10);
    other.join().expect("no panics");
    if first.is_none() {
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "nobody was woken");
        let (second, _) = pending.open_or_wait(&mut waiter, &waker, SendQueue::First, 10);
        assert!(second.is_some(), "the slot is lost");
    }
    assert_eq!((pending.in_flight(), pending.waiters()), (1, 0));
}

#[test]
fn who_waits_for_a_slot_gets_it() {
    holds(slot_line);
}

#[test]
fn a_line_that_is_not_seen_is_found() {
    catches("slot_line_unseen", slot_line);
}

#[test]
fn no_notification_is_lost() {
    holds(ownership);
}

#[test]
fn an_ownership_that_forgets_is_found() {
    catches("ownership_forgets_notification", ownership);
}

#[test]
fn a_call_ends_once_and_its_caller_knows() {
    holds(pending);
}

#[test]
fn a_reply_that_wakes_nobody_is_found() {
    catches("reply_wakes_nobody", pending);
}

#[test]
fn replies_find_their_own_call_only() {
    holds(generations);
}

#[test]
fn a_reply_without_generation_is_found() {
    catches("reply_without_generation", generations);
}

#[test]
fn slots_are_made_once() {
    holds(growth);
}

#[test]
fn no_deadline_is_overlooked() {
    holds(deadlines);
}

#[test]
fn a_walk_that_misses_new_slots_is_found() {
    catches("walk_without_lock", deadlines);
}

#[test]
fn a_deadline_said_too_early_is_found() {
    catches("due_before_slot", deadlines);
}
