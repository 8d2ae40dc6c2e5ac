//! Series whose attributes are known at run time only.
//!
//! They are found in a [`Table`], which takes no lock. Whatever exceeds the limit counts in one series with the
//! attribute `otel.metric.overflow = true`: <https://opentelemetry.io/docs/specs/otel/metrics/sdk/#overflow-attribute>.
//!
//! # Series that go away
//! A removed series leaves the table: its slots become tombstones, and what records to its attributes from then on
//! makes a new series. A recorder that had found it before may still add to it. So it stays in the list of those that
//! leave, and is read at each collection, until every reader has its last value and no other reference to it is left.
//! The first table is never replaced, as look-ups borrow from it; once too many of its slots are used, be it by
//! tombstones, look-ups go to a table that is replaced as a whole, through `arc-swap`, which costs some 20 ns more. The
//! first has two slots for each series of the limit, which most instruments never come near; the others have up to
//! eight for each series that there is when they are made, and are replaced also when most of what is in them was
//! removed: a series that a table knows is read at each collection.

use crate::addresses::{self, ValueAddress};
use crate::attributes::{KeyValue, hash_set, normalize, overflow_set, repeats_keys, same_set};
use crate::liveness::{Leaving, Liveness};
use crate::primitive::{Mutex, mutant};
use crate::series::SeriesCell;
use crate::table::{EMPTY, Series, Table, next_id};
use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// Sets larger than this count in the overflow series: 128, as the SDK's limit for spans.
pub const ATTRIBUTES_MAX: usize = 128;

/// So many series an instrument gets even when less than a quarter of the cells is left, so that the cardinality of others does not
/// starve it.
const SERIES_GUARANTEED: usize = 64;

/// So many series are visited under one lock.
const BATCH: usize = 32;

/// Tables other than the first have room for as many series as were there four times, or for so many.
const RENEWED_ENTRIES_MIN: usize = 64;

/// Under the lock.
#[derive(Debug)]
struct Made<C> {
    live: BTreeMap<u64, Arc<Series<C>>>,
    leaving: Vec<Arc<Series<C>>>,
    /// Those of `leaving` that a handle binds, as far as known: their ids with their attributes.
    held: Vec<(u64, Arc<[KeyValue]>)>,
}

#[derive(Debug)]
pub(crate) struct Dynamic<C> {
    hash: RandomState,
    /// For the hash of addresses.
    seed: u64,
    /// How many series there can be besides overflow.
    limit: usize,
    /// Made at the first use: most instruments have none.
    first: OnceLock<Table<C>>,
    /// In the place of `first` once that is worn out.
    replaced: OnceLock<ArcSwap<Table<C>>>,
    overflow: Arc<Series<C>>,
    /// No series is made any more.
    is_full: AtomicBool,
    /// There were no cells when the slab had this number of returns.
    starved_at: AtomicU32,
    is_starved: AtomicBool,
    made: Mutex<Made<C>>,
}

impl<C: SeriesCell> Dynamic<C> {
    pub(crate) fn new(overflow: C, limit: usize, start: SystemTime) -> Self {
        let hash = RandomState::default();
        Self {
            seed: hash.hash_one(0),
            hash,
            limit,
            first: OnceLock::new(),
            replaced: OnceLock::new(),
            overflow: Arc::new(Series::fixed(&overflow_set(), overflow, start)),
            is_full: AtomicBool::new(limit == 0),
            starved_at: AtomicU32::new(0),
            is_starved: AtomicBool::new(false),
            made: Mutex::new(Made {
                live: BTreeMap::new(),
                leaving: Vec::new(),
                held: Vec::new(),
            }),
        }
    }

    /// Runs `run` with the series of these attributes, of which there is at least one. `is_record` says that it is recorded to, so that
    /// a series that is made now is exported whatever it holds.
    #[inline]
    pub(crate) fn with<R>(
        &self,
        name: &str,
        spec: &C::Spec,
        attributes: &[KeyValue],
        is_record: bool,
        run: impl FnOnce(&C) -> R,
    ) -> R {
        match self.replaced.get() {
            None => {
                // Two are the most common, and their number is often known where they are recorded.
                let found = match <&[KeyValue; 2]>::try_from(attributes) {
                    Ok(two) => self.find_first_two(two),
                    Err(_) => self.find_first(attributes),
                };
                if let Some(series) = found.or_else(|| self.find_first_set(attributes)) {
                    return run(&series.cell);
                }
            }
            Some(table) => {
                if let Some(series) = self.find(&table.load(), attributes) {
                    return run(&series.cell);
                }
            }
        }
        run(&self.get_slow(name, spec, attributes, is_record).cell)
    }

