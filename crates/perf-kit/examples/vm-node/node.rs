//! The node on the crates of this workspace.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use perf_kit::atomics::NodeState;
use perf_kit::metrics::node::{Operation, Outcome as Ended};
use perf_kit::metrics::{BoundHistogram, NodeMetrics, Registry, prometheus};
use perf_kit::pool::BufferGuard;
use perf_kit::raft::{
    ApplyMode, LeaderHint, MemberRole, MembershipChange, OnDamage, ProposeError, RaftHandle,
    RaftNode, RaftOptions, RaftReport, RaftService, ReadError, SegmentLog, SegmentLogOptions,
};
use perf_kit::transport::{Router, Security, Transport};
use prost::Message as _;
use tokio::task::JoinHandle;

use crate::answer::{HostStatus, Member, Members, Refusal, Status, member_role, role_name};
use crate::certificates::{CLUSTER, Identity};
use crate::cli::Serve;
use crate::discovery::find_leaders;
use crate::inventory::Inventory;
use crate::inventory::command::{Action, Command, Host, Outcome, Size};
use crate::machine::Machine;
use crate::placement::{Placements, Strategy};
use crate::view::View;

/// How long a client waits for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a change of the membership may take: a new member gets the log first.
const CHANGE_MAX: Duration = Duration::from_secs(10);
/// How often the status is published and a new leader looks at the hosts.
const HOUSEKEEPING: Duration = Duration::from_millis(20);
/// How long messages may take to leave at the end.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// A running node.
pub(crate) struct FastNode {
    raft: RaftHandle,
    transport: Transport,
    state: Arc<NodeState<Host>>,
    view: Arc<View>,
    placements: Arc<Placements>,
    registry: Registry,
    metrics: NodeMetrics,
    write_us: BoundHistogram<u64>,
    housekeeping: JoinHandle<()>,
    log: JoinHandle<()>,
    discovery: JoinHandle<()>,
}

