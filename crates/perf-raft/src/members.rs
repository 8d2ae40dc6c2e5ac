//! Who the members of a group are: not ids alone, but ids with the incarnations of their nodes.
//!
//! An id outlives the disk of its node. A node that lost its disk and starts again under its old id has forgotten what it voted and what it
//! acknowledged; if its votes counted, two leaders could be elected, or an acknowledged write could be lost. So each node draws a random
//! number when its log is made, its incarnation, and keeps it there. The table of incarnations is replicated like the membership; a
//! vote or an answer of another incarnation than the table's counts for nothing.

use crate::codec::CodecError;
use crate::core::mix;
use prost::Message as _;
use raft::eraftpb::ConfState;

/// What a node keeps in its log of itself, from the moment the log is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Identity {
    /// The node's id.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// A random number that no other log has, not 0.
    #[prost(fixed64, tag = "2")]
    pub incarnation: u64,
}

/// One row of the table of members.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub(crate) struct Row {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    /// 0 for a learner that the leader has not heard of.
    #[prost(fixed64, tag = "2")]
    pub(crate) incarnation: u64,
    /// A learner that becomes a voter once it has caught up.
    #[prost(bool, tag = "3")]
    pub(crate) promote: bool,
    /// Where the node says it is. Empty in an update that leaves it as it is.
    #[prost(string, tag = "4")]
    pub(crate) address: String,
}

/// The table of members at one index of the log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Members {
    /// The group's first voters, growing. Names the group: nodes with other founders belong to another group, whatever its number.
    #[prost(uint64, repeated, tag = "1")]
    pub founders: Vec<u64>,
    /// Whether every voter is known to have the first table in its log. Nothing is acknowledged before.
    #[prost(bool, tag = "2")]
    pub(crate) formed: bool,
    #[prost(message, repeated, tag = "3")]
    pub(crate) rows: Vec<Row>,
}

/// What a change of the membership does to the table: the context of its entry.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Update {
    #[prost(bool, tag = "1")]
    pub(crate) forms: bool,
    #[prost(message, repeated, tag = "2")]
    pub(crate) rows: Vec<Row>,
}

/// A node's place in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemberRole {
    /// It votes.
    Voter,
    /// It gets the log and does not vote.
    Learner,
    /// It gets the log and votes once it has caught up.
    JoiningVoter,
    /// It votes until the present change of the membership is done.
    LeavingVoter,
}

/// A member as [`RaftHandle::membership`](crate::RaftHandle::membership) shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// The node's id.
    pub id: u64,
    /// What it does in the group.
    pub role: MemberRole,
    /// Which node it is; `None` if the leader has not heard of it yet.
    pub incarnation: Option<u64>,
    /// Where its peers reach it, as it said itself ([`RaftNodeBuilder::address`](crate::RaftNodeBuilder::address)).
    pub address: Option<String>,
}

impl Members {
    /// The table of a group that is to be made: no incarnation is known.
    pub(crate) fn of_founders(voters: &[u64]) -> Self {
        let mut founders = voters.to_vec();
        founders.sort_unstable();
        founders.dedup();
        Self {
            founders,
            ..Self::default()
        }
    }

    /// The incarnation that counts for an id. `None` while the group is being formed, or if the id is no member.
    pub(crate) fn incarnation(&self, id: u64) -> Option<u64> {
        self.row(id).map(|row| row.incarnation)
    }

    /// Where a member said that it is.
    pub(crate) fn address(&self, id: u64) -> Option<&str> {
        let address = self.row(id).map(|row| row.address.as_str());
        address.filter(|address| !address.is_empty())
    }

    pub(crate) fn row(&self, id: u64) -> Option<&Row> {
        self.rows.iter().find(|row| row.id == id)
    }

    /// The table after a change: `state` is the membership that it led to.
    pub(crate) fn changed(&self, update: &Update, state: &ConfState) -> Self {
        let mut next = self.clone();
        next.formed |= update.forms;
        for row in &update.rows {
            match next.rows.iter_mut().find(|old| old.id == row.id) {
                Some(old) => {
                    let address = match row.address.as_str() {
                        "" => std::mem::take(&mut old.address),
                        new => new.to_owned(),
                    };
                    *old = Row {
                        address,
                        ..row.clone()
                    };
                }
                None => next.rows.push(row.clone()),
            }
        }
        let is_member = |id: u64| {
            let sets = [
                &state.voters,
                &state.learners,
                &state.voters_outgoing,
                &state.learners_next,
            ];
            sets.iter().any(|ids| ids.contains(&id))
        };
        next.rows.retain(|row| is_member(row.id));
        next.rows.sort_unstable_by_key(|row| row.id);
        next
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, CodecError> {
        Ok(Self::decode(bytes)?)
    }

    /// Names the group in frames; 0 for a node that has not joined one.
    pub(crate) fn cluster(&self, group: crate::GroupId) -> u64 {
        if self.founders.is_empty() {
            return 0;
        }
        let start = mix(group.0 ^ 0xF0_0D);
        let name = self
            .founders
            .iter()
            .fold(start, |name, id| mix(name ^ mix(*id)));
        // The highest bit says whether the table is pinned.
        (name >> 1).max(1)
    }
}

/// In a frame's cluster: the sender has the first table in its log.
pub(crate) const PINNED: u64 = 1 << 63;

/// What an entry's context says of the table; `None` if it cannot be read or says nothing.
pub(crate) fn update_of(context: &[u8]) -> Option<Update> {
    Update::decode(context)
        .ok()
        .filter(|update| update.forms || !update.rows.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64, incarnation: u64) -> Row {
        Row {
            id,
            incarnation,
            ..Row::default()
        }
    }

    #[test]
    fn the_table_follows_the_membership() {
        let mut state = ConfState {
            voters: vec![1, 2, 3],
            ..Default::default()
        };
        let first = Update {
            forms: false,
            rows: vec![row(2, 20), row(1, 10), row(3, 30)],
        };
        let table = Members::of_founders(&[3, 1, 2]).changed(&first, &state);
        assert_eq!(table.incarnation(2), Some(20));
        assert!(!table.formed);
        state.voters = vec![1, 2];
        let table = table.changed(&Update::default(), &state);
        assert_eq!(table.incarnation(3), None, "it left");
        state.learners = vec![3];
        let again = Update {
            forms: true,
            rows: vec![row(3, 31)],
        };
        let table = table.changed(&again, &state);
        assert_eq!((table.incarnation(3), table.formed), (Some(31), true));
        assert_eq!(Members::read(&table.encode_to_vec()), Ok(table));
    }

    #[test]
    fn groups_of_other_founders_have_other_names() {
        let group = crate::GroupId(1);
        let name = |voters: &[u64]| Members::of_founders(voters).cluster(group);
        assert_eq!(name(&[3, 1, 2]), name(&[1, 2, 3]));
        assert_ne!(name(&[1]), name(&[1, 2, 3]));
        assert_ne!(name(&[1, 2]), name(&[1, 2, 3]));
        assert_eq!(name(&[]), 0);
        assert_ne!(
            name(&[1]),
            Members::of_founders(&[1]).cluster(crate::GroupId(2))
        );
    }
}
