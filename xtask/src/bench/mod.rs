//! `cargo xtask bench`: measures the cases and reports.
//!
//! The cases run in worker processes of the package `perf-benches`; here is what drives them.
//! `docs/BENCHMARKING.md` says how and why.

use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use crate::cli::BenchOptions;
use crate::workspace::{self, Workspace};

mod allocations;
mod baseline;
mod build;
mod crew;
mod experiment;
mod gate;
mod gate_test;
mod goals;
mod headline;
mod html;
mod icount;
mod interrupt;
mod json_file;
mod listing;
mod machine;
mod noise;
mod pair;
mod plan;
mod profile;
mod progress;
mod readme;
mod report;
mod run;
mod sources;
mod stats;
mod table;
mod units;
mod worker;

pub(crate) use baseline::Name;
pub(crate) use gate_test::run as run_gate_test;
pub(crate) use interrupt::STATUS as INTERRUPTED_STATUS;
pub(crate) use profile::run as run_profile;
pub(crate) use readme::{problems as readme_problems, write as write_readme};

use baseline::Baseline;
use build::Binaries;
use html::Page;
use icount::Callgrind;
use json_file::JsonFile;
use listing::{Case, Listing};
use machine::Machine;
use plan::{Limits, Selection};
use progress::Progress;
use report::{AgainstReport, CaseReport, Report};
use run::{Bench, Measured};
use worker::Worker;

/// How a run ended that found no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Complete,
    /// By Ctrl-C: the report has what was measured until then.
    Interrupted,
}

pub(crate) fn run(options: &BenchOptions) -> Result<Outcome> {
    // What can be wrong with the request is found out before anything takes time.
    if let Some(filter) = &options.filter {
        sources::check(filter)?;
    }
    let target = Workspace::load()?.target;
    let json = options.json.as_deref().map(JsonFile::claim).transpose()?;
    let page = page(options, &target).map(Page::claim).transpose()?;
    if options.icount {
        icount::require()?;
    }
    let baseline = options
        .against
        .as_ref()
        .map(|name| Baseline::load(name, &target))
        .transpose()?;
    interrupt::listen()?;
    // Of what is built, not of what may be checked out by the time the run ends.
    let (commit, dirty) = (workspace::commit(), workspace::is_dirty());
    let binaries = Binaries::build(options.peers)?;
    let listing = list(&binaries, options.peers)?;
    let selection = plan::select(&listing, options.filter.as_deref())?;
    let callgrind = match options.icount {
        true => Some(Callgrind::new(&binaries.system, &target)?),
        false => None,
    };
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let noise = noise::measure(&binaries)?;
    if noise.is_loud() {
        eprintln!("{}", table::busy_warning(&noise));
    }
    let timed = baseline.as_ref().filter(|base| base.binaries.is_some());
    let per_case = |case: &&Case| plan::comparisons(case, timed.is_some());
    let mut bench = Bench {
        binaries: &binaries,
        callgrind,
        baseline: timed,
        limits: Limits::of(options.quick, timed.is_some()),
        started: Instant::now(),
        planned: Duration::ZERO,
        comparisons_left: selection.cases.iter().map(per_case).sum(),
        progress: Progress::new(selection.cases.len() + selection.experiments.len()),
    };
    let mut report = Report {
        schema: report::SCHEMA,
        machine: Machine::this(),
        rustc: machine::rustc(),
        commit,
        dirty,
        quick: options.quick,
        date: Some(date),
        partial: false,
        noise: Some(noise),
        cases: Vec::new(),
        experiments: Vec::new(),
        headline: Vec::new(),
        against: None,
    };
    let mut times = Vec::new();
    match measure(&mut bench, &listing, &selection, &mut report, &mut times) {
        Ok(()) => {}
        // Ctrl-C reaches the workers too, so any failure after it is its doing.
        Err(_) if interrupt::is_set() => report.partial = true,
        Err(error) => return Err(error),
    }
    drop(bench);
    if let Some(baseline) = &baseline {
        report.against = Some(against(baseline, &report, times));
    }
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = table::Colours::new(stdout().is_terminal() && !no_color);
    // A table that nobody reads to its end is no reason to lose the report, and the other way round.
    let printed = stdout().write_all(table::render(&report, colours).as_bytes());
    json.map_or(Ok(()), |json| json.write(&report))?;
    if let Some(page) = page {
        let path = page.write(&report)?;
        eprintln!("report: {}", path.display());
        if options.open {
            open::that_detached(&path)
                .with_context(|| format!("cannot open {}; open it by hand", path.display()))?;
        }
    }
    if let Some(name) = &options.save {
        keep(name, &report, &binaries, &target)?;
    }
    printed.context("cannot print the table")?;
    if report.partial {
        return Ok(Outcome::Interrupted);
    }
    if options.gate {
        pass(&report)?;
    }
    Ok(Outcome::Complete)
}

