//! How long a durable proposal takes beside what the disk takes.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use perf_raft::{RaftHandle, SegmentLog};
use tempfile::TempDir;

use super::ours::{cluster, leader, options};
use super::{command, runtime};
use crate::experiment::{Bound, Depth, Experiment, Figure, Unit};

/// What the goal allows beside three times the disk's own time.
const ALLOWANCE_NS: f64 = 200_000.0;

pub(super) fn experiment() -> Experiment {
    Experiment {
        id: "raft/durable_latency",
        about: "proposals with the log on disk, alone and among 1024 clients; bound: three fdatasync of as many bytes, 200 us",
        measure,
    }
}

fn measure(depth: Depth) -> Result<Vec<Figure>, String> {
    let time = match depth {
        Depth::Quick => Duration::from_millis(500),
        Depth::Full => Duration::from_secs(10),
    };
    let mut figures = Vec::new();
    for clients in [1, 1024] {
        let sync = sync_ns(clients, time / 4)?;
        let run = runtime().block_on(run(clients, time))?;
        let name = |what: &str| format!("{what}, x{clients}");
        let bound = Bound::AtMost(3.0 * sync + ALLOWANCE_NS);
        figures.extend([
            Figure::new(name("fdatasync, p50"), sync, Unit::Nanoseconds),
            Figure::new(name("proposal, p50"), run.at(0.5), Unit::Nanoseconds).expected(bound),
            Figure::new(name("proposal, p99"), run.at(0.99), Unit::Nanoseconds),
            Figure::new(name("proposals in a batch"), run.batch, Unit::Count),
        ]);
    }
    Ok(figures)
}

/// The median time of an fdatasync of what `clients` propose, appended to one file while the disk has nothing else to do.
fn sync_ns(clients: u64, time: Duration) -> Result<f64, String> {
    let failed = |error: std::io::Error| error.to_string();
    let folder = TempDir::new().map_err(failed)?;
    let mut file = File::create(folder.path().join("log")).map_err(failed)?;
    let batch: Vec<u8> = (0..clients).flat_map(|client| command(client, 1)).collect();
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.is_empty() || begin.elapsed() < time {
        file.write_all(&batch).map_err(failed)?;
        let start = Instant::now();
        file.sync_data().map_err(failed)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2].as_nanos() as f64)
}

struct Outcome {
    /// In order.
    times: Vec<Duration>,
    batch: f64,
}

impl Outcome {
    fn at(&self, share: f64) -> f64 {
        let place = (self.times.len() as f64 * share) as usize;
        self.times
            .get(place)
            .map_or(f64::NAN, |time| time.as_nanos() as f64)
    }
}

async fn run(clients: u64, time: Duration) -> Result<Outcome, String> {
    let folder = TempDir::new().map_err(|error| error.to_string())?;
    let options = options();
    let nodes = cluster(&options, |id| {
        Box::new(SegmentLog::open(folder.path().join(id.to_string())).expect("a fresh folder"))
    });
    let nodes = nodes.await;
    let leader = leader(&nodes).await;
    let before = leader.stats().core;
    let mut tasks = Vec::new();
    for client in 0..clients {
        tasks.push(tokio::spawn(propose_all(leader.clone(), client, time)));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.map_err(|error| error.to_string())??);
    }
    // The figures are those of the last tick.
    tokio::time::sleep(options.tick * 2).await;
    let after = leader.stats().core;
    for node in &nodes {
        node.shutdown().await;
    }
    times.sort_unstable();
    let batches = after.proposal_batches - before.proposal_batches;
    let batch = (after.proposals - before.proposals) as f64 / batches as f64;
    Ok(Outcome { times, batch })
}

async fn propose_all(
    leader: RaftHandle,
    client: u64,
    time: Duration,
) -> Result<Vec<Duration>, String> {
    let begin = Instant::now();
    let mut times = Vec::new();
    while begin.elapsed() < time {
        let command = command(client, times.len() as u64);
        let asked = Instant::now();
        let proposed = leader.propose(command).await;
        proposed.map_err(|error| error.to_string())?;
        times.push(asked.elapsed());
    }
    Ok(times)
}
