//! A run under way: measures one case after the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::allocations;
use super::baseline::Baseline;
use super::build::Binaries;
use super::crew::{Crew, OURS, Place};
use super::experiment;
use super::gate;
use super::goals;
use super::headline;
use super::icount::Callgrind;
use super::listing::{Case, Experiment, Listing, Measure};
use super::pair::{self, Budget, Sampler};
use super::plan::{Clock, Limits};
use super::progress::Progress;
use super::report::{CaseReport, ExperimentReport, HeadlineReport, PeerReport, TimeAgainst};
use super::worker::Worker;

/// What every part of a run needs.
pub(crate) struct Bench<'a> {
    pub(crate) binaries: &'a Binaries,
    pub(crate) callgrind: Option<Callgrind>,
    /// What the cases are also timed against.
    pub(crate) baseline: Option<&'a Baseline>,
    pub(crate) limits: Limits,
    pub(crate) started: Instant,
    /// The sum of the comparisons' shares.
    pub(crate) planned: Duration,
    pub(crate) comparisons_left: usize,
    pub(crate) progress: Progress,
}

/// One case measured.
pub(crate) struct Measured {
    pub(crate) report: CaseReport,
    /// Against the baseline's program, where there is one that has the case.
    pub(crate) against: Option<TimeAgainst>,
}

