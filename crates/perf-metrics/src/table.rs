//! A table that finds series by their attributes without a lock.
//!
//! Open addressing, of which a quarter of the slots stays empty, so that a probe always ends. A series has up to two
//! entries, by its contents and by the addresses of its texts. What is removed leaves a tombstone and, until the table
//! is dropped, its series.

use crate::addresses::Address;
use crate::attributes::KeyValue;
use crate::liveness::Liveness;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// A number that is greater than all before it.
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// One series with its attributes.
#[derive(Debug)]
pub(crate) struct Series<C> {
    /// Greater than those of all series made before.
    pub(crate) id: u64,
    pub(crate) attributes: Arc<[KeyValue]>,
    /// Where the texts of `attributes` are, in the order in which they were given; empty if they were not constants.
    pub(crate) addresses: Box<[Address]>,
    pub(crate) cell: C,
    pub(crate) liveness: Liveness,
    /// The two hashes under which it is found; the second is zero if it has no addresses.
    pub(crate) tags: [u64; 2],
}

impl<C> Series<C> {
    pub(crate) fn fixed(attributes: &[KeyValue], cell: C, start: SystemTime) -> Self {
        Self {
            id: next_id(),
            attributes: attributes.into(),
            addresses: Box::default(),
            cell,
            liveness: Liveness::new(start, false),
            tags: [0; 2],
        }
    }
}

/// So many that a quarter is one at least.
const SLOTS_MIN: usize = 8;

/// So many tombstones are never too many.
pub(crate) const TOMBSTONES_MIN: u64 = 64;

/// Tags of series are odd.
pub(crate) const EMPTY: u64 = 0;
const TOMBSTONE: u64 = 2;

#[derive(Debug)]
struct Slot<C> {
    /// The hash of the series' attributes, or one of the two above.
    tag: AtomicU64,
    series: OnceLock<Arc<Series<C>>>,
}

#[derive(Debug)]
pub(crate) struct Table<C> {
    slots: Box<[Slot<C>]>,
    /// How many slots were used, those with tombstones too. Changed under the lock of `made`.
    used: AtomicU64,
    /// How many of them have tombstones.
    buried: AtomicU64,
}

impl<C> Table<C> {
    /// With room for so many entries if half of the slots are used.
    pub(crate) fn new(entries: usize) -> Self {
        let empty = || Slot {
            tag: AtomicU64::new(EMPTY),
            series: OnceLock::new(),
        };
        let len = (entries * 2).next_power_of_two().max(SLOTS_MIN);
        Self {
            slots: std::iter::repeat_with(empty).take(len).collect(),
            used: AtomicU64::new(0),
            buried: AtomicU64::new(0),
        }
    }

    /// Whether more of it are tombstones than series.
    pub(crate) fn is_mostly_buried(&self) -> bool {
        let buried = self.buried.load(Ordering::Relaxed);
        buried > TOMBSTONES_MIN && 2 * buried > self.used.load(Ordering::Relaxed)
    }

    /// Whether a series that is made now fits, such that a quarter of the slots stays empty.
    pub(crate) fn has_room(&self) -> bool {
        let used = self.used.load(Ordering::Relaxed) as usize;
        used + 2 <= self.slots.len() - self.slots.len() / 4
    }

    #[inline]
    pub(crate) fn find(
        &self,
        tag: u64,
        is_it: impl Fn(&Series<C>) -> bool,
    ) -> Option<&Arc<Series<C>>> {
        let slots = &*self.slots;
        let mut index = (tag >> 1) as usize;
        loop {
            // The number of slots is a power of two, and some of them stay empty.
            let slot = slots.get(index & (slots.len() - 1))?;
            // Acquire: the series was put there before the tag.
            match slot.tag.load(Ordering::Acquire) {
                EMPTY => return None,
                other if other == tag => {
                    if let Some(series) = slot.series.get()
                        && is_it(series)
                    {
                        return Some(series);
                    }
                }
                _ => {}
            }
            index = index.wrapping_add(1);
        }
    }

    fn probe(&self, tag: u64) -> impl Iterator<Item = &Slot<C>> {
        let start = (tag >> 1) as usize;
        (0..self.slots.len()).filter_map(move |step| {
            self.slots
                .get(start.wrapping_add(step) & (self.slots.len() - 1))
        })
    }

    /// The lock of `made` is held.
    pub(crate) fn put(&self, series: &Arc<Series<C>>) {
        for tag in series.tags.into_iter().filter(|tag| *tag != EMPTY) {
            if let Some(slot) = self
                .probe(tag)
                .find(|slot| slot.tag.load(Ordering::Relaxed) == EMPTY)
            {
                // Only the holder of the lock puts, so this slot's series is not set.
                let _ = slot.series.set(Arc::clone(series));
                slot.tag.store(tag, Ordering::Release);
                self.used.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The lock of `made` is held.
    pub(crate) fn bury(&self, series: &Arc<Series<C>>) {
        for tag in series.tags.into_iter().filter(|tag| *tag != EMPTY) {
            let is_it = |slot: &&Slot<C>| {
                slot.series
                    .get()
                    .is_some_and(|other| Arc::ptr_eq(other, series))
            };
            let until_empty = self
                .probe(tag)
                .take_while(|slot| slot.tag.load(Ordering::Relaxed) != EMPTY);
            for slot in until_empty.filter(is_it) {
                slot.tag.store(TOMBSTONE, Ordering::Relaxed);
                self.buried.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
