//! Whether a build got worse than the one that a baseline kept.
//!
//! Counts are compared with the baseline's report. Times are not: nanoseconds of another day say nothing. The
//! baseline's own program is run beside this build's, round by round, and what this build's program differs from
//! itself by is measured the same way; only a difference past that, found twice, is one.

use anyhow::Result;

use super::baseline::Baseline;
use super::pair::{self, Budget, Start};
use super::report::{CaseAgainst, CaseReport, Report, TimeAgainst};
use super::stats::Estimate;
use super::units;

/// What an exact count of allocations may be off per operation: a single one in a run of several
/// thousand operations.
const ALLOCATIONS_SLACK: f64 = 0.001;
/// Instructions repeat exactly; what is in libraries that pick their code by the processor does not quite.
const INSTRUCTIONS_SHARE: f64 = 0.01;
/// Start-up does not cancel to the last instruction.
const INSTRUCTIONS_SLACK: f64 = 0.1;

/// A comparison that says neither yes nor no is made again, so often at most in all.
const COMPARISONS_MAX: usize = 4;

/// Times this build's path (theirs) against the baseline's (ours), until it is clear whether it is slower.
///
/// `same` starts this build's path twice, `both` the baseline's and this build's.
///
/// It is slower if two comparisons say so: the whole interval is past what the path differed from itself by, in either of the two. It is not as soon as
/// one comparison finds that both may be equal. In between, where other work has widened one interval or the other, the question is asked again.
pub(crate) fn time<'a>(
    same: &mut Start<'a>,
    both: &mut Start<'a>,
    budget: Budget,
) -> Result<TimeAgainst> {
    let mut before: Option<f64> = None;
    let mut comparisons = 0;
    loop {
        comparisons += 1;
        let own = spread(pair::compare(same, budget)?.ratio);
        let found = pair::compare(both, budget)?.ratio;
        let spread = before.map_or(own, |before| before.max(own));
        let is_past = found.low > spread;
        let slower = is_past && before.is_some();
        if slower || found.low <= 1.0 || comparisons == COMPARISONS_MAX {
            return Ok(TimeAgainst {
                ratio: found.median,
                ratio_low: found.low,
                ratio_high: found.high,
                spread,
                slower,
            });
        }
        if is_past {
            before = Some(own);
        }
    }
}

/// How far from 1, in either direction, a path was from itself.
fn spread(same: Estimate) -> f64 {
    same.high.max(1.0 / same.low).max(1.0)
}

/// Why instructions of the two runs cannot be compared, if so.
pub(crate) fn instructions_remark(base: &Report, now: &Report) -> Option<String> {
    let counted = |report: &Report| {
        report
            .cases
            .iter()
            .any(|case| case.instructions_after.is_some())
    };
    if !counted(base) {
        Some("the baseline counted no instructions (`--save` with `--icount` does)".to_owned())
    } else if !counted(now) {
        Some("instructions were not counted: that needs --icount".to_owned())
    } else if base.rustc != now.rustc {
        Some(format!(
            "instructions are not compared: the baseline was built by {}",
            base.rustc
        ))
    } else if base.machine.cpu != now.machine.cpu || base.machine.arch != now.machine.arch {
        Some(format!(
            "instructions are not compared: the baseline's processor is {}",
            base.machine.cpu
        ))
    } else {
        None
    }
}

/// Judges one case.
pub(crate) fn judge(
    base: &CaseReport,
    now: &CaseReport,
    time: Option<TimeAgainst>,
    with_instructions: bool,
) -> CaseAgainst {
    let mut worse = Vec::new();
    // With several threads the scheduler decides who finds what empty, and how large batches get: those counts are shown
    // and prove nothing.
    let is_exact = now.threads == 1;
    if is_exact && now.allocs_after > base.allocs_after + ALLOCATIONS_SLACK {
        worse.push(format!(
            "{} instead of {} allocations",
            units::count(now.allocs_after),
            units::count(base.allocs_after)
        ));
    }
    let instructions = (base.instructions_after.zip(now.instructions_after))
        .filter(|_| with_instructions && is_exact);
    if let Some((then, now)) = instructions
        && now > then * (1.0 + INSTRUCTIONS_SHARE) + INSTRUCTIONS_SLACK
    {
        worse.push(format!("{now:.1} instead of {then:.1} instructions"));
    }
    if let Some(time) = time.as_ref().filter(|time| time.slower) {
        worse.push(format!(
            "{} as long, which is past {} between equals, twice",
            units::interval(time.ratio, time.ratio_low, time.ratio_high),
            units::factor(time.spread)
        ));
    }
    CaseAgainst {
        id: now.id.clone(),
        time,
        allocs_base: base.allocs_after,
        allocs: now.allocs_after,
        instructions_base: instructions.map(|(then, _)| then),
        instructions: instructions.map(|(_, now)| now),
        worse,
    }
}

