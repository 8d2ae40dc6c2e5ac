//! The settings of a cache.

use crate::CacheError;
use crate::cache::TtlCache;
use crate::error::longer_than_zero;
use crate::in_place;
use crate::policy::Policy;
use crate::removal::{Listener, Removal};
use crate::shared::{Rules, Shared};
use crate::time::{CoarseTime, Time};
use perf_atomics::DefaultHasher;
use std::any::Any;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub(crate) type Weigher<K, V> = Box<dyn Fn(&K, &V) -> u32 + Send + Sync>;
pub(crate) type Lifetime<K, V> = Box<dyn Fn(&K, &V) -> Duration + Send + Sync>;
pub(crate) type Remembers = Box<dyn Fn(&(dyn Any + Send + Sync)) -> bool + Send + Sync>;

/// A refresh as a task, for [`CacheBuilder::refresh_with_async`]. Dropped before it is ready, it leaves the stale value
/// as it is.
pub type RefreshTask = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) type Load<K, R> = Arc<dyn Fn(&K) -> R + Send + Sync>;
pub(crate) type Loading<V> = Pin<Box<dyn Future<Output = Option<V>> + Send>>;

/// How a stale value is computed anew.
pub(crate) enum Loader<K, V> {
    /// By a thread of the crate's.
    Blocking(Load<K, Option<V>>),
    /// By a task, which the closure takes.
    Task(Load<K, Loading<V>>, Box<dyn Fn(RefreshTask) + Send + Sync>),
}

/// Makes a [`TtlCache`]. What is not set costs nothing.
///
/// ```
/// use perf_cache::{Policy, TtlCache};
/// use std::time::Duration;
///
/// let cache: TtlCache<u64, String> = TtlCache::builder(64 << 20) // 64 MiB, with the weigher below
///     .ttl(Duration::from_secs(30))
///     .jitter(0.1)
///     .idle(Duration::from_secs(10))
///     .stale_while_revalidate(Duration::from_secs(30))
///     .refresh_with(|key| Some(format!("node {key}")))
///     .negative_ttl(Duration::from_secs(1))
///     .weigher(|_, text: &String| u32::try_from(text.len()).unwrap_or(u32::MAX))
///     .policy(Policy::TinyLfu)
///     .build()?;
/// assert_eq!(cache.get_or_compute(&1, || "node 1".to_owned()), "node 1");
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
#[must_use]
pub struct CacheBuilder<K, V, S = DefaultHasher, T = CoarseTime> {
    capacity: u64,
    ttl: Option<Duration>,
    idle: Option<Duration>,
    stale: Option<Duration>,
    negative_ttl: Option<Duration>,
    jitter: f64,
    has_front: Option<bool>,
    policy: Policy,
    extras: Extras<K, V>,
    loader: Option<Loader<K, V>>,
    hasher: S,
    time: T,
}

/// The user's closures that decide about entries.
pub(crate) struct Extras<K, V> {
    pub(crate) weigher: Option<Weigher<K, V>>,
    pub(crate) lifetime: Option<Lifetime<K, V>>,
    pub(crate) listener: Option<Listener<K, V>>,
    pub(crate) remembers: Option<Remembers>,
}

impl<K, V> CacheBuilder<K, V> {
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            ttl: None,
            idle: None,
            stale: None,
            negative_ttl: None,
            jitter: 0.0,
            has_front: None,
            policy: Policy::default(),
            extras: Extras {
                weigher: None,
                lifetime: None,
                listener: None,
                remembers: None,
            },
            loader: None,
            hasher: DefaultHasher::default(),
            time: CoarseTime,
        }
    }
}

impl<K, V, S, T> CacheBuilder<K, V, S, T> {
    /// Builds the cache.
    ///
    /// # Errors
    /// [`CacheError`] names the first setting that is out of its limits.
    pub fn build(self) -> Result<TtlCache<K, V, S, T>, CacheError>
    where
        K: Hash + Eq + Send + Sync + 'static,
        V: Send + Sync + 'static,
        T: Time,
    {
        let rules = self.rules()?;
        self.time.start();
        let shared = Shared::new(rules, self.extras, self.loader, self.hasher, self.time);
        Ok(TtlCache {
            shared: Arc::new(shared),
        })
    }

    /// Another time: [`PreciseTime`](crate::PreciseTime), or a [`ManualTime`](crate::ManualTime) for tests.
    pub fn time<N: Time>(self, time: N) -> CacheBuilder<K, V, S, N> {
        self.with(|hasher, _| (hasher, time))
    }

    /// Another hasher: it must spread keys over all 64 bits, as foldhash, ahash and SipHash do. Where keys come from outside,
    /// `std::hash::RandomState`.
    pub fn hasher<H>(self, hasher: H) -> CacheBuilder<K, V, H, T> {
        self.with(|_, time| (hasher, time))
    }

