//! Comparing two paths by interleaving them.

use anyhow::{Result, bail};

use super::stats::{self, Estimate, SAMPLES_MIN};
use super::worker::Sample;

/// The share of a trial's time whose rounds are thrown away, so that caches, branch predictors
/// and clock frequency settle. At least one round is.
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

/// What runs the two paths for one trial: worker processes, or a simulation in tests.
pub(crate) trait Sampler {
    /// The time it took to start them.
    fn start_ns(&self) -> f64;
    /// Runs one of them.
    fn sample(&mut self, side: Side, iters: u64) -> Result<Sample>;
    /// Ends them.
    fn end(self: Box<Self>) -> Result<()>;
}

/// Starts the paths anew for the trial of the given number.
pub(crate) type Start<'a> = dyn FnMut(usize) -> Result<Box<dyn Sampler + 'a>> + 'a;

/// How long a comparison and its samples may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// For the whole comparison. [`SAMPLES_MIN`] trials of one round are made anyway.
    pub(crate) total_ns: f64,
    /// What a sample should take at least.
    pub(crate) sample_ns: f64,
    /// Most trials.
    pub(crate) trials_max: usize,
}

/// Two paths compared.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    /// Median time per operation of ours.
    pub(crate) ours_ns: f64,
    /// Median time per operation of theirs.
    pub(crate) theirs_ns: f64,
    /// The medians of each trial.
    pub(crate) ours_trials_ns: Vec<f64>,
    pub(crate) theirs_trials_ns: Vec<f64>,
    /// Theirs / ours.
    pub(crate) ratio: Estimate,
    /// The time that passes per operation of ours, what it leaves out of its own time included.
    pub(crate) ours_wall_ns: f64,
    /// Of all trials.
    pub(crate) rounds: usize,
}

/// Compares two paths in several trials, each with state and processes of its own.
///
/// Where the allocator happens to put a path's state, and how a map happens to be seeded, stays the
/// same for as long as the process lives: rounds within one process agree with each other about a
/// ratio that the next process does not see. So a trial counts as one observation, the median of its
/// rounds, and the interval is over the trials.
pub(crate) fn compare<'a>(start: &mut Start<'a>, budget: Budget) -> Result<Comparison> {
    let mut spent_ns = 0.0;
    let mut iters = Iters { ours: 1, theirs: 1 };
    let mut trials = Vec::new();
    while trials.len() < SAMPLES_MIN
        || (trials.len() < budget.trials_max && spent_ns < budget.total_ns)
    {
        let number = trials.len();
        let trials_left = budget.trials_max.saturating_sub(number).max(1);
        let share_ns = (budget.total_ns - spent_ns).max(0.0) / trials_left as f64;
        let mut sampler = start(number)?;
        let trial = Trial::run(
            sampler.as_mut(),
            number,
            share_ns,
            budget.sample_ns,
            &mut iters,
        )?;
        sampler.end()?;
        spent_ns += trial.spent_ns;
        trials.push(trial);
    }
    let of = |quantity: fn(&Trial) -> f64| trials.iter().map(quantity).collect::<Vec<f64>>();
    let ours_trials_ns = of(|trial| trial.ours_ns);
    let theirs_trials_ns = of(|trial| trial.theirs_ns);
    let medians = (
        stats::median(&ours_trials_ns),
        stats::median(&theirs_trials_ns),
        stats::median(&of(|trial| trial.ours_wall_ns)),
        stats::estimate(&of(|trial| trial.ratio)),
    );
    let (Some(ours_ns), Some(theirs_ns), Some(ours_wall_ns), Some(ratio)) = medians else {
        bail!("too few trials for an interval");
    };
    Ok(Comparison {
        ours_ns,
        theirs_ns,
        ours_trials_ns,
        theirs_trials_ns,
        ratio,
        ours_wall_ns,
        rounds: trials.iter().map(|trial| trial.rounds).sum(),
    })
}

/// Iterations per sample of each side.
#[derive(Clone, Copy, Debug)]
struct Iters {
    ours: u64,
    theirs: u64,
}

