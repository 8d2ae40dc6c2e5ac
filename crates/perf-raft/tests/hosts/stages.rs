//! The life of the hosts: faults, then peace, then the death and the return of a host while all groups sleep.

use super::{ELECTION_TICKS, Violation, WAKES_PER_TICK, World};
use perf_raft::{GroupId, Role};
use std::collections::BTreeSet;

/// Faults happen for so long.
const FAULTY_TICKS: u64 = 400;
/// So long after the last event all groups sleep: elections, snapshots and their retries are over.
const REST_TICKS: u64 = 600;

impl World {
    pub(super) fn live(&mut self) -> Result<(), Violation> {
        self.faults()?;
        self.heal();
        self.write_to_all()?;
        if self.random.one_in(2) {
            self.all_sleep()?;
            self.nothing_happens()?;
        } else {
            // While groups fall asleep.
            for _ in 0..self.random.below(12) {
                self.step_soundly()?;
            }
        }
        let dead = self.kill_a_host()?;
        self.all_sleep()?;
        self.start_host(dead);
        self.open_all();
        self.all_sleep()?;
        self.write_to_all()?;
        self.all_sleep()?;
        self.coverage.late_frames = self.network.late;
        self.members_agree()
    }

    fn step_soundly(&mut self) -> Result<(), Violation> {
        self.step();
        self.violation.take().map_or(Ok(()), Err)
    }

    fn faults(&mut self) -> Result<(), Violation> {
        // Seldom enough that groups sleep meanwhile.
        let pause = 1 + self.random.below(40);
        for _ in 0..FAULTY_TICKS {
            self.step_soundly()?;
            if self.random.one_in(pause) {
                let groups: Vec<GroupId> = self.groups.iter().copied().collect();
                let group = groups[self.random.index(groups.len())];
                self.propose(group);
            }
            if self.random.one_in(15) {
                self.fault();
            }
        }
        Ok(())
    }

    fn fault(&mut self) {
        let ids: Vec<u64> = self.hosts.keys().copied().collect();
        let id = ids[self.random.index(ids.len())];
        let other = ids[self.random.index(ids.len())];
        let groups: Vec<GroupId> = self.groups.iter().copied().collect();
        let group = groups[self.random.index(groups.len())];
        match self.random.below(9) {
            0 => self.crash_host(id),
            1 | 2 => {
                self.start_all();
                self.open_all();
            }
            3 => {
                self.network.cut.insert((id, other));
            }
            4 => {
                let links = ids.iter().flat_map(|&other| [(id, other), (other, id)]);
                self.network.cut.extend(links);
            }
            5 => self.network.cut.clear(),
            6 => self.stop_group(id, group),
            7 if self.groups.len() > 1 => self.remove_group(group),
            _ => {
                self.coverage.made_groups += 1;
                self.make_group();
            }
        }
    }

    fn start_all(&mut self) {
        let up: BTreeSet<u64> = self.up().into_iter().collect();
        let down: Vec<u64> = self
            .hosts
            .keys()
            .copied()
            .filter(|id| !up.contains(id))
            .collect();
        for id in down {
            self.start_host(id);
        }
    }

    fn open_all(&mut self) {
        let groups: Vec<GroupId> = self.groups.iter().copied().collect();
        for id in self.up() {
            for &group in &groups {
                self.open(id, group);
            }
        }
    }

    fn heal(&mut self) {
        self.network.is_calm = true;
        self.network.cut.clear();
        self.start_all();
        self.open_all();
    }

    /// Each group takes a write.
    fn write_to_all(&mut self) -> Result<(), Violation> {
        for group in self.groups.clone() {
            let acked = self.acked_of(group);
            let mut ticks = 0;
            while self.acked_of(group) == acked {
                self.propose(group);
                self.step_soundly()?;
                ticks += 1;
                if ticks > REST_TICKS {
                    return Err(format!("group {} takes no write", group.0));
                }
            }
        }
        Ok(())
    }

