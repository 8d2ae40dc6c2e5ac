//! The node the way one writes it first: the state behind locks, fresh buffers, metrics with strings for attributes,
//! one proposal and one fsync at a time, one connection to each peer. The interface, the durability and
//! what is on the wire between client and node are the same.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use perf_kit::metrics::LabelSet as _;
use perf_kit::metrics::node::Operation;
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeType, ConfState, Entry, EntryType, HardState, Message, Snapshot,
};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};
use tokio::sync::{Mutex, RwLock, mpsc, oneshot};

use crate::answer::{HostStatus, Refusal, Status};
use crate::certificates::Identity;
use crate::cli::Serve;
use crate::inventory::Inventory;
use crate::inventory::command::{Action, Command, Host, Outcome, Size, Vm};
use crate::placement::Strategy;
use crate::view::Page;

mod log;
mod metrics;
mod network;

use log::FileLog;
use metrics::NaiveMetrics;
use network::Network;

/// The same times as the other node has.
const TICK: Duration = Duration::from_millis(50);
const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 2;
/// Events that wait for the loop.
const EVENTS_MAX: usize = 4096;
/// How long a client waits for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// What the loop is told.
enum Event {
    Message(Message),
    Propose(Vec<u8>, Answer<Outcome>),
    Read(Answer<()>),
    AddMember(Host, Answer<()>),
}

/// What requests see, all behind one lock.
#[derive(Default)]
struct Shared {
    inventory: Inventory,
    role: &'static str,
    term: u64,
    leader: u64,
    commit_index: u64,
    applied_index: u64,
    requests: u64,
    stopped: Option<String>,
    round_robin: u64,
}

/// A running node.
pub(crate) struct NaiveNode {
    id: u64,
    shared: Arc<RwLock<Shared>>,
    events: mpsc::Sender<Event>,
    metrics: Arc<NaiveMetrics>,
    /// Times of the last writes, for the percentiles.
    recent: Arc<Mutex<Vec<f64>>>,
}

/// How many times are kept for the percentiles.
const RECENT_MAX: usize = 4096;

