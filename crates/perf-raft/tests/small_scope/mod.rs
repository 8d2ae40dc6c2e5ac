//! Every order of events in a small group, up to a number of them.
//!
//! The nodes are real cores, and a core is a function of its inputs. So a state of the whole group is the list of inputs of each node: two
//! orders of events that give each node the same inputs are the same state, and only one of them is followed. That is exact, and
//! needs no look into the cores.
#![allow(dead_code)]

use bytes::Bytes;
use perf_raft::core::{ApplyJob, Core, CoreConfig, Outputs, Reply, bootstrap_state, encode_frames};
use perf_raft::log::{LogJob, LogState};
use perf_raft::{GroupId, Identity, MembershipChange, OutboundMessage, RaftOptions, Role};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{Hash, Hasher};

/// How often each rare event may happen in one history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    pub(crate) nodes: u64,
    pub(crate) commands: u8,
    pub(crate) crashes: u8,
    pub(crate) elections: u8,
    pub(crate) snapshots: u8,
    pub(crate) changes: u8,
    /// Events after the group was formed.
    pub(crate) depth: usize,
    /// States after which the search ends, wherever it is.
    pub(crate) states_max: usize,
}

/// What a search has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) states: usize,
    /// All histories of so many events were followed.
    pub(crate) depth: usize,
    pub(crate) acknowledged: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Event {
    /// The oldest frame between two nodes arrives.
    Deliver(u64, u64),
    /// All jobs of the log become durable.
    Persist(u64),
    /// The state machine does its oldest job.
    Apply(u64),
    Propose(u64),
    /// What is not durable is gone, and the node starts again.
    Crash(u64),
    /// So much time passes at the node that it campaigns.
    Campaign(u64),
    Snapshot(u64),
    /// The node with the highest id leaves.
    Remove(u64),
}

struct Node {
    core: Core<u64>,
    starts: u64,
    ticks: u64,
    disk: LogState,
    jobs: Vec<LogJob>,
    apply: VecDeque<ApplyJob<u64>>,
    /// The state machine: commands with their indexes.
    machine: Vec<(u64, u8)>,
    /// A hash of all inputs so far.
    inputs: u64,
}

struct Group {
    scope: Scope,
    nodes: BTreeMap<u64, Node>,
    links: BTreeMap<(u64, u64), VecDeque<Bytes>>,
    spent: [u8; 5],
    proposed: u8,
    acknowledged: BTreeSet<u8>,
    applied: BTreeMap<u64, u8>,
    left: Option<u64>,
    broken: Option<String>,
}

const GROUP: GroupId = GroupId(1);
const MACHINE_HEAD: u8 = 0xAB;

fn options() -> RaftOptions {
    let mut options = RaftOptions::default();
    options.election_ticks = 3;
    options.heartbeat_ticks = 1;
    options.log_entries_kept = 0;
    options
}

fn start(id: u64, starts: u64, disk: LogState) -> Core<u64> {
    let config = CoreConfig {
        id,
        group: GROUP,
        options: options(),
        seed: id,
        incarnation: disk.identity.map_or(0, |identity| identity.incarnation),
        session: id * 1000 + starts,
        entry_memory: perf_raft::EntryMemory::of_process(),
    };
    Core::new(config, disk).expect("what was durable is sound")
}

fn machine_bytes(machine: &[(u64, u8)]) -> Bytes {
    let mut bytes = vec![MACHINE_HEAD];
    for (index, command) in machine {
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.push(*command);
    }
    bytes.into()
}

fn machine_of(bytes: &[u8]) -> Vec<(u64, u8)> {
    assert_eq!(bytes[0], MACHINE_HEAD);
    let parts = bytes[1..].chunks_exact(9);
    parts
        .map(|part| {
            (
                u64::from_le_bytes(*part.first_chunk().expect("nine bytes")),
                part[8],
            )
        })
        .collect()
}

impl Group {
    /// A group that node 1 leads, with nothing on its way.
    fn new(scope: Scope) -> Self {
        let voters: Vec<u64> = (1..=scope.nodes).collect();
        let state = bootstrap_state(&voters, machine_bytes(&[]));
        let node = |id: u64| {
            let mut identity = Identity::default();
            (identity.node, identity.incarnation) = (id, 100 + id);
            let disk = LogState {
                identity: Some(identity),
                ..state.clone()
            };
            Node {
                core: start(id, 0, disk.clone()),
                starts: 0,
                ticks: 0,
                disk,
                jobs: Vec::new(),
                apply: VecDeque::new(),
                machine: Vec::new(),
                inputs: 0,
            }
        };
        let mut group = Self {
            scope,
            nodes: voters.iter().map(|&id| (id, node(id))).collect(),
            links: BTreeMap::new(),
            spent: [0; 5],
            proposed: 0,
            acknowledged: BTreeSet::new(),
            applied: BTreeMap::new(),
            left: None,
            broken: None,
        };
        for id in voters {
            group.outputs(id);
        }
        group.settle(20);
        assert_eq!(group.leader(), Some(1), "the first member leads");
        group
    }

