//! Groups of hosts that sleep while nothing happens.

mod common;
mod sleeping_follower;

use bytes::Bytes;
use common::{Map, options};
use perf_raft::codec::{FrameHeader, for_each_frame};
use perf_raft::{
    ChannelNetwork, ChannelTransport, GroupId, Inbox, MembershipChange, MemoryLog, OutboundMessage,
    ProposeError, RaftHandle, RaftHost, RaftNode, SendError, Transport, Trouble,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
const GROUPS: u64 = 30;

/// Messages that were sent, by their group. Those of hosts count for group 0.
type Sent = Arc<Mutex<BTreeMap<u64, u64>>>;

struct Counted {
    inner: ChannelTransport,
    sent: Sent,
}

impl Transport for Counted {
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.inner.start(inbox)
    }

    fn send(&self, message: OutboundMessage) -> Result<(), SendError> {
        let split = for_each_frame(message.frame.clone(), |frame| {
            let header = FrameHeader::peek(&frame).expect("a frame");
            let mut sent = self.sent.lock().expect("no panic");
            *sent.entry(header.group.0).or_default() += 1;
        });
        split.expect("a frame");
        self.inner.send(message)
    }

    fn stop(&self) {
        self.inner.stop();
    }
}

async fn host(id: u64, network: &ChannelNetwork, sent: &Sent) -> RaftHost {
    host_on(MemoryLog::new(), id, network, sent).await
}

async fn host_on(log: MemoryLog, id: u64, network: &ChannelNetwork, sent: &Sent) -> RaftHost {
    let mut options = options();
    options.sleep_after_ticks = 4;
    RaftHost::builder(id)
        .log_store(log)
        .transport(Counted {
            inner: network.transport(id),
            sent: Arc::clone(sent),
        })
        .options(options)
        .drivers(2)
        .apply_threads(1)
        .start()
        .await
        .expect("it starts")
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(WAIT, async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}"));
}

async fn all_sleep(hosts: &[RaftHost], groups: u64) {
    until("all groups sleep", || {
        hosts
            .iter()
            .all(|host| host.groups_asleep() as u64 == groups)
    })
    .await;
}

