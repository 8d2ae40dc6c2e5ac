//! `TtlCache`: reads, writes and upkeep. Computations are in `compute.rs`.

use crate::builder::{CacheBuilder, Extras, Lifetime, Loader, Remembers, Weigher};
use crate::entry::{Content, Entry, Failure, Freshness, Stored};
use crate::error::CacheError;
use crate::flight::Flight;
use crate::fronts;
use crate::hash::hash_of;
use crate::in_place::InPlace;
use crate::local::{self, Lease, Life};
use crate::policy::{Chooser, Policy};
use crate::reader::CacheReader;
use crate::removal::Removal;
use crate::stats::{CacheStats, Count, Counters};
use crate::store::{Shards, Store, either};
use crate::time::{CoarseTime, Time};
use perf_atomics::DefaultHasher;
use perf_atomics::clock::CoarseInstant;
use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Values that are expensive to compute, each kept for a time to live. Clones are the same cache.
///
/// | | cost |
/// |---|---|
/// | [`CacheReader::get`] of a hot key | the hash, two loads, one place of the reader's own; no lock, no read-modify-write, no reference count |
/// | [`get`](Self::get), [`with`](Self::with), small keys and values of the types below | a shared lock on one shard, two lines of memory, a copy |
/// | the same of other types, a hot key | the reader's, by way of a thread-local |
/// | one of a thousand keys of a large cache | the same, see [`WIDE_FRONT_PLACES`](crate::WIDE_FRONT_PLACES) |
/// | another key | a shared lock on one shard, three lines of memory or more, a reference count |
/// | [`insert`](Self::insert), a computed value | a lock on the shard, a slot, and at capacity some steps of the policy; now and then a shard grows |
///
/// **In place.** Entries lie in the table itself where key and value take at most 24 bytes together, both are integers, floats, `bool`, `char`, `Arc<str>`,
/// `Arc<[u8]>`, `&'static str`, `[u8; 16]`, pairs of `u64` or of `u32`, options of one, durations, instants or IP addresses, and the cache has no idle TTL, stale
/// window or negative caching, and was not told to keep a [`front`](CacheBuilder::front).
///
/// No code of yours (hashing, comparing, cloning, dropping, computing, weighing) runs under a lock or while a thread-local is borrowed. Two keys with
/// the same 64-bit hash take turns.
///
/// **Invalidation.** A read that begins after [`invalidate`](Self::invalidate), [`insert`](Self::insert) or any other change has returned does not
/// see what was there before, on any thread that has learned of the return; and a computation that began before an invalidation is not kept, though those
/// who already waited for it get it.
///
/// **Expiry.** A value that is older than its TTL is not served, except in the window of stale-while-revalidate. This holds
/// however far the coarse clock is behind within its bound: near its end a value is judged by the exact time.
///
/// **Capacity.** It is exact: beyond it is only what other threads are inserting just now. An insertion throws out what has to go, and never
/// what it has just put in. What fronts and readers pin comes on top.
///
/// ```
/// use perf_cache::TtlCache;
/// use std::time::Duration;
///
/// let cache: TtlCache<String, u64> = TtlCache::builder(10_000).ttl(Duration::from_secs(60)).build()?;
///
/// let size = cache.get_or_compute("n1", || 4096); // computed once, however many ask at once
/// assert_eq!((size, cache.get("n1")), (4096, Some(4096)));
///
/// cache.invalidate("n1");
/// assert_eq!(cache.get("n1"), None);
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
pub struct TtlCache<K, V, S = DefaultHasher, T = CoarseTime> {
    pub(crate) shared: Arc<Shared<K, V, S, T>>,
}

/// So many cached errors fill a weighed cache, whose weigher cannot be asked for them.
const FAILURES_MAX: u64 = 1 << 16;

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
    id: u64,
    life: Life,
    pub(crate) rules: Rules,
    has_wide_fronts: bool,
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

impl<K, V> TtlCache<K, V> {
    /// Begins to make a cache of this capacity: so many values, or so much weight with a
    /// [`weigher`](CacheBuilder::weigher).
    pub fn builder(capacity: u64) -> CacheBuilder<K, V> {
        CacheBuilder::new(capacity)
    }
}

