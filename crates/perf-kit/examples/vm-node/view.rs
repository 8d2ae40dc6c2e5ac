//! What requests read: kept in step by the tasks that apply, read by all others.
//!
//! VMs are spread over shards, each under a lock of its own that is held for a look-up. For pages they are in an ordered map,
//! too, under one lock: a page is of one moment. The numbers, which are asked for all the time, are atomic counters.
//! Each Raft group changes its own VMs, and has its own numbers and hosts.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use perf_kit::atomics::AtomicCounters;

use crate::groups::group_of;
use crate::inventory::command::Vm;
use crate::inventory::{Change, HostState, Inventory};

/// More than threads: two of them rarely meet in one.
const SHARDS: usize = 64;

type Vms = HashMap<String, Arc<Vm>>;
type Apart = HashMap<String, BTreeMap<(u32, u64), u64>>;

/// VMs by name, hosts, and numbers.
#[derive(Debug)]
pub(crate) struct View {
    shards: Vec<RwLock<Vms>>,
    hasher: RandomState,
    ordered: RwLock<BTreeMap<String, Arc<Vm>>>,
    /// By `apart` group: how many of its VMs each host has from each Raft group. Without empty ones.
    apart: RwLock<Apart>,
    groups: Vec<Part>,
}

/// What the view has of one Raft group.
#[derive(Debug, Default)]
struct Part {
    /// Each with the group's part of it.
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
    /// Of so many Raft groups.
    pub(crate) fn new(groups: u32) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::new(),
            ordered: RwLock::default(),
            apart: RwLock::default(),
            groups: (0..groups).map(|_| Part::default()).collect(),
        }
    }

    /// Puts another inventory in the place of a group's present one. A look-up meanwhile finds a VM as it was before
    /// or as it is afterwards.
    pub(crate) fn replace(&self, group: u32, inventory: &Inventory) {
        let is_other = |name: &str| group_of(name, self.groups.len() as u32) != group;
        let mut shards: Vec<Vms> = (0..SHARDS).map(|_| Vms::new()).collect();
        let (mut count, mut running) = (0, 0);
        for vm in inventory.vms() {
            count += 1;
            running += u64::from(vm.running);
            shards[self.place(&vm.name)].insert(vm.name.clone(), Arc::clone(vm));
        }
        for (shard, new) in self.shards.iter().zip(shards) {
            let mut shard = shard.write();
            shard.retain(|name, _| is_other(name));
            shard.extend(new);
        }
        let mut ordered = self.ordered.write();
        ordered.retain(|name, _| is_other(name));
        ordered.extend(inventory.vms().map(|vm| (vm.name.clone(), Arc::clone(vm))));
        drop(ordered);
        let mut apart = self.apart.write();
        apart.retain(|_, hosts| {
            hosts.retain(|(its, _), _| *its != group);
            !hosts.is_empty()
        });
        for vm in inventory.vms() {
            add_apart(&mut apart, group, vm);
        }
        drop(apart);
        let counters = &self.part(group).counters;
        counters.set_vm_count(count);
        counters.set_running_vms(running);
        self.set_hosts(group, inventory);
    }

    /// Follows a change of a group's inventory.
    pub(crate) fn follow(&self, group: u32, change: &Change) {
        let counters = &self.part(group).counters;
        match change {
            Change::Nothing | Change::Host(_) | Change::Left(_) => {}
            Change::Put { vm, old } => {
                let was_running = old.as_ref().is_some_and(|old| old.running);
                self.shard(&vm.name)
                    .write()
                    .insert(vm.name.clone(), Arc::clone(vm));
                self.ordered.write().insert(vm.name.clone(), Arc::clone(vm));
                if old.is_none() {
                    if !vm.apart.is_empty() {
                        add_apart(&mut self.apart.write(), group, vm);
                    }
                    counters.increment_vm_count();
                }
                count_running(counters, was_running, vm.running);
            }
            Change::Removed(vm) => {
                self.shard(&vm.name).write().remove(&vm.name);
                self.ordered.write().remove(&vm.name);
                if !vm.apart.is_empty() {
                    remove_apart(&mut self.apart.write(), group, vm);
                }
                // It cannot be below zero: it was counted when it came.
                let _ = counters.decrement_vm_count();
                count_running(counters, vm.running, false);
            }
        }
    }

    /// Takes over a group's hosts: after a batch, since every VM changes what its host has left.
    pub(crate) fn set_hosts(&self, group: u32, inventory: &Inventory) {
        *self.part(group).hosts.write() = inventory.hosts().cloned().collect();
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

    /// The hosts that have VMs of an `apart` group.
    pub(crate) fn taken(&self, apart: &str) -> Vec<u64> {
        let groups = self.apart.read();
        let hosts = groups.get(apart).into_iter().flat_map(BTreeMap::keys);
        hosts.map(|(_, host)| *host).collect()
    }

    /// All hosts, each with the sum of what the groups have of it. A host that was removed from any group counts as
    /// removed.
    pub(crate) fn hosts(&self) -> Vec<HostState> {
        let mut hosts: BTreeMap<u64, HostState> = BTreeMap::new();
        for part in &self.groups {
            for state in part.hosts.read().iter() {
                match hosts.get_mut(&state.host.id) {
                    Some(sum) => sum.add(state),
                    None => drop(hosts.insert(state.host.id, state.clone())),
                }
            }
        }
        hosts.into_values().collect()
    }

    /// A host as one group knows it.
    pub(crate) fn host_of(&self, group: u32, id: u64) -> Option<HostState> {
        let hosts = self.part(group).hosts.read();
        hosts.iter().find(|state| state.host.id == id).cloned()
    }

    /// Whether a group knows any host.
    pub(crate) fn has_hosts(&self, group: u32) -> bool {
        !self.part(group).hosts.read().is_empty()
    }

    /// The ids of a group's hosts that were not removed.
    pub(crate) fn host_ids(&self, group: u32) -> Vec<u64> {
        let hosts = self.part(group).hosts.read();
        let present = hosts.iter().filter(|state| !state.host.removed);
        present.map(|state| state.host.id).collect()
    }

    pub(crate) fn host_http(&self, id: u64) -> Option<String> {
        (0..self.groups.len() as u32)
            .find_map(|group| self.host_of(group, id))
            .map(|state| state.host.http)
    }

    pub(crate) fn vm_count(&self) -> u64 {
        self.groups
            .iter()
            .map(|part| part.counters.vm_count())
            .sum()
    }

    pub(crate) fn running_vms(&self) -> u64 {
        self.groups
            .iter()
            .map(|part| part.counters.running_vms())
            .sum()
    }

    fn part(&self, group: u32) -> &Part {
        &self.groups[group as usize]
    }

    fn shard(&self, name: &str) -> &RwLock<Vms> {
        &self.shards[self.place(name)]
    }

    fn place(&self, name: &str) -> usize {
        self.hasher.hash_one(name) as usize % SHARDS
    }
}

