//! The replicated inventory: a function of the commands, the same on every node.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

mod clients;
pub(crate) mod command;
pub(crate) mod image;

use clients::Clients;
use command::{Action, Command, Create, Host, Outcome, Size, Vm};

/// Answers of all Raft groups together that are kept for clients that ask again. The oldest goes first. The id of a
/// request counts until this many later requests with ids were answered. After that it is taken for a new one, or
/// refused as too old if it has a number (see [`clients`]).
const ANSWERS_MAX: usize = 100_000;

/// VMs there may be at once, in all Raft groups together.
pub(crate) const VMS_MAX: usize = 1_000_000;

/// Bytes of user data that all VMs of all Raft groups may have together.
const USER_DATA_BYTES_MAX: usize = 64 * 1024 * 1024;

/// VMs, hosts, and the answers given: of one Raft group. Each group has an equal part of each bound.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    vms: HashMap<String, Arc<Vm>>,
    hosts: BTreeMap<u64, HostState>,
    /// Ids of hosts that an operator removed: no announcement brings them back.
    removed: BTreeSet<u64>,
    /// By group: how many of its VMs each host has. Without empty groups.
    groups: HashMap<String, BTreeMap<u64, u64>>,
    answers: HashMap<String, Remembered>,
    /// The keys of `answers`, oldest first.
    order: VecDeque<String>,
    clients: Clients,
    version: u64,
    user_data_bytes: usize,
    /// By the first command; 0 before it.
    raft_groups: u32,
}

/// An answer that was given, and to what.
#[derive(Clone, Debug, PartialEq)]
struct Remembered {
    /// The action as bytes, without the host that was chosen for it: each attempt chooses anew. User data counts by
    /// its length and checksum, so that what is remembered is short.
    request: Bytes,
    outcome: Outcome,
}

/// A host and what its VMs take.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HostState {
    pub(crate) host: Host,
    pub(crate) used: Used,
    pub(crate) vms: u64,
}

/// Sums of sizes; wider than a size, so that no sum wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) vcpus: u64,
    pub(crate) memory_mib: u64,
    pub(crate) disk_gib: u64,
}

/// What a command changed, for views of the inventory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    Nothing,
    /// The VM is new or another one, and was this before.
    Put {
        vm: Arc<Vm>,
        old: Option<Arc<Vm>>,
    },
    Removed(Arc<Vm>),
    Host(u64),
    /// An operator removed the host: it is no member any more, though it may still have VMs.
    Left(u64),
}

impl Used {
    fn add(&mut self, size: Size) {
        self.vcpus += u64::from(size.vcpus);
        self.memory_mib += u64::from(size.memory_mib);
        self.disk_gib += u64::from(size.disk_gib);
    }

    fn remove(&mut self, size: Size) {
        self.vcpus -= u64::from(size.vcpus);
        self.memory_mib -= u64::from(size.memory_mib);
        self.disk_gib -= u64::from(size.disk_gib);
    }
}

impl HostState {
    /// Adds what another Raft group has of the same host.
    pub(crate) fn add(&mut self, other: &Self) {
        let size = &mut self.host.size;
        size.vcpus = size.vcpus.saturating_add(other.host.size.vcpus);
        size.memory_mib = size.memory_mib.saturating_add(other.host.size.memory_mib);
        size.disk_gib = size.disk_gib.saturating_add(other.host.size.disk_gib);
        self.used.vcpus += other.used.vcpus;
        self.used.memory_mib += other.used.memory_mib;
        self.used.disk_gib += other.used.disk_gib;
        self.vms += other.vms;
        self.host.removed |= other.host.removed;
    }

    /// What is left for further VMs.
    pub(crate) fn free(&self) -> Size {
        if self.host.removed {
            return Size::default();
        }
        let left = |all: u32, used: u64| {
            u32::try_from(u64::from(all).saturating_sub(used)).unwrap_or(u32::MAX)
        };
        Size {
            vcpus: left(self.host.size.vcpus, self.used.vcpus),
            memory_mib: left(self.host.size.memory_mib, self.used.memory_mib),
            disk_gib: left(self.host.size.disk_gib, self.used.disk_gib),
        }
    }

