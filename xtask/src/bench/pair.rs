//! Comparing two paths by interleaving them.

use anyhow::{Result, bail};

use super::stats::{self, Estimate, SAMPLES_MIN};
use super::worker::Sample;

/// Most rounds of one comparison; see the statistics for why there is a limit at all.
const ROUNDS_MAX: usize = 1_000;
/// The share of a comparison's time whose rounds are thrown away, so that caches, branch
/// predictors and clock frequency settle. At least one round is.
const WARM_UP_SHARE: f64 = 0.05;
/// Steps a calibration may take. Each changes the number at most tenfold, so this is plenty.
const CALIBRATION_STEPS_MAX: usize = 64;
/// A path that leaves most of its time out must not make a sample take this many times as long.
const WALL_PER_SAMPLE_MAX: f64 = 10.0;

/// One of the two paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// `after`.
    Ours,
    /// `before` or a peer.
    Theirs,
}

/// What runs the two paths: worker processes, or a simulation in tests.
pub(crate) trait Sampler {
    fn sample(&mut self, side: Side, iters: u64) -> Result<Sample>;
}

/// How long a comparison and its samples may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// For the whole comparison, calibration included. At least [`SAMPLES_MIN`] rounds are made anyway.
    pub(crate) total_ns: f64,
    /// What a sample should take at least.
    pub(crate) sample_ns: f64,
}

/// Two paths compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Comparison {
    /// Median time per operation of ours.
    pub(crate) ours_ns: f64,
    /// Median time per operation of theirs.
    pub(crate) theirs_ns: f64,
    /// Theirs / ours, round by round.
    pub(crate) ratio: Estimate,
    pub(crate) rounds: usize,
}

/// Compares two paths in rounds of four samples: ours, theirs, theirs, ours, and the next round
/// the other way round.
///
/// Both sides of a round are run at the same mean moment, so that whatever drifts during a round (clock
/// frequency, neighbours on the machine) cancels from its ratio as far as the drift is linear.
pub(crate) fn compare(sampler: &mut dyn Sampler, budget: Budget) -> Result<Comparison> {
    let mut spent_ns = 0.0;
    let ours_iters = calibrate(sampler, Side::Ours, budget.sample_ns, &mut spent_ns)?;
    let theirs_iters = calibrate(sampler, Side::Theirs, budget.sample_ns, &mut spent_ns)?;
    let warm_until_ns = spent_ns + (budget.total_ns - spent_ns).max(0.0) * WARM_UP_SHARE;
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut is_warm = false;
    let mut ours_first = true;
    while ratios.len() < SAMPLES_MIN || (spent_ns < budget.total_ns && ratios.len() < ROUNDS_MAX) {
        let order = if ours_first {
            [Side::Ours, Side::Theirs, Side::Theirs, Side::Ours]
        } else {
            [Side::Theirs, Side::Ours, Side::Ours, Side::Theirs]
        };
        ours_first = !ours_first;
        let (mut ours_ns, mut theirs_ns) = (0.0, 0.0);
        for side in order {
            let (sum_ns, iters) = match side {
                Side::Ours => (&mut ours_ns, ours_iters),
                Side::Theirs => (&mut theirs_ns, theirs_iters),
            };
            let sample = sampler.sample(side, iters)?;
            *sum_ns += sample.time_ns / iters as f64 / 2.0;
            spent_ns += sample.wall_ns;
        }
        if !is_warm {
            is_warm = spent_ns >= warm_until_ns;
            continue;
        }
        if ours_ns <= 0.0 || theirs_ns <= 0.0 {
            bail!("a sample took no time at all: was its work optimised away?");
        }
        ours.push(ours_ns);
        theirs.push(theirs_ns);
        ratios.push(theirs_ns / ours_ns);
    }
    let medians = (
        stats::median(&ours),
        stats::median(&theirs),
        stats::estimate(&ratios),
    );
    let (Some(ours_ns), Some(theirs_ns), Some(ratio)) = medians else {
        bail!("too few rounds for an interval");
    };
    Ok(Comparison {
        ours_ns,
        theirs_ns,
        ratio,
        rounds: ratios.len(),
    })
}

