//! Connections to peers.

use crate::cache::TtlCache;
use crate::error::CacheError;
use crate::stats::CacheStats;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// A connection per peer: made once for all callers that ask at once, and dropped when it was not used for a while.
///
/// No front keeps connections: one that is taken out is dropped as soon as its last user is done.
///
/// ```
/// use perf_cache::PeerConnectionCache;
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// let peers: PeerConnectionCache<String> = PeerConnectionCache::new(100, Duration::from_secs(60))?;
/// let connect = || Ok::<_, std::io::Error>("connection to 2".to_owned());
/// let connection = peers.get_or_connect(2, connect).expect("it connects");
///
/// // It has failed: the next caller connects anew, unless another one has meanwhile.
/// assert!(peers.forget(2, &connection));
/// assert!(peers.get(2).is_none());
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
#[derive(Debug)]
pub struct PeerConnectionCache<C> {
    cache: TtlCache<u64, Arc<C>>,
}

impl<C> Clone for PeerConnectionCache<C> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
        }
    }
}

impl<C: Send + Sync + 'static> PeerConnectionCache<C> {
    /// Keeps up to `capacity` connections, each until no caller has asked for it for `idle`.
    ///
    /// # Errors
    /// [`CacheError`] if one of them is zero.
    pub fn new(capacity: u64, idle: Duration) -> Result<Self, CacheError> {
        let builder = TtlCache::builder(capacity).idle(idle).front(false);
        Ok(Self {
            cache: builder.build()?,
        })
    }

    /// The same, and after a failed attempt the peer counts as unreachable, with the same error, for `retry_after`.
    ///
    /// # Errors
    /// [`CacheError`] if one of them is zero.
    pub fn with_retry_after(
        capacity: u64,
        idle: Duration,
        retry_after: Duration,
    ) -> Result<Self, CacheError> {
        let builder = TtlCache::builder(capacity)
            .idle(idle)
            .front(false)
            .negative_ttl(retry_after);
        Ok(Self {
            cache: builder.build()?,
        })
    }

    /// The connection to a peer, if there is one.
    #[must_use]
    pub fn get(&self, peer: u64) -> Option<Arc<C>> {
        self.cache.get(&peer)
    }

    /// The connection to a peer; made by `connect` if there is none. See [`TtlCache::try_get_or_compute`].
    ///
    /// # Errors
    /// The error that `connect` returned, shared by all waiting callers.
    pub fn get_or_connect<E: Send + Sync + 'static>(
        &self,
        peer: u64,
        connect: impl FnOnce() -> Result<C, E>,
    ) -> Result<Arc<C>, Arc<E>> {
        self.cache
            .try_get_or_compute(&peer, || connect().map(Arc::new))
    }

    /// [`get_or_connect`](Self::get_or_connect) for a task.
    ///
    /// # Errors
    /// The error that `connect` returned, shared by all waiting callers.
    pub async fn get_or_connect_async<E, F>(
        &self,
        peer: u64,
        connect: impl FnOnce() -> F,
    ) -> Result<Arc<C>, Arc<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<C, E>>,
    {
        let connect = || async { connect().await.map(Arc::new) };
        self.cache.try_get_or_compute_async(&peer, connect).await
    }

    /// Puts a connection in, such as one that the peer has made.
    pub fn insert(&self, peer: u64, connection: Arc<C>) {
        self.cache.insert(peer, connection);
    }

    /// Takes a connection out, unless another one is in its place by now.
    pub fn forget(&self, peer: u64, connection: &Arc<C>) -> bool {
        self.cache
            .invalidate_if(&peer, |held| Arc::ptr_eq(held, connection))
    }

    /// Takes out whatever there is for a peer: a connection, or that it is unreachable.
    pub fn remove(&self, peer: u64) -> bool {
        self.cache.invalidate(&peer)
    }

    /// Drops the connections that were not used for the idle time; returns how many.
    pub fn cleanup_expired(&self) -> usize {
        self.cache.cleanup_expired()
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.cache.stats()
    }
}

impl<C: Send + Sync + 'static> crate::manager::Managed for PeerConnectionCache<C> {
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
