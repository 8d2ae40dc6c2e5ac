//! What was recorded to one series of a histogram, at one moment.

use super::layout::{Exponential, Layout, Shape};
use crate::number::Value;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// The state of one series of a histogram.
#[derive(Clone, Debug, Default)]
pub struct HistogramSnapshot {
    layout: Option<Arc<Layout>>,
    /// The only buckets that can hold something, in ascending order; most of an exponential histogram's hold nothing, and take no memory.
    windows: Windows,
    /// The counts of these buckets.
    counts: Vec<u64>,
    count: u64,
    sum: Option<Value>,
    rejected: u64,
    ever: Ends,
    since: Option<Ends>,
}

/// Up to two ranges of buckets.
pub(super) type Windows = [Range<usize>; 2];

/// The smallest and the largest value, as far as they are known.
pub(super) type Ends = (Option<Value>, Option<Value>);

/// One side of an exponential histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExponentialBuckets {
    /// Index of the first bucket.
    pub offset: i32,
    /// Counts from the first to the last bucket that holds something.
    pub counts: Vec<u64>,
}

impl ExponentialBuckets {
    /// The buckets at a scale that is lower by `shift`.
    #[cfg(feature = "prometheus")]
    pub(crate) fn coarser(&self, shift: u32) -> Self {
        merge(self.offset, &self.counts, shift)
    }
}

/// An estimate of a quantile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantile {
    /// The estimate.
    pub value: f64,
    /// No value of this rank is smaller.
    pub low: f64,
    /// No value of this rank is larger.
    pub high: f64,
}

impl HistogramSnapshot {
    /// Zeros in these buckets.
    pub(super) fn begin(&mut self, layout: &Arc<Layout>, windows: Windows) {
        self.layout = Some(Arc::clone(layout));
        self.counts.clear();
        self.counts.resize(windows.iter().map(Range::len).sum(), 0);
        self.windows = windows;
    }

    /// Each window with its counts.
    pub(super) fn windows_mut(&mut self) -> [(Range<usize>, &mut [u64]); 2] {
        let [first, second] = self.windows.clone();
        let (of_first, of_second) = self.counts.split_at_mut(first.len());
        [(first, of_first), (second, of_second)]
    }

    /// The count of a bucket.
    fn count_in(&self, bucket: usize) -> u64 {
        let mut before = 0;
        for window in &self.windows {
            if window.contains(&bucket) {
                let place = before + bucket - window.start;
                return self.counts.get(place).copied().unwrap_or(0);
            }
            before += window.len();
        }
        0
    }

    /// The buckets that can hold something, with their counts.
    fn counted(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let [first, second] = self.windows.clone();
        first.chain(second).zip(self.counts.iter().copied())
    }

