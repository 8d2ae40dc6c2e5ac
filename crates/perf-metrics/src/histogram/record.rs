//! The hot path of histograms.
//!
//! A range of cells holds [largest, smallest, sum, rejected] and then the buckets. Recording finds the bucket, adds to it and to the
//! sum, and compares with the extremes, all in this thread's copy of the cells: see [`Cells`] for what the orderings
//! rely on. The count is the sum of the buckets, so it is not counted. The buckets of negative values are a range apart, which is
//! reserved at the first of them: most histograms have none.

use super::bucket_table::{BucketTable, Domain};
use super::layout::{Layout, Shape};
use super::snapshot::HistogramSnapshot;
use crate::MetricsError;
use crate::exemplar::{Exemplar, ExemplarSource, Exemplars};
use crate::number::{Number, Value};
use parking_lot::Mutex;
use perf_atomics::slab::{self, CellHandle, Cells, WideRange};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

const MAX: usize = 0;
const MIN: usize = 1;
const SUM: usize = 2;
const REJECTED: usize = 3;
/// How many cells come before the buckets.
pub(crate) const HEADER_CELLS: usize = 4;

/// What a histogram can record: `u64` and `f64`.
pub trait HistogramNumber: Number {
    #[doc(hidden)]
    const DOMAIN: DomainOf;
    /// Order-preserving, and zero for no value but the least.
    #[doc(hidden)]
    fn to_key(self) -> u64;
    #[doc(hidden)]
    fn from_key(key: u64) -> Self;
    /// The bucket, if the table has a step for the value.
    #[doc(hidden)]
    fn bucket(self, table: &BucketTableRef<'_>) -> Option<u32>;
    /// The bucket without the table; `None` if the value cannot be recorded.
    #[doc(hidden)]
    fn bucket_slow(self, shape: &ShapeRef<'_>) -> Option<u32>;
}

/// Keeps private types out of a public trait's signature.
#[doc(hidden)]
#[derive(Debug)]
pub struct BucketTableRef<'a>(&'a BucketTable);

/// Keeps private types out of a public trait's signature.
#[doc(hidden)]
#[derive(Debug)]
pub struct ShapeRef<'a>(&'a Shape);

/// Keeps private types out of a public trait's signature.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct DomainOf(pub(crate) Domain);

impl HistogramNumber for u64 {
    const DOMAIN: DomainOf = DomainOf(Domain::U64);

    #[inline]
    fn to_key(self) -> u64 {
        self
    }

    #[inline]
    fn from_key(key: u64) -> Self {
        key
    }

    #[inline]
    fn bucket(self, table: &BucketTableRef<'_>) -> Option<u32> {
        table.0.bucket_u64(self)
    }

    fn bucket_slow(self, shape: &ShapeRef<'_>) -> Option<u32> {
        Some(shape.0.bucket_u64(self))
    }
}

impl HistogramNumber for f64 {
    const DOMAIN: DomainOf = DomainOf(Domain::F64);

    #[inline]
    fn to_key(self) -> u64 {
        // Negative numbers are in reverse order and below: all their bits are turned, of others the sign.
        let bits = self.to_bits();
        bits ^ ((bits as i64 >> 63) as u64 | 1 << 63)
    }

    #[inline]
    fn from_key(key: u64) -> Self {
        Self::from_bits(key ^ (!(key as i64 >> 63) as u64 | 1 << 63))
    }

    #[inline]
    fn bucket(self, table: &BucketTableRef<'_>) -> Option<u32> {
        table.0.bucket_f64(self)
    }

    fn bucket_slow(self, shape: &ShapeRef<'_>) -> Option<u32> {
        self.is_finite().then(|| shape.0.bucket_f64(self))
    }
}

