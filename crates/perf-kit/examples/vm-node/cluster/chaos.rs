//! Kills nodes without a warning, and starts them again.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::Rng as _;

use super::load::Load;
use super::nodes::Nodes;

/// Quiet time before each kill.
const QUIET: Duration = Duration::from_millis(2500);
/// How long a node stays down, about.
const DOWN_MS: std::ops::Range<u64> = 500..2000;
/// How long a cluster may take to have a leader again.
const LEADER_MAX: Duration = Duration::from_secs(20);

/// One kill.
#[derive(Clone, Debug)]
pub(super) struct Kill {
    pub(super) node: u64,
    pub(super) was_leader: bool,
    /// From the kill to the first acknowledged write that began after it.
    pub(super) outage: Option<Duration>,
}

/// Kills until `end`, the leader two times of three.
pub(super) async fn run(nodes: &Nodes, load: &Load, end: Instant) -> Result<Vec<Kill>> {
    let mut kills = Vec::new();
    loop {
        tokio::time::sleep(QUIET).await;
        if Instant::now() + Duration::from_millis(DOWN_MS.end) + QUIET > end {
            // What is left of the time belongs to requests that wait.
            tokio::time::sleep_until(end.into()).await;
            return Ok(kills);
        }
        nodes.check_alive().await?;
        let leader = nodes.wait_for_leader(LEADER_MAX).await?;
        let node = if rand::rng().random_ratio(2, 3) {
            leader
        } else {
            let followers: Vec<u64> = nodes.ids().into_iter().filter(|&id| id != leader).collect();
            followers[rand::rng().random_range(0..followers.len())]
        };
        nodes.kill(node).await?;
        load.watch();
        let down = rand::rng().random_range(DOWN_MS);
        tokio::time::sleep(Duration::from_millis(down)).await;
        nodes.restart(node).await?;
        nodes.wait_for_leader(LEADER_MAX).await?;
        let start = Instant::now();
        while load.watched().is_none() && start.elapsed() < LEADER_MAX {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        kills.push(Kill {
            node,
            was_leader: node == leader,
            outage: load.watched(),
        });
    }
}
