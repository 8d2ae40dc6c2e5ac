//! The mix with this project: state read without locks, the catalogue's counters, buffers from the pool.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use perf_atomics::{Membership, MembershipReader, NodeState, Role};
use perf_metrics::helpers::record_vm_operation_fast;
use perf_metrics::{NodeMetrics, Registry};
use perf_pool::BufferGuard;

use super::{
    CLUSTER_NODES, READERS, STATUS_MESSAGE_BYTES, StatusMessage, WRITER_PAUSE_US, Way, peer_of,
};
use crate::case::{Run, timed};
use crate::team::{Member, Team};

/// Our way.
pub const WAY: Way = Way {
    node: || turns(true),
    node_unserialised: || turns(false),
    messages: || {
        let message = StatusMessage::default();
        timed(move || {
            black_box(serialise(black_box(&message)));
        })
    },
    status_query,
};

type Peers = Membership<u64, String>;

#[derive(Debug)]
struct Node {
    state: NodeState<String>,
    metrics: NodeMetrics,
}

impl Node {
    fn new() -> Self {
        let state = NodeState::new(1);
        for id in 1..=CLUSTER_NODES {
            state.members().insert(id, format!("10.0.0.{id}:7001"));
        }
        state.update_status(|status| {
            (status.role, status.term, status.leader_id) = (Role::Leader, 7, 1);
            (status.commit_index, status.applied_index) = (1_000, 990);
        });
        let metrics =
            NodeMetrics::new(&Registry::new()).expect("a process has cells for one catalogue");
        Self { state, metrics }
    }

    /// Am I the leader, what is the status, where is this peer.
    fn status_query(
        &self,
        peers: &mut MembershipReader<&Peers, u64, String>,
        peer_id: u64,
    ) -> StatusMessage {
        let is_leader = self.state.is_leader();
        let status = self.state.status();
        black_box((status.role, peers.get(&peer_id)));
        StatusMessage {
            node_id: peer_id,
            term: status.term,
            leader_id: status.leader_id,
            commit_index: status.commit_index,
            applied_index: status.applied_index,
            is_leader,
        }
    }

    /// Advances what the readers read.
    fn commit_one(&self) {
        self.state.update_status(|status| {
            status.commit_index += 1;
            status.applied_index += 1;
        });
    }
}

/// A buffer from the pool per message.
fn serialise(message: &StatusMessage) -> BufferGuard {
    let mut out = BufferGuard::new(STATUS_MESSAGE_BYTES);
    message
        .encode(out.get_mut())
        .expect("writing to a Vec does not fail");
    out
}

fn turns(with_message: bool) -> Run {
    let node = Node::new();
    Box::new(move |iters| {
        // One reader per task: a batch is a task's life.
        let mut peers = node.state.members().reader();
        let start = Instant::now();
        for turn in 0..iters {
            let message = node.status_query(&mut peers, black_box(peer_of(turn)));
            record_vm_operation_fast(black_box("create"), true, &node.metrics);
            if with_message {
                black_box(serialise(&message));
            } else {
                black_box(&message);
            }
        }
        start.elapsed()
    })
}

fn status_query() -> Run {
    let node = Arc::new(Node::new());
    let reader = |_| -> Member {
        let node = Arc::clone(&node);
        Box::new(move |iters| {
            let mut peers = node.state.members().reader();
            for turn in 0..iters {
                black_box(&node.status_query(&mut peers, black_box(peer_of(turn))));
            }
        })
    };
    let readers = (0..READERS).map(reader).collect();
    let pause = Duration::from_micros(WRITER_PAUSE_US);
    let commit = Box::new(move || node.commit_one());
    Team::sharing(readers)
        .with_companion(pause, commit)
        .into_run()
}