/// One series of a histogram: a fixed set of attributes.
///
/// `f64`: not-a-number and infinities are rejected and counted as such ([`HistogramSnapshot::rejected`]), as they would spoil the sum
/// for good. Negative values have buckets of their own, for which cells are reserved at the first of them; if the process has none left,
/// they are rejected. The sum of `u64` wraps at `2^64`.
pub struct BoundHistogram<T = u64> {
    /// Of no cells if there are exemplars, so that every record takes the slow way.
    handle: CellHandle<true>,
    layout: Arc<Layout>,
    shared: Arc<Shared>,
    _number: PhantomData<fn(T)>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    range: WideRange,
    /// Of no cells if there were none left.
    negative: OnceLock<WideRange>,
    exemplars: Option<Exemplars>,
    /// What readers know of the extremes; no recorder comes here.
    extremes: Mutex<Extremes>,
}

/// The largest and smallest key since some time; zero and zero if there was none.
#[derive(Clone, Copy, Debug, Default)]
struct Extreme {
    max: u64,
    /// The complement of the smallest.
    min: u64,
}

impl Extreme {
    fn raise(&mut self, other: Self) {
        self.max = self.max.max(other.max);
        self.min = self.min.max(other.min);
    }

    /// Smallest and largest. A key of zero means none, but for the least integer as the largest value and the greatest as the
    /// smallest: these are real when they are both ends, of integers that were all the same.
    fn values<T: HistogramNumber>(self) -> (Option<Value>, Option<Value>) {
        let is_min = self.min != 0 || self.max == u64::MAX;
        let is_max = self.max != 0 || self.min == u64::MAX;
        (
            is_min.then(|| T::from_key(!self.min).to_value()),
            is_max.then(|| T::from_key(self.max).to_value()),
        )
    }
}

#[derive(Debug, Default)]
struct Extremes {
    ever: Extreme,
    /// By reader, since it last collected; as long as there were readers.
    since: Vec<Option<Extreme>>,
}

