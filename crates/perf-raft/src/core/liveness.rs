//! Which hosts live, so that groups may sleep.
//!
//! A group without news sends and does nothing: its leader has asked the members to sleep, and all of them do. What heartbeats of the group were for,
//! hosts do for all their groups together: each sends a [`Beat`] to the others it knows. A sleeping group *relies* on some of them: a follower on its
//! leader's host, a leader on those of a quorum. It is woken when one of them is silent or has another run, when the group itself has stopped there
//! (beats name such groups), and when a member's host is heard again that was absent.
//!
//! A beat says nothing about leases or terms: a woken group goes on by Raft's own rules.

use crate::GroupId;
use crate::codec::{Beat, Body, Frame, FrameHeader};
use crate::primitive::mutant;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Groups that are woken in one tick at most: their elections follow at once.
const WAKES_PER_TICK: usize = 512;

/// So many stops are named. A host that missed more wakes all groups that rely on the sender.
const STOPS_NAMED: usize = 256;

/// A host that is silent for so many times the silence after which it counts as such is forgotten, if no sleeping group knows it.
const FORGOTTEN_AFTER: u64 = 1000;

/// What a sleeping group relies on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reliance {
    /// Hosts, with their run and how many groups had stopped there when they were last heard.
    pub hosts: Vec<(u64, u64, u64)>,
    /// On a leader: the voters, this node among them. More than half of them must live. Empty on others, for which all hosts must.
    pub voters: Vec<u64>,
    /// Members whose hosts are silent.
    pub absent: Vec<u64>,
}

/// What groups need to know of the hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostView {
    /// This host's run.
    run: u64,
    /// How many groups stopped in it.
    stops: u64,
    /// Hosts that beat once and are silent.
    silent: Arc<[u64]>,
    /// Hosts that were expected and never heard. They may be of nodes that do not beat.
    missing: Arc<[u64]>,
}

impl HostView {
    /// Of a host in this run, with these hosts silent. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn new(run: u64, silent: &[u64]) -> Self {
        Self {
            run,
            silent: silent.into(),
            ..Self::default()
        }
    }

    pub(super) fn note(&self) -> (u64, u64) {
        (self.run, self.stops)
    }

    pub(super) fn is_silent(&self, id: u64) -> bool {
        self.silent.contains(&id)
    }

    pub(super) fn is_missing(&self, id: u64) -> bool {
        self.missing.contains(&id)
    }
}

/// A host that was heard of in this run, or is expected.
#[derive(Debug)]
struct Host {
    /// 0 until it is heard.
    run: u64,
    /// Of its last beat.
    sequence: u64,
    heard_tick: u64,
    is_silent: bool,
    /// Stops of groups there that were seen here.
    seen_stops: u64,
    /// Stops here that it has seen.
    shown_stops: u64,
}

/// What this node knows of the hosts of its peers, and which of its groups sleep. Without clock and network: see [`Core`](super::Core).
#[derive(Debug)]
pub struct Liveness {
    id: u64,
    run: u64,
    silence_ticks: u64,
    beat_ticks: u64,
    ticks: u64,
    sequence: u64,
    hosts: BTreeMap<u64, Host>,
    /// Groups that sleep here, and whether the group itself has stopped at a host that it relies on.
    asleep: BTreeMap<GroupId, (Reliance, bool)>,
    /// Those to look at: they may have to be woken.
    suspects: BTreeSet<GroupId>,
    stops: u64,
    stopped: VecDeque<GroupId>,
    view: HostView,
}

impl Host {
    fn new(run: u64, ticks: u64) -> Self {
        Self {
            run,
            sequence: 0,
            heard_tick: ticks,
            is_silent: false,
            seen_stops: 0,
            shown_stops: 0,
        }
    }
}

impl Liveness {
    /// Of node `id`. `run` must be random and different for each start. A host is silent after `silence_ticks` ticks without a beat; beats go out every
    /// `beat_ticks`.
    #[must_use]
    pub fn new(id: u64, run: u64, silence_ticks: usize, beat_ticks: usize) -> Self {
        Self {
            id,
            run,
            silence_ticks: silence_ticks.max(1) as u64,
            beat_ticks: beat_ticks.max(1) as u64,
            ticks: 0,
            sequence: 0,
            hosts: BTreeMap::new(),
            asleep: BTreeMap::new(),
            suspects: BTreeSet::new(),
            stops: 0,
            stopped: VecDeque::new(),
            view: HostView {
                run,
                ..HostView::default()
            },
        }
    }

    /// What groups need to know of it: [`Core::allow_sleep`](super::Core::allow_sleep).
    #[must_use]
    pub fn view(&self) -> &HostView {
        &self.view
    }