    /// Changes whenever something is recorded.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.count.wrapping_add(self.rejected)
    }

    pub(crate) fn finish(&mut self, sum: Value, rejected: u64, ever: Ends, since: Option<Ends>) {
        self.count = self.counts.iter().fold(0, |sum, n| sum.wrapping_add(*n));
        self.sum = Some(sum);
        self.rejected = rejected;
        self.ever = ever;
        self.since = since;
    }

    /// How many values were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many were not recorded, because they were infinite or not numbers.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// The sum of all values.
    #[must_use]
    pub fn sum(&self) -> Value {
        self.sum.unwrap_or(Value::U64(0))
    }

    /// The smallest value; `None` if there is none.
    ///
    /// Exact, save for a delta that a record in flight while it was taken divides from the next: where the value itself is not
    /// known, it is the bound of its bucket.
    #[must_use]
    pub fn min(&self) -> Option<Value> {
        (self.count > 0).then(|| {
            self.ever
                .0
                .unwrap_or_else(|| self.bound_of(self.ascending_cells()))
        })
    }

    /// The largest value; see [`min`](Self::min).
    #[must_use]
    pub fn max(&self) -> Option<Value> {
        (self.count > 0).then(|| {
            self.ever.1.unwrap_or_else(|| {
                let cells: Vec<usize> = self.ascending_cells().collect();
                self.bound_of(cells.into_iter().rev())
            })
        })
    }

    /// A bound of the first of these buckets that holds something: the finite one, rather the upper.
    fn bound_of(&self, mut cells: impl Iterator<Item = usize>) -> Value {
        let cell = cells.find(|cell| self.count_in(*cell) != 0);
        let (low, high) = cell
            .zip(self.layout.as_deref())
            .map_or((0.0, 0.0), |(cell, layout)| layout.shape.range(cell));
        let bound = if high.is_finite() { high } else { low };
        match self.sum {
            Some(Value::U64(_)) => Value::U64(bound as u64),
            _ => Value::F64(bound),
        }
    }

    /// The upper bounds of explicit buckets, the last of which is open; `None` if the buckets are exponential.
    #[must_use]
    pub fn boundaries(&self) -> Option<&[f64]> {
        match &self.layout.as_deref()?.shape {
            Shape::Explicit(bounds) => Some(bounds),
            Shape::Exponential(_) => None,
        }
    }

    /// The counts of all buckets: of explicit ones in their order; of exponential ones zero, then the positive, then the
    /// negative from small to large magnitudes. Empty before the first record. Allocates unless values were recorded to all buckets.
    #[must_use]
    pub fn buckets(&self) -> Cow<'_, [u64]> {
        let len = match &self.layout {
            Some(layout) if !self.counts.is_empty() => layout.shape.cells(),
            _ => 0,
        };
        if self.counts.len() == len {
            return Cow::Borrowed(&self.counts);
        }
        let mut all = vec![0; len];
        for (bucket, count) in self.counted() {
            if let Some(place) = all.get_mut(bucket) {
                *place = count;
            }
        }
        Cow::Owned(all)
    }

    /// The scale of exponential buckets; `None` if the buckets are explicit.
    #[must_use]
    pub fn scale(&self) -> Option<u8> {
        self.exponential().map(|e| e.scale)
    }

    /// Magnitudes up to this were counted as zero.
    #[must_use]
    pub fn zero_threshold(&self) -> f64 {
        self.exponential().map_or(0.0, |e| e.zero_threshold)
    }

    /// How many values were zero, or so small that they count as zero.
    #[must_use]
    pub fn zero_count(&self) -> u64 {
        match self.exponential() {
            Some(_) => self.count_in(0),
            None => 0,
        }
    }

    fn exponential(&self) -> Option<&Exponential> {
        match &self.layout.as_deref()?.shape {
            Shape::Exponential(e) => Some(e),
            Shape::Explicit(_) => None,
        }
    }

    /// Scale and both sides, positive and negative, of exponential buckets, merged pair by pair until neither side has more than
    /// `buckets_max`, which must be at least 2; `None` if the buckets are explicit.
    ///
    /// Merging is exact: a bucket at one scale is two at the next.
    #[must_use]
    pub fn exponential_buckets(
        &self,
        buckets_max: usize,
    ) -> Option<(i32, ExponentialBuckets, ExponentialBuckets)> {
        let e = self.exponential()?;
        // A side lies in one window, as a window of both sides is the only one.
        let side = |start: usize| {
            let [first_window, second_window] = &self.windows;
            let of = |window: &Range<usize>| window.start.max(start)..window.end.min(start + e.len);
            let (window, before) = match of(first_window).is_empty() {
                false => (first_window, 0),
                true => (second_window, first_window.len()),
            };
            let part = of(window);
            let place = |bucket: usize| before + bucket - window.start;
            let counts = (!part.is_empty())
                .then(|| self.counts.get(place(part.start)..place(part.end)))??;
            let first = counts.iter().position(|n| *n != 0)?;
            let last = counts.iter().rposition(|n| *n != 0)?;
            let index = e.first + (part.start - start + first) as i32;
            Some((index, &counts[first..=last]))
        };
        let sides = [side(1), if e.is_signed { side(1 + e.len) } else { None }];
        let too_wide = |shift: u32| {
            sides.iter().flatten().any(|(offset, counts)| {
                let last = offset + counts.len() as i32 - 1;
                ((last >> shift) - (offset >> shift)) as usize >= buckets_max.max(2)
            })
        };
        let mut shift = 0;
        while too_wide(shift) {
            shift += 1;
        }
        let [positive, negative] = sides.map(|side| {
            side.map_or_else(ExponentialBuckets::default, |(offset, counts)| {
                merge(offset, counts, shift)
            })
        });
        Some((i32::from(e.scale) - shift as i32, positive, negative))
    }

    /// How many values were at most `bound`, for the bounds of an exposition; exact where `bound` is a bound between
    /// buckets, otherwise a bucket counts as a whole where its upper bound is.
    #[must_use]
    pub fn count_up_to(&self, bound: f64) -> u64 {
        let Some(layout) = self.layout.as_deref() else {
            return 0;
        };
        let counts = self.counted().filter(|(_, n)| *n != 0);
        counts
            .filter(|(cell, _)| layout.shape.range(*cell).1 <= bound)
            .map(|(_, n)| n)
            .sum()
    }

    /// The index of the last bucket of an exponential histogram, which holds what is beyond it too.
    #[cfg(feature = "prometheus")]
    pub(crate) fn last_index(&self) -> Option<i32> {
        self.exponential().map(|e| e.first + e.len as i32 - 1)
    }

    /// An estimate of the value that a share `q` of all values does not exceed; `None` without values or if `q` is not within
    /// 0 to 1.
    ///
    /// The rank is `ceil(q * count)`, at least 1. Within its bucket the estimate is the geometric mean of the bounds for
    /// exponential buckets, so that it is wrong by at most the factor `2^(1 / 2^(scale + 1))` (4.4 % at scale 3); for explicit ones
    /// the arithmetic mean, wrong by at most half their width. Bounds are narrowed by [`min`](Self::min) and
    /// [`max`](Self::max). Values beyond the range of the layout are known by these only. Linear in the number of buckets.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Quantile> {
        if self.count == 0 || !(0.0..=1.0).contains(&q) {
            return None;
        }
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count);
        let layout = self.layout.as_deref()?;
        let mut seen = 0;
        let cell = self.ascending_cells().find(|cell| {
            seen += self.count_in(*cell);
            seen >= rank
        })?;
        let (min, max) = (self.min()?.as_f64(), self.max()?.as_f64());
        let (mut low, mut high) = layout.shape.range(cell);
        if self.holds_what_is_larger(cell) {
            (low, high) = if low >= 0.0 {
                (low, f64::INFINITY)
            } else {
                (f64::NEG_INFINITY, high)
            };
        }
        let (low, high) = (low.clamp(min, max), high.clamp(min, max));
        let value = if self.boundaries().is_none() && low > 0.0 {
            (low * high).sqrt()
        } else if self.boundaries().is_none() && high < 0.0 {
            -(low * high).sqrt()
        } else {
            low + (high - low) / 2.0
        };
        Some(Quantile {
            value: value.clamp(low, high),
            low,
            high,
        })
    }

    /// Whether this is the last bucket of a side, which holds what is beyond it too.
    fn holds_what_is_larger(&self, cell: usize) -> bool {
        self.exponential()
            .is_some_and(|e| cell == e.len || cell == 2 * e.len)
    }

    /// The buckets' places from the least to the largest values.
    pub(crate) fn ascending_cells(&self) -> impl Iterator<Item = usize> + use<> {
        let (negative, rest) = match self.exponential() {
            Some(e) if e.is_signed => (e.len + 1..2 * e.len + 1, 0..e.len + 1),
            _ => (
                0..0,
                0..self
                    .layout
                    .as_deref()
                    .map_or(0, |layout| layout.shape.cells()),
            ),
        };
        negative.rev().chain(rest)
    }

    #[cfg(feature = "otel")]
    pub(crate) fn bucket_range(&self, cell: usize) -> (f64, f64) {
        self.layout
            .as_deref()
            .map_or((0.0, 0.0), |layout| layout.shape.range(cell))
    }

    /// Takes over how another is divided into buckets.
    #[cfg(feature = "otel")]
    pub(crate) fn clone_layout(&mut self, other: &Self) {
        self.layout.clone_from(&other.layout);
    }

    /// Whether this is the bucket of zero, of an exponential histogram.
    #[cfg(feature = "otel")]
    pub(crate) fn is_zero_bucket(&self, cell: usize) -> bool {
        cell == 0 && self.exponential().is_some()
    }

    /// The same since `earlier`, the state of the same series at the last collection of the same reader.
    pub(crate) fn since(&self, earlier: &Self, out: &mut Self) {
        out.layout.clone_from(&self.layout);
        out.windows.clone_from(&self.windows);
        out.counts.clear();
        let deltas = self
            .counted()
            .map(|(bucket, now)| now.wrapping_sub(earlier.count_in(bucket)));
        out.counts.extend(deltas);
        out.count = self.count.wrapping_sub(earlier.count);
        out.sum = match (self.sum, earlier.sum) {
            (Some(now), Some(then)) => Some(now.since(then)),
            (now, _) => now,
        };
        out.rejected = self.rejected.wrapping_sub(earlier.rejected);
        out.ever = self.since.unwrap_or(self.ever);
        out.since = None;
    }
}

fn merge(offset: i32, counts: &[u64], shift: u32) -> ExponentialBuckets {
    let first = offset >> shift;
    let mut merged = ExponentialBuckets {
        offset: first,
        counts: Vec::new(),
    };
    for (index, count) in (offset..).zip(counts) {
        let place = ((index >> shift) - first) as usize;
        if place == merged.counts.len() {
            merged.counts.push(0);
        }
        merged.counts[place] += count;
    }
    merged
}
