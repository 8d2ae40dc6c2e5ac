//! Where a VM goes.
//!
//! The index is kept in step by the task that applies; decisions are remembered for a moment, since a burst of equal
//! VMs asks the same question over and over. A remembered host may have filled up since: the inventory refuses it then,
//! and the decision is forgotten.

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

/// The label of hosts that a VM is kept apart from, while a host is chosen for it.
const TAKEN: &str = "taken";

/// The hosts' room in a Raft group, and what was decided.
#[derive(Debug)]
pub(crate) struct Placements {
    hosts: RwLock<PlacementIndex>,
    decisions: PlacementDecisionCache,
}

impl Placements {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            hosts: RwLock::default(),
            decisions: PlacementDecisionCache::new(DECISIONS_MAX, DECISION_TTL)?,
        })
    }

    /// The host for a VM, as far as this node knows. `generation` is that of the membership.
    pub(crate) fn place(&self, size: Size, strategy: Strategy, generation: u64) -> Option<u64> {
        let (needs, choice) = question(size, strategy);
        let decide = || self.hosts.read().select(&needs, choice);
        if strategy == Strategy::RoundRobin {
            // A remembered turn is nobody's turn.
            return decide();
        }
        self.decisions.place_at(&needs, choice, generation, decide)
    }

    /// The same, and none of the `taken` hosts while another one has room. Not remembered: each VM of an `apart`
    /// group changes the answer for the next one.
    pub(crate) fn place_apart(&self, size: Size, taken: &[u64], strategy: Strategy) -> Option<u64> {
        let (needs, choice) = question(size, strategy);
        let mut index = self.hosts.write();
        let label = index.label(TAKEN).ok();
        let strict = label.and_then(|label| needs.avoiding(&[label]).ok());
        let first = label.zip(strict).and_then(|(label, strict)| {
            let labelled: Vec<u64> = taken
                .iter()
                .copied()
                .filter(|&id| index.add_label(id, label))
                .collect();
            let first = index.select(&strict, choice);
            for id in labelled {
                index.remove_label(id, label);
            }
            first
        });
        first.or_else(|| index.select(&needs, choice))
    }

    /// Notes that a host had no room after all.
    pub(crate) fn was_full(&self, host: u64) {
        self.decisions.forget_node(host);
    }

    /// Follows a change of the inventory.
    pub(crate) fn follow(&self, change: &Change, inventory: &Inventory) {
        match change {
            Change::Nothing | Change::Put { old: Some(_), .. } => {}
            Change::Put { vm, old: None } => {
                self.hosts.write().reserve(vm.host, &needs_of(vm));
            }
            Change::Removed(vm) => {
                let mut index = self.hosts.write();
                index.release(vm.host, &needs_of(vm));
                // A removed host has no room, whatever was deleted on it.
                if inventory
                    .host(vm.host)
                    .is_none_or(|state| state.host.removed)
                {
                    index.remove(vm.host);
                }
            }
            Change::Host(id) => {
                if let Some(state) = inventory.host(*id) {
                    put(&mut self.hosts.write(), state);
                }
            }
            Change::Left(id) => {
                self.hosts.write().remove(*id);
                self.decisions.forget_node(*id);
            }
        }
    }

    /// Puts another inventory in the place of the present one.
    pub(crate) fn replace(&self, inventory: &Inventory) {
        let mut index = PlacementIndex::default();
        for state in inventory.hosts() {
            put(&mut index, state);
        }
        *self.hosts.write() = index;
        self.decisions.clear();
    }
}

fn question(size: Size, strategy: Strategy) -> (Requirements, Choice) {
    let choice = match strategy {
        Strategy::Spread => Choice::MostAvailable,
        Strategy::Pack => Choice::LeastAvailable,
        Strategy::RoundRobin => Choice::RoundRobin,
    };
    (
        Requirements::new(size.vcpus, size.memory_mib, size.disk_gib),
        choice,
    )
}

fn put(index: &mut PlacementIndex, state: &HostState) {
    if state.host.removed {
        return;
    }
    let free = state.free();
    // An index that is full leaves the host out: it gets no VMs.
    let _ = index.update(NodeCapacity {
        id: state.host.id,
        vcpus: free.vcpus,
        memory_mib: free.memory_mib,
        disk_gib: free.disk_gib,
    });
}

fn needs_of(vm: &Vm) -> Requirements {
    Requirements::new(vm.size.vcpus, vm.size.memory_mib, vm.size.disk_gib)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Used;
    use crate::inventory::command::Host;

    #[test]
    fn a_host_that_is_taken_is_chosen_only_where_no_other_one_has_room() {
        let placements = Placements::new().expect("the bounds are right");
        let size = |vcpus| Size {
            vcpus,
            memory_mib: 64,
            disk_gib: 1,
        };
        for (id, vcpus) in [(1, 16), (2, 8), (3, 4)] {
            let state = HostState {
                host: Host {
                    id,
                    size: Size {
                        memory_mib: 4096,
                        disk_gib: 64,
                        ..size(vcpus)
                    },
                    ..Host::default()
                },
                used: Used::default(),
                vms: 0,
            };
            put(&mut placements.hosts.write(), &state);
        }
        let place =
            |taken: &[u64], vcpus| placements.place_apart(size(vcpus), taken, Strategy::Spread);
        assert_eq!(place(&[], 1), Some(1));
        assert_eq!(place(&[1], 1), Some(2));
        assert_eq!(place(&[1, 2, 7], 1), Some(3));
        assert_eq!(place(&[1, 2], 6), Some(1), "the third one has no room");
        assert_eq!(place(&[1, 2, 3], 1), Some(1));
        assert_eq!(place(&[], 1), Some(1), "nothing of it is remembered");
        assert_eq!(place(&[], 32), None);
    }
}
