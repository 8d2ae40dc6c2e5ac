//! What a pool may use.

use crate::class::{CLASS_BYTES_MAX, CLASSES, bytes_of};

/// The bounds and habits of a [`BufferPool`](crate::BufferPool).
///
/// ```
/// use perf_pool::{BufferPool, Config};
///
/// let pool = BufferPool::new(Config::new().budget_bytes(8 << 20).clear_on_return(true));
/// assert_eq!(pool.get(10_000).get().capacity(), 16_384);
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) budget_bytes: u64,
    pub(crate) thread_bytes_max: u64,
    pub(crate) request_bytes_max: usize,
    pub(crate) clear_on_return: bool,
    pub(crate) refuse_beyond_budget: bool,
}

/// Idle buffers of one class that one thread keeps at most. Two magazines of 64: a
/// burst of 64 never leaves the thread, and the shared tier is visited once in 64 operations at most.
const THREAD_BUFFERS_MAX: u64 = 128;

impl Config {
    /// The defaults: 64 MiB in all, 8 MiB idle per thread, requests up to 64 MiB, no clearing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            budget_bytes: 64 << 20,
            thread_bytes_max: 8 << 20,
            request_bytes_max: 64 << 20,
            clear_on_return: false,
            refuse_beyond_budget: false,
        }
    }

    /// Bounds the pooled memory, idle and lent together. Beyond it buffers are served unpooled, counted, and
    /// freed on return, or refused ([`Config::refuse_beyond_budget`]). Memory that a user adds to a lent buffer by growing it is the user's, not the pool's.
    #[must_use]
    pub const fn budget_bytes(mut self, bytes: u64) -> Self {
        self.budget_bytes = bytes;
        self
    }

    /// Bounds the idle memory that one thread keeps for itself. Half is for [`BufferGuard`](crate::BufferGuard)s,
    /// half for [`BytesGuard`](crate::BytesGuard)s. Below 4 MiB the largest classes have no thread tier; with 0 no class
    /// has one and every operation uses the shared tier.
    #[must_use]
    pub const fn thread_bytes_max(mut self, bytes: u64) -> Self {
        self.thread_bytes_max = bytes;
        self
    }

    /// Bounds a single request, also below the largest class. `try_get` refuses more; `get` serves it with an empty buffer
    /// that grows as it is written.
    #[must_use]
    pub const fn request_bytes_max(mut self, bytes: usize) -> Self {
        self.request_bytes_max = bytes;
        self
    }

    /// Refuses what does not fit into the budget, where the default serves it unpooled. The budget then bounds all memory of
    /// the pool: idle, lent, leaked, and pinned by frozen bytes or slices of them.
    ///
    /// [`BufferPool::try_get`](crate::BufferPool::try_get) and [`BufferPool::try_get_bytes`](crate::BufferPool::try_get_bytes)
    /// say [`PoolError::BudgetUsedUp`](crate::PoolError::BudgetUsedUp);
    /// [`BufferPool::get`](crate::BufferPool::get), which cannot fail, lends an empty buffer that grows as it is written. Requests above
    /// 1 MiB are above every class and are refused as too large. The pool then keeps a handle on each buffer that is frozen.
    ///
    /// Idle buffers count, too, and a thread cannot lend what another thread keeps idle. So keep [`Config::thread_bytes_max`] times the
    /// number of threads well below the budget, or set it to 0: each idle buffer can then be lent by every thread.
    #[must_use]
    pub const fn refuse_beyond_budget(mut self, refuse: bool) -> Self {
        self.refuse_beyond_budget = refuse;
        self
    }

    /// The largest request that is served.
    pub(crate) const fn request_bytes_cap(&self) -> usize {
        if self.refuse_beyond_budget && self.request_bytes_max > CLASS_BYTES_MAX {
            CLASS_BYTES_MAX
        } else {
            self.request_bytes_max
        }
    }

    /// Overwrites every buffer's whole capacity with zeros when it comes back, also when its memory
    /// is freed instead of kept (wrong capacity, unpooled, frozen).
    ///
    /// Out of reach: memory that the user's own growth of the `Vec` left behind in the allocator, and what
    /// `detach` hands over. Costs a `memset` of the capacity on each return.
    #[must_use]
    pub const fn clear_on_return(mut self, clear: bool) -> Self {
        self.clear_on_return = clear;
        self
    }

    /// How many buffers of each class one of a thread's two tiers keeps: one of each class, smallest first, while
    /// that fits; the rest of the bytes is shared evenly.
    pub(crate) fn thread_buffers(&self) -> [usize; CLASSES] {
        let mut counts = [0; CLASSES];
        let mut rest = self.thread_bytes_max / 2;
        for (class, count) in counts.iter_mut().enumerate() {
            let bytes = bytes_of(class) as u64;
            if bytes > rest {
                return counts;
            }
            rest -= bytes;
            *count = 1;
        }
        let share = rest / CLASSES as u64;
        for (class, count) in counts.iter_mut().enumerate() {
            let more = (share / bytes_of(class) as u64).min(THREAD_BUFFERS_MAX - 1);
            *count += usize::try_from(more).unwrap_or(0);
        }
        counts
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Config;
    use crate::class::bytes_of;

    #[test]
    fn a_threads_buffers_stay_within_its_bytes() {
        for bytes in [
            0,
            1,
            1023,
            2048,
            5000,
            1 << 20,
            4 << 20,
            8 << 20,
            1 << 30,
            u64::MAX,
        ] {
            let counts = Config::new().thread_bytes_max(bytes).thread_buffers();
            let total: u64 = counts
                .iter()
                .enumerate()
                .map(|(c, &n)| (n * bytes_of(c)) as u64)
                .sum();
            assert!(2 * total <= bytes, "{counts:?} for {bytes}");
        }
        assert!(
            Config::new()
                .thread_buffers()
                .iter()
                .all(|&count| count >= 1)
        );
        assert_eq!(Config::new().thread_buffers()[0], 128);
    }
}
