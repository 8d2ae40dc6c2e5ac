//! Calls that wait for their reply.

use super::line::{Line, Turn, Waiter};
use super::queue::SendQueue;
use super::slots::Slots;
use crate::primitive::{AtomicU64, AtomicUsize, Mutex, Ordering, mutant};
use bytes::Bytes;
use std::mem;
use std::task::{Context, Poll, Waker};

/// The most calls in flight that a slab can be asked for: an index has 16 bits.
pub const CALLS_MAX: usize = 1 << 16;

/// Identifies one call for ever: place and generation of its slot. Its number is the id on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallKey(u64);

impl CallKey {
    /// The id on the wire.
    #[inline]
    #[must_use]
    pub const fn id(self) -> u64 {
        self.0
    }

    /// From the id on the wire.
    #[inline]
    #[must_use]
    pub const fn from_id(id: u64) -> Self {
        Self(id)
    }

    #[inline]
    fn index(self) -> u16 {
        self.0 as u16
    }

    #[inline]
    fn generation(self) -> u64 {
        self.0 >> 16
    }
}

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Its deadline passed.
    Timeout,
    /// The connection was lost. The peer may or may not have handled it.
    Disconnected,
    /// There was no connection. The peer has not got it.
    Unreachable,
    /// The request was longer than the peer takes, which was not known when it was queued. The peer has not got it.
    TooLarge {
        /// Bytes of the payload.
        bytes: u32,
        /// What the peer takes.
        bytes_max: u32,
    },
    /// The peer's version does not know what was asked of it. The peer has not got it.
    Unsupported,
    /// There is a reply, and a trace context of 25 bytes before it. No fault, and here because replies without one pay
    /// nothing for it this way.
    Traced(Bytes),
    /// The peer answered with an error: code and text.
    Rejected {
        /// A `RejectionCode` as a number.
        code: u8,
        /// For people.
        text: Bytes,
    },
}

/// How a call ended.
pub type Outcome = Result<Bytes, Fault>;

/// Callers wait for a slot. In the word that each call changes anyway, so that calls pay nothing for it.
const WAITED_FOR: usize = 1 << (usize::BITS - 1);

#[derive(Debug)]
enum State {
    Free,
    /// With the queue in which its request was queued.
    Waiting(Option<Waker>, SendQueue),
    Done(Outcome),
}

#[derive(Debug)]
struct Slot {
    /// Grows with each use of the slot, over all connections of the peer: a late reply never finds a later call.
    generation: u64,
    deadline_ms: u64,
    state: State,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            generation: 1,
            deadline_ms: 0,
            state: State::Free,
        }
    }
}

/// A bounded slab of calls in flight.
///
/// A call takes a slot, waits in it with its waker, and frees it; nothing is allocated unless more calls are in flight
/// than ever before. Each slot has a lock of its own, which is held for some moves only.
#[derive(Debug)]
pub struct Pending {
    slots: Slots<Mutex<Slot>>,
    /// How many slots are taken, with [`WAITED_FOR`] while callers wait for one.
    in_flight: AtomicUsize,
    line: Mutex<Line>,
    /// No call that waits has a deadline before this, so until then there is none to look for.
    due_ms: AtomicU64,
}

impl Pending {
    /// Room for `calls_max` calls, at least 1 and at most [`CALLS_MAX`].
    #[must_use]
    pub fn new(calls_max: usize) -> Self {
        Self {
            slots: Slots::new(calls_max),
            in_flight: AtomicUsize::new(0),
            line: Mutex::new(Line::default()),
            due_ms: AtomicU64::new(u64::MAX),
        }
    }

