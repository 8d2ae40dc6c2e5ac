//! Where members are: each says so itself, and the leader enters it into the replicated table.

use super::Core;
use super::membership::MembershipChange;
use crate::codec::{Body, FrameHeader, Notice};
use crate::members::{Row, Update};
use prost::Message as _;

/// Bytes of an address: a domain name has 253 at most, a port five.
pub(crate) const ADDRESS_BYTES_MAX: usize = 260;

/// The table of members grows up to this with addresses. It must fit the metadata of a frame, of 64 KiB.
const TABLE_BYTES_MAX: usize = 32 * 1024;

/// This node's address, and those that members told their leader.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    own: String,
    told_tick: u64,
    /// Not entered yet.
    told: Vec<(u64, String)>,
}

impl<T> Core<T> {
    /// Says where this node's peers reach it. The group keeps it in its table of members, for [`members`](Self::members); nothing here
    /// connects to it. Empty, as at first, says nothing.
    pub fn set_address(&mut self, address: String) {
        self.addresses.own = address;
    }

    /// Tells the leader, once in an election timeout, until it is entered.
    pub(super) fn tick_address(&mut self) {
        let due = self.addresses.told_tick + self.options.election_ticks as u64;
        let leader = self.node.raft.leader_id;
        if self.addresses.own.is_empty() || leader == 0 || self.ticks < due || !self.is_itself() {
            return;
        }
        let Some(now) = self.configuration() else {
            return;
        };
        let is_member = now.members.row(self.id).is_some();
        if !is_member || now.members.address(self.id) == Some(&self.addresses.own) {
            return;
        }
        let founders = now.members.founders.clone();
        let address = self.addresses.own.clone();
        self.addresses.told_tick = self.ticks;
        if leader == self.id {
            self.note_address(self.id, address);
            return;
        }
        let notice = Notice {
            founders,
            removed: false,
            address,
        };
        let frame = self.frame(leader, Body::Notice(notice));
        self.out.frames.push(frame);
    }

    pub(super) fn receive_address(&mut self, header: &FrameHeader, address: String) {
        let is_sound = !address.is_empty() && address.len() <= ADDRESS_BYTES_MAX;
        let counts = self.ack_counts(header.from, header.incarnation);
        // One that was removed and does not know it would keep the group awake.
        let is_member = self.node.raft.prs().get(header.from).is_some();
        if is_sound && self.is_leader() && counts && is_member {
            self.note_address(header.from, address);
        }
    }

    /// Whether the group's table has this node's address, if it has one to tell.
    pub(super) fn address_is_told(&self) -> bool {
        let own = &self.addresses.own;
        let entered = self
            .configuration()
            .and_then(|now| now.members.address(self.id));
        self.addresses.told.is_empty() && (own.is_empty() || entered == Some(own))
    }

    /// Members tell the next leader again.
    pub(super) fn forget_told(&mut self) {
        self.addresses.told.clear();
    }

    fn note_address(&mut self, id: u64, address: String) {
        self.note_news();
        self.addresses.told.retain(|(other, _)| *other != id);
        self.addresses.told.push((id, address));
    }

    /// On a leader with no change going on: whether it proposed to enter an address.
    pub(super) fn enter_address(&mut self) -> bool {
        while let Some((id, address)) = self.addresses.told.pop() {
            let Some(now) = self.configuration() else {
                return false;
            };
            let bytes = now.members.encoded_len() + address.len();
            let row = now.members.row(id);
            let is_new = now.members.address(id) != Some(&address);
            let Some(row) = row.filter(|_| is_new && bytes <= TABLE_BYTES_MAX) else {
                continue;
            };
            let update = Update {
                forms: false,
                rows: vec![Row {
                    address,
                    ..row.clone()
                }],
            };
            // A change that changes nothing but the table: of a voter to a voter.
            return self
                .propose_change(&[MembershipChange::AddVoter(self.id)], &update)
                .is_some();
        }
        false
    }
}
