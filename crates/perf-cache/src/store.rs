//! Where the values are: a table split in shards, each behind a lock of its own, and a version per shard.
//!
//! Tables are keyed by the hash alone, so nothing that happens under a lock calls code of the user: keys are compared
//! and values cloned and dropped outside. Two keys of one 64-bit hash take turns in the one place.
//!
//! A thread's own cache (`front.rs`) keeps an entry with the version it read *before* it fetched the entry. A thread that takes an entry
//! out of a table bumps the version before it returns; so a front whose version is still the current one holds what the table holds, or
//! what it held at a moment after the reader's last look. Release on the bump and acquire on the read make the rest of what the
//! invalidating thread did visible too.

use crate::entry::Entry;
use crate::flight::{Flight, Outcome};
use crate::policy::Chooser;
use crate::primitive::{AtomicU64, Ordering, RwLock, mutant};
use crate::table::Table;
use hashbrown::HashTable;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Count;
use std::sync::atomic::Ordering::Relaxed;

/// A shard has room for so many entries: with fewer, keys spread so unevenly that some shards are full long before others.
const ENTRIES_MIN: u64 = 256;
/// Shards of more entries take longer than a millisecond to grow.
const ENTRIES_MAX: u64 = 1 << 14;
/// Enough that the threads of one core seldom meet those of another.
const SHARDS_PER_CORE: u64 = 4;
const SHARDS_MAX: u64 = 1 << 10;

/// A power of two.
fn shard_count(capacity: u64, is_weighed: bool) -> usize {
    if cfg!(perf_loom) {
        return 1;
    }
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let by_cores = SHARDS_PER_CORE * cores.next_power_of_two();
    let wanted = if is_weighed {
        by_cores
    } else {
        by_cores.max(capacity / ENTRIES_MAX)
    };
    1 << wanted
        .min(capacity / ENTRIES_MIN)
        .clamp(1, SHARDS_MAX)
        .ilog2()
}

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

/// On lines of its own: it is read by every hit of every thread, and written rarely. Two lines, since processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Version(AtomicU64);

