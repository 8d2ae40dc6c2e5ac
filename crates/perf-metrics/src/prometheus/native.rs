//! Exponential histograms in the terms of the formats: added up, and as classic buckets.

use crate::histogram::{ExponentialBuckets, HistogramSnapshot, index_f64, lower_bound};

/// An exponential histogram.
#[derive(Clone, Debug)]
pub(super) struct Native {
    pub(super) scale: i32,
    pub(super) zero_threshold: f64,
    pub(super) zero_count: u64,
    pub(super) positive: ExponentialBuckets,
    pub(super) negative: ExponentialBuckets,
    /// From this index on buckets may hold larger values than their bounds say: the layout ends there.
    open_from: i32,
}

impl Native {
    /// `None` if the histogram has explicit buckets.
    pub(super) fn new(histogram: &HistogramSnapshot) -> Option<Self> {
        let (scale, positive, negative) = histogram.exponential_buckets(usize::MAX)?;
        Some(Self {
            scale,
            zero_threshold: histogram.zero_threshold(),
            zero_count: histogram.zero_count(),
            positive,
            negative,
            open_from: histogram.last_index()?,
        })
    }

    /// The same at a scale that is lower by `shift`. Exact: a bucket at one scale is two at the next.
    pub(super) fn coarser(&self, shift: u32) -> Self {
        Self {
            scale: self.scale - shift as i32,
            positive: self.positive.coarser(shift),
            negative: self.negative.coarser(shift),
            open_from: self.open_from >> shift,
            ..*self
        }
    }

    /// Both together, at the lower scale. Where their zero thresholds differ, the result's is at least the higher one, at a bound between
    /// buckets, so that each bucket's values are known to be within it.
    pub(super) fn plus(&self, other: &Self) -> Self {
        let scale = self.scale.min(other.scale);
        let at_scale = |of: &Self| of.coarser(of.scale.abs_diff(scale));
        let (mut one, mut other) = (at_scale(self), at_scale(other));
        if one.zero_threshold != other.zero_threshold {
            let threshold = one.zero_threshold.max(other.zero_threshold);
            let scale = u8::try_from(scale).unwrap_or(0);
            let within = index_f64(threshold, scale);
            let first = match lower_bound(within, scale) < threshold {
                true => within + 1,
                false => within,
            };
            for native in [&mut one, &mut other] {
                native.zero_threshold = lower_bound(first, scale);
                let below = take_below(&mut native.positive, first)
                    .wrapping_add(take_below(&mut native.negative, first));
                native.zero_count = native.zero_count.wrapping_add(below);
            }
        }
        Self {
            zero_count: one.zero_count.wrapping_add(other.zero_count),
            positive: sum(&one.positive, &other.positive),
            negative: sum(&one.negative, &other.negative),
            open_from: one.open_from.min(other.open_from),
            ..one
        }
    }

    /// Upper bounds with the number of values in each, from the last bound below the smallest positive value to the first that is not below
    /// the largest; as much coarser as keeps them to `buckets_max`. What is zero or negative is in the first.
    pub(super) fn classic(&self, buckets_max: usize) -> Vec<(f64, u64)> {
        let is_too_wide = |shift: u32| {
            let width = |side: &ExponentialBuckets| {
                let last = i64::from(side.offset) + side.counts.len() as i64 - 1;
                (last >> shift) - i64::from(side.offset >> shift)
            };
            [&self.positive, &self.negative]
                .iter()
                .any(|side| !side.counts.is_empty() && width(side) >= buckets_max as i64)
        };
        let shift = (0..31).find(|shift| !is_too_wide(*shift)).unwrap_or(31);
        let coarse = self.coarser(shift);
        // The scale may be below zero: a bucket is then several octaves wide.
        let bound = |index: i64| match (u8::try_from(coarse.scale), i32::try_from(index)) {
            (Ok(scale), Ok(index)) => lower_bound(index, scale),
            _ => (index as f64 * f64::from(-coarse.scale).exp2()).exp2(),
        };
        let below = coarse
            .negative
            .counts
            .iter()
            .fold(self.zero_count, |sum, n| sum.wrapping_add(*n));
        if coarse.positive.counts.is_empty() {
            return vec![(self.zero_threshold.max(0.0), below)];
        }
        let first = i64::from(coarse.positive.offset);
        // A coarse bucket may begin below the zero threshold.
        let mut buckets = vec![(bound(first).max(self.zero_threshold), below)];
        for (index, count) in (first..).zip(&coarse.positive.counts) {
            if index < i64::from(coarse.open_from) {
                buckets.push((bound(index + 1), *count));
            }
        }
        buckets
    }
}

