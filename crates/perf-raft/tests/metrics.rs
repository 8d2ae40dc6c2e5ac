//! What a node records.
#![cfg(feature = "metrics")]

mod common;

use bytes::Bytes;
use common::{Map, options};
use perf_metrics::Registry;
use perf_metrics::node::NodeMetrics;
use perf_raft::{ChannelNetwork, MemoryLog, RaftMetrics, RaftNode};
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_of_each_stage_are_recorded() {
    let registry = Registry::new();
    let catalogue: &'static NodeMetrics = Box::leak(Box::new(
        NodeMetrics::new(&registry).expect("a new registry"),
    ));
    let metrics = Arc::new(RaftMetrics::new(&registry, catalogue).expect("a new registry"));
    let node = RaftNode::builder(1)
        .log_store(MemoryLog::new())
        .transport(ChannelNetwork::new().transport(1))
        .state_machine(Map::default())
        .options(options())
        .bootstrap([1])
        .metrics(metrics)
        .start()
        .await
        .expect("it starts");
    while !node.status().is_leader() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..10 {
        node.propose(Bytes::from_static(b"key value"))
            .await
            .expect("it leads");
    }
    node.shutdown().await;
    let snapshot = registry.collect();
    for name in [
        "raft.proposals",
        "raft.term",
        "raft.leader",
        "raft.stage.batch",
        "raft.log.memory",
    ] {
        let metric = snapshot.metric(name).unwrap_or_else(|| panic!("no {name}"));
        assert!(!metric.series().is_empty(), "{name} has no series");
    }
}
