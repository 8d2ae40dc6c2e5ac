//! A simulated node: its disk and core, from start to crash.

use super::clients::woken_client;
use super::disk::SimDisk;
use super::machine::Machine;
use super::options::limits;
use super::random::Random;
use super::streams::Streams;
use super::{Event, GROUP, KEYS, MS, Op, TICK_NS, World};
use bytes::Bytes;
use perf_raft::codec::Frame;
use perf_raft::core::{
    ApplyJob, Core, CoreConfig, FORKED_BEFORE_FORMING, Fetch, Liveness, Outputs, Reply,
    encode_frames, open_log,
};
use perf_raft::eraftpb::Entry;
use perf_raft::inbound::InboundQueues;
use perf_raft::log::LogJob;
use perf_raft::{
    EntryMemory, GroupId, Identity, LogError, LogStore, ProposeError, Role, SendError, StartError,
    StopReason,
};
use std::collections::VecDeque;

/// What a reader of the log returned.
type Read = Result<Vec<Entry>, LogError>;

pub(super) struct Node {
    pub(super) core: Option<Core<Op>>,
    /// Counts starts, so that events of an earlier run are ignored.
    pub(super) run: u64,
    pub(super) disk: SimDisk,
    /// Drawn with the disk.
    pub(super) identity: Identity,
    /// The first voters, as its operator names them.
    pub(super) voters: Vec<u64>,
    /// The node was started on this disk.
    pub(super) is_disk_used: bool,
    pub(super) machine: Machine,
    /// Of a machine that is durable by itself: what a crash leaves of it, and up to where it has all commands.
    pub(super) durable: Option<(Machine, u64)>,
    /// The index of the last command that the machine has, or of the snapshot.
    pub(super) last_command: u64,
    /// Where it was at the start: it is not given what comes before.
    pub(super) begun_at: u64,
    pub(super) log_jobs: Vec<LogJob>,
    pub(super) log_busy: Option<Vec<LogJob>>,
    /// The commit index in the jobs so far.
    pub(super) commit_logged: u64,
    pub(super) apply_jobs: Vec<ApplyJob<Op>>,
    /// What the thread of the state machine has taken.
    pub(super) apply_list: VecDeque<ApplyJob<Op>>,
    pub(super) apply_busy: bool,
    /// The fetch under way, with its entries if they were read when it began.
    pub(super) fetch: Option<(Fetch, Option<Read>)>,
    /// Data of snapshots is in the log, in pieces.
    pub(super) streams: Option<Streams>,
    /// A read of its log fails, this one or a later one.
    pub(super) has_read_fault: bool,
    /// Applied and not reported yet.
    pub(super) unreported: u64,
    pub(super) inbound: InboundQueues<Frame>,
    pub(super) clock_permille: u64,
    pub(super) clock_offset: u64,
    pub(super) paused_until: u64,
    /// None while the node is down, and if its group never sleeps.
    pub(super) host: Option<Liveness>,
    pub(super) host_run: u64,
    /// As its host knows it.
    pub(super) is_asleep: bool,
}

/// It moves now and then.
pub(super) fn address(node: u64, run: u64) -> String {
    format!("{node}:{}", run % 3)
}

pub(super) fn identity(random: &mut Random, node: u64) -> Identity {
    let mut identity = Identity::default();
    (identity.node, identity.incarnation) = (node, random.next().max(1));
    identity
}

