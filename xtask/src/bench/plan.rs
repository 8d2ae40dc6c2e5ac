//! Which cases are measured, and how the time is shared out.

use std::time::Duration;

use anyhow::{Result, bail};

use super::listing::{Case, Experiment, Listing};
use super::pair::Budget;
use super::stats::SAMPLES_MIN;

/// Limits of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For the whole run without the counting of instructions; a little less than promised, since the
    /// last round of a comparison is finished.
    total: Duration,
    /// For one comparison: more would not make the interval narrower by much.
    per_pair_max: Duration,
    /// Wanted length of a sample.
    sample: Duration,
    /// Most trials of one comparison.
    trials_max: usize,
}

/// A default run ends within 3 minutes.
const DEFAULT: Limits = Limits {
    total: Duration::from_secs(165),
    per_pair_max: Duration::from_secs(5),
    sample: Duration::from_millis(2),
    // The interval of nine leaves the lowest and the highest out: one odd trial does not widen it.
    trials_max: 9,
};

/// A quick run ends within 45 seconds.
const QUICK: Limits = Limits {
    total: Duration::from_secs(38),
    per_pair_max: Duration::from_secs(1),
    sample: Duration::from_millis(1),
    trials_max: SAMPLES_MIN,
};

/// Threads wake up at different times, so a sample of several has to be longer before what
/// they do together outweighs that.
const CONTENDED_SAMPLE_FACTOR: u32 = 4;

/// How the time has gone so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// Since the start.
    pub(crate) spent: Duration,
    /// The sum of the comparisons' shares.
    pub(crate) planned: Duration,
}

impl Clock {
    /// The part of the time that goes into planned comparisons.
    fn efficiency(self) -> f64 {
        if self.planned.is_zero() {
            return EFFICIENCY_AT_FIRST;
        }
        (self.planned.as_secs_f64() / self.spent.as_secs_f64()).clamp(EFFICIENCY_MIN, 1.0)
    }
}

/// What to expect of [`Clock::efficiency`] before there is anything to go by.
const EFFICIENCY_AT_FIRST: f64 = 0.8;
/// The least to expect: one slow case must not starve all others.
const EFFICIENCY_MIN: f64 = 0.3;

impl Limits {
    /// With a baseline to be timed against, every case takes three comparisons where it took one.
    pub(crate) fn of(quick: bool, against: bool) -> Self {
        let limits = if quick { QUICK } else { DEFAULT };
        Self {
            total: limits.total * if against { 3 } else { 1 },
            ..limits
        }
    }

    /// The share of the next comparison, of what `spent` has left for `comparisons_left` of them.
    ///
    /// Whoever takes less than its share, as fast paths under the limit per pair do, leaves the
    /// rest to the others. `planned` is the sum of the shares so far: as much as they and what was
    /// done beside them took longer than that, so much shorter are the next.
    pub(crate) fn budget(&self, clock: Clock, comparisons_left: usize, threads: u32) -> Budget {
        let factor = if threads > 1 {
            CONTENDED_SAMPLE_FACTOR
        } else {
            1
        };
        let left = self.total.saturating_sub(clock.spent);
        let share = left
            .div_f64(comparisons_left.max(1) as f64)
            .mul_f64(clock.efficiency());
        Budget {
            total_ns: share.min(self.per_pair_max).as_nanos() as f64,
            sample_ns: (self.sample * factor).as_nanos() as f64,
            trials_max: self.trials_max,
        }
    }

    /// The time that `comparisons_left` comparisons are going to take.
    pub(crate) fn left(&self, spent: Duration, comparisons_left: usize) -> Duration {
        let at_most = self
            .per_pair_max
            .saturating_mul(u32::try_from(comparisons_left).unwrap_or(u32::MAX));
        self.total.saturating_sub(spent).min(at_most)
    }
}

/// What a run measures.
#[derive(Debug, Default)]
pub(crate) struct Selection<'a> {
    pub(crate) cases: Vec<&'a Case>,
    pub(crate) experiments: Vec<&'a Experiment>,
}

