//! Many groups in one process: made, closed, removed and opened again, each on its own.

mod common;

use bytes::Bytes;
use common::{Map, options};
use perf_raft::log::LogStore;
use perf_raft::{
    ApplyMode, ChannelNetwork, Command, GroupId, HostError, MemoryLog, ProposeError, RaftHandle,
    RaftHost, RaftNode, StartError, StateMachine, StateMachineError, StopReason,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);

async fn host(id: u64, network: &ChannelNetwork, log: impl LogStore) -> RaftHost {
    RaftHost::builder(id)
        .log_store(log)
        .transport(network.transport(id))
        .options(options())
        .drivers(2)
        .apply_threads(2)
        .start()
        .await
        .expect("it starts")
}

/// Proposes to whichever node leads.
async fn propose(nodes: &[RaftHandle], command: &str) -> Bytes {
    loop {
        for node in nodes {
            match node
                .propose(Bytes::copy_from_slice(command.as_bytes()))
                .await
            {
                Ok(response) => return response,
                Err(
                    ProposeError::NotLeader { .. }
                    | ProposeError::NotFormed { .. }
                    | ProposeError::ProposalDropped,
                ) => {}
                Err(other) => panic!("{other}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn create(hosts: &[RaftHost], group: u64) -> (Vec<RaftHandle>, Vec<Map>) {
    let maps: Vec<Map> = hosts.iter().map(|_| Map::default()).collect();
    let mut nodes = Vec::new();
    for (host, map) in hosts.iter().zip(&maps) {
        let made = host.create_group(GroupId(group), map.clone(), [1, 2, 3]);
        nodes.push(made.await.expect("a new group"));
    }
    (nodes, maps)
}

fn count(map: &Map) -> u64 {
    map.state.lock().expect("no panic under it").0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_on_three_hosts_do_not_see_each_other() {
    let network = ChannelNetwork::new();
    let mut hosts = Vec::new();
    for id in 1..=3 {
        hosts.push(host(id, &network, MemoryLog::new()).await);
    }
    let mut groups = Vec::new();
    for group in 1..=20 {
        groups.push(create(&hosts, group).await);
    }
    // Each group gets as many commands as its number says, all groups at once.
    let writers: Vec<_> = (1_u64..)
        .zip(&groups)
        .map(|(number, (nodes, _))| {
            let nodes = nodes.clone();
            tokio::spawn(async move {
                for command in 0..number {
                    propose(&nodes, &format!("k{command} of {number}")).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("no panic");
    }
    for (number, (nodes, maps)) in (1_u64..).zip(&groups) {
        for (node, map) in nodes.iter().zip(maps) {
            let shown = tokio::time::timeout(WAIT, node.read_index());
            shown.await.expect("in time").expect("a leader");
            assert_eq!(count(map), number, "group {number}, node {}", node.id());
            assert_eq!(node.group(), GroupId(number));
        }
    }
    let ids: Vec<GroupId> = (1..=20).map(GroupId).collect();
    assert_eq!(hosts[0].groups(), ids);
    for host in &hosts {
        host.shutdown().await;
    }
    let late = hosts[0].create_group(GroupId(21), Map::default(), [1]);
    assert!(matches!(late.await, Err(StartError::HostStopped)));
    let stopped = groups[3].0[0].propose(Bytes::from_static(b"late")).await;
    assert_eq!(stopped, Err(ProposeError::Stopped(StopReason::Shutdown)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_and_nodes_of_one_group_are_members_alike() {
    let network = ChannelNetwork::new();
    let first = host(1, &network, MemoryLog::new()).await;
    let mut nodes = vec![
        first
            .create_group(GroupId(7), Map::default(), [1, 2, 3])
            .await
            .expect("a new group"),
    ];
    for id in [2, 3] {
        let node = RaftNode::builder(id)
            .group(GroupId(7))
            .log_store(MemoryLog::new())
            .transport(network.transport(id))
            .state_machine(Map::default())
            .options(options())
            .bootstrap([1, 2, 3])
            .start();
        nodes.push(node.await.expect("it starts"));
    }
    for number in 1..=50_u64 {
        assert_eq!(propose(&nodes, "k v").await, number.to_string());
    }
    first.shutdown().await;
    assert_eq!(propose(&nodes[1..], "k v").await, "51");
    for node in &nodes[1..] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_opened_once_and_again_after_it_was_closed() {
    let network = ChannelNetwork::new();
    let log = MemoryLog::restartable();
    let host = host(1, &network, log.clone()).await;
    let group = GroupId(3);
    let map = Map::default();
    let node = host.create_group(group, map, [1]).await.expect("a group");
    assert_eq!(propose(std::slice::from_ref(&node), "a 1").await, "1");
    let twice = host.create_group(group, Map::default(), [1]).await;
    assert!(matches!(twice, Err(StartError::GroupRuns { group: 3 })));

    host.close_group(group).await.expect("nobody else does");
    assert_eq!(node.stopped().await, StopReason::Shutdown);
    assert!(host.group(group).is_none() && host.groups().is_empty());
    assert_eq!(host.stored_groups().await, Ok(vec![group]));
    // What it held is there again, and voters of a group that is there do not count.
    let map = Map::default();
    let node = host
        .create_group(group, map, [8, 9])
        .await
        .expect("it is stored");
    assert_eq!(propose(std::slice::from_ref(&node), "b 2").await, "2");

    host.remove_group(group).await.expect("the log is sound");
    assert_eq!(host.stored_groups().await, Ok(Vec::new()));
    let node = host
        .create_group(group, Map::default(), [1])
        .await
        .expect("a new one");
    assert_eq!(propose(std::slice::from_ref(&node), "c 3").await, "1");
    // Without effect on what is not there.
    host.close_group(GroupId(99))
        .await
        .expect("nobody else does");
    host.remove_group(GroupId(99))
        .await
        .expect("the log is sound");
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_is_being_opened_is_nobody_elses() {
    let host = host(1, &ChannelNetwork::new(), MemoryLog::new()).await;
    let group = GroupId(1);
    let slow = Slow::default();
    let opening = host.create_group(group, slow.clone(), [1]);
    let meanwhile = async {
        while !*slow.is_asked.lock().expect("no panic under it") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let twice = host.open_group(group, Map::default()).await;
        assert!(matches!(twice, Err(StartError::GroupRuns { group: 1 })));
        let closed = host.close_group(group).await;
        assert_eq!(closed, Err(HostError::GroupChanges { group: 1 }));
        let removed = host.remove_group(group).await;
        assert_eq!(removed, Err(HostError::GroupChanges { group: 1 }));
        // The others' lives go on while it is asked for its empty state.
        let other = host.create_group(GroupId(2), Map::default(), [1]).await;
        let other = other.expect("another group");
        assert_eq!(propose(std::slice::from_ref(&other), "a 1").await, "1");
        drop(slow.may_answer.lock().expect("no panic under it").take());
    };
    let (opened, ()) = tokio::join!(opening, meanwhile);
    opened.expect("it was only slow");
    host.shutdown().await;
}

/// Takes its time with the empty state.
#[derive(Clone)]
struct Slow {
    is_asked: Arc<Mutex<bool>>,
    may_answer: Arc<Mutex<Option<std::sync::mpsc::Sender<()>>>>,
    answer: Arc<Mutex<std::sync::mpsc::Receiver<()>>>,
}

impl Default for Slow {
    fn default() -> Self {
        let (may_answer, answer) = std::sync::mpsc::channel();
        Self {
            is_asked: Arc::default(),
            may_answer: Arc::new(Mutex::new(Some(may_answer))),
            answer: Arc::new(Mutex::new(answer)),
        }
    }
}

impl StateMachine for Slow {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        responses.extend(batch.iter().map(|command| command.data.clone()));
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        *self.is_asked.lock().expect("no panic under it") = true;
        // Until the sender is gone.
        let _ = self.answer.lock().expect("no panic under it").recv();
        Ok(Bytes::new())
    }

    fn restore(&mut self, _: Bytes) -> Result<(), StateMachineError> {
        Ok(())
    }
}

/// A caller gives up while a group stops: nobody opens it beside its former self.
/// Stands still in its first batch until it is released.
struct Stands {
    enter: Option<tokio::sync::oneshot::Sender<()>>,
    released: std::sync::mpsc::Receiver<()>,
}

impl StateMachine for Stands {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        responses.extend(batch.iter().map(|_| Bytes::new()));
        if let Some(enter) = self.enter.take_if(|_| !batch.is_empty()) {
            let _ = enter.send(());
            // An error says that it may go on.
            let _ = self.released.recv();
        }
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        Ok(Bytes::new())
    }

    fn restore(&mut self, _: Bytes) -> Result<(), StateMachineError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_still_stops_is_not_opened_a_second_time() {
    let host = host(1, &ChannelNetwork::new(), MemoryLog::restartable()).await;
    let group = GroupId(1);
    let (enter, entered) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let stands = Stands {
        enter: Some(enter),
        released,
    };
    let node = host.create_group(group, stands, [1]).await;
    let node = node.expect("a group");
    node.wait_for_leader(WAIT).await.expect("it leads");
    let its = node.clone();
    let proposed = tokio::spawn(async move { its.propose(Bytes::from_static(b"b 2")).await });
    entered.await.expect("the state machine stands still");
    let given_up = tokio::time::timeout(Duration::from_millis(20), host.close_group(group)).await;
    assert!(given_up.is_err(), "it cannot have stopped");
    let twice = host.create_group(group, Map::default(), [1]).await;
    assert!(
        matches!(twice, Err(StartError::GroupRuns { .. })),
        "{twice:?}"
    );
    drop(release);
    node.stopped().await;
    let _ = proposed.await;
    let goes_on = Stands {
        enter: None,
        released: std::sync::mpsc::channel().1,
    };
    let again = host.create_group(group, goes_on, [1]).await;
    let again = again.expect("it has stopped");
    propose(std::slice::from_ref(&again), "c 3").await;
    host.shutdown().await;
}

/// Proposals that are held back for more make turns that go on; ticks come meanwhile. The task's list grows by neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_gives_a_group_one_place_in_a_pass() {
    let mut options = options();
    options.tick = Duration::from_millis(1);
    options.apply = ApplyMode::Inline;
    let host = RaftHost::builder(1)
        .log_store(MemoryLog::new())
        .transport(ChannelNetwork::new().transport(1))
        .options(options)
        .drivers(1)
        .start()
        .await
        .expect("it starts");
    let node = host
        .create_group(GroupId(1), Map::default(), [1])
        .await
        .expect("a group");
    propose(std::slice::from_ref(&node), "k v").await;
    let flood: Vec<_> = (0..64)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move {
                for _ in 0..500 {
                    propose(std::slice::from_ref(&node), "k v").await;
                }
            })
        })
        .collect();
    for client in flood {
        client.await.expect("the group goes on");
    }
    host.shutdown().await;
}

/// Panics at the command `panic`.
struct Fragile;

impl StateMachine for Fragile {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        for command in batch {
            assert_ne!(command.data, "panic");
            responses.push(command.data.clone());
        }
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        Ok(Bytes::new())
    }

    fn restore(&mut self, _: Bytes) -> Result<(), StateMachineError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_state_machine_fails_stops_alone() {
    for apply in [ApplyMode::Thread, ApplyMode::Inline] {
        let mut options = options();
        options.apply = apply;
        let host = RaftHost::builder(1)
            .log_store(MemoryLog::restartable())
            .transport(ChannelNetwork::new().transport(1))
            .options(options)
            .drivers(1)
            .apply_threads(1)
            .start()
            .await
            .expect("it starts");
        let mut nodes = BTreeMap::new();
        for group in 1..=3 {
            let made = host.create_group(GroupId(group), Fragile, [1]).await;
            nodes.insert(group, made.expect("a group"));
        }
        for node in nodes.values() {
            assert_eq!(propose(std::slice::from_ref(node), "a").await, "a");
        }
        let failed = nodes[&2].propose(Bytes::from_static(b"panic")).await;
        assert!(failed.is_err(), "{failed:?}");
        let reason = nodes[&2].stopped().await;
        assert!(matches!(reason, StopReason::StateMachine(_)), "{reason:?}");
        for group in [1, 3] {
            let node = std::slice::from_ref(&nodes[&group]);
            assert_eq!(propose(node, "b").await, "b");
        }
        // It may be opened again in its own place, and fails again: the command is in its log.
        let again = host
            .open_group(GroupId(2), Fragile)
            .await
            .expect("its log is sound");
        let reason = again.stopped().await;
        assert!(matches!(reason, StopReason::StateMachine(_)), "{reason:?}");
        host.shutdown().await;
    }
}

#[tokio::test]
async fn a_host_that_cannot_be_is_refused_with_what_is_allowed() {
    let network = ChannelNetwork::new();
    let sound = || {
        RaftHost::builder(1)
            .log_store(MemoryLog::new())
            .transport(network.transport(1))
    };
    let refused = [
        (
            sound().drivers(0),
            "option `drivers`: is 0, allowed are 1 to 1024",
        ),
        (
            sound().apply_threads(1025),
            "option `apply_threads`: is 1025, allowed are 1 to 1024",
        ),
        (
            sound().address("x".repeat(261)),
            "option `address`: it has 261 bytes",
        ),
        (RaftHost::builder(1), "the builder has no log_store"),
        (
            RaftHost::builder(0).log_store(MemoryLog::new()),
            "option `id`: 0 stands for no node",
        ),
    ];
    for (builder, reason) in refused {
        let error = builder.start().await.expect_err("it is not sound");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[cfg(feature = "durable")]
mod durable {
    use super::*;
    use perf_raft::{LogError, SegmentLog, SegmentLogOptions};
    use tempfile::TempDir;

    fn log(folder: &TempDir) -> SegmentLog {
        let mut options = SegmentLogOptions::default();
        options.segment_bytes = 256 * 1024;
        SegmentLog::open_with(folder.path(), &options).expect("a sound log")
    }

    /// Threads of this process by the beginning of their names.
    #[cfg(target_os = "linux")]
    fn threads(of: &str) -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").expect("its own threads");
        let names = tasks.filter_map(|task| {
            let path = task.ok()?.path().join("comm");
            std::fs::read_to_string(path).ok()
        });
        names.filter(|name| name.starts_with(of)).count()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hundred_groups_share_a_log_and_come_back_from_it() {
        let folder = TempDir::new().expect("a temporary folder");
        let network = ChannelNetwork::new();
        for round in 1..=3_u64 {
            // Node 77: no other test has threads of that name.
            let host = host(77, &network, log(&folder)).await;
            let stored = host.stored_groups().await.expect("it can be read");
            assert_eq!(stored.len(), if round == 1 { 0 } else { 100 });
            let mut nodes = Vec::new();
            for group in 1..=100 {
                let made = host.create_group(GroupId(group), Map::default(), [77]);
                nodes.push(made.await.expect("a group"));
            }
            for node in &nodes {
                let node = std::slice::from_ref(node);
                assert_eq!(propose(node, "k v").await, round.to_string());
            }
            #[cfg(target_os = "linux")]
            {
                assert_eq!(threads("raft-log-77"), 1);
                assert_eq!(threads("raft-apply-77"), 2);
            }
            // The folder is free again at once.
            host.shutdown().await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_removed_group_stays_away_and_leaves_no_file() {
        let folder = TempDir::new().expect("a temporary folder");
        let network = ChannelNetwork::new();
        let snapshots = || {
            let files = std::fs::read_dir(folder.path()).expect("the folder");
            let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
            names.filter(|name| name.contains("snapshot")).count()
        };
        let host1 = host(1, &network, log(&folder)).await;
        for group in 1..=2 {
            let made = host1.create_group(GroupId(group), Map::default(), [1]);
            let node = [made.await.expect("a group")];
            for number in 0..50 {
                propose(&node, &format!("k{number} v")).await;
            }
            node[0].snapshot().await.expect("it leads");
        }
        let before = snapshots();
        host1.remove_group(GroupId(1)).await.expect("a sound log");
        // Files go with the next write that is durable.
        let node = [host1.group(GroupId(2)).expect("it is open")];
        propose(&node, "more v").await;
        assert_eq!(snapshots(), before - 1);
        host1.shutdown().await;

        let host1 = host(1, &network, log(&folder)).await;
        assert_eq!(host1.stored_groups().await, Ok(vec![GroupId(2)]));
        let node = [host1
            .open_group(GroupId(2), Map::default())
            .await
            .expect("it is stored")];
        assert_eq!(propose(&node, "last v").await, "52");
        // A group under a removed one's name has no past.
        let anew = host1.create_group(GroupId(1), Map::default(), [1]).await;
        assert_eq!(propose(&[anew.expect("a new group")], "k v").await, "1");
        host1.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_error_of_the_store_stops_all_groups_that_write() {
        let fails = Arc::new(Mutex::new(false));
        let store = Failing {
            log: MemoryLog::restartable(),
            fails: Arc::clone(&fails),
        };
        let host = host(1, &ChannelNetwork::new(), store).await;
        let mut nodes = Vec::new();
        for group in 1..=3 {
            let made = host.create_group(GroupId(group), Map::default(), [1]);
            nodes.push([made.await.expect("a group")]);
        }
        for node in &nodes {
            propose(node, "a 1").await;
        }
        *fails.lock().expect("no panic under it") = true;
        for node in &nodes {
            let failed = node[0].propose(Bytes::from_static(b"b 2")).await;
            assert!(failed.is_err(), "{failed:?}");
            let reason = tokio::time::timeout(WAIT, node[0].stopped()).await;
            assert!(matches!(reason, Ok(StopReason::Log(_))), "{reason:?}");
        }
        let late = host.create_group(GroupId(4), Map::default(), [1]).await;
        assert!(matches!(late, Err(StartError::Log(_))), "{late:?}");
        assert!(matches!(
            host.remove_group(GroupId(1)).await,
            Err(HostError::Log(_))
        ));
        host.shutdown().await;
    }

    struct Failing {
        log: MemoryLog,
        fails: Arc<Mutex<bool>>,
    }

    impl LogStore for Failing {
        fn load(&mut self, group: GroupId) -> Result<Option<perf_raft::log::LogState>, LogError> {
            self.log.load(group)
        }

        fn save_snapshot(
            &mut self,
            group: GroupId,
            snapshot: &perf_raft::log::StoredSnapshot,
        ) -> Result<(), LogError> {
            self.log.save_snapshot(group, snapshot)
        }

        fn write(&mut self, jobs: &[perf_raft::log::LogJob], sync: bool) -> Result<(), LogError> {
            if *self.fails.lock().expect("no panic under it") {
                return Err(LogError::Unsupported {
                    reason: "on purpose".to_owned(),
                });
            }
            self.log.write(jobs, sync)
        }
    }
}
