//! Where the values are: a table split in shards, each behind a lock of its own, and a stamp per shard.
//!
//! Tables are keyed by the hash alone, so nothing that happens under a lock calls code of the user: keys are compared
//! and values cloned and dropped outside. Two keys of one 64-bit hash take turns in the one place.
//!
//! A front (`front.rs`) keeps an entry with the stamp it read *before* it fetched the entry. Whoever takes an entry out of a table
//! bumps the stamp before it returns; so a front whose stamp is still the current one holds what the table holds, or what
//! it held at a moment after the reader's last look. Release on the bump and acquire on the read make the rest of what
//! the invalidating thread did visible too.

use crate::entry::Entry;
use crate::flight::{Flight, Outcome};
use crate::primitive::{AtomicU64, Mutex, Ordering, RwLock, mutant};
use std::collections::HashMap;
use std::collections::hash_map;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Enough that the threads of a machine with a few dozen cores seldom meet in one; 8 KiB per cache.
#[cfg(not(perf_loom))]
pub(crate) const SHARDS: usize = 32;
#[cfg(perf_loom)]
pub(crate) const SHARDS: usize = 1;

/// A new tick of the policy after so many births per entry held: a sixteenth of the capacity is
/// how exactly the order of reads is known to the policy. See `docs/design/perf-cache.md`.
const TICKS_PER_TURNOVER: u64 = 16;

/// Hashes the keys of our tables, which are hashes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PassHasher(u64);

impl Hasher for PassHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only integers are hashed by it; this keeps the contract for whatever else.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

pub(crate) type PassBuild = BuildHasherDefault<PassHasher>;
type HashTable<T> = HashMap<u64, T, PassBuild>;

/// On lines of its own: it is read by every hit of every thread, and written rarely. Two lines, since processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Stamp {
    /// Bumped when a front's entries of this shard must be looked up again.
    stamp: AtomicU64,
    /// Counts the turns of the policy. Relaxed: only the number matters.
    tick: std::sync::atomic::AtomicU64,
}

impl Stamp {
    #[inline]
    pub(crate) fn current(&self) -> u64 {
        self.stamp.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn tick(&self) -> u64 {
        self.tick.load(Ordering::Relaxed)
    }

    fn bump(&self) {
        self.stamp.fetch_add(1, Ordering::Release);
    }
}

#[derive(Debug)]
#[repr(align(128))]
struct Shard<K, V> {
    inner: RwLock<Inner<K, V>>,
}

#[derive(Debug)]
struct Inner<K, V> {
    table: HashTable<Arc<Entry<K, V>>>,
    flights: HashTable<Arc<Flight<K, V>>>,
    births: u64,
}

pub(crate) type Stamps = [Stamp; SHARDS];

/// What the policy must know of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: u64,
    pub(crate) weight: u32,
}

/// Who computes, after a miss.
pub(crate) enum Joined<K, V> {
    /// The caller, under this flight. What the table holds by now comes with it: a computation may have ended meanwhile.
    Lead(Arc<Flight<K, V>>, Option<Arc<Entry<K, V>>>),
    /// Somebody else.
    Under(Arc<Flight<K, V>>),
}

/// All shards of a cache.
#[derive(Debug)]
pub(crate) struct Store<K, V> {
    /// Beside the shards, so that a front can keep them at hand.
    pub(crate) stamps: Arc<Stamps>,
    shards: Box<[Shard<K, V>]>,
    /// Entries that the policy threw out while it held its own locks; dropped when it no longer does.
    graveyard: Mutex<Vec<Arc<Entry<K, V>>>>,
    /// Plain atomics: sums for which no order matters.
    len: std::sync::atomic::AtomicU64,
    weight: std::sync::atomic::AtomicU64,
    evictions: std::sync::atomic::AtomicU64,
    buried: std::sync::atomic::AtomicU64,
}

/// Where a hash's shard is.
#[inline]
pub(crate) fn shard_index(hash: u64) -> usize {
    (hash >> 40) as usize % SHARDS
}

