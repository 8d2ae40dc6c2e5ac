//! The hot loop: 64 nodes, a column per resource.
//!
//! Columns are `i32`, because SSE2, which every x86_64 has, compares signed 32-bit lanes and no others. The loops have no branch and a fixed length, so that the
//! compiler can make four lanes of them (eight with AVX2): per node three comparisons, two ands, a select and a maximum.

/// Nodes in a block: as many as a word has bits, for the labels.
pub(crate) const LANES: usize = 64;

/// What no node has to offer: an empty place.
const EMPTY: i32 = -1;

/// The free resources of 64 places.
#[derive(Debug)]
pub(crate) struct Block {
    vcpus: [i32; LANES],
    memory: [i32; LANES],
    disk: [i32; LANES],
    /// The points of what is free.
    points: [i32; LANES],
}

/// What is asked for, in the units of the columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    pub(crate) vcpus: i32,
    pub(crate) memory: i32,
    pub(crate) disk: i32,
}

/// What a node has free, in the units of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Free {
    pub(crate) vcpus: i32,
    pub(crate) memory: i32,
    pub(crate) disk: i32,
}

/// The most that one node of a block has of each, and the range of points: what cannot fit or cannot win is passed over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    vcpus: i32,
    memory: i32,
    disk: i32,
    /// By direction: the greatest rank of a node when the most, and when the least points win.
    best: [i32; 2],
}

/// The rank of one that does not fit, below every rank of one that does.
pub(crate) const NO_RANK: i32 = i32::MIN;

/// Turns points into ranks, of which the greatest wins: none for the most points, all bits for the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Most,
    Least,
}

impl Direction {
    pub(crate) const fn flip(self) -> i32 {
        match self {
            Self::Most => 0,
            // `!points` is `-points - 1`: the order turned around, without a multiplication.
            Self::Least => -1,
        }
    }
}

impl Free {
    /// 64 points for a vCPU, 4 GiB, or 64 GiB of disk; less than `i32::MAX`, so that a flipped one is above [`NO_RANK`].
    pub(crate) fn points(self) -> i32 {
        let points =
            i64::from(self.vcpus) * 64 + i64::from(self.memory) / 64 + i64::from(self.disk);
        i32::try_from(points).unwrap_or(i32::MAX).min(i32::MAX - 1)
    }
}

impl Block {
    pub(crate) fn empty() -> Self {
        Self {
            vcpus: [EMPTY; LANES],
            memory: [EMPTY; LANES],
            disk: [EMPTY; LANES],
            points: [0; LANES],
        }
    }

    pub(crate) fn set(&mut self, lane: usize, free: Option<Free>) {
        let free_or_empty = free.unwrap_or(Free {
            vcpus: EMPTY,
            memory: EMPTY,
            disk: EMPTY,
        });
        self.vcpus[lane] = free_or_empty.vcpus;
        self.memory[lane] = free_or_empty.memory;
        self.disk[lane] = free_or_empty.disk;
        self.points[lane] = free.map_or(0, Free::points);
    }

    pub(crate) fn get(&self, lane: usize) -> Option<Free> {
        (self.vcpus[lane] != EMPTY).then(|| Free {
            vcpus: self.vcpus[lane],
            memory: self.memory[lane],
            disk: self.disk[lane],
        })
    }

    pub(crate) fn summary(&self) -> Summary {
        let max = |column: &[i32; LANES]| column.iter().copied().fold(EMPTY, i32::max);
        let none = Need {
            vcpus: 0,
            memory: 0,
            disk: 0,
        };
        Summary {
            vcpus: max(&self.vcpus),
            memory: max(&self.memory),
            disk: max(&self.disk),
            best: [Direction::Most, Direction::Least]
                .map(|direction| self.best_rank(none, direction)),
        }
    }

    #[inline]
    fn fits(&self, need: Need, lane: usize) -> bool {
        (self.vcpus[lane] >= need.vcpus)
            & (self.memory[lane] >= need.memory)
            & (self.disk[lane] >= need.disk)
    }

    #[inline]
    fn rank(&self, need: Need, direction: Direction, lane: usize) -> i32 {
        let rank = self.points[lane] ^ direction.flip();
        if self.fits(need, lane) { rank } else { NO_RANK }
    }

    /// The greatest rank of a node that fits.
    #[inline]
    pub(crate) fn best_rank(&self, need: Need, direction: Direction) -> i32 {
        // Four running maxima, so that they do not wait for each other.
        let mut best = [NO_RANK; 16];
        for start in (0..LANES).step_by(16) {
            for (offset, best) in best.iter_mut().enumerate() {
                *best = (*best).max(self.rank(need, direction, start + offset));
            }
        }
        best.into_iter().fold(NO_RANK, i32::max)
    }

    /// The same without the places in `excluded`.
    pub(crate) fn best_rank_except(&self, need: Need, direction: Direction, excluded: u64) -> i32 {
        let mut best = NO_RANK;
        for lane in 0..LANES {
            let rank = self.rank(need, direction, lane);
            let is_out = excluded >> lane & 1 == 1;
            best = best.max(if is_out { NO_RANK } else { rank });
        }
        best
    }

    /// The first place of this rank that fits and is not excluded.
    pub(crate) fn lane_of(
        &self,
        need: Need,
        direction: Direction,
        rank: i32,
        excluded: u64,
    ) -> Option<usize> {
        (0..LANES)
            .find(|lane| excluded >> lane & 1 == 0 && self.rank(need, direction, *lane) == rank)
    }

    /// A bit for each place that fits.
    pub(crate) fn fitting(&self, need: Need) -> u64 {
        (0..LANES).fold(0, |bits, lane| {
            bits | u64::from(self.fits(need, lane)) << lane
        })
    }
}

impl Summary {
    /// Whether a node of the block may fit.
    #[inline]
    pub(crate) fn may_fit(&self, need: Need) -> bool {
        (self.vcpus >= need.vcpus) & (self.memory >= need.memory) & (self.disk >= need.disk)
    }

    /// No node of the block ranks higher.
    #[inline]
    pub(crate) fn best(&self, direction: Direction) -> i32 {
        match direction {
            Direction::Most => self.best[0],
            Direction::Least => self.best[1],
        }
    }
}