    fn acked_of(&self, group: GroupId) -> u64 {
        self.acked.get(&group).copied().unwrap_or(0)
    }

    fn all_sleep(&mut self) -> Result<(), Violation> {
        for _ in 0..REST_TICKS {
            self.step_soundly()?;
            if self.awake().is_none() {
                return Ok(());
            }
        }
        let awake = self.awake().unwrap_or_default();
        Err(format!("{awake} does not sleep, though nothing happens"))
    }

    /// A group that does not sleep, and why its members do not.
    fn awake(&self) -> Option<String> {
        let members = self.hosts.values().flat_map(|host| &host.members);
        let (group, _) = members.into_iter().find(|(_, member)| !member.is_asleep)?;
        let of_hosts = self.hosts.iter().filter_map(|(id, host)| {
            let core = &host.members.get(group)?.core;
            Some(format!(
                "host {id}: {:?}, {:?}",
                core.status().role,
                core.awake_for()
            ))
        });
        let of_hosts: Vec<String> = of_hosts.collect();
        Some(format!("group {} ({})", group.0, of_hosts.join("; ")))
    }

    /// While nothing happens, no group has a tick or sends a frame.
    fn nothing_happens(&mut self) -> Result<(), Violation> {
        // What was under way for long arrives first.
        for _ in 0..200 {
            self.step_soundly()?;
        }
        self.all_sleep()?;
        (self.network.frames, self.network.ticks) = (0, 0);
        for _ in 0..200 {
            self.step_soundly()?;
        }
        match (self.network.frames, self.network.ticks) {
            (0, 0) => Ok(()),
            (frames, ticks) => Err(format!(
                "{frames} frames and {ticks} ticks of groups that sleep"
            )),
        }
    }

    /// A host dies for good while all groups sleep, or a group at it. What it led is led again, though nobody asks for anything.
    fn kill_a_host(&mut self) -> Result<u64, Violation> {
        let ids: Vec<u64> = self.hosts.keys().copied().collect();
        let dead = ids[self.random.index(ids.len())];
        let led = self.led_by(dead);
        let stops_alone = self.random.one_in(2);
        let survivors: Vec<u64> = ids.iter().copied().filter(|id| *id != dead).collect();
        if stops_alone {
            // Groups end at it, and the host lives on.
            for group in led.clone() {
                self.stop_group(dead, group);
            }
        } else {
            self.crash_host(dead);
        }
        let waves = (self.groups.len() / WAKES_PER_TICK) as u64 + 1;
        // Silence, the wakes, and elections: two timeouts at most each, and some end without a winner.
        let bound = ELECTION_TICKS + waves + 8 * ELECTION_TICKS;
        for _ in 0..bound {
            self.step_soundly()?;
        }
        for group in &led {
            let leads = |id: &&u64| {
                let member = self.hosts[id].members.get(group);
                member.is_some_and(|member| member.core.status().role == Role::Leader)
            };
            if !survivors.iter().any(|id| leads(&id)) {
                return Err(format!(
                    "group {} has no leader {bound} ticks after host {dead} died",
                    group.0
                ));
            }
        }
        self.coverage.elections_after_death += led.len() as u64;
        if stops_alone {
            self.crash_host(dead);
        }
        Ok(dead)
    }

    fn led_by(&self, id: u64) -> Vec<GroupId> {
        let members = self.hosts[&id].members.iter();
        let led = members.filter(|(_, member)| member.core.status().role == Role::Leader);
        led.map(|(group, _)| *group).collect()
    }

    fn members_agree(&self) -> Result<(), Violation> {
        for group in &self.groups {
            let machines: Vec<_> = self
                .hosts
                .values()
                .map(|host| host.members[group].machine)
                .collect();
            if machines.iter().any(|machine| *machine != machines[0]) {
                return Err(format!(
                    "the members of group {} differ: {machines:?}",
                    group.0
                ));
            }
        }
        Ok(())
    }
}