/// Proposes to whichever node leads.
async fn propose(hosts: &[RaftHost], group: u64) -> Bytes {
    let nodes: Vec<RaftHandle> = hosts
        .iter()
        .filter_map(|host| host.group(GroupId(group)))
        .collect();
    let proposed = tokio::time::timeout(WAIT, async {
        loop {
            for node in &nodes {
                match node.propose(Bytes::from_static(b"k v")).await {
                    Ok(response) => return response,
                    Err(ProposeError::NotLeader { .. } | ProposeError::NotFormed { .. }) => {}
                    Err(
                        ProposeError::ProposalDropped
                        | ProposeError::Unknown
                        | ProposeError::Stopped(_),
                    ) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    proposed.await.expect("a leader in time")
}

fn wakes(hosts: &[RaftHost], group: u64) -> u64 {
    let nodes = hosts.iter().filter_map(|host| host.group(GroupId(group)));
    nodes.map(|node| node.stats().core.wakes).sum()
}

async fn three_hosts(groups: u64) -> (ChannelNetwork, Sent, Vec<RaftHost>) {
    let (network, sent) = (ChannelNetwork::new(), Sent::default());
    let mut hosts = Vec::new();
    for id in 1..=3 {
        hosts.push(host(id, &network, &sent).await);
    }
    for group in 1..=groups {
        for host in &hosts {
            let made = host.create_group(GroupId(group), Map::default(), [1, 2, 3]);
            made.await.expect("a new group");
        }
    }
    for group in 1..=groups {
        assert_eq!(propose(&hosts, group).await, "1");
    }
    (network, sent, hosts)
}

async fn end(hosts: Vec<RaftHost>) {
    for host in &hosts {
        host.shutdown().await;
    }
}

#[test]
fn a_group_does_not_rely_on_what_is_over() {
    assert_eq!(sleeping_follower::an_outdated_note_is_refused(), Ok(()));
}

#[test]
fn a_follower_tells_a_removed_node_that_it_was_removed() {
    assert_eq!(sleeping_follower::a_removed_node_is_told(), Ok(()));
}

#[test]
fn a_follower_keeps_its_promise_to_the_leader_while_it_sleeps() {
    assert_eq!(sleeping_follower::promise_holds(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_sleeps_sends_nothing_and_a_proposal_wakes_it() {
    let (_network, sent, hosts) = three_hosts(GROUPS).await;
    let mut were_silent = 0;
    for round in 2..=4 {
        all_sleep(&hosts, GROUPS).await;
        let before = sent.lock().expect("no panic").clone();
        let wakes_before: Vec<u64> = (1..=GROUPS).map(|group| wakes(&hosts, group)).collect();
        let beats = before.get(&0).copied().unwrap_or(0);
        until("hosts beat", || {
            sent.lock()
                .expect("no panic")
                .get(&0)
                .is_some_and(|now| *now > beats + 60)
        })
        .await;
        let after = sent.lock().expect("no panic").clone();
        for group in 1..=GROUPS {
            // A busy machine may keep a host from beating for long enough to be missed.
            if wakes(&hosts, group) == wakes_before[group as usize - 1] {
                assert_eq!(after[&group], before[&group], "messages of group {group}");
                were_silent += 1;
            }
        }
        for group in 1..=GROUPS {
            assert_eq!(propose(&hosts, group).await, round.to_string());
        }
    }
    assert!(were_silent > 0, "all groups woke all the time");
    end(hosts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_sleep_are_led_again_after_their_leader_died() {
    let (network, sent, mut hosts) = three_hosts(GROUPS).await;
    all_sleep(&hosts, GROUPS).await;
    hosts.remove(0).shutdown().await;
    for group in 1..=GROUPS {
        assert_eq!(propose(&hosts, group).await, "2");
    }
    // Without the third, which is known to be away.
    all_sleep(&hosts, GROUPS).await;
    // It comes back with an empty disk, and is a voter again though nobody does anything.
    hosts.push(host(1, &network, &sent).await);
    for group in 1..=GROUPS {
        let opened = hosts[2].open_group(GroupId(group), Map::default());
        opened.await.expect("it waits to be taken in");
    }
    all_sleep(&hosts, GROUPS).await;
    for group in 1..=GROUPS {
        let members = hosts[2]
            .group(GroupId(group))
            .expect("it is open")
            .membership();
        let votes = members
            .iter()
            .filter(|member| member.role == perf_raft::MemberRole::Voter);
        assert_eq!(votes.count(), 3, "{members:?}");
        assert_eq!(propose(&hosts, group).await, "3");
    }
    end(hosts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_sleeping_leader_stops_is_led_again() {
    let (_network, _sent, hosts) = three_hosts(3).await;
    for stopped in 1..=3 {
        all_sleep(&hosts[..], 3).await;
        let leader = hosts[0]
            .group(GroupId(stopped))
            .expect("it is open")
            .status()
            .leader_id;
        let leader = hosts.iter().find(|host| {
            let node = host.group(GroupId(stopped));
            node.is_some_and(|node| node.id() == leader)
        });
        let leader = leader.expect("a leader");
        leader
            .close_group(GroupId(stopped))
            .await
            .expect("it is closed");
        assert_eq!(propose(&hosts, stopped).await, "2");
        let again = leader.open_group(GroupId(stopped), Map::default());
        again.await.expect("its log is kept");
    }
    end(hosts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_a_sleeping_follower_have_their_answers() {
    let (_network, _sent, hosts) = three_hosts(1).await;
    for host in &hosts {
        all_sleep(&hosts, 1).await;
        let node = host.group(GroupId(1)).expect("it is open");
        let read = tokio::time::timeout(WAIT, node.read_index());
        read.await.expect("in time").expect("a leader");
        all_sleep(&hosts, 1).await;
        let snapshot = tokio::time::timeout(WAIT, node.snapshot());
        snapshot.await.expect("in time").expect("a snapshot");
    }
    end(hosts).await;
}

/// The member that leads, once there is one.
async fn leader_of(hosts: &[RaftHost], group: u64) -> RaftHandle {
    let find = || {
        let mut nodes = hosts.iter().filter_map(|host| host.group(GroupId(group)));
        nodes.find(|node| node.status().is_leader())
    };
    until("a leader", || find().is_some()).await;
    find().expect("it has just led")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_of_a_group_that_sleeps_can_be_changed() {
    let (network, sent, mut hosts) = three_hosts(1).await;
    all_sleep(&hosts, 1).await;
    let leader = leader_of(&hosts, 1).await;
    let next = leader.id() % 3 + 1;
    let transfer = tokio::time::timeout(WAIT, leader.transfer_leader(next));
    transfer.await.expect("in time").expect("it is handed over");
    all_sleep(&hosts, 1).await;

    let log = MemoryLog::restartable();
    hosts.push(host_on(log.clone(), 4, &network, &sent).await);
    let opened = hosts[3].open_group(GroupId(1), Map::default());
    opened.await.expect("it waits to be taken in");
    let add = vec![MembershipChange::AddVoter(4)];
    let leader = leader_of(&hosts, 1).await;
    let added = tokio::time::timeout(WAIT, leader.change_membership(add));
    added.await.expect("in time").expect("it is taken in");
    all_sleep(&hosts, 1).await;

    // Its host is away while it is removed.
    hosts.remove(3).shutdown().await;
    let leader = leader_of(&hosts, 1).await;
    let remove = vec![MembershipChange::Remove(4)];
    let removed = tokio::time::timeout(WAIT, leader.change_membership(remove));
    removed.await.expect("in time").expect("it goes");
    all_sleep(&hosts, 1).await;
    let back = host_on(log, 4, &network, &sent).await;
    let opened = back.open_group(GroupId(1), Map::default());
    let left_over = opened.await.expect("its log is kept");
    until("it learns that it is no member", || {
        let report = left_over.report();
        report.troubles.contains(&Trouble::Removed)
    })
    .await;
    all_sleep(&hosts, 1).await;
    assert_eq!(propose(&hosts, 1).await, "2");
    hosts.push(back);
    end(hosts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_with_a_node_that_is_no_host_does_not_sleep() {
    let (network, sent) = (ChannelNetwork::new(), Sent::default());
    let first = host(1, &network, &sent).await;
    let made = first.create_group(GroupId(7), Map::default(), [1, 2]);
    made.await.expect("a new group");
    let second = RaftNode::builder(2)
        .group(GroupId(7))
        .log_store(MemoryLog::new())
        .transport(network.transport(2))
        .state_machine(Map::default())
        .options(options())
        .bootstrap([1, 2])
        .start()
        .await
        .expect("it starts");
    second.wait_for_leader(WAIT).await.expect("it leads");
    let ticks = || sent.lock().expect("no panic").get(&7).copied().unwrap_or(0);
    let before = ticks();
    until("heartbeats go on", || ticks() > before + 40).await;
    assert_eq!(first.groups_asleep(), 0);
    first.shutdown().await;
    second.shutdown().await;
}