/// The baseline's report of a case.
pub(crate) fn base_of<'a>(baseline: &'a Baseline, id: &str) -> Option<&'a CaseReport> {
    baseline.report.cases.iter().find(|case| case.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::pair::{Sampler, Side};
    use crate::bench::report::tests::sample;
    use crate::bench::worker::Sample;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// A machine with noise of its own: every sample is off by some per cent, some are off by far, its speed
    /// drifts, and where a process has its memory makes it up to 2 % slower for as long as it lives. In a storm, a process is off by up to 10 %.
    struct Noisy {
        state: Rc<RefCell<u64>>,
        now_ns: Rc<RefCell<f64>>,
        luck: [f64; 2],
        costs_ns: [f64; 2],
    }

    /// A uniform number from 0 to 1 (xorshift64*, Vigna 2016).
    fn uniform(state: &RefCell<u64>) -> f64 {
        let mut x = *state.borrow();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        *state.borrow_mut() = x;
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }

    impl Sampler for Noisy {
        fn start_ns(&self) -> f64 {
            1e6
        }

        fn sample(&mut self, side: Side, iters: u64) -> Result<Sample> {
            let place = usize::from(side == Side::Theirs);
            let drift = 1.0 + 0.3 * (*self.now_ns.borrow() / 3e8).sin();
            let jitter = 1.0 + 0.03 * uniform(&self.state);
            let outlier = if uniform(&self.state) < 0.02 {
                1.5
            } else {
                1.0
            };
            let time_ns =
                self.costs_ns[place] * self.luck[place] * drift * jitter * outlier * iters as f64;
            *self.now_ns.borrow_mut() += time_ns;
            Ok(Sample {
                time_ns,
                wall_ns: time_ns + 2e4,
                operations: iters as f64,
                ..Sample::default()
            })
        }

        fn end(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    const BUDGET: Budget = Budget {
        total_ns: 3e8,
        sample_ns: 1e6,
        trials_max: 9,
    };

    fn try_once(seed: u64, slowdown: f64) -> Result<TimeAgainst> {
        try_in(seed, slowdown, 0.0)
    }

    /// With storms for so much of the time.
    fn try_in(seed: u64, slowdown: f64, storms: f64) -> Result<TimeAgainst> {
        let state = Rc::new(RefCell::new(seed));
        let now_ns = Rc::new(RefCell::new(0.0));
        let start = |costs_ns: [f64; 2]| {
            let (state, now_ns) = (Rc::clone(&state), Rc::clone(&now_ns));
            move |_: usize| -> Result<Box<dyn Sampler>> {
                // A storm lasts for as long as some comparisons.
                let is_storm = (*now_ns.borrow() / 4e9 + seed as f64 * 0.37).fract() < storms;
                let most = if is_storm { 0.10 } else { 0.02 };
                let luck = [(); 2].map(|()| 1.0 + most * uniform(&state));
                Ok(Box::new(Noisy {
                    state: Rc::clone(&state),
                    now_ns: Rc::clone(&now_ns),
                    luck,
                    costs_ns,
                }))
            }
        };
        let now_ns = 100.0 * (1.0 + slowdown);
        time(
            &mut start([now_ns, now_ns]),
            &mut start([100.0, now_ns]),
            BUDGET,
        )
    }

    #[test]
    fn twenty_equal_builds_raise_no_alarm() -> Result<()> {
        for seed in 1..=20 {
            let found = try_once(seed, 0.0)?;
            assert!(!found.slower, "seed {seed}: {found:?}");
        }
        Ok(())
    }

    #[test]
    fn twenty_planted_slowdowns_of_five_per_cent_are_all_found() -> Result<()> {
        for seed in 1..=20 {
            let found = try_once(seed, 0.05)?;
            assert!(found.slower, "seed {seed}: {found:?}");
            assert!((found.ratio - 1.05).abs() < 0.02, "seed {seed}: {found:?}");
        }
        Ok(())
    }

    /// One comparison and its repetition find 79 % of them in these storms.
    #[test]
    fn storms_hide_few_slowdowns_and_raise_no_alarm() -> Result<()> {
        let mut found = 0;
        for seed in 1..=200 {
            let equal = try_in(seed, 0.0, 0.1)?;
            assert!(!equal.slower, "seed {seed}: {equal:?}");
            found += usize::from(try_in(seed, 0.05, 0.1)?.slower);
        }
        assert!(found >= 185, "{found} of 200");
        Ok(())
    }

    fn verdict(change: impl Fn(&mut CaseReport)) -> Vec<String> {
        let base = sample().cases.remove(0);
        let mut now = base.clone();
        change(&mut now);
        judge(&base, &now, None, true).worse
    }

    #[test]
    fn counts_that_grew_are_named() {
        assert_eq!(verdict(|_| ()), Vec::<String>::new());
        let allocations = verdict(|case| case.allocs_after = 0.5);
        assert_eq!(allocations, ["0.50 instead of 0 allocations"]);
        let instructions = verdict(|case| case.instructions_after = Some(17.5));
        assert_eq!(instructions, ["17.5 instead of 17.0 instructions"]);
        assert!(verdict(|case| case.instructions_after = Some(17.2)).is_empty());
        assert!(verdict(|case| case.instructions_after = None).is_empty());
        // Nanoseconds of two runs are no evidence.
        assert!(verdict(|case| case.after_ns *= 2.0).is_empty());
    }

    #[test]
    fn counts_of_several_threads_prove_nothing() {
        let contended = verdict(|case| {
            case.threads = 2;
            case.allocs_after = 5.0;
        });
        assert!(contended.is_empty(), "{contended:?}");
    }

    #[test]
    fn what_keeps_instructions_from_being_compared_is_said() {
        let report = sample();
        assert_eq!(instructions_remark(&report, &report), None);
        type Change = fn(&mut Report);
        let changes: [(Change, &str); 3] = [
            (|now| now.rustc = "rustc 2.0.0".to_owned(), "rustc 1.95.0"),
            (|now| now.machine.cpu = "Slow 1".to_owned(), "Fast 9000"),
            (|now| now.cases[0].instructions_after = None, "--icount"),
        ];
        for (change, part) in changes {
            let mut now = report.clone();
            change(&mut now);
            let remark = instructions_remark(&report, &now);
            assert!(
                remark.as_ref().is_some_and(|text| text.contains(part)),
                "{remark:?}"
            );
        }
    }
}
