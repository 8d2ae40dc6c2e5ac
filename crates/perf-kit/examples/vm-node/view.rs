//! What requests read: kept in step by the task that applies, read by all others.
//!
//! VMs are spread over shards, each under a lock of its own that is held for a look-up. For pages they are in an ordered map,
//! too, under one lock: a page is of one moment. The numbers, which are asked for all the time, are atomic counters.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
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
    ordered: RwLock<BTreeMap<String, Arc<Vm>>>,
    hosts: RwLock<Vec<HostState>>,
    counters: AtomicCounters,
}

/// A part of all VMs.
#[derive(Debug)]
pub(crate) struct Page {
    /// How many there are in all.
    pub(crate) count: usize,
    pub(crate) vms: Vec<Arc<Vm>>,
    /// Whether none come behind these.
    pub(crate) is_last: bool,
}

impl View {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::new(),
            ordered: RwLock::default(),
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
        let mut ordered = BTreeMap::new();
        for vm in inventory.vms() {
            count += 1;
            running += u64::from(vm.running);
            self.shard(&vm.name)
                .write()
                .insert(vm.name.clone(), Arc::clone(vm));
            ordered.insert(vm.name.clone(), Arc::clone(vm));
        }
        *self.ordered.write() = ordered;
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
                self.ordered.write().insert(vm.name.clone(), Arc::clone(vm));
                if old.is_none() {
                    self.counters.increment_vm_count();
                }
                self.count_running(was_running, vm.running);
            }
            Change::Removed(vm) => {
                self.shard(&vm.name).write().remove(&vm.name);
                self.ordered.write().remove(&vm.name);
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

    /// Up to `limit` VMs by name, those behind `after`, at one moment. Logarithmic in the number of VMs and linear in `limit`.
    pub(crate) fn page(&self, after: Option<&str>, limit: usize) -> Page {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ordered = self.ordered.read();
        let mut behind = ordered.range::<str, _>((start, Bound::Unbounded));
        let vms: Vec<Arc<Vm>> = behind
            .by_ref()
            .take(limit)
            .map(|(_, vm)| Arc::clone(vm))
            .collect();
        Page {
            count: ordered.len(),
            is_last: behind.next().is_none(),
            vms,
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::command::Size;

    fn vm(number: u64) -> Arc<Vm> {
        Arc::new(Vm {
            name: format!("vm-{number:04}"),
            size: Size::default(),
            apart: String::new(),
            host: 1,
            running: false,
            version: number,
        })
    }

    #[test]
    fn a_page_is_of_one_moment() {
        let view = View::new();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for number in (0..2000).rev() {
                    let vm = vm(number);
                    view.follow(&Change::Put { vm, old: None });
                }
            });
            // They come from the highest name down, so a page has all above its lowest.
            loop {
                let is_done = writer.is_finished();
                let page = view.page(None, 2000);
                let lowest = 2000 - page.count as u64;
                let versions: Vec<u64> = page.vms.iter().map(|vm| vm.version).collect();
                assert!(versions.into_iter().eq(lowest..2000));
                if is_done {
                    assert_eq!(page.count, 2000);
                    break;
                }
            }
        });
    }

    #[test]
    fn pages_have_each_vm_once_and_in_order() {
        let view = View::new();
        for number in (0..1000).rev() {
            let vm = vm(number);
            view.follow(&Change::Put { vm, old: None });
        }
        view.follow(&Change::Removed(vm(500)));
        let (mut names, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = view.page(after.as_deref(), 7);
            assert_eq!(page.count, 999);
            names.extend(page.vms.iter().map(|vm| vm.name.clone()));
            if page.is_last {
                break;
            }
            assert_eq!(page.vms.len(), 7);
            // The cursor's VM may be gone by then.
            after = names.last().cloned();
        }
        let all: Vec<String> = (0..1000)
            .filter(|&number| number != 500)
            .map(|number| format!("vm-{number:04}"))
            .collect();
        assert_eq!(names, all);
        assert!(view.page(Some("vm-0999"), 7).is_last);
        assert_eq!(view.page(Some("vm-0500"), 1).vms[0].name, "vm-0501");
    }
}
