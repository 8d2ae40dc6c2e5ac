//! Which bucket of an exponential histogram a value belongs to, exactly.
//!
//! At scale `s` the bucket of index `i` holds the values in `(2^(i / 2^s), 2^((i + 1) / 2^s)]`:
//! <https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram>. For `v = 2^e * m` with `1 <= m < 2`
//! the index is `e * 2^s + ceil(log2(m) * 2^s) - 1`. A logarithm in floating point is wrong beside
//! the bounds, so [`index_exact`] squares `m` instead: each squaring shows one more binary digit of its
//! logarithm. Recording looks into [`BucketTable`](super::bucket_table::BucketTable), which are made with it.

/// The largest scale: `2^20` buckets an octave.
pub(crate) const SCALE_MAX: u8 = 20;

/// The index within its octave, from -1 to `2^scale - 1`, of `1 + fraction / 2^64`.
///
/// Costs `scale` multiplications of 128 bits. Each drops at most the last of 127 digits behind the point,
/// so after 20 the error is below `2^-106`; no bound comes so close to a fraction of 64 bits (tested
/// against a reference of 512 digits for every bound of scales 0 to 12 and a sample of the others).
pub(crate) fn index_exact(fraction: u64, scale: u8) -> i32 {
    if fraction == 0 {
        // A power of two closes the bucket below.
        return -1;
    }
    // m as 1.127 digits.
    let mut m = (1u128 << 127) | (u128::from(fraction) << 63);
    let mut index = 0;
    for _ in 0..scale {
        let (square, doubled) = square(m);
        m = square;
        index = index << 1 | i32::from(doubled);
    }
    index
}

/// `m * m` for m in `[1, 2)` as 1.127 digits; halved, with `true`, where it reaches 2.
fn square(m: u128) -> (u128, bool) {
    let (high, low) = (m >> 64, m & u128::from(u64::MAX));
    // m * m = high² 2^128 + 2 high low 2^64 + low²; the upper 128 bits are 2.126 digits.
    let cross = high * low;
    let carry = ((low * low) >> 64) + ((cross << 1) & u128::from(u64::MAX));
    let upper = high * high + (cross >> 63) + (carry >> 64);
    if upper >> 127 == 1 {
        (upper, true)
    } else {
        // One more digit than `upper` has is in the carry.
        (upper << 1 | (carry >> 63 & 1), false)
    }
}

/// Splits a positive normal number into its exponent and the fraction of 64 bits behind the leading one.
pub(crate) fn split_f64(magnitude: f64) -> (i32, u64) {
    let bits = magnitude.to_bits();
    (((bits >> 52) & 0x7ff) as i32 - 1023, bits << 12)
}

/// Splits a positive integer likewise.
pub(crate) fn split_u64(value: u64) -> (i32, u64) {
    let zeros = value.leading_zeros();
    (63 - zeros as i32, value.checked_shl(zeros + 1).unwrap_or(0))
}

/// The index of a positive integer.
pub(crate) fn index_u64(value: u64, scale: u8) -> i32 {
    let (exponent, fraction) = split_u64(value);
    (exponent << scale) + index_exact(fraction, scale)
}

/// The index of a positive normal number.
pub(crate) fn index_f64(magnitude: f64, scale: u8) -> i32 {
    let (exponent, fraction) = split_f64(magnitude);
    (exponent << scale) + index_exact(fraction, scale)
}

