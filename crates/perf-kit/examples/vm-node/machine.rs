//! The inventory as the state machine of a Raft group.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use perf_kit::atomics::NodeState;
use perf_kit::raft::{Command, StateMachine, StateMachineError};
use perf_kit::transport::Transport;

use crate::inventory::command::Host;
use crate::inventory::{Change, Inventory};
use crate::placement::Placements;
use crate::view::View;

/// The inventory, and all who follow it.
pub(crate) struct Machine {
    pub(crate) inventory: Inventory,
    pub(crate) view: Arc<View>,
    pub(crate) placements: Arc<Placements>,
    pub(crate) state: Arc<NodeState<Host>>,
    pub(crate) transport: Transport,
    /// Peers that this node reaches at another address than the announced one.
    pub(crate) via: HashMap<u64, String>,
}

impl Machine {
    /// Makes a host known as a member and as a peer.
    fn know(&self, id: u64) {
        if let Some(state) = self.inventory.host(id) {
            let host = state.host.clone();
            if host.removed {
                return;
            }
            if id != self.transport.node() {
                let address = self.via.get(&id).unwrap_or(&host.raft);
                self.transport.add_peer(id, address.clone());
            }
            self.state.members().insert(id, host);
        }
    }

    /// The host is no member any more.
    fn forget(&self, id: u64) {
        self.state.members().remove(&id);
        if id != self.transport.node() {
            self.transport.remove_peer(id);
        }
    }
}

impl StateMachine for Machine {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        for command in batch {
            let (outcome, change) = self.inventory.apply(&command.data);
            self.view.follow(&change);
            self.placements.follow(&change, &self.inventory);
            match change {
                Change::Host(id) => self.know(id),
                Change::Left(id) => self.forget(id),
                _ => {}
            }
            responses.push(outcome.into_bytes());
        }
        self.view.set_hosts(&self.inventory);
    }

    fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
        Ok(self.inventory.to_bytes())
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), StateMachineError> {
        self.inventory = Inventory::from_bytes(snapshot)?;
        self.view.replace(&self.inventory);
        self.placements.replace(&self.inventory);
        let ids: Vec<u64> = self.inventory.hosts().map(|state| state.host.id).collect();
        for id in ids {
            self.know(id);
        }
        Ok(())
    }
}
