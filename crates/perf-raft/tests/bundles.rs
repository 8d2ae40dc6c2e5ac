//! Groups of a host that are awake share their frames to a peer.

mod common;

use bytes::Bytes;
use common::{Map, options};
use perf_raft::{
    ApplyMode, ChannelNetwork, ChannelTransport, GroupId, Inbox, MemoryLog, OutboundMessage,
    RaftHandle, RaftHost, SendError, Transport,
};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const GROUPS: u64 = 20;
const WAIT: Duration = Duration::from_secs(60);

/// Counts messages, and takes none that is longer than its limit.
struct Narrow {
    inner: ChannelTransport,
    limit: usize,
    sent: Arc<AtomicU64>,
    /// The number of a message that it panics over; 0 for none.
    panics_at: u64,
}

impl Transport for Narrow {
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.inner.start(inbox)
    }

    fn send(&self, message: OutboundMessage) -> Result<(), SendError> {
        if message.frame.len() > self.limit {
            return Err(SendError::TooLarge { limit: self.limit });
        }
        let number = self.sent.fetch_add(1, Ordering::Relaxed) + 1;
        assert_ne!(
            number, self.panics_at,
            "a transport panics: part of the test"
        );
        self.inner.send(message)
    }

    fn stop(&self) {
        self.inner.stop();
    }
}

/// Three hosts with groups that never sleep, each of which has a leader.
async fn three_hosts(
    limit: usize,
    sent: &Arc<AtomicU64>,
    panics_at: u64,
) -> (Vec<RaftHost>, Vec<Vec<RaftHandle>>) {
    let network = ChannelNetwork::new();
    let mut options = options();
    options.sleep_after_ticks = 0;
    options.apply = ApplyMode::Inline;
    let mut hosts = Vec::new();
    for id in 1..=3 {
        let transport = Narrow {
            inner: network.transport(id),
            limit,
            sent: Arc::clone(sent),
            panics_at,
        };
        let host = RaftHost::builder(id)
            .log_store(MemoryLog::new())
            .transport(transport)
            .options(options.clone())
            .drivers(1)
            .start();
        hosts.push(host.await.expect("it starts"));
    }
    let mut groups = Vec::new();
    for group in (1..=GROUPS).map(GroupId) {
        let mut nodes = Vec::new();
        for host in &hosts {
            let made = host.create_group(group, Map::default(), [1, 2, 3]);
            nodes.push(made.await.expect("a new group"));
        }
        groups.push(nodes);
    }
    for nodes in &groups {
        for node in nodes {
            node.wait_for_leader(WAIT).await.expect("a leader in time");
        }
    }
    (hosts, groups)
}

#[tokio::test(start_paused = true)]
async fn heartbeats_of_all_groups_travel_in_one_frame_per_tick() {
    const TICKS: u32 = 100;
    let sent = Arc::default();
    let (hosts, _groups) = three_hosts(usize::MAX, &sent, 0).await;
    let tick = options().tick;
    // Whatever the elections have left is said by then.
    tokio::time::sleep(tick * 20).await;
    let before = sent.load(Ordering::Relaxed);
    tokio::time::sleep(tick * TICKS).await;
    let taken = sent.load(Ordering::Relaxed) - before;
    // From each host to each other one: heartbeats, and answers to those of the other.
    let most = u64::from(TICKS + 1) * 6 * 2;
    let alone = GROUPS * 4 * u64::from(TICKS) / options().heartbeat_ticks as u64;
    assert!(taken <= most, "{taken} frames, at most {most} are due");
    assert!(most < alone / 3, "groups alone would send {alone}");
    assert!(taken > 0, "nobody sends heartbeats");
    for host in &hosts {
        host.shutdown().await;
    }
}

/// A peer that takes no bundle gets the frames one by one.
#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_short_frames_only_is_no_obstacle() {
    let (hosts, groups) = three_hosts(600, &Arc::default(), 0).await;
    for nodes in &groups {
        let proposed = tokio::time::timeout(WAIT, async {
            for node in nodes.iter().cycle() {
                if let Ok(response) = node.propose(Bytes::from_static(b"k v")).await {
                    return response;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Bytes::new()
        });
        assert_eq!(proposed.await.expect("in time"), "1");
    }
    for host in &hosts {
        host.shutdown().await;
    }
}

/// The bundle of a pass is lost with it; all groups go on.
#[tokio::test(start_paused = true)]
async fn a_transport_that_panics_over_a_bundle_stops_no_group() {
    let sent = Arc::default();
    let (hosts, groups) = three_hosts(usize::MAX, &sent, 4000).await;
    // Heartbeats: nothing but bundles.
    let waited = tokio::time::timeout(WAIT, async {
        while sent.load(Ordering::Relaxed) < 4500 {
            tokio::time::sleep(options().tick).await;
        }
    });
    waited.await.expect("heartbeats go on");
    for nodes in &groups {
        for node in nodes {
            node.wait_for_leader(WAIT).await.expect("it goes on");
        }
    }
    for host in &hosts {
        host.shutdown().await;
    }
}
