//! The table through which a value finds its bucket.
//!
//! An octave is divided into `2^(scale + 1)` steps of one width: the step of a value is a shift of its bits. The narrowest
//! bucket, the first of an octave, is `2^(1 / 2^s) - 1 > ln 2 / 2^s` wide and a step `1 / 2^(s + 1)`, which is less. So
//! at most one bound lies within a step, and one comparison tells on which side of it a value is.

/// What is recorded: whether a value's bits are an integer's or a float's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Domain {
    U64,
    F64,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    /// The largest bits that still belong to `bucket`; what is above belongs to the next.
    last: u64,
    bucket: u32,
}

/// Values for which there is no step take a slower way, which gives the same answer.
#[derive(Debug)]
pub(crate) struct BucketTable {
    steps: Box<[Step]>,
    /// How far the bits of a float are shifted, so that `scale + 1` of its fraction are left.
    shift: u32,
    /// The number of the first step.
    first: u64,
}

impl BucketTable {
    /// The steps of the bits `low..=high`, which are all of positive normal floats or all of integers. `bucket` ascends with the bits
    /// by at most one within a step; `None` if it does not.
    pub(crate) fn new(
        domain: Domain,
        scale: u8,
        (low, high): (u64, u64),
        bucket: impl Fn(u64) -> u32,
    ) -> Option<Self> {
        let mut steps = Self {
            steps: Box::new([]),
            shift: 51 - u32::from(scale),
            first: 0,
        };
        let number = |bits: u64| match domain {
            Domain::U64 => steps.number(float_of(bits)),
            Domain::F64 => steps.number(bits),
        };
        let mut made = Vec::new();
        let mut bits = low;
        let first_number = number(low);
        for place in first_number..=number(high) {
            if number(bits) != place {
                // No integer is in this step.
                made.push(Step {
                    last: u64::MAX,
                    bucket: bucket(bits),
                });
                continue;
            }
            // The last bits of this step, by bisection; then the last that have the bucket of the first.
            let end = last_where(bits, |other| number(other) == place);
            let own = bucket(bits);
            let same = last_where_up_to(bits, end, |other| bucket(other) == own);
            if bucket(end) > own + 1 {
                return None;
            }
            made.push(Step {
                last: same,
                bucket: own,
            });
            bits = end.saturating_add(1);
        }
        steps.steps = made.into();
        steps.first = first_number;
        Some(steps)
    }

    /// No steps: every value takes the slower way.
    pub(crate) fn none() -> Self {
        Self {
            steps: Box::new([]),
            shift: 0,
            first: 0,
        }
    }

    #[inline]
    fn number(&self, bits: u64) -> u64 {
        bits.wrapping_shr(self.shift).wrapping_sub(self.first)
    }

    /// The bucket of an integer; from `2^63` on there are no steps.
    #[inline]
    pub(crate) fn bucket_u64(&self, value: u64) -> Option<u32> {
        let step = self.steps.get(self.number(float_of(value)) as usize)?;
        Some(step.bucket + u32::from(value > step.last))
    }

    /// The bucket of a float. What is not positive, not a number or out of range has other leading bits than the
    /// steps.
    #[inline]
    pub(crate) fn bucket_f64(&self, value: f64) -> Option<u32> {
        let bits = value.to_bits();
        let step = self.steps.get(self.number(bits) as usize)?;
        Some(step.bucket + u32::from(bits > step.last))
    }
}

/// An integer plus one as the bits of a float, so that zero has a place too. Rounding keeps the order, which is all the steps need;
/// integers from `2^63` on become negative. Conversion is one instruction, where to count leading zeros takes several on
/// processors before x86-64-v3, slow ones on some.
#[inline]
fn float_of(value: u64) -> u64 {
    (value as i64 as f64 + 1.0).to_bits()
}

/// The last number from `start` on for which `is_so`, which holds for `start` and then up to some number.
fn last_where(start: u64, is_so: impl Fn(u64) -> bool) -> u64 {
    let mut width = 1u64;
    while let Some(probe) = start.checked_add(width)
        && is_so(probe)
    {
        width = width.saturating_mul(2);
    }
    last_where_up_to(start, start.saturating_add(width), is_so)
}

fn last_where_up_to(start: u64, end: u64, is_so: impl Fn(u64) -> bool) -> u64 {
    let (mut last, mut end) = (start, end);
    while last < end {
        let middle = last + (end - last).div_ceil(2);
        if is_so(middle) {
            last = middle;
        } else {
            end = middle - 1;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::scale::{index_f64, index_u64, lower_bound};

    fn bucket_of(index: i32, first: i32) -> u32 {
        (index - first) as u32 + 1
    }

    #[test]
    fn integers_around_each_bound_find_the_exact_bucket() {
        for scale in [0u8, 1, 2, 3, 5, 8] {
            let (first, last) = (-(1 << scale), (64 << scale) - 1);
            let bucket = |bits: u64| {
                if bits == 0 {
                    0
                } else {
                    bucket_of(index_u64(bits, scale), first)
                }
            };
            let steps = BucketTable::new(Domain::U64, scale, (0, i64::MAX as u64), bucket).unwrap();
            assert_eq!(steps.bucket_u64(0), Some(0));
            let bounds = (0..=last).map(|index| lower_bound(index, scale) as u64);
            let powers = (0..64).map(|bit| 1u64 << bit);
            for bound in bounds.chain(powers).chain([u64::MAX]) {
                for value in bound.saturating_sub(2)..=bound.saturating_add(2) {
                    if value > 0 {
                        let index = index_u64(value, scale);
                        let found = steps.bucket_u64(value);
                        if value > i64::MAX as u64 {
                            assert_eq!(found, None);
                            continue;
                        }
                        assert_eq!(
                            steps.bucket_u64(value),
                            Some(bucket_of(index, first)),
                            "{value} at {scale}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn floats_around_each_bound_find_the_exact_bucket_and_others_none() {
        for (scale, octaves) in [(0u8, 60), (3, 60), (6, 20), (12, 2), (20, 0)] {
            let first = -(octaves << scale) / 2;
            let last = if octaves == 0 {
                first + 999
            } else {
                (octaves << scale) / 2 - 1
            };
            let bounds = [
                lower_bound(first, scale).next_up(),
                lower_bound(last + 1, scale),
            ];
            let bucket = |bits: u64| bucket_of(index_f64(f64::from_bits(bits), scale), first - 1);
            let steps = BucketTable::new(
                Domain::F64,
                scale,
                (bounds[0].to_bits(), bounds[1].to_bits()),
                bucket,
            )
            .unwrap();
            for index in first + 1..=last {
                let bound = lower_bound(index, scale);
                for value in [
                    bound.next_down().next_down(),
                    bound.next_down(),
                    bound,
                    bound.next_up(),
                    bound.next_up().next_up(),
                ] {
                    let index = index_f64(value, scale);
                    assert_eq!(
                        steps.bucket_f64(value),
                        Some(bucket_of(index, first - 1)),
                        "{value} at {scale}"
                    );
                }
            }
            for other in [
                0.0,
                -0.0,
                -1.0,
                f64::NAN,
                f64::INFINITY,
                f64::NEG_INFINITY,
                f64::MIN_POSITIVE / 2.0,
                f64::MAX,
            ] {
                assert_eq!(steps.bucket_f64(other), None, "{other}");
            }
        }
    }
}
