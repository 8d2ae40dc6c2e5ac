//! The process that runs paths and nothing else; `cargo xtask bench` drives it over a pipe.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::process::{self, ExitCode};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use crate::case::{Allocator, Case, Path, Run};
use crate::experiment::{Depth, Experiment};
use crate::protocol::{self, Address, Request};
use crate::{cases, headline, team};

/// What a process has allocated since it started, all threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocations {
    /// How often it asked the allocator for memory.
    pub count: u64,
    /// How many bytes it got.
    pub bytes: u64,
}

/// The global allocator of the process.
#[derive(Clone, Copy, Debug)]
pub enum Heap {
    /// One to measure times under; paths that want another one are refused.
    Plain(Allocator),
    /// One that counts, with a way to read it. It takes every path: what a path asks for does not
    /// depend on who answers.
    Counting(fn() -> Allocations),
}

/// Serves requests from standard input until it ends.
///
/// A thread of its own reads them, so that the process also ends in the middle of a run. It makes
/// the process a multi-threaded one, as every node is: some allocators are cheaper without threads.
#[must_use]
pub fn serve(heap: Heap) -> ExitCode {
    // A server that an experiment has started.
    if cases::transport::served() {
        return ExitCode::SUCCESS;
    }
    let mut shown = cases::all();
    let mut supporting = headline::supporting();
    supporting.extend(cases::internal());
    let experiments = cases::experiments();
    let problem = first_problem(shown.iter().chain(&supporting), &experiments);
    if let Some(problem) = problem {
        eprintln!("{problem}");
        return ExitCode::FAILURE;
    }
    let description = protocol::describe(&shown, &supporting, &experiments, &headline::all());
    shown.append(&mut supporting);
    let mut worker = Worker::new(heap, shown, experiments, description);
    for line in requests() {
        let reply = match Request::parse(&line).and_then(|request| worker.answer(request)) {
            Ok(reply) => reply,
            Err(why) => format!("error\t{why}"),
        };
        let mut out = io::stdout().lock();
        if writeln!(out, "{reply}").and_then(|()| out.flush()).is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Reads requests in a thread that ends the process when there will be no more.
fn requests() -> Receiver<String> {
    let (sender, receiver) = sync_channel(1);
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
        process::exit(0);
    });
    receiver
}

fn first_problem<'a>(
    cases: impl Iterator<Item = &'a Case>,
    experiments: &[Experiment],
) -> Option<String> {
    let mut ids = Vec::new();
    for case in cases {
        if let Err(problem) = case.check() {
            return Some(problem);
        }
        if ids.contains(&case.id) {
            return Some(format!("case `{}` is listed twice", case.id));
        }
        ids.push(case.id);
    }
    for experiment in experiments {
        if ids.contains(&experiment.id) {
            return Some(format!("experiment `{}` is listed twice", experiment.id));
        }
        ids.push(experiment.id);
    }
    None
}

/// The cases and the state of those that are prepared.
struct Worker {
    heap: Heap,
    cases: Vec<Case>,
    experiments: Vec<Experiment>,
    description: String,
    prepared: BTreeMap<(String, String), Run>,
}

impl Worker {
    fn new(
        heap: Heap,
        cases: Vec<Case>,
        experiments: Vec<Experiment>,
        description: String,
    ) -> Self {
        Self {
            heap,
            cases,
            experiments,
            description,
            prepared: BTreeMap::new(),
        }
    }

    fn answer(&mut self, request: Request<'_>) -> Result<String, String> {
        match request {
            Request::List => Ok(format!("{}ok", self.description)),
            Request::Prepare(address) => {
                let run = (self.path(address)?.prepare)();
                self.prepared.insert(key(address), run);
                Ok("ok".to_owned())
            }
            Request::Run(address, iters) => self.run(address, iters),
            Request::Drop => {
                self.prepared.clear();
                Ok("ok".to_owned())
            }
            Request::Experiment(id, depth) => self.experiment(id, depth),
        }
    }

    fn experiment(&self, id: &str, depth: Depth) -> Result<String, String> {
        let experiment = self.experiments.iter().find(|other| other.id == id);
        let experiment = experiment.ok_or_else(|| format!("there is no experiment `{id}`"))?;
        let figures = (experiment.measure)(depth)?;
        Ok(format!("{}ok", protocol::figures(&figures)))
    }

    fn path(&self, address: Address<'_>) -> Result<&Path, String> {
        let case = self.cases.iter().find(|case| case.id == address.case);
        let path = case.and_then(|case| match address.path {
            "before" => Some(&case.before),
            "after" => Some(&case.after),
            peer => case.peers.iter().find(|path| path.name == peer),
        });
        let path = path.ok_or_else(|| format!("there is no {address}"))?;
        match self.heap {
            Heap::Plain(allocator) if allocator != path.allocator => Err(format!(
                "{address} runs under {:?}, this process has {allocator:?}",
                path.allocator
            )),
            Heap::Plain(_) | Heap::Counting(_) => Ok(path),
        }
    }

    fn run(&mut self, address: Address<'_>, iters: u64) -> Result<String, String> {
        let run = self.prepared.get_mut(&key(address));
        let run = run.ok_or_else(|| format!("{address} is not prepared"))?;
        let heap = match self.heap {
            Heap::Plain(_) => None,
            Heap::Counting(so_far) => Some(so_far),
        };
        // Nothing of the harness may allocate between the two readings of the heap.
        let operations_before = team::operations_beyond();
        let heap_before = heap.map(|so_far| so_far());
        let time = run(iters);
        let heap_after = heap.map(|so_far| so_far());
        let operations = iters + (team::operations_beyond() - operations_before);
        let mut reply = format!("ok\t{}\t{operations}", time.as_nanos());
        if let (Some(before), Some(after)) = (heap_before, heap_after) {
            reply += &format!(
                "\t{}\t{}",
                after.count - before.count,
                after.bytes - before.bytes
            );
        }
        Ok(reply)
    }
}

