//! A simulated world around the real core: virtual time, disks that lose what was not synced, a network that loses, repeats,
//! reorders and cuts, clocks that drift. One seed is one history.

mod clients;
mod coverage;
pub(crate) mod disk;
mod faults;
pub(crate) mod history;
mod hosts;
mod judge;
mod machine;
mod mixed;
mod network;
mod node;
mod options;
pub(crate) mod random;
mod streams;
mod threads;

use bytes::Bytes;
pub(crate) use coverage::Coverage;
use disk::SimDisk;
use history::History;
use hosts::Sleepiness;
use machine::Machine;
use mixed::Mixed;
use network::SlowLink;
use node::{Node, identity};
use options::{limits, options};
use perf_raft::inbound::InboundQueues;
use perf_raft::{GroupId, RaftOptions};
use random::Random;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

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
/// Too few for an entry with the longest proposals: the peer that takes no more gets these in parts.
const SHORT_FRAME_BYTES: usize = 900;

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
    HostTick(u64, u64),
    Deliver(u64, Bytes),
    LogDone(u64, u64),
    ApplyDone(u64, u64),
    Fetched(u64, u64),
    /// Of the job with this number.
    SnapshotJobDone(u64, u64, u64),
    OwnPiece(u64, u64),
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
    /// Commands by index and place, with their terms.
    applied: BTreeMap<(u64, u32), (u64, Bytes)>,
    coverage: Coverage,
    violation: Option<Violation>,
    next_value: u64,
    /// Clients write no register until then: the state stays empty.
    empty_until: u64,
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
    /// A disk was lost before the group was formed, and its node may vote twice in a term: two nodes may lead that term then, and neither acknowledges
    /// anything.
    may_vote_twice: bool,
    /// Entries that were written, by index and term.
    written: BTreeMap<(u64, u64), Bytes>,
    /// A quorum of disks was emptied before the group was formed, and the next group wrote another entry with the same index and term: no node can tell.
    is_twice: bool,
    /// The first voters had different lists: some of them are emptied.
    may_begin_anew: bool,
    /// Frames arrive a second time after seconds, from starts and leaders that are no more.
    has_late_frames: bool,
    /// The last heartbeat from one node to another that was lost.
    lost_heartbeats: BTreeMap<(u64, u64), Bytes>,
    sleepiness: Sleepiness,
    sleep_random: Random,
    /// Beats of hosts are lost until then.
    no_beats_until: u64,
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

/// In one history of eight the state is empty for a part of the faults, or until all of them are over. Of its own generator, as
/// sleep is.
fn empty_until(seed: u64) -> u64 {
    let mut random = Random::new(seed ^ 0xE399);
    match random.one_in(8) {
        true => MS + random.below(FAULTS_UNTIL),
        false => 0,
    }
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
        // The largest proposal just fits, or does not.
        let short_frames = random.one_in(4).then(|| {
            let limit = match random.one_in(2) {
                true => options.proposal_bytes_max + 512,
                false => SHORT_FRAME_BYTES,
            };
            (1 + random.below(count), limit)
        });
        let has_real_logs = random.one_in(2);
        let has_durable_machines = has_real_logs && random.one_in(2);
        let mixed = random.one_in(6).then(|| Mixed::draw(&mut random, count));
        let has_late_frames = random.one_in(4);
        let hands_over_often = random.one_in(3);
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
                durable: has_durable_machines.then(|| (Machine::default(), 0)),
                last_command: 0,
                begun_at: 0,
                log_jobs: Vec::new(),
                log_busy: None,
                commit_logged: 0,
                apply_jobs: Vec::new(),
                apply_list: VecDeque::new(),
                apply_busy: false,
                fetch: None,
                streams: None,
                has_read_fault: false,
                unreported: 0,
                inbound: InboundQueues::new(limits(&options)),
                // Within the drift of 10 % between any two.
                clock_permille: 955 + random.below(91),
                clock_offset: random.below(1_000_000 * MS),
                paused_until: 0,
                host: None,
                host_run: 0,
                is_asleep: false,
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
            empty_until: empty_until(seed),
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
            may_begin_anew: mixed.is_some(),
            mixed,
            may_vote_twice: false,
            written: BTreeMap::new(),
            is_twice: false,
            has_late_frames,
            hands_over_often,
            lost_heartbeats: BTreeMap::new(),
            sleepiness: Sleepiness::draw(seed),
            sleep_random: Random::new(!seed),
            no_beats_until: 0,
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

    fn happen(&mut self, event: Event) {
        let target = match event {
            Event::Tick(id, _)
            | Event::HostTick(id, _)
            | Event::LogDone(id, _)
            | Event::ApplyDone(id, _)
            | Event::Fetched(id, _)
            | Event::SnapshotJobDone(id, _, _)
            | Event::OwnPiece(id, _)
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
                if self.nodes[&id].is_asleep {
                    self.coverage.ticks_asleep += 1;
                } else {
                    self.with_core(id, |core, _| core.tick(now_ns));
                }
                // Late at times, never early.
                let late = if self.random.one_in(20) {
                    self.random.below(TICK_NS)
                } else {
                    0
                };
                let period = TICK_NS * 1000 / self.nodes[&id].clock_permille + 1;
                self.at(period + late, Event::Tick(id, run));
            }
            Event::HostTick(id, run) => self.host_tick(id, run),
            Event::Deliver(id, bytes) => self.deliver(id, bytes),
            Event::LogDone(id, run) if self.is_running(id, run) => self.log_done(id),
            Event::ApplyDone(id, run) if self.is_running(id, run) => self.apply_done(id),
            Event::Fetched(id, run) if self.is_running(id, run) => self.fetched(id),
            Event::SnapshotJobDone(id, run, number) if self.is_running(id, run) => {
                self.snapshot_job_done(id, number);
            }
            Event::OwnPiece(id, run) if self.is_running(id, run) => self.own_piece(id),
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
}