impl NaiveNode {
    /// Starts a node and its loop.
    pub(crate) async fn start(options: &Serve) -> anyhow::Result<Arc<Self>> {
        std::fs::create_dir_all(&options.data)?;
        let (log, recovered) =
            FileLog::open(&options.data.join("naive.log")).context("cannot open the log")?;
        let storage = MemStorage::new();
        let voters: Vec<u64> = match options.join {
            true => Vec::new(),
            false => options.peers.iter().map(|host| host.id).collect(),
        };
        storage.initialize_with_conf_state((voters, vec![]));
        if let Some(last) = recovered.entries.last() {
            let last = last.index;
            let mut store = storage.wl();
            store.append(&recovered.entries)?;
            let mut state = recovered.state.clone();
            // Entries are written before the state that commits them.
            state.commit = state.commit.min(last);
            store.set_hardstate(state);
        } else if recovered.state != HardState::default() {
            storage.wl().set_hardstate(recovered.state);
        }
        let config = Config {
            id: options.id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raft = RawNode::new(&config, storage, &logger)?;
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let identity = Identity::read(&options.certificates, options.id)?;
        let own = options.own()?;
        let listen: SocketAddr = own.raft.parse()?;
        let network = Network::start(&identity, listen, events.clone()).await?;
        for host in options.others() {
            network.add_peer(host.id, host.raft.clone()).await;
        }
        let shared = Arc::new(RwLock::new(Shared {
            role: "follower",
            ..Shared::default()
        }));
        let node = Arc::new(Self {
            id: options.id,
            shared: Arc::clone(&shared),
            events,
            metrics: Arc::new(NaiveMetrics::new()),
            recent: Arc::default(),
        });
        let task = Loop {
            raft,
            log,
            network,
            shared,
            events: receiver,
            proposals: HashMap::new(),
            reads: HashMap::new(),
            waiting_reads: Vec::new(),
            next_token: u64::from(std::process::id()) << 32,
            hosts: options.peers.clone(),
            known_hosts: false,
        };
        tokio::spawn(task.run());
        Ok(node)
    }

    pub(crate) async fn write(
        &self,
        request_id: String,
        action: Action,
    ) -> Result<Outcome, Refusal> {
        let start = Instant::now();
        let command = Command {
            request_id,
            action: Some(action),
            raft_groups: 1,
        };
        let outcome = self
            .ask(|answer| Event::Propose(command.encode_to_vec(), answer))
            .await?;
        let mut recent = self.recent.lock().await;
        if recent.len() >= RECENT_MAX {
            recent.remove(0);
        }
        recent.push(start.elapsed().as_secs_f64() * 1000.0);
        drop(recent);
        self.shared.write().await.requests += 1;
        Ok(outcome)
    }

    pub(crate) async fn barrier(&self) -> Result<(), Refusal> {
        self.ask(Event::Read).await
    }

    pub(crate) async fn add_member(&self, host: Host) -> Result<(), Refusal> {
        self.ask(|answer| Event::AddMember(host, answer)).await
    }

    async fn ask<T>(&self, event: impl FnOnce(Answer<T>) -> Event) -> Result<T, Refusal> {
        let (answer, waiting) = oneshot::channel();
        let stopped = || Refusal::Stopped("its loop has ended".to_owned());
        self.events
            .send(event(answer))
            .await
            .map_err(|_| stopped())?;
        match tokio::time::timeout(ANSWER_MAX, waiting).await {
            Ok(Ok(Err(Refusal::NotLeader(Some(id))))) => {
                let shared = self.shared.read().await;
                let host = id.parse().ok().and_then(|id| shared.inventory.host(id));
                Err(Refusal::NotLeader(
                    host.map(|state| state.host.http.clone()),
                ))
            }
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(stopped()),
            Err(_) => Err(Refusal::OutcomeUnknown(format!(
                "no answer within {} s",
                ANSWER_MAX.as_secs()
            ))),
        }
    }

    /// Looks at every host.
    pub(crate) async fn place(&self, size: Size, apart: &str, strategy: Strategy) -> Option<u64> {
        let mut shared = self.shared.write().await;
        let taken: Vec<u64> = shared
            .inventory
            .vms()
            .filter(|vm| !apart.is_empty() && vm.apart == apart)
            .map(|vm| vm.host)
            .collect();
        let mut fitting: Vec<(u64, u64)> = shared
            .inventory
            .hosts()
            .filter(|state| {
                let free = state.free();
                free.vcpus >= size.vcpus
                    && free.memory_mib >= size.memory_mib
                    && free.disk_gib >= size.disk_gib
            })
            .map(|state| (state.host.id, u64::from(state.free().vcpus)))
            .collect();
        if fitting.iter().any(|(id, _)| !taken.contains(id)) {
            fitting.retain(|(id, _)| !taken.contains(id));
        }
        if fitting.is_empty() {
            return None;
        }
        let chosen = match strategy {
            Strategy::Spread => fitting.iter().max_by_key(|(_, free)| *free),
            Strategy::Pack => fitting.iter().min_by_key(|(_, free)| *free),
            Strategy::RoundRobin => {
                let place = shared.round_robin as usize % fitting.len();
                shared.round_robin += 1;
                fitting.get(place)
            }
        };
        chosen.map(|(id, _)| *id)
    }

    pub(crate) async fn vm(&self, name: &str) -> Option<Arc<Vm>> {
        self.shared.read().await.inventory.vm(name).cloned()
    }

    /// Sorts all of them each time.
    pub(crate) async fn page(&self, after: Option<&str>, limit: usize) -> Page {
        let shared = self.shared.read().await;
        let mut all: Vec<Arc<Vm>> = shared.inventory.vms().cloned().collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        let count = all.len();
        all.retain(|vm| after.is_none_or(|after| vm.name.as_str() > after));
        let is_last = all.len() <= limit;
        all.truncate(limit);
        Page {
            count,
            vms: all,
            is_last,
        }
    }

    pub(crate) async fn status(&self) -> Status {
        let shared = self.shared.read().await;
        let mut write_ms = self.recent.lock().await.clone();
        write_ms.sort_by(f64::total_cmp);
        let percentile = |share: f64| {
            let place = (write_ms.len() as f64 * share) as usize;
            write_ms
                .get(place.min(write_ms.len().saturating_sub(1)))
                .copied()
        };
        let hosts: Vec<_> = shared.inventory.hosts().collect();
        let vms: Vec<_> = shared.inventory.vms().collect();
        Status {
            node: self.id,
            role: shared.role,
            term: shared.term,
            leader: shared.leader,
            commit_index: shared.commit_index,
            applied_index: shared.applied_index,
            vms: vms.len() as u64,
            running: vms.iter().filter(|vm| vm.running).count() as u64,
            used_vcpus: hosts.iter().map(|state| state.used.vcpus).sum(),
            total_vcpus: hosts
                .iter()
                .map(|state| u64::from(state.host.size.vcpus))
                .sum(),
            requests: shared.requests,
            write_ms_p50: percentile(0.5),
            write_ms_p99: percentile(0.99),
            naive: true,
            hosts: hosts.into_iter().map(HostStatus::from).collect(),
            groups: Vec::new(),
        }
    }

    pub(crate) async fn is_healthy(&self) -> bool {
        let shared = self.shared.read().await;
        shared.stopped.is_none() && shared.leader != 0
    }

    /// Resolves when the loop has ended.
    pub(crate) async fn stopped(&self) -> String {
        self.events.closed().await;
        let stopped = self.shared.read().await.stopped.clone();
        stopped.unwrap_or_else(|| "its loop has ended".to_owned())
    }

    pub(crate) fn record(&self, operation: Operation, is_done: bool, took: Duration) {
        self.metrics.record(operation.value(), is_done, took);
    }

    pub(crate) fn metrics(&self) -> String {
        if let Ok(shared) = self.shared.try_read() {
            self.metrics.gauge("raft.term", shared.term, self.id);
            self.metrics
                .gauge("raft.commit.index", shared.commit_index, self.id);
            self.metrics
                .gauge("raft.applied.index", shared.applied_index, self.id);
        }
        self.metrics.text()
    }
}

/// The task that owns Raft.
struct Loop {
    raft: RawNode<MemStorage>,
    log: FileLog,
    network: Network,
    shared: Arc<RwLock<Shared>>,
    events: mpsc::Receiver<Event>,
    /// By what is in the entry's context.
    proposals: HashMap<u64, Answer<Outcome>>,
    /// By the read's context, until the leader has confirmed it.
    reads: HashMap<u64, Answer<()>>,
    /// Confirmed, until so much is applied.
    waiting_reads: Vec<(u64, Answer<()>)>,
    next_token: u64,
    hosts: Vec<Host>,
    known_hosts: bool,
}

impl Loop {
    async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        let stopped = loop {
            tokio::select! {
                _ = tick.tick() => {
                    self.raft.tick();
                    self.announce_hosts();
                }
                event = self.events.recv() => match event {
                    Some(event) => self.take(event),
                    None => break "all who could ask are gone".to_owned(),
                },
            }
            if let Err(error) = self.ready().await {
                break format!("{error:#}");
            }
        };
        eprintln!("the node stops: {stopped}");
        self.shared.write().await.stopped = Some(stopped);
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn take(&mut self, event: Event) {
        match event {
            // What Raft does not take is a message for somebody else or from an old term.
            Event::Message(message) => drop(self.raft.step(message)),
            Event::Propose(data, answer) => {
                if self.raft.raft.state != StateRole::Leader {
                    let leader = self.leader();
                    let _ = answer.send(Err(Refusal::NotLeader(leader)));
                    return;
                }
                let token = self.token();
                match self.raft.propose(token.to_le_bytes().to_vec(), data) {
                    Ok(()) => drop(self.proposals.insert(token, answer)),
                    Err(error) => drop(answer.send(Err(Refusal::NoQuorum(error.to_string())))),
                }
            }
            Event::Read(answer) => {
                if self.raft.raft.leader_id == 0 {
                    let _ = answer.send(Err(Refusal::NotLeader(None)));
                    return;
                }
                let token = self.token();
                self.reads.insert(token, answer);
                self.raft.read_index(token.to_le_bytes().to_vec());
            }
            Event::AddMember(host, answer) => self.add_member(host, answer),
        }
    }