impl Bench<'_> {
    /// Measures everything about one case, in processes of its own.
    pub(crate) fn case(&mut self, number: usize, case: &Case) -> Result<Measured> {
        self.progress.case(number, &case.id, self.left());
        let counts = self.allocations(case)?;
        let count_of = |name: &str| {
            let place = case.paths.iter().position(|path| path.name == name);
            place
                .and_then(|place| counts.get(place))
                .copied()
                .unwrap_or_default()
        };
        let before = self.compare(number, case, "before")?;
        let mut peers = Vec::new();
        for path in case.peers() {
            let peer = self.compare(number, case, &path.name)?;
            peers.push(PeerReport {
                name: path.name.clone(),
                ns: peer.theirs_ns,
                ratio: peer.ratio.median,
                ratio_low: peer.ratio.low,
                ratio_high: peer.ratio.high,
                trials: peer.theirs_trials_ns.len(),
                rounds: peer.rounds,
                trials_ns: peer.theirs_trials_ns,
                allocs: count_of(&path.name).count,
            });
        }
        let mut report = CaseReport {
            id: case.id.clone(),
            about: case.about.clone(),
            threads: case.threads,
            before_ns: before.theirs_ns,
            after_ns: before.ours_ns,
            ratio: before.ratio.median,
            ratio_low: before.ratio.low,
            ratio_high: before.ratio.high,
            trials: before.ours_trials_ns.len(),
            rounds: before.rounds,
            before_trials_ns: before.theirs_trials_ns,
            after_trials_ns: before.ours_trials_ns,
            allocs_before: count_of("before").count,
            allocs_after: count_of("after").count,
            alloc_bytes_before: count_of("before").bytes,
            alloc_bytes_after: count_of("after").bytes,
            instructions_after: self.instructions(number, case, before.ours_wall_ns)?,
            peers,
            goals: Vec::new(),
        };
        report.goals = goals::judge(&case.goals, &report);
        let against = self.against(number, case)?;
        Ok(Measured { report, against })
    }

    /// Runs an experiment; it takes the time it takes.
    pub(crate) fn experiment(
        &self,
        number: usize,
        experiment: &Experiment,
        quick: bool,
    ) -> Result<ExperimentReport> {
        self.progress.case(number, &experiment.id, self.left());
        experiment::run(self.binaries, experiment, quick)
    }

    fn compare(&mut self, number: usize, case: &Case, theirs: &str) -> Result<pair::Comparison> {
        self.progress.part(number, &case.id, theirs, self.left());
        let budget = self.budget(case);
        let ours = Place::of(self.binaries, case, OURS)?;
        let theirs_place = Place::of(self.binaries, case, theirs)?;
        let mut crew = |trial| -> Result<Box<dyn Sampler + '_>> {
            Ok(Box::new(Crew::start(&case.id, ours, theirs_place, trial)?))
        };
        let comparison = pair::compare(&mut crew, budget)
            .with_context(|| format!("cannot compare `{theirs}` and `after` of `{}`", case.id))?;
        self.comparisons_left = self.comparisons_left.saturating_sub(1);
        Ok(comparison)
    }

    /// Times this build's `after` against the baseline's.
    fn against(&mut self, number: usize, case: &Case) -> Result<Option<TimeAgainst>> {
        let Some((baseline, binaries)) = self
            .baseline
            .and_then(|baseline| baseline.binaries.as_ref().map(|found| (baseline, found)))
        else {
            return Ok(None);
        };
        if gate::base_of(baseline, &case.id).is_none() {
            return Ok(None);
        }
        self.progress
            .part(number, &case.id, "the baseline", self.left());
        // Two comparisons, and more only after an alarm.
        let budget = self.budget(case);
        let now = Place::of(self.binaries, case, OURS)?;
        let then = Place::of(binaries, case, OURS)?;
        let crew = |ours, theirs| {
            move |trial| -> Result<Box<dyn Sampler + '_>> {
                Ok(Box::new(Crew::start(&case.id, ours, theirs, trial)?))
            }
        };
        let found = gate::time(&mut crew(now, now), &mut crew(then, now), budget)
            .with_context(|| format!("cannot time `{}` against the baseline", case.id))?;
        self.comparisons_left = self.comparisons_left.saturating_sub(2);
        Ok(Some(found))
    }

    fn budget(&mut self, case: &Case) -> Budget {
        let clock = Clock {
            spent: self.started.elapsed(),
            planned: self.planned,
        };
        let budget = self
            .limits
            .budget(clock, self.comparisons_left, case.threads);
        self.planned += Duration::from_nanos(budget.total_ns as u64);
        budget
    }

    /// Counts the allocations of every path, in their order.
    fn allocations(&self, case: &Case) -> Result<Vec<allocations::PerOperation>> {
        let mut worker = Worker::of(&self.binaries.counting)?;
        let mut counts = Vec::new();
        for path in &case.paths {
            worker.prepare(&case.id, &path.name)?;
            counts.push(allocations::count(&mut worker, &case.id, &path.name)?);
        }
        worker.end()?;
        Ok(counts)
    }

    /// Counts instructions where that was asked for and makes sense.
    fn instructions(
        &mut self,
        number: usize,
        case: &Case,
        after_wall_ns: f64,
    ) -> Result<Option<f64>> {
        match &self.callgrind {
            // Valgrind runs one thread at a time: contention would not be there.
            Some(callgrind) if case.threads == 1 => {
                self.progress
                    .part(number, &case.id, "instructions", self.left());
                callgrind.count(&case.id, OURS, after_wall_ns).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Compares the origin's claims with what was measured; counts what only they need.
    pub(crate) fn headline(
        &self,
        listing: &Listing,
        cases: &[CaseReport],
    ) -> Result<Vec<HeadlineReport>> {
        let mut counts = headline::Allocations::new();
        for case in cases {
            counts.insert(case.id.clone(), (case.allocs_before, case.allocs_after));
        }
        for row in &listing.headlines {
            let Measure::Allocations { whole, rest } = &row.measure else {
                continue;
            };
            let supporting = listing.cases.iter().find(|case| case.id == *rest);
            if let Some(case) = supporting.filter(|_| counts.contains_key(whole)) {
                let found = self.allocations(case)?;
                if let [before, after, ..] = found[..] {
                    counts.insert(rest.clone(), (before.count, after.count));
                }
            }
        }
        Ok(headline::rows(&listing.headlines, cases, &counts))
    }

    fn left(&self) -> Duration {
        self.limits
            .left(self.started.elapsed(), self.comparisons_left)
    }
}
