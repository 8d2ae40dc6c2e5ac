//! The nodes of a cluster by what they have free.

use crate::error::CacheError;
use crate::placement::block::{Block, Direction, Free, LANES, NO_RANK, Need, Summary};
use crate::placement::coarse::{Coarse, CoarseNeed, NO_COARSE_RANK, coarse_rank};
use crate::placement::labels::{Label, Labels};
use crate::placement::requirements::{Requirements, Strategy, Unfit};
use perf_atomics::DefaultHasher;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many nodes an index takes.
pub const NODES_MAX: usize = 1 << 20;

/// What a node has free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCapacity {
    /// The node.
    pub id: u64,
    /// Free virtual CPUs.
    pub vcpus: u32,
    /// Free memory in MiB.
    pub memory_mib: u32,
    /// Free disk space in GiB.
    pub disk_gib: u32,
}

/// The free resources of all nodes in columns, so that finding the best node for a VM scans memory in order, four or
/// eight nodes at a time.
///
/// | | cost for 10 000 nodes |
/// |---|---|
/// | [`select`](Self::select) | a look at the 157 blocks' summaries, and at the nodes of the few blocks that may hold a better one |
/// | [`scan`](Self::scan) | a look at each node, rounded to 16 bits: three comparisons and a maximum, without a branch; an exact one at those of the blocks that may hold a better one; the same answer |
/// | [`update`](Self::update), [`reserve`](Self::reserve), [`release`](Self::release) | a look-up and the summary of one block |
///
/// Amounts beyond 2 147 483 647 count as that many. Reading takes `&self`; to share an index with its writer, put it behind a
/// lock, or publish a copy.
///
/// ```
/// use perf_cache::{NodeCapacity, PlacementIndex, Requirements, Strategy};
///
/// let mut index = PlacementIndex::new();
/// for (id, vcpus) in [(1, 4), (2, 16), (3, 8)] {
///     index.update(NodeCapacity { id, vcpus, memory_mib: 32_768, disk_gib: 500 })?;
/// }
/// let vm = Requirements::new(6, 8192, 40);
/// assert_eq!(index.select(&vm, Strategy::MostAvailable), Some(2));
/// assert_eq!(index.select(&vm, Strategy::LeastAvailable), Some(3));
/// assert!(index.reserve(3, &vm));
/// assert_eq!(index.select(&vm, Strategy::LeastAvailable), Some(2));
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
#[derive(Debug, Default)]
pub struct PlacementIndex {
    blocks: Vec<Block>,
    summaries: Vec<Summary>,
    /// The blocks again, rounded, for the scan.
    coarse: Vec<Coarse>,
    /// By place; what is in an empty place means nothing.
    ids: Vec<u64>,
    places: HashMap<u64, usize, DefaultHasher>,
    /// Places of nodes that were removed; the last one is filled first.
    holes: Vec<usize>,
    labels: Labels,
    /// Where round robin goes on. Relaxed: two readers at once may choose the same node.
    next: AtomicUsize,
}

/// An amount in the unit of a column.
fn column(amount: u32) -> i32 {
    i32::try_from(amount).unwrap_or(i32::MAX)
}

fn need(requirements: &Requirements) -> Need {
    Need {
        vcpus: column(requirements.vcpus),
        memory: column(requirements.memory_mib),
        disk: column(requirements.disk_gib),
    }
}

impl PlacementIndex {
    /// An index of no nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Adds a node, or sets what it has free. Its labels stay.
    ///
    /// # Errors
    /// [`CacheError::TooManyNodes`] if it is new and there are [`NODES_MAX`].
    pub fn update(&mut self, node: NodeCapacity) -> Result<(), CacheError> {
        let free = Free {
            vcpus: column(node.vcpus),
            memory: column(node.memory_mib),
            disk: column(node.disk_gib),
        };
        let place = match self.places.get(&node.id) {
            Some(place) => *place,
            None => self.add(node.id)?,
        };
        self.set(place, Some(free));
        Ok(())
    }

    fn add(&mut self, id: u64) -> Result<usize, CacheError> {
        if self.places.len() >= NODES_MAX {
            return Err(CacheError::TooManyNodes {
                nodes_max: NODES_MAX,
            });
        }
        let place = match self.holes.pop() {
            Some(place) => {
                self.ids[place] = id;
                place
            }
            None => {
                self.ids.push(id);
                self.ids.len() - 1
            }
        };
        if place / LANES == self.blocks.len() {
            self.blocks.push(Block::empty());
            self.summaries.push(Block::empty().summary());
            self.coarse.push(Coarse::empty());
        }
        self.places.insert(id, place);
        Ok(place)
    }

    fn set(&mut self, place: usize, free: Option<Free>) {
        let block = &mut self.blocks[place / LANES];
        block.set(place % LANES, free);
        self.summaries[place / LANES] = block.summary();
        self.coarse[place / LANES].set(place % LANES, free);
    }

    /// Removes a node with its labels; `false` if there is none.
    pub fn remove(&mut self, id: u64) -> bool {
        let Some(place) = self.places.remove(&id) else {
            return false;
        };
        self.set(place, None);
        self.labels.forget(place);
        self.holes.push(place);
        true
    }