    /// These nodes may have hosts that beat: they are beaten from now on, and missing if they stay silent.
    pub fn expect(&mut self, nodes: impl IntoIterator<Item = u64>) {
        for id in nodes {
            let ticks = self.ticks;
            self.hosts.entry(id).or_insert_with(|| Host::new(0, ticks));
        }
    }

    /// How many groups sleep here.
    #[must_use]
    pub fn sleepers(&self) -> usize {
        self.asleep.len()
    }

    /// A group sleeps. False if it relies on what is no more: wake it then.
    #[must_use]
    pub fn fell_asleep(&mut self, group: GroupId, reliance: Reliance) -> bool {
        for &(id, run, stops) in &reliance.hosts {
            let ticks = self.ticks;
            let host = self.hosts.entry(id).or_insert_with(|| Host::new(0, ticks));
            if host.run == 0 {
                // Its note came before its first beat.
                let was_missing = host.is_silent;
                *host = Host::new(run, ticks);
                host.seen_stops = stops;
                if was_missing {
                    self.silence_changed();
                }
            }
            let Some(host) = self.hosts.get(&id) else {
                continue;
            };
            let is_outdated = host.run != run || host.seen_stops > stops;
            if is_outdated && !mutant::is("sleep_relies_on_the_past") {
                return false;
            }
        }
        let must_wake = self.must_wake(&reliance);
        if !must_wake {
            self.asleep.insert(group, (reliance, false));
        }
        !must_wake
    }

    /// A group sleeps no more.
    pub fn woke(&mut self, group: GroupId) {
        self.asleep.remove(&group);
        self.suspects.remove(&group);
    }

    /// A group ends here, whether it sleeps or not. Others that rely on this host for it are told.
    pub fn stopped(&mut self, group: GroupId) {
        self.woke(group);
        self.stops += 1;
        self.view.stops = self.stops;
        self.stopped.push_back(group);
        if self.stopped.len() > STOPS_NAMED {
            self.stopped.pop_front();
        }
    }

    /// Time passes by one tick. Yields beats to send, and groups to wake.
    pub fn tick(&mut self, beats: &mut Vec<Frame>, wake: &mut Vec<GroupId>) {
        self.ticks += 1;
        let (now, patience) = (self.ticks, self.silence_ticks);
        let mut fell_silent = Vec::new();
        for (&id, host) in &mut self.hosts {
            if !host.is_silent && now - host.heard_tick >= patience {
                host.is_silent = true;
                fell_silent.push(id);
            }
        }
        if !fell_silent.is_empty() {
            self.silence_changed();
            if !mutant::is("sleeper_misses_a_death") {
                self.suspect(|reliance| relies_on(reliance, |id| fell_silent.contains(&id)));
            }
        }
        if now.is_multiple_of(FORGOTTEN_AFTER * patience) {
            self.forget();
        }
        if now.is_multiple_of(self.beat_ticks) {
            let ids: Vec<u64> = self.hosts.keys().copied().collect();
            for to in ids {
                let beat = self.beat(to);
                beats.push(beat);
            }
        }
        self.take_suspects(wake);
    }

    fn beat(&mut self, to: u64) -> Frame {
        self.sequence += 1;
        let host = self.hosts.get(&to);
        let shown = host.map_or(0, |host| host.shown_stops);
        let unseen = usize::try_from(self.stops.saturating_sub(shown)).unwrap_or(usize::MAX);
        let named = unseen.min(self.stopped.len());
        let stopped = self.stopped.iter().skip(self.stopped.len() - named);
        Frame {
            header: FrameHeader {
                to,
                from: self.id,
                session: self.run,
                sequence: self.sequence,
                ..FrameHeader::default()
            },
            body: Body::Beat(Box::new(Beat {
                stops: self.stops,
                seen_stops: host.map_or(0, |host| host.seen_stops),
                stopped: stopped.map(|group| group.0).collect(),
            })),
        }
    }

