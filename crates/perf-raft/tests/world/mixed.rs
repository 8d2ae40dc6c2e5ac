//! Nodes of a new group that were given different lists of its first voters, until the operator mends it.

use super::random::Random;
use super::{Event, MS, World};
use perf_raft::Trouble;
use perf_raft::core::Core;

/// One node has another list than all others.
pub(super) struct Mixed {
    odd: u64,
    list: Vec<u64>,
    /// When the operator mends it.
    pub(super) until: u64,
}

impl Mixed {
    /// The odd list has the odd node alone, or others too, maybe one that does not exist.
    pub(super) fn draw(random: &mut Random, count: u64) -> Self {
        let odd = 1 + random.below(count);
        let mut list: Vec<u64> = match random.one_in(2) {
            true => vec![odd],
            false => (1..=count + 1)
                .filter(|&id| id == odd || random.one_in(2))
                .collect(),
        };
        if list.len() as u64 == count && !list.contains(&(count + 1)) {
            list.push(count + 1);
        }
        Self {
            odd,
            list,
            until: (1_000 + random.below(1_500)) * MS,
        }
    }

    pub(super) fn list_of(&self, id: u64) -> Option<&[u64]> {
        (id == self.odd).then_some(&self.list)
    }
}

impl World {
    /// Those who have nothing that counts get empty disks: the odd node the right list; or, if it is a group by itself and answers clients, the others none.
    pub(super) fn mend_mixed(&mut self) {
        let Some(mixed) = self.mixed.take() else {
            return;
        };
        let cores = self.nodes.values().filter_map(|node| node.core.as_ref());
        let names_both = |core: &Core<_>| {
            let mut troubles = core.report().troubles.into_iter();
            troubles.any(|trouble| matches!(trouble, Trouble::ForeignPeer { .. }))
        };
        self.coverage.mixed_named += cores.filter(|core| names_both(core)).count() as u64;
        self.coverage.mixed += 1;
        self.leaders.clear();
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        if mixed.list == [mixed.odd] {
            self.membership_changes = true;
            // All are down at the same time: nothing of the group that ends is under way any more, or it would begin
            // again in the empty ones.
            self.bodies
                .retain(|_, event| !matches!(event, Event::Deliver(..)));
            for id in ids.into_iter().filter(|&id| id != mixed.odd) {
                self.give_empty_disk(id, Vec::new());
            }
        } else {
            // Some operators empty more than they need to. The rest has committed something, though nothing that counts.
            let others = match self.random.one_in(2) {
                true => ids.len() / 2,
                false => 0,
            };
            let others = ids.iter().filter(|id| **id != mixed.odd).take(others);
            let emptied: Vec<u64> = others.copied().chain([mixed.odd]).collect();
            for id in emptied {
                self.give_empty_disk(id, ids.clone());
            }
        }
    }
}
