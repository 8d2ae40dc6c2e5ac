//! A simulated world around the real core: virtual time, disks that lose what was not synced, a network that loses, repeats,
//! reorders and cuts, clocks that drift. One seed is one history.

pub(crate) mod disk;
pub(crate) mod history;
mod machine;
mod mixed;
pub(crate) mod random;

use bytes::Bytes;
use disk::SimDisk;
use history::{History, Kind};
use machine::Machine;
use mixed::Mixed;
use perf_raft::codec::{Body, Frame};
use perf_raft::core::{
    ApplyJob, Core, CoreConfig, FORKED_BEFORE_FORMING, Fetch, Outputs, Reply, encode_frames,
    open_log,
};
use perf_raft::eraftpb::Entry;
use perf_raft::inbound::{InboundLimits, InboundQueues};
use perf_raft::log::{LogJob, run_jobs};
use perf_raft::{
    EntryMemory, GroupId, Identity, LogError, Member, MemberRole, MembershipChange, ProposeError,
    RaftOptions, ReadError, Role, SendError, StartError, StopReason,
};
use raft::eraftpb::MessageType;
use random::Random;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

const MS: u64 = 1_000_000;
const TICK_NS: u64 = 10 * MS;
const GROUP: GroupId = GroupId(3);
/// Faults happen until then; afterwards the world heals.
const FAULTS_UNTIL: u64 = 5_000 * MS;
/// No more requests after this.
const REQUESTS_UNTIL: u64 = 7_500 * MS;
const END: u64 = 9_500 * MS;
/// A write that is asked for later must be acknowledged.
const HEALED: u64 = FAULTS_UNTIL + 1_500 * MS;
/// Groups with the least bounds catch up an entry or a byte at a time; until then they must have.
const LATE_END: u64 = 40_000 * MS;
const LATE_REQUESTS_UNTIL: u64 = LATE_END - 2_000 * MS;
const CLIENTS: u64 = 5;
/// Once the world has healed: one that is under way, one of the next leader, one for a node that has just lost its disk, and one to spare.
const CALM_SNAPSHOTS_MAX: usize = 4;
const KEYS: u64 = 3;

/// What is wrong with a run.
pub(crate) type Violation = String;

/// What a token of the core stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    /// Of the history.
    Client(usize),
    /// A proposal that only takes room; each must be answered.
    Filler(u64),
    Admin,
}

#[derive(Debug)]
enum Event {
    Tick(u64, u64),
    Deliver(u64, Bytes),
    LogDone(u64, u64),
    ApplyDone(u64, u64),
    Fetched(u64, u64),
    Client(u64),
    Fault,
    /// A thread goes on that was held up after it had read the clock, and finds a lease read that was asked for just now.
    Woken(u64),
    Restart(u64),
    /// The power of a node fails that was cut off, and its links are there again.
    PowerFailure(u64),
    /// A node's thread is held up from now on for so long.
    HeldUp(u64, u64),
    Admin,
}

/// What a reader of the log returned.
type Read = Result<Vec<Entry>, LogError>;

struct Node {
    core: Option<Core<Op>>,
    /// Counts starts, so that events of an earlier run are ignored.
    run: u64,
    disk: SimDisk,
    /// Drawn with the disk.
    identity: Identity,
    /// The first voters, as its operator names them.
    voters: Vec<u64>,
    /// The node was started on this disk.
    is_disk_used: bool,
    machine: Machine,
    log_jobs: Vec<LogJob>,
    log_busy: Option<Vec<LogJob>>,
    /// The commit index in the jobs so far.
    commit_logged: u64,
    apply_jobs: Vec<ApplyJob<Op>>,
    /// What the thread of the state machine has taken.
    apply_list: VecDeque<ApplyJob<Op>>,
    apply_busy: bool,
    /// The fetch under way, with its entries if they were read when it began.
    fetch: Option<(Fetch, Option<Read>)>,
    /// A read of its log fails, this one or a later one.
    has_read_fault: bool,
    /// Applied and not reported yet.
    unreported: u64,
    inbound: InboundQueues<Frame>,
    clock_permille: u64,
    clock_offset: u64,
    paused_until: u64,
}

/// Counts over a run, to see that the simulation meets what it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    pub(crate) writes_acked: u64,
    pub(crate) reads: u64,
    pub(crate) lease_reads: u64,
    pub(crate) unknown: u64,
    pub(crate) refused: u64,
    pub(crate) crashes: u64,
    pub(crate) fsync_errors: u64,
    pub(crate) jobs_lost: u64,
    pub(crate) partitions: u64,
    pub(crate) snapshots_installed: u64,
    pub(crate) memberships: u64,
    pub(crate) transfers: u64,
    pub(crate) leaders: u64,
    pub(crate) duplicates: u64,
    pub(crate) batches: u64,
    pub(crate) batched: u64,
    pub(crate) sends_refused: u64,
    pub(crate) snapshots_failed: u64,
    pub(crate) late_reports: u64,
    pub(crate) appends_refused: u64,
    pub(crate) busy: u64,
    pub(crate) disks_replaced: u64,
    pub(crate) taken_in: u64,
    pub(crate) strangers: u64,
    pub(crate) slow_snapshots: u64,
    pub(crate) late_words: u64,
    pub(crate) too_long: u64,
    pub(crate) bursts: u64,
    pub(crate) emptied: u64,
    pub(crate) mixed: u64,
    pub(crate) mixed_named: u64,
    pub(crate) wrong_logs: u64,
    pub(crate) late_frames: u64,
    pub(crate) late_heartbeats: u64,
    pub(crate) fetched: u64,
    pub(crate) failed_reads: u64,
    pub(crate) trace: u64,
}

pub(crate) struct World {
    random: Random,
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: BTreeMap<u64, Event>,
    nodes: BTreeMap<u64, Node>,
    options: RaftOptions,
    cut: BTreeSet<(u64, u64)>,
    calm: bool,
    fsync_error_at: Option<u64>,
    read_error_at: Option<u64>,
    /// Of the entries in the memory of each node.
    memory_bytes: usize,
    history: History,
    leaders: BTreeMap<u64, u64>,
    applied: BTreeMap<u64, (u64, Bytes)>,
    coverage: Coverage,
    violation: Option<Violation>,
    next_value: u64,
    admin_waits: bool,
    shared_seed: Option<u64>,
    founders: Vec<u64>,
    /// The node whose disk was replaced, until the group has taken it in again.
    wiped: Option<u64>,
    /// The leadership is handed over all the time, by words that are late.
    hands_over_often: bool,
    /// In half of the histories. In the others disks are lost at any time.
    membership_changes: bool,
    /// Logs are those of production, on simulated disks.
    has_real_logs: bool,
    last_change: u64,
    /// Why the last write was refused after the world healed.
    last_refusal: String,
    /// Fillers without an answer, with their nodes.
    fillers: BTreeMap<u64, u64>,
    /// State machines that can make no snapshot until then.
    no_snapshots_until: u64,
    slow_link: Option<SlowLink>,
    /// A node that takes frames of so many bytes only.
    short_frames: Option<(u64, usize)>,
    mixed: Option<Mixed>,
    /// Frames arrive a second time after seconds, from starts and leaders that are no more.
    has_late_frames: bool,
    /// The last heartbeat from one node to another that was lost.
    lost_heartbeats: BTreeMap<(u64, u64), Bytes>,
}

