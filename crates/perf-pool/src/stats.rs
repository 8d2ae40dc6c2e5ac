//! What a pool holds and did.

use crate::block;
use crate::class::CLASSES;
use crate::core::Core;
use crate::primitive::cold::Relaxed;

/// A pool's state and history at one moment. See [`BufferPool::stats`](crate::BufferPool::stats).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Pooled memory, idle and lent, that counts against the budget now.
    pub charged_bytes: u64,
    /// The most that it ever was.
    pub charged_bytes_peak: u64,
    /// The bound on both.
    pub budget_bytes: u64,
    /// Requests above the largest class, served unpooled.
    pub oversized: u64,
    /// Requests refused, or served with an empty buffer: above the cap, or no memory.
    pub refused: u64,
    /// By class, smallest first.
    pub classes: [ClassStats; CLASSES],
}

/// The history of one size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassStats {
    /// The capacity of its buffers.
    pub class_bytes: u64,
    /// Buffers lent from the thread's own tier.
    pub thread_hits: u64,
    /// Of these, [`BytesGuard`](crate::BytesGuard)s.
    pub thread_hits_bytes: u64,
    /// Buffers lent from the shared tier. One such hit brings a whole chain to the thread.
    pub shared_hits: u64,
    /// Buffers made because none was idle: the misses.
    pub created: u64,
    /// Requests served unpooled because the budget was used up.
    pub unpooled: u64,
    /// Buffers that left the pool in a user's hands: detached, grown, swapped or taken.
    pub discarded: u64,
    /// Idle buffers freed: trimmed, no room in the shared tier, or to make room in the budget.
    pub freed: u64,
}

impl PoolStats {
    pub(crate) fn of(core: &Core) -> Self {
        let mut stats = Self {
            charged_bytes: core.budget.charged(),
            charged_bytes_peak: core.budget.peak(),
            budget_bytes: core.budget.limit(),
            oversized: core.oversized.load(Relaxed),
            refused: core.refused.load(Relaxed),
            classes: [ClassStats::default(); CLASSES],
        };
        for (stats, class) in stats.classes.iter_mut().zip(&core.classes) {
            stats.class_bytes = class.bytes();
            stats.shared_hits = class.shared_hits.load(Relaxed);
            stats.created = class.created.load(Relaxed);
            stats.unpooled = class.unpooled.load(Relaxed);
            stats.discarded = class.discarded.load(Relaxed);
            stats.freed = class.freed.load(Relaxed);
        }
        block::hits_of(core, |class, guards, bytes| {
            stats.classes[class].thread_hits = guards + bytes;
            stats.classes[class].thread_hits_bytes = bytes;
        });
        stats
    }

    /// Buffers lent by all classes together, whatever served them.
    #[must_use]
    pub fn lent_total(&self) -> u64 {
        let of = |class: &ClassStats| {
            class.thread_hits + class.shared_hits + class.created + class.unpooled
        };
        self.classes.iter().map(of).sum::<u64>() + self.oversized
    }

    /// The share of requests served without making a buffer, from 0 to 1; 1 if there were none.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        let hits: u64 = self
            .classes
            .iter()
            .map(|class| class.thread_hits + class.shared_hits)
            .sum();
        match self.lent_total() {
            0 => 1.0,
            total => hits as f64 / total as f64,
        }
    }
}