    fn leader(&self) -> Option<u64> {
        let leads = |node: &&Node| node.core.status().role == Role::Leader;
        let leader = self.nodes.values().filter(leads);
        let leader = leader.max_by_key(|node| node.core.status().term);
        leader.map(|node| node.core.status().node_id)
    }

    fn fail(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// What may happen now.
    fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let queues = self.links.iter().filter(|(_, queue)| !queue.is_empty());
        events.extend(queues.map(|(&(from, to), _)| Event::Deliver(from, to)));
        let [crashes, elections, snapshots, changes, commands] = self.spent;
        for (&id, node) in &self.nodes {
            if !node.jobs.is_empty() {
                events.push(Event::Persist(id));
            }
            if !node.apply.is_empty() {
                events.push(Event::Apply(id));
            }
            if commands < self.scope.commands && node.core.status().role == Role::Leader {
                events.push(Event::Propose(id));
            }
            if crashes < self.scope.crashes {
                events.push(Event::Crash(id));
            }
            let leads = node.core.status().role == Role::Leader;
            if elections < self.scope.elections && !leads {
                events.push(Event::Campaign(id));
            }
            if snapshots < self.scope.snapshots {
                events.push(Event::Snapshot(id));
            }
            if changes < self.scope.changes && leads {
                events.push(Event::Remove(id));
            }
        }
        events
    }

    /// The nodes whose list of inputs the event makes longer, with what it adds.
    fn input(&self, event: Event) -> (u64, u64) {
        let mut hasher = DefaultHasher::new();
        let node = match event {
            Event::Deliver(from, to) => {
                (
                    0,
                    from,
                    self.links.get(&(from, to)).and_then(|queue| queue.front()),
                )
                    .hash(&mut hasher);
                to
            }
            // How many jobs become durable at once follows from when.
            Event::Persist(id) => {
                (1, self.nodes[&id].jobs.len()).hash(&mut hasher);
                id
            }
            Event::Propose(id) => {
                (2, self.proposed).hash(&mut hasher);
                id
            }
            Event::Apply(id)
            | Event::Crash(id)
            | Event::Campaign(id)
            | Event::Snapshot(id)
            | Event::Remove(id) => {
                (3, event).hash(&mut hasher);
                id
            }
        };
        (node, hasher.finish())
    }

    /// Names the state that the event leads to.
    fn key_after(&self, event: Event) -> u64 {
        let (changed, input) = self.input(event);
        let mut hasher = DefaultHasher::new();
        for (&id, node) in &self.nodes {
            let inputs = if id == changed {
                chain(node.inputs, input)
            } else {
                node.inputs
            };
            inputs.hash(&mut hasher);
        }
        hasher.finish()
    }

    fn happen(&mut self, event: Event) {
        let (id, input) = self.input(event);
        let node = self.nodes.get_mut(&id).expect("it is there");
        node.inputs = chain(node.inputs, input);
        match event {
            Event::Deliver(from, to) => {
                let frame = self
                    .links
                    .get_mut(&(from, to))
                    .and_then(VecDeque::pop_front);
                let frame = frame.expect("there is one");
                node.core.receive_encoded(frame);
            }
            Event::Persist(_) => {
                let jobs = std::mem::take(&mut node.jobs);
                let last = jobs.last().map_or(0, |job| job.sequence);
                for job in &jobs {
                    node.disk.apply(job);
                }
                node.core.persisted(last);
            }
            Event::Apply(id) => self.apply(id),
            Event::Propose(_) => {
                self.spent[4] += 1;
                self.proposed += 1;
                let command = self.proposed;
                let mut batch = vec![(Bytes::from(vec![command]), u64::from(command))];
                node.core.propose(&mut batch);
            }
            Event::Crash(_) => {
                self.spent[0] += 1;
                node.starts += 1;
                node.jobs.clear();
                node.apply.clear();
                node.machine.clear();
                node.core = start(id, node.starts, node.disk.clone());
            }
            Event::Campaign(_) => {
                self.spent[1] += 1;
                for _ in 0..2 * options().election_ticks {
                    self.tick(id);
                }
                return;
            }
            Event::Snapshot(_) => {
                self.spent[2] += 1;
                node.core.make_snapshot(0);
            }
            Event::Remove(_) => {
                self.spent[3] += 1;
                let last = self.scope.nodes;
                self.left = Some(last);
                node.core
                    .change_membership(&[MembershipChange::Remove(last)], false, 0);
            }
        }
        self.outputs(id);
    }

    fn tick(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("it is there");
        node.ticks += 1;
        node.core.tick(node.ticks * 50_000_000);
        self.outputs(id);
    }