    fn has_room(&self, size: Size) -> bool {
        let free = self.free();
        size.vcpus <= free.vcpus
            && size.memory_mib <= free.memory_mib
            && size.disk_gib <= free.disk_gib
    }
}

impl Inventory {
    /// Applies an encoded command.
    pub(crate) fn apply(&mut self, data: &Bytes) -> (Outcome, Change) {
        let command = match Command::decode(data.clone()) {
            Ok(command) => command,
            Err(error) => return (Outcome::Malformed(error.to_string()), Change::Nothing),
        };
        let Some(action) = command.action else {
            let reason = "the command has no action".to_owned();
            return (Outcome::Malformed(reason), Change::Nothing);
        };
        let raft_groups = command.raft_groups.max(1);
        if self.raft_groups == 0 {
            self.raft_groups = raft_groups;
        }
        if self.raft_groups != raft_groups {
            return (Outcome::OtherGroups(self.raft_groups), Change::Nothing);
        }
        if command.request_id.is_empty() {
            return self.act(action);
        }
        let request = fingerprint(&action);
        if let Some(known) = self.answers.get(&command.request_id) {
            let outcome = if known.request == request {
                known.outcome.clone()
            } else {
                Outcome::Reused(command.request_id)
            };
            return (outcome, Change::Nothing);
        }
        let clients_max = self.part_of(clients::CLIENTS_MAX);
        if !self.clients.is_new(&command.request_id, clients_max) {
            return (Outcome::TooOld(command.request_id), Change::Nothing);
        }
        let (outcome, change) = self.act(action);
        let known = Remembered {
            request,
            outcome: outcome.clone(),
        };
        self.remember(command.request_id, known);
        (outcome, change)
    }

    fn act(&mut self, action: Action) -> (Outcome, Change) {
        match action {
            Action::Create(create) => self.create(create),
            Action::Start(name) => self.set_running(&name, true),
            Action::Stop(name) => self.set_running(&name, false),
            Action::Delete(name) => self.delete(name),
            Action::Host(host) if self.removed.contains(&host.id) => {
                (Outcome::UnknownHost(host.id), Change::Nothing)
            }
            Action::Host(host) => self.put_host(host),
            Action::Join(host) => self.join(host),
            Action::Leave(id) => self.leave(id),
        }
    }

    fn create(&mut self, create: Create) -> (Outcome, Change) {
        if self.vms.contains_key(&create.name) {
            return (Outcome::Exists(create.name), Change::Nothing);
        }
        let user_data_bytes_max = self.part_of(USER_DATA_BYTES_MAX);
        if self.user_data_bytes + create.user_data.len() > user_data_bytes_max {
            let outcome = Outcome::UserDataFull(user_data_bytes_max as u64);
            return (outcome, Change::Nothing);
        }
        let Some(host) = self.host_for(&create) else {
            return (Outcome::NoRoom(create.host), Change::Nothing);
        };
        self.version += 1;
        let vm = Arc::new(Vm {
            name: create.name,
            size: create.size,
            apart: create.apart,
            host,
            running: false,
            version: self.version,
            // A slice would keep the whole entry of the log in memory.
            user_data: Bytes::copy_from_slice(&create.user_data),
        });
        self.put_vm(&vm);
        let outcome = Outcome::Vm(vm.without_user_data());
        (outcome, Change::Put { vm, old: None })
    }

