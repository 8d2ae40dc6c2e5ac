//! What users and machines do to a node, and what it does then.
#![cfg(not(perf_loom))]

mod common;

use bytes::Bytes;
use common::{Cluster, Map, options};
use perf_raft::log::{LogJob, LogState, LogStore, StoredSnapshot};
use perf_raft::{
    ApplyMode, ChannelNetwork, Command, Inbox, MemoryLog, OutboundMessage, ProposeError,
    RaftHandle, RaftNode, RaftOptions, SendError, StartError, StateMachine, StateMachineError,
    Transport,
};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

/// A client whose waker panics.
struct PanickingWaker;

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        panic!("a client's waker panics: part of the test");
    }
}

async fn single(machine: impl StateMachine, options: RaftOptions) -> RaftHandle {
    let node = RaftNode::builder(1)
        .log_store(MemoryLog::new())
        .transport(ChannelNetwork::new().transport(1))
        .state_machine(machine)
        .options(options)
        .bootstrap([1])
        .start()
        .await
        .expect("it starts");
    while !node.status().is_leader() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_waker_panics_stops_nobody_else() {
    for apply in [ApplyMode::Thread, ApplyMode::Inline] {
        let mut options = options();
        options.apply = apply;
        let node = single(Map::default(), options).await;
        let waker = Waker::from(Arc::new(PanickingWaker));
        // A busy machine may have the answer before the client's first look.
        let mut waited = 0;
        while waited < 4 {
            let mut proposal = pin!(node.propose(Bytes::from_static(b"a 1")));
            let first = proposal.as_mut().poll(&mut Context::from_waker(&waker));
            let mut read = pin!(node.read_index());
            let second = read.as_mut().poll(&mut Context::from_waker(&waker));
            waited += u32::from(first.is_pending() || second.is_pending());
            node.propose(Bytes::from_static(b"b 2"))
                .await
                .expect("the node goes on");
        }
        node.read_index().await.expect("the node goes on");
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_applied_after_shutdown_returned() {
    let map = Map {
        delay: Duration::from_millis(20),
        ..Map::default()
    };
    let node = single(map.clone(), options()).await;
    let applied = || map.state.lock().expect("no panic under it").0;
    let proposals: Vec<_> = (0..40)
        .map(|number| {
            let node = node.clone();
            tokio::spawn(async move { node.propose(Bytes::from(format!("k {number}"))).await })
        })
        .collect();
    while applied() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.shutdown().await;
    let at_the_end = applied();
    for proposal in proposals {
        // Each has an answer, whichever.
        let _ = proposal.await.expect("no panic");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(applied(), at_the_end);
}

/// A transport that takes frames up to a length.
struct Narrow {
    inner: perf_raft::ChannelTransport,
    frame_bytes_max: usize,
}

impl Transport for Narrow {
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.inner.start(inbox)
    }

    fn send(&self, message: OutboundMessage) -> Result<(), SendError> {
        assert!(message.frame.len() <= self.frame_bytes_max, "too long");
        self.inner.send(message)
    }

    fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max
    }

    fn stop(&self) {
        self.inner.stop();
    }
}

#[tokio::test]
async fn options_that_the_transport_cannot_carry_are_refused_with_both_numbers() {
    let network = ChannelNetwork::new();
    let start = |frame_bytes_max: usize| {
        let transport = Narrow {
            inner: network.transport(1),
            frame_bytes_max,
        };
        RaftNode::builder(1)
            .log_store(MemoryLog::new())
            .transport(transport)
            .state_machine(Map::default())
            .bootstrap([1])
            .start()
    };
    // The default of perf-transport.
    start(1 << 20)
        .await
        .expect("the defaults fit")
        .shutdown()
        .await;
    let error = start(1 << 19).await.expect_err("too narrow");
    assert!(matches!(error, StartError::Options { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("524288") && text.contains("983552"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_proposals_at_the_limit_fit_the_transport() {
    let network = ChannelNetwork::new();
    let mut options = options();
    (options.proposal_bytes_max, options.message_bytes_max) = (4096, 4096);
    options.snapshot_chunk_bytes = 1;
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let transport = Narrow {
            inner: network.transport(id),
            // What the options ask for, and no byte more.
            frame_bytes_max: 64 * 1024 + 512 + 1,
        };
        let node = RaftNode::builder(id)
            .log_store(MemoryLog::new())
            .transport(transport)
            .state_machine(Map::default())
            .options(options.clone())
            .bootstrap([1, 2, 3])
            .start()
            .await
            .expect("it fits");
        nodes.push(node);
    }
    let leader = loop {
        if let Some(leader) = nodes.iter().find(|node| node.status().is_leader()) {
            break leader;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    for bytes in 4000..=4096 {
        let answer = leader.propose(Bytes::from(vec![b'x'; bytes])).await;
        answer.expect("within the limit");
    }
    let too_large = leader.propose(Bytes::from(vec![b'x'; 4097])).await;
    assert!(matches!(
        too_large,
        Err(ProposeError::TooLarge {
            bytes: 4097,
            limit: 4096
        })
    ));
    leader
        .propose(Bytes::from_static(b"y"))
        .await
        .expect("the group goes on");
    for node in nodes {
        node.shutdown().await;
    }
}

/// A map whose snapshots fail, or are too large, while told to.
#[derive(Clone, Default)]
struct Unsavable {
    map: Map,
    fails: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
}

impl StateMachine for Unsavable {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        self.map.apply(batch, responses);
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.fails.load(Ordering::Relaxed) {
            return Err("the machine's own disk is full".into());
        }
        self.map.snapshot()
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), StateMachineError> {
        self.map.restore(snapshot)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_makes_no_snapshot_is_asked_seldom_and_named() {
    for apply in [ApplyMode::Thread, ApplyMode::Inline] {
        let mut options = options();
        options.apply = apply;
        options.snapshot_entries = 10;
        (options.log_bytes_max, options.snapshot_log_bytes) = (64 * 1024, 1024);
        let machine = Unsavable::default();
        let node = single(machine.clone(), options).await;
        machine.fails.store(true, Ordering::Relaxed);
        // Proposals go on up to the bound, and the answer there says why.
        let refused = loop {
            let number = node.status().applied_index;
            if let Err(error) = node.propose(Bytes::from(format!("k {number}"))).await {
                break error;
            }
        };
        assert!(node.status().applied_index > 100);
        let ProposeError::NoSnapshot { reason } = &refused else {
            panic!("{refused}");
        };
        assert!(reason.contains("disk is full"), "{reason}");
        // One at the start, and then at ticks twice as far apart each time.
        let calls = machine.calls.load(Ordering::Relaxed);
        assert!(calls <= 20, "{calls} calls");
        let asked = node.snapshot().await;
        assert!(
            matches!(asked, Err(ProposeError::NoSnapshot { .. })),
            "{asked:?}"
        );
        machine.fails.store(false, Ordering::Relaxed);
        while node.propose(Bytes::from_static(b"k 1")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_may_share_a_seed_and_keep_it_over_restarts() {
    let network = ChannelNetwork::new();
    let logs: Vec<MemoryLog> = (0..3).map(|_| MemoryLog::restartable()).collect();
    for round in 1..=3 {
        let mut nodes = Vec::new();
        for (id, log) in (1..).zip(&logs) {
            let node = RaftNode::builder(id)
                .log_store(log.clone())
                .transport(network.transport(id))
                .state_machine(Map::default())
                .options(options())
                .bootstrap([1, 2, 3])
                .seed(7)
                .start()
                .await
                .expect("it starts");
            nodes.push(node);
        }
        let mut acknowledged = 0;
        while acknowledged < 50 {
            for node in &nodes {
                let answer = node.propose(Bytes::from(format!("k {round}"))).await;
                acknowledged += usize::from(answer.is_ok());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for node in nodes {
            node.shutdown().await;
        }
    }
}

/// The followers of a slow machine make snapshots while they are behind: what they cut off their logs must not be what Raft still looks at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_of_a_slow_machine_outlive_their_leader() {
    let mut options = options();
    options.snapshot_entries = 20;
    options.log_entries_kept = 0;
    let mut cluster = Cluster {
        network: ChannelNetwork::new(),
        nodes: std::collections::BTreeMap::new(),
    };
    for id in 1..=3 {
        let map = Map {
            delay: Duration::from_millis(3),
            ..Map::default()
        };
        let handle = RaftNode::builder(id)
            .log_store(MemoryLog::new())
            .transport(cluster.network.transport(id))
            .state_machine(map.clone())
            .options(options.clone())
            .bootstrap([1, 2, 3])
            .start()
            .await
            .expect("it starts");
        cluster.nodes.insert(id, (handle, map));
    }
    let leader = cluster.leader().await;
    let mut proposals = tokio::task::JoinSet::new();
    for number in 0..300 {
        let leader = leader.clone();
        proposals.spawn(async move { leader.propose(Bytes::from(format!("k {number}"))).await });
        if number % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    leader.shutdown().await;
    while proposals.join_next().await.is_some() {}
    cluster.nodes.remove(&leader.id());
    let next = cluster.leader().await;
    let last = next.propose(Bytes::from_static(b"k last")).await;
    last.expect("the group goes on");
    cluster.stop().await;
}

/// A network in which some frames from one node do not arrive.
struct Deaf {
    end: perf_raft::ChannelTransport,
    /// Frames of elections are lost while it is set.
    loses_elections: Arc<AtomicBool>,
}

impl Transport for Deaf {
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.end.start(inbox)
    }

    fn send(&self, message: OutboundMessage) -> Result<(), SendError> {
        let is_lost = message.class == perf_raft::inbound::MessageClass::Election
            && self.loses_elections.load(Ordering::Relaxed);
        if is_lost {
            return Ok(());
        }
        self.end.send(message)
    }

    fn stop(&self) {
        self.end.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_failed_leaves_lease_reads_as_they_were() {
    let network = ChannelNetwork::new();
    let loses_elections = Arc::new(AtomicBool::new(false));
    let mut options = options();
    options.lease_reads = true;
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let deaf = Deaf {
            end: network.transport(id),
            loses_elections: Arc::clone(&loses_elections),
        };
        let builder = RaftNode::builder(id)
            .log_store(MemoryLog::new())
            .transport(deaf)
            .state_machine(Map::default())
            .options(options.clone())
            .bootstrap([1, 2, 3]);
        nodes.push(builder.start().await.expect("it starts"));
    }
    let leader = loop {
        let leads = |node: &&RaftHandle| node.status().is_leader();
        if let Some(leader) = nodes.iter().find(leads)
            && leader.lease_read().await.is_ok()
        {
            break leader.clone();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let before = leader.status();
    loses_elections.store(true, Ordering::Relaxed);
    let to = if before.node_id == 1 { 2 } else { 1 };
    let outcome = leader.transfer_leader(to).await;
    assert_eq!(outcome, Err(ProposeError::ProposalDropped));
    let served = async {
        while leader.lease_read().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), served)
        .await
        .expect("the lease is back");
    assert_eq!(leader.status().term, before.term, "without an election");
    for node in &nodes {
        node.shutdown().await;
    }
}

/// A transport to which node 3 has said that it takes short frames only.
struct Short {
    end: perf_raft::ChannelTransport,
    limit: Arc<AtomicUsize>,
}

impl Transport for Short {
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.end.start(inbox)
    }

    fn send(&self, message: OutboundMessage) -> Result<(), SendError> {
        let limit = self.limit.load(Ordering::Relaxed);
        if message.to == 3 && message.frame.len() > limit {
            return Err(SendError::TooLarge { limit });
        }
        self.end.send(message)
    }

    fn stop(&self) {
        self.end.stop();
    }
}

/// Waits until a node has applied everything up to `index`.
async fn reaches(node: &RaftHandle, index: u64, what: &str) {
    let reached = async {
        while node.status().applied_index < index {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let outcome = tokio::time::timeout(Duration::from_secs(30), reached).await;
    outcome.expect(what);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_short_frames_gets_parts_and_is_reported_when_none_is_short_enough() {
    let network = ChannelNetwork::new();
    let limit = Arc::new(AtomicUsize::new(4096));
    let mut options = options();
    options.snapshot_entries = 50;
    options.log_entries_kept = 5;
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let builder = RaftNode::builder(id)
            .log_store(MemoryLog::new())
            .transport(Short {
                end: network.transport(id),
                limit: Arc::clone(&limit),
            })
            .state_machine(Map::default())
            .options(options.clone())
            .bootstrap([1, 2, 3]);
        nodes.push(builder.start().await.expect("it starts"));
    }
    let leader = loop {
        let leads = |node: &&RaftHandle| node.status().is_leader();
        match nodes.iter().find(leads) {
            // A leader sends no entries to itself.
            Some(leader) if leader.id() == 3 => {
                let _ = leader.transfer_leader(1).await;
            }
            Some(leader) if leader.read_index().await.is_ok() => break leader.clone(),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let command =
        |number: usize, bytes: usize| Bytes::from(format!("k{} {}", number % 7, "x".repeat(bytes)));
    for round in 0..10 {
        let batch: Vec<Bytes> = (0..40)
            .map(|number| command(round + number, 1000))
            .collect();
        for outcome in leader.propose_batch(batch).await.expect("it is taken") {
            outcome.expect("a quorum takes it");
        }
    }
    let index = leader.status().applied_index;
    reaches(&nodes[2], index, "in short frames it gets everything").await;

    // Longer than a frame.
    leader
        .propose(command(0, 8000))
        .await
        .expect("a quorum takes it");
    let index = leader.status().applied_index;
    reaches(&nodes[2], index, "it gets the entry in parts").await;
    assert_eq!(leader.report().troubles, []);

    limit.store(400, Ordering::Relaxed);
    leader
        .propose(command(0, 8000))
        .await
        .expect("a quorum takes it");
    let is_named = |trouble: &perf_raft::Trouble| matches!(trouble, perf_raft::Trouble::FrameTooLong { peer: 3, bytes, limit: 400 } if *bytes > 8000);
    let reported = async {
        while !leader.report().troubles.iter().any(is_named) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reported)
        .await
        .expect("the report names the peer and both numbers");
    leader
        .propose(command(0, 10))
        .await
        .expect("the others go on");
    for node in &nodes {
        node.shutdown().await;
    }
}

/// A log whose disk hangs while it is told to.
struct Hanging {
    log: MemoryLog,
    hangs: Arc<AtomicBool>,
}

impl LogStore for Hanging {
    fn load(&mut self, group: perf_raft::GroupId) -> Result<Option<LogState>, perf_raft::LogError> {
        self.log.load(group)
    }

    fn save_snapshot(
        &mut self,
        group: perf_raft::GroupId,
        snapshot: &StoredSnapshot,
    ) -> Result<(), perf_raft::LogError> {
        self.log.save_snapshot(group, snapshot)
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), perf_raft::LogError> {
        while self.hangs.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.log.write(jobs, sync)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_is_answered_though_the_disks_of_a_quorum_hang() {
    let network = ChannelNetwork::new();
    let mut options = options();
    options.tick = Duration::from_millis(5);
    let hangs: Vec<_> = (0..3).map(|_| Arc::new(AtomicBool::new(false))).collect();
    let mut nodes = Vec::new();
    for id in 1..=3u64 {
        let builder = RaftNode::builder(id)
            .log_store(Hanging {
                log: MemoryLog::new(),
                hangs: Arc::clone(&hangs[id as usize - 1]),
            })
            .transport(network.transport(id))
            .state_machine(Map::default())
            .options(options.clone())
            .bootstrap([1, 2, 3]);
        nodes.push(builder.start().await.expect("it starts"));
    }
    let leader = loop {
        let leads = |node: &&RaftHandle| node.status().is_leader();
        if let Some(leader) = nodes.iter().find(leads)
            && leader.propose(Bytes::from_static(b"a 1")).await.is_ok()
        {
            break leader.clone();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    for (node, hangs) in nodes.iter().zip(&hangs) {
        hangs.store(node.id() != leader.id(), Ordering::Relaxed);
    }
    let proposal = leader.propose(Bytes::from_static(b"b 2"));
    let outcome = tokio::time::timeout(Duration::from_secs(60), proposal)
        .await
        .expect("it has an answer");
    assert_eq!(outcome, Err(ProposeError::Unknown));
    for hangs in &hangs {
        hangs.store(false, Ordering::Relaxed);
    }
    let goes_on = async {
        loop {
            for node in &nodes {
                if node.propose(Bytes::from_static(b"c 3")).await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), goes_on)
        .await
        .expect("the group goes on once the disks do");
    for node in &nodes {
        node.shutdown().await;
    }
}
