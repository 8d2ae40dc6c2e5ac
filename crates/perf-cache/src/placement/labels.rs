//! Labels of nodes, as bits.

use crate::error::CacheError;
use std::collections::HashMap;

/// How many distinct labels an index tells apart.
pub const LABELS_MAX: usize = 4096;

/// A label of one [`PlacementIndex`](crate::PlacementIndex), such as `app=database`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(u16);

/// For each label the nodes that have it: a bit per node for the scan, and how often for the bookkeeping.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    names: HashMap<String, Label>,
    nodes: Vec<Nodes>,
}

#[derive(Debug, Default)]
struct Nodes {
    /// A word per block of 64 nodes; blocks beyond its end have none.
    bits: Vec<u64>,
    counts: HashMap<usize, u32>,
}

impl Labels {
    pub(crate) fn label(&mut self, name: &str) -> Result<Label, CacheError> {
        if let Some(label) = self.names.get(name) {
            return Ok(*label);
        }
        let next = u16::try_from(self.nodes.len())
            .ok()
            .filter(|next| usize::from(*next) < LABELS_MAX)
            .ok_or(CacheError::TooManyLabels {
                labels_max: LABELS_MAX,
            })?;
        self.nodes.push(Nodes::default());
        self.names.insert(name.to_owned(), Label(next));
        Ok(Label(next))
    }

    /// Of a block of 64 places, those whose nodes have a label.
    #[inline]
    pub(crate) fn block(&self, label: Label, block: usize) -> u64 {
        let nodes = self.nodes.get(usize::from(label.0));
        nodes
            .and_then(|nodes| nodes.bits.get(block))
            .copied()
            .unwrap_or(0)
    }

    /// Adds a label of another index nowhere: `false`.
    pub(crate) fn add(&mut self, label: Label, place: usize) -> bool {
        let Some(nodes) = self.nodes.get_mut(usize::from(label.0)) else {
            return false;
        };
        let (block, bit) = (place / 64, place % 64);
        if nodes.bits.len() <= block {
            nodes.bits.resize(block + 1, 0);
        }
        nodes.bits[block] |= 1 << bit;
        let count = nodes.counts.entry(place).or_insert(0);
        *count = count.saturating_add(1);
        true
    }

    pub(crate) fn remove(&mut self, label: Label, place: usize) -> bool {
        let Some(nodes) = self.nodes.get_mut(usize::from(label.0)) else {
            return false;
        };
        let Some(count) = nodes.counts.get_mut(&place) else {
            return false;
        };
        *count -= 1;
        if *count == 0 {
            nodes.forget(place);
        }
        true
    }

    /// Forgets all labels of a place.
    pub(crate) fn forget(&mut self, place: usize) {
        for nodes in &mut self.nodes {
            nodes.forget(place);
        }
    }
}

impl Nodes {
    fn forget(&mut self, place: usize) {
        if self.counts.remove(&place).is_some()
            && let Some(bits) = self.bits.get_mut(place / 64)
        {
            *bits &= !(1 << (place % 64));
        }
    }
}
