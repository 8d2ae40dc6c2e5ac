//! The node on the crates of this workspace.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use perf_kit::atomics::NodeState;
use perf_kit::metrics::node::{Operation, Outcome as Ended};
use perf_kit::metrics::{BoundHistogram, NodeMetrics, Registry, prometheus};
use perf_kit::pool::BufferGuard;
use perf_kit::raft::{
    ApplyMode, EntryMemory, GroupId, LeaderHint, MemberRole, OnDamage, ProposeError, RaftHandle,
    RaftHost, RaftOptions, RaftReport, RaftService, RaftStatus, ReadError, SegmentLog,
    SegmentLogOptions,
};
use perf_kit::transport::{Router, Security, Transport};
use prost::Message as _;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::answer::{GroupStatus, HostStatus, Refusal, Status, member_role, role_name};
use crate::balance::spread_leaders;
use crate::certificates::{CLUSTER, Identity};
use crate::cli::Serve;
use crate::discovery::find_leaders;
use crate::groups::{group_of, keep_count};
use crate::inventory::Inventory;
use crate::inventory::command::{Action, Command, Host, Outcome, Size};
use crate::machine::{Machine, Shared};
use crate::members::follow_members;
use crate::placement::{Placements, Strategy};
use crate::view::View;

/// How long a client waits for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How often the status is published, and a new leader tries to announce the hosts.
const HOUSEKEEPING: Duration = Duration::from_millis(20);
/// How long messages may take to leave at the end.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// A running node.
pub(crate) struct FastNode {
    host: RaftHost,
    pub(crate) groups: Vec<Group>,
    pub(crate) shared: Arc<Shared>,
    registry: Registry,
    metrics: NodeMetrics,
    write_us: BoundHistogram<u64>,
    tasks: Vec<JoinHandle<()>>,
}

/// A Raft group of the node. The first one has the say about the members of all.
pub(crate) struct Group {
    pub(crate) raft: RaftHandle,
    placements: Arc<Placements>,
}

impl FastNode {
    /// Starts a node: its connections, its log, its groups, in this order.
    pub(crate) async fn start(options: Arc<Serve>) -> Result<Arc<Self>> {
        let own = options.own()?;
        keep_count(&options.data, options.groups)?;
        let service = RaftService::new();
        let transport = connect(&options, &service).await?;
        let registry = Registry::new();
        let metrics = NodeMetrics::new(&registry)?;
        let write_us = registry
            .u64_histogram("vm.write.duration")
            .with_unit("us")
            .with_description("Time of writes from the request to its answer")
            .build_table::<()>()?;
        let shared = Arc::new(Shared {
            view: View::new(options.groups),
            state: NodeState::new(options.id),
            roster: parking_lot::Mutex::default(),
            transport: transport.clone(),
            via: options.via.clone(),
            other_groups: watch::Sender::new(0),
        });
        // A node whose log is damaged joins again by itself; a cluster of one is refused.
        let mut log_options = SegmentLogOptions::default();
        log_options.on_damage = OnDamage::Rejoin;
        log_options.segment_bytes = options.log_bytes as u64 / 8;
        let host = RaftHost::builder(options.id)
            .address(own.raft.clone())
            .log_store(SegmentLog::open_with(&options.data, &log_options)?)
            .transport(service.transport(transport))
            .options(raft_options(options.groups, options.log_bytes))
            .entry_memory(&EntryMemory::new(options.log_bytes / 4)?)
            .start()
            .await?;
        let mut groups = Vec::new();
        for group in 0..options.groups {
            groups.push(open(&host, group, &options, &shared).await?);
        }
        let tasks = tasks(&groups, &options, &shared);
        Ok(Arc::new(Self {
            host,
            groups,
            shared,
            registry,
            metrics,
            write_us,
            tasks,
        }))
    }

    pub(crate) fn view(&self) -> &View {
        &self.shared.view
    }

    fn group_of(&self, vm: &str) -> u32 {
        group_of(vm, self.count())
    }

    fn count(&self) -> u32 {
        self.groups.len() as u32
    }

    pub(crate) fn group(&self, group: u32) -> &Group {
        &self.groups[group as usize]
    }