/// All snapshots to one node go over a link that needs about as long for one as the clients need to fill the log.
struct SlowLink {
    to: u64,
    byte_ns: u64,
    free_at: u64,
    /// Transfers since the world healed, by sender and number.
    transfers: BTreeSet<(u64, u64)>,
}

/// Half of the seeds have bounds that are met now and then, the others draw each from its least, a small and a large value.
fn options(random: &mut Random) -> RaftOptions {
    let mut options = RaftOptions::default();
    options.tick = Duration::from_nanos(TICK_NS);
    options.lease_reads = true;
    options.snapshot_entries = 25;
    options.log_entries_kept = 5;
    options.snapshot_chunk_bytes = 40;
    options.snapshot_window_chunks = 2;
    options.message_bytes_max = 2048;
    options.proposal_bytes_max = 1024;
    options.inflight_messages_max = 8;
    if random.one_in(2) {
        return options;
    }
    let mut draw = |least: u64, small: u64, large: u64| match random.below(4) {
        0 => least,
        1 | 2 => small,
        _ => large,
    };
    const LARGE: u64 = 1 << 40;
    options.snapshot_entries = draw(1, 25, LARGE);
    options.log_entries_kept = draw(0, 5, 100);
    options.snapshot_chunk_bytes = draw(1, 40, 1000) as usize;
    options.snapshot_window_chunks = draw(1, 2, 64 * 1024) as usize;
    options.message_bytes_max = draw(1, 2048, 1 << 20) as usize;
    options.inflight_messages_max = draw(1, 8, 16 * 1024) as usize;
    options.proposals_max = draw(1, 20, 1 << 24) as usize;
    options.uncommitted_bytes_max =
        draw(2048, 8192, LARGE).max(options.message_bytes_max as u64) as usize;
    options.unapplied_entries_max = draw(1, 10, LARGE);
    options.reads_max = draw(1, 4, 1 << 24) as usize;
    options.log_bytes_max = draw(8 * 1024, 16 * 1024, LARGE) as usize;
    options.snapshot_log_bytes =
        draw(1, 4 * 1024, LARGE).min(options.log_bytes_max as u64) as usize;
    options.inbound_messages_max = draw(1, 8, 4096) as usize;
    options.snapshot_window_chunks = options
        .snapshot_window_chunks
        .min(options.inbound_messages_max);
    options
}

fn limits(options: &RaftOptions) -> InboundLimits {
    InboundLimits {
        messages_max: options.inbound_messages_max,
        ..InboundLimits::default()
    }
}

/// It moves now and then.
fn address(node: u64, run: u64) -> String {
    format!("{node}:{}", run % 3)
}

fn message_type(frame: &Bytes) -> Option<MessageType> {
    match Frame::decode(frame.clone()).ok()?.body {
        Body::Raft(message) => Some(message.get_msg_type()),
        _ => None,
    }
}

fn identity(random: &mut Random, node: u64) -> Identity {
    let mut identity = Identity::default();
    (identity.node, identity.incarnation) = (node, random.next().max(1));
    identity
}

/// Runs one seed; odd ones have three nodes, even ones five.
pub(crate) fn run(seed: u64) -> Result<Coverage, Violation> {
    run_at_pace(seed, false)
}

/// With `is_slow` the group may take long to catch up.
pub(crate) fn run_at_pace(seed: u64, is_slow: bool) -> Result<Coverage, Violation> {
    let count = if seed % 2 == 1 { 3 } else { 5 };
    let mut world = World::new(seed, count);
    let mut outcome = world.live_until(END);
    if outcome.is_err() && (is_slow || world.is_slow()) && world.violation.is_none() {
        outcome = world.live_until(LATE_END);
    }
    outcome.map(|()| world.coverage).map_err(|violation| {
        let options = &world.options;
        format!(
            "{violation} (at {} ms of {count} nodes, with {} bytes of memory, {options:?})",
            world.now / MS,
            world.memory_bytes,
        )
    })
}

impl World {
    fn new(seed: u64, count: u64) -> Self {
        let mut random = Random::new(seed);
        let options = options(&mut random);
        let membership_changes = random.one_in(2);
        let shared_seed = random.one_in(4).then_some(seed);
        let slow_link = random.one_in(4).then(|| SlowLink {
            to: 1 + random.below(count),
            byte_ns: (1 + random.below(5)) * MS,
            free_at: 0,
            transfers: BTreeSet::new(),
        });
        let voters: Vec<u64> = (1..=count).collect();
        // The largest proposal just fits.
        let short_frames = random
            .one_in(4)
            .then(|| (1 + random.below(count), options.proposal_bytes_max + 512));
        let has_real_logs = random.one_in(2);
        let mixed = random.one_in(12).then(|| Mixed::draw(&mut random, count));
        let has_late_frames = random.one_in(4);
        let hands_over_often = random.one_in(6);
        let memory_bytes = match random.below(4) {
            0 => 0,
            1 => 300,
            2 => 3_000,
            _ => 1 << 20,
        };
        let mut nodes = BTreeMap::new();
        for &id in &voters {
            let node = Node {
                core: None,
                run: 0,
                disk: SimDisk::new(has_real_logs.then(|| random.next())),
                identity: identity(&mut random, id),
                voters: match mixed.as_ref().and_then(|mixed| mixed.list_of(id)) {
                    Some(list) => list.to_vec(),
                    None => voters.clone(),
                },
                is_disk_used: false,
                machine: Machine::default(),
                log_jobs: Vec::new(),
                log_busy: None,
                commit_logged: 0,
                apply_jobs: Vec::new(),
                apply_list: VecDeque::new(),
                apply_busy: false,
                fetch: None,
                has_read_fault: false,
                unreported: 0,
                inbound: InboundQueues::new(limits(&options)),
                // Within the drift of 10 % between any two.
                clock_permille: 955 + random.below(91),
                clock_offset: random.below(1_000_000 * MS),
                paused_until: 0,
            };
            nodes.insert(id, node);
        }
        let mut world = Self {
            random,
            now: 0,
            order: 0,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            nodes,
            options,
            cut: BTreeSet::new(),
            calm: false,
            fsync_error_at: None,
            read_error_at: None,
            memory_bytes,
            history: History::default(),
            leaders: BTreeMap::new(),
            applied: BTreeMap::new(),
            coverage: Coverage::default(),
            violation: None,
            next_value: 0,
            admin_waits: false,
            shared_seed,
            founders: (1..=count).collect(),
            wiped: None,
            membership_changes,
            has_real_logs,
            last_change: 0,
            last_refusal: String::new(),
            fillers: BTreeMap::new(),
            no_snapshots_until: 0,
            slow_link,
            short_frames,
            mixed,
            has_late_frames,
            hands_over_often,
            lost_heartbeats: BTreeMap::new(),
        };
        for id in voters {
            world.start(id);
        }
        for client in 0..CLIENTS {
            world.at(200 * MS, Event::Client(client));
        }
        world.at(300 * MS, Event::Fault);
        world.at(400 * MS, Event::Admin);
        world
    }

