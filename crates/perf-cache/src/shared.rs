//! What all clones of a cache share: its settings, its store and its counts; and what an entry is for a reader.

use crate::builder::{Extras, Lifetime, Loader, Remembers, Weigher};
use crate::entry::{Content, Entry, Failure, Freshness, Stored};
use crate::fronts;
use crate::in_place::InPlace;
use crate::local::Life;
use crate::policy::{Chooser, Policy};
use crate::stats::{Count, Counters};
use crate::store::{Shards, Store};
use crate::time::Time;
use perf_atomics::clock::CoarseInstant;
use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// So many cached errors fill a weighed cache, whose weigher cannot be asked for them.
const FAILURES_MAX: u64 = 1 << 16;

/// A TTL of so many times the coarse clock's lag begins by that clock: the exact time costs more than the rest of an insertion's fixed costs.
const LAGS_PER_TTL: u64 = 1000;

/// The settings, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) capacity: u64,
    pub(crate) ttl: u64,
    pub(crate) idle: Option<u64>,
    pub(crate) stale: u64,
    pub(crate) negative_ttl: Option<u64>,
    pub(crate) jitter: f64,
    pub(crate) has_front: bool,
    pub(crate) policy: Policy,
    /// Whether entries lie in the table.
    pub(crate) in_place: bool,
}

pub(crate) struct Shared<K, V, S, T> {
    /// Tells this cache's fronts from others'.
    pub(crate) id: u64,
    pub(crate) life: Life,
    pub(crate) rules: Rules,
    pub(crate) has_wide_fronts: bool,
    pub(crate) store: Store<K, V>,
    pub(crate) hasher: S,
    pub(crate) time: T,
    pub(crate) counters: Counters,
    weigher: Option<Weigher<K, V>>,
    lifetime: Option<Lifetime<K, V>>,
    pub(crate) remembers: Option<Remembers>,
    pub(crate) loader: Option<Loader<K, V>>,
    next_entry: AtomicU64,
}

/// What a look into the shared table found.
pub(crate) enum Look<K, V> {
    Fresh(Arc<Entry<K, V>>),
    Stale(Arc<Entry<K, V>>),
    Failed(Failure),
    Nothing,
}

impl<K, V, S, T> Shared<K, V, S, T>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
    T: Time,
{
    pub(crate) fn new(
        rules: Rules,
        extras: Extras<K, V>,
        loader: Option<Loader<K, V>>,
        hasher: S,
        time: T,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let chooser = Chooser::new(rules.policy);
        let Extras {
            weigher,
            lifetime,
            listener,
            remembers,
        } = extras;
        let is_weighed = weigher.is_some();
        let store = Store::new(
            rules.capacity,
            is_weighed,
            chooser,
            listener,
            rules.in_place,
        );
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            life: Life::new(),
            rules,
            has_wide_fronts: fronts::is_wide(rules.capacity, weigher.is_some()),
            store,
            hasher,
            time,
            counters: Counters::new(),
            weigher,
            lifetime,
            remembers,
            loader,
            next_entry: AtomicU64::new(0),
        }
    }
}

impl<K, V, S, T: Time> Shared<K, V, S, T> {
    /// Nanoseconds by which the coarse clock may be behind.
    #[inline]
    fn lag(&self) -> u64 {
        crate::builder::as_nanos(self.time.lag_max())
    }

    pub(crate) fn precise(&self) -> u64 {
        self.time.precise().as_nanos()
    }

