//! The table through which a value finds its bucket.
//!
//! An octave is divided into `2^(scale + 1)` steps of one width: the step of a value is a shift of its bits. The narrowest
//! bucket, the first of an octave, is `2^(1 / 2^s) - 1 > ln 2 / 2^s` wide and a step `1 / 2^(s + 1)`, which is less. So
//! at most one bound lies within a step, and one comparison tells on which side of it a value is.

use super::record::HEADER_CELLS;
use super::scale;

/// What is recorded: whether a value's bits are an integer's or a float's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Domain {
    U64,
    F64,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    /// The largest bits that still belong to `cell`; what is above belongs to the next.
    last: u64,
    cell: u64,
}

#[derive(Debug)]
pub(crate) struct Steps {
    steps: Box<[Step]>,
    /// `2^(scale + 1)`: the steps of an octave. Integers below twice this are steps of their own.
    octave: u64,
    /// `scale + 1` for integers; for floats how far their bits are shifted.
    shift: u32,
    /// For floats, the number of the first step.
    first: u64,
}

impl Steps {
    /// The steps of the buckets `first..=last`.
    pub(crate) fn new(domain: Domain, scale: u8, first: i32, last: i32) -> Self {
        let bits_a_step = u32::from(scale) + 1;
        let mut steps = Self {
            steps: Box::new([]),
            octave: 1 << bits_a_step,
            shift: match domain {
                Domain::U64 => bits_a_step,
                Domain::F64 => 52 - bits_a_step,
            },
            first: 0,
        };
        let index = |bits: u64| match domain {
            Domain::U64 if bits == 0 => i32::MIN,
            Domain::U64 => scale::index_u64(bits, scale),
            Domain::F64 => scale::index_f64(f64::from_bits(bits), scale),
        };
        let (low, high) = match domain {
            Domain::U64 => (0, scale::lower_bound(last.saturating_add(1), scale) as u64),
            Domain::F64 => (
                scale::lower_bound(first, scale).to_bits(),
                scale::lower_bound(last.saturating_add(1), scale)
                    .min(f64::MAX)
                    .to_bits(),
            ),
        };
        let number = |bits: u64| match domain {
            Domain::U64 => steps.number_u64(bits),
            Domain::F64 => bits >> steps.shift,
        };
        let cell = |index: i32| match i64::from(index) - i64::from(first) {
            below if below < 0 => HEADER_CELLS as u64,
            place => {
                (HEADER_CELLS + 1) as u64
                    + (place as u64).min((i64::from(last) - i64::from(first)) as u64)
            }
        };
        let mut made = Vec::new();
        let mut bits = low;
        let first_number = number(low);
        for place in first_number..=number(high) {
            // The last bits of this step, by bisection; then the last that have the index of the first.
            let end = last_where(bits, |other| number(other) == place);
            let own = cell(index(bits));
            let same = last_where_up_to(bits, end, |other| cell(index(other)) == own);
            made.push(Step {
                last: if same == end { u64::MAX } else { same },
                cell: own,
            });
            bits = end.saturating_add(1);
        }
        steps.steps = made.into();
        steps.first = first_number;
        steps
    }

    /// Small integers are their own steps; above, each octave has [`octave`](Self::octave) of them.
    #[inline]
    fn number_u64(&self, value: u64) -> u64 {
        // Both shifts are below 64: at least `octave` is set, so `octave` is at most the leading bit.
        let shift = (value | self.octave).ilog2().wrapping_sub(self.shift) & 63;
        u64::from(shift) * self.octave + (value >> shift)
    }

    /// The cell of an integer; `None` above the range.
    #[inline]
    pub(crate) fn cell_u64(&self, value: u64) -> Option<usize> {
        let step = self.steps.get(self.number_u64(value) as usize)?;
        Some((step.cell + u64::from(value > step.last)) as usize)
    }

    /// The cell of a float; `None` if it is not positive, not a number or out of range: all of these have other
    /// leading bits than the steps.
    #[inline]
    pub(crate) fn cell_f64(&self, value: f64) -> Option<usize> {
        let bits = value.to_bits();
        let place = (bits >> (self.shift & 63)).wrapping_sub(self.first);
        let step = self.steps.get(place as usize)?;
        Some((step.cell + u64::from(bits > step.last)) as usize)
    }
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

    fn cell_of(index: i32, first: i32, last: i32) -> usize {
        HEADER_CELLS + 1 + (index.min(last) - first) as usize
    }

    #[test]
    fn integers_around_each_bound_find_the_exact_bucket() {
        for scale in [0u8, 1, 2, 3, 5, 8] {
            let (first, last) = (-(1 << scale), (64 << scale) - 1);
            let steps = Steps::new(Domain::U64, scale, first, last);
            assert_eq!(steps.cell_u64(0), Some(HEADER_CELLS));
            let bounds = (0..=last).map(|index| lower_bound(index, scale) as u64);
            let powers = (0..64).map(|bit| 1u64 << bit);
            for bound in bounds.chain(powers).chain([u64::MAX]) {
                for value in bound.saturating_sub(2)..=bound.saturating_add(2) {
                    if value > 0 {
                        let index = index_u64(value, scale);
                        assert_eq!(
                            steps.cell_u64(value),
                            Some(cell_of(index, first, last)),
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
            let steps = Steps::new(Domain::F64, scale, first, last);
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
                        steps.cell_f64(value),
                        Some(cell_of(index, first, last)),
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
                assert_eq!(steps.cell_f64(other), None, "{other}");
            }
        }
    }
}
