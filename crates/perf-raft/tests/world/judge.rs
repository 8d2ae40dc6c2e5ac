//! What must hold once the world has healed.

use super::machine::Machine;
use super::node::{Node, address};
use super::{CALM_SNAPSHOTS_MAX, HEALED, MS, Op, Violation, World};
use perf_raft::Role;
use perf_raft::core::{Core, Trouble};
use perf_raft::eraftpb::ConfState;

impl World {
    /// What must hold once the world has healed.
    pub(super) fn judge(&mut self, end: u64) -> Result<(), Violation> {
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
            if member.address.as_ref() != Some(&expected) && !self.is_twice {
                let cores = self.nodes.values().filter_map(|node| node.core.as_ref());
                let reasons: Vec<_> = cores
                    .map(|core| (core.status(), core.is_asleep(), core.awake_for()))
                    .collect();
                return Err(format!(
                    "node {} is at {expected}, the table says {:?}: {reasons:?}",
                    member.id, member.address
                ));
            }
        }
        let membership = core.membership();
        let members = membership.voters.iter().chain(&membership.learners);
        let committed = core.status().commit_index;
        let table = core.members();
        let mut reference: Option<&Machine> = None;
        for id in members {
            let node = &self.nodes[id];
            let core = node.core.as_ref().ok_or(format!("node {id} is down"))?;
            if core.members() != table && !self.is_twice {
                return Err(format!(
                    "node {id} has another table of members than the leader: {:?} and {table:?}",
                    core.members()
                ));
            }
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
            if self.sleepiness.after_ticks > 0 && !node.is_asleep && !self.is_twice {
                let cores = self.nodes.values().filter_map(|node| node.core.as_ref());
                let reasons: Vec<_> = cores
                    .map(|core| (core.status(), core.awake_for()))
                    .collect();
                return Err(format!("node {id} does not sleep: {reasons:?}"));
            }
            let (first, last) = core.log_range();
            let common = self
                .applied
                .iter()
                .filter(|((index, _), _)| (first..=last.min(committed)).contains(index));
            for (&(index, _), (term, _)) in common {
                if core.log_term(index) != Some(*term) {
                    return Err(format!("the log of node {id} has another entry at {index}"));
                }
            }
        }
        self.judge_left_over()?;
        self.history.check()
    }

    /// A node that was removed, whatever it missed of that, knows it.
    fn judge_left_over(&mut self) -> Result<(), Violation> {
        let leads = |core: &&Core<Op>| core.status().role == Role::Leader;
        let cores = || self.nodes.values().filter_map(|node| node.core.as_ref());
        let Some(leader) = cores().filter(leads).max_by_key(|core| core.status().term) else {
            return Ok(());
        };
        let is_member = |membership: &ConfState, id: u64| {
            membership.voters.contains(&id) || membership.learners.contains(&id)
        };
        let now = leader.membership();
        let left_over = cores().filter(|core| {
            let id = core.status().node_id;
            !is_member(&now, id) && is_member(&core.membership(), id)
        });
        for core in left_over {
            self.coverage.left_over += 1;
            if !core.report().troubles.contains(&Trouble::Removed) && !self.is_twice {
                let id = core.status().node_id;
                return Err(format!(
                    "node {id} was removed and does not know it: {:?}, the members are {now:?}",
                    (core.status(), core.report())
                ));
            }
        }
        Ok(())
    }

    /// Whether a bound lets a node that is behind catch up in the least of steps only.
    pub(super) fn is_slow(&self) -> bool {
        let options = &self.options;
        options.message_bytes_max == 1
            || options.unapplied_entries_max == 1
            || options.snapshot_chunk_bytes == 1
            || options.inflight_messages_max == 1
            // Less than an entry: each is read from disk for each peer.
            || self.memory_bytes <= 300
    }
}
