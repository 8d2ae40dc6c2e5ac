//! The shards: their locks, the capacity they share, and the flights of their hashes.

use super::Joined;
use super::flights::Flights;
use super::version::{Version, Versions};
use crate::by_moka::ByMoka;
use crate::entry::{Entry, Stored};
use crate::flight::{Flight, Outcome};
use crate::policy::Chooser;
use crate::primitive::{RwLock, mutant};
use crate::queues::{NONE, Payload};
use crate::removal::{Listener, Removal};
use crate::table::Table;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Count;
use std::sync::atomic::Ordering::Relaxed;

/// A shard has room for so many entries: with fewer, keys spread so unevenly that some shards are full long before others.
const ENTRIES_MIN: u64 = 256;
/// A shard that grows copies its slots and makes its index anew under its lock: of so many entries that is some 100 us of work, and 256 KiB.
const ENTRIES_MAX: u64 = 1 << 12;
/// So many slots are looked at while a shard's lock is held.
const PAGE: usize = 256;
/// So many entries of one shard are thrown out while its lock is held, beyond what an insertion needs. Then it is another shard's turn.
const EVICTED_PER_LOCK: usize = 16;
/// An insertion that finds the cache far beyond its capacity, since that was lowered, throws out so many entries at most, and what it weighs itself.
const EVICTED_PER_INSERTION: usize = 64;
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

/// Where a hash's shard is, of a power of two of them.
#[inline]
pub(crate) fn shard_index(hash: u64, shards: usize) -> usize {
    (hash >> 40) as usize & (shards - 1)
}

#[derive(Debug)]
#[repr(C, align(64))]
struct Shard<K, V, P: Payload> {
    inner: RwLock<Inner<K, V, P>>,
    /// Written under the lock, read without.
    len: Count,
    evictions: Count,
    /// Of the first shard: the weight of all entries. Shards share the capacity, so that it is exact, and chance does
    /// not leave parts of it empty. It is here and not beside what every read asks for, since all threads that insert
    /// write it.
    sum: Count,
}

#[derive(Debug)]
#[repr(C)]
struct Inner<K, V, P: Payload> {
    table: Table<P>,
    flights: Flights<K, V>,
    /// Numbers insertions.
    number: u32,
    /// Changes that fronts have to learn of.
    version: u64,
}

/// What went out of the table, to be dropped when no lock is held.
#[derive(Debug)]
struct Gone<P> {
    replaced: Option<P>,
    /// Most often none or one.
    evicted: Option<P>,
    more: Vec<P>,
}

impl<P> Gone<P> {
    const fn new() -> Self {
        Self {
            replaced: None,
            evicted: None,
            more: Vec::new(),
        }
    }

    fn push(&mut self, entry: P) {
        if self.evicted.is_none() {
            self.evicted = Some(entry);
        } else {
            self.more.push(entry);
        }
    }
}

/// Shards whose tables hold `P`.
pub(crate) struct Shards<K, V, P: Payload> {
    pub(crate) versions: Arc<Versions>,
    shards: Box<[Shard<K, V, P>]>,
    capacity: Count,
    pub(crate) chooser: Chooser,
    /// What decides in the place of the tables' queues, with that policy.
    moka: Option<ByMoka>,
    listener: Option<Listener<K, V>>,
}

