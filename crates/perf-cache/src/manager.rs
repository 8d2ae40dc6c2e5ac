//! Looks after caches: cleans up in the background, clears, and reports.

use crate::cache::TtlCache;
use crate::error::{CacheError, longer_than_zero};
use crate::stats::CacheStats;
use crate::time::Time;
use parking_lot::{Condvar, Mutex};
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, LazyLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// How many caches a manager takes.
pub const CACHES_MAX: usize = 1024;

/// What a [`CacheManager`] can look after.
pub trait Managed: Send + Sync {
    /// Takes out what has ended, and returns how many.
    fn cleanup_expired(&self) -> usize;

    /// Takes everything out.
    fn clear(&self);

    /// What the cache has done so far.
    fn stats(&self) -> CacheStats;
}

impl<K, V, S, T> Managed for TtlCache<K, V, S, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher + Send + Sync,
    T: Time,
{
    fn cleanup_expired(&self) -> usize {
        TtlCache::cleanup_expired(self)
    }

    fn clear(&self) {
        TtlCache::clear(self);
    }

    fn stats(&self) -> CacheStats {
        TtlCache::stats(self)
    }
}

struct Registered {
    name: String,
    cache: Weak<dyn Managed>,
}

#[derive(Default)]
struct Inner {
    caches: Mutex<Vec<Registered>>,
    is_started: Mutex<bool>,
}

/// A register of caches. Clones are the same register; it does not keep caches alive.
///
/// ```
/// use perf_cache::{CacheManager, TtlCache};
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// let cache: Arc<TtlCache<u64, String>> = Arc::new(TtlCache::builder(100).build()?);
/// let manager = CacheManager::new(); // or CacheManager::global()
/// manager.register("sessions", &cache)?;
///
/// let cleanup = manager.start(Duration::from_secs(30))?; // until it is dropped
/// cache.insert(1, "one".to_owned());
/// assert_eq!(manager.stats()[0].1.len, 1);
/// manager.clear_all();
/// assert!(cache.is_empty());
/// # drop(cleanup);
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
#[derive(Clone, Default)]
pub struct CacheManager {
    inner: Arc<Inner>,
}

