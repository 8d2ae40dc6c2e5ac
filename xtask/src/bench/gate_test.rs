//! `cargo xtask gate-test`: does the gate see what is there, and nothing else, on this machine?
//!
//! Each try judges a case against itself, where an alarm is a false one, and where slowdowns are planted also against
//! itself slowed down, which has to be found. The planted side does 5 % more operations than it is asked for.

use anyhow::{Result, bail};

use super::build::Binaries;
use super::crew::{Crew, OURS, Place};
use super::gate;
use super::listing::Case;
use super::pair::{Budget, Sampler, Side};
use super::plan;
use super::progress::Progress;
use super::worker::{Sample, Worker};
use crate::cli::GateTestOptions;

/// How much longer the planted side takes.
const PLANTED: f64 = 0.05;
/// The case that has to be judged right every time: work in registers.
const FIXED: &str = "internal/fixed";
/// A comparison's time, about that of a quick run.
const BUDGET: Budget = Budget {
    total_ns: 6e8,
    sample_ns: 1e6,
    trials_max: 9,
};

pub(crate) fn run(options: &GateTestOptions) -> Result<()> {
    if let Some(filter) = &options.filter {
        super::sources::check(filter)?;
    }
    let binaries = Binaries::build(false)?;
    let mut worker = Worker::of(&binaries.system)?;
    let listing = worker.list()?;
    worker.end()?;
    let fixed = listing.cases.iter().find(|case| case.id == FIXED);
    let mut cases: Vec<&Case> = fixed.into_iter().collect();
    cases.extend(plan::select(&listing, options.filter.as_deref())?.cases);
    let progress = Progress::new(cases.len());
    let (mut false_alarms, mut missed_fixed) = (0, 0);
    let tries = options.tries;
    println!("case  false alarms  planted slowdowns found");
    for (case, number) in cases.iter().zip(1..) {
        progress.note(number, &case.id);
        let is_planted = options.plant || case.id == FIXED;
        let (mut alarms, mut found) = (0, 0);
        for _ in 0..tries {
            alarms += usize::from(judge(&binaries, case, 0.0)?);
            found += usize::from(is_planted && judge(&binaries, case, PLANTED)?);
        }
        progress.clear();
        let planted = match is_planted {
            true => format!("{found} of {tries}"),
            false => "none planted".to_owned(),
        };
        println!("{}  {alarms} of {tries}  {planted}", case.id);
        false_alarms += alarms;
        if case.id == FIXED {
            missed_fixed = tries - found;
        }
    }
    if false_alarms > 0 || missed_fixed > 0 {
        bail!(
            "the gate is wrong: {false_alarms} false alarms, {missed_fixed} slowdowns of `{FIXED}` missed"
        );
    }
    Ok(())
}

/// Whether the gate finds this build's `after`, slowed down, slower than itself.
fn judge(binaries: &Binaries, case: &Case, slowdown: f64) -> Result<bool> {
    let place = Place::of(binaries, case, OURS)?;
    let start = |ours: f64, theirs: f64| {
        move |trial| -> Result<Box<dyn Sampler + '_>> {
            let crew = Crew::start(&case.id, place, place, trial)?;
            Ok(Box::new(Planted { crew, ours, theirs }))
        }
    };
    let mut same = start(slowdown, slowdown);
    let mut both = start(0.0, slowdown);
    Ok(gate::time(&mut same, &mut both, BUDGET)?.slower)
}

/// Does more operations than it says.
struct Planted<'a> {
    crew: Crew<'a>,
    ours: f64,
    theirs: f64,
}

impl Sampler for Planted<'_> {
    fn start_ns(&self) -> f64 {
        self.crew.start_ns()
    }

    fn sample(&mut self, side: Side, iters: u64) -> Result<Sample> {
        let more = match side {
            Side::Ours => self.ours,
            Side::Theirs => self.theirs,
        };
        let iters = (iters as f64 * (1.0 + more)).round() as u64;
        self.crew.sample(side, iters)
    }

    fn end(self: Box<Self>) -> Result<()> {
        Box::new(self.crew).end()
    }
}