/// Finds how many iterations make a sample of the wanted length, and warms the path up meanwhile.
///
/// The number has to fit twice in a row: a first call may be far slower than all others.
fn calibrate(
    sampler: &mut dyn Sampler,
    side: Side,
    wanted_ns: f64,
    spent_ns: &mut f64,
) -> Result<u64> {
    let mut iters = 1_u64;
    let mut fits = 0;
    for _ in 0..CALIBRATION_STEPS_MAX {
        let sample = sampler.sample(side, iters)?;
        *spent_ns += sample.wall_ns;
        let effective_ns = sample
            .time_ns
            .max(sample.wall_ns / WALL_PER_SAMPLE_MAX)
            .max(1.0);
        let factor = (wanted_ns / effective_ns).clamp(0.1, 10.0);
        let better = ((iters as f64 * factor).ceil() as u64).max(1);
        if (0.8..=1.25).contains(&factor) || better == iters {
            fits += 1;
            if fits == 2 {
                break;
            }
        } else {
            fits = 0;
            iters = better;
        }
    }
    Ok(iters)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two paths on a machine whose speed changes, without noise from the real one.
    struct Machine {
        now_ns: f64,
        /// Time per operation of ours and theirs at time 0.
        costs_ns: [f64; 2],
        /// How much slower the machine is at a given time.
        slowness: fn(f64) -> f64,
        /// What a call costs beside its operations.
        call_ns: f64,
        /// The extra cost of each side's first call.
        cold_ns: [f64; 2],
        /// Sides in the order they were run with their iterations.
        calls: Vec<(Side, u64)>,
    }

    impl Machine {
        fn new(costs_ns: [f64; 2], slowness: fn(f64) -> f64) -> Self {
            Self {
                now_ns: 0.0,
                costs_ns,
                slowness,
                call_ns: 20_000.0,
                cold_ns: [0.0; 2],
                calls: Vec::new(),
            }
        }
    }

    impl Sampler for Machine {
        fn sample(&mut self, side: Side, iters: u64) -> Result<Sample> {
            self.calls.push((side, iters));
            let place = usize::from(side == Side::Theirs);
            let cold_ns = std::mem::take(&mut self.cold_ns[place]);
            let plain_ns = self.costs_ns[place] * iters as f64;
            // The slowness in the middle of the sample is its mean as long as it changes linearly.
            let time_ns = plain_ns * (self.slowness)(self.now_ns + plain_ns / 2.0) + cold_ns;
            let wall_ns = time_ns + self.call_ns;
            self.now_ns += wall_ns;
            Ok(Sample {
                time_ns,
                wall_ns,
                operations: iters as f64,
                ..Sample::default()
            })
        }
    }

    const BUDGET: Budget = Budget {
        total_ns: 1e9,
        sample_ns: 1e6,
    };

    #[test]
    fn a_machine_that_gets_slower_does_not_change_the_ratio() -> Result<()> {
        // Twice as slow after a second: a path measured wholly before the other would look 1.5x faster.
        let mut machine = Machine::new([10.0, 30.0], |now_ns| 1.0 + now_ns / 1e9);
        let comparison = compare(&mut machine, BUDGET)?;
        let Estimate { median, low, high } = comparison.ratio;
        assert!((median - 3.0).abs() < 0.001, "{comparison:?}");
        assert!(
            low <= median && median <= high && high - low < 0.02,
            "{comparison:?}"
        );
        assert!(comparison.rounds > 100, "{comparison:?}");
        assert!(
            comparison.ours_ns > 13.0 && comparison.ours_ns < 17.0,
            "{comparison:?}"
        );
        Ok(())
    }

    #[test]
    fn a_machine_that_stalls_now_and_then_does_not_either() -> Result<()> {
        let stalls = |now_ns: f64| if now_ns % 5e7 < 5e6 { 7.0 } else { 1.0 };
        let mut machine = Machine::new([50.0, 100.0], stalls);
        let comparison = compare(&mut machine, BUDGET)?;
        assert!(
            (comparison.ratio.median - 2.0).abs() < 0.001,
            "{comparison:?}"
        );
        assert!(
            comparison.ratio.low > 1.99 && comparison.ratio.high < 2.01,
            "{comparison:?}"
        );
        Ok(())
    }

    #[test]
    fn rounds_alternate_between_the_two_mirrored_orders() -> Result<()> {
        let mut machine = Machine::new([10.0, 30.0], |_| 1.0);
        let comparison = compare(&mut machine, BUDGET)?;
        let sides: Vec<Side> = machine.calls.iter().map(|call| call.0).collect();
        let rounds: Vec<&[Side]> = sides[sides.len() - comparison.rounds * 4..]
            .chunks(4)
            .collect();
        let (ours, theirs) = (Side::Ours, Side::Theirs);
        let mirrored = [[ours, theirs, theirs, ours], [theirs, ours, ours, theirs]];
        for pair in rounds.chunks_exact(2) {
            assert!(pair[0] != pair[1]);
            assert!(
                pair.iter()
                    .all(|round| mirrored.iter().any(|order| order == round))
            );
        }
        Ok(())
    }

    #[test]
    fn each_side_gets_samples_of_the_wanted_length() -> Result<()> {
        let mut machine = Machine::new([2.0, 5_000.0], |_| 1.0);
        compare(&mut machine, BUDGET)?;
        let last = |side| {
            machine
                .calls
                .iter()
                .rev()
                .find(|call| call.0 == side)
                .map(|call| call.1)
        };
        assert_eq!(
            (last(Side::Ours), last(Side::Theirs)),
            (Some(500_000), Some(200))
        );
        Ok(())
    }

    #[test]
    fn a_slow_first_call_does_not_shorten_the_samples() -> Result<()> {
        let mut machine = Machine::new([100.0, 100.0], |_| 1.0);
        machine.cold_ns = [5e7, 5e7];
        let comparison = compare(&mut machine, BUDGET)?;
        assert_eq!(machine.calls.last().map(|call| call.1), Some(10_000));
        assert!((comparison.ratio.median - 1.0).abs() < 1e-9);
        Ok(())
    }

    #[test]
    fn a_path_too_slow_for_the_budget_gets_the_fewest_rounds() -> Result<()> {
        let mut machine = Machine::new([5e8, 1e9], |_| 1.0);
        let comparison = compare(&mut machine, BUDGET)?;
        assert_eq!(comparison.rounds, SAMPLES_MIN);
        assert!(machine.calls.iter().all(|call| call.1 == 1));
        Ok(())
    }

    #[test]
    fn a_path_that_takes_no_time_is_an_error_and_not_an_endless_loop() {
        let mut machine = Machine::new([0.0, 1.0], |_| 1.0);
        let error =
            compare(&mut machine, BUDGET).expect_err("nothing can be compared with nothing");
        assert!(error.to_string().contains("optimised away"), "{error}");
    }
}