    fn apply(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("it is there");
        let Some(job) = node.apply.pop_front() else {
            return;
        };
        match job {
            ApplyJob::Restore(snapshot) => {
                node.machine = machine_of(&snapshot.data);
                node.core.applied(snapshot.metadata.index);
            }
            ApplyJob::DurableIndex => unreachable!("the machine is not durable"),
            ApplyJob::Snapshot => {
                let index = node.core.status().applied_index;
                let data = machine_bytes(&node.machine);
                node.core.snapshot_made(index, Ok(data));
            }
            ApplyJob::Apply {
                commands,
                waiting,
                index,
            } => {
                let mut waiting = waiting.into_iter().peekable();
                for (place, command) in commands.iter().enumerate() {
                    let byte = command.data[0];
                    node.machine.push((command.index, byte));
                    let known = *self.applied.entry(command.index).or_insert(byte);
                    if known != byte {
                        self.broken.get_or_insert(format!(
                            "node {id} applies {byte} at {}, another applied {known}",
                            command.index
                        ));
                    }
                    if waiting.next_if(|(at, _)| *at == place).is_some() {
                        self.acknowledged.insert(byte);
                    }
                }
                node.core.applied(index);
            }
        }
    }

    fn outputs(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("it is there");
        let mut out = Outputs::default();
        node.core.poll(&mut out);
        if let Err(broken) = node.core.check_invariants() {
            self.broken.get_or_insert(format!("node {id}: {broken}"));
        }
        node.jobs.append(&mut out.log_jobs);
        node.apply.extend(out.apply_jobs);
        let links = &mut self.links;
        let send = |message: OutboundMessage| {
            links
                .entry((id, message.to))
                .or_default()
                .push_back(message.frame);
            Ok(())
        };
        encode_frames(&mut out.frames, false, send, |_, _| {});
        for (_, reply) in out.replies {
            if let Reply::Failed(perf_raft::ProposeError::Stopped(reason)) = reply {
                self.fail(format!("node {id} stopped: {reason}"));
            }
        }
    }

    /// Everything that can happen without a fault happens, over so many ticks.
    fn settle(&mut self, ticks: usize) {
        for _ in 0..ticks {
            for id in 1..=self.scope.nodes {
                self.tick(id);
            }
            loop {
                let events = self.events().into_iter().find(|event| {
                    matches!(
                        event,
                        Event::Deliver(..) | Event::Persist(_) | Event::Apply(_)
                    )
                });
                match events {
                    Some(event) => self.happen(event),
                    None => break,
                }
            }
        }
    }

    /// The faults are over: the group elects, commits, and every member has everything that was acknowledged.
    fn judge(mut self) -> Result<usize, String> {
        self.settle(60);
        let leader = self.leader().ok_or("nobody leads after the faults")?;
        self.scope.commands = u8::MAX;
        self.proposed = 200;
        self.happen(Event::Propose(leader));
        self.settle(6);
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        if !self.acknowledged.contains(&201) {
            return Err("no write is acknowledged after the faults".to_owned());
        }
        let members = self.nodes[&leader].core.members();
        let reference = &self.nodes[&leader].machine;
        for member in members {
            let machine = &self.nodes[&member.id].machine;
            if machine != reference {
                return Err(format!(
                    "node {} has {machine:?}, the leader {reference:?}",
                    member.id
                ));
            }
        }
        let kept: BTreeSet<u8> = reference.iter().map(|(_, command)| *command).collect();
        match self.acknowledged.difference(&kept).next() {
            Some(lost) => Err(format!("command {lost} was acknowledged and is lost")),
            None => Ok(self.acknowledged.len() - 1),
        }
    }
}

fn chain(inputs: u64, input: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (inputs, input).hash(&mut hasher);
    hasher.finish()
}

fn replay(scope: Scope, history: &[Event]) -> Group {
    let mut group = Group::new(scope);
    for event in history {
        group.happen(*event);
    }
    group
}

/// Follows all histories, shorter ones first, and judges each state.
pub(crate) fn search(scope: Scope) -> Result<Seen, String> {
    let mut seen = Seen::default();
    let mut known = HashSet::new();
    let mut layer: Vec<Vec<Event>> = vec![Vec::new()];
    for depth in 0..=scope.depth {
        let mut next = Vec::new();
        for history in layer {
            if seen.states >= scope.states_max {
                return Ok(seen);
            }
            seen.states += 1;
            let group = replay(scope, &history);
            if depth < scope.depth {
                for event in group.events() {
                    if known.insert(group.key_after(event)) {
                        let mut longer = history.clone();
                        longer.push(event);
                        next.push(longer);
                    }
                }
            }
            let outcome = match group.broken.clone() {
                Some(broken) => Err(broken),
                None => group.judge(),
            };
            match outcome {
                Ok(acknowledged) => seen.acknowledged += acknowledged,
                Err(broken) => return Err(format!("{broken}, after {history:?}")),
            }
        }
        seen.depth = depth;
        layer = next;
    }
    Ok(seen)
}
