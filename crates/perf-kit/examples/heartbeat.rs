//! A leader's heartbeats: its status read without a lock, encoded into a pooled buffer, shared with every peer.
//!
//! `cargo run --release -p perf-kit --features full --example heartbeat`

use perf_kit::prelude::*;
use std::time::Instant;

const BEATS: u64 = 200_000;

static SENT: OwnedCounter = OwnedCounter::new();

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let node: NodeState<String> = NodeState::new(1);
    for id in 2..=5 {
        node.members().insert(id, format!("10.0.0.{id}:7000"));
    }
    node.update_status(|status| {
        (status.role, status.term, status.leader_id) = (Role::Leader, 3, 1)
    });

    let start = Instant::now();
    let mut peers = node.members().reader();
    let mut bytes = 0;
    for commit in 1..=BEATS {
        let status = node.update_status(|status| status.commit_index = commit);
        let mut message = BytesGuard::try_new(64)?;
        for word in [status.term, status.leader_id, status.commit_index] {
            message.put_slice(&word.to_le_bytes())?;
        }
        let message = message.freeze();
        // Each peer's queue would hold a clone of the one frozen message.
        for _peer in peers.view().values() {
            bytes += message.clone().len();
            SENT.increment();
        }
    }
    let elapsed = start.elapsed();

    let stats = buffer_pool().stats();
    println!("heartbeats {BEATS}, messages {}, bytes {bytes}", SENT.get());
    println!(
        "buffers made {}, bytes held by the pool {}",
        created(&stats),
        stats.charged_bytes
    );
    println!(
        "{:.0} ns per heartbeat to {} peers",
        elapsed.as_nanos() as f64 / BEATS as f64,
        node.members().len()
    );
    Ok(())
}

fn created(stats: &perf_kit::pool::PoolStats) -> u64 {
    stats.classes.iter().map(|class| class.created).sum()
}
