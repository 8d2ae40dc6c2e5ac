//! Why values leave a cache, and the listener that is told.

/// Why a value has left a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Removal {
    /// There was no room for it, or another key with the same 64-bit hash was invalidated.
    Evicted,
    /// Its time was over when a read or a cleanup met it.
    Expired,
    /// It was invalidated, or the cache was cleared.
    Invalidated,
    /// Another value took its place: of the same key, or of another one with the same 64-bit hash.
    Replaced,
}

pub(crate) type Listener<K, V> = Box<dyn Fn(&K, &V, Removal) + Send + Sync>;
