//! A simulated world of hosts with many groups around the real core: groups sleep and wake, stop and go on, are made and removed; hosts die while most
//! groups sleep. Logs are in memory and outlive their host: what disks lose is the business of `world`.

mod machine;
mod network;
mod stages;

use crate::random::Random;
use bytes::Bytes;
use machine::Machine;
use network::Network;
use perf_raft::codec::{Body, Frame};
use perf_raft::core::{
    ApplyJob, Core, CoreConfig, Liveness, Outputs, Reply, encode_frames, open_log,
};
use perf_raft::log::{LogJob, LogStore, run_jobs};
use perf_raft::{
    EntryMemory, GroupId, Identity, MemoryLog, RaftOptions, Role, SharedLog, StopReason,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(10);
const TICK_NS: u64 = 10_000_000;
const ELECTION_TICKS: u64 = 10;
const SLEEP_AFTER_TICKS: u64 = 5;
/// A host wakes no more groups in a tick: their elections follow at once.
const WAKES_PER_TICK: usize = 512;

/// What a run met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    pub(crate) acked: u64,
    pub(crate) sleeps: u64,
    pub(crate) wakes: u64,
    pub(crate) woken_by_hosts: u64,
    pub(crate) refused_sleeps: u64,
    pub(crate) crashes: u64,
    pub(crate) stopped_groups: u64,
    pub(crate) made_groups: u64,
    pub(crate) removed_groups: u64,
    pub(crate) late_frames: u64,
    pub(crate) elections_after_death: u64,
}

impl std::ops::AddAssign for Coverage {
    fn add_assign(&mut self, other: Self) {
        self.acked += other.acked;
        self.sleeps += other.sleeps;
        self.wakes += other.wakes;
        self.woken_by_hosts += other.woken_by_hosts;
        self.refused_sleeps += other.refused_sleeps;
        self.crashes += other.crashes;
        self.stopped_groups += other.stopped_groups;
        self.made_groups += other.made_groups;
        self.removed_groups += other.removed_groups;
        self.late_frames += other.late_frames;
        self.elections_after_death += other.elections_after_death;
    }
}

/// What is wrong with a run.
pub(crate) type Violation = String;

/// A group at a host.
struct Member {
    core: Core<u64>,
    machine: Machine,
    is_asleep: bool,
}

struct Host {
    log: SharedLog,
    /// None while it is down.
    liveness: Option<Liveness>,
    members: BTreeMap<GroupId, Member>,
}

pub(crate) struct World {
    random: Random,
    tick: u64,
    options: RaftOptions,
    hosts: BTreeMap<u64, Host>,
    /// Groups that were made and not removed.
    groups: BTreeSet<GroupId>,
    last_group: u64,
    network: Network,
    /// Of each group and term.
    leaders: BTreeMap<(GroupId, u64), u64>,
    /// Commands by group, index and place.
    applied: BTreeMap<(GroupId, u64, u32), Bytes>,
    next_command: u64,
    acked: BTreeMap<GroupId, u64>,
    coverage: Coverage,
    violation: Option<Violation>,
}

/// Runs one seed with up to so many groups, on three hosts or five.
pub(crate) fn run(seed: u64, groups_max: u64) -> Result<Coverage, Violation> {
    let mut world = World::new(seed, groups_max);
    world.live().map_err(|violation| {
        let groups = world.groups.len();
        format!(
            "{violation} (at tick {} of {groups} groups on {} hosts)",
            world.tick,
            world.hosts.len()
        )
    })?;
    Ok(world.coverage)
}