impl<K, V, P: Payload> Shards<K, V, P> {
    pub(super) fn new(
        capacity: u64,
        is_weighed: bool,
        chooser: Chooser,
        listener: Option<Listener<K, V>>,
    ) -> Self {
        let shards = shard_count(capacity, is_weighed);
        let shard = |_| Shard {
            inner: RwLock::new(Inner {
                table: chooser.table(capacity),
                flights: Flights::new(),
                number: 0,
                version: 0,
            }),
            len: Count::new(0),
            evictions: Count::new(0),
            sum: Count::new(0),
        };
        Self {
            versions: (0..shards).map(|_| Version::new()).collect(),
            shards: (0..shards).map(shard).collect(),
            capacity: Count::new(capacity),
            moka: ByMoka::new(chooser.policy(), capacity),
            chooser,
            listener,
        }
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard<K, V, P> {
        &self.shards[shard_index(hash, self.shards.len())]
    }

    #[inline]
    pub(crate) fn version(&self, hash: u64) -> &Version {
        &self.versions[shard_index(hash, self.versions.len())]
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity.load(Relaxed)
    }

    pub(crate) fn count(&self) -> usize {
        self.shards.len()
    }

    fn sum(&self, count: impl Fn(&Shard<K, V, P>) -> &Count) -> u64 {
        let counts = self.shards.iter().map(|shard| count(shard).load(Relaxed));
        counts.sum()
    }

    pub(super) fn len(&self) -> u64 {
        self.sum(|shard| &shard.len)
    }

    #[inline]
    fn sum_of_weights(&self) -> &Count {
        &self.shards[0].sum
    }

    pub(super) fn weight(&self) -> u64 {
        self.sum_of_weights().load(Relaxed)
    }

    pub(super) fn evictions(&self) -> u64 {
        self.sum(|shard| &shard.evictions)
    }

    pub(super) fn is_computed(&self, hash: u64) -> bool {
        self.shard(hash).inner.read().flights.is_computed(hash)
    }

    pub(super) fn follow(&self, hash: u64, new: Arc<Flight<K, V>>) -> Option<Arc<Flight<K, V>>> {
        let mut inner = self.shard(hash).inner.write();
        // Nobody waits for a refresh.
        let under_way = inner.flights.current(hash);
        let under_way = under_way.filter(|under_way| !under_way.is_refresh)?;
        Some(Arc::clone(under_way.flight.get_or_insert(new)))
    }

    pub(super) fn end(&self, hash: u64, number: u64) -> Option<Arc<Flight<K, V>>> {
        let ended = self.shard(hash).inner.write().flights.end(hash, number);
        ended?.0.flight
    }

    /// Publishes a shard's length for readers that do not take its lock.
    fn publish(shard: &Shard<K, V, P>, inner: &Inner<K, V, P>) {
        shard.len.store(inner.table.len() as u64, Relaxed);
    }

    /// Tells fronts that what they have of a hash's shard may be outdated.
    fn bump(&self, hash: u64, inner: &mut Inner<K, V, P>) {
        inner.version += 1;
        self.version(hash).set(inner.version);
    }

    fn weigh(&self, added: i64) -> u64 {
        if added < 0 {
            self.sum_of_weights()
                .fetch_sub(added.unsigned_abs(), Relaxed)
        } else {
            self.sum_of_weights()
                .fetch_add(added.unsigned_abs(), Relaxed)
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

    /// Throws one entry out of a shard, other than the one in the slot `kept`; with its hash and weight. The caller
    /// publishes, bumps the version and weighs.
    fn evict_locked(
        &self,
        shard: &Shard<K, V, P>,
        inner: &mut Inner<K, V, P>,
        kept: u32,
        excess: u64,
    ) -> Option<(u64, u32, P)> {
        // A shard's part is what it holds when the cache is full, less what is beyond the capacity now.
        let part = inner.table.weight().saturating_sub(excess.max(1));
        let limits = self.chooser.limits(part.max(1));
        let evicted = inner.table.evict(limits, kept)?;
        // Only this shard's lock orders these, which is held.
        let count = shard.evictions.load(Relaxed) + 1;
        shard.evictions.store(count, Relaxed);
        Some(evicted)
    }

    /// By how much the entries outweigh the capacity.
    fn excess(&self) -> u64 {
        self.weight().saturating_sub(self.capacity())
    }

    /// Throws some entries of a shard out while the cache is beyond its capacity, but not the one of `kept`; returns their weight.
    fn evict_some(&self, index: usize, kept: u64, gone: &mut Gone<P>) -> u64 {
        let shard = &self.shards[index];
        let mut inner = shard.inner.write();
        let kept = inner.table.find(kept);
        let mut evicted = 0;
        for _ in 0..EVICTED_PER_LOCK {
            let excess = self.excess();
            if excess == 0 {
                break;
            }
            let part = excess.div_ceil(self.shards.len() as u64);
            let victim = self.evict_locked(shard, &mut inner, kept, part);
            let Some((hash, weight, entry)) = victim else {
                break;
            };
            if let Some(moka) = &self.moka {
                moka.forget(hash);
            }
            self.weigh(-i64::from(weight));
            evicted += u64::from(weight);
            gone.push(entry);
        }
        if evicted > 0 {
            inner.version += 1;
            self.versions[index].set(inner.version);
            Self::publish(shard, &inner);
        }
        evicted
    }

    fn take_locked(
        &self,
        shard: &Shard<K, V, P>,
        inner: &mut Inner<K, V, P>,
        hash: u64,
        matches: impl FnOnce(&P) -> bool,
    ) -> Option<P> {
        let (weight, taken) = inner.table.remove(hash, matches)?;
        self.weigh(-i64::from(weight));
        self.bump(hash, inner);
        Self::publish(shard, inner);
        Some(taken)
    }

    /// Takes an entry out if it is the one of this hash that `matches`, which must not call the user's code. A
    /// computation of the hash becomes outdated either way.
    pub(crate) fn take(&self, hash: u64, matches: impl FnOnce(&P) -> bool) -> Option<P> {
        let shard = self.shard(hash);
        let mut inner = shard.inner.write();
        inner.flights.outdate(hash);
        let taken = self.take_locked(shard, &mut inner, hash, matches);
        drop(inner);
        self.forget(hash, taken.is_some());
        taken
    }

    /// The same for an entry that has ended: a computation goes on.
    fn take_ended(&self, hash: u64, matches: impl FnOnce(&P) -> bool) -> Option<P> {
        let shard = self.shard(hash);
        let mut inner = shard.inner.write();
        let taken = self.take_locked(shard, &mut inner, hash, matches);
        drop(inner);
        self.forget(hash, taken.is_some());
        taken
    }

    /// Tells moka of an entry that was taken out, if one was.
    fn forget(&self, hash: u64, was_there: bool) {
        if let Some(moka) = self.moka.as_ref().filter(|_| was_there) {
            moka.forget(hash);
        }
    }

    /// Takes everything out of one shard; its computations become outdated.
    pub(crate) fn drain(&self, index: usize) -> impl Iterator<Item = P> + use<K, V, P> {
        let shard = &self.shards[index];
        let mut inner = shard.inner.write();
        let new = self.chooser.table(self.capacity());
        let table = std::mem::replace(&mut inner.table, new);
        inner.flights.outdate_all();
        self.sum_of_weights().fetch_sub(table.weight(), Relaxed);
        inner.version += 1;
        self.versions[index].set(inner.version);
        Self::publish(shard, &inner);
        drop(inner);
        if let Some(moka) = &self.moka {
            let entries = table.page(0, table.slots());
            entries.for_each(|(hash, _)| moka.forget(hash));
        }
        table.into_entries()
    }
}

impl<K: 'static, V: 'static, P: Stored<K, V>> Shards<K, V, P> {
    /// The entry of a hash, whatever its key, without a word to the policy.
    pub(crate) fn get(&self, hash: u64) -> Option<P> {
        self.shard(hash).inner.read().table.peek(hash)?.copied()
    }

    /// The entry of a hash, read.
    #[inline(always)]
    pub(crate) fn read(&self, hash: u64) -> Option<P> {
        let inner = self.shard(hash).inner.read();
        let (entry, weight) = inner.table.read(hash)?;
        let entry = entry.copied();
        drop(inner);
        if let Some(weight) = weight {
            self.first_read(hash, weight);
        }
        entry
    }

    /// Of a tick.
    #[cold]
    #[inline(never)]
    fn first_read(&self, hash: u64, weight: u32) {
        if let Some(moka) = &self.moka {
            moka.read(hash);
        }
        self.sample(hash, weight);
    }

    /// The same, and the version under which a front may keep it.
    #[inline]
    pub(crate) fn read_versioned(&self, hash: u64) -> (u64, Option<P>) {
        let mut version = self.version(hash).current();
        let entry = self.read(hash);
        if mutant::is("front_version_after_fetch") {
            version = self.version(hash).current();
        }
        (version, entry)
    }

    /// Another capacity. Drops what was beyond it.
    pub(crate) fn resize(&self, capacity: u64) {
        self.capacity.store(capacity, Relaxed);
        self.chooser.reset();
        if let Some(moka) = &self.moka {
            moka.reset(capacity);
            for shard in &self.shards {
                let held: Vec<(u64, u32)> = shard.inner.read().table.weights().collect();
                held.iter()
                    .for_each(|(hash, weight)| moka.insert(*hash, *weight));
            }
            self.evict_by(moka);
        }
        // A hash of no entry, most likely; if it is one, that entry goes with the next insertion.
        self.make_room(u64::MAX, u64::MAX, usize::MAX);
    }

    /// Throws out what moka says.
    fn evict_by(&self, moka: &ByMoka) {
        for hash in moka.victims(self.excess() > 0) {
            let shard = self.shard(hash);
            let mut inner = shard.inner.write();
            let taken = self.take_locked(shard, &mut inner, hash, |_| true);
            let count = shard.evictions.load(Relaxed) + u64::from(taken.is_some());
            shard.evictions.store(count, Relaxed);
            drop(inner);
            self.tell(taken, Removal::Evicted);
        }
    }

    /// Throws out what is beyond the capacity, from all shards in turn, but not the entry of `kept`, and tells the listener. It ends early when
    /// both the weight `own` and `count` entries are made up for.
    #[cold]
    fn make_room(&self, kept: u64, own: u64, count: usize) {
        let shards = self.shards.len();
        let (mut evicted, mut visits, mut in_vain) = (0, 0, 0);
        let mut index = shard_index(kept, shards);
        while in_vain < shards
            && self.excess() > 0
            && (evicted < own || visits * EVICTED_PER_LOCK < count)
        {
            let mut gone = Gone::new();
            let weight = self.evict_some(index, kept, &mut gone);
            in_vain = if weight == 0 { in_vain + 1 } else { 0 };
            evicted += weight;
            visits += 1;
            index = (index + 1) % shards;
            self.tell_gone(&mut gone);
        }
    }

    /// Drops an entry that was taken out, and tells the listener. To be called with nothing locked.
    pub(crate) fn tell(&self, entry: Option<P>, why: Removal) {
        if let Some(listener) = &self.listener
            && let Some(entry) = &entry
            && let Some(value) = entry.value()
        {
            listener(entry.key(), value, why);
        }
    }

    #[inline]
    fn tell_gone(&self, gone: &mut Gone<P>) {
        if self.listener.is_some() {
            self.tell(gone.replaced.take(), Removal::Replaced);
            self.tell(gone.evicted.take(), Removal::Evicted);
            for entry in gone.more.drain(..) {
                self.tell(Some(entry), Removal::Evicted);
            }
        }
    }

    /// Takes an entry out that has ended, if it is the one of this hash that `matches`. Returns whether it was.
    pub(crate) fn drop_ended(&self, hash: u64, matches: impl FnOnce(&P) -> bool) -> bool {
        let taken = self.take_ended(hash, matches);
        let was_there = taken.is_some();
        self.tell(taken, Removal::Expired);
        was_there
    }

    /// Shows an access to the policy, if it is one of the sample.
    #[inline]
    fn sample(&self, hash: u64, weight: u32) {
        if self.chooser.samples(hash) && self.chooser.is_ready(self.weight(), self.capacity()) {
            let held = || (self.len(), self.weight());
            self.chooser.access(hash, weight, self.capacity(), held);
        }
    }

    #[inline]
    pub(super) fn put(&self, entry: Entry<K, V>) {
        self.put_if(entry, |_| true);
    }

    /// Puts an entry in if what its hash has now `matches`, which must not call the user's code; its computation
    /// becomes outdated then. Returns whether it did.
    #[inline]
    pub(crate) fn put_if(
        &self,
        entry: Entry<K, V>,
        matches: impl FnOnce(Option<&P>) -> bool,
    ) -> bool {
        let place = (entry.hash, entry.weight);
        let Some(entry) = P::new(entry) else {
            return false;
        };
        let shard = self.shard(place.0);
        let mut inner = shard.inner.write();
        let at = inner.table.find(place.0);
        if !matches(inner.table.at(at)) {
            drop(inner);
            drop(entry);
            return false;
        }
        inner.flights.outdate(place.0);
        let mut gone = Gone::new();
        self.put_locked(shard, &mut inner, at, place, entry, &mut gone);
        drop(inner);
        self.end_put(place, &mut gone);
        true
    }

    /// Puts an entry in; `at` is the slot of its hash.
    #[inline]
    fn put_locked(
        &self,
        shard: &Shard<K, V, P>,
        inner: &mut Inner<K, V, P>,
        at: u32,
        (hash, weight): (u64, u32),
        mut entry: P,
        gone: &mut Gone<P>,
    ) {
        inner.number = inner.number.wrapping_add(1);
        entry.set_number(inner.number);
        let mut added = i64::from(weight);
        let replaced = &mut gone.replaced;
        let inserted = inner.table.insert(at, (hash, weight), entry, replaced);
        added -= i64::from(inserted.replaced);
        if self.moka.is_some() {
            // It says what goes when the lock is released.
            self.weigh(added);
            added = 0;
        }
        while !self.admits(added) {
            let excess = self.weight().saturating_add_signed(added);
            let excess = excess.saturating_sub(self.capacity());
            let victim = self.evict_locked(shard, inner, inserted.at, excess);
            let Some((_, weight, entry)) = victim else {
                // The others' turn: `make_room`, when this lock is released.
                self.weigh(added);
                break;
            };
            added -= i64::from(weight);
            gone.push(entry);
        }
        // A tick: so that fronts tell the policy, by way of the table, what they have read.
        if gone.replaced.is_some() || inserted.is_tick || gone.evicted.is_some() {
            self.bump(hash, inner);
        }
        Self::publish(shard, inner);
    }

    /// What is left to do of an insertion when its lock is released. Tells the listener what went.
    #[inline]
    fn end_put(&self, (hash, weight): (u64, u32), gone: &mut Gone<P>) {
        if let Some(moka) = &self.moka {
            moka.insert(hash, weight);
            self.evict_by(moka);
        }
        if self.excess() > 0 {
            self.make_room(hash, u64::from(weight), EVICTED_PER_INSERTION);
        }
        self.sample(hash, weight);
        self.tell_gone(gone);
    }

    #[inline]
    pub(super) fn land(&self, number: u64, entry: Entry<K, V>, is_kept: bool) {
        let place @ (hash, _) = (entry.hash, entry.weight);
        let Some(entry) = P::new(entry) else {
            return;
        };
        let shard = self.shard(hash);
        let mut inner = shard.inner.write();
        let ended = inner.flights.end(hash, number);
        let is_current = ended.as_ref().is_some_and(|(_, is_current)| *is_current);
        // Whoever has put one in since then has made this computation outdated.
        let is_absent = is_current && ended.as_ref().is_some_and(|(ended, _)| ended.was_absent);
        let flight = ended.and_then(|(ended, _)| ended.flight);
        // Most often nobody waits.
        let copy = flight.as_ref().and_then(|_| entry.copied());
        let mut gone = Gone::new();
        let mut unkept = None;
        let mut outdated = None;
        let is_put = is_kept && (is_current || mutant::is("flight_lands_after_invalidate"));
        if is_put {
            let at = if is_absent {
                NONE
            } else {
                inner.table.find(hash)
            };
            self.put_locked(shard, &mut inner, at, place, entry, &mut gone);
        } else {
            unkept = Some(entry);
            if is_current {
                outdated = self.take_locked(shard, &mut inner, hash, |_| true);
            }
        }
        drop(inner);
        self.forget(hash, outdated.is_some());
        if let Some(flight) = flight {
            let computed = copy.map(|copy| Outcome::Computed(copy.into_entry(hash, None)));
            flight.settle(computed.unwrap_or(Outcome::Abandoned));
        }
        if is_put {
            self.end_put(place, &mut gone);
        }
        drop((gone, unkept));
        self.tell(outdated, Removal::Replaced);
    }

    pub(super) fn join(&self, hash: u64, is_refresh: bool) -> Joined<K, V> {
        let mut inner = self.shard(hash).inner.write();
        if let Some(under_way) = inner.flights.current(hash) {
            if is_refresh || !under_way.is_refresh {
                return Joined::Under(under_way.flight.clone());
            }
            // A caller who needs the value now outruns a refresh.
            inner.flights.outdate(hash);
        }
        let held = inner.table.peek(hash).and_then(P::copied);
        let held = held.filter(|_| !mutant::is("flight_without_second_look"));
        let number = inner.flights.begin(hash, is_refresh, held.is_none());
        drop(inner);
        Joined::Lead(number, held.map(|held| held.into_entry(hash, None)))
    }

    /// Calls `visit` with each entry and its hash, a portion of a shard after the other. Nothing is locked meanwhile.
    /// If it `outdates`, the computations of a shard are outdated before its first portion is looked at.
    pub(crate) fn each(&self, outdates: bool, mut visit: impl FnMut(u64, P)) {
        let mut page = Vec::new();
        for shard in &self.shards {
            if outdates {
                shard.inner.write().flights.outdate_all();
            }
            let mut slots = usize::MAX;
            for from in (0..).step_by(PAGE) {
                if from >= slots {
                    break;
                }
                let inner = shard.inner.read();
                let entry = |(hash, entry): (u64, &P)| Some((hash, entry.copied()?));
                page.extend(inner.table.page(from, PAGE).filter_map(entry));
                slots = inner.table.slots();
                drop(inner);
                for (hash, entry) in page.drain(..) {
                    visit(hash, entry);
                }
            }
        }
    }
}

impl<K, V, P: Payload> fmt::Debug for Shards<K, V, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shards")
            .field("count", &self.shards.len())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_place::InPlace;

    #[test]
    fn a_shard_is_four_lines_at_most() {
        assert!(size_of::<Shard<u64, u64, InPlace<u64, u64>>>() <= 256);
        assert!(size_of::<Shard<String, u64, Arc<Entry<String, u64>>>>() <= 256);
    }
}
