//! Thousands of groups that have nothing to do, and what it takes to wake them.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use perf_raft::{
    ChannelNetwork, ChannelTransport, GroupId, Inbox, OutboundMessage, RaftHandle, RaftHost,
    RaftOptions, SegmentLog, SendError, Transport,
};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::ours::Map;
use crate::experiment::{Bound, Depth, Experiment, Figure, Unit};

const HOSTS: u64 = 3;
/// Groups that are created at a time.
const AT_ONCE: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(120);
const KIB: f64 = 1024.0;

pub(super) fn idle() -> Experiment {
    Experiment {
        id: "raft/idle_10k",
        about: "three hosts with 10 000 durable groups each, in one process, while nothing happens; bounds: 3 % of a core, 8 threads per host, 4 KiB of memory per replica",
        measure: measure_idle,
    }
}

pub(super) fn wake() -> Experiment {
    Experiment {
        id: "raft/wake",
        about: "10 000 groups sleep and the host dies that leads a third of them; bounds: all led again within three election timeouts and 2 s, 64 MiB of frames",
        measure: measure_wake,
    }
}

/// As any runtime, but that threads for blocking work, which opening a group needs, end soon.
fn runtime() -> Runtime {
    let built = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_keep_alive(Duration::from_millis(50))
        .enable_all()
        .build();
    built.expect("the system gives two threads")
}

fn groups(depth: Depth) -> u64 {
    match depth {
        Depth::Quick => 500,
        Depth::Full => 10_000,
    }
}

/// Counts bytes of frames.
struct Counted {
    inner: ChannelTransport,
    bytes: Arc<AtomicU64>,
}

impl Transport for Counted {
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.inner.start(inbox)
    }

    fn send(&self, message: OutboundMessage) -> Result<(), SendError> {
        self.bytes
            .fetch_add(message.frame.len() as u64, Ordering::Relaxed);
        self.inner.send(message)
    }

    fn stop(&self) {
        self.inner.stop();
    }
}

struct Hosts {
    hosts: Vec<RaftHost>,
    frame_bytes: Arc<AtomicU64>,
}

async fn start(folder: &Path, groups: u64) -> Result<Hosts, String> {
    let network = ChannelNetwork::new();
    let frame_bytes = Arc::new(AtomicU64::new(0));
    let mut hosts = Vec::new();
    for id in 1..=HOSTS {
        let log = SegmentLog::open(folder.join(id.to_string()));
        let host = RaftHost::builder(id)
            .log_store(log.map_err(|error| error.to_string())?)
            .transport(Counted {
                inner: network.transport(id),
                bytes: Arc::clone(&frame_bytes),
            })
            .drivers(1)
            .apply_threads(1)
            .start();
        hosts.push(host.await.map_err(|error| error.to_string())?);
    }
    let mut next = 1;
    while next <= groups {
        let mut tasks = Vec::new();
        for group in next..(next + AT_ONCE).min(groups + 1) {
            // A third is led by each, as far as the first one to ask for votes decides.
            for host in &hosts {
                let host = host.clone();
                tasks.push(tokio::spawn(async move {
                    let made = host.create_group(GroupId(group), <Map>::default(), 1..=HOSTS);
                    made.await.map(drop).map_err(|error| error.to_string())
                }));
            }
        }
        for task in tasks {
            task.await.map_err(|error| error.to_string())??;
        }
        next += AT_ONCE;
    }
    spread(&hosts, groups).await?;
    all_sleep(&hosts, groups).await?;
    Ok(Hosts { hosts, frame_bytes })
}

