//! Spreads the leaders of several Raft groups over the nodes: without it the node that starts or survives first leads
//! them all.

use std::time::Duration;

use perf_kit::raft::{MemberRole, RaftHandle, RaftReport};

/// How often a leader looks whether another node shall lead its group.
const LOOK: Duration = Duration::from_secs(1);
/// Looks between two hand-overs by one node, so that a node that comes and goes does not take the office each time.
const LOOKS: u32 = 5;
/// Entries that the next leader may lack.
const LAG_MAX: u64 = 1000;

/// The voter that a leader hands its group to now, if it is well. By growing id, each voter has its turn.
fn next_leader(group: u32, leader: u64, report: &RaftReport) -> Option<u64> {
    let members = report.members.iter();
    let voters = members.filter(|member| member.role == MemberRole::Voter);
    let voters: Vec<u64> = voters.map(|member| member.id).collect();
    let next = whose_turn(group, &voters).filter(|&id| id != leader && !report.is_joint)?;
    let mut peers = report.peers.iter();
    let is_well = peers.any(|peer| peer.id == next && peer.is_live && peer.lag <= LAG_MAX);
    is_well.then_some(next)
}

fn whose_turn(group: u32, voters: &[u64]) -> Option<u64> {
    let place = group as usize % voters.len().max(1);
    voters.get(place).copied()
}

/// Runs as long as the node.
pub(crate) async fn spread_leaders(group: u32, raft: RaftHandle) {
    let mut tick = tokio::time::interval(LOOK);
    let mut looks = 0;
    loop {
        tick.tick().await;
        looks = if raft.status().is_leader() {
            looks + 1
        } else {
            0
        };
        if looks < LOOKS {
            continue;
        }
        if let Some(next) = next_leader(group, raft.id(), &raft.report()) {
            // If it fails, this node leads on.
            let _ = raft.transfer_leader(next).await;
            looks = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voters_have_equal_shares_of_the_groups() {
        for (voters, shares) in [(vec![1, 2, 3], vec![6, 5, 5]), (vec![7], vec![16])] {
            let count = |voter: &u64| {
                let turns = (0..16).filter(|&group| whose_turn(group, &voters) == Some(*voter));
                turns.count()
            };
            assert!(voters.iter().map(count).eq(shares), "{voters:?}");
        }
        assert_eq!(whose_turn(3, &[]), None);
    }
}