    /// The TTL less its jitter.
    fn jittered(&self, ttl: u64, salt: u64) -> u64 {
        if self.rules.jitter == 0.0 {
            return ttl;
        }
        // SplitMix64's finalizer (Steele, Lea, Flood, OOPSLA 2014) of a number that is never used twice.
        let number = self.next_entry.fetch_add(1, Ordering::Relaxed);
        let mut bits = (salt ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let share = (bits >> 11) as f64 / (1u64 << 53) as f64;
        ttl - (ttl as f64 * self.rules.jitter * share) as u64
    }

    /// The beginning of a TTL that is set now. A TTL of at least [`LAGS_PER_TTL`] lags begins by the coarse clock, which may be behind: it then ends
    /// early by the lag, never late. A shorter one begins by the exact time.
    fn begin_of(&self, ttl: u64) -> u64 {
        let shortest = ttl.min(self.rules.idle.unwrap_or(u64::MAX));
        let is_long = shortest / LAGS_PER_TTL >= self.lag();
        let coarse = is_long.then(|| self.time.at_hand()).flatten();
        coarse.map_or_else(|| self.precise(), CoarseInstant::as_nanos)
    }

    /// An entry of a value, weighed; not in the table yet. Without a TTL of its own it has the cache's.
    #[inline]
    pub(crate) fn entry(&self, key: K, hash: u64, value: V, ttl: Option<u64>) -> Entry<K, V> {
        let ttl = ttl.unwrap_or_else(|| match &self.lifetime {
            Some(lifetime) => crate::builder::as_nanos(lifetime(&key, &value)),
            None => self.rules.ttl,
        });
        let weight = self.weigher.as_ref().map_or(1, |weigh| weigh(&key, &value));
        // Without a TTL and an idle TTL the time says nothing.
        let is_timed = ttl != u64::MAX || self.rules.idle.is_some();
        let now = if is_timed { self.begin_of(ttl) } else { 0 };
        let (fresh_until, ends) = if ttl == 0 {
            (0, 0)
        } else {
            let fresh_until = now.saturating_add(self.jittered(ttl, hash));
            (fresh_until, fresh_until.saturating_add(self.rules.stale))
        };
        Entry {
            hash,
            key,
            content: Content::Value(value),
            weight: weight.max(1),
            fresh_until,
            ends,
            read_at: now.into(),
            retry_at: 0.into(),
        }
    }

    /// What a failure weighs: one, and of a weighed cache so much that [`FAILURES_MAX`] fill it.
    fn failure_weight(&self) -> u32 {
        let weight = self.store.capacity() / FAILURES_MAX;
        match self.weigher {
            Some(_) => u32::try_from(weight.max(1)).unwrap_or(u32::MAX),
            None => 1,
        }
    }

    /// An entry of a failure, to be remembered for `ttl`.
    pub(crate) fn failed_entry(
        &self,
        key: K,
        hash: u64,
        failure: Failure,
        ttl: u64,
    ) -> Entry<K, V> {
        let now = self.precise();
        let ends = now.saturating_add(ttl);
        Entry {
            hash,
            key,
            content: Content::Failed(failure),
            weight: self.failure_weight(),
            fresh_until: ends,
            ends,
            read_at: now.into(),
            retry_at: 0.into(),
        }
    }

    /// Whether an entry may be kept at all: it has a TTL, and is not too heavy, which is counted.
    #[inline]
    pub(crate) fn fits(&self, entry: &Entry<K, V>) -> bool {
        if entry.ends == 0 {
            return false;
        }
        let fits = u64::from(entry.weight) <= self.store.capacity();
        if !fits {
            self.counters.one(Count::Rejected);
        }
        fits
    }

    /// Whether an entry is fresh for sure, by the coarse clock. Where it says no, [`judge`](Self::judge) knows.
    #[inline]
    pub(crate) fn is_fresh(&self, entry: &impl Stored<K, V>) -> bool {
        let end = entry.fresh_until().min(entry.idle_end(self.rules.idle));
        // The time is not asked where it says nothing.
        let is_before = |now: CoarseInstant| now.as_nanos().saturating_add(self.lag()) < end;
        end == u64::MAX || self.time.at_hand().is_some_and(is_before)
    }

    /// What an entry is good for now.
    #[inline]
    pub(crate) fn judge(&self, entry: &impl Stored<K, V>) -> Freshness {
        if self.is_fresh(entry) {
            Freshness::Fresh
        } else {
            entry.freshness(self.precise(), self.rules.idle)
        }
    }

    /// Up to when on the coarse clock a front may serve an entry.
    #[inline]
    pub(crate) fn safe_until(&self, entry: &Arc<Entry<K, V>>) -> u64 {
        let mut until = entry.fresh_until;
        if let Some(idle) = self.rules.idle {
            // A front's reads reach the entry an eighth of the idle time late, at most.
            let look_again = self.time.now().as_nanos().saturating_add(idle / 8);
            until = until.min(entry.idle_end(Some(idle))).min(look_again);
        }
        until.saturating_sub(self.lag())
    }
}

impl<K, V, S, T> Shared<K, V, S, T>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
    T: Time,
{
    /// Notes that an entry was read.
    #[inline]
    pub(crate) fn touch(&self, entry: &Entry<K, V>) {
        if self.rules.idle.is_some() {
            let now = self.time.now().as_nanos();
            // A store per reading of the clock, so that readers do not write all the time.
            if entry.read_at.load(Ordering::Relaxed) < now {
                entry.read_at.store(now, Ordering::Relaxed);
            }
        }
    }

    /// What an entry of the table is for a reader of `key`.
    #[inline]
    pub(crate) fn classify<Q>(&self, entry: Arc<Entry<K, V>>, key: &Q) -> Look<K, V>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq,
    {
        if entry.key.borrow() != key {
            return Look::Nothing;
        }
        match (self.judge(&entry), &entry.content) {
            (Freshness::Ended, _) | (Freshness::Stale, Content::Failed(_)) => {
                self.store.take_ended(&entry);
                Look::Nothing
            }
            (_, Content::Failed(failure)) => Look::Failed(Arc::clone(failure)),
            (Freshness::Fresh, _) => {
                self.touch(&entry);
                Look::Fresh(entry)
            }
            (Freshness::Stale, _) => {
                self.touch(&entry);
                Look::Stale(entry)
            }
        }
    }

    /// A copy of the entry of a key that lies in the table, if it is fresh; counted. No front: a look into it would cost more.
    #[inline(always)]
    pub(crate) fn hit<Q>(
        &self,
        shards: &Shards<K, V, InPlace<K, V>>,
        hash: u64,
        key: &Q,
    ) -> Option<InPlace<K, V>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq,
    {
        let entry = shards.read(hash)?;
        if entry.key().borrow() != key {
            return None;
        }
        let is_fresh = self.is_fresh(&entry);
        if !is_fresh && !self.is_fresh_exactly(shards, hash, entry.fresh_until()) {
            return None;
        }
        self.counters.hit();
        Some(entry)
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn missed(&self) {
        self.counters.one(Count::Misses);
    }

    /// Whether an entry of the table is fresh by the exact time; it is taken out if not.
    #[cold]
    #[inline(never)]
    fn is_fresh_exactly(
        &self,
        shards: &Shards<K, V, InPlace<K, V>>,
        hash: u64,
        fresh_until: u64,
    ) -> bool {
        let is_fresh = self.precise() < fresh_until;
        if !is_fresh {
            // Of two that end at once both have ended.
            shards.drop_ended(hash, |held| held.fresh_until() == fresh_until);
        }
        is_fresh
    }

    /// Looks into the shared table, and says under which stamp a front may keep what was found. `spare` is used again if the entry lies in
    /// the table.
    #[inline]
    pub(crate) fn look<Q>(
        &self,
        hash: u64,
        key: &Q,
        spare: Option<Arc<Entry<K, V>>>,
    ) -> (u64, Look<K, V>)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq,
    {
        let (stamp, entry) = self.store.read(hash, spare);
        let look = entry.map_or(Look::Nothing, |entry| self.classify(entry, key));
        (stamp, look)
    }

    /// Puts an entry in, whatever is under way.
    #[inline]
    pub(crate) fn put(&self, entry: Entry<K, V>) {
        if self.fits(&entry) {
            self.store.put(entry);
        } else {
            // The value before it is outdated all the same.
            self.store.take(entry.hash);
        }
    }

    /// Ends a computation with an entry: kept if it may be, and given to all followers.
    #[inline]
    pub(crate) fn land(&self, number: u64, entry: Entry<K, V>) {
        let is_kept = self.fits(&entry);
        self.store.land(number, entry, is_kept);
    }
}
