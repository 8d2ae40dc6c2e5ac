//! Changes of a cache: insertions, updates, invalidations and cleanup.

use crate::cache::TtlCache;
use crate::entry::{Freshness, Stored};
use crate::hash::hash_of;
use crate::removal::Removal;
use crate::store::either;
use crate::time::Time;
use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

impl<K, V, S, T> TtlCache<K, V, S, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher,
    T: Time,
{
    /// Puts a value in, in the place of what was there. A computation under way for the key is not kept when it ends.
    pub fn insert(&self, key: K, value: V) {
        self.insert_nanos(key, value, None);
    }

    /// The same with a TTL of its own. A TTL of zero invalidates the key.
    pub fn insert_with_ttl(&self, key: K, value: V, ttl: Duration) {
        if ttl.is_zero() {
            self.invalidate(&key);
        } else {
            self.insert_nanos(key, value, Some(crate::builder::as_nanos(ttl)));
        }
    }

    fn insert_nanos(&self, key: K, value: V, ttl: Option<u64>) {
        let hash = hash_of(&self.shared.hasher, &key);
        self.shared.put(self.shared.entry(key, hash, value, ttl));
    }

    /// Puts what `change` makes of the value of a key in its place, with a TTL that begins anew; `None` takes it out. Returns whether there
    /// was a value; without one `change` is not called.
    ///
    /// Nothing is locked while `change` runs. If the entry was replaced meanwhile, it runs again on the new value, so no write of another
    /// thread is lost. A computation under way for the key is not kept when it ends.
    ///
    /// ```
    /// use perf_cache::TtlCache;
    ///
    /// let cache: TtlCache<String, u64> = TtlCache::builder(100).build()?;
    /// cache.insert("reads".to_owned(), 1);
    /// assert!(cache.update("reads", |reads| Some(reads + 1)));
    /// assert_eq!(cache.get("reads"), Some(2));
    /// assert!(!cache.update("writes", |writes| Some(writes + 1)));
    /// # Ok::<(), perf_cache::CacheError>(())
    /// ```
    pub fn update<Q>(&self, key: &Q, mut change: impl FnMut(&V) -> Option<V>) -> bool
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + ToOwned<Owned = K>,
    {
        let shared = &*self.shared;
        let hash = hash_of(&shared.hasher, key);
        either!(&shared.store, shards => loop {
            let held = shards.get(hash).filter(|held| held.key().borrow() == key);
            let Some(held) = held.filter(|held| shared.judge(held) != Freshness::Ended) else {
                return false;
            };
            let Some(value) = held.value() else {
                return false;
            };
            let entry = change(value).map(|value| shared.entry(key.to_owned(), hash, value, None));
            let why = if entry.is_some() { Removal::Replaced } else { Removal::Invalidated };
            match entry.filter(|entry| shared.fits(entry)) {
                Some(entry) => {
                    if shards.put_if(entry, |now| now.is_some_and(|now| now.is(&held))) {
                        return true;
                    }
                }
                None => {
                    // What cannot be kept leaves nothing in its place.
                    let taken = shards.take(hash, |now| now.is(&held));
                    if taken.is_some() {
                        shards.tell(taken, why);
                        return true;
                    }
                }
            }
        })
    }

    /// Takes a key out. Returns whether there was an entry, be it a value or a cached error. A computation under way for the key is not
    /// kept when it ends. An entry of another key with the same 64-bit hash goes, too.
    pub fn invalidate<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
    {
        let hash = hash_of(&self.shared.hasher, key);
        either!(&self.shared.store, shards => {
            let taken = shards.take(hash, |_| true);
            let is_ours = taken.as_ref().is_some_and(|taken| taken.key().borrow() == key);
            shards.tell(taken, if is_ours { Removal::Invalidated } else { Removal::Evicted });
            is_ours
        })
    }

    /// Takes a key out if `matches` says so of its value. A computation under way for the key is not kept either way.
    pub fn invalidate_if<Q>(&self, key: &Q, matches: impl Fn(&V) -> bool) -> bool
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
    {
        let hash = hash_of(&self.shared.hasher, key);
        either!(&self.shared.store, shards => loop {
            // Compared outside of the lock; if the entry was replaced meanwhile, the new one is looked at.
            let held = shards.get(hash);
            let ours = held.filter(|held| {
                held.key().borrow() == key && held.value().is_some_and(&matches)
            });
            let taken = shards.take(hash, |held| ours.as_ref().is_some_and(|ours| ours.is(held)));
            match (ours, taken) {
                (Some(_), None) => {}
                (None, _) => return false,
                (Some(_), Some(taken)) => {
                    shards.tell(Some(taken), Removal::Invalidated);
                    return true;
                }
            }
        })
    }

    /// Takes out every value for which `matches` says so, and returns how many. Linear in the number of entries. What is inserted meanwhile may be
    /// missed. No computation that is under way is kept when it ends, since its value cannot be asked yet.
    pub fn invalidate_where(&self, mut matches: impl FnMut(&K, &V) -> bool) -> usize {
        let mut count = 0;
        either!(&self.shared.store, shards => shards.each(true, |hash, entry| {
            let is_match = entry.value().is_some_and(|value| matches(entry.key(), value));
            if is_match && let Some(taken) = shards.take(hash, |held| held.is(&entry)) {
                shards.tell(Some(taken), Removal::Invalidated);
                count += 1;
            }
        }));
        count
    }

    /// Takes out what has ended, and returns how many. Linear in the number of entries. [`CacheManager`](crate::CacheManager) does it in the background.
    pub fn cleanup_expired(&self) -> usize {
        let shared = &*self.shared;
        let now = shared.precise();
        let idle = shared.rules.idle;
        let mut count = 0;
        either!(&shared.store, shards => shards.each(false, |hash, entry| {
            if entry.freshness(now, idle) == Freshness::Ended {
                count += usize::from(shards.drop_ended(hash, |held| held.is(&entry)));
            }
        }));
        count
    }

    /// Takes everything out. Computations under way are not kept when they end.
    pub fn clear(&self) {
        either!(&self.shared.store, shards => {
            for entry in (0..shards.count()).flat_map(|index| shards.drain(index)) {
                shards.tell(Some(entry), Removal::Invalidated);
            }
        });
    }
}

impl<K, V, S, T> Extend<(K, V)> for TtlCache<K, V, S, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher,
    T: Time,
{
    /// Inserts one after the other.
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, values: I) {
        for (key, value) in values {
            self.insert(key, value);
        }
    }
}

impl<K, V> FromIterator<(K, V)> for TtlCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// A cache without a TTL, with a capacity of as many entries as there are, at least one. For other settings make it by
    /// [`builder`](TtlCache::builder), and `extend` it.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(values: I) -> Self {
        let values: Vec<(K, V)> = values.into_iter().collect();
        let builder = Self::builder(values.len().max(1) as u64);
        let mut cache = builder.build().expect("a capacity is all that is set");
        cache.extend(values);
        cache
    }
}
