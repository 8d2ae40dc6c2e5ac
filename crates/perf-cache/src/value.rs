//! One expensive value.

use crate::builder::{CacheBuilder, RefreshTask};
use crate::cache::TtlCache;
use crate::entry::Entry;
use crate::error::CacheError;
use crate::hash::{PassBuild, spread};
use crate::policy::Policy;
use crate::shared::Look;
use crate::stats::{CacheStats, Count};
use crate::store::Versions;
use crate::time::{CoarseTime, Time};
use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// The one key. Its hash is a constant, so that the compiler knows the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Only;

/// What it hashes to, and what its cache makes of that.
const WRITTEN: u64 = 0;
const HASH: u64 = spread(WRITTEN);

impl Hash for Only {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(WRITTEN);
    }
}

/// One value that is expensive to compute and read all the time, such as a cluster's summary. Clones are the same value.
///
/// A [`TtlCache`] of one key: single-flight, stale-while-revalidate, negative caching and expiry are the same. [`ValueReader::get`] is two
/// loads and their comparisons.
///
/// ```
/// use perf_cache::CachedValue;
/// use std::time::Duration;
///
/// let summary = CachedValue::<u64>::new(Duration::from_secs(5))?;
/// assert_eq!(summary.get_or_compute(|| 42), 42);
///
/// let mut reader = summary.reader(); // one per task or thread
/// assert_eq!(reader.get(), Some(&42));
/// summary.invalidate();
/// assert_eq!(reader.get(), None);
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
pub struct CachedValue<V, T = CoarseTime> {
    cache: TtlCache<Only, V, PassBuild, T>,
}

/// Makes a [`CachedValue`] with more than a TTL.
///
/// ```
/// use perf_cache::CachedValue;
/// use std::time::Duration;
///
/// let summary: CachedValue<String> = CachedValue::<String>::builder()
///     .ttl(Duration::from_secs(5))
///     .stale_while_revalidate(Duration::from_secs(60))
///     .refresh_with(|| Some("computed in the background".to_owned()))
///     .build()?;
/// assert!(summary.get().is_none());
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
#[must_use]
pub struct ValueBuilder<V, T = CoarseTime> {
    builder: CacheBuilder<Only, V, PassBuild, T>,
}

impl<V: Send + Sync + 'static> CachedValue<V> {
    /// A value that is fresh for `ttl`.
    ///
    /// # Errors
    /// [`CacheError::ZeroDuration`] if `ttl` is zero.
    pub fn new(ttl: Duration) -> Result<Self, CacheError> {
        Self::builder().ttl(ttl).build()
    }

    /// Begins to make a value.
    pub fn builder() -> ValueBuilder<V> {
        ValueBuilder {
            builder: CacheBuilder::new(1)
                .policy(Policy::Lru)
                .hasher(PassBuild::default()),
        }
    }
}

impl<V, T> ValueBuilder<V, T> {
    /// Builds the value's place.
    ///
    /// # Errors
    /// [`CacheError`] names the first setting that is out of its limits.
    pub fn build(self) -> Result<CachedValue<V, T>, CacheError>
    where
        V: Send + Sync + 'static,
        T: Time,
    {
        Ok(CachedValue {
            cache: self.builder.build()?,
        })
    }

    fn with<N>(
        self,
        change: impl FnOnce(CacheBuilder<Only, V, PassBuild, T>) -> CacheBuilder<Only, V, PassBuild, N>,
    ) -> ValueBuilder<V, N> {
        ValueBuilder {
            builder: change(self.builder),
        }
    }

    /// How long it is fresh; without it, for ever.
    pub fn ttl(self, ttl: Duration) -> Self {
        self.with(|builder| builder.ttl(ttl))
    }

    /// Shortens each TTL by a random share of up to `share`, 0.0 to 0.9, so that many nodes do not compute at once.
    pub fn jitter(self, share: f64) -> Self {
        self.with(|builder| builder.jitter(share))
    }

    /// See [`CacheBuilder::stale_while_revalidate`].
    pub fn stale_while_revalidate(self, window: Duration) -> Self {
        self.with(|builder| builder.stale_while_revalidate(window))
    }

    /// See [`CacheBuilder::refresh_with`].
    pub fn refresh_with(self, load: impl Fn() -> Option<V> + Send + Sync + 'static) -> Self {
        self.with(|builder| builder.refresh_with(move |_| load()))
    }

    /// See [`CacheBuilder::refresh_with_async`].
    pub fn refresh_with_async<F>(
        self,
        spawn: impl Fn(RefreshTask) + Send + Sync + 'static,
        load: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Option<V>> + Send + 'static,
    {
        self.with(|builder| builder.refresh_with_async(spawn, move |_| load()))
    }

    /// See [`CacheBuilder::negative_ttl`].
    pub fn negative_ttl(self, ttl: Duration) -> Self {
        self.with(|builder| builder.negative_ttl(ttl))
    }

    /// Whether each thread keeps the value at hand. See [`CacheBuilder::front`].
    pub fn front(self, has_front: bool) -> Self {
        self.with(|builder| builder.front(has_front))
    }

    /// Another time. See [`CacheBuilder::time`].
    pub fn time<N: Time>(self, time: N) -> ValueBuilder<V, N> {
        self.with(|builder| builder.time(time))
    }
}

impl<V: Send + Sync + 'static, T: Time> CachedValue<V, T> {
    /// A reader: the fastest way to read. One per task or thread. It pins one value.
    #[must_use]
    pub fn reader(&self) -> ValueReader<V, T>
    where
        T: Clone,
    {
        ValueReader {
            stamp: u64::MAX,
            safe_until: 0,
            entry: None,
            versions: Arc::clone(self.cache.shared.store.versions()),
            time: self.cache.shared.time.clone(),
            hits: 0,
            cache: self.cache.clone(),
        }
    }