fn add_apart(apart: &mut Apart, group: u32, vm: &Vm) {
    if !vm.apart.is_empty() {
        let hosts = apart.entry(vm.apart.clone()).or_default();
        *hosts.entry((group, vm.host)).or_insert(0) += 1;
    }
}

fn remove_apart(apart: &mut Apart, group: u32, vm: &Vm) {
    let Some(hosts) = apart.get_mut(&vm.apart) else {
        return;
    };
    if let Some(count) = hosts.get_mut(&(group, vm.host)) {
        *count -= 1;
        if *count == 0 {
            hosts.remove(&(group, vm.host));
        }
    }
    if hosts.is_empty() {
        apart.remove(&vm.apart);
    }
}

fn count_running(counters: &AtomicCounters, was: bool, is: bool) {
    match (was, is) {
        (false, true) => {
            counters.increment_running_vms();
        }
        (true, false) => {
            let _ = counters.decrement_running_vms();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::command::{Action, Command, Create, Host, Size};
    use bytes::Bytes;
    use prost::Message as _;

    fn vm(number: u64) -> Arc<Vm> {
        Arc::new(Vm {
            name: format!("vm-{number:04}"),
            size: Size::default(),
            apart: String::new(),
            host: 1,
            running: false,
            version: number,
            user_data: bytes::Bytes::new(),
        })
    }

    #[test]
    fn a_page_is_of_one_moment() {
        let view = View::new(1);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for number in (0..2000).rev() {
                    let vm = vm(number);
                    view.follow(0, &Change::Put { vm, old: None });
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

    fn inventory(names: &[&str]) -> Inventory {
        let mut inventory = Inventory::default();
        for name in names {
            let host = Host {
                id: 1,
                size: Size {
                    vcpus: 1000,
                    memory_mib: 1000,
                    disk_gib: 1000,
                },
                ..Host::default()
            };
            let create = Create {
                name: (*name).to_owned(),
                host: 1,
                ..Create::default()
            };
            for action in [Action::Host(host), Action::Create(create)] {
                let command = Command {
                    request_id: String::new(),
                    action: Some(action),
                    raft_groups: 2,
                };
                inventory.apply(&Bytes::from(command.encode_to_vec()));
            }
        }
        inventory
    }

    #[test]
    fn a_look_up_while_a_group_is_replaced_finds_what_is_in_both() {
        let view = View::new(1);
        let inventory = inventory(&["a", "b", "c"]);
        view.replace(0, &inventory);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..2000 {
                    view.replace(0, &inventory);
                }
            });
            while !writer.is_finished() {
                assert!(view.vm("b").is_some());
                assert_eq!(view.page(None, 10).vms.len(), 3);
            }
        });
    }

    #[test]
    fn groups_are_replaced_and_counted_each_alone() {
        let view = View::new(2);
        let of = |group| -> Vec<&str> {
            let names = ["a", "b", "c", "d", "e", "f"].into_iter();
            names.filter(|name| group_of(name, 2) == group).collect()
        };
        assert!(of(0).len() > 1 && of(1).len() > 1, "{:?}", of(0));
        view.replace(0, &inventory(&of(0)));
        view.replace(1, &inventory(&of(1)));
        assert_eq!(view.vm_count(), 6);
        view.replace(0, &inventory(&of(0)[..1]));
        assert_eq!(view.vm_count(), 1 + of(1).len() as u64);
        assert!(view.vm(of(0)[0]).is_some() && view.vm(of(0)[1]).is_none());
        assert!(of(1).iter().all(|name| view.vm(name).is_some()));
        let hosts = view.hosts();
        assert_eq!(hosts.len(), 1);
        assert_eq!(
            hosts[0].host.size.vcpus, 2000,
            "the sum of both groups' parts"
        );
        assert_eq!(hosts[0].vms, view.vm_count());
    }

    #[test]
    fn hosts_are_taken_by_the_vms_of_all_groups_until_the_last_one_goes() {
        let view = View::new(2);
        let apart = |number, host| {
            let mut vm = Vm::clone(&vm(number));
            (vm.apart, vm.host) = ("db".to_owned(), host);
            Arc::new(vm)
        };
        let put = |group, vm: &Arc<Vm>| {
            let vm = Arc::clone(vm);
            view.follow(group, &Change::Put { vm, old: None });
        };
        let (one, two, other) = (apart(1, 7), apart(2, 7), apart(3, 8));
        put(0, &one);
        put(1, &two);
        put(1, &other);
        assert_eq!(view.taken("db"), [7, 7, 8]);
        view.follow(0, &Change::Removed(one));
        assert_eq!(view.taken("db"), [7, 8]);
        view.replace(1, &inventory(&[]));
        assert!(view.taken("db").is_empty());
        assert!(view.apart.read().is_empty());
    }

    #[test]
    fn pages_have_each_vm_once_and_in_order() {
        let view = View::new(1);
        for number in (0..1000).rev() {
            let vm = vm(number);
            view.follow(0, &Change::Put { vm, old: None });
        }
        view.follow(0, &Change::Removed(vm(500)));
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