fn key(address: Address<'_>) -> (String, String) {
    (address.case.to_owned(), address.path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{path, timed};
    use crate::experiment::{Figure, Unit};
    use crate::team::{Member, Team};
    use std::sync::atomic::{AtomicU64, Ordering};

    static COUNT: AtomicU64 = AtomicU64::new(0);

    /// Stands for the counting allocator: the fake paths raise it themselves.
    fn so_far() -> Allocations {
        let count = COUNT.load(Ordering::Relaxed);
        Allocations {
            count,
            bytes: count * 10,
        }
    }

    fn worker(heap: Heap) -> Worker {
        let counts = || {
            timed(|| {
                COUNT.fetch_add(2, Ordering::Relaxed);
            })
        };
        let mut peer = path("mimalloc", || timed(|| ()));
        peer.allocator = Allocator::Mimalloc;
        let case = Case {
            id: "fake/one",
            about: "counts",
            threads: 1,
            before: path("before", counts),
            after: path("after", || {
                let member = || -> Member { Box::new(|_| ()) };
                Team::new(vec![member(), member(), member()]).into_run()
            }),
            peers: vec![peer],
            goals: Vec::new(),
        };
        let experiment = Experiment {
            id: "fake/figures",
            about: "as many as asked for",
            measure: |depth| match depth {
                Depth::Quick => Ok(vec![Figure::new("one", 1.0, Unit::Count)]),
                Depth::Full => Err("out of luck".to_owned()),
            },
        };
        Worker::new(heap, vec![case], vec![experiment], "described\n".to_owned())
    }

    fn ask(worker: &mut Worker, line: &str) -> Result<String, String> {
        Request::parse(line).and_then(|request| worker.answer(request))
    }

    #[test]
    fn a_path_is_prepared_run_and_dropped() {
        let mut worker = worker(Heap::Plain(Allocator::System));
        let run = "run\tfake/one\tbefore\t5";
        assert!(ask(&mut worker, run).is_err_and(|why| why.contains("not prepared")));
        assert_eq!(
            ask(&mut worker, "prepare\tfake/one\tbefore").as_deref(),
            Ok("ok")
        );
        let reply = ask(&mut worker, run).expect("prepared");
        let fields: Vec<&str> = reply.split('\t').collect();
        assert_eq!((fields.len(), fields[0], fields[2]), (3, "ok", "5"));
        assert_eq!(ask(&mut worker, "drop").as_deref(), Ok("ok"));
        assert!(ask(&mut worker, run).is_err());
        assert_eq!(ask(&mut worker, "list").as_deref(), Ok("described\nok"));
    }

    #[test]
    fn an_experiment_answers_with_its_figures_or_its_error() {
        let mut worker = worker(Heap::Plain(Allocator::System));
        assert_eq!(
            ask(&mut worker, "experiment\tfake/figures\tquick").as_deref(),
            Ok("figure\tone\tcount\t1\nok")
        );
        assert_eq!(
            ask(&mut worker, "experiment\tfake/figures\tfull"),
            Err("out of luck".to_owned())
        );
        let unknown = ask(&mut worker, "experiment\tfake/one\tquick");
        assert!(unknown.is_err_and(|why| why.contains("no experiment `fake/one`")));
    }

    #[test]
    fn the_counting_worker_reports_what_the_run_allocated() {
        let mut worker = worker(Heap::Counting(so_far));
        ask(&mut worker, "prepare\tfake/one\tbefore").expect("there is such a path");
        let reply = ask(&mut worker, "run\tfake/one\tbefore\t5").expect("prepared");
        assert!(reply.ends_with("\t5\t10\t100"), "{reply}");
    }

    #[test]
    fn unknown_names_and_foreign_allocators_are_refused() {
        let mut plain = worker(Heap::Plain(Allocator::System));
        for wrong in ["prepare\tfake/two\tbefore", "prepare\tfake/one\tnobody"] {
            assert!(ask(&mut plain, wrong).is_err_and(|why| why.contains("there is no")));
        }
        let foreign = "prepare\tfake/one\tmimalloc";
        assert!(ask(&mut plain, foreign).is_err_and(|why| why.contains("Mimalloc")));
        assert!(ask(&mut worker(Heap::Counting(so_far)), foreign).is_ok());
    }

    #[test]
    fn a_problem_in_the_list_is_named() {
        let worker = worker(Heap::Counting(so_far));
        let (cases, experiments) = (worker.cases, worker.experiments);
        assert_eq!(first_problem(cases.iter(), &experiments), None);
        let twice = first_problem(cases.iter().chain(&cases), &[]);
        assert!(twice.is_some_and(|problem| problem.contains("listed twice")));
        let both = [experiments.clone(), experiments].concat();
        let twice = first_problem(cases.iter(), &both);
        assert!(twice.is_some_and(|problem| problem.contains("listed twice")));
    }

    #[test]
    fn a_teams_operations_all_count() {
        let mut worker = worker(Heap::Plain(Allocator::System));
        ask(&mut worker, "prepare\tfake/one\tafter").expect("there is such a path");
        let reply = ask(&mut worker, "run\tfake/one\tafter\t1000").expect("prepared");
        let operations: u64 = reply
            .split('\t')
            .nth(2)
            .expect("a field")
            .parse()
            .expect("a number");
        // Other tests' teams may run meanwhile: the count is the process's.
        assert!(operations >= 3_000, "{reply}");
    }
}