    /// A change of one VM, by its group.
    pub(crate) async fn write(
        &self,
        request_id: String,
        action: Action,
    ) -> Result<Outcome, Refusal> {
        let group = action.vm().map_or(0, |vm| self.group_of(vm));
        let is_create = matches!(action, Action::Create(_));
        let leads = || self.group(group).raft.status().is_leader();
        if is_create && !self.view().has_hosts(group) && leads() {
            // That there is no room would be remembered.
            let what = "the hosts of a new group are not known yet".to_owned();
            return Err(Refusal::Busy(what));
        }
        self.write_to(group, request_id, action).await
    }

    /// A change by the group that is named.
    pub(crate) async fn write_to(
        &self,
        group: u32,
        request_id: String,
        action: Action,
    ) -> Result<Outcome, Refusal> {
        let start = Instant::now();
        let command = Command {
            request_id,
            action: Some(action),
            raft_groups: self.count(),
        };
        let Group { raft, placements } = self.group(group);
        let response = tokio::time::timeout(ANSWER_MAX, propose(raft, &command)).await;
        let result = match response {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(error)) => Err(self.refusal(error)),
            Err(_) => Err(Refusal::OutcomeUnknown(format!(
                "no answer within {} s",
                ANSWER_MAX.as_secs()
            ))),
        };
        self.metrics.raft_proposals[Ended::of(result.is_ok())].add(1);
        if let Ok(outcome) = &result {
            if let Outcome::NoRoom(host) = outcome {
                placements.was_full(*host);
            }
            let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.write_us.record(us);
        }
        result
    }

    /// For a VM its group's barrier; without a name that of all groups, at the same time.
    pub(crate) async fn barrier(&self, vm: Option<&str>) -> Result<(), Refusal> {
        let result = match vm {
            Some(vm) => barrier(&self.group(self.group_of(vm)).raft).await,
            None if self.groups.len() == 1 => barrier(&self.group(0).raft).await,
            None => {
                let barriers = self.groups.iter().map(|group| {
                    let raft = group.raft.clone();
                    async move { barrier(&raft).await }
                });
                let results = barriers.collect::<JoinSet<_>>().join_all().await;
                results.into_iter().collect()
            }
        };
        match result {
            // A node that counts other groups looks for VMs where they are not.
            Ok(()) => match *self.shared.other_groups.borrow() {
                0 => Ok(()),
                groups => Err(Refusal::Stopped(self.other_groups(groups))),
            },
            Err(ReadError::NotLeader { hint }) => Err(self.not_leader(hint)),
            Err(error @ ReadError::Busy { .. }) => Err(Refusal::Busy(error.to_string())),
            Err(ReadError::Stopped(reason)) => Err(Refusal::Stopped(reason.to_string())),
            Err(error) => Err(Refusal::NoQuorum(error.to_string())),
        }
    }

    pub(crate) async fn place(
        &self,
        vm: &str,
        size: Size,
        apart: &str,
        strategy: Strategy,
    ) -> Option<u64> {
        let Group { raft, placements } = self.group(self.group_of(vm));
        if apart.is_empty() || !raft.status().is_leader() {
            let generation = self.shared.state.members().generation();
            return placements.place(size, strategy, generation);
        }
        if self.count() > 1 {
            // What other groups acknowledged before counts, too. Without an answer it counts as far as this node knows.
            let _ = self.barrier(None).await;
        }
        placements.place_apart(size, &self.view().taken(apart), strategy)
    }

    pub(crate) fn record(&self, operation: Operation, is_done: bool, took: Duration) {
        self.metrics.vm_operations[operation][Ended::of(is_done)].add(1);
        self.metrics.vm_operation_duration[operation].record(took.as_secs_f64());
    }

    pub(crate) fn status(&self) -> Status {
        let status = self.shared.state.status();
        let view = self.view();
        let snapshot = self.registry.collect();
        let histogram = snapshot
            .metric("vm.write.duration")
            .and_then(|metric| metric.series().first())
            .and_then(|series| series.histogram());
        let percentile = |share| {
            let quantile = histogram?.quantile(share)?;
            Some(quantile.value / 1000.0)
        };
        let hosts = view.hosts();
        Status {
            node: status.node_id,
            role: role_name(&status),
            term: status.term,
            leader: status.leader_id,
            commit_index: status.commit_index,
            applied_index: status.applied_index,
            vms: view.vm_count(),
            running: view.running_vms(),
            used_vcpus: hosts.iter().map(|state| state.used.vcpus).sum(),
            total_vcpus: hosts
                .iter()
                .map(|state| u64::from(state.host.size.vcpus))
                .sum(),
            requests: histogram.map_or(0, |histogram| histogram.count()),
            write_ms_p50: percentile(0.5),
            write_ms_p99: percentile(0.99),
            naive: false,
            hosts: hosts.iter().map(HostStatus::from).collect(),
            groups: self
                .statuses()
                .map(|status| GroupStatus::from(&status))
                .collect(),
        }
    }

    fn statuses(&self) -> impl Iterator<Item = RaftStatus> {
        self.groups.iter().map(|group| group.raft.status())
    }

    /// Whether a leader of each group is known.
    pub(crate) fn is_healthy(&self) -> bool {
        self.statuses().all(|status| status.leader().is_some())
    }

    /// Indices are the sums over the groups, and the term is the highest.
    pub(crate) fn metrics(&self) -> String {
        let metrics = &self.metrics;
        let sum = |part: fn(&RaftStatus) -> u64| self.statuses().map(|status| part(&status)).sum();
        let term = self.statuses().map(|status| status.term).max();
        metrics.raft_term.set(term.unwrap_or(0));
        metrics
            .raft_commit_index
            .set(sum(|status| status.commit_index));
        metrics
            .raft_applied_index
            .set(sum(|status| status.applied_index));
        metrics
            .raft_is_leader
            .set(sum(|status| u64::from(status.is_leader())));
        let view = self.view();
        metrics.vm_count.set(view.vm_count());
        metrics.vm_running.set(view.running_vms());
        metrics.cluster_nodes.set(view.hosts().len() as u64);
        let mut text = String::new();
        prometheus::write(&self.registry.collect(), &mut text);
        text
    }

    /// Hands the leadership of each group on that this node leads.
    pub(crate) async fn hand_over(&self) {
        let groups = self
            .groups
            .iter()
            .map(|group| hand_over(group.raft.clone()));
        groups.collect::<JoinSet<_>>().join_all().await;
    }

    /// Stops, and closes the log.
    pub(crate) async fn shutdown(&self) {
        for task in &self.tasks {
            task.abort();
        }
        self.host.shutdown().await;
        let transport = &self.shared.transport;
        transport.drain(DRAIN_MAX).await;
        transport.shutdown();
    }

    /// Resolves when one of the groups stops by itself, or when the cluster turns out to have another count of groups.
    pub(crate) async fn stopped(&self) -> String {
        let ends = self.groups.iter().enumerate().map(|(number, group)| {
            let raft = group.raft.clone();
            async move { (number, raft.stopped().await) }
        });
        let mut ends: JoinSet<_> = ends.collect();
        let mut other_groups = self.shared.other_groups.subscribe();
        tokio::select! {
            Some(Ok((number, reason))) = ends.join_next() => {
                format!("{}{reason}", self.prefix(number as u32))
            }
            Ok(groups) = other_groups.wait_for(|groups| *groups != 0) => self.other_groups(*groups),
        }
    }

    fn other_groups(&self, groups: u32) -> String {
        format!(
            "the cluster spreads its inventory over {groups} groups, and --groups is {}: \
             start the node with --groups {groups}",
            self.count()
        )
    }

    /// What names a group in a sentence, where there are several.
    pub(crate) fn prefix(&self, group: u32) -> String {
        prefix(group, self.count())
    }

    pub(crate) fn not_leader(&self, hint: LeaderHint) -> Refusal {
        Refusal::NotLeader(hint.id().and_then(|id| self.view().host_http(id)))
    }

    pub(crate) fn refusal(&self, error: ProposeError) -> Refusal {
        let text = error.to_string();
        match error {
            ProposeError::NotLeader { hint } => self.not_leader(hint),
            ProposeError::ProposalDropped => Refusal::NoQuorum(text),
            ProposeError::Busy { .. } => Refusal::Busy(text),
            ProposeError::Stopped(_) => Refusal::Stopped(text),
            ProposeError::Refused { .. } | ProposeError::TooLarge { .. } => Refusal::Refused(text),
            _ => Refusal::OutcomeUnknown(text),
        }
    }
}