    /// A copy of the value, if there is one; a stale one too, within its window.
    #[must_use]
    pub fn get(&self) -> Option<V>
    where
        V: Clone,
    {
        self.cache.get(&Only)
    }

    /// Runs `read` on the value, without a copy.
    pub fn with<R>(&self, read: impl FnOnce(&V) -> R) -> Option<R> {
        self.cache.with(&Only, read)
    }

    /// Puts a value in.
    pub fn set(&self, value: V) {
        self.cache.insert(Only, value);
    }

    /// Takes the value out. Returns whether there was one, or a cached error.
    pub fn invalidate(&self) -> bool {
        self.cache.invalidate(&Only)
    }

    /// Takes out a value that has ended; returns whether there was one.
    pub fn cleanup_expired(&self) -> bool {
        self.cache.cleanup_expired() > 0
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.cache.stats()
    }
}

impl<V: Clone + Send + Sync + 'static, T: Time> CachedValue<V, T> {
    /// The value; computed if there is none, once for all callers that ask meanwhile. See [`TtlCache::get_or_compute`].
    pub fn get_or_compute(&self, compute: impl FnOnce() -> V) -> V {
        self.cache.get_or_compute(&Only, compute)
    }

    /// See [`TtlCache::try_get_or_compute`].
    ///
    /// # Errors
    /// What `compute` returned.
    pub fn try_get_or_compute<E: Send + Sync + 'static>(
        &self,
        compute: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, Arc<E>> {
        self.cache.try_get_or_compute(&Only, compute)
    }

    /// See [`TtlCache::get_or_compute_async`].
    pub async fn get_or_compute_async<F: Future<Output = V>>(
        &self,
        compute: impl FnOnce() -> F,
    ) -> V {
        self.cache.get_or_compute_async(&Only, compute).await
    }

    /// See [`TtlCache::try_get_or_compute_async`].
    ///
    /// # Errors
    /// What `compute` returned.
    pub async fn try_get_or_compute_async<E, F>(
        &self,
        compute: impl FnOnce() -> F,
    ) -> Result<V, Arc<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<V, E>>,
    {
        self.cache.try_get_or_compute_async(&Only, compute).await
    }
}

impl<V, T> Clone for CachedValue<V, T> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
        }
    }
}

impl<V, T> fmt::Debug for CachedValue<V, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedValue").finish_non_exhaustive()
    }
}

impl<V, T> fmt::Debug for ValueBuilder<V, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueBuilder").finish_non_exhaustive()
    }
}

impl<V: Send + Sync + 'static, T: Time> crate::manager::Managed for CachedValue<V, T> {
    fn cleanup_expired(&self) -> usize {
        self.cache.cleanup_expired()
    }

    fn clear(&self) {
        self.cache.clear();
    }

    fn stats(&self) -> CacheStats {
        self.cache.stats()
    }

    fn watch(&self) -> crate::manager::Watched {
        crate::manager::Managed::watch(&self.cache)
    }
}

/// Reads a [`CachedValue`], and keeps it at hand: a read is the load of a stamp and one of the clock.
pub struct ValueReader<V: Send + Sync + 'static, T: Time = CoarseTime> {
    stamp: u64,
    safe_until: u64,
    entry: Option<Arc<Entry<Only, V>>>,
    versions: Arc<Versions>,
    time: T,
    /// Not yet told to the cache.
    hits: u64,
    cache: TtlCache<Only, V, PassBuild, T>,
}

impl<V: Send + Sync + 'static, T: Time> ValueReader<V, T> {
    /// The value, if there is one; a stale one too, within its window.
    #[inline]
    pub fn get(&mut self) -> Option<&V> {
        let is_current = self.versions[0].current() == self.stamp
            && self
                .time
                .at_hand()
                .is_some_and(|now| now.as_nanos() < self.safe_until);
        if is_current {
            self.hits += 1;
            return self.entry.as_ref()?.value();
        }
        self.fetch()
    }

    #[cold]
    #[inline(never)]
    fn fetch(&mut self) -> Option<&V> {
        self.tell();
        let shared = &*self.cache.shared;
        let spare = self.entry.take();
        let (stamp, look) = shared.look(HASH, &Only, spare);
        let (entry, count) = match look {
            Look::Fresh(entry) => (Some(entry), Count::Hits),
            Look::Stale(entry) => (Some(entry), Count::StaleHits),
            Look::Failed(_) => (None, Count::NegativeHits),
            Look::Nothing => (None, Count::Misses),
        };
        shared.counters.one(count);
        self.safe_until = entry.as_ref().map_or(0, |entry| shared.safe_until(entry));
        self.stamp = stamp;
        self.entry = entry;
        self.entry.as_ref()?.value()
    }

    fn tell(&mut self) {
        let hits = std::mem::take(&mut self.hits);
        if hits > 0 {
            self.cache.shared.counters.add(Count::Hits, hits);
        }
    }
}

impl<V: Send + Sync + 'static, T: Time> Drop for ValueReader<V, T> {
    fn drop(&mut self) {
        self.tell();
    }
}

impl<V: Send + Sync + 'static, T: Time> fmt::Debug for ValueReader<V, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueReader").finish_non_exhaustive()
    }
}