    fn with<H, N>(self, change: impl FnOnce(S, T) -> (H, N)) -> CacheBuilder<K, V, H, N> {
        let (hasher, time) = change(self.hasher, self.time);
        CacheBuilder {
            capacity: self.capacity,
            ttl: self.ttl,
            idle: self.idle,
            stale: self.stale,
            negative_ttl: self.negative_ttl,
            jitter: self.jitter,
            has_front: self.has_front,
            policy: self.policy,
            extras: self.extras,
            loader: self.loader,
            hasher,
            time,
        }
    }

    /// How long a value is fresh. Without it, for ever. At the end of time (584 years) it saturates. A TTL of 1000 times the clock's
    /// [`lag_max`](Time::lag_max) or more (50 s) may end a lag early, never late.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// A value that is not read for this long ends. Reads from a front count within an eighth of it: such a
    /// value may end up to an eighth early, never late.
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = Some(idle);
        self
    }

    /// Shortens each TTL by a random share of up to `share` (0.0 to 0.9), so that what was cached together does not end together.
    /// It never lengthens one.
    pub fn jitter(mut self, share: f64) -> Self {
        self.jitter = share;
        self
    }

    /// After its TTL a value is served for `window` more, while one computation replaces it.
    ///
    /// With [`refresh_with`](Self::refresh_with) the computation runs in the background and no reader waits at all. Without, one of the callers of
    /// `get_or_compute` computes it, and the others get the stale value at once.
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.stale = Some(window);
        self
    }

    /// How to compute a stale value anew, in the background; `None` keeps the stale one for now.
    ///
    /// Runs on up to four threads shared by all caches, in order of demand, with up to 1024 refreshes waiting; beyond these
    /// a value stays stale and the next reader asks again.
    pub fn refresh_with(mut self, load: impl Fn(&K) -> Option<V> + Send + Sync + 'static) -> Self {
        self.loader = Some(Loader::Blocking(Arc::new(load)));
        self
    }

    /// [`refresh_with`](Self::refresh_with) by tasks. `spawn` has its runtime run each of them; `None` keeps the stale
    /// value for now.
    ///
    /// Up to 1024 tasks of all caches are under way; beyond these a value stays stale and the next reader asks again. A
    /// task that is dropped before it is ready counts as abandoned, and is tried again as one that failed.
    ///
    /// ```
    /// use perf_cache::TtlCache;
    /// use std::time::Duration;
    ///
    /// let cache: TtlCache<u64, String> = TtlCache::builder(100)
    ///     .ttl(Duration::from_secs(30))
    ///     .stale_while_revalidate(Duration::from_secs(30))
    ///     .refresh_with_async(
    ///         |task| drop(tokio::spawn(task)),
    ///         |key| {
    ///             let key = *key;
    ///             async move { Some(format!("node {key}")) }
    ///         },
    ///     )
    ///     .build()?;
    /// # Ok::<(), perf_cache::CacheError>(())
    /// ```
    pub fn refresh_with_async<F>(
        mut self,
        spawn: impl Fn(RefreshTask) + Send + Sync + 'static,
        load: impl Fn(&K) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Option<V>> + Send + 'static,
    {
        let load = move |key: &K| Box::pin(load(key)) as Loading<V>;
        self.loader = Some(Loader::Task(Arc::new(load), Box::new(spawn)));
        self
    }

    /// The error of a failed computation is the answer for so long, without computing again. A refresh that failed is
    /// not tried again for so long (without this setting, a second).
    pub fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.negative_ttl = Some(ttl);
        self
    }

    /// Of errors of type `E` only those are remembered for the [`negative_ttl`](Self::negative_ttl) of which `remembers` says so; of other types all.
    ///
    /// ```
    /// use perf_cache::TtlCache;
    /// use std::io::{Error, ErrorKind};
    /// use std::time::Duration;
    ///
    /// let cache: TtlCache<u64, u64> = TtlCache::builder(100)
    ///     .negative_ttl(Duration::from_secs(60))
    ///     .negative_if(|error: &Error| error.kind() == ErrorKind::NotFound)
    ///     .build()?;
    /// let ask = |kind: ErrorKind| cache.try_get_or_compute(&1, || Err(Error::from(kind)));
    /// assert!(ask(ErrorKind::TimedOut).is_err()); // not remembered: the next one asks again
    /// assert_eq!(ask(ErrorKind::NotFound).unwrap_err().kind(), ErrorKind::NotFound);
    /// assert_eq!(ask(ErrorKind::TimedOut).unwrap_err().kind(), ErrorKind::NotFound);
    /// # Ok::<(), perf_cache::CacheError>(())
    /// ```
    pub fn negative_if<E: 'static>(
        mut self,
        remembers: impl Fn(&E) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.extras.remembers = Some(Box::new(move |error| {
            error.downcast_ref::<E>().is_none_or(&remembers)
        }));
        self
    }

    /// What a value weighs; the capacity is in the same unit. Zero counts as one. What is heavier than the
    /// capacity is returned and not kept. Without it each value weighs one.
    pub fn weigher(mut self, weigh: impl Fn(&K, &V) -> u32 + Send + Sync + 'static) -> Self {
        self.extras.weigher = Some(Box::new(weigh));
        self
    }

    /// The TTL of each value that is computed or inserted, chosen by `lifetime` from the key and the value, in the place of
    /// [`ttl`](Self::ttl). Jitter applies to it. A value without a TTL is given to the callers that wait for it, and not served again.
    /// [`insert_with_ttl`](TtlCache::insert_with_ttl) has its own.
    ///
    /// ```
    /// use perf_cache::TtlCache;
    /// use std::time::Duration;
    ///
    /// // The answer says how long it holds.
    /// let cache: TtlCache<u64, (u64, u64)> = TtlCache::builder(100)
    ///     .ttl_with(|_, (_, seconds)| Duration::from_secs(*seconds))
    ///     .build()?;
    /// assert_eq!(cache.get_or_compute(&1, || (7, 60)), (7, 60));
    /// assert_eq!(cache.get(&1), Some((7, 60)));
    /// cache.insert(2, (8, 0));
    /// assert_eq!(cache.get(&2), None);
    /// # Ok::<(), perf_cache::CacheError>(())
    /// ```
    pub fn ttl_with(
        mut self,
        lifetime: impl Fn(&K, &V) -> Duration + Send + Sync + 'static,
    ) -> Self {
        self.extras.lifetime = Some(Box::new(lifetime));
        self
    }

    /// Calls `listener` with each value that leaves the cache, and why; not for those left when the cache is dropped, and not for cached errors.
    ///
    /// It runs on the thread whose call took the value out, with nothing locked, so it may use the cache. That call waits for it. A panic in
    /// it goes on in that call; what else that call took out is then not reported.
    ///
    /// ```
    /// use perf_cache::{Removal, TtlCache};
    /// use std::sync::mpsc;
    ///
    /// let (sender, receiver) = mpsc::channel();
    /// let cache: TtlCache<u64, u64> = TtlCache::builder(100)
    ///     // An error says that the receiver is gone.
    ///     .on_removal(move |key, value, why| drop(sender.send((*key, *value, why))))
    ///     .build()?;
    /// cache.insert(1, 10);
    /// cache.insert(1, 11);
    /// cache.invalidate(&1);
    /// let told: Vec<_> = receiver.try_iter().collect();
    /// assert_eq!(told, [(1, 10, Removal::Replaced), (1, 11, Removal::Invalidated)]);
    /// # Ok::<(), perf_cache::CacheError>(())
    /// ```
    pub fn on_removal(
        mut self,
        listener: impl Fn(&K, &V, Removal) + Send + Sync + 'static,
    ) -> Self {
        self.extras.listener = Some(Box::new(listener));
        self
    }

    /// What is thrown out at capacity.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Whether each thread keeps [`FRONT_PLACES`](crate::FRONT_PLACES) values at hand, of a large cache
    /// [`WIDE_FRONT_PLACES`](crate::WIDE_FRONT_PLACES); yes unless said otherwise. Of values that lie in the table (see [`TtlCache`])
    /// they keep none unless this is set to `true`: then the values lie behind an `Arc`, and many threads read the same few keys without a lock.
    ///
    /// They stay in memory until the place is used otherwise or the thread ends, even after they were invalidated. So: not for values that
    /// must go when they are invalidated, such as connections.
    pub fn front(mut self, has_front: bool) -> Self {
        self.has_front = Some(has_front);
        self
    }

    fn rules(&self) -> Result<Rules, CacheError>
    where
        K: 'static,
        V: 'static,
    {
        if self.capacity == 0 {
            return Err(CacheError::ZeroCapacity);
        }
        if !(0.0..=0.9).contains(&self.jitter) {
            return Err(CacheError::Jitter {
                requested: self.jitter,
            });
        }
        let nanos = |setting, duration: Option<Duration>| {
            duration
                .map(|duration| longer_than_zero(setting, duration))
                .transpose()
                .map(|duration| duration.map(as_nanos))
        };
        Ok(Rules {
            capacity: self.capacity,
            ttl: nanos("ttl", self.ttl)?.unwrap_or(u64::MAX),
            idle: nanos("idle", self.idle)?,
            stale: nanos("stale_while_revalidate", self.stale)?.unwrap_or(0),
            negative_ttl: nanos("negative_ttl", self.negative_ttl)?,
            jitter: self.jitter,
            has_front: self.has_front.unwrap_or(true),
            policy: self.policy,
            // What lies in the table has no words for these.
            in_place: in_place::fits::<K, V>()
                && self.has_front != Some(true)
                && self.idle.is_none()
                && self.stale.is_none()
                && self.negative_ttl.is_none(),
        })
    }
}

/// 584 years fit; longer is as long.
#[inline]
pub(crate) fn as_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl<K, V, S, T> fmt::Debug for CacheBuilder<K, V, S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBuilder")
            .field("capacity", &self.capacity)
            .field("ttl", &self.ttl)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
