//! What is thrown out at capacity: moka decides, over hashes and weights; the values are in our shards.
//!
//! moka holds a token per entry and no value, so none of the user's code runs under its locks. What moka throws out, its listener takes out
//! of the table. Reads tell moka once per tick of their shard (`shard.rs`): without new entries there is nothing to decide, and no
//! tick. Table and tokens are kept in step by [`sync`]: change the table, then write the token that the table calls for,
//! and look again; the last to change the table also is the last to write the token.

use crate::entry::Entry;
use crate::primitive::mutant;
use crate::shadow::Shadow;
use crate::shard::{PassBuild, Store, Token};
use arc_swap::ArcSwap;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is thrown out when a cache is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Policy {
    /// Whichever of the two would have had more hits of late: a sample of the keys is run through both. The default.
    #[default]
    Adaptive,
    /// moka's TinyLFU: what is read more often than what it would replace is kept. Best where frequency tells, and under scans.
    TinyLfu,
    /// The least recently read goes. Best where what was just read is read again.
    Lru,
}

/// The two that moka has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    TinyLfu,
    Lru,
}

impl Kind {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::TinyLfu => Self::Lru,
            Self::Lru => Self::TinyLfu,
        }
    }
}

/// How much a moka holds: entries, or weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    pub(crate) units: u64,
    pub(crate) is_weighed: bool,
}

/// Weights by hash.
pub(crate) type Tokens = Cache<u64, u32, PassBuild>;

/// A moka of one policy.
pub(crate) fn tokens(
    kind: Kind,
    capacity: Capacity,
    listener: Option<Box<dyn Fn(u64) + Send + Sync>>,
) -> Tokens {
    let policy = match kind {
        Kind::TinyLfu => EvictionPolicy::tiny_lfu(),
        Kind::Lru => EvictionPolicy::lru(),
    };
    let mut builder = Cache::builder()
        .max_capacity(capacity.units)
        .eviction_policy(policy);
    // Only where it is needed: with a weigher moka sizes its frequency sketch by the entries it has when it is half full, a
    // quarter of what it takes otherwise, and forgets four times as fast: 4 points on Zipf's loads.
    if capacity.is_weighed {
        builder = builder.weigher(|_, weight| *weight);
    }
    if let Some(listener) = listener {
        builder = builder.eviction_listener(move |hash: Arc<u64>, _, cause| {
            if cause == RemovalCause::Size {
                listener(*hash);
            }
        });
    }
    builder.build_with_hasher(PassBuild::default())
}

/// One moka in the row of those that a cache has had.
struct Generation {
    kind: Kind,
    tokens: Tokens,
}

/// The policy of one cache.
pub(crate) struct Evictor<K, V> {
    store: Arc<Store<K, V>>,
    capacity: Capacity,
    /// Reads are told from this weight on: three quarters of the capacity.
    told_from: u64,
    current: ArcSwap<Generation>,
    /// The number of the current generation; what others throw out does not count.
    number: Arc<AtomicU64>,
    /// Made when the cache is half full for the first time: well before anything is thrown out.
    shadow: Option<Mutex<Option<Shadow>>>,
    switching: Mutex<()>,
    switches: AtomicU64,
}

