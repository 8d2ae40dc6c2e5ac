//! Three nodes over `perf-transport`, on loopback.
#![cfg(feature = "transport")]

mod common;

use bytes::Bytes;
use common::{Map, options};
use perf_raft::{GroupId, MemoryLog, RaftHandle, RaftNode, RaftService};
use perf_transport::{Router, Security, Transport};
use std::time::Duration;

async fn node(id: u64) -> (RaftHandle, Map, Transport, RaftService) {
    let service = RaftService::new();
    let transport = Transport::builder(id, "test", Security::InsecurePlaintext)
        .router(service.register(Router::new()))
        .listen("127.0.0.1:0")
        .start()
        .await
        .expect("a port on loopback");
    let map = Map::default();
    let mut options = options();
    options.snapshot_entries = 50;
    options.log_entries_kept = 0;
    options.snapshot_chunk_bytes = 64;
    let handle = RaftNode::builder(id)
        .group(GroupId(4))
        .log_store(MemoryLog::new())
        .transport(service.transport(transport.clone()))
        .state_machine(map.clone())
        .options(options)
        .bootstrap((id <= 3).then_some([1, 2, 3]).into_iter().flatten())
        .start()
        .await
        .expect("it starts");
    (handle, map, transport, service)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_lives_on_tcp() {
    let mut nodes = Vec::new();
    for id in 1..=4 {
        nodes.push(node(id).await);
    }
    for (_, _, transport, _) in &nodes {
        for (peer, _, other, _) in &nodes {
            if peer.id() != transport.node() {
                transport.add_peer(peer.id(), other.address().expect("it listens"));
            }
        }
    }
    let leader = loop {
        let leader = nodes
            .iter()
            .find(|(handle, ..)| handle.status().is_leader());
        if let Some((leader, ..)) = leader
            && leader.read_index().await.is_ok()
        {
            break leader.clone();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    for number in 0..200 {
        leader
            .propose(Bytes::from(format!("k{number} v")))
            .await
            .expect("a leader");
    }
    // A new node gets a snapshot over the bulk connection.
    leader
        .change_membership(vec![perf_raft::MembershipChange::AddLearner(4)])
        .await
        .expect("a leader");
    for (_, map, ..) in &nodes {
        while map.state.lock().expect("no panic under it").0 < 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for (handle, _, transport, _) in &nodes {
        handle.shutdown().await;
        transport.shutdown();
    }
}
