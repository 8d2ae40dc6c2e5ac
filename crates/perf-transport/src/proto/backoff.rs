//! When to dial again.

/// Exponential backoff with jitter, from a seed.
///
/// Attempt `n` waits between half of and all of `min(max_ms, base_ms * 2^n)`, so that the nodes of a cluster do not
/// dial a node that comes back all at once, and none waits longer than `max_ms`.
#[derive(Clone, Debug)]
pub struct Backoff {
    base_ms: u64,
    max_ms: u64,
    failures: u32,
    random: u64,
}

impl Backoff {
    /// No failure so far.
    #[must_use]
    pub fn new(base_ms: u64, max_ms: u64, seed: u64) -> Self {
        let base_ms = base_ms.max(1);
        Self {
            base_ms,
            max_ms: max_ms.max(base_ms),
            failures: 0,
            random: seed | 1,
        }
    }

    /// An attempt failed: how long to wait until the next.
    pub fn failed(&mut self) -> u64 {
        let full = self
            .base_ms
            .saturating_mul(1_u64.checked_shl(self.failures.min(32)).unwrap_or(u64::MAX))
            .min(self.max_ms);
        self.failures = self.failures.saturating_add(1);
        // xorshift64: jitter needs no more.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let half = full / 2;
        half + self.random % (full - half + 1)
    }

    /// An attempt succeeded: the next failure waits `base_ms` again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// How many attempts failed in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_starts_over() {
        let mut backoff = Backoff::new(50, 2000, 7);
        let mut bound = 50;
        for _ in 0..100 {
            let wait = backoff.failed();
            assert!((bound / 2..=bound).contains(&wait), "{wait} of {bound}");
            bound = (bound * 2).min(2000);
        }
        assert_eq!(backoff.failures(), 100);
        backoff.succeeded();
        assert!(backoff.failed() <= 50);
    }
}