impl<K, V> Store<K, V> {
    pub(crate) fn new() -> Self {
        let stamp = |_: usize| Stamp {
            stamp: AtomicU64::new(0),
            tick: 0.into(),
        };
        let shard = |_| Shard {
            inner: RwLock::new(Inner {
                table: HashTable::default(),
                flights: HashTable::default(),
                births: 0,
            }),
        };
        Self {
            stamps: Arc::new(std::array::from_fn(stamp)),
            shards: (0..SHARDS).map(shard).collect(),
            graveyard: Mutex::new(Vec::new()),
            len: 0.into(),
            weight: 0.into(),
            evictions: 0.into(),
            buried: 0.into(),
        }
    }

    #[inline]
    pub(crate) fn stamp(&self, hash: u64) -> &Stamp {
        &self.stamps[shard_index(hash)]
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard<K, V> {
        &self.shards[shard_index(hash)]
    }

    /// The entry of a hash, whatever its key.
    #[inline]
    pub(crate) fn get(&self, hash: u64) -> Option<Arc<Entry<K, V>>> {
        self.shard(hash).inner.read().table.get(&hash).cloned()
    }

    /// The same with the stamp under which a front may keep it.
    #[inline]
    pub(crate) fn get_stamped(&self, hash: u64) -> (u64, Option<Arc<Entry<K, V>>>) {
        if mutant::is("front_stamp_after_fetch") {
            let entry = self.get(hash);
            return (self.stamp(hash).current(), entry);
        }
        let stamp = self.stamp(hash).current();
        (stamp, self.get(hash))
    }

    pub(crate) fn token(&self, hash: u64) -> Option<Token> {
        let inner = self.shard(hash).inner.read();
        inner.table.get(&hash).map(|entry| Token {
            id: entry.id,
            weight: entry.weight,
        })
    }

    /// Puts an entry in and ends the flight of its hash, if any, without a say in the table: what is put in is newer.
    pub(crate) fn put(&self, entry: Arc<Entry<K, V>>) {
        let hash = entry.hash;
        let mut inner = self.shard(hash).inner.write();
        let flight = inner.flights.remove(&hash);
        let old = self.put_locked(&mut inner, entry);
        drop(inner);
        drop((old, flight));
    }

    /// Ends a flight. Its entry goes in unless the flight has lost its say; returns whether it had it.
    pub(crate) fn land(
        &self,
        flight: &Arc<Flight<K, V>>,
        hash: u64,
        entry: Option<Arc<Entry<K, V>>>,
    ) -> bool {
        let mut inner = self.shard(hash).inner.write();
        let has_say = match inner.flights.entry(hash) {
            hash_map::Entry::Occupied(held) if Arc::ptr_eq(held.get(), flight) => {
                // The caller has a count too: nothing is dropped under the lock.
                held.remove();
                true
            }
            _ => mutant::is("flight_lands_after_invalidate"),
        };
        let old = match entry {
            Some(entry) if has_say => self.put_locked(&mut inner, entry),
            unused => unused,
        };
        drop(inner);
        drop(old);
        has_say
    }

    fn put_locked(
        &self,
        inner: &mut Inner<K, V>,
        entry: Arc<Entry<K, V>>,
    ) -> Option<Arc<Entry<K, V>>> {
        let stamp = self.stamp(entry.hash);
        entry.tick.store(stamp.tick(), Ordering::Relaxed);
        self.count(entry.weight, true);
        let old = inner.table.insert(entry.hash, entry);
        if let Some(old) = &old {
            self.count(old.weight, false);
            stamp.bump();
        } else {
            inner.births += 1;
            if inner.births * TICKS_PER_TURNOVER > inner.table.len() as u64 {
                inner.births = 0;
                stamp.tick.fetch_add(1, Ordering::Relaxed);
                // So that fronts tell the policy, by way of the table, what they have read.
                stamp.bump();
            }
        }
        old
    }

    /// Takes an entry out if it is the one of this hash that `matches`, which must not call the user's code. A
    /// flight of the hash loses its say either way.
    pub(crate) fn take(
        &self,
        hash: u64,
        matches: impl FnOnce(&Arc<Entry<K, V>>) -> bool,
    ) -> Option<Arc<Entry<K, V>>> {
        let mut inner = self.shard(hash).inner.write();
        let flight = inner.flights.remove(&hash);
        let taken = self.take_locked(&mut inner, hash, matches);
        drop(inner);
        drop(flight);
        taken
    }

    /// The same for an entry that has ended: a flight goes on.
    pub(crate) fn take_ended(&self, entry: &Arc<Entry<K, V>>) -> Option<Arc<Entry<K, V>>> {
        let mut inner = self.shard(entry.hash).inner.write();
        self.take_locked(&mut inner, entry.hash, |held| Arc::ptr_eq(held, entry))
    }

    /// The policy has thrown a hash out. What was held is dropped later, by [`bury`](Self::bury).
    pub(crate) fn evict(&self, hash: u64) {
        let mut inner = self.shard(hash).inner.write();
        let taken = self.take_locked(&mut inner, hash, |_| true);
        drop(inner);
        if let Some(taken) = taken {
            let relaxed = std::sync::atomic::Ordering::Relaxed;
            self.evictions.fetch_add(1, relaxed);
            self.graveyard.lock().push(taken);
            self.buried.fetch_add(1, relaxed);
        }
    }

    fn take_locked(
        &self,
        inner: &mut Inner<K, V>,
        hash: u64,
        matches: impl FnOnce(&Arc<Entry<K, V>>) -> bool,
    ) -> Option<Arc<Entry<K, V>>> {
        let hash_map::Entry::Occupied(held) = inner.table.entry(hash) else {
            return None;
        };
        if !matches(held.get()) {
            return None;
        }
        let taken = held.remove();
        self.count(taken.weight, false);
        self.stamp(hash).bump();
        Some(taken)
    }

    fn count(&self, weight: u32, is_added: bool) {
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        if is_added {
            self.len.fetch_add(1, relaxed);
            self.weight.fetch_add(u64::from(weight), relaxed);
        } else {
            self.len.fetch_sub(1, relaxed);
            self.weight.fetch_sub(u64::from(weight), relaxed);
        }
    }

    /// Drops what the policy threw out. To be called with no lock held.
    pub(crate) fn bury(&self) {
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        if self.buried.load(relaxed) == 0 {
            return;
        }
        let dead = std::mem::take(&mut *self.graveyard.lock());
        self.buried.fetch_sub(dead.len() as u64, relaxed);
        drop(dead);
    }

    /// Registers a computation for a hash, or finds the one under way. `flight` is made by the caller outside of the lock.
    pub(crate) fn join(&self, hash: u64, flight: &Arc<Flight<K, V>>) -> Joined<K, V> {
        let mut inner = self.shard(hash).inner.write();
        if let Some(under_way) = inner.flights.get(&hash) {
            return Joined::Under(Arc::clone(under_way));
        }
        inner.flights.insert(hash, Arc::clone(flight));
        let held = inner.table.get(&hash).cloned();
        let held = held.filter(|_| !mutant::is("flight_without_second_look"));
        Joined::Lead(Arc::clone(flight), held)
    }

    /// The computation under way for a hash.
    pub(crate) fn flight(&self, hash: u64) -> Option<Arc<Flight<K, V>>> {
        self.shard(hash).inner.read().flights.get(&hash).cloned()
    }

    /// The entries of one shard.
    pub(crate) fn entries(&self, shard: usize) -> Vec<Arc<Entry<K, V>>> {
        let shard = &self.shards[shard % self.shards.len()];
        shard.inner.read().table.values().cloned().collect()
    }

    /// Takes everything out of one shard, and from its flights their say.
    pub(crate) fn drain(&self, shard: usize) -> Vec<Arc<Entry<K, V>>> {
        let index = shard % self.shards.len();
        let mut inner = self.shards[index].inner.write();
        let table = std::mem::take(&mut inner.table);
        let flights = std::mem::take(&mut inner.flights);
        for entry in table.values() {
            self.count(entry.weight, false);
        }
        self.stamps[index].bump();
        drop(inner);
        drop(flights);
        table.into_values().collect()
    }

    pub(crate) fn shard_count(&self) -> usize {
        self.shards.len()
    }

    pub(crate) fn len(&self) -> u64 {
        self.len.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(crate) fn weight(&self) -> u64 {
        self.weight.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Settles a flight whose leader went away. To be called with no lock held.
pub(crate) fn abandon<K, V>(store: &Store<K, V>, flight: &Arc<Flight<K, V>>, hash: u64) {
    store.land(flight, hash, None);
    flight.settle(Outcome::Abandoned);
}
