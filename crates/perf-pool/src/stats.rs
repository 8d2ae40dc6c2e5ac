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
    /// Buffers lent from the shared tier. One such hit brings a whole magazine to the thread.
    pub shared_hits: u64,
    /// Buffers made because none was idle (the misses), and buffers that the pool adopted.
    pub created: u64,
    /// Requests served unpooled because the budget was used up.
    pub unpooled: u64,
    /// Buffers that left the pool in a user's hands: detached, grown, swapped or taken.
    pub discarded: u64,
    /// Idle buffers of [`BufferGuard`](crate::BufferGuard)s, in the threads' tiers and the shared one, now.
    pub idle: u64,
    /// Frozen buffers that the pool keeps a handle on, now: those that are still read (also by a small slice), and those
    /// that no request has looked at since their last reader was gone.
    pub frozen: u64,
    /// Pooled buffers in users' hands, now. A guard that was leaked (`mem::forget`) stays here for ever, with its charge.
    /// The buffer that a thread froze last in this class counts as lent, too: at most one for each thread.
    pub lent: u64,
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
        block::sums_of(core, |number, sums| {
            let stats = &mut stats.classes[number];
            let class = &core.classes[number];
            stats.thread_hits = sums.guards + sums.bytes;
            stats.thread_hits_bytes = sums.bytes;
            stats.idle = sums.idle + class.parked.load(Relaxed);
            stats.frozen = sums.frozen + class.retained.len() as u64;
            let left = stats.discarded + stats.freed + stats.idle + stats.frozen;
            // Threads move on while this is read: never below zero.
            stats.lent = stats.created.saturating_sub(left);
        });
        stats
    }

    /// The memory of pooled buffers in users' hands, in bytes: see [`ClassStats::lent`]. If it stays high while nothing is in
    /// flight, guards were leaked.
    #[must_use]
    pub fn lent_bytes(&self) -> u64 {
        self.sum_bytes(|class| class.lent)
    }

    /// The memory behind frozen bytes that the pool cannot lend again yet, in bytes: see [`ClassStats::frozen`]. If it is
    /// large beside what is read, small slices pin large buffers: see [`BufferPool::copy_bytes`](crate::BufferPool::copy_bytes).
    #[must_use]
    pub fn frozen_bytes(&self) -> u64 {
        self.sum_bytes(|class| class.frozen)
    }

    /// The memory of idle buffers in the threads' tiers and the shared one, in bytes: see [`ClassStats::idle`]. A thread can lend
    /// its own idle buffers and the shared ones, not those of other threads.
    #[must_use]
    pub fn idle_bytes(&self) -> u64 {
        self.sum_bytes(|class| class.idle)
    }

    fn sum_bytes(&self, count: impl Fn(&ClassStats) -> u64) -> u64 {
        let bytes = |class: &ClassStats| count(class) * class.class_bytes;
        self.classes.iter().map(bytes).sum()
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
