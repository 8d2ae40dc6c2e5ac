//! Numbers for tests: the same in every run.

/// A linear congruential generator (Knuth's MMIX): each call returns a number below its bound.
pub(crate) fn below(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = seed;
    move |bound| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) % bound
    }
}
