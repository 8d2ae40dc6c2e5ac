//! What requests read: kept in step by the task that applies, read by all others.
//!
//! VMs are spread over shards, each under a lock of its own that is held for a look-up; what is asked for all the
//! time, the numbers, is atomic counters.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::RwLock;
use perf_kit::atomics::AtomicCounters;

use crate::inventory::command::Vm;
use crate::inventory::{Change, HostState, Inventory};

/// More than threads: two of them rarely meet in one.
const SHARDS: usize = 64;

/// VMs by name, hosts, and numbers.
#[derive(Debug)]
pub(crate) struct View {
    shards: Vec<RwLock<HashMap<String, Arc<Vm>>>>,
    hasher: RandomState,
    hosts: RwLock<Vec<HostState>>,
    counters: AtomicCounters,
}

impl View {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::new(),
            hosts: RwLock::default(),
            counters: AtomicCounters::new(),
        }
    }

    /// Puts another inventory in the place of the present one.
    pub(crate) fn replace(&self, inventory: &Inventory) {
        for shard in &self.shards {
            shard.write().clear();
        }
        let (mut count, mut running) = (0, 0);
        for vm in inventory.vms() {
            count += 1;
            running += u64::from(vm.running);
            self.shard(&vm.name)
                .write()
                .insert(vm.name.clone(), Arc::clone(vm));
        }
        self.counters.set_vm_count(count);
        self.counters.set_running_vms(running);
        self.set_hosts(inventory);
    }

    /// Follows a change of the inventory.
    pub(crate) fn follow(&self, change: &Change) {
        match change {
            Change::Nothing | Change::Host(_) | Change::Left(_) => {}
            Change::Put { vm, old } => {
                let was_running = old.as_ref().is_some_and(|old| old.running);
                self.shard(&vm.name)
                    .write()
                    .insert(vm.name.clone(), Arc::clone(vm));
                if old.is_none() {
                    self.counters.increment_vm_count();
                }
                self.count_running(was_running, vm.running);
            }
            Change::Removed(vm) => {
                self.shard(&vm.name).write().remove(&vm.name);
                // It cannot be below zero: it was counted when it came.
                let _ = self.counters.decrement_vm_count();
                self.count_running(vm.running, false);
            }
        }
    }

    fn count_running(&self, was: bool, is: bool) {
        match (was, is) {
            (false, true) => {
                self.counters.increment_running_vms();
            }
            (true, false) => {
                let _ = self.counters.decrement_running_vms();
            }
            _ => {}
        }
    }

    /// Takes over the hosts: after a batch, since every VM changes what its host has left.
    pub(crate) fn set_hosts(&self, inventory: &Inventory) {
        let hosts: Vec<HostState> = inventory.hosts().cloned().collect();
        self.counters.set_cluster_nodes(hosts.len() as u64);
        let sum = |part: fn(&HostState) -> u64| hosts.iter().map(part).sum::<u64>();
        self.counters
            .set_total_vcpus(sum(|state| u64::from(state.host.size.vcpus)));
        self.counters.set_used_vcpus(sum(|state| state.used.vcpus));
        *self.hosts.write() = hosts;
    }

    pub(crate) fn vm(&self, name: &str) -> Option<Arc<Vm>> {
        self.shard(name).read().get(name).cloned()
    }

    /// All VMs by name. Not one moment's: each shard is read in turn.
    pub(crate) fn vms(&self) -> Vec<Arc<Vm>> {
        let mut all: Vec<Arc<Vm>> = Vec::new();
        for shard in &self.shards {
            all.extend(shard.read().values().cloned());
        }
        all.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        all
    }

    pub(crate) fn hosts(&self) -> Vec<HostState> {
        self.hosts.read().clone()
    }

    pub(crate) fn host_http(&self, id: u64) -> Option<String> {
        let hosts = self.hosts.read();
        let state = hosts.iter().find(|state| state.host.id == id)?;
        Some(state.host.http.clone())
    }

    pub(crate) fn counters(&self) -> &AtomicCounters {
        &self.counters
    }

    fn shard(&self, name: &str) -> &RwLock<HashMap<String, Arc<Vm>>> {
        let place = self.hasher.hash_one(name) as usize % SHARDS;
        &self.shards[place]
    }
}