impl CacheManager {
    /// An empty register.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The register of the whole process.
    #[must_use]
    pub fn global() -> &'static Self {
        static GLOBAL: LazyLock<CacheManager> = LazyLock::new(CacheManager::new);
        &GLOBAL
    }

    /// Looks after a cache from now on, until it is dropped. Names need not differ.
    ///
    /// # Errors
    /// [`CacheError::TooManyCaches`] if there are [`CACHES_MAX`] that are alive.
    pub fn register<C: Managed + 'static>(
        &self,
        name: impl Into<String>,
        cache: &Arc<C>,
    ) -> Result<(), CacheError> {
        let name = name.into();
        let cache: Arc<dyn Managed> = Arc::<C>::clone(cache);
        let mut caches = self.inner.caches.lock();
        caches.retain(|registered| registered.cache.strong_count() > 0);
        if caches.len() >= CACHES_MAX {
            return Err(CacheError::TooManyCaches {
                caches_max: CACHES_MAX,
            });
        }
        caches.push(Registered {
            name,
            cache: Arc::downgrade(&cache),
        });
        Ok(())
    }

    /// The caches alive, in the order in which they came. The lock is not held while they are used.
    fn alive(&self) -> Vec<(String, Arc<dyn Managed>)> {
        let caches = self.inner.caches.lock();
        let alive = |registered: &Registered| {
            let cache = registered.cache.upgrade()?;
            Some((registered.name.clone(), cache))
        };
        caches.iter().filter_map(alive).collect()
    }

    /// Cleans all caches up, and returns how many entries went.
    pub fn cleanup_expired(&self) -> usize {
        self.alive()
            .into_iter()
            .map(|(_, cache)| cache.cleanup_expired())
            .sum()
    }

    /// Takes everything out of all caches.
    pub fn clear_all(&self) {
        for (_, cache) in self.alive() {
            cache.clear();
        }
    }

    /// Names and statistics of all caches.
    #[must_use]
    pub fn stats(&self) -> Vec<(String, CacheStats)> {
        self.alive()
            .into_iter()
            .map(|(name, cache)| (name, cache.stats()))
            .collect()
    }

    /// Cleans up every `interval`, in a thread of its own, until what is returned is dropped. With the feature `metrics`,
    /// see also `CacheMetrics`.
    ///
    /// # Errors
    /// [`CacheError`] if the interval is zero, if it was started already, or if the system gives no thread.
    pub fn start(&self, interval: Duration) -> Result<CleanupTask, CacheError> {
        self.start_with(interval, |_| ())
    }

    /// The same, and calls `after` with the manager after each cleanup: to publish statistics, say.
    ///
    /// # Errors
    /// As those of [`start`](Self::start).
    pub fn start_with(
        &self,
        interval: Duration,
        mut after: impl FnMut(&Self) + Send + 'static,
    ) -> Result<CleanupTask, CacheError> {
        let interval = longer_than_zero("interval", interval)?;
        let claim = self.claim()?;
        let signal = Arc::new((Mutex::new(false), Condvar::new()));
        let manager = self.clone();
        let run = {
            let signal = Arc::clone(&signal);
            move || {
                let (is_stopping, woken) = &*signal;
                let mut stop = is_stopping.lock();
                while !*stop {
                    if woken.wait_for(&mut stop, interval).timed_out() {
                        drop(stop);
                        manager.cleanup_expired();
                        after(&manager);
                        stop = is_stopping.lock();
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("perf-cache-cleanup".to_owned())
            .spawn(run)
            .map_err(CacheError::Spawn)?;
        Ok(CleanupTask {
            kind: Kind::Thread(signal, Some(thread)),
            _claim: claim,
        })
    }

    /// Cleans up every `interval`, in a task of a tokio runtime with time enabled, until what is returned is dropped.
    ///
    /// # Errors
    /// [`CacheError`] if the interval is zero or if it was started already.
    #[cfg(feature = "tokio")]
    pub fn start_on(
        &self,
        runtime: &tokio::runtime::Handle,
        interval: Duration,
    ) -> Result<CleanupTask, CacheError> {
        let interval = longer_than_zero("interval", interval)?;
        let claim = self.claim()?;
        let manager = self.clone();
        let task = runtime.spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                manager.cleanup_expired();
            }
        });
        Ok(CleanupTask {
            kind: Kind::Task(task),
            _claim: claim,
        })
    }

    fn claim(&self) -> Result<Claim, CacheError> {
        let mut is_started = self.inner.is_started.lock();
        if std::mem::replace(&mut *is_started, true) {
            return Err(CacheError::AlreadyStarted);
        }
        Ok(Claim {
            inner: Arc::clone(&self.inner),
        })
    }
}

impl fmt::Debug for CacheManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let caches = self.inner.caches.lock().len();
        f.debug_struct("CacheManager")
            .field("caches", &caches)
            .finish_non_exhaustive()
    }
}

/// One cleanup per manager at a time.
struct Claim {
    inner: Arc<Inner>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        *self.inner.is_started.lock() = false;
    }
}

enum Kind {
    Thread(Arc<(Mutex<bool>, Condvar)>, Option<JoinHandle<()>>),
    #[cfg(feature = "tokio")]
    Task(tokio::task::JoinHandle<()>),
}

/// The cleanup in the background; dropping it stops it. A thread's cleanup under way is waited for, unless it is that thread that drops it.
#[must_use = "the cleanup stops when this is dropped"]
pub struct CleanupTask {
    kind: Kind,
    _claim: Claim,
}

impl Drop for CleanupTask {
    fn drop(&mut self) {
        match &mut self.kind {
            Kind::Thread(signal, thread) => {
                *signal.0.lock() = true;
                signal.1.notify_all();
                if let Some(thread) = thread.take()
                    && thread.thread().id() != std::thread::current().id()
                {
                    // A panic in there was reported by its hook.
                    let _ = thread.join();
                }
            }
            #[cfg(feature = "tokio")]
            Kind::Task(task) => task.abort(),
        }
    }
}

impl fmt::Debug for CleanupTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CleanupTask").finish_non_exhaustive()
    }
}