    /// Not inlined, as the two that follow: they would be large at each place that records.
    #[inline(never)]
    fn find_first_two(&self, attributes: &[KeyValue; 2]) -> Option<&Series<C>> {
        self.find_at(self.first.get()?, attributes)
    }

    #[inline(never)]
    fn find_first(&self, attributes: &[KeyValue]) -> Option<&Series<C>> {
        self.find_by_addresses(self.first.get()?, attributes)
    }

    #[inline(never)]
    fn find_first_set(&self, attributes: &[KeyValue]) -> Option<&Series<C>> {
        self.find_set(self.first.get()?, attributes)
            .map(|series| &**series)
    }

    /// Most attributes are constants: where their texts are identifies them at half the cost of what they say.
    fn find<'a>(&self, table: &'a Table<C>, attributes: &[KeyValue]) -> Option<&'a Series<C>> {
        let by_addresses = self.find_by_addresses(table, attributes);
        by_addresses.or_else(|| self.find_set(table, attributes).map(|series| &**series))
    }

    #[inline]
    fn find_by_addresses<'a>(
        &self,
        table: &'a Table<C>,
        attributes: &[KeyValue],
    ) -> Option<&'a Series<C>> {
        if let Ok(one) = <&[KeyValue; 1]>::try_from(attributes) {
            self.find_at(table, one)
        } else if let Ok(two) = <&[KeyValue; 2]>::try_from(attributes) {
            self.find_at(table, two)
        } else {
            self.find_many_at(table, attributes)
        }
    }

    /// Of so few attributes that the addresses of their values fit into registers.
    #[inline]
    fn find_at<'a, const N: usize>(
        &self,
        table: &'a Table<C>,
        attributes: &[KeyValue; N],
    ) -> Option<&'a Series<C>> {
        let values = attributes.each_ref().map(ValueAddress::of);
        let tag = addresses::tag(self.seed, values.iter().copied());
        let found = table.find(tag, |series| {
            addresses::are_in(&series.addresses, attributes, &values)
        });
        found.map(|series| &**series)
    }

    #[inline(never)]
    fn find_many_at<'a>(
        &self,
        table: &'a Table<C>,
        attributes: &[KeyValue],
    ) -> Option<&'a Series<C>> {
        let tag = addresses::tag(self.seed, attributes.iter().map(ValueAddress::of));
        let found = table.find(tag, |series| {
            addresses::match_all(&series.addresses, attributes)
        });
        found.map(|series| &**series)
    }

    #[inline(never)]
    fn find_set<'a>(
        &self,
        table: &'a Table<C>,
        attributes: &[KeyValue],
    ) -> Option<&'a Arc<Series<C>>> {
        table.find(self.tag(attributes), |series| {
            same_set(&series.attributes, attributes)
        })
    }

    /// In the table that is in use.
    fn find_now(&self, attributes: &[KeyValue]) -> Option<Arc<Series<C>>> {
        match self.replaced.get() {
            None => self
                .first
                .get()
                .and_then(|table| self.find_set(table, attributes).cloned()),
            Some(table) => self.find_set(&table.load(), attributes).cloned(),
        }
    }

    #[inline]
    fn tag(&self, attributes: &[KeyValue]) -> u64 {
        hash_set(&self.hash, attributes) | 1
    }

    /// Whether there is no cell for another series, and nothing that was given back since that was last tried.
    fn is_starved(&self) -> bool {
        self.is_starved.load(Ordering::Relaxed)
            && self.starved_at.load(Ordering::Relaxed) == C::returns()
    }

    #[cold]
    #[inline(never)]
    fn get_slow(
        &self,
        name: &str,
        spec: &C::Spec,
        attributes: &[KeyValue],
        is_record: bool,
    ) -> Arc<Series<C>> {
        let overflow = || Arc::clone(&self.overflow);
        if attributes.len() > ATTRIBUTES_MAX {
            return overflow();
        }
        let is_closed = || self.is_full.load(Ordering::Relaxed) || self.is_starved();
        if is_closed() && !repeats_keys(attributes) {
            return overflow();
        }
        let normal = normalize(attributes);
        if same_set(&normal, &self.overflow.attributes) {
            return overflow();
        }
        let mut made = self.made.lock();
        // Another thread may have made it while this one waited.
        if let Some(series) = self.find_now(&normal) {
            return series;
        }
        if is_closed() {
            return overflow();
        }
        if let Some(series) = self.come_back(&normal, &mut made) {
            return series;
        }
        let returns = C::returns();
        let is_allowed = made.live.len() < SERIES_GUARANTEED || C::has_spare_cells();
        // The process may be out of cells before this instrument is at its limit.
        let Some(cell) = is_allowed.then(|| C::new(name, spec).ok()).flatten() else {
            self.starved_at.store(returns, Ordering::Relaxed);
            self.is_starved.store(true, Ordering::Relaxed);
            return overflow();
        };
        let addresses = addresses::of_constants(attributes, &normal);
        let series = Arc::new(Series {
            id: next_id(),
            tags: [
                self.tag(&normal),
                if addresses.is_empty() {
                    EMPTY
                } else {
                    addresses::tag(self.seed, attributes.iter().map(ValueAddress::of))
                },
            ],
            addresses,
            attributes: normal.as_slice().into(),
            cell,
            liveness: Liveness::new(SystemTime::now(), is_record),
        });
        made.live.insert(series.id, Arc::clone(&series));
        self.put(&series, &made);
        self.is_full
            .store(made.live.len() >= self.limit, Ordering::Relaxed);
        series
    }

    /// The series of these attributes that is leaving but bound by a handle: there are not to be two that are recorded to.
    fn come_back(&self, normal: &[KeyValue], made: &mut Made<C>) -> Option<Arc<Series<C>>> {
        let Made { leaving, held, .. } = &mut *made;
        let id = held.iter().find(|(_, set)| same_set(set, normal))?.0;
        held.retain(|(other, _)| *other != id);
        let is_it = |series: &Arc<Series<C>>| series.id == id && series.cell.is_held();
        let index = leaving.iter().position(is_it)?;
        let series = leaving.swap_remove(index);
        series.liveness.stay();
        made.live.insert(series.id, Arc::clone(&series));
        self.put(&series, made);
        self.is_full
            .store(made.live.len() >= self.limit, Ordering::Relaxed);
        Some(series)
    }

    /// A table of the series that live, with room for more.
    fn renewed(&self, made: &Made<C>) -> Table<C> {
        let entries = made.live.len().saturating_mul(4).max(RENEWED_ENTRIES_MIN);
        let table = Table::new(entries.min(2 * self.limit));
        made.live.values().for_each(|series| table.put(series));
        table
    }

    /// `made` has the series already.
    fn put(&self, series: &Arc<Series<C>>, made: &Made<C>) {
        match self.replaced.get() {
            Some(table) => {
                let now = table.load();
                if now.has_room() {
                    now.put(series);
                } else {
                    table.store(Arc::new(self.renewed(made)));
                }
            }
            None => {
                let first = self.first.get_or_init(|| Table::new(self.limit));
                if first.has_room() {
                    first.put(series);
                } else {
                    // The lock is held, so no other thread sets it.
                    let _ = self.replaced.set(ArcSwap::from_pointee(self.renewed(made)));
                }
            }
        }
    }

    /// Takes the series of these attributes out; whether there was one.
    pub(crate) fn remove(&self, attributes: &[KeyValue]) -> bool {
        let normal = normalize(attributes);
        let mut made = self.made.lock();
        self.find_now(&normal)
            .is_some_and(|series| self.retire(&series, &mut made))
    }

    fn retire(&self, series: &Arc<Series<C>>, made: &mut Made<C>) -> bool {
        // Bounded: what leaves waits for readers, which may be slow or absent.
        let has_room = made.leaving.len() < self.limit.saturating_mul(4).saturating_add(64);
        if !has_room || made.live.remove(&series.id).is_none() {
            return false;
        }
        if let Some(table) = self.first.get() {
            table.bury(series);
        }
        if let Some(table) = self.replaced.get() {
            let now = table.load();
            now.bury(series);
            if now.is_mostly_buried() {
                table.store(Arc::new(self.renewed(made)));
            }
        }
        series.liveness.retire();
        if series.cell.is_held() {
            made.held.push((series.id, Arc::clone(&series.attributes)));
        }
        made.leaving.push(Arc::clone(series));
        self.is_full
            .store(made.live.len() >= self.limit, Ordering::Relaxed);
        true
    }

    /// Takes out the series for which `is_old` says so and that are bound by no handle.
    pub(crate) fn retire_if(&self, mut is_old: impl FnMut(&Series<C>) -> bool) {
        let mut made = self.made.lock();
        let old: Vec<_> = made
            .live
            .values()
            .filter(|series| !series.cell.is_held() && is_old(series))
            .cloned()
            .collect();
        for series in old {
            self.retire(&series, &mut made);
        }
    }

    /// Forgets a reader, whose slot another reader may take.
    pub(crate) fn forget(&self, reader: usize) {
        self.overflow.cell.forget(reader);
        let made = self.made.lock();
        for series in made.live.values().chain(&made.leaving) {
            series.cell.forget(reader);
        }
    }

    /// Whether a handle binds one of the series.
    pub(crate) fn is_held(&self) -> bool {
        let made = self.made.lock();
        let mut all = made.live.values().chain(&made.leaving);
        self.overflow.cell.is_held() || all.any(|series| series.cell.is_held())
    }

    /// Calls `visit` with each series in the order of their making, and says of those that leave how they do.
    ///
    /// The flag is `false` for what has left and was told. In the collection that tells the last value of a series, the series that
    /// follows it under the same attributes may be there too.
    pub(crate) fn for_each(
        &self,
        reader: usize,
        readers: u16,
        mut visit: impl FnMut(&Series<C>, bool),
    ) {
        visit(&self.overflow, true);
        let leaving = {
            let made = self.made.lock();
            made.leaving.clone()
        };
        let mut left: Vec<(Arc<Series<C>>, bool)> = Vec::new();
        for series in leaving {
            // One reference is the list's, one ours: no thread can record to it any more, if no handle binds the cell either.
            let is_last = (Arc::strong_count(&series) == 2
                || mutant::is("series_gone_while_found"))
                && !series.cell.is_held();
            std::sync::atomic::fence(Ordering::Acquire);
            match series
                .liveness
                .leave(reader, readers, is_last, series.cell.fingerprint())
            {
                Leaving::Tell => left.push((series, true)),
                // Stays in the reader's snapshot, so that what may come is told from there.
                Leaving::Known => left.push((series, false)),
                // Our reference is the last to be dropped, without the lock.
                Leaving::Gone => {
                    let mut made = self.made.lock();
                    made.leaving.retain(|other| !Arc::ptr_eq(other, &series));
                    made.held.retain(|(id, _)| *id != series.id);
                }
            }
        }
        left.sort_by_key(|(series, _)| series.id);
        let mut left = left.iter().peekable();
        // Visited in batches, so that no lock is held while cells are read, and on the stack, so that nothing is allocated.
        let mut batch: [Option<Arc<Series<C>>>; BATCH] = [const { None }; BATCH];
        let mut after = 0;
        loop {
            {
                let made = self.made.lock();
                let mut next = made.live.range((Bound::Excluded(after), Bound::Unbounded));
                batch.fill_with(|| next.next().map(|(_, series)| Arc::clone(series)));
            }
            for series in batch.iter().flatten() {
                after = series.id;
                while let Some((gone, is_told)) = left.next_if(|(gone, _)| gone.id < series.id) {
                    visit(gone, *is_told);
                }
                visit(series, true);
            }
            if batch[BATCH - 1].is_none() {
                break;
            }
        }
        left.for_each(|(gone, is_told)| visit(gone, *is_told));
    }

    /// How many series a collection visits, at least.
    pub(crate) fn len(&self) -> usize {
        let made = self.made.lock();
        1 + made.live.len() + made.leaving.len()
    }

    /// Holds the lock while `run` runs.
    pub(crate) fn hold(&self, run: &mut dyn FnMut()) {
        let _made = self.made.lock();
        run();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cells::{BoundCounter, SumSpec};
    use crate::liveness::ANONYMOUS;
    use crate::table::TOMBSTONES_MIN;

    #[test]
    fn what_was_removed_is_not_read_for_ever() {
        const LIMIT: usize = 100;
        let spec = SumSpec(None);
        let dynamic = Dynamic::new(
            BoundCounter::<u64>::detached(&spec),
            LIMIT,
            SystemTime::now(),
        );
        let set = |n: i64| [KeyValue::new("n", n)];
        let add = |n: i64| dynamic.with("c", &spec, &set(n), true, |cell| cell.add(1));
        let read = || {
            let mut sum = 0;
            // The first tells the last values, the second finds that they were told.
            for _ in 0..2 {
                dynamic.for_each(ANONYMOUS, 1 << ANONYMOUS, |_, is_told| {
                    sum += u64::from(is_told);
                });
            }
            (sum, dynamic.len())
        };
        // The first table keeps what was in it: three quarters of its slots, of which each series has two.
        let kept = (2 * LIMIT).next_power_of_two() * 3 / 4 / 2;
        for n in 0..10_000 {
            add(n);
            if n >= 10 {
                assert!(dynamic.remove(&set(n - 10)));
            }
            if n % 50 == 49 {
                let (_, visited) = read();
                let live = 1 + 10;
                assert!(
                    visited <= live + kept + TOMBSTONES_MIN as usize,
                    "{visited}"
                );
            }
        }
        // Many, all of which go at once.
        (10_000..10_000 + LIMIT as i64 - 10).for_each(add);
        dynamic.retire_if(|_| true);
        read();
        let (_, visited) = read();
        assert!(visited <= 1 + kept + TOMBSTONES_MIN as usize, "{visited}");
        assert!((0..10_000 + LIMIT as i64).all(|n| !dynamic.remove(&set(n))));
    }
}