impl World {
    pub(super) fn start(&mut self, id: u64) {
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
        let opened = match open_log(&mut node.disk, GROUP, node.identity, &node.voters, empty) {
            Ok((mut start, _)) => {
                let durable = node.durable.as_ref().map(|(_, index)| *index);
                start.meet_machine(durable).map(|met| (start, met))
            }
            Err(error) => Err(error),
        };
        let (start, met) = match opened {
            Ok(opened) => opened,
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
        let store = match node.disk.snapshots() {
            Ok(store) => store,
            Err(error) => {
                self.fail(format!("node {id} cannot stream: {error}"));
                return;
            }
        };
        node.streams = store.map(Streams::new);
        match Core::start(config, start) {
            Ok(mut core) => {
                core.set_address(address(id, node.run));
                if node.streams.is_some() {
                    core.stream_snapshots();
                    if node.durable.is_some() {
                        core.machine_is_durable();
                    }
                }
                node.core = Some(core);
            }
            Err(error) => {
                self.fail(format!("node {id} cannot start again: {error}"));
                return;
            }
        }
        node.begun_at = met.unwrap_or(0);
        node.last_command = node.begun_at;
        node.machine = match (&node.durable, met) {
            (Some((machine, _)), Some(_)) => {
                self.coverage.durable_starts += 1;
                machine.clone()
            }
            _ => Machine::default(),
        };
        node.inbound = InboundQueues::new(limits(&self.options));
        (node.log_jobs, node.log_busy) = (Vec::new(), None);
        (node.apply_jobs, node.apply_list) = (Vec::new(), VecDeque::new());
        (node.apply_busy, node.unreported) = (false, 0);
        (node.fetch, node.has_read_fault) = (None, false);
        node.is_asleep = false;
        let run = node.run;
        self.start_host(id);
        let first = self.random.below(TICK_NS);
        self.at(first, Event::Tick(id, run));
        self.with_core(id, |_, _| ());
    }

    /// Somebody swaps folders: the node is started on the log of another node that is down, or as a node of another group.
    pub(super) fn start_on_a_wrong_log(&mut self, id: u64) {
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
    pub(super) fn with_core<R>(
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

    /// Gives input to a core whose thread was held up since it read the clock.
    pub(super) fn with_interrupted_core<R>(
        &mut self,
        id: u64,
        input: impl FnOnce(&mut Core<Op>, &mut Node) -> R,
    ) -> Option<R> {
        self.tell_core(id);
        let node = self.nodes.get_mut(&id)?;
        let mut core = node.core.take()?;
        let committed_before = core.status().commit_index;
        let result = input(&mut core, node);
        let mut out = Outputs::default();
        core.poll(&mut out);
        for job in &out.log_jobs {
            for entry in job.entries.iter() {
                let content = [&entry.data[..], &entry.context[..]].concat().into();
                let known = self
                    .written
                    .entry((entry.index, entry.term))
                    .or_insert_with(|| Bytes::clone(&content));
                if *known == content {
                    continue;
                }
                self.is_twice = true;
                if !self.may_begin_anew && !self.may_vote_twice {
                    self.violation.get_or_insert(format!(
                        "node {id} writes another entry at {} of term {} than one before",
                        entry.index, entry.term
                    ));
                }
            }
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
            self.nodes.get_mut(&id)?.core = Some(core);
            self.empty_as_told(id, out);
            return None;
        }
        if let Some(defect) = core.defect() {
            self.fail(format!("node {id}: {defect}"));
        }
        if core.stats().snapshots_damaged > 0 {
            self.fail(format!("node {id} put a snapshot together that is none"));
        }
        if let Err(broken) = core.check_invariants() {
            self.fail(format!("node {id}: {broken}"));
        }
        let counts = core.is_formed() || !self.may_vote_twice;
        let node = self.nodes.get_mut(&id)?;
        node.core = Some(core);
        // Two groups have two leaders.
        if status.role == Role::Leader && self.mixed.is_none() && counts {
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
        self.note_sleep(id);
        Some(result)
    }

    /// A node says that its files may go: the operator does as it says.
    fn empty_as_told(&mut self, id: u64, out: Outputs<Op>) {
        self.coverage.emptied += 1;
        let cores = self.nodes.values().filter_map(|node| node.core.as_ref());
        let leads = |core: &&Core<Op>| core.status().role == Role::Leader;
        let leader = cores.filter(leads).max_by_key(|core| core.status().term);
        let committed = self.nodes[&id].core.as_ref().map(|core| {
            let index = core.status().commit_index;
            (index, core.log_term(index), core.status().term)
        });
        if let (Some(leader), Some((index, Some(term), current))) = (leader, committed)
            && leader.status().term >= current
            && leader.log_term(index) == Some(term)
        {
            let leader = leader.status().node_id;
            self.fail(format!(
                "node {id} says that its files may go, though the leader, {leader}, has all that is committed there"
            ));
        }
        for (op, reply) in out.replies {
            self.reply(id, op, reply);
        }
        self.stop(id, &StopReason::Core(FORKED_BEFORE_FORMING.into()));
        let voters = self.nodes[&id].voters.clone();
        self.give_empty_disk(id, voters);
        let after = 20 * MS + self.random.below(200 * MS);
        self.at(after, Event::Restart(id));
    }

    pub(super) fn do_outputs(&mut self, id: u64, out: &mut Outputs<Op>) {
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
        for job in out.snapshot_jobs.drain(..) {
            self.begin_snapshot_job(id, job);
        }
        self.begin_log(id);
        self.begin_apply(id);
        for (op, reply) in out.replies.drain(..) {
            self.reply(id, op, reply);
        }
    }

    pub(super) fn crash(&mut self, id: u64) {
        let chance = self.random.next();
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(core) = node.core.take() else {
            return;
        };
        (node.host, node.is_asleep) = (None, false);
        for key in 0..KEYS {
            self.history.gave_up(woken_client(id, key), self.now, 0);
        }
        self.coverage.crashes += 1;
        if let Some(streams) = node.streams.take() {
            streams.kill();
        }
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

    /// The node ends itself, and answers all its callers.
    pub(super) fn stop(&mut self, id: u64, reason: &StopReason) {
        let chance = self.random.next();
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(mut core) = node.core.take() else {
            return;
        };
        // Removes what is not finished.
        node.streams = None;
        self.coverage.jobs_lost += node.disk.crash(chance);
        self.group_stopped(id);
        let mut out = Outputs::default();
        core.stop(reason, &mut out);
        let node = self.nodes.get_mut(&id).expect("it is there");
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
}
