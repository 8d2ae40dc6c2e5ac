//! The processes of one case: a worker per allocator that its paths want.

use anyhow::{Result, anyhow};

use super::build::Binaries;
use super::listing::{Allocator, Case};
use super::pair::{Sampler, Side};
use super::worker::{Sample, Worker};

/// Workers with every path of the case prepared.
#[derive(Debug)]
pub(crate) struct Crew<'a> {
    case: &'a Case,
    workers: Vec<(Allocator, Worker)>,
}

/// Two paths of the case, wherever they run.
#[derive(Debug)]
pub(crate) struct Pair<'a, 'b> {
    crew: &'a mut Crew<'b>,
    theirs: String,
}

impl<'a> Crew<'a> {
    pub(crate) fn start(binaries: &Binaries, case: &'a Case) -> Result<Self> {
        let mut crew = Self {
            case,
            workers: Vec::new(),
        };
        for path in &case.paths {
            if crew.worker(path.allocator).is_err() {
                let worker = Worker::of(binaries.with(path.allocator)?)?;
                crew.workers.push((path.allocator, worker));
            }
            crew.worker(path.allocator)?.prepare(&case.id, &path.name)?;
        }
        Ok(crew)
    }

    /// `after` and the named path.
    pub(crate) fn pair<'b>(&'b mut self, theirs: &str) -> Result<Pair<'b, 'a>> {
        Ok(Pair {
            crew: self,
            theirs: theirs.to_owned(),
        })
    }

    pub(crate) fn end(self) -> Result<()> {
        self.workers
            .into_iter()
            .try_for_each(|(_, worker)| worker.end())
    }

    fn worker(&mut self, allocator: Allocator) -> Result<&mut Worker> {
        let workers = self.workers.iter_mut();
        let mut fitting = workers
            .filter(|(its, _)| *its == allocator)
            .map(|(_, worker)| worker);
        fitting
            .next()
            .ok_or_else(|| anyhow!("no worker has the allocator {allocator:?}"))
    }

    fn run(&mut self, path: &str, iters: u64) -> Result<Sample> {
        let case = self.case;
        let known = case.paths.iter().find(|known| known.name == path);
        let known = known.ok_or_else(|| anyhow!("`{}` has no path `{path}`", case.id))?;
        self.worker(known.allocator)?.run(&case.id, path, iters)
    }
}

impl Sampler for Pair<'_, '_> {
    fn sample(&mut self, side: Side, iters: u64) -> Result<Sample> {
        match side {
            Side::Ours => self.crew.run("after", iters),
            Side::Theirs => self.crew.run(&self.theirs, iters),
        }
    }
}
