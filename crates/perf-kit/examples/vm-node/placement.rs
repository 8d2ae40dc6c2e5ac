//! Where a VM goes.
//!
//! The index is kept in step by the task that applies; decisions are remembered for a moment, since a burst of equal
//! VMs asks the same question over and over. A remembered host may have filled up since: the inventory refuses it then,
//! and the decision is forgotten.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use parking_lot::RwLock;
use perf_kit::cache::{
    NodeCapacity, PlacementDecisionCache, PlacementIndex, Requirements, Strategy as Choice,
};
use serde::Deserialize;

use crate::inventory::command::{Size, Vm};
use crate::inventory::{Change, HostState, Inventory};

/// Questions that are remembered: sizes of VMs times strategies times groups.
const DECISIONS_MAX: u64 = 4096;
/// How long one is. With the host that had most free, a burst of VMs goes to one host for so long.
const DECISION_TTL: Duration = Duration::from_millis(20);

/// Which of the hosts with room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Strategy {
    /// The one with the most room.
    #[default]
    Spread,
    /// The one with the least room.
    Pack,
    /// Each in turn.
    RoundRobin,
}

/// The hosts' room, and what was decided.
#[derive(Debug)]
pub(crate) struct Placements {
    hosts: RwLock<Hosts>,
    decisions: PlacementDecisionCache,
}

#[derive(Debug, Default)]
struct Hosts {
    index: PlacementIndex,
    /// VMs by group and host: the label goes with the last one.
    groups: HashMap<(String, u64), u64>,
}

impl Placements {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            hosts: RwLock::default(),
            decisions: PlacementDecisionCache::new(DECISIONS_MAX, DECISION_TTL)?,
        })
    }

    /// The host for a VM, as far as this node knows. `generation` is that of the membership.
    pub(crate) fn place(
        &self,
        size: Size,
        apart: &str,
        strategy: Strategy,
        generation: u64,
    ) -> Option<u64> {
        let needs = Requirements::new(size.vcpus, size.memory_mib, size.disk_gib);
        let choice = match strategy {
            Strategy::Spread => Choice::MostAvailable,
            Strategy::Pack => Choice::LeastAvailable,
            Strategy::RoundRobin => Choice::RoundRobin,
        };
        if apart.is_empty() {
            let decide = || self.hosts.read().index.select(&needs, choice);
            if strategy == Strategy::RoundRobin {
                // A remembered turn is nobody's turn.
                return decide();
            }
            return self.decisions.place_at(&needs, choice, generation, decide);
        }
        // Each VM of a group changes the answer for the next one: not remembered.
        let mut hosts = self.hosts.write();
        let apart_from = hosts.index.label(apart).ok();
        let strict = apart_from.and_then(|label| needs.avoiding(&[label]).ok());
        let first = strict.and_then(|strict| hosts.index.select(&strict, choice));
        first.or_else(|| hosts.index.select(&needs, choice))
    }

    /// Notes that a host had no room after all.
    pub(crate) fn was_full(&self, host: u64) {
        self.decisions.forget_node(host);
    }

    /// Follows a change of the inventory.
    pub(crate) fn follow(&self, change: &Change, inventory: &Inventory) {
        match change {
            Change::Nothing | Change::Put { old: Some(_), .. } => {}
            Change::Put { vm, old: None } => self.hosts.write().add(vm),
            Change::Removed(vm) => {
                let mut hosts = self.hosts.write();
                hosts.remove(vm);
                // A removed host has no room, whatever was deleted on it.
                if inventory
                    .host(vm.host)
                    .is_none_or(|state| state.host.removed)
                {
                    hosts.index.remove(vm.host);
                }
            }
            Change::Host(id) => {
                if let Some(state) = inventory.host(*id) {
                    self.hosts.write().put(state);
                }
            }
            Change::Left(id) => {
                self.hosts.write().index.remove(*id);
                self.decisions.forget_node(*id);
            }
        }
    }

    /// Puts another inventory in the place of the present one.
    pub(crate) fn replace(&self, inventory: &Inventory) {
        let mut hosts = Hosts::default();
        for state in inventory.hosts() {
            hosts.put(state);
        }
        for vm in inventory.vms() {
            hosts.add_to_group(vm);
        }
        *self.hosts.write() = hosts;
        self.decisions.clear();
    }
}

impl Hosts {
    fn put(&mut self, state: &HostState) {
        if state.host.removed {
            return;
        }
        let free = state.free();
        // An index that is full leaves the host out: it gets no VMs.
        let _ = self.index.update(NodeCapacity {
            id: state.host.id,
            vcpus: free.vcpus,
            memory_mib: free.memory_mib,
            disk_gib: free.disk_gib,
        });
    }

    fn add(&mut self, vm: &Vm) {
        self.index.reserve(vm.host, &needs_of(vm));
        self.add_to_group(vm);
    }

    fn add_to_group(&mut self, vm: &Vm) {
        if vm.apart.is_empty() {
            return;
        }
        let count = self.groups.entry((vm.apart.clone(), vm.host)).or_insert(0);
        *count += 1;
        if let Ok(label) = self.index.label(&vm.apart) {
            self.index.add_label(vm.host, label);
        }
    }

    fn remove(&mut self, vm: &Vm) {
        self.index.release(vm.host, &needs_of(vm));
        let key = (vm.apart.clone(), vm.host);
        if let Some(count) = self.groups.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.groups.remove(&key);
                if let Ok(label) = self.index.label(&vm.apart) {
                    self.index.remove_label(vm.host, label);
                }
            }
        }
    }
}

fn needs_of(vm: &Vm) -> Requirements {
    Requirements::new(vm.size.vcpus, vm.size.memory_mib, vm.size.disk_gib)
}
