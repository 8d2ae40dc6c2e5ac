//! Nodes in one process, driven by the real runtime.

mod common;

use bytes::Bytes;
use common::{Cluster, Map, options};
use perf_raft::{
    ApplyMode, ChannelNetwork, DeliverError, LogError, LogStore, MembershipChange, MemoryLog,
    ProposeError, RaftNode, ReadError, Role, StartError, StopReason,
};
use std::time::Duration;

fn command(number: u64) -> Bytes {
    Bytes::from(format!("k{} {number}", number % 7))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_proposed_is_applied_everywhere_in_order() {
    for mode in [ApplyMode::Thread, ApplyMode::Inline] {
        let mut options = options();
        options.apply = mode;
        let cluster = Cluster::start(&[1, 2, 3], options).await;
        let leader = cluster.leader().await;
        for number in 0..50_u64 {
            let response = leader.propose(command(number)).await.expect("a leader");
            assert_eq!(response, Bytes::from(format!("{}", number + 1)));
        }
        let results = leader
            .propose_batch((0..500).map(command).collect())
            .await
            .expect("a leader");
        assert_eq!(results.len(), 500);
        for (place, result) in results.into_iter().enumerate() {
            assert_eq!(result, Ok(Bytes::from(format!("{}", place + 51))));
        }
        for handle in cluster.handles() {
            handle.read_index().await.expect("a leader is known");
            assert_eq!(cluster.applied(handle.id()), 550);
        }
        cluster.assert_equal();
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_share_batches() {
    let cluster = Cluster::start(&[1, 2, 3], options()).await;
    let leader = cluster.leader().await;
    let clients: Vec<_> = (0..200)
        .map(|client| {
            let leader = leader.clone();
            tokio::spawn(async move {
                for turn in 0..10 {
                    leader
                        .propose(command(client * 10 + turn))
                        .await
                        .expect("a leader");
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("no panic");
    }
    assert_eq!(cluster.applied(leader.id()), 2000);
    tokio::time::sleep(Duration::from_millis(30)).await;
    let stats = leader.stats();
    assert_eq!(stats.core.proposals, 2000);
    assert!(
        stats.core.proposal_batches < 1000,
        "{} batches",
        stats.core.proposal_batches
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_say_who_leads() {
    let cluster = Cluster::start(&[1, 2, 3], options()).await;
    let leader = cluster.leader().await;
    let follower = cluster
        .handles()
        .find(|handle| handle.id() != leader.id())
        .expect("there are three");
    follower.read_index().await.expect("it heard of the leader");
    match follower.propose(command(1)).await {
        Err(ProposeError::NotLeader { hint }) => assert_eq!(hint.id(), Some(leader.id())),
        other => panic!("{other:?}"),
    }
    assert_eq!(follower.lease_read().await, Err(ReadError::NoLease));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_are_said_at_once() {
    let mut options = options();
    options.proposal_bytes_max = 100;
    options.proposals_max = 4;
    let cluster = Cluster::start(&[1, 2, 3], options).await;
    let leader = cluster.leader().await;
    assert_eq!(leader.propose(Bytes::new()).await, Err(ProposeError::Empty));
    let too_large = leader.propose(Bytes::from(vec![1; 101])).await;
    assert_eq!(
        too_large,
        Err(ProposeError::TooLarge {
            bytes: 101,
            limit: 100
        })
    );
    let busy = leader.propose_batch((0..5).map(command).collect()).await;
    assert!(
        matches!(busy, Err(ProposeError::Busy { limit: 4, .. })),
        "{busy:?}"
    );
    leader.propose(command(1)).await.expect("one fits");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_and_leadership_moves() {
    let mut options = options();
    options.snapshot_entries = 20;
    options.log_entries_kept = 0;
    options.snapshot_chunk_bytes = 16;
    let mut cluster = Cluster::start(&[1, 2, 3], options.clone()).await;
    let leader = cluster.leader().await;
    for number in 0..100 {
        leader.propose(command(number)).await.expect("a leader");
    }
    let at = leader.snapshot().await.expect("it runs");
    assert!(at >= 100);
    // A node that knows nothing gets a snapshot, in many parts.
    cluster.add(4, &[], options.clone(), MemoryLog::new()).await;
    let state = leader
        .change_membership(vec![MembershipChange::AddLearner(4)])
        .await
        .expect("a leader");
    assert_eq!(state.learners, [4]);
    while cluster.applied(4) < 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(cluster.handle(4).status().role, Role::Learner);
    // Two changes at once, by joint consensus.
    let leaver = (1..=3)
        .find(|id| *id != leader.id())
        .expect("there are three");
    let changes = vec![
        MembershipChange::AddVoter(4),
        MembershipChange::Remove(leaver),
    ];
    let state = leader.change_membership(changes).await.expect("a leader");
    assert!(
        state.voters.contains(&4)
            && !state.voters.contains(&leaver)
            && state.voters_outgoing.is_empty()
    );
    // The new voter takes over.
    leader
        .transfer_leader(4)
        .await
        .expect("it is a voter and has all entries");
    assert!(cluster.handle(4).status().is_leader());
    cluster
        .handle(4)
        .propose(command(7))
        .await
        .expect("it leads");
    let refused = cluster
        .handle(4)
        .change_membership(vec![MembershipChange::Remove(4)])
        .await;
    assert!(
        matches!(refused, Err(ProposeError::Refused { .. })),
        "{refused:?}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_with_a_lease_reads_without_a_round() {
    let mut options = options();
    options.lease_reads = true;
    let cluster = Cluster::start(&[1, 2, 3], options).await;
    let leader = cluster.leader().await;
    leader.propose(command(1)).await.expect("a leader");
    // The lease is renewed with the heartbeats.
    let index = loop {
        match leader.lease_read().await {
            Ok(index) => break index,
            Err(ReadError::NoLease) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(index >= leader.status().commit_index.min(2));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyone_who_waits_gets_an_answer_when_the_quorum_is_gone() {
    let cluster = Cluster::start(&[1, 2, 3], options()).await;
    let leader = cluster.leader().await;
    for handle in cluster
        .handles()
        .filter(|handle| handle.id() != leader.id())
    {
        handle.shutdown().await;
    }
    let waiting: Vec<_> = (0..20)
        .map(|number| {
            let leader = leader.clone();
            tokio::spawn(async move { leader.propose(command(number)).await })
        })
        .collect();
    let read = tokio::spawn({
        let leader = leader.clone();
        async move { leader.read_index().await }
    });
    for waits in waiting {
        let result = waits.await.expect("no panic");
        assert!(
            matches!(
                result,
                Err(ProposeError::Unknown | ProposeError::NotLeader { .. })
            ),
            "{result:?}"
        );
    }
    assert!(read.await.expect("no panic").is_err());
    assert!(!leader.status().is_leader());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_node_says_so() {
    let cluster = Cluster::start(&[1], options()).await;
    let leader = cluster.leader().await;
    let waiting: Vec<_> = (0..100)
        .map(|number| {
            let leader = leader.clone();
            tokio::spawn(async move { leader.propose(command(number)).await })
        })
        .collect();
    leader.shutdown().await;
    for waits in waiting {
        match waits.await.expect("no panic") {
            Ok(_) | Err(ProposeError::Stopped(StopReason::Shutdown) | ProposeError::Unknown) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        leader.propose(command(1)).await,
        Err(ProposeError::Stopped(StopReason::Shutdown))
    );
    assert_eq!(
        leader.read_index().await,
        Err(ReadError::Stopped(StopReason::Shutdown))
    );
    assert!(leader.deliver(Bytes::from_static(&[10])).is_err());
    assert_eq!(leader.stopped().await, StopReason::Shutdown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_again_from_its_log() {
    let log = MemoryLog::restartable();
    let mut options = options();
    options.snapshot_entries = 30;
    options.log_entries_kept = 5;
    for round in 0..3_u64 {
        let mut cluster = Cluster::start(&[], options.clone()).await;
        cluster.add(1, &[1], options.clone(), log.clone()).await;
        let leader = cluster.leader().await;
        assert_eq!(cluster.applied(1), round * 50);
        for number in 0..50 {
            leader.propose(command(number)).await.expect("a leader");
        }
        cluster.stop().await;
    }
}

/// A log whose disk fails at the fifth write.
struct Failing(u32);

impl LogStore for Failing {
    fn load(
        &mut self,
        _: perf_raft::GroupId,
    ) -> Result<Option<perf_raft::log::LogState>, LogError> {
        Ok(None)
    }

    fn save_snapshot(
        &mut self,
        _: perf_raft::GroupId,
        _: &perf_raft::log::StoredSnapshot,
    ) -> Result<(), LogError> {
        Ok(())
    }

    fn write(&mut self, _: &[perf_raft::log::LogJob], sync: bool) -> Result<(), LogError> {
        assert!(sync && self.0 <= 5, "a failed log was written to again");
        self.0 += 1;
        if self.0 > 5 {
            return Err(LogError::Sync {
                file: "log".into(),
                reason: "simulated".to_owned(),
            });
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_fsync_stops_the_node_and_is_never_acknowledged() {
    let mut cluster = Cluster::start(&[], options()).await;
    cluster.add(1, &[1], options(), Failing(0)).await;
    let leader = cluster.leader().await;
    let mut acknowledged = 0;
    let error = loop {
        match leader.propose(command(acknowledged)).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(acknowledged <= 4, "{acknowledged} acknowledged");
    assert!(
        matches!(error, ProposeError::Unknown | ProposeError::Stopped(_)),
        "{error:?}"
    );
    match leader.stopped().await {
        StopReason::Log(error) => assert!(matches!(*error, LogError::Sync { .. })),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_state_machine_costs_no_leader_its_office() {
    let mut options = options();
    options.unapplied_entries_max = 50;
    let mut cluster = Cluster::start(&[], options.clone()).await;
    for id in 1..=3 {
        let map = Map {
            delay: Duration::from_millis(300),
            ..Map::default()
        };
        let handle = RaftNode::builder(id)
            .group(perf_raft::GroupId(5))
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
    let term = leader.status().term;
    let mut busy = 0;
    for round in 0..40 {
        let batch: Vec<_> = (0..10).map(|number| command(round * 10 + number)).collect();
        let leader = leader.clone();
        let proposed = tokio::time::timeout(Duration::from_millis(20), async move {
            leader.propose_batch(batch).await
        });
        if let Ok(Ok(results)) = proposed.await {
            busy += results
                .iter()
                .filter(|result| matches!(result, Err(ProposeError::Busy { .. })))
                .count();
        }
    }
    assert!(busy > 0, "no bound was met");
    assert_eq!(leader.status().term, term);
    assert!(leader.status().is_leader());
    cluster.stop().await;
}

#[tokio::test]
async fn a_builder_says_what_is_missing() {
    let built = RaftNode::builder(1)
        .log_store(MemoryLog::new())
        .state_machine(Map::default())
        .start()
        .await;
    assert!(matches!(
        built,
        Err(StartError::Missing { what: "transport" })
    ));
    let network = ChannelNetwork::new();
    let zero = RaftNode::builder(0)
        .log_store(MemoryLog::new())
        .state_machine(Map::default())
        .transport(network.transport(0))
        .start()
        .await;
    assert!(matches!(
        zero,
        Err(StartError::Options { option: "id", .. })
    ));
}

#[tokio::test]
async fn frames_for_others_are_refused() {
    let cluster = Cluster::start(&[1], options()).await;
    let header = perf_raft::codec::FrameHeader {
        to: 2,
        from: 3,
        group: perf_raft::GroupId(5),
        ..Default::default()
    };
    let ack = perf_raft::codec::ChunkAck {
        transfer: 1,
        received: 1,
        refused: false,
    };
    let frame = perf_raft::codec::Frame {
        header,
        body: perf_raft::codec::Body::Ack(ack),
    };
    let bytes = frame.encode_pooled().expect("small");
    let delivered = cluster.handle(1).deliver(bytes);
    assert_eq!(
        delivered,
        Err(DeliverError::Misdirected { to: 2, group: 5 })
    );
    assert!(matches!(
        cluster.handle(1).deliver(Bytes::from_static(b"nonsense")),
        Err(DeliverError::Malformed(_))
    ));
    cluster.stop().await;
}