    /// A beat came.
    pub fn heard(&mut self, header: &FrameHeader, beat: &Beat) {
        let (from, run) = (header.from, header.session);
        if from == self.id || from == 0 {
            return;
        }
        let ticks = self.ticks;
        let host = self
            .hosts
            .entry(from)
            .or_insert_with(|| Host::new(0, ticks));
        if run == host.run && header.sequence <= host.sequence {
            return;
        }
        // A late beat of an earlier run looks like a new one: groups are woken for nothing, twice.
        let is_new = host.run == 0;
        let is_other_run = host.run != run && !is_new;
        if host.run != run {
            host.run = run;
            (host.seen_stops, host.shown_stops) = (0, 0);
        }
        let is_back = std::mem::take(&mut host.is_silent);
        (host.sequence, host.heard_tick) = (header.sequence, ticks);
        host.shown_stops = beat.seen_stops;
        let unseen = beat.stops.saturating_sub(host.seen_stops);
        host.seen_stops = host.seen_stops.max(beat.stops);
        if is_back {
            self.silence_changed();
        }
        if is_back || is_new || is_other_run {
            self.suspect(|reliance| {
                reliance.absent.contains(&from)
                    || (is_other_run && relies_on(reliance, |id| id == from))
            });
        }
        if unseen > 0 && !mutant::is("stopped_group_is_relied_on") {
            self.note_stops(from, unseen, &beat.stopped);
        }
    }

    /// Groups that stopped at a host: `unseen` of them, the last ones by name.
    fn note_stops(&mut self, from: u64, unseen: u64, named: &[u64]) {
        let unseen = usize::try_from(unseen).unwrap_or(usize::MAX);
        let mut note = |group: GroupId, reliance: &Reliance, has_stopped: &mut bool| {
            if relies_on(reliance, |id| id == from) {
                *has_stopped = true;
                self.suspects.insert(group);
            }
        };
        if named.len() < unseen {
            for (&group, (reliance, has_stopped)) in &mut self.asleep {
                note(group, reliance, has_stopped);
            }
            return;
        }
        for &group in &named[named.len() - unseen..] {
            let group = GroupId(group);
            if let Some((reliance, has_stopped)) = self.asleep.get_mut(&group) {
                note(group, reliance, has_stopped);
            }
        }
    }

    fn silence_changed(&mut self) {
        let silent = |is_known| {
            let silent = self.hosts.iter();
            let silent =
                silent.filter(move |(_, host)| host.is_silent && (host.run != 0) == is_known);
            silent.map(|(id, _)| *id).collect()
        };
        (self.view.silent, self.view.missing) = (silent(true), silent(false));
    }

    fn suspect(&mut self, is_suspect: impl Fn(&Reliance) -> bool) {
        let suspects = self
            .asleep
            .iter()
            .filter(|(_, (reliance, _))| is_suspect(reliance));
        self.suspects.extend(suspects.map(|(group, _)| *group));
    }

    /// Hands out groups to wake, in their order, as many as one tick may wake.
    fn take_suspects(&mut self, wake: &mut Vec<GroupId>) {
        let limit = wake.len() + WAKES_PER_TICK;
        while wake.len() < limit
            && let Some(group) = self.suspects.pop_first()
        {
            let sleeper = self.asleep.get(&group);
            // A host may have been heard again meanwhile.
            if sleeper
                .is_some_and(|(reliance, has_stopped)| *has_stopped || self.must_wake(reliance))
            {
                self.asleep.remove(&group);
                wake.push(group);
            }
        }
    }

    fn is_silent(&self, id: u64) -> bool {
        self.hosts.get(&id).is_some_and(|host| host.is_silent)
    }

    fn must_wake(&self, reliance: &Reliance) -> bool {
        let has_other_run = reliance
            .hosts
            .iter()
            .any(|(id, run, _)| self.hosts.get(id).is_some_and(|host| host.run != *run));
        let is_back = |id: &u64| self.hosts.get(id).is_some_and(|host| !host.is_silent);
        let lives = |id: &&u64| {
            **id == self.id
                || reliance
                    .hosts
                    .iter()
                    .any(|(other, ..)| other == *id && !self.is_silent(*other))
        };
        let is_alone = if reliance.voters.is_empty() {
            reliance.hosts.iter().any(|(id, ..)| self.is_silent(*id))
        } else {
            2 * reliance.voters.iter().filter(lives).count() <= reliance.voters.len()
        };
        has_other_run || is_alone || reliance.absent.iter().any(is_back)
    }

    /// Forgets hosts that left.
    fn forget(&mut self) {
        let known: BTreeSet<u64> = self
            .asleep
            .values()
            .flat_map(|(reliance, _)| {
                let hosts = reliance.hosts.iter().map(|(id, ..)| *id);
                hosts.chain(reliance.absent.iter().copied())
            })
            .collect();
        let oldest = self
            .ticks
            .saturating_sub(FORGOTTEN_AFTER * self.silence_ticks);
        self.hosts
            .retain(|id, host| host.heard_tick > oldest || known.contains(id));
        self.silence_changed();
    }
}

fn relies_on(reliance: &Reliance, mut is: impl FnMut(u64) -> bool) -> bool {
    reliance.hosts.iter().any(|(id, ..)| is(*id))
}
