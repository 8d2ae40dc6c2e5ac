//! The processes of one trial: `after` and what it is compared with, under the allocators they want.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::build::Binaries;
use super::listing::{Case, Path};
use super::pair::{Sampler, Side};
use super::worker::{Sample, Worker};

/// The name of our path.
const OURS: &str = "after";

/// Workers with both paths prepared.
#[derive(Debug)]
pub(crate) struct Crew {
    case: String,
    theirs: String,
    /// Runs ours, and theirs too unless they want another allocator.
    worker: Worker,
    worker_of_theirs: Option<Worker>,
    start_ns: f64,
}

impl Crew {
    /// Starts the processes for a trial and prepares the paths, in every other trial theirs first:
    /// whoever comes first may find the better place in memory.
    pub(crate) fn start(
        binaries: &Binaries,
        case: &Case,
        theirs: &str,
        trial: usize,
    ) -> Result<Self> {
        let start = Instant::now();
        let (ours_binary, theirs_binary) = (
            binary(binaries, case, OURS)?,
            binary(binaries, case, theirs)?,
        );
        let mut crew = Self {
            case: case.id.clone(),
            theirs: theirs.to_owned(),
            worker: Worker::of(ours_binary)?,
            worker_of_theirs: match ours_binary == theirs_binary {
                true => None,
                false => Some(Worker::of(theirs_binary)?),
            },
            start_ns: 0.0,
        };
        let mut order = [Side::Ours, Side::Theirs];
        if trial % 2 == 1 {
            order.reverse();
        }
        for side in order {
            let (worker, case, path) = crew.place(side);
            worker.prepare(case, path)?;
        }
        crew.start_ns = start.elapsed().as_nanos() as f64;
        Ok(crew)
    }

    /// The worker, case and path of a side.
    fn place(&mut self, side: Side) -> (&mut Worker, &str, &str) {
        match (side, &mut self.worker_of_theirs) {
            (Side::Ours, _) => (&mut self.worker, &self.case, OURS),
            (Side::Theirs, None) => (&mut self.worker, &self.case, &self.theirs),
            (Side::Theirs, Some(worker)) => (worker, &self.case, &self.theirs),
        }
    }
}

impl Sampler for Crew {
    fn start_ns(&self) -> f64 {
        self.start_ns
    }

    fn sample(&mut self, side: Side, iters: u64) -> Result<Sample> {
        let (worker, case, path) = self.place(side);
        worker.run(case, path, iters)
    }

    fn end(self: Box<Self>) -> Result<()> {
        self.worker.end()?;
        self.worker_of_theirs.map_or(Ok(()), Worker::end)
    }
}

fn binary<'a>(binaries: &'a Binaries, case: &Case, name: &str) -> Result<&'a PathBuf> {
    let path: Option<&Path> = case.paths.iter().find(|path| path.name == name);
    let path = path.ok_or_else(|| anyhow!("`{}` has no path `{name}`", case.id))?;
    binaries.with(path.allocator)
}
