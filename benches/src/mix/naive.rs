//! The mix as nodes do it before anybody looks at a profile: every fact behind its own async lock,
//! counters in a map keyed by strings, a fresh buffer per message.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::RwLock;

use super::{
    CLUSTER_NODES, READERS, STATUS_MESSAGE_BYTES, StatusMessage, WRITER_PAUSE_US, Way, peer_of,
};
use crate::case::{Run, timed};
use crate::team::{Member, Team};

/// The naive way.
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

/// The status as the origin keeps it: the role is a string.
#[derive(Clone, Debug)]
struct Status {
    role: String,
    term: u64,
    leader_id: u64,
    commit_index: u64,
    applied_index: u64,
}

#[derive(Debug)]
struct Node {
    is_leader: RwLock<bool>,
    status: RwLock<Status>,
    peers: RwLock<HashMap<u64, String>>,
    counters: Mutex<HashMap<String, u64>>,
}

impl Node {
    fn new() -> Self {
        let address = |id| (id, format!("10.0.0.{id}:7001"));
        Self {
            is_leader: RwLock::new(true),
            status: RwLock::new(Status {
                role: "leader".to_owned(),
                term: 7,
                leader_id: 1,
                commit_index: 1_000,
                applied_index: 990,
            }),
            peers: RwLock::new((1..=CLUSTER_NODES).map(address).collect()),
            counters: Mutex::new(HashMap::new()),
        }
    }

    /// Am I the leader, what is the status, where is this peer.
    async fn status_query(&self, peer_id: u64) -> StatusMessage {
        let is_leader = *self.is_leader.read().await;
        let status = self.status.read().await.clone();
        let address = self.peers.read().await.get(&peer_id).cloned();
        black_box((&status.role, address));
        StatusMessage {
            node_id: peer_id,
            term: status.term,
            leader_id: status.leader_id,
            commit_index: status.commit_index,
            applied_index: status.applied_index,
            is_leader,
        }
    }

    /// Counts an operation under its labels.
    fn record(&self, operation: &str, succeeded: bool) {
        let outcome = if succeeded { "success" } else { "failure" };
        let key = format!("{operation}.{outcome}");
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        *counters.entry(key).or_insert(0) += 1;
    }

    /// Advances what the readers read.
    async fn commit_one(&self) {
        let mut status = self.status.write().await;
        status.commit_index += 1;
        status.applied_index += 1;
        drop(status);
        *self.is_leader.write().await = true;
    }
}

/// A fresh buffer per message, of the right size from the start.
fn serialise(message: &StatusMessage) -> Vec<u8> {
    let mut out = Vec::with_capacity(STATUS_MESSAGE_BYTES);
    message
        .encode(&mut out)
        .expect("writing to a Vec does not fail");
    out
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .build()
        .expect("a runtime without drivers needs nothing from the system")
}

fn turns(with_message: bool) -> Run {
    let (runtime, node) = (runtime(), Node::new());
    Box::new(move |iters| {
        let start = Instant::now();
        runtime.block_on(async {
            for turn in 0..iters {
                let message = node.status_query(black_box(peer_of(turn))).await;
                node.record(black_box("create"), true);
                if with_message {
                    black_box(serialise(&message));
                } else {
                    black_box(&message);
                }
            }
        });
        start.elapsed()
    })
}

fn status_query() -> Run {
    let node = Arc::new(Node::new());
    let reader = |_| -> Member {
        let (runtime, node) = (runtime(), Arc::clone(&node));
        Box::new(move |iters| {
            runtime.block_on(async {
                for turn in 0..iters {
                    black_box(&node.status_query(black_box(peer_of(turn))).await);
                }
            });
        })
    };
    let readers = (0..READERS).map(reader).collect();
    let (writer, pause) = (runtime(), Duration::from_micros(WRITER_PAUSE_US));
    let commit = Box::new(move || writer.block_on(node.commit_one()));
    Team::sharing(readers)
        .with_companion(pause, commit)
        .into_run()
}
