//! What a cache counts.

use perf_atomics::slab::{self, CellRange};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a cache has done so far. Numbers only grow, apart from `len` and `weight`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Reads that found a fresh value. Those of a [`CacheReader`](crate::CacheReader) count when it next looks beyond its own places, or is dropped.
    pub hits: u64,
    /// Reads that found nothing.
    pub misses: u64,
    /// Reads that got a stale value, as stale-while-revalidate allows.
    pub stale_hits: u64,
    /// Reads that got the cached error of an earlier computation.
    pub negative_hits: u64,
    /// Computations begun, refreshes included.
    pub computations: u64,
    /// Computations that returned an error.
    pub failures: u64,
    /// Computations that panicked or were cancelled.
    pub abandoned: u64,
    /// Values heavier than the whole cache, which were not kept.
    pub rejected: u64,
    /// Values thrown out at capacity.
    pub evictions: u64,
    /// How often the adaptive policy has changed.
    pub policy_switches: u64,
    /// Entries held now, cached errors and ended entries that no caller has met yet included.
    pub len: u64,
    /// Their weight.
    pub weight: u64,
}

impl CacheStats {
    /// The share of reads that were answered from the cache; `None` if there were no reads.
    #[must_use]
    pub fn hit_ratio(&self) -> Option<f64> {
        let hits = self.hits + self.stale_hits + self.negative_hits;
        let reads = hits + self.misses;
        (reads > 0).then(|| hits as f64 / reads as f64)
    }
}

/// The places of the counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    Hits,
    Misses,
    StaleHits,
    NegativeHits,
    Computations,
    Failures,
    Abandoned,
    Rejected,
}

const COUNTS: usize = 8;

/// Counts in the cells of the slab: a plain add each. Where the slab has none left, in shared words.
#[derive(Debug)]
pub(crate) enum Counters {
    Cells(CellRange),
    Words(Box<[AtomicU64; COUNTS]>),
}

impl Counters {
    pub(crate) fn new() -> Self {
        slab::reserve(COUNTS).map_or_else(|_| Self::Words(Box::default()), Self::Cells)
    }

    #[inline]
    pub(crate) fn add(&self, count: Count, amount: u64) {
        match self {
            Self::Cells(cells) => cells.add(count as usize, amount),
            Self::Words(words) => {
                words[count as usize].fetch_add(amount, Ordering::Relaxed);
            }
        }
    }

    /// The same as [`one`](Self::one) of [`Count::Hits`], the first cell, in fewer steps.
    #[inline]
    pub(crate) fn hit(&self) {
        let is_counted = match self {
            Self::Cells(cells) => cells.handle().add_own(1),
            Self::Words(_) => false,
        };
        if !is_counted {
            self.hit_slow();
        }
    }

    #[cold]
    #[inline(never)]
    fn hit_slow(&self) {
        self.one(Count::Hits);
    }

    #[inline]
    pub(crate) fn one(&self, count: Count) {
        self.add(count, 1);
    }

    /// All counts; what is not counted here stays zero.
    pub(crate) fn read(&self) -> CacheStats {
        let get = |count: Count| match self {
            Self::Cells(cells) => cells.sum(count as usize),
            Self::Words(words) => words[count as usize].load(Ordering::Relaxed),
        };
        CacheStats {
            hits: get(Count::Hits),
            misses: get(Count::Misses),
            stale_hits: get(Count::StaleHits),
            negative_hits: get(Count::NegativeHits),
            computations: get(Count::Computations),
            failures: get(Count::Failures),
            abandoned: get(Count::Abandoned),
            rejected: get(Count::Rejected),
            ..CacheStats::default()
        }
    }
}
