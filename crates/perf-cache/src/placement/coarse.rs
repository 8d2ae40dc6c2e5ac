//! A first look at 64 nodes in 16 bits per amount: eight lanes where a block has four, and SSE2 has a maximum of 16-bit lanes.
//!
//! An amount is rounded down to 11 significant bits. Rounding keeps the order, so what fits also fits rounded, and what ranks higher does not rank
//! lower rounded. The look tells what a block's best is at most; blocks that may win are looked at exactly.

use crate::placement::block::{Direction, Free, LANES, Need};

/// The rounded free resources of 64 places.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Coarse {
    vcpus: [i16; LANES],
    memory: [i16; LANES],
    disk: [i16; LANES],
    points: [i16; LANES],
}

/// The ranks of all nodes that fit are above it.
pub(crate) const NO_COARSE_RANK: i16 = 0;

/// What is asked for, rounded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoarseNeed {
    vcpus: i16,
    memory: i16,
    disk: i16,
    flip: i16,
}

/// Up to 2047 as it is; beyond, its exponent and the ten bits after the first. Below zero it is -1.
fn round(amount: i32) -> i16 {
    const EXACT: u32 = 11;
    let Ok(amount) = u32::try_from(amount) else {
        return -1;
    };
    let shift = (u32::BITS - amount.leading_zeros()).saturating_sub(EXACT);
    // At most 20 * 1024 + 2047.
    ((shift << (EXACT - 1)) + (amount >> shift)) as i16
}

/// Turns rounded points into ranks above zero, of which the greatest wins.
const fn flip(direction: Direction) -> i16 {
    match direction {
        Direction::Most => 0,
        // `i16::MAX - points`.
        Direction::Least => i16::MAX,
    }
}

/// The rank of rounded points, of which the least is one, so that none is zero.
fn points(points: i32) -> i16 {
    round(points) + 1
}

/// What a rank of a [`Block`](crate::placement::block::Block) is here.
pub(crate) fn coarse_rank(rank: i32, direction: Direction) -> i16 {
    points(rank ^ direction.flip()) ^ flip(direction)
}

impl CoarseNeed {
    pub(crate) fn new(need: Need, direction: Direction) -> Self {
        Self {
            vcpus: round(need.vcpus),
            memory: round(need.memory),
            disk: round(need.disk),
            flip: flip(direction),
        }
    }
}

impl Coarse {
    pub(crate) fn empty() -> Self {
        Self {
            vcpus: [-1; LANES],
            memory: [-1; LANES],
            disk: [-1; LANES],
            points: [1; LANES],
        }
    }

    pub(crate) fn set(&mut self, lane: usize, free: Option<Free>) {
        let or_empty = |amount: Option<i32>| amount.map_or(-1, round);
        self.vcpus[lane] = or_empty(free.map(|free| free.vcpus));
        self.memory[lane] = or_empty(free.map(|free| free.memory));
        self.disk[lane] = or_empty(free.map(|free| free.disk));
        self.points[lane] = points(free.map_or(0, Free::points));
    }

    /// No node that fits ranks higher than this; [`NO_COARSE_RANK`] if none fits.
    #[inline]
    pub(crate) fn best_at_most(&self, need: CoarseNeed) -> i16 {
        // Two vectors of running maxima, so that they do not wait for each other.
        const RUNNING: usize = 16;
        let mut best = [NO_COARSE_RANK; RUNNING];
        for start in (0..LANES).step_by(RUNNING) {
            for (offset, best) in best.iter_mut().enumerate() {
                let lane = start + offset;
                let fits = (self.vcpus[lane] >= need.vcpus)
                    & (self.memory[lane] >= need.memory)
                    & (self.disk[lane] >= need.disk);
                let rank = self.points[lane] ^ need.flip;
                *best = (*best).max(if fits { rank } else { NO_COARSE_RANK });
            }
        }
        best.into_iter().fold(NO_COARSE_RANK, i16::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_the_order() {
        let mut amounts: Vec<i32> = (0..31)
            .flat_map(|bit| (-2..=2).map(move |by| (1_i32 << bit).saturating_add(by)))
            .chain([-1, 0, i32::MAX - 1, i32::MAX])
            .chain((0..200_000).step_by(7))
            .collect();
        amounts.sort_unstable();
        for pair in amounts.windows(2) {
            assert!(round(pair[0]) <= round(pair[1]), "{pair:?}");
        }
        assert!((0..2048).all(|amount| i32::from(round(amount)) == amount));
        assert_eq!(round(i32::MAX), 20 * 1024 + 2047);
    }

    #[test]
    fn ranks_keep_the_order_and_are_above_none() {
        for direction in [Direction::Most, Direction::Least] {
            let rank = |points: i32| points ^ direction.flip();
            let mut ranks: Vec<i32> = (0..31).map(|bit| rank(1 << bit)).collect();
            ranks.extend([rank(0), rank(i32::MAX - 1)]);
            ranks.sort_unstable();
            let coarse: Vec<i16> = ranks.iter().map(|r| coarse_rank(*r, direction)).collect();
            assert!(coarse.is_sorted(), "{coarse:?}");
            assert!(coarse.iter().all(|rank| *rank > NO_COARSE_RANK));
        }
    }
}