impl<K, V, S, T> Shared<K, V, S, T>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
    T: Time,
{
    pub(crate) fn start(
        rules: Rules,
        extras: Extras<K, V>,
        loader: Option<Loader<K, V>>,
        hasher: S,
        time: T,
    ) -> TtlCache<K, V, S, T> {
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
        TtlCache {
            shared: Arc::new(Self {
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
            }),
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

    /// An entry of a value, weighed; not in the table yet. Without a TTL of its own it has the cache's.
    pub(crate) fn entry(&self, key: K, hash: u64, value: V, ttl: Option<u64>) -> Entry<K, V> {
        let ttl = ttl.unwrap_or_else(|| match &self.lifetime {
            Some(lifetime) => crate::builder::as_nanos(lifetime(&key, &value)),
            None => self.rules.ttl,
        });
        let weight = self.weigher.as_ref().map_or(1, |weigh| weigh(&key, &value));
        // Without a TTL and an idle TTL the time says nothing.
        let is_timed = ttl != u64::MAX || self.rules.idle.is_some();
        let now = if is_timed { self.precise() } else { 0 };
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
    fn is_fresh(&self, entry: &impl Stored<K, V>) -> bool {
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
    fn hit<Q>(
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
    fn missed(&self) {
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
    fn put(&self, entry: Entry<K, V>) {
        if self.fits(&entry) {
            self.store.put(entry);
        } else {
            // The value before it is outdated all the same.
            self.store.take(entry.hash);
        }
    }

    /// Ends a computation with an entry: kept if it may be, and given to all who wait.
    pub(crate) fn land(&self, flight: &Arc<Flight<K, V>>, entry: Entry<K, V>) {
        let is_kept = self.fits(&entry);
        self.store.land(flight, entry, is_kept);
    }
}

impl<K, V, S, T> TtlCache<K, V, S, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher,
    T: Time,
{
    /// A reader with 64 places of its own: the fastest way to read hot keys. One per task or thread.
    #[must_use]
    pub fn reader(&self) -> CacheReader<K, V, S, T>
    where
        S: Clone,
        T: Clone,
    {
        CacheReader::new(self.clone())
    }

    /// A reader that keeps `N` values at hand: a power of two from 2 to 65 536, or it does not compile.
    #[must_use]
    pub fn reader_of<const N: usize>(&self) -> CacheReader<K, V, S, T, N>
    where
        S: Clone,
        T: Clone,
    {
        CacheReader::new(self.clone())
    }

    /// A copy of the value of a key; a stale one too, within its window. For values that are dear to clone, put them in an `Arc`, or
    /// use [`with`](Self::with).
    #[inline(always)]
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
        V: Clone,
    {
        self.with(key, V::clone)
    }

    /// Runs `read` on the value of a key, without a copy of it and, for a hot key, without touching its reference count.
    #[inline(always)]
    pub fn with<Q, R>(&self, key: &Q, read: impl FnOnce(&V) -> R) -> Option<R>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
    {
        let hash = hash_of(&self.shared.hasher, key);
        let Store::InPlace(shards) = &self.shared.store else {
            return self.with_pinned(hash, key, read);
        };
        if let Some(entry) = self.shared.hit(shards, hash, key) {
            return Some(read(entry.held()));
        }
        self.shared.missed();
        None
    }

    /// The same of a cache whose slots refer to entries.
    #[inline(never)]
    fn with_pinned<Q, R>(&self, hash: u64, key: &Q, read: impl FnOnce(&V) -> R) -> Option<R>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
    {
        match self.with_fresh_pinned(hash, key, read) {
            Ok(result) => Some(result),
            Err((_, look, read)) => self.with_other(look, read),
        }
    }

    /// What a read gets that found no fresh value.
    #[cold]
    #[inline(never)]
    fn with_other<R>(&self, look: Look<K, V>, read: impl FnOnce(&V) -> R) -> Option<R> {
        let counters = &self.shared.counters;
        match look {
            Look::Stale(entry) => {
                counters.one(Count::StaleHits);
                return entry.value().map(read);
            }
            Look::Failed(_) => counters.one(Count::NegativeHits),
            Look::Fresh(_) | Look::Nothing => counters.one(Count::Misses),
        }
        None
    }

    /// Runs `read` on a fresh value, or says what else there is, with the hash. Counts hits only.
    #[inline]
    pub(crate) fn with_fresh<Q, R, F>(&self, key: &Q, read: F) -> Result<R, (u64, Look<K, V>, F)>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
        F: FnOnce(&V) -> R,
    {
        let shared = &*self.shared;
        let hash = hash_of(&shared.hasher, key);
        if let Store::InPlace(shards) = &shared.store {
            return match shared.hit(shards, hash, key) {
                Some(entry) => Ok(read(entry.held())),
                None => Err((hash, Look::Nothing, read)),
            };
        }
        self.with_fresh_pinned(hash, key, read)
    }

    /// The same of a cache whose slots refer to entries.
    #[inline]
    fn with_fresh_pinned<Q, R, F>(
        &self,
        hash: u64,
        key: &Q,
        read: F,
    ) -> Result<R, (u64, Look<K, V>, F)>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
        F: FnOnce(&V) -> R,
    {
        let shared = &*self.shared;
        if shared.rules.has_front && !local::rests(shared.id) {
            return self.with_front(hash, key, read);
        }
        let found = match &shared.store {
            Store::Pinned(shards) => shards.read(hash),
            Store::InPlace(_) => None,
        };
        let Some(entry) = found else {
            return Err((hash, Look::Nothing, read));
        };
        if entry.key.borrow() == key
            && shared.is_fresh(&entry)
            && let Some(value) = entry.value()
        {
            shared.touch(&entry);
            shared.counters.hit();
            return Ok(read(value));
        }
        self.with_doubtful(hash, entry, key, read)
    }

    /// The same of an entry that is not the key's, or not fresh for sure.
    #[cold]
    #[inline(never)]
    fn with_doubtful<Q, R, F>(
        &self,
        hash: u64,
        entry: Arc<Entry<K, V>>,
        key: &Q,
        read: F,
    ) -> Result<R, (u64, Look<K, V>, F)>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
        F: FnOnce(&V) -> R,
    {
        match self.shared.classify(entry, key) {
            // By the exact time.
            Look::Fresh(entry) => match entry.value() {
                Some(value) => {
                    self.shared.counters.one(Count::Hits);
                    Ok(read(value))
                }
                None => Err((hash, Look::Nothing, read)),
            },
            look => Err((hash, look, read)),
        }
    }

    /// The same by way of this thread's front, which is not empty-handed often enough to rest.
    #[inline(never)]
    fn with_front<Q, R, F>(&self, hash: u64, key: &Q, read: F) -> Result<R, (u64, Look<K, V>, F)>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
        F: FnOnce(&V) -> R,
    {
        let shared = &*self.shared;
        let mut lease = local::lease::<K, V>(shared.id, &shared.life);
        if let Some(fronts) = lease.as_mut().and_then(|lease| lease.fronts()) {
            let stamp = shared.store.version(hash).current();
            if let Some(value) = fronts.find(hash, key, stamp, shared.time.at_hand()) {
                shared.counters.hit();
                return Ok(read(value));
            }
        }
        self.with_fresh_shared(hash, key, read, lease)
    }

    /// The same past this thread's front, which stays out of its slot meanwhile.
    #[inline(never)]
    fn with_fresh_shared<Q, R, F>(
        &self,
        hash: u64,
        key: &Q,
        read: F,
        lease: Option<Lease<K, V>>,
    ) -> Result<R, (u64, Look<K, V>, F)>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
        F: FnOnce(&V) -> R,
    {
        let shared = &*self.shared;
        local::sweep();
        let (version, found) = shared.store.read(hash, None);
        let Some(entry) = found else {
            return Err((hash, Look::Nothing, read));
        };
        let is_fresh = entry.key.borrow() == key && shared.is_fresh(&entry);
        let Some(value) = entry.value().filter(|_| is_fresh) else {
            return self.with_doubtful(hash, entry, key, read);
        };
        shared.touch(&entry);
        shared.counters.one(Count::Hits);
        let result = read(value);
        if let Some(mut lease) = lease
            && let Some(fronts) = lease.fronts()
        {
            // Under the version that was read before the entry was fetched, whatever `read` has done meanwhile.
            let until = |entry: &Arc<Entry<K, V>>| shared.safe_until(entry);
            let unused = fronts.keep(entry, version, until, shared.has_wide_fronts);
            lease.miss(unused.has_widened);
            drop(lease);
            drop(unused);
        }
        Ok(result)
    }

    /// Whether there is a value for a key, stale ones included. Counts nothing and tells the policy nothing.
    pub fn contains<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
    {
        self.peek_with(key, |_| ()).is_some()
    }

    /// Runs `read` on the value of a key if it is served, stale ones included.
    fn peek_with<Q, R>(&self, key: &Q, read: impl FnOnce(&V) -> R) -> Option<R>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
    {
        let shared = &*self.shared;
        let hash = hash_of(&shared.hasher, key);
        either!(&shared.store, shards => {
            let entry = shards.get(hash)?;
            let is_served = entry.key().borrow() == key && shared.judge(&entry) != Freshness::Ended;
            entry.value().filter(|_| is_served).map(read)
        })
    }

    /// A copy of the value of a key, as [`get`](Self::get) has it, but counted nowhere: neither the statistics, nor the policy, nor the idle TTL
    /// learn of it.
    pub fn peek<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
        V: Clone,
    {
        self.peek_with(key, V::clone)
    }

    /// Runs `visit` on every key and value that is served at the time of its visit, stale ones included, in no order. Counts nothing.
    ///
    /// Entries are taken from the cache 256 at a time, and each portion is as it was at one moment: what is inserted meanwhile may be missed, and
    /// what is invalidated meanwhile may still be visited. No entry is visited twice; a key is if it goes and comes again
    /// meanwhile. Nothing is locked while `visit` runs. Pins a portion at a time.
    pub fn for_each(&self, mut visit: impl FnMut(&K, &V)) {
        let shared = &*self.shared;
        either!(&shared.store, shards => shards.each(false, |_, entry| {
            if shared.judge(&entry) != Freshness::Ended
                && let Some(value) = entry.value()
            {
                visit(entry.key(), value);
            }
        }));
    }

    /// Puts a value in, in the place of what was there. A computation under way for the key is not kept when it ends.
    pub fn insert(&self, key: K, value: V) {
        self.insert_nanos(key, value, None);
    }

    /// The same with a TTL of its own. A TTL of zero invalidates the key.
    pub fn insert_with_ttl(&self, key: K, value: V, ttl: Duration) {
        if ttl.is_zero() {
            self.invalidate(&key);
        } else {
            self.insert_nanos(key, value, Some(crate::builder::as_nanos(ttl)));
        }
    }

    fn insert_nanos(&self, key: K, value: V, ttl: Option<u64>) {
        let hash = hash_of(&self.shared.hasher, &key);
        self.shared.put(self.shared.entry(key, hash, value, ttl));
    }

    /// Puts what `change` makes of the value of a key in its place, with a TTL that begins anew; `None` takes it out. Returns whether there
    /// was a value; without one `change` is not called.
    ///
    /// Nothing is locked while `change` runs. If the entry was replaced meanwhile, it runs again on the new value, so no write of another
    /// thread is lost. A computation under way for the key is not kept when it ends.
    ///
    /// ```
    /// use perf_cache::TtlCache;
    ///
    /// let cache: TtlCache<String, u64> = TtlCache::builder(100).build()?;
    /// cache.insert("reads".to_owned(), 1);
    /// assert!(cache.update("reads", |reads| Some(reads + 1)));
    /// assert_eq!(cache.get("reads"), Some(2));
    /// assert!(!cache.update("writes", |writes| Some(writes + 1)));
    /// # Ok::<(), perf_cache::CacheError>(())
    /// ```
    pub fn update<Q>(&self, key: &Q, mut change: impl FnMut(&V) -> Option<V>) -> bool
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + ToOwned<Owned = K>,
    {
        let shared = &*self.shared;
        let hash = hash_of(&shared.hasher, key);
        either!(&shared.store, shards => loop {
            let held = shards.get(hash).filter(|held| held.key().borrow() == key);
            let Some(held) = held.filter(|held| shared.judge(held) != Freshness::Ended) else {
                return false;
            };
            let Some(value) = held.value() else {
                return false;
            };
            let entry = change(value).map(|value| shared.entry(key.to_owned(), hash, value, None));
            let why = if entry.is_some() { Removal::Replaced } else { Removal::Invalidated };
            match entry.filter(|entry| shared.fits(entry)) {
                Some(entry) => {
                    if shards.put_if(entry, |now| now.is_some_and(|now| now.is(&held))) {
                        return true;
                    }
                }
                None => {
                    // What cannot be kept leaves nothing in its place.
                    let taken = shards.take(hash, |now| now.is(&held));
                    if taken.is_some() {
                        shards.tell(taken, why);
                        return true;
                    }
                }
            }
        })
    }

    /// Takes a key out. Returns whether there was an entry, be it a value or a cached error. A computation under way for the key is not
    /// kept when it ends.
    pub fn invalidate<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
    {
        let hash = hash_of(&self.shared.hasher, key);
        either!(&self.shared.store, shards => invalidate(shards, hash, key, |_| true))
    }

    /// Takes a key out if `matches` says so of its value. A computation under way for the key is not kept either way.
    pub fn invalidate_if<Q>(&self, key: &Q, matches: impl Fn(&V) -> bool) -> bool
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
    {
        let hash = hash_of(&self.shared.hasher, key);
        let matches = |value: Option<&V>| value.is_some_and(&matches);
        either!(&self.shared.store, shards => invalidate(shards, hash, key, matches))
    }

    /// Takes out every value for which `matches` says so, and returns how many. Linear in the number of entries. What is inserted meanwhile may be
    /// missed. No computation that is under way is kept when it ends, since its value cannot be asked yet.
    pub fn invalidate_where(&self, mut matches: impl FnMut(&K, &V) -> bool) -> usize {
        let mut count = 0;
        either!(&self.shared.store, shards => shards.each(true, |hash, entry| {
            let is_match = entry.value().is_some_and(|value| matches(entry.key(), value));
            if is_match && let Some(taken) = shards.take(hash, |held| held.is(&entry)) {
                shards.tell(Some(taken), Removal::Invalidated);
                count += 1;
            }
        }));
        count
    }

    /// Takes out what has ended, and returns how many. Linear in the number of entries. [`CacheManager`](crate::CacheManager) does it in the background.
    pub fn cleanup_expired(&self) -> usize {
        let shared = &*self.shared;
        let now = shared.precise();
        let idle = shared.rules.idle;
        let mut count = 0;
        either!(&shared.store, shards => shards.each(false, |hash, entry| {
            if entry.freshness(now, idle) == Freshness::Ended {
                count += usize::from(shards.drop_ended(hash, |held| held.is(&entry)));
            }
        }));
        count
    }

    /// Takes everything out. Computations under way are not kept when they end.
    pub fn clear(&self) {
        either!(&self.shared.store, shards => {
            for entry in (0..shards.count()).flat_map(|index| shards.drain(index)) {
                shards.tell(Some(entry), Removal::Invalidated);
            }
        });
    }

    /// How many entries are held: also ended ones that nobody has met yet, and cached errors.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.shared.store.len()
    }

    /// Whether no entry is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the entries held weigh.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.shared.store.weight()
    }

    /// The capacity.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.shared.store.capacity()
    }

    /// Changes the capacity. What is beyond a smaller one is thrown out before this returns, from all shards alike; other callers are held up
    /// for a few entries at a time. The number of shards stays what it was, and the memory of free slots is kept until [`clear`](Self::clear).
    ///
    /// # Errors
    /// [`CacheError::ZeroCapacity`] if it is zero.
    pub fn set_capacity(&self, capacity: u64) -> Result<(), CacheError> {
        if capacity == 0 {
            return Err(CacheError::ZeroCapacity);
        }
        either!(&self.shared.store, shards => shards.resize(capacity));
        Ok(())
    }

    /// The policy in force: of an adaptive cache the one chosen last.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.shared.store.chooser().policy()
    }

    /// What the cache has done so far. One load per thread and count.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            evictions: self.shared.store.evictions(),
            policy_switches: self.shared.store.chooser().switches(),
            len: self.len(),
            weight: self.weight(),
            ..self.shared.counters.read()
        }
    }
}

