//! A node that calls, a node that answers, and a network that does its worst, all from one seed: no clock, no socket,
//! no thread.
//!
//! What runs here is the protocol that production runs. The world decides only when bytes move, when tasks get their
//! turn, and what breaks.

mod world;

#[allow(unused_imports, reason = "the mutants need no summary")]
pub(crate) use world::Summary;
pub(crate) use world::run;

/// The next numbers of a seed: splitmix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