impl World {
    fn new(seed: u64, groups_max: u64) -> Self {
        let mut random = Random::new(seed);
        let hosts = if random.one_in(3) { 5 } else { 3 };
        let mut options = RaftOptions::default();
        options.tick = TICK;
        options.election_ticks = ELECTION_TICKS as usize;
        options.snapshot_entries = 10;
        options.log_entries_kept = 3;
        let groups = match random.below(3) {
            0 => 1 + random.below(4),
            _ => 1 + random.below(groups_max),
        };
        let mut world = Self {
            random,
            tick: 0,
            options,
            hosts: BTreeMap::new(),
            groups: BTreeSet::new(),
            last_group: 0,
            network: Network::default(),
            leaders: BTreeMap::new(),
            applied: BTreeMap::new(),
            next_command: 0,
            acked: BTreeMap::new(),
            coverage: Coverage::default(),
            violation: None,
        };
        for id in 1..=hosts {
            let host = Host {
                log: SharedLog::new(MemoryLog::restartable()),
                liveness: None,
                members: BTreeMap::new(),
            };
            world.hosts.insert(id, host);
            world.start_host(id);
        }
        for _ in 0..groups {
            world.make_group();
        }
        world
    }

    fn fail(&mut self, violation: impl Into<String>) {
        self.violation.get_or_insert(violation.into());
    }

    fn up(&self) -> Vec<u64> {
        let up = self
            .hosts
            .iter()
            .filter(|(_, host)| host.liveness.is_some());
        up.map(|(id, _)| *id).collect()
    }

    fn start_host(&mut self, id: u64) {
        let run = self.random.next();
        let (silence, beat) = (self.options.election_ticks, self.options.heartbeat_ticks);
        let host = self.hosts.get_mut(&id).expect("a host");
        host.liveness = Some(Liveness::new(id, run, silence, beat));
    }

    fn crash_host(&mut self, id: u64) {
        let host = self.hosts.get_mut(&id).expect("a host");
        (host.liveness, host.members) = (None, BTreeMap::new());
        self.coverage.crashes += 1;
    }

    fn make_group(&mut self) {
        self.last_group += 1;
        let group = GroupId(self.last_group);
        self.groups.insert(group);
        for id in self.up() {
            self.open(id, group);
        }
    }

    /// Opens a group where it is not open.
    fn open(&mut self, id: u64, group: GroupId) {
        let voters: Vec<u64> = self.hosts.keys().copied().collect();
        let (seed, session, incarnation) =
            (self.random.next(), self.random.next(), self.random.next());
        let host = self.hosts.get_mut(&id).expect("a host");
        if host.liveness.is_none() || host.members.contains_key(&group) {
            return;
        }
        let mut identity = Identity::default();
        (identity.node, identity.incarnation) = (id, incarnation.max(1));
        let opened = open_log(&mut host.log, group, identity, &voters, || {
            Ok(Machine::default().snapshot())
        });
        let start = match opened {
            Ok((start, _)) => start,
            Err(error) => {
                return self.fail(format!("host {id} cannot open group {}: {error}", group.0));
            }
        };
        let config = CoreConfig {
            id,
            group,
            options: self.options.clone(),
            incarnation: start.identity().map_or(0, |identity| identity.incarnation),
            seed,
            session,
            entry_memory: EntryMemory::of_process(),
        };
        match Core::start(config, start) {
            Ok(core) => {
                let member = Member {
                    core,
                    machine: Machine::default(),
                    is_asleep: false,
                };
                host.members.insert(group, member);
                self.settle(id, group);
            }
            Err(error) => self.fail(format!("host {id} cannot open group {}: {error}", group.0)),
        }
    }

    /// A group ends at a host, by itself or because it is closed.
    fn stop_group(&mut self, id: u64, group: GroupId) {
        let host = self.hosts.get_mut(&id).expect("a host");
        if let Some(mut member) = host.members.remove(&group) {
            member
                .core
                .stop(&StopReason::Shutdown, &mut Outputs::default());
            if let Some(liveness) = &mut host.liveness {
                liveness.stopped(group);
            }
            self.coverage.stopped_groups += 1;
        }
    }