    /// How many slots are taken.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> usize {
        // A hint for scheduling and statistics; nothing is ordered by it.
        self.in_flight.load(Ordering::Relaxed) & !WAITED_FOR
    }

    /// Takes a slot as [`open`](Self::open) does, or puts the caller in line for one. The caller calls this again when
    /// it is woken, and [`forget`](Self::forget) if it gives up.
    ///
    /// The second value is a waker that the caller must call: the next in line, for which there may be a slot, too.
    pub fn open_or_wait(
        &self,
        waiter: &mut Waiter,
        waker: &Waker,
        queue: SendQueue,
        deadline_ms: u64,
    ) -> (Option<CallKey>, Option<Waker>) {
        let mut line = self.line.lock();
        let turn = line.turn(waiter);
        // Before the look for a slot: one that is freed behind that look wakes this caller, see `freed`.
        if !mutant::is("slot_line_unseen") {
            self.in_flight.fetch_or(WAITED_FOR, Ordering::AcqRel);
        }
        if turn != Turn::Waits
            && let Some(index) = self.slots.take()
            && let Some(key) = self.fill(index, queue, deadline_ms)
        {
            let next = line.served(waiter);
            self.note_line(&line);
            return (Some(key), next);
        }
        line.wait(waiter, waker, turn);
        (None, None)
    }

    /// The waiter gives up. Returns the next in line if it was the waiter's turn.
    pub fn forget(&self, waiter: &mut Waiter) -> Option<Waker> {
        if !waiter.is_in_line() {
            return None;
        }
        let mut line = self.line.lock();
        let next = line.leave(waiter);
        self.note_line(&line);
        next
    }

    /// Empties the line and returns the wakers of its callers: they have to ask again whether there is a connection.
    pub fn dismiss(&self) -> Vec<Waker> {
        let mut line = self.line.lock();
        let wakers = line.dismiss().collect();
        self.note_line(&line);
        wakers
    }

    /// How many wait for a slot and were not woken.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.line.lock().waiters()
    }

    /// Under the line's lock, when it may have become empty.
    fn note_line(&self, line: &Line) {
        if line.is_empty() {
            self.in_flight.fetch_and(!WAITED_FOR, Ordering::AcqRel);
        }
    }

    /// Takes a slot for a call in this queue that may last until `deadline_ms`; `None` if all are taken, or if callers
    /// in line wait for one.
    #[inline]
    pub fn open(&self, queue: SendQueue, deadline_ms: u64) -> Option<CallKey> {
        if self.in_flight.load(Ordering::Relaxed) & WAITED_FOR != 0 && self.has_line() {
            return None;
        }
        let index = self.slots.take()?;
        self.fill(index, queue, deadline_ms)
    }

    /// Whether callers wait in line: a slot that is free is theirs, as others would overtake them for ever.
    #[cold]
    fn has_line(&self) -> bool {
        !self.line.lock().is_empty() && !mutant::is("slot_taken_from_line")
    }

    #[inline]
    fn fill(&self, index: u16, queue: SendQueue, deadline_ms: u64) -> Option<CallKey> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if mutant::is("due_before_slot") {
            self.note_due(deadline_ms);
        }
        let mut slot = self.slots.get(index)?.lock();
        slot.deadline_ms = deadline_ms;
        slot.state = State::Waiting(None, queue);
        if !mutant::is("due_before_slot") {
            // Under the slot's lock: a walk that has passed this slot has forgotten `due_ms` before, and one that has
            // not will see the slot.
            self.note_due(deadline_ms);
        }
        Some(CallKey(slot.generation << 16 | u64::from(index)))
    }

    /// A call that waits may have to be ended then.
    #[inline]
    fn note_due(&self, at_ms: u64) {
        // Most deadlines are later than that of the oldest call.
        if at_ms < self.due_ms.load(Ordering::Relaxed) {
            self.due_ms.fetch_min(at_ms, Ordering::Relaxed);
        }
    }

    #[inline]
    fn slot(&self, key: CallKey) -> Option<&Mutex<Slot>> {
        self.slots.get(key.index())
    }

    /// Completes a call; `false` if it has ended before, or never was. The first completion counts.
    #[inline]
    pub fn complete(&self, key: CallKey, outcome: Outcome) -> bool {
        let Some(slot) = self.slot(key) else {
            return false;
        };
        let waker = {
            let mut slot = slot.lock();
            if slot.generation != key.generation() && !mutant::is("reply_without_generation") {
                return false;
            }
            let State::Waiting(waker, _) = &mut slot.state else {
                return false;
            };
            let waker = waker.take();
            slot.state = State::Done(outcome);
            waker
        };
        if let Some(waker) = waker.filter(|_| !mutant::is("reply_wakes_nobody")) {
            waker.wake();
        }
        true
    }

    /// The outcome of a call, once. Frees the slot when it is ready; the key has no meaning afterwards.
    #[inline]
    pub fn poll(&self, key: CallKey, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Some(slot) = self.slot(key) else {
            return Poll::Ready(Err(Fault::Disconnected));
        };
        let outcome = {
            let mut slot = slot.lock();
            if slot.generation != key.generation() {
                return Poll::Ready(Err(Fault::Disconnected));
            }
            match &mut slot.state {
                State::Waiting(Some(waker), _) => {
                    waker.clone_from(cx.waker());
                    return Poll::Pending;
                }
                State::Waiting(waker, _) => {
                    *waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                State::Free => return Poll::Ready(Err(Fault::Disconnected)),
                State::Done(_) => release(&mut slot),
            }
        };
        self.freed(key);
        match outcome {
            State::Done(outcome) => Poll::Ready(outcome),
            State::Free | State::Waiting(..) => Poll::Ready(Err(Fault::Disconnected)),
        }
    }

    /// Ready if the call has ended, for a caller whose request is not queued yet. The outcome stays in its slot.
    pub fn poll_lost(&self, key: CallKey, cx: &mut Context<'_>) -> Poll<()> {
        let Some(slot) = self.slot(key) else {
            return Poll::Ready(());
        };
        let mut slot = slot.lock();
        if slot.generation != key.generation() {
            return Poll::Ready(());
        }
        match &mut slot.state {
            State::Waiting(waker, _) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            State::Free | State::Done(_) => Poll::Ready(()),
        }
    }

    /// Ends a call whose caller has given up. Its late reply finds nothing. Returns the queue of its request if there
    /// was no outcome yet: then the peer may be at work on it.
    #[inline]
    pub fn cancel(&self, key: CallKey) -> Option<SendQueue> {
        let slot = self.slot(key)?;
        let previous = {
            let mut slot = slot.lock();
            if slot.generation != key.generation() || matches!(slot.state, State::Free) {
                return None;
            }
            release(&mut slot)
        };
        if !mutant::is("cancel_keeps_slot") {
            self.freed(key);
        }
        // A waker or a reply is dropped outside of the lock.
        match previous {
            State::Waiting(_, queue) => Some(queue),
            State::Free | State::Done(_) => None,
        }
    }

    #[inline]
    fn freed(&self, key: CallKey) {
        self.slots.give_back(key.index());
        // Behind the slot: who says before this that it waits is seen here, and who says so later finds the slot.
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) & WAITED_FOR != 0 {
            self.freed_for_others();
        }
    }

    #[cold]
    fn freed_for_others(&self) {
        let next = self.line.lock().wake_next();
        if let Some(next) = next {
            next.wake();
        }
    }

    /// Ends every call whose deadline is not after `now_ms` with [`Fault::Timeout`], tells `ended` which and in what
    /// queue, and returns how many. Costs a lock per slot if the deadline of a call has passed that was the first at
    /// the last such walk, and nothing otherwise: with calls that are answered at once and have 5 s, one walk in 5 s.
    pub fn expire(&self, now_ms: u64, ended: impl FnMut(CallKey, SendQueue)) -> usize {
        if now_ms < self.due_ms.load(Ordering::Relaxed) || self.in_flight() == 0 {
            return 0;
        }
        self.due_ms.store(u64::MAX, Ordering::Relaxed);
        let mut next_ms = u64::MAX;
        let is_over = |slot: &Slot| {
            let is_over = slot.deadline_ms <= now_ms;
            if !is_over {
                next_ms = next_ms.min(slot.deadline_ms);
            }
            is_over
        };
        let count = self.end_all(&Fault::Timeout, is_over, ended);
        self.note_due(next_ms);
        count
    }

    /// Ends every call that waits, and returns how many.
    pub fn fail_all(&self, fault: &Fault) -> usize {
        self.end_all(fault, |_| true, |_, _| ())
    }

    fn end_all(
        &self,
        fault: &Fault,
        mut which: impl FnMut(&Slot) -> bool,
        mut tell: impl FnMut(CallKey, SendQueue),
    ) -> usize {
        if self.in_flight() == 0 {
            return 0;
        }
        let mut ended = 0;
        for (index, slot) in self.slots.walk() {
            let (waker, key, queue) = {
                let mut slot = slot.lock();
                if !matches!(slot.state, State::Waiting(..)) || !which(&slot) {
                    continue;
                }
                let done = State::Done(Err(fault.clone()));
                let State::Waiting(waker, queue) = mem::replace(&mut slot.state, done) else {
                    continue;
                };
                let key = CallKey(slot.generation << 16 | u64::from(index));
                (waker, key, queue)
            };
            ended += 1;
            tell(key, queue);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
        ended
    }
}

