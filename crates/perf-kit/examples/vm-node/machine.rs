//! The inventory as the state machine of a Raft group.

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
}

impl Machine {
    /// Makes a host known as a member and as a peer.
    fn know(&self, id: u64) {
        if let Some(state) = self.inventory.host(id) {
            let host = state.host.clone();
            if id != self.transport.node() {
                self.transport.add_peer(id, host.raft.clone());
            }
            self.state.members().insert(id, host);
        }
    }
}

impl StateMachine for Machine {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        for command in batch {
            let (outcome, change) = self.inventory.apply(&command.data);
            self.view.follow(&change);
            self.placements.follow(&change, &self.inventory);
            if let Change::Host(id) = change {
                self.know(id);
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