impl<K, V> Evictor<K, V>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    pub(crate) fn new(store: Arc<Store<K, V>>, capacity: Capacity, policy: Policy) -> Self {
        let kind = match policy {
            Policy::Lru => Kind::Lru,
            Policy::TinyLfu | Policy::Adaptive => Kind::TinyLfu,
        };
        let number = Arc::new(AtomicU64::new(0));
        let first = Self::generation(&store, capacity, &number, 0, kind);
        Self {
            store,
            capacity,
            told_from: capacity.units - capacity.units / 4,
            current: ArcSwap::from_pointee(first),
            number,
            shadow: (policy == Policy::Adaptive).then(Mutex::default),
            switching: Mutex::new(()),
            switches: AtomicU64::new(0),
        }
    }

    fn generation(
        store: &Arc<Store<K, V>>,
        capacity: Capacity,
        number: &Arc<AtomicU64>,
        own: u64,
        kind: Kind,
    ) -> Generation {
        let (store, number) = (Arc::clone(store), Arc::clone(number));
        let listener = move |hash| {
            if number.load(Ordering::Acquire) == own {
                store.evict(hash);
            }
        };
        Generation {
            kind,
            tokens: tokens(kind, capacity, Some(Box::new(listener))),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.current.load().kind
    }

    pub(crate) fn switches(&self) -> u64 {
        self.switches.load(Ordering::Relaxed)
    }

    /// Whether the cache is so full that the policy must know of reads.
    #[inline]
    pub(crate) fn is_filling(&self) -> bool {
        self.store.weight() >= self.told_from
    }

    /// An entry was read for the first time in this tick.
    #[cold]
    pub(crate) fn read(&self, entry: &Entry<K, V>) {
        self.current.load().tokens.get(&entry.hash);
        self.sample(entry.hash, entry.weight);
        self.store.bury();
    }

    /// An entry was put in.
    pub(crate) fn wrote(&self, hash: u64, weight: u32) {
        // A look-up first: it is what tells TinyLFU of the miss.
        self.current.load().tokens.get(&hash);
        self.sync(hash);
        self.sample(hash, weight);
        if self.store.weight() > self.weight_max() {
            // A policy that is just taking over does not know of all entries yet, and the one before it has no say.
            let _settled = self.switching.lock();
            self.current.load().tokens.run_pending_tasks();
        }
        self.store.bury();
    }

    /// An entry was taken out.
    pub(crate) fn took(&self, hash: u64) {
        self.sync(hash);
        self.store.bury();
    }

    /// moka throws out in batches. Beyond this much it is made to do it now.
    fn weight_max(&self) -> u64 {
        self.capacity
            .units
            .saturating_add(self.capacity.units / 32 + 16)
    }

    /// Throws out what is beyond the capacity.
    pub(crate) fn settle(&self) {
        self.current.load().tokens.run_pending_tasks();
        self.store.bury();
    }

    fn sync(&self, hash: u64) {
        loop {
            let generation = self.current.load_full();
            sync(&self.store, &generation.tokens, hash);
            if Arc::ptr_eq(&generation, &self.current.load()) {
                return;
            }
        }
    }

    /// Shows a sampled access to both policies, and changes to the better one when it is clear which that is.
    fn sample(&self, hash: u64, weight: u32) {
        let Some(shadow) = &self.shadow else {
            return;
        };
        let better = {
            // A sample more or less decides nothing, so nobody waits for it.
            let Some(mut shadow) = shadow.try_lock() else {
                return;
            };
            if shadow.is_none() {
                let weight = self.store.weight().max(1);
                if weight < self.capacity.units / 2 {
                    return;
                }
                let fullness = weight as f64 / self.capacity.units as f64;
                let entries = (self.store.len() as f64 / fullness) as u64;
                *shadow = Some(Shadow::new(self.capacity, entries, self.kind()));
            }
            shadow
                .as_mut()
                .and_then(|shadow| shadow.access(hash, weight))
        };
        if let Some(kind) = better {
            self.switch(kind);
        }
    }

    /// Changes the policy. Linear in the number of entries.
    fn switch(&self, kind: Kind) {
        let _alone = self.switching.lock();
        if self.kind() == kind {
            return;
        }
        let own = self.number.load(Ordering::Relaxed) + 1;
        let next = Self::generation(&self.store, self.capacity, &self.number, own, kind);
        let next = Arc::new(next);
        // From here on the old generation throws nothing out, and whoever changes the table writes to the new one.
        self.number.store(own, Ordering::Release);
        self.current.store(Arc::clone(&next));
        let mut all = Vec::new();
        for shard in 0..self.store.shard_count() {
            for entry in self.store.entries(shard) {
                all.push((entry.tick.load(Ordering::Relaxed), entry.id, entry.hash));
            }
        }
        // The least recently read first, so that the new policy knows their order.
        all.sort_unstable();
        for (_, _, hash) in all {
            self.sync(hash);
        }
        self.switches.fetch_add(1, Ordering::Relaxed);
    }
}

/// What holds a token per hash: moka, or in models something that loom sees into.
pub(crate) trait TokenStore {
    fn write(&self, hash: u64, weight: u32);
    fn remove(&self, hash: u64);
}

impl TokenStore for Tokens {
    fn write(&self, hash: u64, weight: u32) {
        self.insert(hash, weight);
    }

    fn remove(&self, hash: u64) {
        self.invalidate(&hash);
    }
}

/// Brings the token of a hash in step with the table, after the table was changed.
pub(crate) fn sync<K, V>(store: &Store<K, V>, tokens: &impl TokenStore, hash: u64) {
    let mut wanted = store.token(hash);
    loop {
        match wanted {
            Some(Token { weight, .. }) => tokens.write(hash, weight),
            None => tokens.remove(hash),
        }
        let now = store.token(hash);
        if now == wanted || mutant::is("token_without_second_look") {
            return;
        }
        wanted = now;
    }
}

impl<K, V> fmt::Debug for Evictor<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evictor")
            .field("capacity", &self.capacity.units)
            .field("kind", &self.current.load().kind)
            .finish_non_exhaustive()
    }
}