    /// What a node has free.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<NodeCapacity> {
        let place = *self.places.get(&id)?;
        let free = self.blocks[place / LANES].get(place % LANES)?;
        Some(NodeCapacity {
            id,
            vcpus: free.vcpus.cast_unsigned(),
            memory_mib: free.memory.cast_unsigned(),
            disk_gib: free.disk.cast_unsigned(),
        })
    }

    /// Takes what a VM needs from a node; `false`, and nothing taken, if the node is not there or has less.
    pub fn reserve(&mut self, id: u64, requirements: &Requirements) -> bool {
        let need = need(requirements);
        let Some(place) = self.places.get(&id).copied() else {
            return false;
        };
        let Some(free) = self.blocks[place / LANES].get(place % LANES) else {
            return false;
        };
        if free.vcpus < need.vcpus || free.memory < need.memory || free.disk < need.disk {
            return false;
        }
        let left = Free {
            vcpus: free.vcpus - need.vcpus,
            memory: free.memory - need.memory,
            disk: free.disk - need.disk,
        };
        self.set(place, Some(left));
        true
    }

    /// Gives back what a VM needed; `false` if the node is not there. Saturates.
    pub fn release(&mut self, id: u64, requirements: &Requirements) -> bool {
        let need = need(requirements);
        let Some(place) = self.places.get(&id).copied() else {
            return false;
        };
        let Some(free) = self.blocks[place / LANES].get(place % LANES) else {
            return false;
        };
        let freed = Free {
            vcpus: free.vcpus.saturating_add(need.vcpus),
            memory: free.memory.saturating_add(need.memory),
            disk: free.disk.saturating_add(need.disk),
        };
        self.set(place, Some(freed));
        true
    }

    /// The label of this name; made if it is new.
    ///
    /// # Errors
    /// [`CacheError::TooManyLabels`] if it is new and there are [`LABELS_MAX`](crate::LABELS_MAX).
    pub fn label(&mut self, name: &str) -> Result<Label, CacheError> {
        self.labels.label(name)
    }

    /// Gives a node a label, such as that of a VM which was placed there. Counted: two such VMs need two removals. `false` if the node or the
    /// label is not of this index.
    pub fn add_label(&mut self, id: u64, label: Label) -> bool {
        match self.places.get(&id) {
            Some(place) => self.labels.add(label, *place),
            None => false,
        }
    }

    /// Takes a label from a node once; `false` if it had none.
    pub fn remove_label(&mut self, id: u64, label: Label) -> bool {
        match self.places.get(&id) {
            Some(place) => self.labels.remove(label, *place),
            None => false,
        }
    }

    /// The best node for a VM; `None` if none fits.
    #[must_use]
    pub fn select(&self, requirements: &Requirements, strategy: Strategy) -> Option<u64> {
        let place = match strategy {
            Strategy::MostAvailable => self.best(requirements, Direction::Most),
            Strategy::LeastAvailable => self.best(requirements, Direction::Least),
            Strategy::RoundRobin => self.next_fitting(requirements),
        }?;
        self.ids.get(place).copied()
    }

    /// What [`select`](Self::select) answers, by a look at each node. For round robin it is the same.
    #[must_use]
    pub fn scan(&self, requirements: &Requirements, strategy: Strategy) -> Option<u64> {
        let direction = match strategy {
            Strategy::MostAvailable => Direction::Most,
            Strategy::LeastAvailable => Direction::Least,
            Strategy::RoundRobin => return self.select(requirements, strategy),
        };
        let need = need(requirements);
        let coarse_need = CoarseNeed::new(need, direction);
        let mut best = (NO_RANK, 0);
        // The best so far, rounded: one of the same rounded rank may be better.
        let mut to_reach = NO_COARSE_RANK + 1;
        for (index, coarse) in self.coarse.iter().enumerate() {
            if coarse.best_at_most(coarse_need) < to_reach {
                continue;
            }
            let block = &self.blocks[index];
            let excluded = self.excluded(requirements, index);
            let rank = if excluded == 0 {
                block.best_rank(need, direction)
            } else {
                block.best_rank_except(need, direction, excluded)
            };
            if rank > best.0 {
                best = (rank, index);
                to_reach = coarse_rank(rank, direction);
            }
        }
        self.locate(requirements, direction, best)
            .and_then(|place| self.ids.get(place).copied())
    }

    /// Calls `visit` with each node that fits, in the order of the index.
    pub fn for_each_fitting(&self, requirements: &Requirements, mut visit: impl FnMut(u64)) {
        let need = need(requirements);
        for index in 0..self.blocks.len() {
            let mut bits = self.fitting(requirements, need, index);
            while bits != 0 {
                let lane = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                visit(self.ids[index * LANES + lane]);
            }
        }
    }

    /// How many nodes fit.
    #[must_use]
    pub fn count_fitting(&self, requirements: &Requirements) -> usize {
        let need = need(requirements);
        (0..self.blocks.len())
            .map(|index| self.fitting(requirements, need, index).count_ones() as usize)
            .sum()
    }

    /// Why a node does not do for a VM, or how much it has free, in the points of [`Strategy`]: [`Strategy::MostAvailable`] chooses the
    /// node of the most points among those that do, [`Strategy::LeastAvailable`] the one of the least. O(1).
    ///
    /// # Errors
    /// [`Unfit`]: the first reason why not.
    ///
    /// ```
    /// use perf_cache::{NodeCapacity, PlacementIndex, Requirements, Strategy, Unfit};
    ///
    /// let mut index = PlacementIndex::new();
    /// let fast = index.label("disk=nvme")?;
    /// for (id, vcpus) in [(1, 2), (2, 16), (3, 8)] {
    ///     index.update(NodeCapacity { id, vcpus, memory_mib: 4096, disk_gib: 64 })?;
    /// }
    /// index.add_label(3, fast);
    /// let vm = Requirements::new(4, 1024, 10).requiring(&[fast])?;
    /// assert_eq!(index.select(&vm, Strategy::MostAvailable), Some(3));
    /// assert_eq!(index.explain(3, &vm), Ok(8 * 64 + 64 + 64));
    /// assert_eq!(index.explain(2, &vm), Err(Unfit::Missing(fast)));
    /// assert_eq!(index.explain(1, &vm), Err(Unfit::Vcpus));
    /// # Ok::<(), perf_cache::CacheError>(())
    /// ```
    pub fn explain(&self, id: u64, requirements: &Requirements) -> Result<u32, Unfit> {
        let need = need(requirements);
        let place = *self.places.get(&id).ok_or(Unfit::Unknown)?;
        let (index, lane) = (place / LANES, place % LANES);
        let free = self.blocks[index].get(lane).ok_or(Unfit::Unknown)?;
        let has = |label: &Label| self.labels.block(*label, index) >> lane & 1 == 1;
        if free.vcpus < need.vcpus {
            Err(Unfit::Vcpus)
        } else if free.memory < need.memory {
            Err(Unfit::Memory)
        } else if free.disk < need.disk {
            Err(Unfit::Disk)
        } else if let Some(label) = requirements.avoided().find(has) {
            Err(Unfit::Avoided(label))
        } else if let Some(label) = requirements.required().find(|label| !has(label)) {
            Err(Unfit::Missing(label))
        } else {
            Ok(free.points().cast_unsigned())
        }
    }

    /// Of a block, the places whose labels are not as they must be.
    #[inline]
    fn excluded(&self, requirements: &Requirements, index: usize) -> u64 {
        let avoided = requirements.avoided();
        let excluded = avoided.fold(0, |bits, label| bits | self.labels.block(label, index));
        let required = requirements.required();
        required.fold(excluded, |bits, label| {
            bits | !self.labels.block(label, index)
        })
    }

    fn fitting(&self, requirements: &Requirements, need: Need, index: usize) -> u64 {
        if !self.summaries[index].may_fit(need) {
            return 0;
        }
        self.blocks[index].fitting(need) & !self.excluded(requirements, index)
    }

    fn best(&self, requirements: &Requirements, direction: Direction) -> Option<usize> {
        let need = need(requirements);
        let mut best = (NO_RANK, 0);
        for (index, summary) in self.summaries.iter().enumerate() {
            // Not even the best of the block, fitting or not, would win: an equal one comes later.
            if summary.best(direction) <= best.0 || !summary.may_fit(need) {
                continue;
            }
            let block = &self.blocks[index];
            let excluded = self.excluded(requirements, index);
            let rank = if excluded == 0 {
                block.best_rank(need, direction)
            } else {
                block.best_rank_except(need, direction, excluded)
            };
            if rank > best.0 {
                best = (rank, index);
            }
        }
        self.locate(requirements, direction, best)
    }

    /// The place of the best rank, in the block where it was seen.
    fn locate(
        &self,
        requirements: &Requirements,
        direction: Direction,
        (rank, index): (i32, usize),
    ) -> Option<usize> {
        if rank == NO_RANK {
            return None;
        }
        let excluded = self.excluded(requirements, index);
        let lane =
            self.blocks
                .get(index)?
                .lane_of(need(requirements), direction, rank, excluded)?;
        Some(index * LANES + lane)
    }

    fn next_fitting(&self, requirements: &Requirements) -> Option<usize> {
        let need = need(requirements);
        let blocks = self.blocks.len();
        let start = self.next.load(Ordering::Relaxed);
        let start = if start < blocks * LANES { start } else { 0 };
        // The first block twice: from the start on, and at the end up to it.
        for step in 0..=blocks {
            let index = (start / LANES + step) % blocks.max(1);
            if index >= blocks {
                return None;
            }
            let mut bits = self.fitting(requirements, need, index);
            let before_start = (1u64 << (start % LANES)) - 1;
            if step == 0 {
                bits &= !before_start;
            } else if step == blocks {
                bits &= before_start;
            }
            if bits != 0 {
                let place = index * LANES + bits.trailing_zeros() as usize;
                self.next.store(place + 1, Ordering::Relaxed);
                return Some(place);
            }
        }
        None
    }
}
