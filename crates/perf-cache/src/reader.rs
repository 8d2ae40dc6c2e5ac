//! A reader with a front of its own.

use crate::cache::TtlCache;
use crate::entry::Entry;
use crate::front::Front;
use crate::hash::hash_of;
use crate::local::FRONT_PLACES;
use crate::shared::Look;
use crate::stats::Count;
use crate::store::{Versions, shard_index};
use crate::time::{CoarseTime, Time};
use perf_atomics::DefaultHasher;
use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

/// Reads a cache, and keeps what it read last at hand: a hit is a reference to the value, and costs no lock, no
/// read-modify-write and no reference count.
///
/// It sees what [`TtlCache::get`] sees, invalidations and expiry included. It pins up to as many values as it has places, and keeps
/// the cache alive.
///
/// ```
/// use perf_cache::TtlCache;
///
/// let cache: TtlCache<u64, String> = TtlCache::builder(100).build()?;
/// cache.insert(7, "seven".to_owned());
///
/// let mut reader = cache.reader(); // one per task or thread
/// assert_eq!(reader.get(&7).map(String::as_str), Some("seven"));
/// cache.invalidate(&7);
/// assert_eq!(reader.get(&7), None);
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
pub struct CacheReader<K, V, S = DefaultHasher, T = CoarseTime, const N: usize = FRONT_PLACES>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher,
    T: Time,
{
    front: Front<K, V, N>,
    /// An entry of a cache whose entries lie in the table, to be filled anew: such a reader allocates nothing once its places are full.
    spare: Option<Arc<Entry<K, V>>>,
    versions: Arc<Versions>,
    hasher: S,
    time: T,
    /// Not yet told to the cache.
    hits: u64,
    cache: TtlCache<K, V, S, T>,
}

impl<K, V, S, T, const N: usize> CacheReader<K, V, S, T, N>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher,
    T: Time,
{
    pub(crate) fn new(cache: TtlCache<K, V, S, T>) -> Self
    where
        S: Clone,
        T: Clone,
    {
        Self {
            front: Front::new(),
            spare: None,
            versions: Arc::clone(cache.shared.store.versions()),
            hasher: cache.shared.hasher.clone(),
            time: cache.shared.time.clone(),
            hits: 0,
            cache,
        }
    }

    /// The value of a key; a stale one too, within its window.
    #[inline]
    pub fn get<Q>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
    {
        let hash = hash_of(&self.hasher, key);
        let shard = shard_index(hash, self.versions.len());
        let stamp = self.versions[shard].current();
        match self.front.find(hash, key, stamp, self.time.at_hand()) {
            Some(at) => {
                self.hits += 1;
                self.front.value(at)
            }
            None => self.fetch(hash, key),
        }
    }

    #[cold]
    #[inline(never)]
    fn fetch<Q>(&mut self, hash: u64, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
    {
        self.tell();
        let shared = &*self.cache.shared;
        let (stamp, look) = shared.look(hash, key, self.spare.take());
        let (entry, count) = match look {
            Look::Fresh(entry) => (entry, Count::Hits),
            Look::Stale(entry) => (entry, Count::StaleHits),
            Look::Failed(_) => {
                shared.counters.one(Count::NegativeHits);
                return None;
            }
            Look::Nothing => {
                shared.counters.one(Count::Misses);
                return None;
            }
        };
        shared.counters.one(count);
        // A stale entry is kept for this one reference; its end has come already, so no later read finds it here.
        let until = shared.safe_until(&entry);
        let (at, old) = self.front.keep(entry, stamp, until);
        if shared.rules.in_place {
            self.spare = old;
        }
        self.front.value(at)
    }

    /// The cache it reads.
    #[must_use]
    pub fn cache(&self) -> &TtlCache<K, V, S, T> {
        &self.cache
    }

    fn tell(&mut self) {
        let hits = std::mem::take(&mut self.hits);
        if hits > 0 {
            self.cache.shared.counters.add(Count::Hits, hits);
        }
    }
}

impl<K, V, S, T, const N: usize> Drop for CacheReader<K, V, S, T, N>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher,
    T: Time,
{
    fn drop(&mut self) {
        self.tell();
    }
}

impl<K, V, S, T, const N: usize> fmt::Debug for CacheReader<K, V, S, T, N>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher,
    T: Time,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheReader")
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}
