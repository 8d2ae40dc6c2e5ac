//! Many groups on three hosts, each with one log, beside one group with as many clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use perf_raft::log::{
    LogJob, LogOutline, LogReader, LogState, LogStore, SnapshotStore, StoredSnapshot,
};
use perf_raft::{ChannelNetwork, GroupId, LogError, RaftHandle, RaftHost, SegmentLog};
use tempfile::TempDir;

use super::ours::{Map, leader, options};
use super::{Proposer, command, runtime};
use crate::experiment::{Bound, Depth, Experiment, Figure, Unit};

const CLIENTS: u64 = 1024;

pub(super) fn experiments() -> [Experiment; 2] {
    [
        Experiment {
            id: "raft/durable_groups_100",
            about: "1024 clients on one group and on 100, whose nodes share a log; bounds: 0.8 times one group's proposals, no more fsyncs than one group's",
            measure: |depth| measure(depth, 100, 0.8),
        },
        Experiment {
            id: "raft/groups_1000",
            about: "1024 clients on one group and on 1000, whose nodes share a log; bounds: 0.7 times one group's proposals, no more fsyncs than one group's",
            measure: |depth| measure(depth, 1000, 0.7),
        },
    ]
}

/// The leaders of the groups, by turns.
#[derive(Clone)]
struct Leaders(Arc<Vec<RaftHandle>>);

impl Proposer for Leaders {
    async fn propose(&self, command: Bytes) {
        // A client stays with its group: its keys begin with its number.
        let key = super::key_of(&command);
        let place = usize::try_from(key).unwrap_or(0) % self.0.len();
        Proposer::propose(&self.0[place], command).await;
    }
}

/// Counts the durable writes of a log.
struct Counted {
    log: SegmentLog,
    syncs: Arc<AtomicU64>,
}

impl LogStore for Counted {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        self.log.load(group)
    }

    fn save_snapshot(&mut self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        self.log.save_snapshot(group, snapshot)
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        self.syncs.fetch_add(u64::from(sync), Ordering::Relaxed);
        self.log.write(jobs, sync)
    }

    fn outline(&mut self, group: GroupId) -> Result<Option<LogOutline>, LogError> {
        self.log.outline(group)
    }

    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, LogError> {
        self.log.snapshots()
    }

    fn reader(&mut self) -> Result<Option<Box<dyn LogReader>>, LogError> {
        self.log.reader()
    }
}

/// Starts three hosts with so many groups.
async fn start(groups: u64, logs: Vec<Counted>) -> (Vec<RaftHost>, Leaders) {
    let network = ChannelNetwork::new();
    let mut hosts = Vec::new();
    for (id, log) in (1..).zip(logs) {
        let host = RaftHost::builder(id)
            .log_store(log)
            .transport(network.transport(id))
            .options(options())
            .start();
        hosts.push(host.await.expect("sound options"));
    }
    // Together: their first writes share fsyncs, and their elections a tick.
    let mut beginning = Vec::new();
    for group in (1..=groups).map(GroupId) {
        let hosts = hosts.clone();
        beginning.push(tokio::spawn(async move {
            let mut nodes = Vec::new();
            for host in &hosts {
                let made = host.create_group(group, <Map>::default(), [1, 2, 3]);
                nodes.push(made.await.expect("a new group"));
            }
            leader(&nodes).await
        }));
    }
    let mut leaders = Vec::new();
    for group in beginning {
        leaders.push(group.await.expect("no panic"));
    }
    (hosts, Leaders(Arc::new(leaders)))
}

/// Of one group and of so many, which are to have that part of the one's proposals.
fn measure(depth: Depth, groups: u64, part: f64) -> Result<Vec<Figure>, String> {
    let time = match depth {
        Depth::Quick => Duration::from_millis(500),
        Depth::Full => Duration::from_secs(10),
    };
    let one = run(1, time)?;
    let many = run(groups, time)?;
    Ok(vec![
        Figure::new("proposals, one group", one.proposals, Unit::PerSecond),
        Figure::new("proposals, all groups", many.proposals, Unit::PerSecond)
            .expected(Bound::AtLeast(part * one.proposals)),
        Figure::new("fsyncs, one group", one.syncs, Unit::PerSecond),
        Figure::new("fsyncs, all groups", many.syncs, Unit::PerSecond)
            .expected(Bound::AtMost(one.syncs)),
    ])
}

/// Per second.
struct Rates {
    proposals: f64,
    syncs: f64,
}

fn run(groups: u64, time: Duration) -> Result<Rates, String> {
    let folder = TempDir::new().map_err(|error| error.to_string())?;
    let syncs = Arc::new(AtomicU64::new(0));
    let mut logs = Vec::new();
    for id in 1..=3_u64 {
        let log = SegmentLog::open(folder.path().join(id.to_string()));
        logs.push(Counted {
            log: log.map_err(|error| error.to_string())?,
            syncs: Arc::clone(&syncs),
        });
    }
    runtime().block_on(async {
        let (hosts, leaders) = start(groups, logs).await;
        let before = syncs.load(Ordering::Relaxed);
        let begin = Instant::now();
        let mut tasks = Vec::new();
        for client in 0..CLIENTS {
            let leaders = leaders.clone();
            tasks.push(tokio::spawn(async move {
                let mut turn = 0;
                while begin.elapsed() < time {
                    turn += 1;
                    leaders.propose(command(client, turn)).await;
                }
                turn
            }));
        }
        let mut proposals = 0;
        for task in tasks {
            proposals += task.await.map_err(|error| error.to_string())?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        let done = syncs.load(Ordering::Relaxed) - before;
        for host in &hosts {
            host.shutdown().await;
        }
        Ok(Rates {
            proposals: proposals as f64 / seconds,
            syncs: done as f64 / seconds,
        })
    })
}
