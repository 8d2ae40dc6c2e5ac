//! A cluster of 1000 nodes and a stream of requests: how many placements are computed, and how many are not.
//!
//! `cargo run -p perf-cache --example placement`

use perf_atomics::Membership;
use perf_cache::{
    CacheError, NodeCapacity, PlacementDecisionCache, PlacementIndex, Requirements,
    ResourceSummary, ResourceSummaryCache, Strategy,
};
use std::collections::VecDeque;
use std::time::Duration;

const NODES: u64 = 1000;
const REQUESTS: u64 = 100_000;
const RUNNING: usize = 12_000;

fn main() -> Result<(), CacheError> {
    let members: Membership<u64, String> = Membership::new();
    let mut index = PlacementIndex::new();
    let addresses = (0..NODES).map(|id| (id, format!("10.0.{}.{}:7000", id / 250, id % 250 + 1)));
    members.update(|map| map.extend(addresses.clone()));
    for id in 0..NODES {
        index.update(NodeCapacity {
            id,
            vcpus: 32 + (id % 5) as u32 * 16,
            memory_mib: 131_072 + (id % 7) as u32 * 32_768,
            disk_gib: 2000,
        })?;
    }

    let decisions = PlacementDecisionCache::new(1000, Duration::from_secs(5))?;
    let summary = ResourceSummaryCache::new(Duration::from_secs(5))?;
    let mut running = VecDeque::new();
    let mut placed = 0_u64;
    let mut refused = 0_u64;
    let mut summaries = 0_u64;
    for request in 0..REQUESTS {
        // A handful of sizes, as instance types have them.
        let size = 1 << (request * 7 % 4);
        let vm = Requirements::new(size, size * 2048, size * 10);
        let generation = members.generation();
        let decide = || index.select(&vm, Strategy::MostAvailable);
        let node = decisions.place_at(&vm, Strategy::MostAvailable, generation, decide);
        match node {
            Some(node) if index.reserve(node, &vm) => {
                placed += 1;
                running.push_back((node, vm));
            }
            // The node has filled up since it was chosen: the next request chooses anew.
            Some(_) => {
                decisions.forget(&vm, Strategy::MostAvailable, generation);
            }
            None => refused += 1,
        }
        // VMs come and go: the oldest ends.
        if running.len() > RUNNING
            && let Some((node, vm)) = running.pop_front()
        {
            index.release(node, &vm);
        }
        if request % 20_000 == 19_999 {
            // The cluster changes: every decision is made anew.
            let leaving = request % NODES;
            members.remove(&leaving);
            index.remove(leaving);
        }
        let nodes = summary.get_or_compute(|| {
            summaries += 1;
            ResourceSummary {
                nodes: members.len() as u64,
                vms: placed,
                ..ResourceSummary::default()
            }
        });
        assert!(nodes.nodes > 0);
    }

    let stats = decisions.stats();
    println!("{NODES} nodes, {REQUESTS} requests: {placed} placed, {refused} refused");
    println!(
        "placements computed: {}, saved: {} ({:.2} %)",
        stats.computations,
        stats.hits,
        stats.hit_ratio().unwrap_or(0.0) * 100.0
    );
    println!(
        "summaries computed: {summaries}, saved: {}",
        REQUESTS - summaries
    );
    Ok(())
}
