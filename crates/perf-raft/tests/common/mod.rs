//! Clusters of nodes in one process, over a map that counts.
#![allow(dead_code)]

use bytes::Bytes;
use perf_raft::{
    ChannelNetwork, Command, GroupId, LogStore, MemoryLog, RaftHandle, RaftNode, RaftOptions,
    StateMachine, StateMachineError,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Short periods, for tests.
pub(crate) fn options() -> RaftOptions {
    let mut options = RaftOptions::default();
    options.tick = Duration::from_millis(10);
    options
}

/// `key value` commands; the response is the number of commands so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    pub(crate) state: Arc<Mutex<(u64, BTreeMap<String, String>)>>,
    /// How long a batch takes.
    pub(crate) delay: Duration,
}

impl StateMachine for Map {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        std::thread::sleep(self.delay);
        let mut state = self.state.lock().expect("no panic under it");
        for command in batch {
            let text = String::from_utf8_lossy(&command.data).into_owned();
            let (key, value) = text.split_once(' ').unwrap_or((&text, ""));
            state.0 += 1;
            state.1.insert(key.to_owned(), value.to_owned());
            responses.push(Bytes::from(state.0.to_string()));
        }
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        let state = self.state.lock().expect("no panic under it");
        let mut text = format!("{}\n", state.0);
        for (key, value) in &state.1 {
            text += &format!("{key} {value}\n");
        }
        Ok(Bytes::from(text))
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), StateMachineError> {
        let text = std::str::from_utf8(&snapshot)?;
        let mut lines = text.lines();
        let count = lines.next().ok_or("no count")?.parse()?;
        let pairs = lines.map(|line| line.split_once(' ').unwrap_or((line, "")));
        let map = pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        *self.state.lock().expect("no panic under it") = (count, map);
        Ok(())
    }
}

pub(crate) struct Cluster {
    pub(crate) network: ChannelNetwork,
    pub(crate) nodes: BTreeMap<u64, (RaftHandle, Map)>,
}

impl Cluster {
    pub(crate) async fn start(ids: &[u64], options: RaftOptions) -> Self {
        let mut cluster = Self {
            network: ChannelNetwork::new(),
            nodes: BTreeMap::new(),
        };
        for &id in ids {
            cluster
                .add(id, ids, options.clone(), MemoryLog::new())
                .await;
        }
        cluster
    }

    pub(crate) async fn add(
        &mut self,
        id: u64,
        voters: &[u64],
        options: RaftOptions,
        log: impl LogStore,
    ) {
        let map = Map::default();
        let handle = RaftNode::builder(id)
            .group(GroupId(5))
            .log_store(log)
            .transport(self.network.transport(id))
            .state_machine(map.clone())
            .options(options)
            .bootstrap(voters.iter().copied())
            .start()
            .await
            .expect("it starts");
        self.nodes.insert(id, (handle, map));
    }

    pub(crate) fn handles(&self) -> impl Iterator<Item = &RaftHandle> {
        self.nodes.values().map(|(handle, _)| handle)
    }

    pub(crate) fn handle(&self, id: u64) -> &RaftHandle {
        &self.nodes[&id].0
    }

    /// Waits until there is a leader that can commit.
    pub(crate) async fn leader(&self) -> RaftHandle {
        loop {
            let leads = |handle: &&RaftHandle| handle.status().is_leader();
            let leader = self
                .handles()
                .filter(leads)
                .max_by_key(|handle| handle.status().term)
                .cloned();
            if let Some(leader) = leader
                && leader.read_index().await.is_ok()
            {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn applied(&self, id: u64) -> u64 {
        self.nodes[&id].1.state.lock().expect("no panic under it").0
    }

    /// All state machines are the same.
    pub(crate) fn assert_equal(&self) {
        let mut states = self
            .nodes
            .values()
            .map(|(_, map)| map.state.lock().expect("no panic under it").clone());
        let first = states.next();
        assert!(states.all(|state| Some(&state) == first.as_ref()));
    }

    pub(crate) async fn stop(self) {
        for (handle, _) in self.nodes.values() {
            handle.shutdown().await;
        }
    }
}