/// What one trial found.
#[derive(Clone, Copy, Debug)]
struct Trial {
    ours_ns: f64,
    theirs_ns: f64,
    ours_wall_ns: f64,
    /// The median of the rounds' ratios.
    ratio: f64,
    rounds: usize,
    spent_ns: f64,
}

/// Sums of both sides over one round, per operation.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    ours_ns: f64,
    theirs_ns: f64,
    ours_wall_ns: f64,
    /// Of the whole round.
    wall_ns: f64,
}

impl Trial {
    /// Calibrates from where the last trial ended, warms up, and makes rounds until the time is up.
    fn run(
        sampler: &mut dyn Sampler,
        number: usize,
        share_ns: f64,
        sample_ns: f64,
        iters: &mut Iters,
    ) -> Result<Self> {
        let mut spent_ns = sampler.start_ns();
        let mut fit = |side, from| calibrate(sampler, side, from, sample_ns, &mut spent_ns);
        iters.ours = fit(Side::Ours, iters.ours)?;
        iters.theirs = fit(Side::Theirs, iters.theirs)?;
        let warm_until_ns = spent_ns + (share_ns - spent_ns).max(0.0) * WARM_UP_SHARE;
        let mut rounds: Vec<Round> = Vec::new();
        let mut is_warm = false;
        let mut ours_first = number.is_multiple_of(2);
        while rounds.is_empty() || spent_ns < share_ns {
            let round = Round::run(sampler, ours_first, *iters)?;
            ours_first = !ours_first;
            spent_ns += round.wall_ns;
            if is_warm {
                rounds.push(round);
            }
            is_warm |= spent_ns >= warm_until_ns;
        }
        let of = |quantity: fn(&Round) -> f64| rounds.iter().map(quantity).collect::<Vec<f64>>();
        // There is at least one round, so there are medians.
        let median = |quantity| stats::median(&of(quantity)).unwrap_or_default();
        Ok(Self {
            ours_ns: median(|round| round.ours_ns),
            theirs_ns: median(|round| round.theirs_ns),
            ours_wall_ns: median(|round| round.ours_wall_ns),
            ratio: median(|round| round.theirs_ns / round.ours_ns),
            rounds: rounds.len(),
            spent_ns,
        })
    }
}

impl Round {
    /// Takes four samples: ours, theirs, theirs, ours, or the other way round.
    ///
    /// Both sides are run at the same mean moment, so that whatever drifts during the round (clock
    /// frequency, neighbours on the machine) cancels from its ratio as far as the drift is linear.
    fn run(sampler: &mut dyn Sampler, ours_first: bool, iters: Iters) -> Result<Self> {
        let order = if ours_first {
            [Side::Ours, Side::Theirs, Side::Theirs, Side::Ours]
        } else {
            [Side::Theirs, Side::Ours, Side::Ours, Side::Theirs]
        };
        let mut round = Self::default();
        for side in order {
            let count = match side {
                Side::Ours => iters.ours,
                Side::Theirs => iters.theirs,
            };
            let sample = sampler.sample(side, count)?;
            // Two samples of `count` operations make one mean.
            let divisor = 2.0 * count as f64;
            round.wall_ns += sample.wall_ns;
            match side {
                Side::Ours => {
                    round.ours_ns += sample.time_ns / divisor;
                    round.ours_wall_ns += sample.wall_ns / divisor;
                }
                Side::Theirs => round.theirs_ns += sample.time_ns / divisor,
            }
        }
        if round.ours_ns <= 0.0 || round.theirs_ns <= 0.0 {
            bail!("a sample took no time at all: was its work optimised away?");
        }
        Ok(round)
    }
}

