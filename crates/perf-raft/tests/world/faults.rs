//! What goes wrong, what the operator does, and the end of both.

use super::disk::SimDisk;
use super::machine::Machine;
use super::node::{Node, identity};
use super::{Event, MS, Op, World};
use perf_raft::core::Core;
use perf_raft::{Member, MemberRole, MembershipChange, Role};

impl World {
    pub(super) fn fault(&mut self) {
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

    /// A node loses its disk, and starts again with an empty one under its old id, with the list of the first voters still in its code or not.
    ///
    /// One at a time, and none while the membership changes: a group that loses the disks of a quorum is beyond help.
    pub(super) fn replace_disk(&mut self, id: u64) {
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
        let mut cores = self.nodes.values().filter_map(|node| node.core.as_ref());
        if !cores.any(Core::is_formed) {
            self.may_vote_twice = true;
            self.leaders.clear();
        }
        self.crash(id);
        let identity = identity(&mut self.random, id);
        let real_seed = self.has_real_logs.then(|| self.random.next());
        if let Some(node) = self.nodes.get_mut(&id) {
            node.disk = SimDisk::new(real_seed);
            // Its files are on the same disk.
            node.durable = node.durable.take().map(|_| (Machine::default(), 0));
            (node.identity, node.voters, node.is_disk_used) = (identity, voters, false);
        }
    }

    /// The members as the latest leader knows them.
    pub(super) fn leader_members(&self) -> Option<Vec<Member>> {
        let leads = |core: &&Core<Op>| core.status().role == Role::Leader;
        let cores = self.nodes.values().filter_map(|node| node.core.as_ref());
        let leader = cores.filter(leads).max_by_key(|core| core.status().term);
        leader.map(Core::members)
    }

    /// Whether the node whose disk was replaced is a voter again.
    pub(super) fn see_to_the_wiped(&mut self) {
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

    pub(super) fn admin(&mut self) {
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
        let is_learner = membership.learners.contains(&other);
        let mut changes = match self.random.below(3) {
            0 | 1 if is_learner => vec![MembershipChange::Remove(other)],
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
        if changes == [MembershipChange::Remove(other)] && self.random.one_in(2) {
            // It is away meanwhile, and misses that.
            let others = all.iter().flat_map(|&id| [(id, other), (other, id)]);
            self.cut.extend(others);
        }
        self.last_change = self.now;
        self.admin_waits = true;
        self.with_core(id, |core, _| {
            core.change_membership(&changes, false, Op::Admin);
        });
    }

    pub(super) fn heal(&mut self) {
        self.calm = true;
        self.no_snapshots_until = 0;
        self.cut.clear();
        (self.fsync_error_at, self.read_error_at) = (None, None);
        for node in self.nodes.values_mut() {
            node.paused_until = 0;
        }
    }
}