/// Makes the slot a free one of the next generation.
#[inline]
fn release(slot: &mut Slot) -> State {
    slot.generation += 1;
    mem::replace(&mut slot.state, State::Free)
}

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::*;

    fn poll(pending: &Pending, key: CallKey) -> Poll<Outcome> {
        pending.poll(key, &mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_call_completes_once_and_frees_its_slot() {
        let pending = Pending::new(1);
        let key = pending.open(SendQueue::First, 10).expect("room");
        assert!(pending.open(SendQueue::First, 10).is_none());
        assert!(poll(&pending, key).is_pending());
        assert!(pending.complete(key, Ok(Bytes::from_static(b"first"))));
        assert!(!pending.complete(key, Ok(Bytes::from_static(b"second"))));
        assert_eq!(
            poll(&pending, key),
            Poll::Ready(Ok(Bytes::from_static(b"first")))
        );
        assert_eq!(pending.in_flight(), 0);
        assert!(pending.open(SendQueue::First, 10).is_some());
    }

    /// A slot belongs to the callers in line: one that never waits is refused meanwhile, or it would overtake them for
    /// ever.
    #[test]
    fn a_slot_that_is_waited_for_is_not_taken_by_others() {
        let pending = Pending::new(1);
        let open = || pending.open(SendQueue::First, 10);
        let wait = |waiter: &mut Waiter| {
            let (key, _) = pending.open_or_wait(waiter, Waker::noop(), SendQueue::First, 10);
            key
        };
        let first = open().expect("room");
        let mut waiter = Waiter::default();
        assert!(wait(&mut waiter).is_none());
        pending.cancel(first);
        assert!(open().is_none());
        assert_eq!(pending.in_flight(), 0);
        let second = wait(&mut waiter).expect("its turn");
        pending.cancel(second);
        let third = open().expect("the line is empty");
        assert!(wait(&mut waiter).is_none());
        pending.cancel(third);
        assert!(pending.forget(&mut waiter).is_none());
        assert!(open().is_some());
        assert_eq!(pending.in_flight(), 1);
    }

    #[test]
    fn late_replies_find_nobody() {
        let pending = Pending::new(1);
        let first = pending.open(SendQueue::First, 10).expect("room");
        assert_eq!(pending.cancel(first), Some(SendQueue::First));
        assert_eq!(pending.cancel(first), None);
        let second = pending
            .open(SendQueue::First, 10)
            .expect("the slot is free");
        assert_ne!(first, second);
        assert!(!pending.complete(first, Ok(Bytes::new())));
        assert!(poll(&pending, second).is_pending());
        assert_eq!(pending.in_flight(), 1);
    }

    #[test]
    fn deadlines_and_losses_end_calls() {
        let pending = Pending::new(4);
        let early = pending.open(SendQueue::First, 10).expect("room");
        let late = pending.open(SendQueue::Second, 20).expect("room");
        let mut told = Vec::new();
        assert_eq!(pending.expire(9, |key, queue| told.push((key, queue))), 0);
        assert_eq!(pending.expire(10, |key, queue| told.push((key, queue))), 1);
        assert_eq!(told, [(early, SendQueue::First)]);
        // It has an outcome: the peer need not be told.
        assert_eq!(pending.expire(10, |key, queue| told.push((key, queue))), 0);
        assert_eq!(poll(&pending, early), Poll::Ready(Err(Fault::Timeout)));
        assert_eq!(pending.fail_all(&Fault::Disconnected), 1);
        assert_eq!(poll(&pending, late), Poll::Ready(Err(Fault::Disconnected)));
        assert_eq!(pending.in_flight(), 0);
    }

    #[test]
    fn each_call_ends_with_the_first_look_after_its_deadline() {
        let pending = Pending::new(20);
        let mut waiting: Vec<(CallKey, u64)> = Vec::new();
        let mut random = 1_u64;
        let mut below = |bound: usize| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) as usize % bound
        };
        let mut ended = 0;
        for now_ms in 0..5000 {
            for _ in 0..below(3) {
                let deadline_ms = now_ms + below(100) as u64;
                let key = pending.open(SendQueue::First, deadline_ms);
                waiting.extend(key.map(|key| (key, deadline_ms)));
            }
            if !waiting.is_empty() && below(2) == 0 {
                let (key, _) = waiting.swap_remove(below(waiting.len()));
                assert_eq!(pending.cancel(key), Some(SendQueue::First));
            }
            if below(4) > 0 {
                continue;
            }
            let mut over: Vec<CallKey> = waiting
                .extract_if(.., |(_, deadline_ms)| *deadline_ms <= now_ms)
                .map(|(key, _)| key)
                .collect();
            let mut told = Vec::new();
            assert_eq!(pending.expire(now_ms, |key, _| told.push(key)), over.len());
            over.sort_unstable_by_key(|key| key.id());
            told.sort_unstable_by_key(|key| key.id());
            assert_eq!(told, over, "at {now_ms} ms");
            for key in over {
                assert_eq!(poll(&pending, key), Poll::Ready(Err(Fault::Timeout)));
                ended += 1;
            }
        }
        assert!(ended > 1000, "{ended} calls ended at their deadline");
    }

    #[test]
    fn foreign_ids_are_ignored() {
        let pending = Pending::new(2);
        for id in [0, 1, 2, 65_535, u64::MAX] {
            assert!(!pending.complete(CallKey::from_id(id), Ok(Bytes::new())));
            assert_eq!(pending.cancel(CallKey::from_id(id)), None);
        }
        assert_eq!(pending.in_flight(), 0);
    }
}
