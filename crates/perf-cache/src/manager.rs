//! Looks after caches: cleans up in the background, clears, and reports.

use crate::cache::TtlCache;
use crate::error::{CacheError, longer_than_zero};
use crate::stats::CacheStats;
use crate::time::Time;
use parking_lot::{Condvar, Mutex};
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};
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

    /// What a manager keeps of it: a way to the cache for as long as it lives.
    fn watch(&self) -> Watched;
}

/// A way to a cache that does not keep it alive.
///
/// ```
/// use perf_cache::{CacheManager, CacheStats, Managed, TtlCache, Watched};
/// use std::sync::{Arc, Weak};
///
/// struct Sessions(TtlCache<u64, String>);
///
/// impl Managed for Sessions {
///     fn cleanup_expired(&self) -> usize {
///         self.0.cleanup_expired()
///     }
///     fn clear(&self) {
///         self.0.clear();
///     }
///     fn stats(&self) -> CacheStats {
///         self.0.stats()
///     }
///     fn watch(&self) -> Watched {
///         self.0.watch() // or `Watched::new` of a `Weak`
///     }
/// }
///
/// let sessions = Sessions(TtlCache::builder(100).build()?);
/// CacheManager::new().register("sessions", &sessions)?;
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
pub struct Watched(Box<dyn Fn() -> Option<Box<dyn Managed>> + Send + Sync>);

impl Watched {
    /// A way by `upgrade`, which returns `None` once the cache is dropped.
    pub fn new<C: Managed + 'static>(
        upgrade: impl Fn() -> Option<C> + Send + Sync + 'static,
    ) -> Self {
        let managed = move || upgrade().map(|cache| Box::new(cache) as Box<dyn Managed>);
        Self(Box::new(managed))
    }

    /// The cache, unless it is dropped.
    #[must_use]
    pub fn cache(&self) -> Option<Box<dyn Managed>> {
        (self.0)()
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

/// As what it refers to. A manager keeps the way to that one, not to this reference.
impl<C: Managed + ?Sized> Managed for Arc<C> {
    fn cleanup_expired(&self) -> usize {
        (**self).cleanup_expired()
    }

    fn clear(&self) {
        (**self).clear();
    }

    fn stats(&self) -> CacheStats {
        (**self).stats()
    }

    fn watch(&self) -> Watched {
        (**self).watch()
    }
}

impl<K, V, S, T> Managed for TtlCache<K, V, S, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
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

    fn watch(&self) -> Watched {
        let shared = Arc::downgrade(&self.shared);
        Watched::new(move || shared.upgrade().map(|shared| Self { shared }))
    }
}

struct Registered {
    name: String,
    cache: Watched,
}

#[derive(Default)]
struct Inner {
    caches: Mutex<Vec<Arc<Registered>>>,
    is_started: Mutex<bool>,
}

/// A register of caches. Clones are the same register; it does not keep caches alive.
///
/// ```
/// use perf_cache::{CacheManager, TtlCache};
/// use std::time::Duration;
///
/// let cache: TtlCache<u64, String> = TtlCache::builder(100).build()?;
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

    /// Looks after a cache from now on, until its last clone is dropped. Names need not differ.
    ///
    /// # Errors
    /// [`CacheError::TooManyCaches`] if there are [`CACHES_MAX`] that are alive.
    pub fn register<C: Managed + 'static>(
        &self,
        name: impl Into<String>,
        cache: &C,
    ) -> Result<(), CacheError> {
        let registered = Arc::new(Registered {
            name: name.into(),
            cache: cache.watch(),
        });
        self.alive();
        let mut caches = self.inner.caches.lock();
        if caches.len() >= CACHES_MAX {
            drop(caches);
            return Err(CacheError::TooManyCaches {
                caches_max: CACHES_MAX,
            });
        }
        caches.push(registered);
        Ok(())
    }

    /// The caches alive, in the order in which they came; those that are not are forgotten. The lock is held neither while they are looked for, which is code
    /// of the user, nor while they are used.
    fn alive(&self) -> Vec<(String, Box<dyn Managed>)> {
        let all = self.inner.caches.lock().clone();
        let mut dead = Vec::new();
        let mut alive = Vec::new();
        for registered in all {
            match registered.cache.cache() {
                Some(cache) => alive.push((registered.name.clone(), cache)),
                None => dead.push(registered),
            }
        }
        if !dead.is_empty() {
            let is_dead = |held: &Arc<Registered>| dead.iter().any(|dead| Arc::ptr_eq(dead, held));
            self.inner.caches.lock().retain(|held| !is_dead(held));
        }
        alive
    }

    /// Cleans all caches up, and returns how many entries went.
    pub fn cleanup_expired(&self) -> usize {
        self.alive()
            .into_iter()
            .map(|(_, cache)| cache.cleanup_expired())
            .sum()
    }

    /// The same in the background. A panic of a listener, or of a value that is dropped, is reported by its hook, and ends the cleanup of that cache this
    /// time; other caches are cleaned up, and this one again next time.
    fn clean_up(&self) {
        for (_, cache) in self.alive() {
            let _ = catch_unwind(AssertUnwindSafe(|| cache.cleanup_expired()));
        }
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

    /// The same, and calls `after` with the manager after each cleanup: to publish statistics, say. A panic in it is reported by the panic hook, and the
    /// cleanup goes on.
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
                        manager.clean_up();
                        let _ = catch_unwind(AssertUnwindSafe(|| after(&manager)));
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
                manager.clean_up();
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