    fn add_member(&mut self, host: Host, answer: Answer<()>) {
        if self.raft.raft.state != StateRole::Leader {
            let leader = self.leader();
            let _ = answer.send(Err(Refusal::NotLeader(leader)));
            return;
        }
        let change = ConfChange {
            change_type: ConfChangeType::AddNode,
            node_id: host.id,
            ..ConfChange::default()
        };
        let result = self.raft.propose_conf_change(host.encode_to_vec(), change);
        self.propose_host(&host);
        let _ = answer.send(result.map_err(|error| Refusal::Refused(error.to_string())));
    }

    fn leader(&self) -> Option<String> {
        let id = self.raft.raft.leader_id;
        (id != 0).then(|| id.to_string())
    }

    /// A leader tells the inventory which hosts there are.
    fn announce_hosts(&mut self) {
        let is_leader = self.raft.raft.state == StateRole::Leader;
        if is_leader && !self.known_hosts {
            for host in self.hosts.clone() {
                self.propose_host(&host);
            }
        }
        self.known_hosts = is_leader;
    }

    fn propose_host(&mut self, host: &Host) {
        let command = Command {
            request_id: String::new(),
            action: Some(Action::Host(host.clone())),
            raft_groups: 1,
        };
        let token = self.token();
        // A refusal is made good by the next leader's announcement.
        let _ = self
            .raft
            .propose(token.to_le_bytes().to_vec(), command.encode_to_vec());
    }