    /// The host that was asked for, if it has room and no VM of the group; otherwise another one for which that is so; otherwise one
    /// with room. Here and not where the request came in, since others may have been applied since. Linear in the number
    /// of hosts where the one that was asked for will not do.
    fn host_for(&self, create: &Create) -> Option<u64> {
        if self.vms.len() >= self.part_of(VMS_MAX) {
            return None;
        }
        let taken = self.groups.get(&create.apart);
        let is_apart = |id: u64| taken.is_none_or(|taken| !taken.contains_key(&id));
        let asked = self.hosts.get(&create.host);
        let asked = asked.is_some_and(|state| state.has_room(create.size));
        if asked && is_apart(create.host) {
            return Some(create.host);
        }
        let with_room = self
            .hosts
            .iter()
            .filter(|(_, state)| state.has_room(create.size));
        let best = with_room.max_by_key(|&(&id, state)| {
            let is_asked = asked && id == create.host;
            (is_apart(id), is_asked, state.free().vcpus, Reverse(id))
        });
        best.map(|(&id, _)| id)
    }

    /// Adds a new VM and counts it.
    fn put_vm(&mut self, vm: &Arc<Vm>) {
        if let Some(host) = self.hosts.get_mut(&vm.host) {
            host.used.add(vm.size);
            host.vms += 1;
        }
        if !vm.apart.is_empty() {
            let group = self.groups.entry(vm.apart.clone()).or_default();
            *group.entry(vm.host).or_insert(0) += 1;
        }
        self.user_data_bytes += vm.user_data.len();
        self.vms.insert(vm.name.clone(), Arc::clone(vm));
    }

    /// Counts a VM of a group no more.
    fn leave_group(&mut self, vm: &Vm) {
        let Some(group) = self.groups.get_mut(&vm.apart) else {
            return;
        };
        if let Some(count) = group.get_mut(&vm.host) {
            *count -= 1;
            if *count == 0 {
                group.remove(&vm.host);
            }
        }
        if group.is_empty() {
            self.groups.remove(&vm.apart);
        }
    }

    fn set_running(&mut self, name: &str, running: bool) -> (Outcome, Change) {
        let Some(old) = self.vms.get(name).cloned() else {
            return (Outcome::Unknown(name.to_owned()), Change::Nothing);
        };
        if old.running == running {
            return (Outcome::Vm(old.without_user_data()), Change::Nothing);
        }
        self.version += 1;
        let vm = Arc::new(Vm {
            running,
            version: self.version,
            ..Vm::clone(&old)
        });
        self.vms.insert(name.to_owned(), Arc::clone(&vm));
        let outcome = Outcome::Vm(vm.without_user_data());
        (outcome, Change::Put { vm, old: Some(old) })
    }

    fn delete(&mut self, name: String) -> (Outcome, Change) {
        let Some(vm) = self.vms.remove(&name) else {
            return (Outcome::Unknown(name), Change::Nothing);
        };
        self.leave_group(&vm);
        if let Some(host) = self.hosts.get_mut(&vm.host) {
            host.used.remove(vm.size);
            host.vms -= 1;
            if host.host.removed && host.vms == 0 {
                self.hosts.remove(&vm.host);
            }
        }
        self.user_data_bytes -= vm.user_data.len();
        self.version += 1;
        (Outcome::Vm(vm.without_user_data()), Change::Removed(vm))
    }

    fn put_host(&mut self, host: Host) -> (Outcome, Change) {
        let id = host.id;
        let state = self.hosts.entry(id).or_insert_with(|| HostState {
            host: host.clone(),
            used: Used::default(),
            vms: 0,
        });
        state.host = host;
        (Outcome::Host(id), Change::Host(id))
    }

    fn join(&mut self, host: Host) -> (Outcome, Change) {
        let id = host.id;
        match self.hosts.get(&id) {
            Some(known) if known.host == host => (Outcome::Host(id), Change::Nothing),
            Some(_) => (Outcome::HostExists(id), Change::Nothing),
            None => {
                self.removed.remove(&id);
                self.put_host(host)
            }
        }
    }

    fn leave(&mut self, id: u64) -> (Outcome, Change) {
        let Some(state) = self.hosts.get_mut(&id) else {
            return (Outcome::UnknownHost(id), Change::Nothing);
        };
        state.host.removed = true;
        if state.vms == 0 {
            self.hosts.remove(&id);
        }
        self.removed.insert(id);
        (Outcome::Host(id), Change::Left(id))
    }

