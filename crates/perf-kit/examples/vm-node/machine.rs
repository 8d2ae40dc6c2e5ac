//! The part of the inventory that a Raft group has, as its state machine.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use perf_kit::atomics::NodeState;
use perf_kit::raft::{Command, StateMachineError, StreamedStateMachine};
use perf_kit::transport::Transport;
use tokio::sync::watch;

use crate::groups::Roster;
use crate::inventory::command::Host;
use crate::inventory::image::{self, Image};
use crate::inventory::{Change, Inventory};
use crate::placement::Placements;
use crate::view::View;

/// A part of the inventory, and all that follows it.
pub(crate) struct Machine {
    /// From 0.
    pub(crate) group: u32,
    /// As the node was started.
    pub(crate) groups: u32,
    pub(crate) inventory: Inventory,
    pub(crate) placements: Arc<Placements>,
    pub(crate) shared: Arc<Shared>,
}

/// State that all groups of a node share.
pub(crate) struct Shared {
    pub(crate) view: View,
    pub(crate) state: NodeState<Host>,
    /// Locked while a peer is made known or forgotten, so that no group takes away another one's.
    pub(crate) roster: Mutex<Roster>,
    pub(crate) transport: Transport,
    /// Peers that this node reaches at another address than the announced one.
    pub(crate) via: HashMap<u64, String>,
    /// The count of groups in the replicated state, where it is another one than this node's; 0 before that was seen.
    pub(crate) other_groups: watch::Sender<u32>,
}

impl Machine {
    /// Makes a host known as a member and as a peer.
    fn know(&self, id: u64) {
        let shared = &self.shared;
        if let Some(state) = self.inventory.host(id) {
            let host = state.host.clone();
            if host.removed {
                return;
            }
            let mut roster = shared.roster.lock();
            roster.add(id, self.group);
            if id != shared.transport.node() {
                let address = shared.via.get(&id).unwrap_or(&host.raft);
                shared.transport.add_peer(id, address.clone());
            }
            shared.state.members().insert(id, host);
        }
    }

    /// The host is no member of this group any more.
    fn forget(&self, id: u64) {
        let shared = &self.shared;
        let mut roster = shared.roster.lock();
        if !roster.remove(id, self.group) {
            return;
        }
        shared.state.members().remove(&id);
        if id != shared.transport.node() {
            shared.transport.remove_peer(id);
        }
    }

    /// Notes that the cluster has another count of groups than this node.
    fn check_groups(&self) {
        let groups = self.inventory.raft_groups();
        if groups != 0 && groups != self.groups {
            self.shared.other_groups.send_replace(groups);
        }
    }
}

impl StreamedStateMachine for Machine {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        let view = &self.shared.view;
        for command in batch {
            let (outcome, change) = self.inventory.apply(&command.data);
            view.follow(self.group, &change);
            self.placements.follow(&change, &self.inventory);
            match change {
                Change::Host(id) => self.know(id),
                Change::Left(id) => self.forget(id),
                _ => {}
            }
            responses.push(outcome.into_bytes());
        }
        view.set_hosts(self.group, &self.inventory);
        self.check_groups();
    }

    fn snapshot(&mut self) -> Result<Box<dyn Read + Send>, StateMachineError> {
        Ok(Box::new(Image::of(&self.inventory)))
    }

    fn restore(&mut self, snapshot: &mut dyn Read, _: u64) -> Result<(), StateMachineError> {
        self.inventory = image::read(snapshot)?;
        self.check_groups();
        self.shared.view.replace(self.group, &self.inventory);
        self.placements.replace(&self.inventory);
        let ids: Vec<u64> = self.inventory.hosts().map(|state| state.host.id).collect();
        for id in ids {
            self.know(id);
        }
        Ok(())
    }
}