    /// Does what Raft asks for: disk before messages, each time.
    async fn ready(&mut self) -> anyhow::Result<()> {
        while self.raft.has_ready() {
            let mut ready = self.raft.ready();
            for message in ready.take_messages() {
                self.network.send(&message).await?;
            }
            if *ready.snapshot() != Snapshot::default() {
                self.raft
                    .mut_store()
                    .wl()
                    .apply_snapshot(ready.snapshot().clone())?;
            }
            for state in ready.take_read_states() {
                let token = token_of(&state.request_ctx);
                if let Some(answer) = token.and_then(|token| self.reads.remove(&token)) {
                    self.waiting_reads.push((state.index, answer));
                }
            }
            let committed = ready.take_committed_entries();
            self.apply(committed).await?;
            // Nothing goes on until it is on the disk.
            self.log.append(ready.entries(), ready.hs())?;
            if !ready.entries().is_empty() {
                self.raft.mut_store().wl().append(ready.entries())?;
            }
            if let Some(state) = ready.hs() {
                self.raft.mut_store().wl().set_hardstate(state.clone());
            }
            for message in ready.take_persisted_messages() {
                self.network.send(&message).await?;
            }
            let mut light = self.raft.advance(ready);
            if let Some(commit) = light.commit_index() {
                self.raft.mut_store().wl().mut_hard_state().commit = commit;
            }
            for message in light.take_messages() {
                self.network.send(&message).await?;
            }
            let committed = light.take_committed_entries();
            self.apply(committed).await?;
            self.raft.advance_apply();
        }
        self.publish().await;
        Ok(())
    }

    async fn apply(&mut self, entries: Vec<Entry>) -> anyhow::Result<()> {
        for entry in entries {
            let mut shared = self.shared.write().await;
            shared.applied_index = entry.index;
            if entry.get_entry_type() == EntryType::EntryConfChange {
                drop(shared);
                self.apply_change(&entry).await?;
            } else if !entry.data.is_empty() {
                let (outcome, _) = shared.inventory.apply(&Bytes::copy_from_slice(&entry.data));
                drop(shared);
                let token = token_of(&entry.context);
                if let Some(answer) = token.and_then(|token| self.proposals.remove(&token)) {
                    // The client may have given up.
                    let _ = answer.send(Ok(outcome));
                }
            }
        }
        Ok(())
    }

    async fn apply_change(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let mut change = ConfChange::default();
        change.merge_from_bytes(&entry.data)?;
        let state: ConfState = self.raft.apply_conf_change(&change)?;
        self.raft.mut_store().wl().set_conf_state(state);
        let host = Host::decode(entry.context.as_ref())?;
        if !self.hosts.iter().any(|known| known.id == host.id) {
            self.network.add_peer(host.id, host.raft.clone()).await;
            self.hosts.push(host);
        }
        Ok(())
    }

    async fn publish(&mut self) {
        let raft = &self.raft.raft;
        let role = match raft.state {
            StateRole::Leader => "leader",
            StateRole::Follower => "follower",
            _ => "candidate",
        };
        let mut shared = self.shared.write().await;
        shared.role = role;
        shared.term = raft.term;
        shared.leader = raft.leader_id;
        shared.commit_index = raft.raft_log.committed;
        let applied = shared.applied_index;
        drop(shared);
        let waiting = std::mem::take(&mut self.waiting_reads);
        for (index, answer) in waiting {
            if index <= applied {
                let _ = answer.send(Ok(()));
            } else {
                self.waiting_reads.push((index, answer));
            }
        }
        if role != "leader" {
            for (_, answer) in self.proposals.drain() {
                let _ = answer.send(Err(Refusal::OutcomeUnknown(
                    "the leadership was lost".to_owned(),
                )));
            }
        }
    }
}

fn token_of(context: &[u8]) -> Option<u64> {
    context.try_into().ok().map(u64::from_le_bytes)
}