    fn remember(&mut self, request_id: String, known: Remembered) {
        if self.order.len() >= self.part_of(ANSWERS_MAX)
            && let Some(oldest) = self.order.pop_front()
        {
            self.answers.remove(&oldest);
        }
        self.order.push_back(request_id.clone());
        self.answers.insert(request_id, known);
    }

    /// This Raft group's part of a bound for all.
    fn part_of(&self, all: usize) -> usize {
        all / self.raft_groups.max(1) as usize
    }

    /// Over how many Raft groups the whole inventory is spread, by the first command; 0 before it.
    pub(crate) fn raft_groups(&self) -> u32 {
        self.raft_groups
    }

    pub(crate) fn vm(&self, name: &str) -> Option<&Arc<Vm>> {
        self.vms.get(name)
    }

    pub(crate) fn vms(&self) -> impl Iterator<Item = &Arc<Vm>> {
        self.vms.values()
    }

    pub(crate) fn host(&self, id: u64) -> Option<&HostState> {
        self.hosts.get(&id)
    }

    pub(crate) fn hosts(&self) -> impl Iterator<Item = &HostState> {
        self.hosts.values()
    }
}

/// What makes a request the same as another one: all but the host that was chosen for it.
fn fingerprint(action: &Action) -> Bytes {
    let mut action = action.clone();
    if let Action::Create(create) = &mut action {
        create.host = 0;
        if !create.user_data.is_empty() {
            let checksum = crc32fast::hash(&create.user_data);
            let short = format!("{} {checksum:08x}", create.user_data.len());
            create.user_data = Bytes::from(short);
        }
    }
    let command = Command {
        request_id: String::new(),
        action: Some(action),
        raft_groups: 0,
    };
    Bytes::from(command.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy_of(inventory: &Inventory) -> Inventory {
        image::read(&mut image::Image::of(inventory)).expect("it is an image")
    }

    fn size(vcpus: u32) -> Size {
        Size {
            vcpus,
            memory_mib: 64,
            disk_gib: 1,
        }
    }

    fn apply(inventory: &mut Inventory, request_id: &str, action: Action) -> (Outcome, Change) {
        let command = Command {
            request_id: request_id.to_owned(),
            action: Some(action),
            raft_groups: 1,
        };
        inventory.apply(&Bytes::from(command.encode_to_vec()))
    }

    fn create(name: &str, vcpus: u32) -> Action {
        Action::Create(Create {
            name: name.to_owned(),
            size: size(vcpus),
            apart: String::new(),
            host: 1,
            user_data: Bytes::new(),
        })
    }

    fn host(id: u64) -> Host {
        Host {
            id,
            http: format!("127.0.0.1:{}", 1000 + id),
            raft: format!("127.0.0.1:{}", 2000 + id),
            size: Size {
                vcpus: 4,
                memory_mib: 1024,
                disk_gib: 100,
            },
            removed: false,
        }
    }

    fn with_host() -> Inventory {
        let mut inventory = Inventory::default();
        apply(&mut inventory, "h", Action::Host(host(1)));
        inventory
    }

    #[test]
    fn a_host_joins_once_and_its_id_is_not_taken_by_another() {
        let mut inventory = with_host();
        let other = Host {
            raft: "127.0.0.1:9".to_owned(),
            ..host(1)
        };
        assert_eq!(
            apply(&mut inventory, "1", Action::Join(other)).0,
            Outcome::HostExists(1)
        );
        assert_eq!(inventory.host(1).map(|state| &state.host), Some(&host(1)));
        for request_id in ["2", "3"] {
            let joined = apply(&mut inventory, request_id, Action::Join(host(2)));
            assert_eq!(joined.0, Outcome::Host(2));
        }
    }

    #[test]
    fn a_removed_host_gets_no_vms_and_no_announcement_brings_it_back() {
        let mut inventory = with_host();
        apply(&mut inventory, "1", create("a", 1));
        assert_eq!(
            apply(&mut inventory, "2", Action::Leave(1)).1,
            Change::Left(1)
        );
        assert_eq!(
            apply(&mut inventory, "3", create("b", 1)).0,
            Outcome::NoRoom(1)
        );
        // Its VM can still be deleted; it is forgotten with that.
        let copy = copy_of(&inventory);
        for mut inventory in [copy, inventory] {
            assert!(inventory.host(1).is_some_and(|state| state.host.removed));
            apply(&mut inventory, "4", Action::Delete("a".to_owned()));
            assert_eq!(inventory.host(1), None);
            apply(&mut inventory, "5", Action::Host(host(1)));
            assert_eq!(inventory.host(1), None);
            apply(&mut inventory, "6", Action::Join(host(1)));
            assert_eq!(inventory.host(1).map(|state| &state.host), Some(&host(1)));
        }
        assert_eq!(
            apply(&mut with_host(), "1", Action::Leave(7)).0,
            Outcome::UnknownHost(7)
        );
    }

    #[test]
    fn a_vm_lives_from_create_to_delete() {
        let mut inventory = with_host();
        assert!(matches!(
            apply(&mut inventory, "1", create("a", 3)).0,
            Outcome::Vm(_)
        ));
        assert_eq!(inventory.host(1).map(|host| host.free().vcpus), Some(1));
        assert_eq!(
            apply(&mut inventory, "2", create("a", 1)).0,
            Outcome::Exists("a".to_owned())
        );
        assert_eq!(
            apply(&mut inventory, "3", create("b", 2)).0,
            Outcome::NoRoom(1)
        );
        let started = apply(&mut inventory, "4", Action::Start("a".to_owned()));
        assert!(matches!(started.0, Outcome::Vm(vm) if vm.running));
        let again = apply(&mut inventory, "5", Action::Start("a".to_owned()));
        assert_eq!(again.1, Change::Nothing);
        apply(&mut inventory, "6", Action::Delete("a".to_owned()));
        assert_eq!(inventory.host(1).map(|host| host.free().vcpus), Some(4));
        assert_eq!(
            apply(&mut inventory, "7", Action::Stop("a".to_owned())).0,
            Outcome::Unknown("a".to_owned())
        );
    }

    #[test]
    fn who_asks_again_gets_the_same_answer_and_changes_nothing() {
        let mut inventory = with_host();
        let first = apply(&mut inventory, "1", create("a", 3)).0;
        let (again, change) = apply(&mut inventory, "1", create("a", 3));
        assert_eq!((again, change), (first, Change::Nothing));
    }

    #[test]
    fn an_id_that_was_used_for_another_request_is_refused() {
        let mut inventory = with_host();
        apply(&mut inventory, "1", create("a", 1));
        let others = [
            create("b", 1),
            create("a", 2),
            Action::Delete("a".to_owned()),
            Action::Start("a".to_owned()),
        ];
        let mut copy = copy_of(&inventory);
        for other in others {
            for inventory in [&mut inventory, &mut copy] {
                let (outcome, change) = apply(inventory, "1", other.clone());
                assert_eq!(outcome, Outcome::Reused("1".to_owned()), "{other:?}");
                assert_eq!(change, Change::Nothing);
            }
        }
        assert!(inventory.vm("a").is_some_and(|vm| !vm.running));
        // An attempt that chose another host is the same request.
        let mut again = create("a", 1);
        if let Action::Create(create) = &mut again {
            create.host = 9;
        }
        assert!(matches!(
            apply(&mut inventory, "1", again).0,
            Outcome::Vm(_)
        ));
    }

    #[test]
    fn an_id_counts_for_as_many_later_requests_as_are_remembered() {
        let mut inventory = with_host();
        apply(&mut inventory, "first", create("a", 1));
        for number in 1..ANSWERS_MAX {
            apply(
                &mut inventory,
                &number.to_string(),
                Action::Stop("a".to_owned()),
            );
        }
        let again = apply(&mut inventory, "first", create("a", 1)).0;
        assert!(matches!(again, Outcome::Vm(_)), "{again:?}");
        apply(&mut inventory, "one more", Action::Stop("a".to_owned()));
        let again = apply(&mut inventory, "first", create("a", 1)).0;
        assert_eq!(again, Outcome::Exists("a".to_owned()));
        assert_eq!(inventory.answers.len(), ANSWERS_MAX);
        assert_eq!(inventory.order.len(), ANSWERS_MAX);
    }

    #[test]
    fn a_numbered_request_is_never_applied_twice_however_late() {
        let mut inventory = with_host();
        apply(&mut inventory, "c#1", create("a", 1));
        apply(&mut inventory, "c#2", Action::Delete("a".to_owned()));
        for number in 0..ANSWERS_MAX {
            apply(
                &mut inventory,
                &format!("x{number}"),
                Action::Stop("a".to_owned()),
            );
        }
        let mut copy = copy_of(&inventory);
        for inventory in [&mut inventory, &mut copy] {
            let (outcome, change) = apply(inventory, "c#1", create("a", 1));
            assert_eq!(outcome, Outcome::TooOld("c#1".to_owned()));
            assert_eq!(change, Change::Nothing);
            let next = apply(inventory, "c#3", create("a", 1)).0;
            assert!(matches!(next, Outcome::Vm(_)), "{next:?}");
        }
    }

    /// Creates a VM of a group that asks for host 1, and returns where it is.
    fn create_apart(inventory: &mut Inventory, name: &str, apart: &str) -> Option<u64> {
        let action = Action::Create(Create {
            name: name.to_owned(),
            size: size(1),
            apart: apart.to_owned(),
            host: 1,
            user_data: Bytes::new(),
        });
        match apply(inventory, name, action).0 {
            Outcome::Vm(vm) => Some(vm.host),
            _ => None,
        }
    }

    #[test]
    fn vms_of_a_group_are_apart_whatever_host_they_ask_for() {
        let mut inventory = with_host();
        for id in 2..=3 {
            apply(&mut inventory, "", Action::Host(host(id)));
        }
        // More groups than any table of labels has places, each of them gone again.
        for number in 0..5000 {
            let (one, other) = (format!("a{number}"), format!("b{number}"));
            let group = format!("g{number}");
            let first = create_apart(&mut inventory, &one, &group);
            let second = create_apart(&mut inventory, &other, &group);
            assert!(first.is_some() && second.is_some() && first != second);
            apply(&mut inventory, "", Action::Delete(one));
            apply(&mut inventory, "", Action::Delete(other));
        }
        assert!(inventory.groups.is_empty(), "{:?}", inventory.groups);
        let mut hosts: Vec<_> = (0..3)
            .filter_map(|n| create_apart(&mut inventory, &format!("vm{n}"), "db"))
            .collect();
        hosts.sort_unstable();
        assert_eq!(hosts, [1, 2, 3]);
        // A fourth has to share, with the host that was asked for. So it is from a snapshot.
        let mut copy = copy_of(&inventory);
        for inventory in [&mut inventory, &mut copy] {
            assert_eq!(create_apart(inventory, "vm3", "db"), Some(1));
        }
    }

    #[test]
    fn a_host_that_has_no_room_is_replaced_by_one_that_has() {
        let mut inventory = with_host();
        apply(&mut inventory, "", Action::Host(host(2)));
        for (name, vcpus, wanted) in [("a", 3, Some(1)), ("b", 3, Some(2)), ("c", 3, None)] {
            let vm = match apply(&mut inventory, name, create(name, vcpus)).0 {
                Outcome::Vm(vm) => Some(vm.host),
                _ => None,
            };
            assert_eq!(vm, wanted, "{name}");
        }
    }

    #[test]
    fn a_snapshot_is_the_whole_state() {
        let mut inventory = with_host();
        let first = apply(&mut inventory, "1", create("a", 3)).0;
        apply(&mut inventory, "2", Action::Start("a".to_owned()));
        let mut copy = copy_of(&inventory);
        assert_eq!(copy.vm("a"), inventory.vm("a"));
        assert_eq!(copy.host(1), inventory.host(1));
        assert_eq!(apply(&mut copy, "1", create("a", 3)).0, first);
        let next = apply(&mut copy, "3", create("b", 1)).0;
        assert_eq!(apply(&mut inventory, "3", create("b", 1)).0, next);
    }

    fn create_with(name: &str, user_data: Vec<u8>) -> Action {
        let Action::Create(plain) = create(name, 1) else {
            unreachable!("it is one");
        };
        Action::Create(Create {
            user_data: Bytes::from(user_data),
            ..plain
        })
    }

    #[test]
    fn user_data_is_kept_whole_and_answers_are_remembered_without_it() {
        let mut inventory = with_host();
        let long = vec![b'x'; 16 * 1024];
        let made = apply(&mut inventory, "1", create_with("a", long.clone())).0;
        assert!(matches!(&made, Outcome::Vm(vm) if vm.user_data.is_empty()));
        apply(&mut inventory, "2", Action::Start("a".to_owned()));
        assert!(inventory.answers["1"].request.len() < 200);
        let mut copy = copy_of(&inventory);
        for inventory in [&mut inventory, &mut copy] {
            assert!(
                inventory
                    .vm("a")
                    .is_some_and(|vm| vm.running && vm.user_data == long)
            );
            assert_eq!(inventory.user_data_bytes, long.len());
            let again = apply(inventory, "1", create_with("a", long.clone())).0;
            assert_eq!(again, made);
            // Other user data makes another request.
            let other = apply(inventory, "1", create_with("a", vec![b'y'; 16 * 1024])).0;
            assert_eq!(other, Outcome::Reused("1".to_owned()));
            apply(inventory, "3", Action::Delete("a".to_owned()));
            assert_eq!(inventory.user_data_bytes, 0);
        }
    }

    #[test]
    fn user_data_has_a_bound_for_all_vms_and_each_group_a_part_of_it() {
        let mut inventory = Inventory::default();
        let mut command = Command {
            request_id: String::new(),
            action: Some(Action::Host(host(1))),
            raft_groups: 1024,
        };
        let mut act = |action| {
            command.action = Some(action);
            inventory.apply(&Bytes::from(command.encode_to_vec())).0
        };
        act(Action::Host(host(1)));
        let part = USER_DATA_BYTES_MAX / 1024;
        assert!(matches!(
            act(create_with("a", vec![b'x'; part])),
            Outcome::Vm(_)
        ));
        let more = act(create_with("b", vec![b'x'; 1]));
        assert_eq!(more, Outcome::UserDataFull(part as u64));
        assert!(matches!(act(create_with("b", Vec::new())), Outcome::Vm(_)));
        act(Action::Delete("a".to_owned()));
        assert!(matches!(
            act(create_with("c", vec![b'x'; part])),
            Outcome::Vm(_)
        ));
    }

    #[test]
    fn a_command_of_a_node_that_counts_other_groups_changes_nothing() {
        let mut inventory = with_host();
        let mut command = Command {
            request_id: "1".to_owned(),
            action: Some(create("a", 1)),
            raft_groups: 4,
        };
        let (outcome, change) = inventory.apply(&Bytes::from(command.encode_to_vec()));
        assert_eq!(
            (outcome, change),
            (Outcome::OtherGroups(1), Change::Nothing)
        );
        // Commands from before there was a count are of one group.
        command.raft_groups = 0;
        let mut copy = copy_of(&inventory);
        assert_eq!(copy.raft_groups(), 1);
        let done = copy.apply(&Bytes::from(command.encode_to_vec())).0;
        assert!(matches!(done, Outcome::Vm(_)));
    }

    #[test]
    fn bytes_that_are_no_command_are_answered() {
        let mut inventory = with_host();
        let wrong = inventory.apply(&Bytes::from_static(b"\xff\xff"));
        assert!(matches!(wrong.0, Outcome::Malformed(_)));
        assert!(matches!(
            inventory.apply(&Bytes::new()).0,
            Outcome::Malformed(_)
        ));
    }
}