impl Version {
    #[inline]
    pub(crate) fn current(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn bump(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[derive(Debug)]
#[repr(align(64))]
struct Shard<K, V> {
    inner: RwLock<Inner<K, V>>,
    /// Written under the lock, read without.
    len: Count,
    evictions: Count,
}

#[derive(Debug)]
struct Inner<K, V> {
    table: Table<Arc<Entry<K, V>>>,
    flights: HashTable<(u64, Arc<Flight<K, V>>)>,
}

impl<K, V> Inner<K, V> {
    fn flight(&self, hash: u64) -> Option<&Arc<Flight<K, V>>> {
        let found = self.flights.find(hash, |(held, _)| *held == hash);
        found.map(|(_, flight)| flight)
    }

    fn remove_flight(&mut self, hash: u64) -> Option<Arc<Flight<K, V>>> {
        let found = self.flights.find_entry(hash, |(held, _)| *held == hash);
        found.ok().map(|entry| entry.remove().0.1)
    }
}

pub(crate) type Versions = [Version];

/// Who computes, after a miss.
pub(crate) enum Joined<K, V> {
    /// The caller, under this flight. What the table holds by now comes with it: a computation may have ended meanwhile.
    Lead(Arc<Flight<K, V>>, Option<Arc<Entry<K, V>>>),
    /// Another caller.
    Under(Arc<Flight<K, V>>),
}

/// What went out of the table, to be dropped when no lock is held.
#[derive(Debug)]
pub(crate) struct Gone<K, V> {
    _replaced: Option<Arc<Entry<K, V>>>,
    evicted: Evicted<K, V>,
}

/// Most often none or one.
#[derive(Debug)]
pub(crate) struct Evicted<K, V> {
    first: Option<Arc<Entry<K, V>>>,
    more: Vec<Arc<Entry<K, V>>>,
}

impl<K, V> Evicted<K, V> {
    fn new() -> Self {
        Self {
            first: None,
            more: Vec::new(),
        }
    }

    fn push(&mut self, entry: Arc<Entry<K, V>>) {
        if self.first.is_none() {
            self.first = Some(entry);
        } else {
            self.more.push(entry);
        }
    }
}

/// All shards of a cache.
#[derive(Debug)]
pub(crate) struct Store<K, V> {
    /// Beside the shards, so that a front can keep them at hand.
    pub(crate) versions: Arc<Versions>,
    shards: Box<[Shard<K, V>]>,
    capacity: Count,
    /// Of all entries. Shards share the capacity, so that it is exact, and chance does not leave parts of it empty.
    weight: Count,
    pub(crate) chooser: Chooser,
}

/// Where a hash's shard is, of a power of two of them.
#[inline]
pub(crate) fn shard_index(hash: u64, shards: usize) -> usize {
    (hash >> 40) as usize & (shards - 1)
}

impl<K, V> Store<K, V> {
    pub(crate) fn new(capacity: u64, is_weighed: bool, chooser: Chooser) -> Self {
        let shards = shard_count(capacity, is_weighed);
        let shard = |_| Shard {
            inner: RwLock::new(Inner {
                table: Table::new(),
                flights: HashTable::new(),
            }),
            len: Count::new(0),
            evictions: Count::new(0),
        };
        Self {
            versions: (0..shards).map(|_| Version(AtomicU64::new(0))).collect(),
            shards: (0..shards).map(shard).collect(),
            capacity: Count::new(capacity),
            weight: Count::new(0),
            chooser,
        }
    }

    #[inline]
    fn index(&self, hash: u64) -> usize {
        shard_index(hash, self.shards.len())
    }

    #[inline]
    pub(crate) fn version(&self, hash: u64) -> &Version {
        &self.versions[shard_index(hash, self.versions.len())]
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Relaxed)
    }

    /// The entry of a hash, whatever its key, without a word to the policy.
    #[inline]
    pub(crate) fn get(&self, hash: u64) -> Option<Arc<Entry<K, V>>> {
        let inner = self.shards[self.index(hash)].inner.read();
        inner.table.peek(hash).cloned()
    }

    /// The entry of a hash, read; with the version under which a front may keep it.
    #[inline]
    pub(crate) fn read(&self, hash: u64) -> (u64, Option<Arc<Entry<K, V>>>) {
        let mut version = self.version(hash).current();
        let inner = self.shards[self.index(hash)].inner.read();
        let found = inner.table.read(hash);
        let found = found.map(|(entry, is_first)| (Arc::clone(entry), is_first));
        drop(inner);
        if mutant::is("front_version_after_fetch") {
            version = self.version(hash).current();
        }
        let entry = found.map(|(entry, is_first)| {
            if is_first {
                self.sample(hash, entry.weight);
            }
            entry
        });
        (version, entry)
    }

    /// Shows an access to the policy, if it is one of the sample.
    #[inline]
    fn sample(&self, hash: u64, weight: u32) {
        if self.chooser.samples(hash) {
            let held = || (self.len(), self.weight());
            self.chooser.access(hash, weight, self.capacity(), held);
        }
    }

    /// Puts an entry in and ends the flight of its hash, if any, without a say in the table: what is put in is newer.
    pub(crate) fn put(&self, entry: Arc<Entry<K, V>>) -> Gone<K, V> {
        let (hash, weight) = (entry.hash, entry.weight);
        let mut inner = self.shards[self.index(hash)].inner.write();
        let flight = inner.remove_flight(hash);
        let mut gone = self.put_locked(&mut inner, entry);
        drop(inner);
        drop(flight);
        self.make_room(hash, &mut gone.evicted);
        self.sample(hash, weight);
        gone
    }

    /// Ends a flight. Its entry goes in unless the flight has lost its say; returns what went out for it.
    pub(crate) fn land(
        &self,
        flight: &Arc<Flight<K, V>>,
        hash: u64,
        entry: Option<Arc<Entry<K, V>>>,
    ) -> Option<Gone<K, V>> {
        let mut inner = self.shards[self.index(hash)].inner.write();
        let is_own = inner
            .flight(hash)
            .is_some_and(|held| Arc::ptr_eq(held, flight));
        if is_own {
            // The caller has a count too: nothing is dropped under the lock.
            inner.remove_flight(hash);
        }
        let has_say = is_own || mutant::is("flight_lands_after_invalidate");
        let entry = entry.filter(|_| has_say)?;
        let weight = entry.weight;
        let mut gone = self.put_locked(&mut inner, entry);
        drop(inner);
        self.make_room(hash, &mut gone.evicted);
        self.sample(hash, weight);
        Some(gone)
    }

    fn put_locked(&self, inner: &mut Inner<K, V>, entry: Arc<Entry<K, V>>) -> Gone<K, V> {
        let hash = entry.hash;
        let index = self.index(hash);
        let mut added = i64::from(entry.weight);
        let (replaced, is_tick) = inner.table.insert(hash, entry.weight, entry);
        if let Some(replaced) = &replaced {
            added -= i64::from(replaced.weight);
        }
        let mut evicted = Evicted::new();
        while !self.admits(added) {
            let excess = self.weight().saturating_add_signed(added);
            let excess = excess.saturating_sub(self.capacity());
            let Some(entry) = self.evict_locked(index, inner, hash, excess) else {
                // The others' turn: `make_room`, when this lock is released.
                self.weigh(added);
                break;
            };
            added -= i64::from(entry.weight);
            evicted.push(entry);
        }
        // A tick: so that fronts tell the policy, by way of the table, what they have read.
        if replaced.is_some() || is_tick || evicted.first.is_some() {
            self.versions[index].bump();
        }
        self.publish(index, inner);
        Gone {
            _replaced: replaced,
            evicted,
        }
    }

    /// Adds to the weight held if the capacity allows it. A full cache that throws out as much as it takes in writes nothing here.
    fn admits(&self, added: i64) -> bool {
        if added > 0 {
            let fits = |held: u64| held.saturating_add_signed(added) <= self.capacity();
            if !fits(self.weight()) {
                return false;
            }
            let before = self.weigh(added);
            if !fits(before) {
                self.weigh(-added);
                return false;
            }
        } else if added < 0 {
            self.weigh(added);
        }
        true
    }

    fn weigh(&self, added: i64) -> u64 {
        if added < 0 {
            self.weight.fetch_sub(added.unsigned_abs(), Relaxed)
        } else {
            self.weight.fetch_add(added.unsigned_abs(), Relaxed)
        }
    }

    /// Throws one entry out of a shard, other than the one of `kept`. The caller publishes, bumps the version and weighs.
    fn evict_locked(
        &self,
        index: usize,
        inner: &mut Inner<K, V>,
        kept: u64,
        excess: u64,
    ) -> Option<Arc<Entry<K, V>>> {
        // A shard's part is what it holds when the cache is full, less what is beyond the capacity now.
        let part = inner.table.weight().saturating_sub(excess.max(1));
        let limits = self.chooser.limits(part.max(1));
        let entry = inner.table.evict(limits, kept)?;
        // Only this shard's lock orders these, which is held.
        let count = &self.shards[index].evictions;
        count.store(count.load(Relaxed) + 1, Relaxed);
        Some(entry)
    }

    /// Throws out what is beyond the capacity, from all shards, but not the entry of `kept`. Most often there is nothing.
    fn make_room(&self, kept: u64, evicted: &mut Evicted<K, V>) {
        let (first, shards) = (self.index(kept), self.shards.len());
        for step in 0..shards {
            if self.weight() <= self.capacity() {
                return;
            }
            let index = (first + step) % shards;
            let mut inner = self.shards[index].inner.write();
            while self.weight() > self.capacity() {
                let excess = self.weight().saturating_sub(self.capacity());
                let Some(entry) = self.evict_locked(index, &mut inner, kept, excess) else {
                    break;
                };
                self.weigh(-i64::from(entry.weight));
                evicted.push(entry);
            }
            self.versions[index].bump();
            self.publish(index, &inner);
        }
    }

    /// Another capacity. Returns what was beyond it.
    pub(crate) fn resize(&self, capacity: u64) -> Evicted<K, V> {
        self.capacity.store(capacity, Relaxed);
        self.chooser.reset();
        let mut evicted = Evicted::new();
        // A hash of no entry, most likely; if it is one, that entry goes with the next insertion.
        self.make_room(u64::MAX, &mut evicted);
        evicted
    }

    /// Writes a shard's sums down for those who read them without its lock.
    fn publish(&self, index: usize, inner: &Inner<K, V>) {
        let shard = &self.shards[index];
        shard.len.store(inner.table.len() as u64, Relaxed);
    }

    /// Takes an entry out if it is the one of this hash that `matches`, which must not call the user's code. A
    /// flight of the hash loses its say either way.
    pub(crate) fn take(
        &self,
        hash: u64,
        matches: impl FnOnce(&Arc<Entry<K, V>>) -> bool,
    ) -> Option<Arc<Entry<K, V>>> {
        let mut inner = self.shards[self.index(hash)].inner.write();
        let flight = inner.remove_flight(hash);
        let taken = self.take_locked(&mut inner, hash, matches);
        drop(inner);
        drop(flight);
        taken
    }

    /// The same for an entry that has ended: a flight goes on.
    pub(crate) fn take_ended(&self, entry: &Arc<Entry<K, V>>) -> Option<Arc<Entry<K, V>>> {
        let mut inner = self.shards[self.index(entry.hash)].inner.write();
        self.take_locked(&mut inner, entry.hash, |held| Arc::ptr_eq(held, entry))
    }

    fn take_locked(
        &self,
        inner: &mut Inner<K, V>,
        hash: u64,
        matches: impl FnOnce(&Arc<Entry<K, V>>) -> bool,
    ) -> Option<Arc<Entry<K, V>>> {
        let taken = inner.table.remove(hash, matches)?;
        self.weigh(-i64::from(taken.weight));
        self.version(hash).bump();
        self.publish(self.index(hash), inner);
        Some(taken)
    }

    /// Registers a computation for a hash, or finds the one under way. `flight` is made by the caller outside of the lock.
    pub(crate) fn join(&self, hash: u64, flight: &Arc<Flight<K, V>>) -> Joined<K, V> {
        let mut inner = self.shards[self.index(hash)].inner.write();
        let mut outrun = None;
        if let Some(under_way) = inner.flight(hash) {
            if flight.is_refresh || !under_way.is_refresh {
                return Joined::Under(Arc::clone(under_way));
            }
            // A refresh loses its say to a caller who needs the value now.
            outrun = inner.remove_flight(hash);
        }
        let new = (hash, Arc::clone(flight));
        inner.flights.insert_unique(hash, new, |(hash, _)| *hash);
        let held = inner.table.peek(hash).cloned();
        let held = held.filter(|_| !mutant::is("flight_without_second_look"));
        drop(inner);
        drop(outrun);
        Joined::Lead(Arc::clone(flight), held)
    }

    /// The computation under way for a hash.
    pub(crate) fn flight(&self, hash: u64) -> Option<Arc<Flight<K, V>>> {
        let inner = self.shards[self.index(hash)].inner.read();
        inner.flight(hash).cloned()
    }

    /// The entries of one shard.
    pub(crate) fn entries(&self, shard: usize) -> Vec<Arc<Entry<K, V>>> {
        let shard = &self.shards[shard % self.shards.len()];
        let inner = shard.inner.read();
        inner.table.iter().cloned().collect()
    }

    /// The same, and the shard's flights lose their say.
    pub(crate) fn entries_alone(&self, shard: usize) -> Vec<Arc<Entry<K, V>>> {
        let index = shard % self.shards.len();
        let mut inner = self.shards[index].inner.write();
        let flights = std::mem::take(&mut inner.flights);
        drop(inner);
        drop(flights);
        self.entries(index)
    }

    /// Takes everything out of one shard, and from its flights their say.
    pub(crate) fn drain(&self, shard: usize) -> Vec<Arc<Entry<K, V>>> {
        let index = shard % self.shards.len();
        let mut inner = self.shards[index].inner.write();
        let table = std::mem::replace(&mut inner.table, Table::new());
        let flights = std::mem::take(&mut inner.flights);
        self.weight.fetch_sub(table.weight(), Relaxed);
        self.versions[index].bump();
        self.publish(index, &inner);
        drop(inner);
        drop(flights);
        table.into_entries().collect()
    }

    pub(crate) fn shard_count(&self) -> usize {
        self.shards.len()
    }

    fn sum(&self, count: impl Fn(&Shard<K, V>) -> &Count) -> u64 {
        self.shards
            .iter()
            .map(|shard| count(shard).load(Relaxed))
            .sum()
    }

    pub(crate) fn len(&self) -> u64 {
        self.sum(|shard| &shard.len)
    }

    pub(crate) fn weight(&self) -> u64 {
        self.weight.load(Relaxed)
    }

    pub(crate) fn evictions(&self) -> u64 {
        self.sum(|shard| &shard.evictions)
    }
}

/// Settles a flight whose leader went away. To be called with no lock held.
pub(crate) fn abandon<K, V>(store: &Store<K, V>, flight: &Arc<Flight<K, V>>, hash: u64) {
    store.land(flight, hash, None);
    flight.settle(Outcome::Abandoned);
}