/// The lower bound of the bucket of this index, which is the upper bound of the one below; rounded to an `f64`.
pub(crate) fn lower_bound(index: i32, scale: u8) -> f64 {
    let octave = index >> scale;
    let within = index - (octave << scale);
    let fraction = f64::from(within) / f64::from(1u32 << scale);
    fraction.exp2() * f64::from(octave).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigUint;

    const DIGITS: u32 = 512;

    /// `2^(j / 2^scale)` in 1.512 binary digits, rounded down, by repeated integer square roots.
    struct Reference {
        /// `2^(1 / 2^k)` for k from 0.
        roots: Vec<BigUint>,
    }

    impl Reference {
        fn new() -> Self {
            let mut roots = vec![BigUint::from(2u8) << DIGITS];
            for k in 0..20 {
                // One guard word below the digits that are kept.
                let wide: BigUint = &roots[k] << DIGITS;
                roots.push(wide.sqrt());
            }
            Self { roots }
        }

        /// The largest fraction of 64 bits below the bound `j` of `0..2^scale`.
        fn last_fraction_below(&self, j: u32, scale: u8) -> u64 {
            let mut bound = BigUint::from(1u8) << DIGITS;
            for k in 1..=scale {
                if j >> (scale - k) & 1 == 1 {
                    bound = (bound * &self.roots[usize::from(k)]) >> DIGITS;
                }
            }
            let behind: BigUint = (bound >> (DIGITS - 64)) - (BigUint::from(1u8) << 64u32);
            u64::try_from(behind).unwrap()
        }
    }

    fn bounds_to_test(scale: u8) -> Vec<u32> {
        let count = 1u32 << scale;
        let step = (count / 4096).max(1) | 1;
        (1..count)
            .step_by(step as usize)
            .chain((count > 1).then_some(count - 1))
            .collect()
    }

    #[test]
    fn the_index_is_exact_one_step_around_each_bound() {
        let reference = Reference::new();
        for scale in 0..=SCALE_MAX {
            assert_eq!(index_exact(0, scale), -1, "a power of two at scale {scale}");
            assert_eq!(index_exact(1, scale), 0);
            assert_eq!(index_exact(u64::MAX, scale), (1 << scale) - 1);
            for j in bounds_to_test(scale) {
                let last = reference.last_fraction_below(j, scale);
                // The bound is irrational: it lies between `last` and `last + 1`.
                assert_eq!(
                    index_exact(last, scale),
                    j as i32 - 1,
                    "below {j} at {scale}"
                );
                assert_eq!(
                    index_exact(last + 1, scale),
                    j as i32,
                    "above {j} at {scale}"
                );
            }
        }
    }

    #[test]
    fn the_index_of_a_float_is_exact_one_ulp_around_each_bound_of_every_scale() {
        let reference = Reference::new();
        for scale in 0..=SCALE_MAX {
            for j in bounds_to_test(scale).into_iter().step_by(7) {
                let below = reference.last_fraction_below(j, scale) >> 12;
                for exponent in [-1022, -1, 0, 1, 1023] {
                    let float =
                        |fraction: u64| f64::from_bits(((exponent + 1023) as u64) << 52 | fraction);
                    let base = exponent << scale;
                    // One ulp more and one less than the neighbours of the bound, besides.
                    for (fraction, index) in [(below, j - 1), (below + 1, j)] {
                        assert_eq!(index_f64(float(fraction), scale), base + index as i32);
                    }
                }
            }
            for exponent in [-1022, 0, 1023] {
                let power = f64::from(exponent).exp2();
                assert_eq!(index_f64(power, scale), (exponent << scale) - 1);
                assert_eq!(index_f64(power.next_up(), scale), exponent << scale);
                if exponent > -1022 {
                    assert_eq!(index_f64(power.next_down(), scale), (exponent << scale) - 1);
                }
            }
        }
    }

    #[test]
    fn a_lower_bound_separates_two_buckets() {
        for scale in [0, 3, 8, 20] {
            for index in [-1000, -17, -1, 0, 1, 40, 1000] {
                let bound = lower_bound(index, scale);
                assert_eq!(
                    index_f64(bound * (1.0 - 1e-9), scale),
                    index - 1,
                    "{index} at {scale}"
                );
                assert_eq!(
                    index_f64(bound * (1.0 + 1e-9), scale),
                    index,
                    "{index} at {scale}"
                );
            }
        }
    }
}
