//! Three nodes of `perf-raft`.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use perf_raft::{
    ApplyMode, ChannelNetwork, Command, LogStore, MemoryLog, RaftHandle, RaftNode, RaftOptions,
    SegmentLog, StateMachine, StateMachineError,
};
use tempfile::TempDir;

use super::{PAYLOAD_BYTES, Proposer, clients, key_of, runtime};
use crate::case::Run;

/// The map that every path keeps, of values of `BYTES` bytes. A response tells the length of what was there before.
#[derive(Default)]
pub(super) struct Map<const BYTES: usize = PAYLOAD_BYTES>(pub(super) HashMap<u64, Bytes>);

impl<const BYTES: usize> Map<BYTES> {
    pub(super) fn put(&mut self, command: Bytes) -> u64 {
        let before = self.0.insert(key_of(&command), command);
        before.map_or(0, |before| before.len() as u64)
    }
}

impl<const BYTES: usize> StateMachine for Map<BYTES> {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        for command in batch {
            let was = self.put(command.data.clone());
            responses.push(if was == 0 {
                Bytes::from_static(b"new")
            } else {
                Bytes::from_static(b"old")
            });
        }
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        let mut all = Vec::with_capacity(self.0.len() * BYTES);
        for value in self.0.values() {
            all.extend_from_slice(value);
        }
        Ok(all.into())
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), StateMachineError> {
        let values = snapshot.chunks(BYTES).map(Bytes::copy_from_slice);
        self.0 = values.map(|value| (key_of(&value), value)).collect();
        Ok(())
    }
}

/// What a user with a map in memory chooses.
pub(super) fn options() -> RaftOptions {
    let mut options = RaftOptions::default();
    options.apply = ApplyMode::Inline;
    options
}

pub(super) async fn cluster(
    options: &RaftOptions,
    mut log: impl FnMut(u64) -> Box<dyn LogStore>,
) -> Vec<RaftHandle> {
    let network = ChannelNetwork::new();
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let node = RaftNode::builder(id)
            .log_store(log(id))
            .transport(network.transport(id))
            .state_machine(<Map>::default())
            .options(options.clone())
            .bootstrap([1, 2, 3])
            .start()
            .await
            .expect("sound options");
        nodes.push(node);
    }
    nodes
}

pub(super) async fn leader(nodes: &[RaftHandle]) -> RaftHandle {
    loop {
        for node in nodes {
            if node.status().is_leader() && node.read_index().await.is_ok() {
                return node.clone();
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Proposer for RaftHandle {
    async fn propose(&self, command: Bytes) {
        let response = RaftHandle::propose(self, command).await;
        std::hint::black_box(response.expect("the leader stays"));
    }
}

fn prepare(count: u64, log: impl FnMut(u64) -> Box<dyn LogStore>) -> Run {
    let runtime = runtime();
    let leader = runtime.block_on(async {
        let nodes = cluster(&options(), log).await;
        leader(&nodes).await
    });
    clients(runtime, count, &leader)
}

pub(super) fn memory<const CLIENTS: u64>() -> Run {
    prepare(CLIENTS, |_| Box::new(MemoryLog::new()))
}

pub(super) fn durable<const CLIENTS: u64>() -> Run {
    let folder = TempDir::new().expect("a temporary folder");
    let mut run = prepare(CLIENTS, |id| {
        Box::new(SegmentLog::open(folder.path().join(id.to_string())).expect("a fresh folder"))
    });
    // The folder lives as long as the path.
    Box::new(move |iters| {
        let _ = &folder;
        run(iters)
    })
}
