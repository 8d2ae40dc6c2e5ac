//! Series whose attributes are known at run time only.
//!
//! A table of open addressing with twice as many slots as there can be entries, so that a probe always ends. A series has up
//! to two entries, by its contents and by the places of its texts. Series are never removed: a look-up takes no lock, and
//! what it finds stays. Whatever exceeds the limit counts in one series with the attribute `otel.metric.overflow = true`:
//! <https://opentelemetry.io/docs/specs/otel/metrics/sdk/#overflow-attribute>.

use crate::MetricsError;
use crate::attributes::{KeyValue, hash_set, normalize, repeats_keys, same_set};
use crate::places::{self, Place};
use crate::series::SeriesCell;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Sets larger than this count in the overflow series: 128, as the SDK's limit for spans.
pub const ATTRIBUTES_MAX: usize = 128;

/// One series with its attributes.
#[derive(Debug)]
pub(crate) struct Series<C> {
    pub(crate) attributes: Arc<[KeyValue]>,
    /// Where the texts of `attributes` are, in the order in which they were given; empty if they were not constants.
    pub(crate) places: Box<[Place]>,
    pub(crate) cell: C,
}

#[derive(Debug)]
struct Slot<C> {
    /// The hash of the series' attributes, zero while there is none.
    tag: AtomicU64,
    series: OnceLock<Arc<Series<C>>>,
}

#[derive(Debug)]
pub(crate) struct Dynamic<C> {
    hash: RandomState,
    /// For the hash of places.
    seed: u64,
    /// How many series there can be besides overflow.
    limit: usize,
    /// Made at the first use: most instruments have none.
    slots: OnceLock<Box<[Slot<C>]>>,
    overflow: Arc<Series<C>>,
    /// No series is made any more.
    is_full: AtomicBool,
    /// In order of their making. Whoever adds a series holds the lock meanwhile.
    made: Mutex<Vec<Arc<Series<C>>>>,
}

impl<C: SeriesCell> Dynamic<C> {
    pub(crate) fn new(name: &str, spec: &C::Spec, limit: usize) -> Result<Self, MetricsError> {
        let hash = RandomState::default();
        Ok(Self {
            seed: hash.hash_one(0),
            hash,
            limit,
            slots: OnceLock::new(),
            overflow: Arc::new(Series {
                attributes: Arc::new([KeyValue::new("otel.metric.overflow", true)]),
                places: Box::default(),
                cell: C::new(name, spec)?,
            }),
            is_full: AtomicBool::new(limit == 0),
            made: Mutex::default(),
        })
    }

    /// The series of these attributes, of which there is at least one.
    #[inline]
    pub(crate) fn get(&self, name: &str, spec: &C::Spec, attributes: &[KeyValue]) -> &C {
        // Most attributes are constants: where their texts are identifies them at half the cost of what they say.
        if let Some(series) = self.find(places::tag(self.seed, attributes), |series| {
            places::match_all(&series.places, attributes)
        }) {
            return &series.cell;
        }
        match self.find_set(self.tag(attributes), attributes) {
            Some(series) => &series.cell,
            None => self.get_slow(name, spec, attributes),
        }
    }

    #[inline(never)]
    fn find_set(&self, tag: u64, attributes: &[KeyValue]) -> Option<&Series<C>> {
        self.find(tag, |series| same_set(&series.attributes, attributes))
    }

    #[inline]
    fn tag(&self, attributes: &[KeyValue]) -> u64 {
        hash_set(&self.hash, attributes) | 1
    }

    #[inline]
    fn find(&self, tag: u64, is_it: impl Fn(&Series<C>) -> bool) -> Option<&Series<C>> {
        let slots = self.slots.get()?;
        let mut place = (tag >> 1) as usize;
        loop {
            // The number of slots is a power of two, and half of them stay empty.
            let slot = slots.get(place & (slots.len() - 1))?;
            // Acquire: the series was put there before the tag.
            match slot.tag.load(Ordering::Acquire) {
                0 => return None,
                other if other == tag => {
                    if let Some(series) = slot.series.get()
                        && is_it(series)
                    {
                        return Some(series);
                    }
                }
                _ => {}
            }
            place = place.wrapping_add(1);
        }
    }

    #[cold]
    #[inline(never)]
    fn get_slow(&self, name: &str, spec: &C::Spec, attributes: &[KeyValue]) -> &C {
        if attributes.len() > ATTRIBUTES_MAX {
            return &self.overflow.cell;
        }
        if self.is_full.load(Ordering::Relaxed) && !repeats_keys(attributes) {
            return &self.overflow.cell;
        }
        let normal = normalize(attributes);
        let tag = self.tag(&normal);
        if let Some(series) = self.find_set(tag, &normal) {
            return &series.cell;
        }
        let mut made = self.made.lock();
        // Another thread may have made it while this one waited.
        if self.find_set(tag, &normal).is_none() {
            if self.is_full.load(Ordering::Relaxed) {
                return &self.overflow.cell;
            }
            // The process may be out of cells before this instrument is at its limit.
            let Ok(cell) = C::new(name, spec) else {
                self.is_full.store(true, Ordering::Relaxed);
                return &self.overflow.cell;
            };
            let series = Arc::new(Series {
                places: places::of_constants(attributes, &normal),
                attributes: normal.as_slice().into(),
                cell,
            });
            self.put(tag, Arc::clone(&series));
            if !series.places.is_empty() {
                self.put(places::tag(self.seed, attributes), Arc::clone(&series));
            }
            made.push(series);
            self.is_full
                .store(made.len() >= self.limit, Ordering::Relaxed);
        }
        drop(made);
        self.find_set(tag, &normal)
            .map_or(&self.overflow.cell, |series| &series.cell)
    }

    /// The lock of `made` is held.
    fn put(&self, tag: u64, series: Arc<Series<C>>) {
        let slots = self.slots.get_or_init(|| {
            let len = (self.limit * 4).next_power_of_two();
            let empty = || Slot {
                tag: AtomicU64::new(0),
                series: OnceLock::new(),
            };
            std::iter::repeat_with(empty).take(len).collect()
        });
        let start = (tag >> 1) as usize;
        let places = (0..slots.len()).map(|step| start.wrapping_add(step) & (slots.len() - 1));
        if let Some(slot) = places
            .map(|place| &slots[place])
            .find(|slot| slot.tag.load(Ordering::Relaxed) == 0)
        {
            // Only the holder of the lock puts, so this slot's series is not set.
            let _ = slot.series.set(series);
            slot.tag.store(tag, Ordering::Release);
        }
    }

    /// Calls `visit` with each series.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&Series<C>)) {
        // Overflow comes first, so that the places of series in a snapshot stay the same as more are made.
        visit(&self.overflow);
        // Visited by place, so that no lock is held while cells are read.
        let mut place = 0;
        loop {
            let series = self.made.lock().get(place).cloned();
            let Some(series) = series else { return };
            visit(&series);
            place += 1;
        }
    }

    /// Holds the lock while `run` runs.
    pub(crate) fn hold(&self, run: &mut dyn FnMut()) {
        let _made = self.made.lock();
        run();
    }
}