impl<T: HistogramNumber> BoundHistogram<T> {
    pub(crate) fn new(
        name: &str,
        layout: &Arc<Layout>,
        source: Option<&ExemplarSource>,
    ) -> Result<Self, MetricsError> {
        let len = HEADER_CELLS + layout.shape.positive_cells();
        let range = slab::reserve_wide(len).map_err(|source| MetricsError::NoCells {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self::of(range, layout, source))
    }

    /// What is recorded is lost.
    pub(crate) fn detached(layout: &Arc<Layout>) -> Self {
        Self::of(WideRange::detached(), layout, None)
    }

    fn of(range: WideRange, layout: &Arc<Layout>, source: Option<&ExemplarSource>) -> Self {
        let handle = match source {
            Some(_) => WideRange::detached().handle(),
            None => range.handle(),
        };
        Self {
            handle,
            layout: Arc::clone(layout),
            shared: Arc::new(Shared {
                range,
                negative: OnceLock::new(),
                exemplars: source.map(|source| Exemplars::new(source, layout.shape.cells())),
                extremes: Mutex::default(),
            }),
            _number: PhantomData,
        }
    }

    /// Records a value.
    #[inline]
    pub fn record(&self, value: T) {
        if let Some(bucket) = value.bucket(&BucketTableRef(&self.layout.table)) {
            // The bucket is the last of the cells asked for, so that one check covers all of them.
            let cell = HEADER_CELLS + bucket as usize;
            let recorded = self
                .handle
                .record_own(cell + 1, |cells| record_in(cells, cell, value));
            if recorded.is_some() {
                return;
            }
        }
        self.record_slow(value);
    }

    /// The first record of a thread, threads that share their cells, values that have no step, and every record of a series with
    /// exemplars.
    #[cold]
    #[inline(never)]
    fn record_slow(&self, value: T) {
        let bucket = value
            .bucket(&BucketTableRef(&self.layout.table))
            .or_else(|| value.bucket_slow(&ShapeRef(&self.layout.shape)));
        if let (Some(exemplars), Some(bucket)) = (&self.shared.exemplars, bucket) {
            exemplars.offer(bucket as usize, value);
        }
        let positive_cells = self.layout.shape.positive_cells();
        let place = match bucket.map(|bucket| bucket as usize) {
            Some(bucket) if bucket < positive_cells => Place::Here(HEADER_CELLS + bucket),
            Some(bucket) => match self.negative() {
                Some(range) => Place::Negative(range, bucket - positive_cells),
                None => Place::Nowhere,
            },
            None => Place::Nowhere,
        };
        self.shared.range.record(|cells| match place {
            Place::Here(cell) => record_in(cells, cell, value),
            Place::Negative(..) => record_but_bucket(cells, value),
            Place::Nowhere => cells.add(REJECTED, 1),
        });
        // After the extremes, which say to readers where to look.
        if let Place::Negative(range, cell) = place {
            range.add(cell, 1);
        }
    }

    /// The buckets of negative values; `None` if there are no cells for them.
    fn negative(&self) -> Option<&WideRange> {
        let make = || {
            let shape = &self.layout.shape;
            let len = shape.cells() - shape.positive_cells();
            slab::reserve_wide(len).unwrap_or_else(|_| WideRange::detached())
        };
        let range = self.shared.negative.get_or_init(make);
        (range.len() > 0).then_some(range)
    }

    /// Adds up the buckets of a window, over all threads, where `counts` is zero.
    fn sum_window(&self, window: Range<usize>, counts: &mut [u64]) {
        let positive_cells = self.layout.shape.positive_cells();
        let split = positive_cells.clamp(window.start, window.end) - window.start;
        let (positive, negative) = counts.split_at_mut(split);
        self.shared
            .range
            .sum_from(HEADER_CELLS + window.start, positive);
        if let Some(range) = self.shared.negative.get().filter(|_| !negative.is_empty()) {
            range.sum_from(window.start.max(positive_cells) - positive_cells, negative);
        }
    }

    /// What was recorded so far, by all threads. `reader` is a reader's slot, which has its extremes taken.
    ///
    /// Linear in the buckets between the smallest and the largest value.
    pub(crate) fn read(&self, reader: Option<usize>, out: &mut HistogramSnapshot) {
        let range = &self.shared.range;
        // One reader at a time, so that what is taken from the cells reaches all. Nothing orders the reads with a record
        // in flight: a part of it may be seen now and the rest next time.
        let mut extremes = self.shared.extremes.lock();
        let taken = Extreme {
            max: range.take_max(MAX),
            min: range.take_max(MIN),
        };
        extremes.ever.raise(taken);
        for since in extremes.since.iter_mut().flatten() {
            since.raise(taken);
        }
        let ever = extremes.ever;
        let since = reader.map(|reader| {
            if extremes.since.len() <= reader {
                extremes.since.resize(reader + 1, None);
            }
            extremes.since[reader]
                .replace(Extreme::default())
                .unwrap_or(ever)
        });
        drop(extremes);
        out.begin(&self.layout, self.used_buckets(ever));
        for (window, counts) in out.windows_mut() {
            self.sum_window(window, counts);
        }
        let sum = T::sum(range, SUM);
        let rejected = range.sum(REJECTED);
        out.finish(
            sum,
            rejected,
            ever.values::<T>(),
            since.map(Extreme::values::<T>),
        );
    }

    pub(crate) fn read_exemplars(&self, out: &mut Vec<Exemplar>) {
        if let Some(exemplars) = &self.shared.exemplars {
            exemplars.read::<T>(out);
        }
    }

    /// The only buckets that can hold something, in up to two parts: those from the smallest to the largest value. An extreme is raised
    /// before its bucket is counted; of a record in flight whose extreme is not seen yet, the bucket is seen by the next reading.
    fn used_buckets(&self, ever: Extreme) -> [std::ops::Range<usize>; 2] {
        let cells = self.layout.shape.cells();
        let all = [0..cells, 0..0];
        if ever.max == 0 && ever.min == 0 {
            return [0..0, 0..0];
        }
        // Of a record in flight one extreme may be known and the other not.
        let window = |first: usize, last: usize| first..(last + 1).max(first);
        let (Some(min), Some(max)) = (self.bucket_of_key(!ever.min), self.bucket_of_key(ever.max))
        else {
            return all;
        };
        match &self.layout.shape {
            Shape::Explicit(_) => [min.min(max)..(min.max(max) + 1).min(cells), 0..0],
            Shape::Exponential(e) => {
                // Zero, the positive side, the negative side by magnitude.
                let first_negative = 1 + e.len;
                match (min >= first_negative, max >= first_negative) {
                    (false, false) => [window(min, max), 0..0],
                    (true, false) => [0..max + 1, first_negative..min + 1],
                    (true, true) => [0..0, window(max, min)],
                    // Zero counts as not negative; a race of two readings alone leads here.
                    (false, true) => all,
                }
            }
        }
    }

    fn bucket_of_key(&self, key: u64) -> Option<usize> {
        let bucket = T::from_key(key).bucket_slow(&ShapeRef(&self.layout.shape))?;
        Some(bucket as usize)
    }

    /// Whether there is another handle than this one.
    pub(crate) fn is_held(&self) -> bool {
        Arc::strong_count(&self.shared) > 1
    }

    /// Forgets a reader, whose slot another reader may take.
    pub(crate) fn forget(&self, reader: usize) {
        if let Some(since) = self.shared.extremes.lock().since.get_mut(reader) {
            *since = None;
        }
    }
}

/// Where a value is counted.
#[derive(Clone, Copy)]
enum Place<'a> {
    Here(usize),
    Negative(&'a WideRange, usize),
    Nowhere,
}

#[inline]
fn record_in<T: HistogramNumber>(cells: Cells<'_>, cell: usize, value: T) {
    record_but_bucket(cells, value);
    cells.add(cell, 1);
}

#[inline]
fn record_but_bucket<T: HistogramNumber>(cells: Cells<'_>, value: T) {
    let key = value.to_key();
    cells.raise_until_taken(MAX, key);
    cells.raise_until_taken(MIN, !key);
    value.add_to(cells, SUM);
}

impl<T> Clone for BoundHistogram<T> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle,
            layout: Arc::clone(&self.layout),
            shared: Arc::clone(&self.shared),
            _number: PhantomData,
        }
    }
}