/// Proposes a command.
pub(crate) async fn propose(raft: &RaftHandle, command: &Command) -> Result<Outcome, ProposeError> {
    Ok(Outcome::from_bytes(raft.propose(encode(command)).await?))
}

/// A command in a buffer of the pool.
fn encode(command: &Command) -> Bytes {
    let mut buffer = BufferGuard::new(command.encoded_len());
    command
        .encode(buffer.get_mut())
        .expect("a Vec grows to whatever is written");
    buffer.freeze()
}

/// Listens for peers, and dials those on the command line.
async fn connect(options: &Serve, service: &RaftService) -> Result<Transport> {
    let own = options.own()?;
    let identity = Identity::read(&options.certificates, options.id)?.transport()?;
    let mut transport = Transport::builder(options.id, CLUSTER, Security::MutualTls(identity))
        .router(service.register(Router::new()))
        .listen(own.raft.clone());
    for host in options.others() {
        let address = options.via.get(&host.id).unwrap_or(&host.raft);
        transport = transport.peer(host.id, address.clone());
    }
    transport
        .start()
        .await
        .with_context(|| format!("cannot listen for peers on {}", own.raft))
}

/// Bounds of each group, so that all groups together have those of one.
fn raft_options(groups: u32, log_bytes: usize) -> RaftOptions {
    let groups = groups as usize;
    let mut options = RaftOptions::default();
    options.lease_reads = true;
    options.apply = ApplyMode::Inline;
    options.proposals_max = (options.proposals_max / groups).max(256);
    options.uncommitted_bytes_max = (options.uncommitted_bytes_max / groups).max(2 << 20);
    options.inbound_bytes_max = (options.inbound_bytes_max / groups).max(4 << 20);
    options.snapshot_entries = (options.snapshot_entries / groups as u64).max(1000);
    options.log_entries_kept = (options.log_entries_kept / groups as u64).max(100);
    options.log_bytes_max = log_bytes / groups;
    options.snapshot_log_bytes = options.log_bytes_max / 4;
    options
}