/// Finds how many iterations make a sample of the wanted length, and warms the path up meanwhile.
///
/// The number has to fit twice in a row: a first call may be far slower than all others.
fn calibrate(
    sampler: &mut dyn Sampler,
    side: Side,
    from: u64,
    wanted_ns: f64,
    spent_ns: &mut f64,
) -> Result<u64> {
    let mut iters = from;
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
    use std::cell::RefCell;
    use std::rc::Rc;

    /// Two paths on a machine whose speed changes, without noise from the real one.
    #[derive(Debug)]
    struct Machine {
        now_ns: f64,
        /// Time per operation of ours and theirs at time 0.
        costs_ns: [f64; 2],
        /// How much slower the machine is at a given time.
        slowness: fn(f64) -> f64,
        /// How much slower theirs is in the trial of the given number, by luck.
        luck: fn(usize) -> f64,
        /// The extra cost of each side's first call in a trial.
        cold_ns: f64,
        /// The trial, side and iterations of every call.
        calls: Vec<(usize, Side, u64)>,
    }

    /// What a call costs beside its operations, and what starting a trial costs.
    const CALL_NS: f64 = 20_000.0;
    const START_NS: f64 = 3e6;

    /// The machine during one trial.
    struct During {
        machine: Rc<RefCell<Machine>>,
        trial: usize,
        cold_ns: [f64; 2],
    }

    impl Machine {
        fn new(costs_ns: [f64; 2]) -> Self {
            Self {
                now_ns: 0.0,
                costs_ns,
                slowness: |_| 1.0,
                luck: |_| 1.0,
                cold_ns: 0.0,
                calls: Vec::new(),
            }
        }

        fn compare(self, budget: Budget) -> Result<(Comparison, Self)> {
            let machine = Rc::new(RefCell::new(self));
            let mut start = |trial| -> Result<Box<dyn Sampler>> {
                let cold_ns = [machine.borrow().cold_ns; 2];
                let machine = Rc::clone(&machine);
                Ok(Box::new(During {
                    machine,
                    trial,
                    cold_ns,
                }))
            };
            let comparison = compare(&mut start, budget)?;
            let machine = Rc::try_unwrap(machine).expect("every trial has ended");
            Ok((comparison, machine.into_inner()))
        }

        fn iters(&self, side: Side) -> Option<u64> {
            let mut calls = self.calls.iter().rev();
            calls.find(|call| call.1 == side).map(|call| call.2)
        }
    }

    impl Sampler for During {
        fn start_ns(&self) -> f64 {
            START_NS
        }

        fn sample(&mut self, side: Side, iters: u64) -> Result<Sample> {
            let mut machine = self.machine.borrow_mut();
            machine.calls.push((self.trial, side, iters));
            let place = usize::from(side == Side::Theirs);
            let luck = if side == Side::Theirs {
                (machine.luck)(self.trial)
            } else {
                1.0
            };
            let plain_ns = machine.costs_ns[place] * luck * iters as f64;
            // The slowness in the middle of the sample is its mean as long as it changes linearly.
            let slowness = (machine.slowness)(machine.now_ns + plain_ns / 2.0);
            let time_ns = plain_ns * slowness + std::mem::take(&mut self.cold_ns[place]);
            let wall_ns = time_ns + CALL_NS;
            machine.now_ns += wall_ns;
            Ok(Sample {
                time_ns,
                wall_ns,
                operations: iters as f64,
                ..Sample::default()
            })
        }

        fn end(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    const BUDGET: Budget = Budget {
        total_ns: 1e9,
        sample_ns: 1e6,
        trials_max: 9,
    };

    #[test]
    fn a_machine_that_gets_slower_does_not_change_the_ratio() -> Result<()> {
        // Twice as slow after a second: a path measured wholly before the other would look 1.5x faster.
        let mut machine = Machine::new([10.0, 30.0]);
        machine.slowness = |now_ns| 1.0 + now_ns / 1e9;
        let (comparison, _) = machine.compare(BUDGET)?;
        let Estimate { median, low, high } = comparison.ratio;
        assert!((median - 3.0).abs() < 0.001, "{comparison:?}");
        assert!(
            low <= median && median <= high && high - low < 0.01,
            "{comparison:?}"
        );
        assert!(
            comparison.rounds > 100 && comparison.ours_trials_ns.len() == 9,
            "{comparison:?}"
        );
        assert!(
            comparison.ours_ns > 13.0 && comparison.ours_ns < 17.0,
            "{comparison:?}"
        );
        Ok(())
    }

    #[test]
    fn a_machine_that_stalls_now_and_then_does_not_either() -> Result<()> {
        let mut machine = Machine::new([50.0, 100.0]);
        machine.slowness = |now_ns| if now_ns % 5e7 < 5e6 { 7.0 } else { 1.0 };
        let (comparison, _) = machine.compare(BUDGET)?;
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
    fn luck_that_lasts_for_a_trial_widens_the_interval_and_moves_no_median() -> Result<()> {
        // A third of the trials see another ratio: many exact rounds must not hide that.
        let mut machine = Machine::new([10.0, 20.0]);
        machine.luck = |trial| if trial % 3 == 0 { 1.5 } else { 1.0 };
        let (comparison, _) = machine.compare(BUDGET)?;
        let Estimate { median, low, high } = comparison.ratio;
        assert!(
            (median - 2.0).abs() < 1e-9 && (low - 2.0).abs() < 1e-9,
            "{comparison:?}"
        );
        assert!((high - 3.0).abs() < 1e-9, "{comparison:?}");
        Ok(())
    }

    #[test]
    fn rounds_alternate_between_the_two_mirrored_orders() -> Result<()> {
        let (_, machine) = Machine::new([10.0, 30.0]).compare(BUDGET)?;
        let sides = machine
            .calls
            .iter()
            .filter(|call| call.0 == 8)
            .map(|call| call.1);
        // The last trial starts with two calls per side to check its calibration.
        let sides: Vec<Side> = sides.skip(4).collect();
        let (ours, theirs) = (Side::Ours, Side::Theirs);
        let mirrored = [[ours, theirs, theirs, ours], [theirs, ours, ours, theirs]];
        let rounds: Vec<&[Side]> = sides.chunks(4).collect();
        assert!(rounds.len() > 20);
        for (round, expected) in rounds.iter().zip(mirrored.iter().cycle()) {
            assert_eq!(round, expected);
        }
        Ok(())
    }

    #[test]
    fn each_side_gets_samples_of_the_wanted_length() -> Result<()> {
        let (_, machine) = Machine::new([2.0, 5_000.0]).compare(BUDGET)?;
        let iters = (machine.iters(Side::Ours), machine.iters(Side::Theirs));
        assert_eq!(iters, (Some(500_000), Some(200)));
        Ok(())
    }

    #[test]
    fn a_slow_first_call_does_not_shorten_the_samples() -> Result<()> {
        let mut machine = Machine::new([100.0, 100.0]);
        machine.cold_ns = 5e7;
        let (comparison, machine) = machine.compare(BUDGET)?;
        assert_eq!(machine.iters(Side::Ours), Some(10_000));
        assert!((comparison.ratio.median - 1.0).abs() < 1e-9);
        Ok(())
    }

    #[test]
    fn the_time_is_kept() -> Result<()> {
        for costs_ns in [[1.0, 3.0], [1_000.0, 50.0], [5e5, 4e6]] {
            let (comparison, machine) = Machine::new(costs_ns).compare(BUDGET)?;
            let spent_ns = machine.now_ns + START_NS * comparison.ours_trials_ns.len() as f64;
            assert!(
                spent_ns > 0.9e9 && spent_ns < 1.2e9,
                "{costs_ns:?} took {spent_ns} ns"
            );
        }
        Ok(())
    }

    #[test]
    fn paths_too_slow_for_the_budget_get_the_fewest_trials() -> Result<()> {
        let (comparison, machine) = Machine::new([5e8, 1e9]).compare(BUDGET)?;
        assert_eq!(
            (comparison.ours_trials_ns.len(), comparison.rounds),
            (SAMPLES_MIN, SAMPLES_MIN)
        );
        assert!(machine.calls.iter().all(|call| call.2 == 1));
        Ok(())
    }

    #[test]
    fn a_path_that_takes_no_time_is_an_error_and_not_an_endless_loop() {
        let error = Machine::new([0.0, 1.0])
            .compare(BUDGET)
            .expect_err("there is no ratio");
        assert!(error.to_string().contains("optimised away"), "{error}");
    }
}