    fn at(&mut self, after: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((self.now + after, self.order)));
        self.bodies.insert(self.order, event);
    }

    fn fail(&mut self, violation: impl Into<String>) {
        self.violation.get_or_insert(violation.into());
    }

    fn live_until(&mut self, end: u64) -> Result<(), Violation> {
        while let Some(&Reverse((time, order))) = self.events.peek() {
            if time > end || self.violation.is_some() {
                break;
            }
            self.events.pop();
            self.now = time;
            if self.mixed.as_ref().is_some_and(|mixed| time >= mixed.until) {
                self.mend_mixed();
            }
            if !self.calm && time >= FAULTS_UNTIL {
                self.heal();
            }
            if let Some(event) = self.bodies.remove(&order) {
                self.happen(event);
            }
        }
        match &self.violation {
            Some(violation) => Err(violation.clone()),
            None => self.judge(end),
        }
    }

    /// Whether a bound lets a node that is behind catch up in the least of steps only.
    fn is_slow(&self) -> bool {
        let options = &self.options;
        options.message_bytes_max == 1
            || options.unapplied_entries_max == 1
            || options.snapshot_chunk_bytes == 1
            || options.inflight_messages_max == 1
            || self.memory_bytes == 0
    }

    fn happen(&mut self, event: Event) {
        let target = match event {
            Event::Tick(id, _)
            | Event::LogDone(id, _)
            | Event::ApplyDone(id, _)
            | Event::Fetched(id, _)
            | Event::Deliver(id, _) => Some(id),
            _ => None,
        };
        if let Some(id) = target {
            let paused_until = self.nodes[&id].paused_until;
            if paused_until > self.now {
                let rest = paused_until - self.now;
                self.at(rest, event);
                return;
            }
        }
        match event {
            Event::Tick(id, run) if self.is_running(id, run) => {
                let now_ns = self.local_now(id);
                self.with_core(id, |core, _| core.tick(now_ns));
                // Late at times, never early.
                let late = if self.random.one_in(20) {
                    self.random.below(TICK_NS)
                } else {
                    0
                };
                let period = TICK_NS * 1000 / self.nodes[&id].clock_permille + 1;
                self.at(period + late, Event::Tick(id, run));
            }
            Event::Deliver(id, bytes) => self.deliver(id, bytes),
            Event::LogDone(id, run) if self.is_running(id, run) => self.log_done(id),
            Event::ApplyDone(id, run) if self.is_running(id, run) => self.apply_done(id),
            Event::Fetched(id, run) if self.is_running(id, run) => self.fetched(id),
            Event::Client(client) => self.client(client),
            Event::Fault => self.fault(),
            Event::Woken(id) => self.woken(id),
            Event::Restart(id) => self.start(id),
            Event::PowerFailure(id) if !self.calm => {
                self.cut.retain(|(from, to)| *from != id && *to != id);
                self.crash(id);
            }
            Event::HeldUp(id, held_up) if !self.calm => {
                let until = self.now + held_up;
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.paused_until = node.paused_until.max(until);
                }
            }
            Event::Admin => self.admin(),
            _ => {}
        }
    }

    fn is_running(&self, id: u64, run: u64) -> bool {
        let node = &self.nodes[&id];
        node.core.is_some() && node.run == run
    }

    fn local_now(&self, id: u64) -> u64 {
        let node = &self.nodes[&id];
        node.clock_offset + self.now / 1000 * node.clock_permille
    }

    fn start(&mut self, id: u64) {
        if self.nodes.get(&id).is_none_or(|node| node.core.is_some()) {
            return;
        }
        if self.random.one_in(4) {
            self.start_on_a_wrong_log(id);
        }
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.run += 1;
        node.is_disk_used = true;
        let empty = || Ok(Machine::default().snapshot());
        let start = match open_log(&mut node.disk, GROUP, node.identity, &node.voters, empty) {
            Ok((start, _)) => start,
            Err(error) => {
                self.fail(format!("node {id} cannot start again: {error}"));
                return;
            }
        };
        let config = CoreConfig {
            id,
            group: GROUP,
            options: self.options.clone(),
            incarnation: start.identity().map_or(0, |identity| identity.incarnation),
            // One for all nodes and starts: nothing but election timeouts may depend on it.
            seed: self.shared_seed.unwrap_or_else(|| self.random.next()),
            session: self.random.next(),
            entry_memory: EntryMemory::new(self.memory_bytes).expect("it is in range"),
        };
        node.commit_logged = start.hard_state().commit;
        if let Some(snapshot) = start.snapshot() {
            node.commit_logged = node.commit_logged.max(snapshot.metadata.index);
        }
        match Core::start(config, start) {
            Ok(mut core) => {
                core.set_address(address(id, node.run));
                node.core = Some(core);
            }
            Err(error) => {
                self.fail(format!("node {id} cannot start again: {error}"));
                return;
            }
        }
        node.machine = Machine::default();
        node.inbound = InboundQueues::new(limits(&self.options));
        (node.log_jobs, node.log_busy) = (Vec::new(), None);
        (node.apply_jobs, node.apply_list) = (Vec::new(), VecDeque::new());
        (node.apply_busy, node.unreported) = (false, 0);
        (node.fetch, node.has_read_fault) = (None, false);
        let run = node.run;
        let first = self.random.below(TICK_NS);
        self.at(first, Event::Tick(id, run));
        self.with_core(id, |_, _| ());
    }

    /// Somebody swaps folders: the node is started on the log of another node that is down, or as a node of another group.
    fn start_on_a_wrong_log(&mut self, id: u64) {
        let identity = self.nodes[&id].identity;
        for (&owner, node) in &mut self.nodes {
            if node.core.is_some() || !node.is_disk_used {
                continue;
            }
            let group = if owner == id { GroupId(4) } else { GROUP };
            let opened = open_log(&mut node.disk, group, identity, &[id], || Ok(Bytes::new()));
            let opened = opened.map(|(start, _)| start);
            if !matches!(opened, Err(StartError::WrongLog { .. })) {
                self.violation.get_or_insert(format!(
                    "node {id} in group {} starts on the log of node {owner}: {opened:?}",
                    group.0
                ));
            }
            self.coverage.wrong_logs += 1;
        }
    }

    /// Gives input to a core and does what it says.
    fn with_core<R>(
        &mut self,
        id: u64,
        input: impl FnOnce(&mut Core<Op>, &mut Node) -> R,
    ) -> Option<R> {
        let now_ns = self.local_now(id);
        if let Some(core) = self.nodes.get_mut(&id).and_then(|node| node.core.as_mut()) {
            core.set_now(now_ns);
        }
        self.with_interrupted_core(id, input)
    }

    /// The same for a thread that was held up since it read the clock, whenever that was.
    fn with_interrupted_core<R>(
        &mut self,
        id: u64,
        input: impl FnOnce(&mut Core<Op>, &mut Node) -> R,
    ) -> Option<R> {
        let node = self.nodes.get_mut(&id)?;
        let mut core = node.core.take()?;
        let committed_before = core.status().commit_index;
        let result = input(&mut core, node);
        let mut out = Outputs::default();
        core.poll(&mut out);
        for job in &out.log_jobs {
            let commit = job.hard_state.as_ref().map_or(0, |state| state.commit);
            let snapshot = job
                .snapshot
                .as_ref()
                .map_or(0, |snapshot| snapshot.metadata.index);
            node.commit_logged = node.commit_logged.max(commit).max(snapshot);
            if !job.entries.is_empty() && node.commit_logged < committed_before {
                let logged = node.commit_logged;
                self.violation.get_or_insert(format!(
                    "node {id} writes entries and leaves its commit at {logged} of {committed_before}"
                ));
            }
        }
        let status = core.status();
        if core.defect() == Some(FORKED_BEFORE_FORMING) {
            // The operator does as the node says.
            self.coverage.emptied += 1;
            let node = self.nodes.get_mut(&id)?;
            node.core = Some(core);
            let voters = node.voters.clone();
            for (op, reply) in out.replies.drain(..) {
                self.reply(id, op, reply);
            }
            self.stop(id, &StopReason::Core(FORKED_BEFORE_FORMING.into()));
            self.give_empty_disk(id, voters);
            let after = 20 * MS + self.random.below(200 * MS);
            self.at(after, Event::Restart(id));
            return None;
        }
        if let Some(defect) = core.defect() {
            self.fail(format!("node {id}: {defect}"));
        }
        if let Err(broken) = core.check_invariants() {
            self.fail(format!("node {id}: {broken}"));
        }
        let node = self.nodes.get_mut(&id)?;
        node.core = Some(core);
        // Two groups have two leaders.
        if status.role == Role::Leader && self.mixed.is_none() {
            let leader = *self.leaders.entry(status.term).or_insert(id);
            if leader != id {
                self.fail(format!(
                    "nodes {leader} and {id} both lead term {}",
                    status.term
                ));
            }
        }
        self.coverage.trace = self.coverage.trace.rotate_left(5)
            ^ status.term.wrapping_mul(31)
            ^ status.commit_index.wrapping_mul(17)
            ^ status.applied_index
            ^ self.now;
        self.do_outputs(id, &mut out);
        Some(result)
    }

    fn do_outputs(&mut self, id: u64, out: &mut Outputs<Op>) {
        let (mut sent, mut refused) = (Vec::new(), Vec::new());
        let short_frames = self.short_frames;
        let may_refuse = !self.calm && self.random.one_in(20);
        encode_frames(
            &mut out.frames,
            true,
            |message| {
                // The queue to a peer is full, or its connection is gone.
                if may_refuse && message.frame.len() % 3 == 0 {
                    return Err(SendError::Full);
                }
                if let Some((to, limit)) = short_frames
                    && to == message.to
                    && message.frame.len() > limit
                {
                    return Err(SendError::TooLarge { limit });
                }
                sent.push((message.to, message.frame));
                Ok(())
            },
            |peer, error| refused.push((peer, error)),
        );
        for (peer, error) in refused {
            self.coverage.too_long += u64::from(matches!(error, SendError::TooLarge { .. }));
            self.coverage.sends_refused += 1;
            if let Some(core) = self.nodes.get_mut(&id).and_then(|node| node.core.as_mut()) {
                core.not_sent(peer, error);
            }
        }
        for (to, frame) in sent {
            self.send(id, to, frame);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.log_jobs.append(&mut out.log_jobs);
            node.apply_jobs.append(&mut out.apply_jobs);
        }
        for fetch in out.fetches.drain(..) {
            self.begin_fetch(id, fetch);
        }
        self.begin_log(id);
        self.begin_apply(id);
        for (op, reply) in out.replies.drain(..) {
            self.reply(id, op, reply);
        }
    }

    fn send(&mut self, from: u64, to: u64, frame: Bytes) {
        if !self.nodes.contains_key(&to) {
            return;
        }
        if self.cut.contains(&(from, to)) {
            self.lose(from, to, frame);
            return;
        }
        let copies = if self.calm {
            1
        } else if self.random.one_in(20) {
            0
        } else if self.random.one_in(15) {
            self.coverage.duplicates += 1;
            2
        } else {
            1
        };
        if copies == 0 {
            self.lose(from, to, frame);
            return;
        }
        if self.has_late_frames && !self.calm && self.random.one_in(40) {
            self.coverage.late_frames += 1;
            let delay = self.random.below(4_000 * MS);
            self.at(delay, Event::Deliver(to, frame.clone()));
        }
        for _ in 0..copies {
            let slow = !self.calm && self.random.one_in(25);
            let delay = if slow {
                self.random.below(250 * MS)
            } else {
                200_000 + self.random.below(3 * MS)
            };
            let delay = delay + self.link_delay(to, &frame) + self.word_delay(from, to, &frame);
            self.at(delay, Event::Deliver(to, frame.clone()));
        }
    }

    /// The word to campaign is often late, so late that its sender has given up and may have its lease back. Then the sender is held up just
    /// as the word arrives, and goes on with a read by its lease.
    fn word_delay(&mut self, from: u64, to: u64, frame: &Bytes) -> u64 {
        let is_word = message_type(frame) == Some(MessageType::MsgTimeoutNow);
        if !is_word || self.calm || (!self.hands_over_often && self.random.one_in(2)) {
            return 0;
        }
        self.coverage.late_words += 1;
        // Before the next heartbeat, or long after it.
        let longest = if self.random.one_in(2) { 20 } else { 1_000 };
        let delay = self.random.below(longest * MS);
        let held_up = (20 + self.random.below(40)) * MS;
        self.at(delay, Event::HeldUp(from, held_up));
        self.at(delay + held_up, Event::Woken(from));
        // Just before the word, a heartbeat comes that a former leader sent.
        let late = self.lost_heartbeats.iter();
        let late = late.filter(|((sender, receiver), _)| *sender != from && *receiver == to);
        for heartbeat in late.map(|(_, frame)| frame.clone()).collect::<Vec<_>>() {
            self.coverage.late_heartbeats += 1;
            let early = self.random.below(2 * MS).min(delay);
            self.at(delay - early, Event::Deliver(to, heartbeat));
        }
        delay
    }

    fn lose(&mut self, from: u64, to: u64, frame: Bytes) {
        if message_type(&frame) == Some(MessageType::MsgHeartbeat) {
            self.lost_heartbeats.insert((from, to), frame);
        }
    }

    /// What the slow link takes longer for a part of a snapshot.
    fn link_delay(&mut self, to: u64, frame: &Bytes) -> u64 {
        let Some(link) = self.slow_link.as_mut().filter(|link| link.to == to) else {
            return 0;
        };
        let Ok(Frame {
            header,
            body: Body::Chunk(chunk),
        }) = Frame::decode(frame.clone())
        else {
            return 0;
        };
        self.coverage.slow_snapshots += u64::from(chunk.offset == 0);
        if self.calm {
            link.transfers.insert((header.from, chunk.transfer));
        }
        link.free_at = link.free_at.max(self.now) + link.byte_ns * chunk.data.len() as u64;
        link.free_at - self.now
    }

    fn deliver(&mut self, id: u64, bytes: Bytes) {
        if self.nodes[&id].core.is_none() {
            return;
        }
        let Ok(frame) = Frame::decode(bytes) else {
            self.fail("a frame does not come back");
            return;
        };
        self.with_core(id, |core, node| {
            let class = frame.body.class();
            // At the bound it is lost, as in the runtime.
            let _ = node.inbound.push(class, 100, frame);
            while let Some(frame) = node.inbound.pop() {
                core.receive(frame);
            }
        });
    }

    fn begin_log(&mut self, id: u64) {
        let delay = if self.random.one_in(15) {
            self.random.below(60 * MS)
        } else {
            100_000 + self.random.below(4 * MS)
        };
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.log_busy.is_some() || node.log_jobs.is_empty() {
            return;
        }
        node.log_busy = Some(std::mem::take(&mut node.log_jobs));
        let run = node.run;
        self.at(delay, Event::LogDone(id, run));
    }

    fn log_done(&mut self, id: u64) {
        let fails = self.fsync_error_at == Some(id);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(mut jobs) = node.log_busy.take() else {
            return;
        };
        if fails {
            node.disk.fail_next_sync();
        }
        match run_jobs(&mut node.disk, &mut jobs) {
            Ok(sequence) => {
                self.with_core(id, |core, _| core.persisted(sequence));
            }
            Err(error) => {
                self.fsync_error_at = None;
                self.coverage.fsync_errors += 1;
                self.stop(id, &StopReason::Log(std::sync::Arc::new(error)));
                let after = 100 * MS + self.random.below(800 * MS);
                self.at(after, Event::Restart(id));
            }
        }
    }

    /// Reads now or when it is done, as a thread does that is fast or slow to begin.
    fn begin_fetch(&mut self, id: u64, fetch: Fetch) {
        let is_late = self.random.one_in(2);
        let delay = if !self.calm && self.random.one_in(3) {
            self.random.below(400 * MS)
        } else {
            100_000 + self.random.below(2 * MS)
        };
        let fails = self.read_error_at == Some(id);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.fetch.is_some() {
            self.fail(format!("node {id} has two fetches under way"));
            return;
        }
        if fails {
            self.read_error_at = None;
            node.has_read_fault = true;
            node.disk.fail_next_read();
        }
        let read = (!is_late).then(|| node.disk.read(fetch));
        node.fetch = Some((fetch, read));
        let run = node.run;
        self.at(delay, Event::Fetched(id, run));
    }

    fn fetched(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some((fetch, read)) = node.fetch.take() else {
            return;
        };
        let read = read.unwrap_or_else(|| node.disk.read(fetch));
        let has_fault = node.has_read_fault;
        match read {
            Ok(entries) => {
                self.with_core(id, |core, _| core.fetched(fetch, entries));
            }
            Err(error) if !has_fault => {
                self.fail(format!("node {id} cannot read its log: {error}"));
            }
            Err(error) => {
                self.coverage.failed_reads += 1;
                self.stop(id, &StopReason::Log(std::sync::Arc::new(error)));
                let after = 100 * MS + self.random.below(800 * MS);
                self.at(after, Event::Restart(id));
            }
        }
    }

    fn begin_apply(&mut self, id: u64) {
        let delay = if self.random.one_in(20) {
            self.random.below(40 * MS)
        } else {
            50_000
        };
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.apply_busy {
            return;
        }
        if node.apply_list.is_empty() {
            // The thread takes all that waits.
            node.apply_list.extend(node.apply_jobs.drain(..));
        }
        if node.apply_list.is_empty() {
            return;
        }
        node.apply_busy = true;
        let run = node.run;
        self.at(delay, Event::ApplyDone(id, run));
    }

    fn apply_done(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.apply_busy = false;
        let Some(job) = node.apply_list.pop_front() else {
            return;
        };
        match job {
            ApplyJob::Apply {
                commands,
                waiting,
                index,
            } => {
                let mut waiting = waiting.into_iter().peekable();
                for (place, command) in commands.iter().enumerate() {
                    let seen = (command.term, command.data.clone());
                    let known = self
                        .applied
                        .entry(command.index)
                        .or_insert_with(|| seen.clone());
                    if *known != seen {
                        let known = known.clone();
                        self.fail(format!(
                            "node {id} applies {seen:?} at {}, another applied {known:?}",
                            command.index
                        ));
                        return;
                    }
                    let node = self.nodes.get_mut(&id).expect("it is there");
                    let response = node.machine.apply(command);
                    match waiting.next_if(|(at, _)| *at == place) {
                        Some((_, Op::Client(op))) => {
                            self.coverage.writes_acked += 1;
                            self.history.returned(op, self.now, response);
                        }
                        Some((_, Op::Filler(number))) => {
                            self.fillers.remove(&number);
                        }
                        _ => {}
                    }
                }
                let late = self.random.one_in(2);
                let node = self.nodes.get_mut(&id).expect("it is there");
                node.machine.index = index;
                node.unreported = index;
                // With the last of its list at the latest, as in the runtime.
                if late && !node.apply_list.is_empty() {
                    self.coverage.late_reports += 1;
                } else {
                    self.report_applied(id);
                }
            }
            ApplyJob::Restore(snapshot) => {
                let index = snapshot.metadata.index;
                if !node.machine.restore(&snapshot.data) {
                    self.fail(format!("node {id} got a snapshot at {index} that is none"));
                    return;
                }
                if index > 1 {
                    self.coverage.snapshots_installed += 1;
                }
                node.machine.index = index;
                self.with_core(id, |core, _| core.applied(index));
            }
            ApplyJob::Snapshot => {
                let (index, data) = (node.machine.index, node.machine.snapshot());
                let data = if self.now < self.no_snapshots_until {
                    self.coverage.snapshots_failed += 1;
                    Err("simulated".to_owned())
                } else {
                    Ok(data)
                };
                self.with_core(id, |core, _| core.snapshot_made(index, data));
                if self.nodes[&id].apply_list.is_empty() {
                    self.report_applied(id);
                }
            }
        }
        self.begin_apply(id);
    }

    fn report_applied(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("it is there");
        let index = std::mem::take(&mut node.unreported);
        if index > 0 {
            self.with_core(id, |core, _| core.applied(index));
        }
    }

    fn reply(&mut self, id: u64, op: Op, reply: Reply) {
        let is_busy = matches!(
            reply,
            Reply::Failed(ProposeError::Busy { .. } | ProposeError::NoSnapshot { .. })
                | Reply::ReadFailed(ReadError::Busy { .. })
        );
        self.coverage.busy += u64::from(is_busy);
        let op = match op {
            Op::Client(op) => op,
            Op::Filler(number) => {
                if self.fillers.remove(&number).is_none() {
                    self.fail(format!("filler {number} is answered twice"));
                }
                return;
            }
            Op::Admin => {
                self.admin_waits = false;
                self.coverage.memberships += u64::from(matches!(reply, Reply::Membership(_)));
                self.coverage.transfers += u64::from(matches!(reply, Reply::Transferred));
                return;
            }
        };
        match reply {
            Reply::Read(_) => {
                let value = self.nodes[&id].machine.get(self.history.key(op));
                self.coverage.reads += 1;
                self.coverage.lease_reads += u64::from(self.history.is_lease(op));
                self.history.returned(op, self.now, value);
            }
            Reply::Failed(ProposeError::Unknown | ProposeError::Stopped(_)) => {
                self.coverage.unknown += 1;
                self.history.unknown(op);
            }
            Reply::Failed(ref error) if self.calm => {
                self.last_refusal = error.to_string();
                self.coverage.refused += 1;
                self.history.had_no_effect(op);
            }
            Reply::Failed(_) | Reply::ReadFailed(_) => {
                self.coverage.refused += 1;
                self.history.had_no_effect(op);
            }
            other => self.fail(format!("a client got {other:?}")),
        }
    }

    /// A client that waits for nothing asks for something, at a node that it believes to lead or at any.
    fn client(&mut self, client: u64) {
        // A small log that is kept for a slow peer takes few requests: then it goes on until one is taken.
        let is_over = self.now > LATE_REQUESTS_UNTIL || self.history.acked_after(HEALED);
        if self.now > REQUESTS_UNTIL && (is_over || !self.is_slow()) {
            return;
        }
        let pause = MS + self.random.below(if self.calm { 20 * MS } else { 60 * MS });
        self.at(pause, Event::Client(client));
        if self.history.is_waiting(client) && !self.history.gave_up(client, self.now, 1_500 * MS) {
            return;
        }
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        let leads = |id: &&u64| {
            self.nodes[id]
                .core
                .as_ref()
                .is_some_and(|core| core.status().role == Role::Leader)
        };
        let leaders: Vec<u64> = ids.iter().filter(leads).copied().collect();
        let candidates = if self.random.one_in(4) || leaders.is_empty() {
            &ids
        } else {
            &leaders
        };
        let id = candidates[self.random.index(candidates.len())];
        if self.nodes[&id].core.is_none() || self.nodes[&id].paused_until > self.now {
            return;
        }
        let key = self.random.below(KEYS);
        let kind = match self.random.below(5) {
            0 => Kind::Read { lease: false },
            1 => Kind::Read { lease: true },
            _ => {
                self.next_value += 1;
                Kind::Swap(self.next_value)
            }
        };
        let op = self.history.invoke(client, key, kind, self.now);
        let now_ns = self.local_now(id);
        let mut batch = Vec::new();
        if let Kind::Swap(value) = kind {
            batch.push((Machine::command(key, value), Op::Client(op)));
            self.coverage.batches += 1;
            // Others propose in the same turn.
            let others = match self.random.below(8) {
                0 => self.random.below(64),
                1 | 2 => self.random.below(4),
                _ => 0,
            };
            // A burst that is more than a small log takes.
            let is_burst = self.random.one_in(8);
            if is_burst
                && others as usize * self.options.proposal_bytes_max
                    > 2 * self.options.log_bytes_max
            {
                // The next leader finds it in its log, before anybody knows that it is committed.
                self.coverage.bursts += 1;
                let (after, held_up) = (
                    self.random.below(6 * MS),
                    200 * MS + self.random.below(300 * MS),
                );
                self.at(after, Event::HeldUp(id, held_up));
            }
            for _ in 0..others {
                self.next_value += 1;
                let bytes = match self.random.below(16) {
                    _ if is_burst => self.options.proposal_bytes_max,
                    0 => self.options.proposal_bytes_max,
                    1 => self.options.proposal_bytes_max + 1,
                    _ => 1 + self.random.index(40),
                };
                self.coverage.batched += 1;
                self.fillers.insert(self.next_value, id);
                batch.push((Machine::filler(bytes), Op::Filler(self.next_value)));
            }
        }
        self.with_interrupted_core(id, |core, _| match kind {
            Kind::Swap(_) => core.propose(&mut batch),
            Kind::Read { lease: true } => core.lease_read(Op::Client(op), now_ns),
            Kind::Read { lease: false } => core.read(Op::Client(op)),
        });
    }

    fn woken(&mut self, id: u64) {
        let client = CLIENTS + id;
        self.history.gave_up(client, self.now, 1_500 * MS);
        if self.nodes[&id].core.is_none() || self.history.is_waiting(client) {
            return;
        }
        let (key, now_ns) = (self.random.below(KEYS), self.local_now(id));
        let read = Kind::Read { lease: true };
        let op = self.history.invoke(client, key, read, self.now);
        self.with_interrupted_core(id, |core, _| core.lease_read(Op::Client(op), now_ns));
    }

    fn fault(&mut self) {
        if self.calm {
            return;
        }
        let pause = 50 * MS + self.random.below(500 * MS);
        self.at(pause, Event::Fault);
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        let leads = |id: &&u64| {
            self.nodes[id]
                .core
                .as_ref()
                .is_some_and(|core| core.status().role == Role::Leader)
        };
        let leader = ids
            .iter()
            .find(leads)
            .copied()
            .filter(|_| self.random.one_in(2));
        let id = leader.unwrap_or_else(|| ids[self.random.index(ids.len())]);
        match self.random.below(20) {
            0..=2 => self.crash(id),
            3 => {
                // The power fails for all.
                for id in ids {
                    self.crash(id);
                }
            }
            4 => self.fsync_error_at = Some(id),
            5 => {
                let other = ids[self.random.index(ids.len())];
                self.cut.insert((id, other));
                self.coverage.partitions += 1;
            }
            6 => {
                self.cut
                    .extend(ids.iter().flat_map(|&other| [(id, other), (other, id)]));
                self.coverage.partitions += 1;
            }
            7 => {
                // A side with more or fewer than half.
                let size = 1 + self.random.index(ids.len() - 1);
                let across = |a: u64, b: u64| {
                    (ids.iter().position(|&x| x == a) < Some(size))
                        != (ids.iter().position(|&x| x == b) < Some(size))
                };
                let pairs = ids.iter().flat_map(|&a| ids.iter().map(move |&b| (a, b)));
                let crossing: Vec<(u64, u64)> = pairs.filter(|&(a, b)| across(a, b)).collect();
                self.cut.extend(crossing);
                self.coverage.partitions += 1;
            }
            8 | 9 => self.cut.clear(),
            15 | 16 => self.replace_disk(id),
            17 => self.read_error_at = Some(id),
            18 | 19 => {
                // A leader writes alone, and finds another one when it is back: its log has a tail that the group overwrites while it reads it.
                self.cut
                    .extend(ids.iter().flat_map(|&other| [(id, other), (other, id)]));
                let after = (50 + self.random.below(400)) * MS;
                self.at(after, Event::PowerFailure(id));
            }
            14 => self.no_snapshots_until = self.now + self.random.below(2_000 * MS),
            10 => {
                let until = self.now + self.random.below(500 * MS);
                self.at(until - self.now, Event::Woken(id));
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.paused_until = until;
                }
            }
            11 | 12 => {
                // It sleeps for long enough to be replaced, and wakes up alone.
                self.cut
                    .extend(ids.iter().flat_map(|&other| [(id, other), (other, id)]));
                let until = self.now + (250 + self.random.below(250)) * MS;
                self.at(until - self.now, Event::Woken(id));
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.paused_until = until;
                }
            }
            _ => {
                self.with_core(id, |core, _| core.make_snapshot(Op::Admin));
            }
        }
    }

    fn crash(&mut self, id: u64) {
        let chance = self.random.next();
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(core) = node.core.take() else {
            return;
        };
        self.history.gave_up(CLIENTS + id, self.now, 0);
        self.coverage.crashes += 1;
        // A write under way may be there in part.
        if let Some(jobs) = node.log_busy.take() {
            node.disk.write_unsynced(&jobs);
        }
        self.coverage.jobs_lost += node.disk.crash(chance);
        self.coverage.appends_refused += core.stats().appends_refused;
        self.coverage.fetched += core.stats().entries_fetched;
        node.apply_jobs.clear();
        node.apply_list.clear();
        self.fillers.retain(|_, at| *at != id);
        self.admin_waits = false;
        self.last_change = self.now;
        self.history.node_died(self.now);
        let after = 20 * MS + self.random.below(900 * MS);
        self.at(after, Event::Restart(id));
    }

    /// A node loses its disk, and starts again with an empty one under its old id, with the list of the first voters still in its code or not.
    ///
    /// One at a time, and none while the membership changes: a group that loses the disks of a quorum is beyond help.
    fn replace_disk(&mut self, id: u64) {
        let Some(members) = self.leader_members() else {
            return;
        };
        let voters = members
            .iter()
            .filter(|member| member.role == MemberRole::Voter);
        // All are up and agree: no node holds a change that others do not know of.
        let is_quiet = !self.membership_changes
            || self.now - self.last_change > 1_000 * MS
                && !self.admin_waits
                && self.nodes.values().all(|node| {
                    let core = node.core.as_ref();
                    core.is_some_and(|core| core.members() == members && core.is_whole())
                });
        let is_voter = voters.clone().any(|voter| voter.id == id);
        if self.wiped.is_some()
            || self.mixed.is_some()
            || !is_quiet
            || !is_voter
            || voters.count() != members.len()
            || members.len() < 3
        {
            return;
        }
        let voters = match self.random.one_in(2) {
            true => self.founders.clone(),
            false => Vec::new(),
        };
        self.give_empty_disk(id, voters);
        self.wiped = Some(id);
        self.coverage.disks_replaced += 1;
    }

    pub(super) fn give_empty_disk(&mut self, id: u64, voters: Vec<u64>) {
        self.crash(id);
        let identity = identity(&mut self.random, id);
        let real_seed = self.has_real_logs.then(|| self.random.next());
        if let Some(node) = self.nodes.get_mut(&id) {
            node.disk = SimDisk::new(real_seed);
            (node.identity, node.voters, node.is_disk_used) = (identity, voters, false);
        }
    }

    /// The members as the latest leader knows them.
    fn leader_members(&self) -> Option<Vec<Member>> {
        let leads = |core: &&Core<Op>| core.status().role == Role::Leader;
        let cores = self.nodes.values().filter_map(|node| node.core.as_ref());
        let leader = cores.filter(leads).max_by_key(|core| core.status().term);
        leader.map(Core::members)
    }

    /// Whether the node whose disk was replaced is a voter again.
    fn see_to_the_wiped(&mut self) {
        let (Some(id), Some(members)) = (self.wiped, self.leader_members()) else {
            return;
        };
        let incarnation = self.nodes[&id].identity.incarnation;
        let is_back = |member: &Member| {
            member.id == id
                && member.role == MemberRole::Voter
                && member.incarnation == Some(incarnation)
        };
        // All know it, and that the group is formed: else the loss of the next disk could leave too few that do.
        let mut knows = members.iter().map(|member| {
            let core = self.nodes[&member.id].core.as_ref();
            core.is_some_and(|core| core.is_formed() && core.members().iter().any(is_back))
        });
        if members.iter().any(is_back) && knows.all(|knows| knows) {
            self.wiped = None;
            self.coverage.taken_in += 1;
            self.last_change = self.now;
        }
    }

    /// The node ends itself, and answers what waits.
    fn stop(&mut self, id: u64, reason: &StopReason) {
        let chance = self.random.next();
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(mut core) = node.core.take() else {
            return;
        };
        self.coverage.jobs_lost += node.disk.crash(chance);
        let mut out = Outputs::default();
        core.stop(reason, &mut out);
        out.apply_jobs.extend(node.apply_list.drain(..));
        out.apply_jobs.append(&mut node.apply_jobs);
        for job in out.apply_jobs {
            if let ApplyJob::Apply { waiting, .. } = job {
                for (_, op) in waiting {
                    self.reply(id, op, Reply::Failed(ProposeError::Unknown));
                }
            }
        }
        for (op, reply) in out.replies {
            self.reply(id, op, reply);
        }
    }

    fn admin(&mut self) {
        if self.calm {
            return;
        }
        let longest = if self.hands_over_often { 200 } else { 800 };
        let pause = longest * MS / 4 + self.random.below(longest * MS);
        self.at(pause, Event::Admin);
        self.see_to_the_wiped();
        if self.wiped.is_some() {
            return;
        }
        let leads = |node: &Node| {
            node.core
                .as_ref()
                .is_some_and(|core| core.status().role == Role::Leader)
        };
        let Some((&id, node)) = self.nodes.iter().find(|(_, node)| leads(node)) else {
            return;
        };
        let Some(membership) = node.core.as_ref().map(Core::membership) else {
            return;
        };
        let all: Vec<u64> = self.nodes.keys().copied().collect();
        let other = all[self.random.index(all.len())];
        if self.hands_over_often || self.random.one_in(3) {
            self.with_core(id, |core, _| core.transfer_leader(other, Op::Admin));
            return;
        }
        if !self.membership_changes {
            return;
        }
        let voters = membership.voters.len();
        let is_voter = membership.voters.contains(&other);
        let mut changes = match self.random.below(3) {
            _ if !is_voter => vec![MembershipChange::AddVoter(other)],
            0 if voters > 2 => vec![MembershipChange::Remove(other)],
            1 if voters > 2 => vec![MembershipChange::AddLearner(other)],
            _ => return,
        };
        // Two at once: joint consensus.
        let second = all[self.random.index(all.len())];
        if second != other && self.random.one_in(2) && !membership.voters.contains(&second) {
            changes.push(MembershipChange::AddVoter(second));
        }
        self.last_change = self.now;
        self.admin_waits = true;
        self.with_core(id, |core, _| {
            core.change_membership(&changes, false, Op::Admin);
        });
    }

    fn heal(&mut self) {
        self.calm = true;
        self.no_snapshots_until = 0;
        self.cut.clear();
        (self.fsync_error_at, self.read_error_at) = (None, None);
        for node in self.nodes.values_mut() {
            node.paused_until = 0;
        }
    }

    /// What must hold once the world has healed.
    fn judge(&mut self, end: u64) -> Result<(), Violation> {
        self.coverage.leaders = self.leaders.len() as u64;
        for node in self.nodes.values().filter_map(|node| node.core.as_ref()) {
            self.coverage.strangers += node.stats().answers_of_strangers;
            self.coverage.fetched += node.stats().entries_fetched;
        }
        self.see_to_the_wiped();
        if let Some(id) = self.wiped {
            let cores = self.nodes.values().filter_map(|node| node.core.as_ref());
            let reports: Vec<_> = cores.map(|core| (core.status(), core.report())).collect();
            return Err(format!(
                "node {id} lost its disk and was never taken in again: {reports:?}"
            ));
        }
        if !self.history.acked_after(HEALED) {
            return Err(format!(
                "no write was acknowledged after the world healed, the last for: {}",
                self.last_refusal
            ));
        }
        // A log that a single burst fills is cut however slow the link is.
        let keeps_log = self.options.log_bytes_max > 1 << 20;
        if let Some(link) = &self.slow_link
            && keeps_log
            && link.transfers.len() > CALM_SNAPSHOTS_MAX
        {
            return Err(format!(
                "node {} got one snapshot after another, though nothing failed: {:?}",
                link.to, link.transfers
            ));
        }
        if let Some((number, node)) = self.fillers.first_key_value() {
            return Err(format!("filler {number} of node {node} waits for ever"));
        }
        if let Some(op) = self.history.still_waiting(end - 1_000 * MS) {
            return Err(format!("a client waits for ever: {op}"));
        }
        let leads = |node: &&Node| {
            node.core
                .as_ref()
                .is_some_and(|core| core.status().role == Role::Leader)
        };
        let leader = self
            .nodes
            .values()
            .filter(leads)
            .max_by_key(|node| node.core.as_ref().map(|core| core.status().term));
        let core = leader
            .and_then(|node| node.core.as_ref())
            .ok_or("there is no leader")?;
        for member in core.members() {
            let expected = address(member.id, self.nodes[&member.id].run);
            if member.address.as_ref() != Some(&expected) {
                return Err(format!(
                    "node {} is at {expected}, the table says {:?}",
                    member.id, member.address
                ));
            }
        }
        let membership = core.membership();
        let members = membership.voters.iter().chain(&membership.learners);
        let committed = core.status().commit_index;
        let mut reference: Option<&Machine> = None;
        for id in members {
            let node = &self.nodes[id];
            let core = node.core.as_ref().ok_or(format!("node {id} is down"))?;
            if node.machine.index != committed {
                return Err(format!(
                    "node {id} is at {} of {committed} long after the world healed",
                    node.machine.index
                ));
            }
            let same = reference.is_none_or(|machine| machine.state == node.machine.state);
            if !same {
                return Err(format!("the state machine of node {id} differs"));
            }
            reference = Some(&node.machine);
            let (first, last) = core.log_range();
            let common = self
                .applied
                .iter()
                .filter(|(index, _)| (first..=last.min(committed)).contains(index));
            for (&index, (term, _)) in common {
                if core.log_term(index) != Some(*term) {
                    return Err(format!("the log of node {id} has another entry at {index}"));
                }
            }
        }
        self.history.check()
    }
}
