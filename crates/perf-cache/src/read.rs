//! Reads of a cache.

use crate::cache::TtlCache;
use crate::entry::{Entry, Freshness, Stored};
use crate::hash::hash_of;
use crate::local::{self, Lease};
use crate::reader::CacheReader;
use crate::shared::Look;
use crate::stats::Count;
use crate::store::{Store, either};
use crate::time::Time;
use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

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
}