/// Opens a group that the log holds, forms it with the others, or waits to be taken in.
async fn open(host: &RaftHost, group: u32, options: &Serve, shared: &Arc<Shared>) -> Result<Group> {
    let placements = Arc::new(Placements::new()?);
    let machine = Machine {
        group,
        groups: options.groups,
        inventory: Inventory::default(),
        placements: Arc::clone(&placements),
        shared: Arc::clone(shared),
    };
    let machine = perf_kit::raft::Machine::streamed(machine);
    // Groups count from 1 in the log, where a node of one group has always had that number.
    let id = GroupId(u64::from(group) + 1);
    let raft = if options.join {
        host.open_group(id, machine).await?
    } else {
        let voters = options.peers.iter().map(|host| host.id);
        host.create_group(id, machine, voters).await?
    };
    Ok(Group { raft, placements })
}

/// Starts what runs beside the groups.
fn tasks(groups: &[Group], options: &Arc<Serve>, shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let handles: Vec<RaftHandle> = groups.iter().map(|group| group.raft.clone()).collect();
    let count = options.groups;
    let part = |host: &Host| Host {
        size: host.size.part(count),
        ..host.clone()
    };
    let hosts: Vec<Host> = options.peers.iter().map(part).collect();
    let mut tasks = Vec::new();
    for (group, raft) in (0..count).zip(&handles) {
        let announced = announce_hosts(raft.clone(), count, hosts.clone());
        tasks.push(tokio::spawn(announced));
        tasks.push(tokio::spawn(log_changes(
            raft.clone(),
            prefix(group, count),
        )));
        if count > 1 {
            tasks.push(tokio::spawn(spread_leaders(group, raft.clone())));
        }
        if group > 0 {
            let following = follow_members(group, handles.clone(), Arc::clone(shared));
            tasks.push(tokio::spawn(following));
        }
    }
    tasks.push(tokio::spawn(publish_status(
        handles[0].clone(),
        Arc::clone(shared),
    )));
    tasks.push(tokio::spawn(find_leaders(
        Arc::clone(options),
        handles,
        Arc::clone(shared),
    )));
    tasks
}

