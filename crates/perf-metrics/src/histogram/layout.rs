//! How a histogram's cells are divided into buckets.

use super::bucket_table::{BucketTable, Domain};
use super::scale::{self, SCALE_MAX};
use crate::MetricsError;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

/// The boundaries OpenTelemetry proposes where none are chosen:
/// <https://opentelemetry.io/docs/specs/otel/metrics/sdk/#explicit-bucket-histogram-aggregation>.
pub const DEFAULT_BOUNDARIES: [f64; 15] = [
    0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0,
    10000.0,
];

/// The most boundaries a histogram can have.
pub const BOUNDARIES_MAX: usize = 1024;

/// The most cells one series of a histogram can have: 256 KiB a thread that records to all of it.
pub const CELLS_PER_SERIES_MAX: usize = 1 << 15;

/// Scale of a histogram whose maker chose none: eight buckets an octave, quantiles within 4.5 %.
pub const DEFAULT_SCALE: u8 = 3;

/// How a histogram divides its values into buckets.
#[derive(Clone, Debug, PartialEq)]
pub enum Buckets {
    /// Bucket `i` holds the values in `(boundaries[i - 1], boundaries[i]]`, the last all above: the same as in the SDK.
    Explicit(Vec<f64>),
    /// Buckets that each are `2^(1 / 2^scale)` times as wide as the one below, over a range of magnitudes.
    Exponential {
        /// From 0 to 20. Each step doubles the number of buckets and halves the error.
        scale: u8,
        /// Magnitudes up to this count as zero; rounded down to a bound between buckets.
        zero_threshold: f64,
        /// Magnitudes above this count in the last bucket; `max` and the sum still tell them.
        magnitude_max: f64,
    },
}

impl Buckets {
    /// What a histogram of `f64` has when its maker chose nothing: from about `1e-9` to `1.7e10` at
    /// [`DEFAULT_SCALE`].
    pub(crate) fn default_f64() -> Self {
        Self::Exponential {
            scale: DEFAULT_SCALE,
            zero_threshold: 2f64.powi(-30),
            magnitude_max: 2f64.powi(34),
        }
    }

    /// What a histogram of `u64` has when its maker chose nothing: all of `u64` at [`DEFAULT_SCALE`].
    pub(crate) fn default_u64() -> Self {
        Self::Exponential {
            scale: DEFAULT_SCALE,
            // One has the index -1, the bucket that it closes; zero is below.
            zero_threshold: 0.5,
            magnitude_max: 2f64.powi(64),
        }
    }
}

/// [`Buckets`] that were checked, and the table through which values find them.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) shape: Shape,
    pub(crate) table: BucketTable,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Shape {
    Explicit(Box<[f64]>),
    Exponential(Exponential),
}

#[derive(Debug, PartialEq)]
pub(crate) struct Exponential {
    pub(crate) scale: u8,
    /// Index of the first bucket.
    pub(crate) first: i32,
    /// How many buckets there are on each side of zero.
    pub(crate) len: usize,
    pub(crate) zero_threshold: f64,
    /// Whether there are buckets below zero.
    pub(crate) is_signed: bool,
}

impl Layout {
    pub(crate) fn new(name: &str, buckets: &Buckets, domain: Domain) -> Result<Self, MetricsError> {
        let invalid = |problem| MetricsError::InvalidBoundaries {
            name: name.to_owned(),
            problem,
        };
        match buckets {
            Buckets::Explicit(bounds) => {
                let ascends = bounds.windows(2).all(|pair| pair[0] < pair[1]);
                if !ascends
                    || !bounds.iter().all(|bound| bound.is_finite())
                    || bounds.len() > BOUNDARIES_MAX
                {
                    return Err(invalid(
                        "allowed are at most 1024 finite boundaries in ascending order",
                    ));
                }
                Ok(Self::with_table(
                    Shape::Explicit(bounds.as_slice().into()),
                    domain,
                    explicit_scales(bounds),
                ))
            }
            &Buckets::Exponential {
                scale,
                zero_threshold,
                magnitude_max,
            } => {
                if scale > SCALE_MAX {
                    return Err(invalid("allowed are scales from 0 to 20"));
                }
                if !zero_threshold.is_normal()
                    || zero_threshold < 0.0
                    || !magnitude_max.is_finite()
                    || magnitude_max <= zero_threshold
                {
                    return Err(invalid(
                        "allowed is a zero threshold that is positive and normal, and a finite largest magnitude above it",
                    ));
                }
                let first = scale::index_f64(zero_threshold.next_up(), scale);
                let last = scale::index_f64(magnitude_max, scale);
                let sides = 1 + i64::from(domain == Domain::F64);
                // Both indexes have at most 31 bits.
                let len = i64::from(last) - i64::from(first) + 1;
                if len * sides > CELLS_PER_SERIES_MAX as i64 {
                    return Err(invalid(
                        "the range needs more than 32768 buckets at this scale; choose a smaller scale or range",
                    ));
                }
                let shape = Exponential {
                    scale,
                    first,
                    len: len as usize,
                    zero_threshold: if domain == Domain::F64 {
                        scale::lower_bound(first, scale)
                    } else {
                        0.0
                    },
                    is_signed: domain == Domain::F64,
                };
                let range = (
                    scale::lower_bound(first, scale),
                    scale::lower_bound(last + 1, scale),
                );
                Ok(Self::with_table(
                    Shape::Exponential(shape),
                    domain,
                    (range, scale..=scale),
                ))
            }
        }
    }