/// Each host leads a third.
async fn spread(hosts: &[RaftHost], groups: u64) -> Result<(), String> {
    for group in 1..=groups {
        let to = 1 + group % HOSTS;
        let nodes: Vec<RaftHandle> = hosts
            .iter()
            .filter_map(|host| host.group(GroupId(group)))
            .collect();
        let begin = Instant::now();
        while nodes[0].status().leader_id != to {
            if begin.elapsed() > PATIENCE {
                return Err(format!("group {group} is not led by {to}"));
            }
            for node in &nodes {
                // Only the leader can, and it may be another by now.
                let _ = node.transfer_leader(to).await;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(())
}

async fn all_sleep(hosts: &[RaftHost], groups: u64) -> Result<(), String> {
    let begin = Instant::now();
    while hosts
        .iter()
        .any(|host| (host.groups_asleep() as u64) < groups)
    {
        if begin.elapsed() > PATIENCE {
            let asleep: Vec<usize> = hosts.iter().map(RaftHost::groups_asleep).collect();
            return Err(format!("of {groups} groups only {asleep:?} sleep"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn end(hosts: &[RaftHost]) {
    for host in hosts {
        host.shutdown().await;
    }
}

fn measure_idle(depth: Depth) -> Result<Vec<Figure>, String> {
    let groups = groups(depth);
    let time = match depth {
        Depth::Quick => Duration::from_millis(500),
        Depth::Full => Duration::from_secs(10),
    };
    let failed = |error: std::io::Error| error.to_string();
    let (empty, folder) = (
        TempDir::new().map_err(failed)?,
        TempDir::new().map_err(failed)?,
    );
    runtime().block_on(async {
        let few = start(empty.path(), 1).await?;
        let disk_before = disk_bytes(empty.path()).map_err(failed)?;
        let memory_before = resident_bytes()?;
        let many = start(folder.path(), groups).await?;
        end(&few.hosts).await;
        let (frames, begin) = (many.frame_bytes.load(Ordering::Relaxed), Instant::now());
        let cpu = cpu_time()?;
        tokio::time::sleep(time).await;
        let seconds = begin.elapsed().as_secs_f64();
        let cpu = (cpu_time()? - cpu).as_secs_f64() / seconds;
        let (memory, threads) = (resident_bytes()? - memory_before, threads()?);
        let frames = many.frame_bytes.load(Ordering::Relaxed) - frames;
        let disk = disk_bytes(folder.path()).map_err(failed)?;
        end(&many.hosts).await;
        let replicas = (groups * HOSTS) as f64;
        Ok(vec![
            Figure::new("replicas", replicas, Unit::Count),
            Figure::new("of a core, while nothing happens", cpu, Unit::Share)
                .expected(Bound::AtMost(0.03)),
            Figure::new("threads per host", threads / HOSTS as f64, Unit::Count)
                .expected(Bound::AtMost(8.0)),
            Figure::new(
                "bytes of memory per replica",
                memory / replicas,
                Unit::Count,
            )
            .expected(Bound::AtMost(4.0 * KIB)),
            Figure::new(
                "bytes of frames",
                frames as f64 / seconds,
                Unit::BytesPerSecond,
            ),
            Figure::new(
                "bytes on disk, three hosts with one group",
                disk_before as f64,
                Unit::Count,
            ),
            Figure::new(
                "bytes on disk, three hosts with all",
                disk as f64,
                Unit::Count,
            ),
        ])
    })
}

fn measure_wake(depth: Depth) -> Result<Vec<Figure>, String> {
    let groups = groups(depth);
    let folder = TempDir::new().map_err(|error| error.to_string())?;
    let options = RaftOptions::default();
    let election = options.tick * options.election_ticks as u32;
    let bound = 3 * election + Duration::from_secs(2);
    runtime().block_on(async {
        let Hosts {
            mut hosts,
            frame_bytes,
        } = start(folder.path(), groups).await?;
        let before = frame_bytes.load(Ordering::Relaxed);
        let dead = hosts.remove(0);
        let begin = Instant::now();
        dead.shutdown().await;
        let stopped = begin.elapsed();
        let mut waiting: Vec<RaftHandle> = (1..=groups)
            .filter_map(|group| hosts[0].group(GroupId(group)))
            .collect();
        let led: Vec<GroupId> = waiting
            .iter()
            .filter(|node| node.status().leader_id == 1)
            .map(RaftHandle::group)
            .collect();
        while begin.elapsed() < PATIENCE {
            waiting.retain(|node| matches!(node.status().leader_id, 0 | 1));
            if waiting.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let all_led = begin.elapsed();
        if !waiting.is_empty() {
            return Err(format!("{} groups have no leader", waiting.len()));
        }
        let bytes = frame_bytes.load(Ordering::Relaxed) - before;
        all_sleep(&hosts, groups).await?;
        let asleep = begin.elapsed();
        end(&hosts).await;
        let nanoseconds = |time: Duration| time.as_nanos() as f64;
        Ok(vec![
            Figure::new("groups", groups as f64, Unit::Count),
            Figure::new(
                "led by the host that dies, at its end",
                led.len() as f64,
                Unit::Count,
            ),
            Figure::new("it has stopped", nanoseconds(stopped), Unit::Nanoseconds),
            Figure::new("all led again", nanoseconds(all_led), Unit::Nanoseconds)
                .expected(Bound::AtMost(nanoseconds(bound))),
            Figure::new(
                "bytes of frames of all hosts meanwhile",
                bytes as f64,
                Unit::Count,
            )
            .expected(Bound::AtMost(64.0 * KIB * KIB)),
            Figure::new("all sleep again", nanoseconds(asleep), Unit::Nanoseconds),
        ])
    })
}

fn status_field(field: &str) -> Result<f64, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| format!("/proc/self/status has no `{field}`"))
}

fn resident_bytes() -> Result<f64, String> {
    status_field("VmRSS:").map(|kib| kib * KIB)
}

fn threads() -> Result<f64, String> {
    status_field("Threads:")
}

/// Of this process, by all its threads.
fn cpu_time() -> Result<Duration, String> {
    let schedstat = |path: std::path::PathBuf| {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    let threads = fs::read_dir("/proc/self/task").map_err(|error| error.to_string())?;
    // A thread that ends meanwhile is not there any more.
    let times = threads.filter_map(|thread| schedstat(thread.ok()?.path()));
    Ok(Duration::from_nanos(times.sum()))
}

/// Bytes that the files of a folder take.
fn disk_bytes(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            disk_bytes(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(bytes)
}
