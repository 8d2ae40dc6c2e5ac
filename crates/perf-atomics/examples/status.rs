//! A node that is asked for its status by two threads while its Raft loop commits, loses and regains the lead.
//!
//! `cargo run --release -p perf-atomics --example status`

use perf_atomics::{MembershipReader, NodeState, OwnedCounter, Role};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

static QUERIES: OwnedCounter = OwnedCounter::new();
static AS_LEADER: OwnedCounter = OwnedCounter::new();
static PEER_FOUND: OwnedCounter = OwnedCounter::new();

const COMMITS: u64 = 200_000;

fn main() {
    let node: Arc<NodeState<String>> = Arc::new(NodeState::new(1));
    node.set_name("node-1");
    for id in 2..=5 {
        node.members().insert(id, format!("10.0.0.{id}:7000"));
    }
    let is_done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (node, is_done) = (Arc::clone(&node), Arc::clone(&is_done));
            thread::spawn(move || ask(&node, &is_done))
        })
        .collect();

    drive(&node);
    is_done.store(true, Ordering::Release);
    let lag_max = clients
        .into_iter()
        .filter_map(|client| client.join().ok())
        .max()
        .unwrap_or(0);

    let status = node.status();
    println!("status now          {status:?}");
    println!(
        "members             {} (generation {})",
        node.cluster_size(),
        node.members().generation()
    );
    println!("queries answered    {}", QUERIES.get());
    println!("  as leader         {}", AS_LEADER.get());
    println!("  peer was known    {}", PEER_FOUND.get());
    println!("largest apply lag   {lag_max} (never torn: applied <= committed in every answer)");
}

/// What the Raft loop of a node does: one publication per batch.
fn drive(node: &NodeState<String>) {
    for commit in 1..=COMMITS {
        node.update_status(|status| {
            status.commit_index = commit;
            status.applied_index = commit - commit % 3;
        });
        if commit % (COMMITS / 4) == 0 {
            let is_leader = node.is_leader();
            node.update_status(|status| {
                status.term += 1;
                status.role = if is_leader {
                    Role::Follower
                } else {
                    Role::Leader
                };
                status.leader_id = if is_leader { 2 } else { 1 };
            });
            node.members().remove(&5);
            node.members().insert(5, "10.0.0.15:7000".to_owned());
        }
    }
}

/// What a client of the node asks; returns the largest apply lag it was told.
fn ask(node: &NodeState<String>, is_done: &AtomicBool) -> u64 {
    let mut peers = MembershipReader::new(node.members());
    let (mut lag_max, mut id) = (0, 2);
    while !is_done.load(Ordering::Acquire) {
        let status = node.status();
        assert!(
            status.applied_index <= status.commit_index,
            "a torn status: {status:?}"
        );
        lag_max = lag_max.max(status.apply_lag());
        QUERIES.increment();
        if node.is_leader() {
            AS_LEADER.increment();
        }
        if peers.contains(&id) {
            PEER_FOUND.increment();
        }
        id = 2 + id % 4;
    }
    lag_max
}
