//! What a node records.
#![cfg(feature = "metrics")]

mod common;

use bytes::Bytes;
use common::{Map, options};
use perf_metrics::node::NodeMetrics;
use perf_metrics::{KeyValue, Registry, SeriesSnapshot, Value};
use perf_raft::{
    ChannelNetwork, GroupId, MemoryLog, ProposeError, RaftHandle, RaftHost, RaftMetrics, RaftNode,
    ReadError,
};
use std::sync::Arc;
use std::time::Duration;

fn metrics() -> (Arc<RaftMetrics>, Registry) {
    let registry = Registry::new();
    let catalogue: &'static NodeMetrics = Box::leak(Box::new(
        NodeMetrics::new(&registry).expect("a new registry"),
    ));
    let metrics = RaftMetrics::new(&registry, catalogue).expect("a new registry");
    (Arc::new(metrics), registry)
}

/// A node of this group, of which nobody else runs, and where it records.
async fn node(group: &[u64]) -> (RaftHandle, Registry) {
    let (metrics, registry) = metrics();
    let node = RaftNode::builder(1)
        .log_store(MemoryLog::new())
        .transport(ChannelNetwork::new().transport(1))
        .state_machine(Map::default())
        .options(options())
        .bootstrap(group.iter().copied())
        .metrics(metrics)
        .start()
        .await
        .expect("it starts");
    (node, registry)
}

/// Proposals that ended so.
fn proposals(registry: &Registry, status: &'static str) -> Value {
    let snapshot = registry.collect();
    let metric = snapshot.metric("raft.proposals").expect("it is there");
    let series = metric.find(&[KeyValue::new("status", status)]);
    series.and_then(SeriesSnapshot::value).expect("a sum")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_of_each_stage_are_recorded() {
    let (node, registry) = node(&[1]).await;
    while !node.status().is_leader() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..10 {
        node.propose(Bytes::from_static(b"key value"))
            .await
            .expect("it leads");
    }
    let nobody = node.transfer_leader(9).await;
    assert!(matches!(nobody, Err(ProposeError::Refused { .. })));
    assert_eq!(node.lease_read().await, Err(ReadError::NoLease));
    node.shutdown().await;
    assert_eq!(node.stats().core.reads_failed, 1);
    // The first collection after the node's end: its own instruments leave with it.
    let snapshot = registry.collect();
    assert_eq!(proposals(&registry, "success"), Value::U64(10));
    assert_eq!(proposals(&registry, "failed"), Value::U64(1));
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

/// Waits until a host's gauges of groups are these: all of them, those it leads, those that sleep.
async fn has_groups(registry: &Registry, all: f64, led: f64, asleep: f64) {
    let gauge = |name: &str| {
        let snapshot = registry.collect();
        let metric = snapshot.metric(name).expect("it is there");
        metric.find(&[]).and_then(SeriesSnapshot::value)
    };
    let is_there = || {
        gauge("raft.groups") == Some(Value::F64(all))
            && gauge("raft.groups.led") == Some(Value::F64(led))
            && gauge("raft.groups.asleep") == Some(Value::F64(asleep))
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !is_there() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let what = format!("{all} groups, {led} led, {asleep} asleep");
    waited.await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_host_records_all_groups_together() {
    let (metrics, registry) = metrics();
    let mut options = options();
    options.sleep_after_ticks = 4;
    let host = RaftHost::builder(1)
        .log_store(MemoryLog::new())
        .transport(ChannelNetwork::new().transport(1))
        .options(options)
        .metrics(metrics)
        .start()
        .await
        .expect("it starts");
    let mut groups = Vec::new();
    for group in (1..=3).map(GroupId) {
        let made = host.create_group(group, Map::default(), [1]);
        groups.push(made.await.expect("a new group"));
    }
    // One that nobody leads, and that cannot sleep.
    let joins = host.open_group(GroupId(4), Map::default());
    joins.await.expect("it waits to be taken in");
    has_groups(&registry, 4.0, 3.0, 3.0).await;
    for group in &groups {
        let proposed = group.propose(Bytes::from_static(b"key value"));
        proposed.await.expect("it leads");
    }
    has_groups(&registry, 4.0, 3.0, 3.0).await;
    host.close_group(GroupId(1)).await.expect("it runs");
    has_groups(&registry, 3.0, 2.0, 2.0).await;
    host.shutdown().await;
    has_groups(&registry, 0.0, 0.0, 0.0).await;
    assert_eq!(proposals(&registry, "success"), Value::U64(3));
}

#[tokio::test]
async fn what_is_for_the_leader_is_no_failure() {
    let (node, registry) = node(&[1, 2]).await;
    let redirected = node.propose(Bytes::from_static(b"key value")).await;
    assert!(matches!(redirected, Err(ProposeError::NotLeader { .. })));
    node.shutdown().await;
    let counts = node.stats().core;
    assert_eq!(
        (counts.requests_redirected, counts.proposals_failed),
        (1, 0)
    );
    assert_eq!(proposals(&registry, "failed"), Value::U64(0));
}