impl<T> fmt::Debug for BoundHistogram<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundHistogram")
            .field("cells", &self.shared.range.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_are_known_apart_from_each_other() {
        let values = |max: u64, min: u64| Extreme { max, min }.values::<u64>();
        let some = |value| Some(Value::U64(value));
        assert_eq!(values(0, 0), (None, None));
        assert_eq!(values(0, !0), (some(0), some(0)), "only zeros");
        assert_eq!(
            values(u64::MAX, 0),
            (some(u64::MAX), some(u64::MAX)),
            "only the greatest"
        );
        assert_eq!(values(9, !4), (some(4), some(9)));
        assert_eq!(
            (values(9, 0), values(0, !4)),
            ((None, some(9)), (some(4), None))
        );
    }

    #[test]
    fn keys_keep_the_order_of_floats_and_are_never_zero() {
        let ascending = [
            f64::MIN,
            -1.5,
            -1.0,
            -f64::MIN_POSITIVE,
            -0.0,
            0.0,
            f64::MIN_POSITIVE,
            1.0,
            f64::MAX,
        ];
        for pair in ascending.windows(2) {
            assert!(pair[0].to_key() < pair[1].to_key(), "{pair:?}");
        }
        for value in ascending {
            assert!(value.to_key() != 0 && !value.to_key() != 0);
            assert_eq!(f64::from_key(value.to_key()).to_bits(), value.to_bits());
        }
    }
}
