//! Finds the address of a leader that this node has never heard of.
//!
//! Addresses of members are part of the inventory. A node that was down while a member joined does not have that part of
//! the log, and gets it from the leader alone. If the new member leads, the node hears it and cannot answer. So it asks the nodes
//! that it knows for their list of members. What they say is an address and no more: the certificate says who is there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use perf_kit::raft::RaftHandle;

use crate::cli::Serve;
use crate::cluster::client::Client;
use crate::machine::Shared;

/// How often a node looks whether it can answer its leader.
const LOOK: Duration = Duration::from_secs(1);

/// Runs as long as the node.
pub(crate) async fn find_leaders(
    options: Arc<Serve>,
    groups: Vec<RaftHandle>,
    shared: Arc<Shared>,
) {
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        let leaders: BTreeSet<u64> = groups.iter().map(|raft| raft.status().leader_id).collect();
        for leader in leaders {
            let is_known = leader == 0
                || options.peers.iter().any(|host| host.id == leader)
                || shared.state.members().contains(&leader);
            if is_known {
                continue;
            }
            for host in options.others() {
                if let Some(address) = address_of(leader, &host.http).await {
                    let address = options.via.get(&leader).cloned().unwrap_or(address);
                    shared.transport.add_peer(leader, address);
                    break;
                }
            }
        }
    }
}

/// Where a member's peers connect to, as the node that answers at `http` knows it.
async fn address_of(member: u64, http: &str) -> Option<String> {
    let mut client = Client::new(http.to_owned());
    let list = client.members().await.ok()?;
    let rows = list.members.into_iter();
    rows.filter(|row| row.id == member).find_map(|row| {
        row.raft
            .filter(|raft| raft.parse::<std::net::SocketAddr>().is_ok())
    })
}
