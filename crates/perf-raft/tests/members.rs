//! Which nodes the ids of a group stand for: lost disks, other groups' nodes, members that do not exist.
#![cfg(all(feature = "durable", not(perf_loom)))]

mod common;
mod refused_change;

use bytes::Bytes;
use common::{Cluster, Map, options};
use perf_raft::{
    ChannelNetwork, GroupId, LogError, LogStore, Member, MemberRole, MembershipChange, MemoryLog,
    OnDamage, ProposeError, RaftHandle, RaftNode, ReadError, SegmentLog, SegmentLogOptions,
    StartError, Trouble,
};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

async fn start(
    id: u64,
    network: &ChannelNetwork,
    log: impl LogStore,
    voters: &[u64],
) -> Result<(RaftHandle, Map), StartError> {
    let map = Map::default();
    let node = RaftNode::builder(id)
        .log_store(log)
        .transport(network.transport(id))
        .state_machine(map.clone())
        .options(options())
        .bootstrap(voters.iter().copied())
        .start()
        .await?;
    Ok((node, map))
}

fn folder(root: &Path, id: u64) -> SegmentLog {
    SegmentLog::open(root.join(id.to_string())).expect("a sound log")
}

async fn leader<'a>(nodes: &[&'a RaftHandle]) -> &'a RaftHandle {
    for _ in 0..1000 {
        if let Some(leader) = nodes.iter().find(|node| node.status().is_leader()) {
            return leader;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!(
        "no leader: {:?}",
        nodes.iter().map(|node| node.status()).collect::<Vec<_>>()
    );
}

fn has(map: &Map, key: &str) -> bool {
    map.state
        .lock()
        .expect("no panic under it")
        .1
        .contains_key(key)
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never happened: {what}");
}

fn voters(members: &[Member]) -> Vec<u64> {
    let voters = members
        .iter()
        .filter(|member| member.role == MemberRole::Voter);
    voters.map(|member| member.id).collect()
}

/// Node 2 sleeps while a write is acknowledged by 1 and 3; then the disk of 3 is lost, and 1 goes.
/// The log is full when it is asked for, and nobody writes afterwards.
#[test]
fn a_change_that_the_log_had_no_room_for_is_made_later() {
    assert_eq!(refused_change::is_made_later(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_disk_elects_nobody_and_joins_again_by_itself() {
    for keeps_bootstrap in [true, false] {
        let root = TempDir::new().expect("a temporary folder");
        let (root, network) = (root.path(), ChannelNetwork::new());
        let all = [1, 2, 3];
        let (one, _) = start(1, &network, folder(root, 1), &all)
            .await
            .expect("it starts");
        let (two, _) = start(2, &network, folder(root, 2), &all)
            .await
            .expect("it starts");
        let (three, _) = start(3, &network, folder(root, 3), &all)
            .await
            .expect("it starts");
        let first = leader(&[&one, &two, &three]).await;
        first
            .propose(Bytes::from_static(b"first 1"))
            .await
            .expect("formed");
        two.shutdown().await;
        let second = leader(&[&one, &three]).await;
        second
            .propose(Bytes::from_static(b"precious 1"))
            .await
            .expect("a quorum");
        three.shutdown().await;
        one.shutdown().await;
        std::fs::remove_dir_all(root.join("3")).expect("it is there");

        let list: &[u64] = if keeps_bootstrap { &all } else { &[] };
        let (two, _) = start(2, &network, folder(root, 2), &all)
            .await
            .expect("it starts");
        let (three, map) = start(3, &network, folder(root, 3), list)
            .await
            .expect("it starts");
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(!two.status().is_leader() && !three.status().is_leader());
        let (one, _) = start(1, &network, folder(root, 1), &all)
            .await
            .expect("it starts");
        until("the write is on the new disk", || has(&map, "precious")).await;
        until("it votes again", || voters(&one.membership()) == all).await;
        // And it counts: without node 2 the group goes on.
        two.shutdown().await;
        let last = leader(&[&one, &three]).await;
        last.propose(Bytes::from_static(b"last 1"))
            .await
            .expect("1 and 3 are a quorum");
        until("it is applied there", || has(&map, "last")).await;
        one.shutdown().await;
        three.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_other_lists_of_first_voters_never_both_acknowledge() {
    let network = ChannelNetwork::new();
    let (one, _) = start(1, &network, MemoryLog::new(), &[1])
        .await
        .expect("it starts");
    let (two, _) = start(2, &network, MemoryLog::new(), &[1, 2, 3])
        .await
        .expect("it starts");
    let (three, _) = start(3, &network, MemoryLog::new(), &[1, 2, 3])
        .await
        .expect("it starts");
    leader(&[&one])
        .await
        .propose(Bytes::from_static(b"a 1"))
        .await
        .expect("a group of one");
    let other = leader(&[&two, &three]).await;
    let refused = other.propose(Bytes::from_static(b"b 1")).await;
    assert_eq!(refused, Err(ProposeError::NotFormed { missing: vec![1] }));
    // They would miss what node 1 has acknowledged.
    for node in [&two, &three] {
        assert_eq!(node.read_index().await, Err(ReadError::TimedOut));
        assert_eq!(node.lease_read().await, Err(ReadError::NoLease));
    }
    let names_both = |trouble: &Trouble| {
        let text = trouble.to_string();
        text.contains("[1]") && text.contains("[1, 2, 3]")
    };
    until("both lists are named", || {
        let reports = [one.report(), two.report(), three.report()];
        reports
            .iter()
            .flat_map(|report| &report.troubles)
            .any(names_both)
    })
    .await;
    for node in [one, two, three] {
        node.shutdown().await;
    }
}

/// Two of three that were never formed, and whose third never comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_voter_that_never_comes_is_named_and_can_be_removed_by_force() {
    let network = ChannelNetwork::new();
    let (one, _) = start(1, &network, MemoryLog::new(), &[1, 2, 3])
        .await
        .expect("it starts");
    let (two, _) = start(2, &network, MemoryLog::new(), &[1, 2, 3])
        .await
        .expect("it starts");
    let first = leader(&[&one, &two]).await;
    let refused = first.propose(Bytes::from_static(b"a 1")).await;
    assert_eq!(refused, Err(ProposeError::NotFormed { missing: vec![3] }));
    let remove = vec![MembershipChange::Remove(3)];
    let refused = first.change_membership(remove.clone()).await;
    assert!(
        matches!(refused, Err(ProposeError::NotFormed { .. })),
        "{refused:?}"
    );
    let forced = first.force_change_membership(remove).await.expect("forced");
    assert_eq!(forced.voters.len(), 2);
    first
        .propose(Bytes::from_static(b"a 1"))
        .await
        .expect("formed of those that are there");
    one.shutdown().await;
    two.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_do_not_exist_never_take_the_quorum() {
    let mut cluster = Cluster::start(&[1, 2, 3], options()).await;
    let first = cluster.leader().await;
    for absent in 4..=6 {
        let added = first
            .change_membership(vec![MembershipChange::AddVoter(absent)])
            .await;
        let expected = ProposeError::NotCaughtUp {
            nodes: vec![absent],
            is_promoted_later: true,
        };
        assert_eq!(added, Err(expected));
    }
    let follower = (1..=3)
        .find(|id| *id != first.id())
        .expect("there are three");
    cluster.handle(follower).shutdown().await;
    cluster.nodes.remove(&follower);
    first
        .propose(Bytes::from_static(b"a 1"))
        .await
        .expect("two of three are a quorum");
    until("the silence of the follower shows", || {
        let peers = first.report().peers;
        peers
            .iter()
            .any(|peer| peer.id == follower && !peer.is_live)
    })
    .await;
    // What would leave no quorum is refused, and says why; what is dead can go.
    let other = (1..=3)
        .find(|id| ![first.id(), follower].contains(id))
        .expect("there are three");
    let refused = first
        .change_membership(vec![MembershipChange::Remove(other)])
        .await;
    let text = refused.expect_err("no quorum").to_string();
    assert!(text.contains(&format!("[{follower}]")), "{text}");
    for absent in [4, 5, 6, follower] {
        first
            .change_membership(vec![MembershipChange::Remove(absent)])
            .await
            .expect("it goes");
    }
    until("two are left", || first.membership().len() == 2).await;
    // And one that comes late becomes a voter by itself.
    let late = first
        .change_membership(vec![MembershipChange::AddVoter(7)])
        .await;
    assert!(
        matches!(late, Err(ProposeError::NotCaughtUp { .. })),
        "{late:?}"
    );
    cluster.add(7, &[], options(), MemoryLog::new()).await;
    until("it votes", || voters(&first.membership()).contains(&7)).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_log_is_that_of_one_node_of_one_group() {
    let root = TempDir::new().expect("a temporary folder");
    let network = ChannelNetwork::new();
    let (node, _) = start(1, &network, folder(root.path(), 1), &[1])
        .await
        .expect("it starts");
    node.shutdown().await;
    let other = start(2, &network, folder(root.path(), 1), &[1, 2]).await;
    let Err(error @ StartError::WrongLog { .. }) = other.map(|_| ()) else {
        panic!("node 2 took node 1's log");
    };
    assert!(
        error.to_string().contains("node 1") && error.to_string().contains("node 2"),
        "{error}"
    );
    let other_group = RaftNode::builder(1)
        .group(GroupId(2))
        .log_store(folder(root.path(), 1))
        .transport(network.transport(1))
        .state_machine(Map::default())
        .bootstrap([1])
        .start()
        .await;
    assert!(matches!(other_group, Err(StartError::WrongLog { .. })));
    let outsider = start(4, &network, folder(root.path(), 4), &[1, 2, 3]).await;
    assert!(matches!(
        outsider,
        Err(StartError::Options {
            option: "bootstrap",
            ..
        })
    ));
    let (node, _) = start(1, &network, folder(root.path(), 1), &[1])
        .await
        .expect("its own");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_learns_that_it_was() {
    let cluster = Cluster::start(&[1, 2, 3], options()).await;
    let first = cluster.leader().await;
    let removed = (1..=3)
        .find(|id| *id != first.id())
        .expect("there are three");
    first
        .change_membership(vec![MembershipChange::Remove(removed)])
        .await
        .expect("it goes");
    until("it says so", || {
        let report = cluster.handle(removed).report();
        report.troubles.contains(&Trouble::Removed)
            || report.members.iter().all(|member| member.id != removed)
    })
    .await;
    assert_eq!(
        first.wait_for_leader(Duration::from_secs(1)).await,
        Some(first.id())
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_learn_where_the_others_are_and_that_one_has_moved() {
    let root = TempDir::new().expect("a folder");
    let network = ChannelNetwork::new();
    let start_at = async |id: u64, address: &str| {
        RaftNode::builder(id)
            .log_store(folder(root.path(), id))
            .transport(network.transport(id))
            .state_machine(Map::default())
            .options(options())
            .bootstrap([1, 2, 3])
            .address(address)
            .start()
            .await
    };
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let address = format!("node-{id}:7000");
        nodes.push(start_at(id, &address).await.expect("it starts"));
    }
    let addresses = |node: &RaftHandle| {
        let members = node.membership().into_iter();
        members
            .map(|member| member.address.unwrap_or_default())
            .collect::<Vec<_>>()
    };
    let all_see = |nodes: &[RaftHandle], expected: [&str; 3]| {
        nodes.iter().all(|node| addresses(node) == expected)
    };
    let first = ["node-1:7000", "node-2:7000", "node-3:7000"];
    until("all addresses are known", || all_see(&nodes, first)).await;

    nodes[2].shutdown().await;
    nodes[2] = start_at(3, "elsewhere:7000").await.expect("it starts");
    let second = ["node-1:7000", "node-2:7000", "elsewhere:7000"];
    until("the new one is known", || all_see(&nodes, second)).await;

    for node in &nodes {
        node.shutdown().await;
    }
    let too_long = start_at(1, &"x".repeat(261)).await;
    assert!(matches!(
        too_long,
        Err(StartError::Options { option: "address", reason }) if reason.contains("261") && reason.contains("260")
    ));
}

/// Flips a byte of the log's first record.
fn damage(folder: &Path) {
    let segments = std::fs::read_dir(folder).expect("the log's folder");
    let segment = segments
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|name| name == "segment"))
        .expect("there is one");
    let mut bytes = std::fs::read(&segment).expect("a file");
    bytes[512 + 40] ^= 1;
    std::fs::write(&segment, bytes).expect("a file");
}

fn rejoining(folder: &Path) -> Result<SegmentLog, LogError> {
    let mut options = SegmentLogOptions::default();
    options.segment_bytes = 1024 * 1024;
    options.on_damage = OnDamage::Rejoin;
    SegmentLog::open_with(folder, &options)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_is_damaged_says_so_and_joins_again() {
    let root = TempDir::new().expect("a folder");
    let network = ChannelNetwork::new();
    let voters = [1, 2, 3];
    let mut nodes = Vec::new();
    for id in voters {
        let log = folder(root.path(), id);
        nodes.push(start(id, &network, log, &voters).await.expect("it starts"));
    }
    let handles: Vec<&RaftHandle> = nodes.iter().map(|(node, _)| node).collect();
    let first = leader(&handles).await;
    for number in 0..20 {
        let command = Bytes::from(format!("k{number} v"));
        first.propose(command).await.expect("all are there");
    }
    let victim = if first.id() == 2 { 3 } else { 2 };
    let old = first.membership()[victim as usize - 1].incarnation;
    nodes[victim as usize - 1].0.shutdown().await;
    let its_folder = root.path().join(victim.to_string());
    damage(&its_folder);

    let refused = SegmentLog::open(&its_folder).expect_err("it is damaged");
    assert!(refused.is_damage(), "{refused}");
    let log = rejoining(&its_folder).expect("it begins anew");
    let healed = log.healed().expect("it was damaged");
    assert_eq!(healed.damage, refused);
    assert!(healed.aside.is_dir());
    let (node, map) = start(victim, &network, log, &voters)
        .await
        .expect("it starts");
    let says_so = |node: &RaftHandle| {
        let troubles = node.report().troubles;
        troubles
            .iter()
            .any(|trouble| matches!(trouble, Trouble::LogBegunAnew { damage } if damage.contains("damaged-1")))
    };
    until("it says what it found", || says_so(&node)).await;
    until("it votes again as another", || {
        node.membership().iter().any(|member| {
            member.id == victim && member.role == MemberRole::Voter && member.incarnation != old
        })
    })
    .await;
    until("it has everything", || has(&map, "k19")).await;
    until("it is well", || node.report().troubles.is_empty()).await;
    nodes[victim as usize - 1] = (node, map);
    for (node, _) in &nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_of_a_group_of_one_is_never_given_up() {
    let root = TempDir::new().expect("a folder");
    let network = ChannelNetwork::new();
    let (node, _) = start(1, &network, folder(root.path(), 1), &[1])
        .await
        .expect("it starts");
    leader(&[&node]).await;
    for number in 0..20 {
        let command = Bytes::from(format!("k{number} v"));
        node.propose(command).await.expect("it is alone");
    }
    node.snapshot().await.expect("it makes one");
    for number in 0..20 {
        let command = Bytes::from(format!("k{number} w"));
        node.propose(command).await.expect("it is alone");
    }
    node.shutdown().await;
    let its_folder = root.path().join("1");
    let segment = its_folder.join("0000000000000001.segment");
    let mut bytes = std::fs::read(&segment).expect("a file");
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("it is used");
    bytes[end - 400] ^= 1;
    std::fs::write(&segment, bytes).expect("a file");
    let refused = rejoining(&its_folder).expect_err("nobody could take it in again");
    assert!(refused.is_damage(), "{refused}");
    assert!(!its_folder.join("damaged-1").exists());
}