/// Where the page goes, if one is wanted.
fn page(options: &BenchOptions, target: &std::path::Path) -> Option<PathBuf> {
    let default = || options.open.then(|| target.join("xtask").join("report"));
    options.report.clone().or_else(default)
}

fn list(binaries: &Binaries, peers: bool) -> Result<Listing> {
    let mut worker = Worker::of(&binaries.system)?;
    let mut listing = worker.list()?;
    worker.end()?;
    if !peers {
        // Cases may list peers that need no feature.
        for case in &mut listing.cases {
            case.paths
                .retain(|path| path.name == "before" || path.name == "after");
        }
    }
    Ok(listing)
}

/// Fills the report, as far as it gets.
fn measure(
    bench: &mut Bench<'_>,
    listing: &Listing,
    selection: &Selection<'_>,
    report: &mut Report,
    times: &mut Vec<Option<report::TimeAgainst>>,
) -> Result<()> {
    let mut numbers = 1..;
    for (case, number) in selection.cases.iter().zip(&mut numbers) {
        interrupt::check()?;
        let Measured {
            report: case,
            against,
        } = bench.case(number, case)?;
        report.cases.push(case);
        times.push(against);
    }
    for (experiment, number) in selection.experiments.iter().zip(&mut numbers) {
        interrupt::check()?;
        let found = bench.experiment(number, experiment, report.quick)?;
        report.experiments.push(found);
    }
    report.headline = bench.headline(listing, &report.cases)?;
    Ok(())
}

/// Compares what was measured with the baseline.
fn against(
    baseline: &Baseline,
    report: &Report,
    times: Vec<Option<report::TimeAgainst>>,
) -> AgainstReport {
    let base = &baseline.report;
    let mut remarks = Vec::new();
    if baseline.binaries.is_none() {
        remarks.push(format!(
            "times are not compared: the programs of `{}` are not on this machine \
             (`--save` keeps them)",
            baseline.name
        ));
    }
    let instructions = gate::instructions_remark(base, report);
    let with_instructions = instructions.is_none();
    remarks.extend(instructions);
    let new: Vec<&str> = report
        .cases
        .iter()
        .map(|case| case.id.as_str())
        .filter(|id| gate::base_of(baseline, id).is_none())
        .collect();
    if !new.is_empty() {
        remarks.push(format!("the baseline has no {}", new.join(", ")));
    }
    let judged = |(case, time): (&CaseReport, Option<report::TimeAgainst>)| {
        let base = gate::base_of(baseline, &case.id)?;
        Some(gate::judge(base, case, time, with_instructions))
    };
    AgainstReport {
        name: baseline.name.to_string(),
        commit: base.commit.clone(),
        date: base.date.clone(),
        timed: baseline.binaries.is_some(),
        remarks,
        cases: report.cases.iter().zip(times).filter_map(judged).collect(),
    }
}

/// Keeps a complete run as a baseline.
fn keep(name: &Name, report: &Report, binaries: &Binaries, target: &std::path::Path) -> Result<()> {
    if report.partial {
        eprintln!("not saved as `{name}`: the run was interrupted");
        return Ok(());
    }
    baseline::save(name, report, binaries, target)?;
    eprintln!(
        "saved as `{name}`: {}",
        baseline::report_path(name).display()
    );
    Ok(())
}

/// Fails when anything got worse.
fn pass(report: &Report) -> Result<()> {
    let cases = report.against.iter().flat_map(|against| &against.cases);
    let worse: Vec<String> = cases
        .filter(|case| !case.worse.is_empty())
        .map(|case| format!("{}: {}", case.id, case.worse.join("; ")))
        .collect();
    if !worse.is_empty() {
        bail!(
            "worse than the baseline in {} cases:\n  {}",
            worse.len(),
            worse.join("\n  ")
        );
    }
    Ok(())
}