    fn remove_group(&mut self, group: GroupId) {
        self.groups.remove(&group);
        let ids: Vec<u64> = self.hosts.keys().copied().collect();
        for id in ids {
            self.stop_group(id, group);
            let job = LogJob {
                group,
                removes_group: true,
                ..LogJob::default()
            };
            let host = self.hosts.get_mut(&id).expect("a host");
            host.log.write(&[job], true).expect("it is in memory");
        }
        self.coverage.removed_groups += 1;
    }

    /// Gives input to a group at a host, and does what it says.
    fn with(&mut self, id: u64, group: GroupId, input: impl FnOnce(&mut Core<u64>)) {
        let now_ns = self.tick * TICK_NS;
        let host = self.hosts.get_mut(&id).expect("a host");
        let (Some(member), Some(liveness)) = (host.members.get_mut(&group), &host.liveness) else {
            return;
        };
        member.core.set_now(now_ns);
        member
            .core
            .allow_sleep(SLEEP_AFTER_TICKS, liveness.view().clone());
        input(&mut member.core);
        self.settle(id, group);
    }

    fn settle(&mut self, id: u64, group: GroupId) {
        let mut out = Outputs::default();
        loop {
            let host = self.hosts.get_mut(&id).expect("a host");
            let (Some(member), Some(liveness)) = (host.members.get_mut(&group), &mut host.liveness)
            else {
                return;
            };
            member.core.poll(&mut out);
            if out.is_empty() {
                match note_sleep(group, member, liveness, &mut self.coverage) {
                    Settled::Yes => return,
                    // It woke at once, and says so.
                    Settled::No => continue,
                }
            }
            let broken = member
                .core
                .defect()
                .map(str::to_owned)
                .or(member.core.check_invariants().err());
            let status = member.core.status();
            if let Some(broken) = broken {
                return self.fail(format!("host {id}, group {}: {broken}", group.0));
            }
            if status.role == Role::Leader {
                let leader = *self.leaders.entry((group, status.term)).or_insert(id);
                if leader != id {
                    return self.fail(format!(
                        "hosts {leader} and {id} lead group {} in term {}",
                        group.0, status.term
                    ));
                }
            }
            if !out.log_jobs.is_empty() {
                let sequence = run_jobs(&mut host.log, &mut out.log_jobs).expect("it is in memory");
                out.log_jobs.clear();
                member.core.persisted(sequence);
            }
            for fetch in out.fetches.drain(..) {
                let state = host
                    .log
                    .load(group)
                    .expect("it is in memory")
                    .unwrap_or_default();
                member
                    .core
                    .fetched(fetch, state.read(fetch.first, fetch.end, fetch.bytes_max));
            }
            for job in std::mem::take(&mut out.apply_jobs) {
                self.apply(id, group, job);
            }
            for (_, reply) in out.replies.drain(..) {
                assert!(!matches!(reply, Reply::Read(_)), "nothing is read");
            }
            let mut sent = Vec::new();
            let push = |message: perf_raft::OutboundMessage| {
                sent.push((message.to, message.frame));
                Ok(())
            };
            encode_frames(&mut out.frames, true, push, |_, _| ());
            for (to, frame) in sent {
                self.network.count(group);
                self.network
                    .send(&mut self.random, self.tick, id, to, frame);
            }
        }
    }

    fn apply(&mut self, id: u64, group: GroupId, job: ApplyJob<u64>) {
        let host = self.hosts.get_mut(&id).expect("a host");
        let Some(member) = host.members.get_mut(&group) else {
            return;
        };
        match job {
            ApplyJob::Apply {
                commands,
                waiting,
                index,
            } => {
                for command in &commands {
                    let place = (group, command.index, command.place);
                    let known = self
                        .applied
                        .entry(place)
                        .or_insert_with(|| command.data.clone());
                    if *known != command.data {
                        let of = command.index;
                        return self.fail(format!(
                            "host {id} applies another command of group {} at {of}",
                            group.0
                        ));
                    }
                    member.machine.apply(&command.data);
                }
                self.coverage.acked += waiting.len() as u64;
                *self.acked.entry(group).or_default() += waiting.len() as u64;
                member.core.applied(index);
            }
            ApplyJob::Restore(snapshot) => {
                member.machine = Machine::restored(&snapshot.data);
                member.core.applied(snapshot.metadata.index);
            }
            ApplyJob::DurableIndex => self.fail("the machine was never said to be durable"),
            ApplyJob::Snapshot => {
                let index = member.core.status().applied_index;
                member
                    .core
                    .snapshot_made(index, Ok(member.machine.snapshot()));
            }
        }
    }

