//! A bound on a sum that many threads add to, never exceeded, not even for an instant.

use crate::primitive::{AtomicU64, Ordering, mutant};

/// What may be charged in all, and what is.
///
/// Only slow paths come here: a buffer is charged when it is made and released when its memory
/// leaves the pool, so lending and returning cost nothing.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    charged: AtomicU64,
    peak: AtomicU64,
}

impl Budget {
    /// A budget of `limit` units (bytes or objects).
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            charged: AtomicU64::new(0),
            peak: AtomicU64::new(0),
        }
    }

    /// Charges `amount` if it fits, else charges nothing and says `false`.
    ///
    /// Check and addition are one compare-and-swap, so no sum above the limit is ever visible.
    /// `Relaxed` is enough: the sum publishes no other data.
    pub fn reserve(&self, amount: u64) -> bool {
        if mutant::is("budget_check_then_add") {
            return self.reserve_wrongly(amount);
        }
        let charged = self
            .charged
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |charged| {
                charged.checked_add(amount).filter(|&sum| sum <= self.limit)
            });
        match charged {
            Ok(before) => {
                self.peak.fetch_max(before + amount, Ordering::Relaxed);
                true
            }
            Err(_) => false,
        }
    }

    /// The seeded fault: two threads can both pass the check before either adds.
    fn reserve_wrongly(&self, amount: u64) -> bool {
        if self.charged.load(Ordering::Relaxed) + amount > self.limit {
            return false;
        }
        let before = self.charged.fetch_add(amount, Ordering::Relaxed);
        self.peak.fetch_max(before + amount, Ordering::Relaxed);
        true
    }

    /// Gives back what [`Budget::reserve`] charged.
    pub fn release(&self, amount: u64) {
        let before = self.charged.fetch_sub(amount, Ordering::Relaxed);
        debug_assert!(before >= amount, "released {amount} of {before} charged");
    }

    /// What may be charged in all.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// What is charged now.
    pub fn charged(&self) -> u64 {
        self.charged.load(Ordering::Relaxed)
    }

    /// The most that was ever charged at once.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::Budget;

    #[test]
    fn refuses_what_does_not_fit_and_charges_nothing_for_it() {
        let budget = Budget::new(10);
        assert!(budget.reserve(6));
        assert!(!budget.reserve(5));
        assert!(!budget.reserve(u64::MAX));
        assert_eq!(budget.charged(), 6);
        assert!(budget.reserve(4));
        budget.release(10);
        assert_eq!((budget.charged(), budget.peak()), (0, 10));
    }
}