/// Returns the shown cases and the experiments whose id contains the filter.
pub(crate) fn select<'a>(listing: &'a Listing, filter: Option<&str>) -> Result<Selection<'a>> {
    let wanted = |id: &str| filter.is_none_or(|filter| id.contains(filter));
    let shown = || listing.cases.iter().filter(|case| !case.supporting);
    let selection = Selection {
        cases: shown().filter(|case| wanted(&case.id)).collect(),
        experiments: listing
            .experiments
            .iter()
            .filter(|experiment| wanted(&experiment.id))
            .collect(),
    };
    if !selection.cases.is_empty() || !selection.experiments.is_empty() {
        return Ok(selection);
    }
    let experiments = listing.experiments.iter();
    let ids: Vec<&str> = shown()
        .map(|case| case.id.as_str())
        .chain(experiments.map(|experiment| experiment.id.as_str()))
        .collect();
    let there = if ids.is_empty() {
        "there are no cases".to_owned()
    } else {
        format!("the cases are:\n  {}", ids.join("\n  "))
    };
    match filter {
        Some(filter) => bail!("no case matches `{filter}`; {there}"),
        None => bail!("nothing to measure: {there}"),
    }
}

/// How many comparisons a case takes: with itself and the baseline two more.
pub(crate) fn comparisons(case: &Case, against: bool) -> usize {
    1 + case.peers().count() + if against { 2 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> Result<Listing> {
        let case = |id: &str, role: &str| {
            format!("case\t{id}\t1\t{role}\tx\npath\tbefore\tsystem\npath\tafter\tsystem\n")
        };
        let text = case("pool/1k", "shown")
            + &case("pool/64k", "shown")
            + &case("mix/rest", "supporting")
            + "experiment\tcache/hit_ratio\ttraces\n";
        Listing::parse(text.lines())
    }

    #[test]
    fn a_filter_selects_by_any_part_of_the_id() -> Result<()> {
        let listing = listing()?;
        let ids = |filter| -> Result<Vec<String>> {
            let Selection { cases, experiments } = select(&listing, filter)?;
            let cases = cases.iter().map(|case| case.id.clone());
            let experiments = experiments.iter().map(|experiment| experiment.id.clone());
            Ok(cases.chain(experiments).collect())
        };
        assert_eq!(ids(None)?, ["pool/1k", "pool/64k", "cache/hit_ratio"]);
        assert_eq!(ids(Some("cache"))?, ["cache/hit_ratio"]);
        assert_eq!(ids(Some("64"))?, ["pool/64k"]);
        let error = ids(Some("raft")).expect_err("there is none");
        let text = error.to_string();
        assert!(
            text.contains("no case matches `raft`")
                && text.contains("pool/1k")
                && text.contains("cache/hit_ratio"),
            "{text}"
        );
        assert!(ids(Some("mix")).is_err(), "a supporting case was selected");
        assert!(select(&Listing::default(), None).is_err());
        Ok(())
    }

    #[test]
    fn sixty_cases_stay_within_the_promise_and_share_alike() {
        for (limits, promised_s) in [
            (Limits::of(false, false), 180.0),
            (Limits::of(true, false), 45.0),
        ] {
            // What a case takes beside its comparison, and how much longer that takes than planned.
            let (other, overrun) = (Duration::from_millis(120), 1.1);
            let mut clock = Clock::default();
            let mut shares = Vec::new();
            for comparisons_left in (1..=60).rev() {
                let share = limits.budget(clock, comparisons_left, 1).total_ns;
                let planned = Duration::from_nanos(share as u64);
                clock.planned += planned;
                clock.spent += other + planned.mul_f64(overrun);
                shares.push(share);
            }
            assert!(clock.spent.as_secs_f64() < promised_s * 0.95, "{clock:?}");
            assert!(clock.spent.as_secs_f64() > promised_s * 0.75, "{clock:?}");
            let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
            assert!(
                shares.iter().all(|share| *share < 1.5 * least),
                "{shares:?}"
            );
        }
    }

    #[test]
    fn one_case_does_not_take_the_time_of_all() {
        let limits = Limits::of(false, false);
        let budget = limits.budget(Clock::default(), 1, 2);
        assert_eq!(budget.total_ns, 5e9);
        assert_eq!(budget.sample_ns, 8e6);
        assert_eq!(limits.left(Duration::ZERO, 2), Duration::from_secs(10));
    }
}