/// Takes the buckets below an index out: how many values they held.
fn take_below(side: &mut ExponentialBuckets, index: i32) -> u64 {
    let below = index.saturating_sub(side.offset).max(0) as usize;
    let taken = side.counts.drain(..below.min(side.counts.len()));
    let count = taken.fold(0u64, |sum, n| sum.wrapping_add(n));
    side.offset = side.offset.max(index);
    count
}

/// The buckets of both, at the same scale.
fn sum(one: &ExponentialBuckets, other: &ExponentialBuckets) -> ExponentialBuckets {
    let (lower, upper) = match one.offset <= other.offset || other.counts.is_empty() {
        true => (one, other),
        false => (other, one),
    };
    if lower.counts.is_empty() {
        return upper.clone();
    }
    let mut sum = lower.clone();
    for (place, count) in upper.counts.iter().enumerate() {
        let place = (i64::from(upper.offset) - i64::from(lower.offset)) as usize + place;
        if place >= sum.counts.len() {
            sum.counts.resize(place + 1, 0);
        }
        sum.counts[place] = sum.counts[place].wrapping_add(*count);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buckets, EMPTY_ATTRS, Registry};
    use proptest::prelude::*;

    fn of(scale: u8, exponent: i32, values: &[f64]) -> Native {
        let registry = Registry::new();
        let histogram = registry
            .f64_histogram("h")
            .with_buckets(Buckets::Exponential {
                scale,
                zero_threshold: 2f64.powi(exponent),
                magnitude_max: 1e4,
            })
            .build()
            .unwrap();
        values
            .iter()
            .for_each(|value| histogram.record(*value, EMPTY_ATTRS));
        let snapshot = registry.collect();
        let series = snapshot.metric("h").unwrap().find(EMPTY_ATTRS).unwrap();
        Native::new(series.histogram().unwrap()).unwrap()
    }

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![Just(0.0), 1e-4..1e-2f64, 1e-2..1e5f64, -1e3..-1e-4f64]
    }

    proptest! {
        // Layouts take a while to make.
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever the layouts: no value is lost, and at each bound the count is that of the values up to there.
        #[test]
        fn both_together_count_what_each_has(
            scales in (0u8..7, 0u8..7),
            exponents in (-12i32..-2, -12i32..-2),
            values in (proptest::collection::vec(value(), 1..40), proptest::collection::vec(value(), 1..40)),
            buckets_max in 2usize..200,
        ) {
            let (one, other) = (of(scales.0, exponents.0, &values.0), of(scales.1, exponents.1, &values.1));
            let both = one.plus(&other);
            prop_assert_eq!(both.scale, i32::from(scales.0.min(scales.1)));
            let all: Vec<f64> = values.0.iter().chain(&values.1).copied().collect();
            let count = |side: &ExponentialBuckets| side.counts.iter().sum::<u64>();
            prop_assert_eq!(both.zero_count + count(&both.positive) + count(&both.negative), all.len() as u64);
            prop_assert_eq!(both.zero_count, all.iter().filter(|value| value.abs() <= both.zero_threshold).count() as u64);
            let mut up_to = 0;
            let mut last = f64::NEG_INFINITY;
            for (bound, n) in both.classic(buckets_max) {
                prop_assert!(last < bound, "{} is not above {}", bound, last);
                last = bound;
                up_to += n;
                prop_assert_eq!(up_to, all.iter().filter(|value| **value <= bound).count() as u64, "{}", bound);
            }
        }
    }
}