impl<K, V, S, T> Extend<(K, V)> for TtlCache<K, V, S, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher,
    T: Time,
{
    /// Inserts one after the other.
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, values: I) {
        for (key, value) in values {
            self.insert(key, value);
        }
    }
}

impl<K, V> FromIterator<(K, V)> for TtlCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// A cache without a TTL, with a capacity of as many entries as there are, at least one. For other settings make it by
    /// [`builder`](TtlCache::builder), and `extend` it.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(values: I) -> Self {
        let values: Vec<(K, V)> = values.into_iter().collect();
        let builder = Self::builder(values.len().max(1) as u64);
        let mut cache = builder.build().expect("a capacity is all that is set");
        cache.extend(values);
        cache
    }
}

impl<K, V, S, T> Clone for TtlCache<K, V, S, T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<K, V, S, T> fmt::Debug for TtlCache<K, V, S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TtlCache")
            .field("capacity", &self.shared.store.capacity())
            .field("len", &self.shared.store.len())
            .finish_non_exhaustive()
    }
}

/// Takes the entry of a key out if `matches` says so of its value.
fn invalidate<K, V, Q, P>(
    shards: &Shards<K, V, P>,
    hash: u64,
    key: &Q,
    matches: impl Fn(Option<&V>) -> bool,
) -> bool
where
    K: Borrow<Q> + 'static,
    V: 'static,
    Q: ?Sized + Eq,
    P: Stored<K, V>,
{
    loop {
        // Compared outside of the lock; if the entry was replaced meanwhile, the new one is looked at.
        let held = shards.get(hash);
        let ours = held.filter(|entry| entry.key().borrow() == key && matches(entry.value()));
        let taken = shards.take(hash, |held| ours.as_ref().is_some_and(|ours| ours.is(held)));
        match (ours, taken) {
            (Some(_), None) => {}
            (None, _) => return false,
            (Some(_), Some(taken)) => {
                shards.tell(Some(taken), Removal::Invalidated);
                return true;
            }
        }
    }
}
