//! How large requests may be: as is set, or smaller while the receiver takes no more.
//!
//! A bound that the receiver's refusal has lowered is doubled after [`PATIENCE_MIN`] requests that were taken, as
//! receivers are mended. If that is refused, twice as many have to be taken before the next trial: of many requests few
//! are sent in vain.

use super::split::Max;

/// How many requests have to be taken before a larger one is tried.
const PATIENCE_MIN: u32 = 32;
/// The same after many trials in vain.
const PATIENCE_MAX: u32 = 4096;

pub(super) struct Limit {
    set: Max,
    /// At most what is set.
    bytes: usize,
    /// Since the bound has changed.
    taken: u32,
    patience: u32,
    /// The bound was raised, and no request has been refused since.
    is_trial: bool,
    /// The smallest request that was refused and that a larger one was not taken since.
    refused: usize,
}

impl Limit {
    pub(super) fn new(set: Max) -> Self {
        Self {
            set,
            bytes: set.bytes,
            taken: 0,
            patience: PATIENCE_MIN,
            is_trial: false,
            refused: usize::MAX,
        }
    }

    pub(super) fn max(&self) -> Max {
        Max {
            bytes: self.bytes,
            points: self.set.points,
        }
    }

    /// The receiver took a request of so many bytes.
    pub(super) fn taken(&mut self, bytes: usize) {
        if bytes >= self.refused {
            // It takes more than it did.
            self.refused = usize::MAX;
            self.patience = PATIENCE_MIN;
        }
        if self.bytes == self.set.bytes {
            return;
        }
        self.taken += 1;
        if self.taken >= self.patience {
            self.taken = 0;
            self.is_trial = true;
            self.bytes = self.bytes.saturating_mul(2).min(self.set.bytes);
        }
    }

    /// A request of several points, of so many bytes, was too large. Each part of it has at least `empty_bytes`, so
    /// that by the new bound there are at least two.
    pub(super) fn refused(&mut self, bytes: usize, empty_bytes: usize) {
        self.refused = self.refused.min(bytes);
        if self.is_trial {
            self.is_trial = false;
            self.patience = self.patience.saturating_mul(2).min(PATIENCE_MAX);
        }
        self.taken = 0;
        self.bytes = self.bytes.min(usize::midpoint(bytes, empty_bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: usize = 100;

    fn limit(bytes: usize) -> Limit {
        Limit::new(Max {
            bytes,
            points: usize::MAX,
        })
    }

    /// Sends what waits to a receiver that takes so many bytes, in requests as large as the bound allows. How many it
    /// took and refused.
    fn send(limit: &mut Limit, mut waiting: usize, bytes_max: usize) -> (u32, u32) {
        let (mut taken, mut refused) = (0, 0);
        while waiting > 0 {
            let bytes = waiting.min(limit.max().bytes - EMPTY) + EMPTY;
            if bytes > bytes_max {
                limit.refused(bytes, EMPTY);
                assert!(limit.max().bytes < bytes);
                refused += 1;
            } else {
                limit.taken(bytes);
                waiting -= bytes - EMPTY;
                taken += 1;
            }
        }
        (taken, refused)
    }

    /// How often `from` is doubled until it reaches `to`.
    fn doublings(from: usize, to: usize) -> u32 {
        (to as f64 / from as f64).log2().ceil() as u32
    }

    proptest! {
        #[test]
        fn few_requests_are_refused_and_the_bound_comes_back(
            set in 10_000usize..1_000_000,
            share in 0.01f64..0.99,
            collections in proptest::collection::vec(1usize..5_000_000, 1..100),
        ) {
            let bytes_max = (set as f64 * share) as usize + 2 * EMPTY;
            let mut limit = limit(set);
            let (mut taken, mut refused) = (0, 0);
            for waiting in collections {
                let sent = send(&mut limit, waiting, bytes_max);
                (taken, refused) = (taken + sent.0, refused + sent.1);
            }
            // At first, and after 32, 64, 128 requests ...
            let trials = 1 + (taken / PATIENCE_MIN + 1).ilog2() + taken / PATIENCE_MAX;
            let descent = doublings(bytes_max, set) + 1;
            prop_assert!(refused <= trials * descent, "{refused} of {taken}, in {trials} trials");

            // The receiver is mended.
            let requests_max = doublings(limit.max().bytes, set) * limit.patience;
            let mut requests = 0;
            while limit.max().bytes < set {
                prop_assert_eq!(send(&mut limit, 1, set), (1, 0));
                requests += 1;
            }
            prop_assert!(requests <= requests_max, "{requests}");
            // A large request shows it: the next trial comes as early as the first did.
            prop_assert_eq!(send(&mut limit, set - EMPTY, set), (1, 0));
            prop_assert_eq!(limit.patience, PATIENCE_MIN);
        }
    }
}
