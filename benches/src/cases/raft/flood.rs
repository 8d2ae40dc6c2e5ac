//! Heartbeats under a flood of appends and snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use perf_raft::{ChannelNetwork, MembershipChange, MemoryLog, RaftHandle, RaftNode, RaftOptions};

use super::ours::{Map, leader};
use super::runtime;
use crate::experiment::{Bound, Depth, Experiment, Figure, Unit};

/// Clients that propose large values all the time.
const CLIENTS: u64 = 64;
const VALUE_BYTES: usize = 64 * 1024;

pub(super) fn experiment() -> Experiment {
    Experiment {
        id: "raft/flood",
        about: "heartbeats there and back while 64 clients propose 64 KiB each and a new node gets a snapshot",
        measure,
    }
}

/// Keys that are written in turn: 16 MiB of state.
const KEYS: u64 = 256;

fn large(client: u64, turn: u64) -> Bytes {
    let mut bytes = vec![0x5A; VALUE_BYTES];
    let key = (client * 7919 + turn) % KEYS;
    bytes[..8].copy_from_slice(&key.to_le_bytes());
    bytes.into()
}

fn measure(depth: Depth) -> Result<Vec<Figure>, String> {
    let seconds = match depth {
        Depth::Quick => 1,
        Depth::Full => 10,
    };
    let runtime = runtime();
    runtime.block_on(run(Duration::from_secs(seconds)))
}

async fn run(time: Duration) -> Result<Vec<Figure>, String> {
    let failed = |error: &dyn std::error::Error| error.to_string();
    let mut options = RaftOptions::default();
    options.snapshot_log_bytes = 16 * 1024 * 1024;
    let network = ChannelNetwork::new();
    let mut nodes: Vec<RaftHandle> = Vec::new();
    for id in 1..=4 {
        let first: &[u64] = if id == 4 { &[] } else { &[1, 2, 3] };
        let node = RaftNode::builder(id)
            .log_store(MemoryLog::new())
            .transport(network.transport(id))
            .state_machine(Map::<VALUE_BYTES>::default())
            .options(options.clone())
            .bootstrap(first.iter().copied())
            .start();
        nodes.push(node.await.map_err(|error| failed(&error))?);
    }
    let leader = leader(&nodes).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut flood = Vec::new();
    for client in 0..CLIENTS {
        let (leader, stop) = (leader.clone(), Arc::clone(&stop));
        flood.push(tokio::spawn(async move {
            let mut turn = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                turn += 1;
                // What is refused at a bound is part of the flood.
                let _ = leader.propose(large(client, turn)).await;
            }
            turn
        }));
    }
    let term = leader.status().term;
    let begin = Instant::now();
    let mut rounds = Vec::new();
    let mut joining = None;
    while begin.elapsed() < time {
        if joining.is_none() && begin.elapsed() > time / 4 {
            let leader = leader.clone();
            let change = vec![MembershipChange::AddLearner(4)];
            joining = Some(tokio::spawn(async move {
                leader.change_membership(change).await
            }));
        }
        let asked = Instant::now();
        if leader.read_index().await.is_ok() {
            rounds.push(asked.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut proposed = 0;
    for client in flood {
        proposed += client.await.map_err(|error| failed(&error))?;
    }
    let per_second = proposed as f64 * VALUE_BYTES as f64 / begin.elapsed().as_secs_f64();
    let installed = nodes
        .last()
        .map_or(0, |node| node.stats().core.snapshots_received);
    let terms = leader.status().term - term;
    for node in &nodes {
        node.shutdown().await;
    }
    rounds.sort_unstable();
    let at = |share: f64| {
        let place = (rounds.len() as f64 * share) as usize;
        rounds
            .get(place)
            .map_or(f64::NAN, |round| round.as_nanos() as f64)
    };
    let tick_ns = options.tick.as_nanos() as f64;
    Ok(vec![
        Figure::new("heartbeat there and back, p50", at(0.5), Unit::Nanoseconds),
        Figure::new("heartbeat there and back, p99", at(0.99), Unit::Nanoseconds)
            .expected(Bound::AtMost(tick_ns)),
        Figure::new("elections", terms as f64, Unit::Count).expected(Bound::AtMost(0.0)),
        Figure::new("snapshots installed", installed as f64, Unit::Count)
            .expected(Bound::AtLeast(1.0)),
        Figure::new("proposed meanwhile", per_second, Unit::BytesPerSecond),
    ])
}