    /// The first scale of `scales` at which no step holds more than one bound.
    fn with_table(
        shape: Shape,
        domain: Domain,
        (range, scales): ((f64, f64), RangeInclusive<u8>),
    ) -> Self {
        let bits = match domain {
            // To an integer it saturates. Integers beyond `i64` take the slower way.
            Domain::U64 => (0, (range.1 as u64).min(i64::MAX as u64)),
            Domain::F64 => (
                range.0.max(f64::MIN_POSITIVE).next_up().to_bits(),
                range.1.min(f64::MAX).to_bits(),
            ),
        };
        let bucket = |bits: u64| match domain {
            Domain::U64 => shape.bucket_u64(bits),
            Domain::F64 => shape.bucket_f64(f64::from_bits(bits)),
        };
        let table = scales
            .filter_map(|scale| BucketTable::new(domain, scale, bits, bucket))
            .next();
        Self {
            table: table.unwrap_or_else(BucketTable::none),
            shape,
        }
    }
}

impl Shape {
    /// How many cells the buckets take: explicit ones in their order; or zero, the positive
    /// side from small to large, the negative side from small to large magnitudes.
    pub(crate) fn cells(&self) -> usize {
        match self {
            Self::Explicit(bounds) => bounds.len() + 1,
            Self::Exponential(e) => 1 + e.len * if e.is_signed { 2 } else { 1 },
        }
    }

    /// How many of these are not of the negative side, which comes last.
    pub(crate) fn positive_cells(&self) -> usize {
        match self {
            Self::Explicit(bounds) => bounds.len() + 1,
            Self::Exponential(e) => 1 + e.len,
        }
    }

    /// The least and the largest value of a bucket, `(low, high]`; infinite where it is open.
    pub(crate) fn range(&self, cell: usize) -> (f64, f64) {
        match self {
            Self::Explicit(bounds) => {
                let low = cell.checked_sub(1).and_then(|i| bounds.get(i)).copied();
                (
                    low.unwrap_or(f64::NEG_INFINITY),
                    bounds.get(cell).copied().unwrap_or(f64::INFINITY),
                )
            }
            Self::Exponential(e) => e.range(cell),
        }
    }
}

impl Exponential {
    fn range(&self, cell: usize) -> (f64, f64) {
        let Some(place) = cell.checked_sub(1) else {
            let low = if self.is_signed {
                -self.zero_threshold
            } else {
                0.0
            };
            return (low, self.zero_threshold);
        };
        let (side, place) = (place / self.len, place % self.len);
        let index = self.first + place as i32;
        let low = scale::lower_bound(index, self.scale);
        let high = scale::lower_bound(index + 1, self.scale);
        if side == 0 {
            (low, high)
        } else {
            (-high, -low)
        }
    }

    fn place(&self, index: i32) -> Option<usize> {
        let place = i64::from(index) - i64::from(self.first);
        usize::try_from(place)
            .ok()
            .map(|place| place.min(self.len - 1))
    }
}

impl Shape {
    /// The bucket of an integer, without the table.
    pub(crate) fn bucket_u64(&self, value: u64) -> u32 {
        let bucket = match self {
            Self::Explicit(bounds) => explicit_bucket(bounds, value as f64),
            Self::Exponential(_) if value == 0 => 0,
            Self::Exponential(e) => e
                .place(scale::index_u64(value, e.scale))
                .map_or(0, |place| 1 + place),
        };
        bucket as u32
    }

    /// The bucket of a finite float, without the table.
    pub(crate) fn bucket_f64(&self, value: f64) -> u32 {
        let bucket = match self {
            Self::Explicit(bounds) => explicit_bucket(bounds, value),
            Self::Exponential(_) if !value.is_normal() => 0,
            Self::Exponential(e) => {
                let side = if value < 0.0 && e.is_signed { e.len } else { 0 };
                e.place(scale::index_f64(value.abs(), e.scale))
                    .map_or(0, |place| 1 + side + place)
            }
        };
        bucket as u32
    }
}

fn explicit_bucket(bounds: &[f64], value: f64) -> usize {
    bounds.partition_point(|bound| *bound < value)
}

/// The range for which explicit buckets have steps, ten octaves more than the positive bounds on both sides, and the scales to try:
/// so few that the table stays below 4096 steps.
fn explicit_scales(bounds: &[f64]) -> ((f64, f64), RangeInclusive<u8>) {
    const AROUND: f64 = 1024.0;
    const STEPS_MAX: f64 = 4096.0;
    let lowest = bounds
        .iter()
        .copied()
        .find(|bound| *bound > 0.0)
        .unwrap_or(1.0);
    let highest = bounds.last().copied().unwrap_or(1.0).max(lowest);
    let range = (lowest / AROUND, highest * AROUND);
    let octaves = (range.1 / range.0).log2() + 1.0;
    let scale = (STEPS_MAX / octaves).log2().clamp(1.0, 9.0) - 1.0;
    (range, 0..=scale as u8)
}

impl Layout {
    /// The layout of histograms whose maker chose nothing: one for all, so that they share its table in the cache.
    pub(crate) fn shared_default(domain: Domain) -> Arc<Self> {
        static U64: OnceLock<Arc<Layout>> = OnceLock::new();
        static F64: OnceLock<Arc<Layout>> = OnceLock::new();
        let (shared, buckets) = match domain {
            Domain::U64 => (&U64, Buckets::default_u64()),
            Domain::F64 => (&F64, Buckets::default_f64()),
        };
        let make = || {
            Arc::new(
                Self::new("", &buckets, domain).expect("the default buckets are valid (tested)"),
            )
        };
        Arc::clone(shared.get_or_init(make))
    }
}
