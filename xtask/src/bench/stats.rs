//! The statistics of paired samples.

/// The confidence the reported intervals have at least.
const CONFIDENCE: f64 = 0.95;

/// The fewest samples for which the whole range of them is a 95 % interval of the median:
/// `1 - 2 * 0.5^6 = 96.9 %`, with five it is 93.8 %.
pub(crate) const SAMPLES_MIN: usize = 6;

/// A median with an interval that contains the true one with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// The middle value, or the mean of the two in the middle; `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = sorted[sorted.len() / 2 - 1];
    Some(f64::midpoint(lower, upper))
}

/// The median with its interval; `None` with fewer than [`SAMPLES_MIN`] samples.
///
/// The interval assumes nothing about the distribution of the samples: whether one is below the true
/// median is the toss of a coin, so the number of those below is binomial, and two order statistics
/// bound the median (H. A. David, H. N. Nagaraja, "Order Statistics", 3rd ed. 2003, section 7.1).
pub(crate) fn estimate(values: &[f64]) -> Option<Estimate> {
    let median = median(values)?;
    let (low, high) = interval_ranks(values.len())?;
    let sorted = sorted(values);
    Some(Estimate {
        median,
        low: sorted[low],
        high: sorted[high],
    })
}

/// The indices, counted from 0, of the order statistics that bound the median of `count` samples.
///
/// The interval from index `k` to `count - 1 - k` misses the median with probability
/// `2 * P(Binomial(count, 1/2) <= k)`; this is the largest `k` that keeps it within 5 %.
fn interval_ranks(count: usize) -> Option<(usize, usize)> {
    // P(Binomial = 0); representable up to 1074 samples, far more than there are trials.
    let mut probability = 0.5_f64.powi(i32::try_from(count).ok()?);
    let mut below = probability;
    let mut rank = None;
    for k in 0..count / 2 {
        if 2.0 * below > 1.0 - CONFIDENCE {
            break;
        }
        rank = Some(k);
        probability *= (count - k) as f64 / (k + 1) as f64;
        below += probability;
    }
    rank.map(|k| (k, count - 1 - k))
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_no_samples() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn ranks_agree_with_the_published_table() {
        // One-based ranks of the 95 % interval by sample size, as tables of the sign test give them.
        let known = [
            (6, 1, 6),
            (8, 1, 8),
            (9, 2, 8),
            (10, 2, 9),
            (12, 3, 10),
            (15, 4, 12),
            (20, 6, 15),
            (25, 8, 18),
            (30, 10, 21),
            (50, 18, 33),
            (100, 40, 61),
        ];
        for (count, low, high) in known {
            assert_eq!(
                interval_ranks(count),
                Some((low - 1, high - 1)),
                "{count} samples"
            );
        }
        for too_few in 0..SAMPLES_MIN {
            assert_eq!(interval_ranks(too_few), None);
        }
    }

    #[test]
    fn ranks_agree_with_all_outcomes_of_the_coins() {
        for count in SAMPLES_MIN..=16 {
            let coverage = |k: usize| {
                let covered = (0..1_u32 << count).filter(|coins| {
                    let below = coins.count_ones() as usize;
                    below > k && count - below > k
                });
                covered.count() as f64 / f64::from(1_u32 << count)
            };
            let (low, high) = interval_ranks(count).expect("enough samples");
            assert_eq!(low + high, count - 1);
            assert!(coverage(low) >= CONFIDENCE, "{count} samples, rank {low}");
            assert!(
                coverage(low + 1) < CONFIDENCE,
                "{count} samples, rank {low} is too wide"
            );
        }
    }

    #[test]
    fn many_samples_do_not_underflow() {
        let (low, high) = interval_ranks(1_000).expect("enough samples");
        // The normal approximation: 500 -+ 1.96 * sqrt(1000) / 2.
        assert_eq!((low + 1, high + 1), (469, 532));
    }

    #[test]
    fn an_estimate_is_ordered_whatever_the_samples_order() {
        let values = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0];
        let expected = Estimate {
            median: 5.0,
            low: 2.0,
            high: 8.0,
        };
        assert_eq!(estimate(&values), Some(expected));
        assert_eq!(estimate(&values[..5]), None);
    }
}