impl FastNode {
    /// Starts a node: its connections, its log, its state, in this order.
    pub(crate) async fn start(options: Arc<Serve>) -> Result<Arc<Self>> {
        let own = options.own()?;
        let identity = Identity::read(&options.certificates, options.id)?.transport()?;
        let service = RaftService::new();
        let mut transport = Transport::builder(options.id, CLUSTER, Security::MutualTls(identity))
            .router(service.register(Router::new()))
            .listen(own.raft.clone());
        for host in options.others() {
            let address = options.via.get(&host.id).unwrap_or(&host.raft);
            transport = transport.peer(host.id, address.clone());
        }
        let transport = transport
            .start()
            .await
            .with_context(|| format!("cannot listen for peers on {}", own.raft))?;
        let registry = Registry::new();
        let metrics = NodeMetrics::new(&registry)?;
        let write_us = registry
            .u64_histogram("vm.write.duration")
            .with_unit("us")
            .with_description("Time of writes from the request to its answer")
            .build_table::<()>()?;
        let state = Arc::new(NodeState::new(options.id));
        let view = Arc::new(View::new());
        let placements = Arc::new(Placements::new()?);
        let machine = Machine {
            inventory: Inventory::default(),
            view: Arc::clone(&view),
            placements: Arc::clone(&placements),
            state: Arc::clone(&state),
            transport: transport.clone(),
            via: options.via.clone(),
        };
        let mut raft_options = RaftOptions::default();
        raft_options.lease_reads = true;
        raft_options.apply = ApplyMode::Inline;
        // A node whose log is damaged joins again by itself; a cluster of one is refused.
        let mut log_options = SegmentLogOptions::default();
        log_options.on_damage = OnDamage::Rejoin;
        let mut builder = RaftNode::builder(options.id)
            .address(own.raft.clone())
            .log_store(SegmentLog::open_with(&options.data, &log_options)?)
            .transport(service.transport(transport.clone()))
            .state_machine(machine)
            .options(raft_options);
        if !options.join {
            builder = builder.bootstrap(options.peers.iter().map(|host| host.id));
        }
        let raft = builder.start().await?;
        let housekeeping = tokio::spawn(keep_house(
            raft.clone(),
            Arc::clone(&state),
            options.peers.clone(),
        ));
        let log = tokio::spawn(log_changes(raft.clone()));
        let discovery = tokio::spawn(find_leaders(
            options,
            raft.clone(),
            Arc::clone(&state),
            transport.clone(),
        ));
        Ok(Arc::new(Self {
            raft,
            transport,
            state,
            view,
            placements,
            registry,
            metrics,
            write_us,
            housekeeping,
            log,
            discovery,
        }))
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
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
        };
        let response = tokio::time::timeout(ANSWER_MAX, propose(&self.raft, &command)).await;
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
                self.placements.was_full(*host);
            }
            let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.write_us.record(us);
        }
        result
    }

    /// On the leader without a message while its lease holds; otherwise by a round of heartbeats.
    pub(crate) async fn barrier(&self) -> Result<(), Refusal> {
        let read = async {
            match self.raft.lease_read().await {
                Err(ReadError::NoLease | ReadError::NotLeader { .. }) => {
                    self.raft.read_index().await
                }
                result => result,
            }
        };
        match tokio::time::timeout(ANSWER_MAX, read).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(ReadError::NotLeader { hint })) => Err(self.not_leader(hint)),
            Ok(Err(error @ ReadError::Busy { .. })) => Err(Refusal::Busy(error.to_string())),
            Ok(Err(ReadError::Stopped(reason))) => Err(Refusal::Stopped(reason.to_string())),
            Ok(Err(error)) => Err(Refusal::NoQuorum(error.to_string())),
            Err(_) => Err(Refusal::NoQuorum("no quorum confirmed the read".to_owned())),
        }
    }

    pub(crate) fn place(&self, size: Size, apart: &str, strategy: Strategy) -> Option<u64> {
        let generation = self.state.members().generation();
        self.placements.place(size, apart, strategy, generation)
    }

    pub(crate) fn record(&self, operation: Operation, is_done: bool, took: Duration) {
        self.metrics.vm_operations[operation][Ended::of(is_done)].add(1);
        self.metrics.vm_operation_duration[operation].record(took.as_secs_f64());
    }

    pub(crate) fn status(&self) -> Status {
        let status = self.state.status();
        let counters = self.view.counters();
        let snapshot = self.registry.collect();
        let histogram = snapshot
            .metric("vm.write.duration")
            .and_then(|metric| metric.series().first())
            .and_then(|series| series.histogram());
        let percentile = |share| {
            let quantile = histogram?.quantile(share)?;
            Some(quantile.value / 1000.0)
        };
        let hosts = self.view.hosts();
        Status {
            node: status.node_id,
            role: role_name(&status),
            term: status.term,
            leader: status.leader_id,
            commit_index: status.commit_index,
            applied_index: status.applied_index,
            vms: counters.vm_count(),
            running: counters.running_vms(),
            used_vcpus: counters.used_vcpus(),
            total_vcpus: counters.total_vcpus(),
            requests: histogram.map_or(0, |histogram| histogram.count()),
            write_ms_p50: percentile(0.5),
            write_ms_p99: percentile(0.99),
            naive: false,
            hosts: hosts.iter().map(HostStatus::from).collect(),
        }
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.state.status().leader().is_some()
    }

    pub(crate) fn metrics(&self) -> String {
        let status = self.raft.status();
        let metrics = &self.metrics;
        metrics.raft_term.set(status.term);
        metrics.raft_commit_index.set(status.commit_index);
        metrics.raft_applied_index.set(status.applied_index);
        metrics.raft_is_leader.set(u64::from(status.is_leader()));
        let counters = self.view.counters();
        metrics.vm_count.set(counters.vm_count());
        metrics.vm_running.set(counters.running_vms());
        metrics.cluster_nodes.set(counters.cluster_nodes());
        let mut text = String::new();
        prometheus::write(&self.registry.collect(), &mut text);
        text
    }

    /// The members of the Raft group with their hosts, and what is the matter, as this node knows them.
    pub(crate) fn members(&self) -> Members {
        let report = self.raft.report();
        let hosts = self.view.hosts();
        let members = report.members.iter().map(|member| {
            let peer = report.peers.iter().find(|peer| peer.id == member.id);
            let host = hosts.iter().find(|state| state.host.id == member.id);
            Member {
                id: member.id,
                role: member_role(member.role),
                lag: peer.map(|peer| peer.lag),
                is_live: peer.map(|peer| peer.is_live),
                http: host.map(|state| state.host.http.clone()),
                raft: host.map(|state| state.host.raft.clone()),
            }
        });
        Members {
            leader: report.leader_id,
            is_changing: report.is_joint,
            members: members.collect(),
            troubles: report.troubles.iter().map(ToString::to_string).collect(),
        }
    }

    pub(crate) async fn add_member(&self, host: Host) -> Result<(), Refusal> {
        let id = host.id;
        let is_new = self.view.host_http(id).is_none();
        // First the address, on every node; then the vote.
        match self.write(String::new(), Action::Join(host)).await? {
            Outcome::Host(_) => {}
            _ => {
                return Err(Refusal::Refused(format!(
                    "there is a member {id} with other addresses or another size: choose another id, or remove it first"
                )));
            }
        }
        let result = self.change(MembershipChange::AddVoter(id)).await;
        if is_new && matches!(result, Err(Refusal::Refused(_))) {
            // A refused change leaves no host behind. If this fails, `DELETE /members/{id}` removes it.
            let _ = self.write(String::new(), Action::Leave(id)).await;
        }
        result
    }

    pub(crate) async fn remove_member(&self, id: u64) -> Result<(), Refusal> {
        let report = self.raft.report();
        if id == self.raft.id() && self.raft.status().is_leader() {
            // The group goes on without a pause if the leader leaves only once another one leads.
            let voter = |member: &&perf_kit::raft::Member| {
                member.id != id && member.role == MemberRole::Voter
            };
            let Some(next) = report.members.iter().find(voter) else {
                return Err(Refusal::Refused(
                    "the last voter cannot be removed: add another member first".to_owned(),
                ));
            };
            if let Err(error) = self.raft.transfer_leader(next.id).await {
                return Err(self.refusal(error));
            }
            return Err(Refusal::NotLeader(self.view.host_http(next.id)));
        }
        let is_member = report.members.iter().any(|member| member.id == id);
        if !is_member && self.view.host_http(id).is_none() {
            return Err(Refusal::UnknownMember(id));
        }
        // The report is as old as a tick: whether it is a member is for the group to say.
        self.change(MembershipChange::Remove(id)).await?;
        self.write(String::new(), Action::Leave(id)).await?;
        Ok(())
    }

    async fn change(&self, change: MembershipChange) -> Result<(), Refusal> {
        let change = self.raft.change_membership(vec![change]);
        match tokio::time::timeout(CHANGE_MAX, change).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.refusal(error)),
            Err(_) => Err(Refusal::OutcomeUnknown(
                "the change is under way".to_owned(),
            )),
        }
    }

    /// Hands the leadership on, if this node leads.
    pub(crate) async fn hand_over(&self) {
        let status = self.raft.status();
        if status.is_leader() {
            let report = self.raft.report();
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
                let _ = self.raft.transfer_leader(next.id).await;
            }
        }
    }

    /// Stops, and closes the log.
    pub(crate) async fn shutdown(&self) {
        self.housekeeping.abort();
        self.log.abort();
        self.discovery.abort();
        self.raft.shutdown().await;
        self.transport.drain(DRAIN_MAX).await;
        self.transport.shutdown();
    }

    /// Resolves when the node stops by itself.
    pub(crate) async fn stopped(&self) -> String {
        self.raft.stopped().await.to_string()
    }

    fn not_leader(&self, hint: LeaderHint) -> Refusal {
        Refusal::NotLeader(hint.id().and_then(|id| self.view.host_http(id)))
    }

    fn refusal(&self, error: ProposeError) -> Refusal {
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

/// Proposes a command, encoded into a buffer of the pool.
async fn propose(raft: &RaftHandle, command: &Command) -> Result<Outcome, ProposeError> {
    let mut buffer = BufferGuard::new(command.encoded_len());
    command
        .encode(buffer.get_mut())
        .expect("a Vec grows to whatever is written");
    let data = buffer.freeze();
    Ok(Outcome::from_bytes(raft.propose(data).await?))
}

/// Publishes the status, and as a new leader tells the inventory which hosts there are.
async fn keep_house(raft: RaftHandle, state: Arc<NodeState<Host>>, hosts: Vec<Host>) {
    let mut tick = tokio::time::interval(HOUSEKEEPING);
    let mut term_announced = 0;
    loop {
        tick.tick().await;
        let status = raft.status();
        state.publish_status(status);
        if !status.is_leader() || status.term == term_announced {
            continue;
        }
        let announced = async {
            for host in &hosts {
                let command = Command {
                    request_id: String::new(),
                    action: Some(Action::Host(host.clone())),
                };
                propose(&raft, &command).await?;
            }
            Ok::<(), ProposeError>(())
        };
        // Otherwise again at the next tick, or by the next leader.
        if announced.await.is_ok() {
            term_announced = status.term;
        }
    }
}

/// Logs what an operator looks for first: who leads, who the members are, and what is the matter, each time that it changes.
async fn log_changes(raft: RaftHandle) {
    let id = raft.id();
    let mut reports = raft.watch();
    let mut before = RaftReport::default();
    loop {
        let now = reports.borrow_and_update().clone();
        for line in changes(&before, &now) {
            eprintln!("node {id}: {line}");
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
            .field("status", &self.raft.status())
            .finish_non_exhaustive()
    }
}
