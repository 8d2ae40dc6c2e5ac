//! The processes of one trial: two paths, each in a worker under the allocator it wants.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::build::Binaries;
use super::interrupt;
use super::listing::{Case, Path};
use super::pair::{Sampler, Side};
use super::worker::{Sample, Worker};

/// The name of our path.
pub(crate) const OURS: &str = "after";

/// A path of a case, in the program that runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) binary: &'a PathBuf,
    pub(crate) path: &'a str,
}

impl<'a> Place<'a> {
    /// Where the path of the given name is run.
    pub(crate) fn of(binaries: &'a Binaries, case: &Case, path: &'a str) -> Result<Self> {
        let listed: Option<&Path> = case.paths.iter().find(|listed| listed.name == path);
        let listed = listed.ok_or_else(|| anyhow!("`{}` has no path `{path}`", case.id))?;
        let binary = binaries.with(listed.allocator)?;
        Ok(Self { binary, path })
    }
}

/// Workers with both paths prepared.
#[derive(Debug)]
pub(crate) struct Crew<'a> {
    case: &'a str,
    ours: Place<'a>,
    theirs: Place<'a>,
    /// Runs ours, and theirs too where one process can.
    worker: Worker,
    worker_of_theirs: Option<Worker>,
    start_ns: f64,
}

impl<'a> Crew<'a> {
    /// Starts the processes for a trial and prepares the paths, in every other trial theirs first:
    /// whoever comes first may find the better place in memory.
    ///
    /// Two paths of one program share a process. A path and itself do not: it has one state in a process.
    pub(crate) fn start(
        case: &'a str,
        ours: Place<'a>,
        theirs: Place<'a>,
        trial: usize,
    ) -> Result<Self> {
        let start = Instant::now();
        let together = ours.binary == theirs.binary && ours.path != theirs.path;
        let mut crew = Self {
            case,
            ours,
            theirs,
            worker: Worker::of(ours.binary)?,
            worker_of_theirs: match together {
                true => None,
                false => Some(Worker::of(theirs.binary)?),
            },
            start_ns: 0.0,
        };
        let mut order = [Side::Ours, Side::Theirs];
        if trial % 2 == 1 {
            order.reverse();
        }
        for side in order {
            let (worker, path) = crew.place(side);
            worker.prepare(case, path)?;
        }
        crew.start_ns = start.elapsed().as_nanos() as f64;
        Ok(crew)
    }

    /// The worker and path of a side.
    fn place(&mut self, side: Side) -> (&mut Worker, &'a str) {
        match (side, &mut self.worker_of_theirs) {
            (Side::Ours, _) => (&mut self.worker, self.ours.path),
            (Side::Theirs, None) => (&mut self.worker, self.theirs.path),
            (Side::Theirs, Some(worker)) => (worker, self.theirs.path),
        }
    }
}

impl Sampler for Crew<'_> {
    fn start_ns(&self) -> f64 {
        self.start_ns
    }

    fn sample(&mut self, side: Side, iters: u64) -> Result<Sample> {
        interrupt::check()?;
        let case = self.case;
        let (worker, path) = self.place(side);
        worker.run(case, path, iters)
    }

    fn end(self: Box<Self>) -> Result<()> {
        self.worker.end()?;
        self.worker_of_theirs.map_or(Ok(()), Worker::end)
    }
}
