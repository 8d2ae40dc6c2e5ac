//! The newest prerelease of openraft 0.10, set up as its own benchmark does: logs in memory, and a network that calls the other node's `Raft` directly and
//! encodes nothing. Its default configuration, with room for as many entries per message as there are clients.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use openraft_alpha::alias::{
    DefaultEntryOf, EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf,
};
use openraft_alpha::entry::RaftEntry;
use openraft_alpha::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft_alpha::impls::{InlineBatch, OneshotResponder, TokioRuntime, leader_id_adv};
use openraft_alpha::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft_alpha::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft_alpha::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder,
    RaftStateMachine,
};
use openraft_alpha::{AnyError, Config, EntryPayload, OptionalSend, RaftTypeConfig, Vote};

use super::ours::Map;
use super::{Proposer, clients, runtime};
use crate::case::Run;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Types;

/// What a client proposes.
#[derive(Clone, Debug)]
struct Request(Bytes);

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl RaftTypeConfig for Types {
    type D = Request;
    type R = u64;
    type NodeId = u64;
    type Node = ();
    type Term = u64;
    type LeaderId = leader_id_adv::LeaderId<u64, u64>;
    type Vote = Vote<Self::LeaderId>;
    type Payload = EntryPayload<Self::D, Self::NodeId, Self::Node>;
    type Entry = DefaultEntryOf<Self>;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: Send + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: Send + 'static;
    type AsyncRuntime = TokioRuntime;
    type ErrorSource = AnyError;
}

type Raft = openraft_alpha::Raft<Types, Machine>;
type Routes = Arc<RwLock<HashMap<u64, Raft>>>;

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<LogInner>>);

#[derive(Default)]
struct LogInner {
    entries: BTreeMap<u64, EntryOf<Types>>,
    purged: Option<LogIdOf<Types>>,
    vote: Option<VoteOf<Types>>,
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
    ) -> Result<Vec<EntryOf<Types>>, io::Error> {
        let copy = |log: &mut LogInner| {
            let entries = log.entries.range(range);
            entries.map(|(_, entry)| entry.clone()).collect()
        };
        Ok(self.with(copy))
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(self.with(|log| log.vote))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        Ok(self.with(|log| {
            let last = log.entries.values().next_back().map(RaftEntry::log_id);
            LogState {
                last_purged_log_id: log.purged,
                last_log_id: last.or(log.purged),
            }
        }))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        self.with(|log| log.vote = Some(*vote));
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| (entry.index(), entry));
        self.with(|log| log.entries.extend(entries));
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        let first = last.map_or(0, |last| last.index() + 1);
        self.with(|log| drop(log.entries.split_off(&first)));
        Ok(())
    }

    async fn purge(&mut self, log_id: LogIdOf<Types>) -> Result<(), io::Error> {
        self.with(|log| {
            log.entries = log.entries.split_off(&(log_id.index() + 1));
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
    applied: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
}

impl Machine {
    fn with<R>(&self, act: impl FnOnce(&mut MachineInner) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, Vec<u8>>, io::Error> {
        Ok(self.with(|machine| {
            let values = machine.map.0.values();
            let bytes = values.flat_map(|value| value.iter().copied()).collect();
            SnapshotOf::<Types, Vec<u8>> {
                meta: SnapshotMetaOf::<Types> {
                    last_log_id: machine.applied,
                    last_membership: machine.membership.clone(),
                },
                snapshot: bytes,
            }
        }))
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        Ok(self.with(|machine| (machine.applied, machine.membership.clone())))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let response = self.with(|machine| {
                machine.applied = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Blank => 0,
                    EntryPayload::Normal(Request(command)) => machine.map.put(command),
                    EntryPayload::Membership(membership) => {
                        machine.membership =
                            StoredMembershipOf::<Types>::new(Some(entry.log_id), membership);
                        0
                    }
                }
            });
            if let Some(responder) = responder {
                responder.send(response);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        _: Vec<u8>,
    ) -> Result<(), io::Error> {
        self.with(|machine| {
            (machine.applied, machine.membership) =
                (meta.last_log_id, meta.last_membership.clone());
        });
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<Types, Vec<u8>>>, io::Error> {
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
    fn raft(&self) -> Result<Raft, Unreachable<Types>> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let missing = || Unreachable::new(&io::Error::other("it has not started"));
        routes.get(&self.target).cloned().ok_or_else(missing)
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _: &()) -> Connection {
        Connection {
            target,
            routes: Arc::clone(&self.0),
        }
    }
}

impl RaftNetworkV2<Types> for Connection {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let answer = self.raft()?.append_entries(request).await;
        answer.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let answer = self.raft()?.vote(request).await;
        answer.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, Vec<u8>>,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let answer = self.raft()?.install_full_snapshot(vote, snapshot).await;
        answer.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))
    }
}

#[derive(Clone)]
struct Leader(Raft);

impl Proposer for Leader {
    async fn propose(&self, command: Bytes) {
        let response = self.0.client_write(Request(command)).await;
        std::hint::black_box(
            response
                .map(|response| response.data)
                .expect("the leader stays"),
        );
    }
}

async fn cluster(count: u64) -> Raft {
    let config = Config {
        max_payload_entries: Config::default().max_payload_entries.max(count),
        ..Config::default()
    };
    let config = Arc::new(config.validate().expect("a sound configuration"));
    let routes: Routes = Arc::default();
    let mut first = None;
    for id in 1..=3_u64 {
        let raft = Raft::new(
            id,
            Arc::clone(&config),
            Network(Arc::clone(&routes)),
            Log::default(),
            Machine::default(),
        )
        .await;
        let raft = raft.expect("it starts");
        let mut routes = routes.write().unwrap_or_else(PoisonError::into_inner);
        routes.insert(id, raft.clone());
        first.get_or_insert(raft);
    }
    let first = first.expect("there are three");
    let members: BTreeMap<u64, ()> = (1..=3).map(|id| (id, ())).collect();
    first.initialize(members).await.expect("the cluster is new");
    loop {
        if let Some(leader) = first.current_leader().await {
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
