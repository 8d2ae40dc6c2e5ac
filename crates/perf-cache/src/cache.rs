//! `TtlCache`, what it holds and what it has done. Reads are in `read.rs`, changes in `write.rs`, computations in `compute.rs`.

use crate::builder::CacheBuilder;
use crate::error::CacheError;
use crate::policy::Policy;
use crate::shared::Shared;
use crate::stats::CacheStats;
use crate::store::either;
use crate::time::{CoarseTime, Time};
use perf_atomics::DefaultHasher;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

/// Values that are expensive to compute, each kept for a time to live. Clones are the same cache.
///
/// | | cost |
/// |---|---|
/// | [`CacheReader::get`](crate::CacheReader::get) of a hot key | the hash, two loads, one place of the reader's own; no lock, no read-modify-write, no reference count |
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
/// see what was there before, on any thread that has learned of the return; and a computation that began before an invalidation is not kept, though callers
/// that already waited for it get it.
///
/// **Expiry.** A value that is older than its TTL is not served, except in the window of stale-while-revalidate. This holds
/// however far the coarse clock is behind within its bound: near its end a value is judged by the exact time.
///
/// **Capacity.** It is exact: beyond it is only what other threads are inserting just now. An insertion throws out what has to go, and never
/// what it has just put in, unless moka decides (`Policy::Moka`). What fronts and readers pin comes on top.
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

impl<K, V> TtlCache<K, V> {
    /// Begins to make a cache of this capacity: so many values, or so much weight with a
    /// [`weigher`](CacheBuilder::weigher).
    pub fn builder(capacity: u64) -> CacheBuilder<K, V> {
        CacheBuilder::new(capacity)
    }
}

impl<K, V, S, T> TtlCache<K, V, S, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher,
    T: Time,
{
    /// The number of entries held: ended entries that no caller has met yet and cached errors, too.
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
