//! `cargo xtask bench`: measures the cases and reports.
//!
//! The cases run in worker processes of the package `perf-benches`; here is what drives them.
//! `docs/BENCHMARKING.md` says how and why.

use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cli::BenchOptions;
use crate::workspace::{self, Workspace};

mod allocations;
mod build;
mod crew;
mod experiment;
mod goals;
mod headline;
mod icount;
mod json_file;
mod listing;
mod machine;
mod pair;
mod plan;
mod progress;
mod report;
mod stats;
mod table;
mod units;
mod worker;

use build::Binaries;
use crew::Crew;
use icount::Callgrind;
use json_file::JsonFile;
use listing::{Case, Experiment, Listing, Measure};
use machine::Machine;
use pair::Sampler;
use plan::{Clock, Limits, Selection};
use progress::Progress;
use report::{CaseReport, ExperimentReport, PeerReport, Report};
use worker::Worker;

pub(crate) fn run(options: &BenchOptions) -> Result<()> {
    // What can be wrong with the request is found out before anything takes time.
    let json = options.json.as_deref().map(JsonFile::claim).transpose()?;
    if options.icount {
        icount::require()?;
    }
    // Of what is built, not of what may be checked out by the time the run ends.
    let (commit, dirty) = (workspace::commit(), workspace::is_dirty());
    let binaries = Binaries::build(options.peers)?;
    let mut listing = list(&binaries)?;
    if !options.peers {
        // Cases may list peers that need no feature.
        for case in &mut listing.cases {
            case.paths
                .retain(|path| path.name == "before" || path.name == "after");
        }
    }
    let Selection { cases, experiments } = plan::select(&listing, options.filter.as_deref())?;
    let callgrind = match options.icount {
        true => Some(Callgrind::new(
            &binaries.system,
            &Workspace::load()?.target,
        )?),
        false => None,
    };
    let mut bench = Bench {
        binaries: &binaries,
        callgrind,
        limits: Limits::of(options.quick),
        started: Instant::now(),
        apart: Duration::ZERO,
        planned: Duration::ZERO,
        pairs_left: cases.iter().map(|case| plan::pairs(case)).sum(),
        progress: Progress::new(cases.len() + experiments.len()),
    };
    let mut numbers = 1..;
    let cases: Vec<CaseReport> = cases
        .iter()
        .zip(&mut numbers)
        .map(|(case, number)| bench.case(number, case))
        .collect::<Result<_>>()?;
    let experiments: Vec<ExperimentReport> = experiments
        .iter()
        .zip(&mut numbers)
        .map(|(experiment, number)| bench.experiment(number, experiment, options.quick))
        .collect::<Result<_>>()?;
    let headline = bench.headline(&listing, &cases)?;
    drop(bench);
    let report = Report {
        schema: report::SCHEMA,
        machine: Machine::this(),
        rustc: machine::rustc(),
        commit,
        dirty,
        quick: options.quick,
        cases,
        experiments,
        headline,
    };
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = table::Colours::new(stdout().is_terminal() && !no_color);
    // A table that nobody reads to its end is no reason to lose the report, and the other way round.
    let printed = stdout().write_all(table::render(&report, colours).as_bytes());
    json.map_or(Ok(()), |json| json.write(&report))?;
    printed.context("cannot print the table")
}

fn list(binaries: &Binaries) -> Result<Listing> {
    let mut worker = Worker::of(&binaries.system)?;
    let listing = worker.list()?;
    worker.end()?;
    Ok(listing)
}

/// A run under way.
struct Bench<'a> {
    binaries: &'a Binaries,
    callgrind: Option<Callgrind>,
    limits: Limits,
    started: Instant,
    /// The time that counting instructions has taken, which nobody promised anything about.
    apart: Duration,
    /// The sum of the comparisons' shares.
    planned: Duration,
    pairs_left: usize,
    progress: Progress,
}

impl Bench<'_> {
    /// Measures everything about one case, in processes of its own.
    fn case(&mut self, number: usize, case: &Case) -> Result<CaseReport> {
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
                trials: peer.trials,
                rounds: peer.rounds,
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
            trials: before.trials,
            rounds: before.rounds,
            allocs_before: count_of("before").count,
            allocs_after: count_of("after").count,
            alloc_bytes_before: count_of("before").bytes,
            alloc_bytes_after: count_of("after").bytes,
            instructions_after: self.instructions(number, case, before.ours_wall_ns)?,
            peers,
            goals: Vec::new(),
        };
        report.goals = goals::judge(&case.goals, &report);
        Ok(report)
    }

    /// Runs an experiment; it takes the time it takes.
    fn experiment(
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
        let clock = Clock {
            spent: self.spent(),
            planned: self.planned,
        };
        let budget = self.limits.budget(clock, self.pairs_left, case.threads);
        self.planned += Duration::from_nanos(budget.total_ns as u64);
        let mut crew = |trial| -> Result<Box<dyn Sampler>> {
            Ok(Box::new(Crew::start(self.binaries, case, theirs, trial)?))
        };
        let comparison = pair::compare(&mut crew, budget)
            .with_context(|| format!("cannot compare `{theirs}` and `after` of `{}`", case.id))?;
        self.pairs_left -= 1;
        Ok(comparison)
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
                callgrind.count(&case.id, "after", after_wall_ns).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Compares the origin's claims with what was measured; counts what only they need.
    fn headline(
        &self,
        listing: &Listing,
        cases: &[CaseReport],
    ) -> Result<Vec<report::HeadlineReport>> {
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

    /// The time the run has taken so far.
    fn spent(&self) -> Duration {
        self.started.elapsed().saturating_sub(self.apart)
    }

    fn left(&self) -> Duration {
        self.limits.left(self.spent(), self.pairs_left)
    }
}
