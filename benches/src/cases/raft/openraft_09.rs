//! openraft 0.9 with `storage-v2`: logs in memory, and a network that calls the other node's `Raft` directly, as its own cluster
//! benchmark does. Its default configuration, with room for as many entries per message as there are clients.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::io::Cursor;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage, RaftStateMachine, Snapshot};
use openraft::{
    BasicNode, Config, Entry, EntryPayload, LogId, OptionalSend, Raft, RaftLogReader,
    RaftSnapshotBuilder, SnapshotMeta, StorageError, StoredMembership, Vote,
};

use super::ours::Map;
use super::{Proposer, clients, runtime};
use crate::case::Run;

openraft::declare_raft_types!(
    Types: D = Bytes, R = u64, NodeId = u64, Node = BasicNode, SnapshotData = Cursor<Vec<u8>>
);

type Fault = StorageError<u64>;
type Routes = Arc<RwLock<HashMap<u64, Raft<Types>>>>;

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<LogInner>>);

#[derive(Default)]
struct LogInner {
    entries: BTreeMap<u64, Entry<Types>>,
    purged: Option<LogId<u64>>,
    vote: Option<Vote<u64>>,
}

impl Log {
    fn with<R>(&self, act: impl FnOnce(&mut LogInner) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<Types>>, Fault> {
        Ok(self.with(|log| {
            log.entries
                .range(range)
                .map(|(_, entry)| entry.clone())
                .collect()
        }))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, Fault> {
        Ok(self.with(|log| LogState {
            last_purged_log_id: log.purged,
            last_log_id: log
                .entries
                .values()
                .next_back()
                .map(|entry| entry.log_id)
                .or(log.purged),
        }))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), Fault> {
        self.with(|log| log.vote = Some(*vote));
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, Fault> {
        Ok(self.with(|log| log.vote))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), Fault>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.with(|log| {
            log.entries
                .extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)))
        });
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), Fault> {
        self.with(|log| drop(log.entries.split_off(&log_id.index)));
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), Fault> {
        self.with(|log| {
            log.entries = log.entries.split_off(&(log_id.index + 1));
            log.purged = Some(log_id);
        });
        Ok(())
    }
}

/// The map of the other paths.
#[derive(Clone, Default)]
struct Machine(Arc<Mutex<MachineInner>>);

#[derive(Default)]
struct MachineInner {
    map: Map,
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, BasicNode>,
}

impl Machine {
    fn with<R>(&self, act: impl FnOnce(&mut MachineInner) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, Fault> {
        Ok(self.with(|machine| {
            let bytes: Vec<u8> = machine
                .map
                .0
                .values()
                .flat_map(|value| value.iter().copied())
                .collect();
            Snapshot {
                meta: SnapshotMeta {
                    last_log_id: machine.applied,
                    last_membership: machine.membership.clone(),
                    snapshot_id: format!("{:?}", machine.applied),
                },
                snapshot: Box::new(Cursor::new(bytes)),
            }
        }))
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, BasicNode>), Fault> {
        Ok(self.with(|machine| (machine.applied, machine.membership.clone())))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<u64>, Fault>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        Ok(self.with(|machine| {
            let apply = |entry: Entry<Types>| {
                machine.applied = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Blank => 0,
                    EntryPayload::Normal(command) => machine.map.put(command),
                    EntryPayload::Membership(membership) => {
                        machine.membership = StoredMembership::new(Some(entry.log_id), membership);
                        0
                    }
                }
            };
            entries.into_iter().map(apply).collect()
        }))
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, Fault> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, BasicNode>,
        _snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Fault> {
        self.with(|machine| {
            (machine.applied, machine.membership) =
                (meta.last_log_id, meta.last_membership.clone());
        });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, Fault> {
        self.build_snapshot().await.map(Some)
    }
}

#[derive(Clone)]
struct Network(Routes);

struct Connection {
    target: u64,
    routes: Routes,
}

impl Connection {
    fn raft(&self) -> Result<Raft<Types>, Unreachable> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let missing = || Unreachable::new(&std::io::Error::other("it has not started"));
        routes.get(&self.target).cloned().ok_or_else(missing)
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Connection {
        Connection {
            target,
            routes: Arc::clone(&self.0),
        }
    }
}

type Rpc<E> = RPCError<u64, BasicNode, E>;

impl RaftNetwork<Types> for Connection {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Rpc<RaftError<u64>>> {
        let answer = self.raft()?.append_entries(request).await;
        answer.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Rpc<RaftError<u64, InstallSnapshotError>>> {
        let answer = self.raft()?.install_snapshot(request).await;
        answer.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _: RPCOption,
    ) -> Result<VoteResponse<u64>, Rpc<RaftError<u64>>> {
        let answer = self.raft()?.vote(request).await;
        answer.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }
}

#[derive(Clone)]
struct Leader(Raft<Types>);

impl Proposer for Leader {
    async fn propose(&self, command: Bytes) {
        let response = self.0.client_write(command).await;
        std::hint::black_box(
            response
                .map(|response| response.data)
                .expect("the leader stays"),
        );
    }
}

async fn cluster(count: u64) -> Raft<Types> {
    let config = Config {
        max_payload_entries: Config::default().max_payload_entries.max(count),
        ..Config::default()
    };
    let config = Arc::new(config.validate().expect("a sound configuration"));
    let routes: Routes = Arc::default();
    let mut first = None;
    for id in 1..=3_u64 {
        let network = Network(Arc::clone(&routes));
        let raft = Raft::new(
            id,
            Arc::clone(&config),
            network,
            Log::default(),
            Machine::default(),
        )
        .await;
        let raft = raft.expect("it starts");
        routes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, raft.clone());
        first.get_or_insert(raft);
    }
    let first = first.expect("there are three");
    let members: BTreeMap<u64, BasicNode> = (1..=3).map(|id| (id, BasicNode::default())).collect();
    first.initialize(members).await.expect("nobody did before");
    loop {
        let leader = first.current_leader().await;
        if let Some(leader) = leader {
            let routes = routes.read().unwrap_or_else(PoisonError::into_inner);
            return routes[&leader].clone();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(super) fn memory<const CLIENTS: u64>() -> Run {
    let runtime = runtime();
    let leader = runtime.block_on(cluster(CLIENTS));
    clients(runtime, CLIENTS, &Leader(leader))
}