    /// A client proposes to whichever host leads.
    fn propose(&mut self, group: GroupId) {
        let leads = |host: &Host| {
            let member = host.members.get(&group);
            member.is_some_and(|member| member.core.status().role == Role::Leader)
        };
        let leader = self
            .hosts
            .iter()
            .find(|(_, host)| leads(host))
            .map(|(id, _)| *id);
        let Some(id) = leader else {
            return;
        };
        self.next_command += 1;
        let command = self.next_command;
        let data = Bytes::copy_from_slice(&command.to_le_bytes());
        self.with(id, group, |core| core.propose(&mut vec![(data, command)]));
    }

    /// One tick of all hosts, and what is delivered until the next.
    fn step(&mut self) {
        self.tick += 1;
        for id in self.up() {
            self.tick_host(id);
        }
        for (to, frame) in self.network.due(self.tick) {
            self.deliver(to, frame);
        }
    }

    fn tick_host(&mut self, id: u64) {
        let (mut beats, mut wake) = (Vec::new(), Vec::new());
        let host = self.hosts.get_mut(&id).expect("a host");
        let Some(liveness) = &mut host.liveness else {
            return;
        };
        liveness.tick(&mut beats, &mut wake);
        let awake = host
            .members
            .iter()
            .filter(|(_, member)| !member.core.is_asleep());
        let awake: Vec<GroupId> = awake.map(|(group, _)| *group).collect();
        for beat in beats {
            let bytes = beat.encode_pooled().expect("it is short");
            self.network
                .send(&mut self.random, self.tick, id, beat.header.to, bytes);
        }
        if wake.len() > WAKES_PER_TICK {
            self.fail(format!("host {id} wakes {} groups at once", wake.len()));
        }
        self.coverage.woken_by_hosts += wake.len() as u64;
        for group in wake {
            self.with(id, group, Core::wake);
        }
        let now_ns = self.tick * TICK_NS;
        for group in awake {
            self.network.ticks += 1;
            self.with(id, group, |core| core.tick(now_ns));
        }
    }

    fn deliver(&mut self, to: u64, bytes: Bytes) {
        let Ok(frame) = Frame::decode(bytes) else {
            return self.fail("a frame does not come back");
        };
        let host = self.hosts.get_mut(&to).expect("a host");
        match &frame.body {
            Body::Beat(beat) => {
                if let Some(liveness) = &mut host.liveness {
                    liveness.heard(&frame.header, beat);
                }
            }
            _ => {
                let group = frame.header.group;
                self.with(to, group, |core| core.receive(frame));
            }
        }
    }
}

enum Settled {
    Yes,
    No,
}

/// Notes whether a group sleeps, and wakes it if it may not.
fn note_sleep(
    group: GroupId,
    member: &mut Member,
    liveness: &mut Liveness,
    coverage: &mut Coverage,
) -> Settled {
    liveness.expect(member.core.take_expected().unwrap_or_default());
    let is_asleep = member.core.is_asleep();
    if is_asleep == member.is_asleep {
        return Settled::Yes;
    }
    if !is_asleep {
        member.is_asleep = false;
        coverage.wakes += 1;
        liveness.woke(group);
    } else if liveness.fell_asleep(group, member.core.reliance()) {
        member.is_asleep = true;
        coverage.sleeps += 1;
    } else {
        coverage.refused_sleeps += 1;
        member.core.wake();
        return Settled::No;
    }
    Settled::Yes
}