fn prefix(group: u32, groups: u32) -> String {
    match groups {
        1 => String::new(),
        _ => format!("group {group}: "),
    }
}

/// On the leader without a message while its lease holds; otherwise by a round of heartbeats.
async fn barrier(raft: &RaftHandle) -> Result<(), ReadError> {
    let read = async {
        match raft.lease_read().await {
            Err(ReadError::NoLease | ReadError::NotLeader { .. }) => raft.read_index().await,
            result => result,
        }
    };
    match tokio::time::timeout(ANSWER_MAX, read).await {
        Ok(result) => result.map(drop),
        Err(_) => Err(ReadError::TimedOut),
    }
}

async fn hand_over(raft: RaftHandle) {
    if !raft.status().is_leader() {
        return;
    }
    let report = raft.report();
    // The one that lacks least takes over soonest; any of those that lack nothing.
    let live = report.peers.iter().filter(|peer| peer.is_live);
    let next = live
        .filter(|peer| {
            report
                .members
                .iter()
                .any(|member| member.id == peer.id && member.role == MemberRole::Voter)
        })
        .min_by_key(|peer| (peer.lag, rand::random::<u32>()));
    if let Some(next) = next {
        // If it fails, the others elect one.
        let _ = raft.transfer_leader(next.id).await;
    }
}

/// Publishes the status of the first group.
async fn publish_status(raft: RaftHandle, shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(HOUSEKEEPING);
    loop {
        tick.tick().await;
        shared.state.publish_status(raft.status());
    }
}

/// As a new leader of a group tells it which hosts there are. A group without news costs nothing.
async fn announce_hosts(raft: RaftHandle, groups: u32, hosts: Vec<Host>) {
    let mut reports = raft.watch();
    let mut term_announced = 0;
    loop {
        let status = raft.status();
        if status.is_leader() && status.term != term_announced {
            let commands = hosts.iter().map(|host| {
                encode(&Command {
                    request_id: String::new(),
                    action: Some(Action::Host(host.clone())),
                    raft_groups: groups,
                })
            });
            // At once, so that no VM is placed by a part of them.
            let announced = raft.propose_batch(commands.collect());
            let is_done = announced
                .await
                .is_ok_and(|results| results.iter().all(Result::is_ok));
            if !is_done {
                // Again, or by the next leader.
                tokio::time::sleep(HOUSEKEEPING).await;
                continue;
            }
            term_announced = status.term;
        }
        if reports.changed().await.is_err() {
            return;
        }
    }
}

/// Logs what an operator looks for first: who leads, who the members are, and what is the matter, each time that it changes.
async fn log_changes(raft: RaftHandle, prefix: String) {
    let id = raft.id();
    let mut reports = raft.watch();
    let mut before = RaftReport::default();
    loop {
        let now = reports.borrow_and_update().clone();
        for line in changes(&before, &now) {
            eprintln!("node {id}: {prefix}{line}");
        }
        before = now;
        if reports.changed().await.is_err() {
            return;
        }
    }
}

fn changes(before: &RaftReport, now: &RaftReport) -> Vec<String> {
    let mut lines = Vec::new();
    if before.leader_id != now.leader_id {
        lines.push(match now.leader_id {
            0 => "no leader is known".to_owned(),
            leader => format!("node {leader} leads"),
        });
    }
    if before.members != now.members {
        let member = |member: &perf_kit::raft::Member| {
            format!("{} ({})", member.id, member_role(member.role))
        };
        let members: Vec<String> = now.members.iter().map(member).collect();
        lines.push(format!("the members are {}", members.join(", ")));
    }
    for peer in &now.peers {
        let old = before.peers.iter().find(|old| old.id == peer.id);
        if old.is_some_and(|old| old.is_live != peer.is_live) {
            let what = if peer.is_live {
                "is heard of again"
            } else {
                "is silent"
            };
            lines.push(format!("node {} {what}", peer.id));
        }
    }
    let new = now.troubles.iter();
    let new = new.filter(|trouble| !before.troubles.contains(trouble));
    lines.extend(new.map(ToString::to_string));
    lines
}

impl std::fmt::Debug for FastNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FastNode")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}
