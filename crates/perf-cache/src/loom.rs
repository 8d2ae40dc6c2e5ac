//! The protocols of this crate in a form that models can drive. Not a public interface.

use crate::entry::{Content, Entry, Stored};
use crate::flight::{Flight, Follower, Outcome};
use crate::front::Front;
use crate::policy::{Chooser, Policy};
use crate::primitive::Mutex;
use crate::store::{Joined, Store, either};
use perf_atomics::clock::CoarseInstant;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

const HASH: u64 = 0;
const KEY: u64 = 7;

/// Switches one fault on, or all off, for the whole process.
pub fn set_mutant(name: Option<&'static str>) {
    crate::primitive::mutant::set(name);
}

/// A table of one key.
#[derive(Debug)]
pub struct Table {
    store: Store<u64, u64>,
}

fn entry(value: u64) -> Entry<u64, u64> {
    Entry {
        hash: HASH,
        key: KEY,
        content: Content::Value(value),
        weight: 1,
        fresh_until: u64::MAX,
        ends: u64::MAX,
        read_at: 0.into(),
        retry_at: 0.into(),
    }
}

impl Table {
    #[must_use]
    pub fn new(in_place: bool) -> Self {
        Self {
            store: Store::new(1, false, Chooser::new(Policy::Lru), None, in_place),
        }
    }

    pub fn put(&self, value: u64) {
        self.store.put(entry(value));
    }

    pub fn invalidate(&self) {
        self.store.take(HASH);
    }

    /// What the table holds.
    #[must_use]
    pub fn held(&self) -> Option<u64> {
        either!(&self.store, shards => shards.get(HASH)?.value().copied())
    }

    /// Computes once for all callers; `None` from `compute` is a computation that was abandoned.
    pub fn ask(&self, mut compute: impl FnMut() -> Option<u64>) -> Option<u64> {
        loop {
            if let Some(value) = self.held() {
                return Some(value);
            }
            match self.store.join(HASH, false) {
                Joined::Lead(number, Some(_)) => self.abandon(number),
                Joined::Lead(number, None) => {
                    let Some(value) = compute() else {
                        self.abandon(number);
                        return None;
                    };
                    self.store.land(number, entry(value), true);
                    return Some(value);
                }
                Joined::Under(flight) => {
                    let flight =
                        flight.or_else(|| self.store.follow(HASH, Arc::new(Flight::new())));
                    let follower = flight.and_then(|flight| flight.try_enter());
                    if let Some(Outcome::Computed(entry)) = follower.map(Follower::wait) {
                        return entry.value().copied();
                    }
                }
            }
        }
    }
}

impl Table {
    /// Waits for the computation under way, if there is one.
    #[must_use]
    pub fn follow(&self) -> Option<Waiting> {
        let flight = self.store.follow(HASH, Arc::new(Flight::new()))?;
        Some(Waiting::by(flight))
    }

    fn abandon(&self, number: u64) {
        if let Some(flight) = self.store.end(HASH, number) {
            flight.settle(Outcome::Abandoned);
        }
    }
}

/// A computation under way, with one task that waits for it.
#[derive(Debug)]
pub struct Waiting {
    flight: Arc<Flight<u64, u64>>,
    follower: Mutex<Follower<u64, u64>>,
}

impl Waiting {
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for models only")]
    pub fn new() -> Self {
        Self::by(Arc::new(Flight::new()))
    }

    fn by(flight: Arc<Flight<u64, u64>>) -> Self {
        let follower = flight.try_enter().expect("the first may wait");
        Self {
            flight,
            follower: Mutex::new(follower),
        }
    }

    pub fn settle(&self) {
        self.flight.settle(Outcome::Computed(Arc::new(entry(1))));
    }

    /// Whether the task need not wait; if it must, `waker` is to be called.
    #[must_use]
    pub fn is_settled(&self, waker: &Waker) -> bool {
        let mut follower = self.follower.lock();
        let polled = Pin::new(&mut *follower).poll(&mut Context::from_waker(waker));
        polled.is_ready()
    }
}

/// A front over a table.
#[derive(Debug)]
pub struct Reader {
    front: Front<u64, u64, 2>,
}

impl Reader {
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for models only")]
    pub fn new() -> Self {
        Self {
            front: Front::new(),
        }
    }

    pub fn get(&mut self, table: &Table) -> Option<u64> {
        let stamp = table.store.version(HASH).current();
        let now = Some(CoarseInstant::from_nanos(0));
        if let Some(at) = self.front.find(HASH, &KEY, stamp, now) {
            return self.front.value(at).copied();
        }
        let (stamp, entry) = table.store.read(HASH, None);
        let (at, _) = self.front.keep(entry?, stamp, u64::MAX);
        self.front.value(at).copied()
    }
}
