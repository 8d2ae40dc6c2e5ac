//! The pool's handle.

use crate::bytes_guard::BytesGuard;
use crate::class::{CLASS_BYTES_MAX, CLASS_BYTES_MIN, class_of};
use crate::config::Config;
use crate::core::Core;
use crate::error::PoolError;
use crate::guard::BufferGuard;
use crate::lend;
use crate::local;
use crate::magazine::BufferBox;
use crate::primitive::cold::LazyLock;
use crate::stats::PoolStats;
use bytes::Bytes;
use std::sync::Arc;

/// A pool of byte buffers in power-of-two classes from 1 KiB to 1 MiB.
///
/// Each thread keeps idle buffers of its own; whole magazines of them move between threads through a
/// bounded shared tier. Share a pool by reference or in an `Arc`; most programs need only the global
/// one, [`buffer_pool`].
///
/// A thread has a tier for the global pool and for three others at a time; which ones share a place is fixed by
/// the order of their creation. Pools beyond that use the shared tier, which is slower.
///
/// Dropping a pool frees what is idle in its shared tier and on this thread. Guards and frozen [`Bytes`](bytes::Bytes)
/// stay valid; their memory is freed when they are dropped. Other threads free what they hold when they next run
/// out of buffers in any pool, or end.
///
/// ```
/// use perf_pool::{BufferPool, Config};
///
/// let pool = BufferPool::new(Config::new().budget_bytes(4 << 20));
/// let mut buffer = pool.get(1500);
/// buffer.get_mut().extend_from_slice(b"hello");
/// drop(buffer);
/// assert_eq!(pool.stats().charged_bytes, 2048);
/// ```
#[derive(Debug)]
pub struct BufferPool {
    core: Arc<Core>,
}

static GLOBAL: LazyLock<BufferPool> = LazyLock::new(|| BufferPool {
    core: Arc::clone(Core::global()),
});

/// The global pool, with the default [`Config`]. [`BufferGuard::new`] and [`BytesGuard::try_new`] use it.
#[must_use]
pub fn buffer_pool() -> &'static BufferPool {
    &GLOBAL
}

impl BufferPool {
    /// A pool of its own.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            core: Core::registered(config),
        }
    }

    /// Lends an empty buffer with room for `size_hint` bytes. Never fails and never loses data: a request that
    /// [`BufferPool::try_get`] refuses is served with a buffer of capacity 0, which grows as it is written, like any `Vec`.
    #[inline]
    #[must_use]
    pub fn get(&self, size_hint: usize) -> BufferGuard {
        BufferGuard::holding(lend::buffer(&self.core, size_hint))
    }

    /// Lends an empty buffer with room for `size_hint` bytes. Above 1 MiB it is not pooled.
    ///
    /// # Errors
    /// [`PoolError::RequestTooLarge`] above [`Config::request_bytes_max`], [`PoolError::OutOfMemory`] if
    /// the allocator refuses a request above 1 MiB, [`PoolError::BudgetUsedUp`] if the pool has
    /// [`Config::refuse_beyond_budget`] and the budget is used up. The last one says by what: lent or frozen buffers.
    #[inline]
    pub fn try_get(&self, size_hint: usize) -> Result<BufferGuard, PoolError> {
        lend::try_buffer(&self.core, size_hint).map(BufferGuard::holding)
    }

    /// Lends an empty buffer of fixed capacity, at least `size_hint`, that freezes without copying or
    /// allocating. Above 1 MiB, or with the budget used up, it is not pooled.
    ///
    /// # Errors
    /// [`PoolError::RequestTooLarge`] above [`Config::request_bytes_max`], [`PoolError::BudgetUsedUp`] as for
    /// [`BufferPool::try_get`].
    #[inline]
    pub fn try_get_bytes(&self, size_hint: usize) -> Result<BytesGuard, PoolError> {
        lend::bytes(&self.core, size_hint).map(BytesGuard::holding)
    }

    /// Takes a buffer into the pool, such as one that was [detached](BufferGuard::detach). Its content is forgotten.
    ///
    /// # Errors
    /// The buffer, if its capacity is not that of a class (a power of two from 1 KiB to 1 MiB), or the budget is used up.
    pub fn adopt(&self, buffer: Vec<u8>) -> Result<(), Vec<u8>> {
        let capacity = buffer.capacity();
        let is_of_class = (CLASS_BYTES_MIN..=CLASS_BYTES_MAX).contains(&capacity);
        if !is_of_class || !capacity.is_power_of_two() {
            return Err(buffer);
        }
        let class = &self.core.classes[class_of(capacity)];
        if !self.core.charge_existing(class) {
            return Err(buffer);
        }
        // Goes the way of every buffer that comes back.
        drop(BufferGuard::holding(BufferBox::holding(
            buffer,
            self.core.tag_of(class),
        )));
        Ok(())
    }

    /// Copies `bytes` into a buffer of their own size class. O(n); allocates nothing in steady state.
    ///
    /// A slice of frozen bytes keeps the whole buffer it was cut from, so ten bytes of a message of 1 MiB hold 1 MiB
    /// ([`PoolStats::frozen_bytes`]). Copy a small slice that lives long, and drop the original.
    /// Above the bounds of the pool the copy is not pooled.
    ///
    /// ```
    /// use perf_pool::{BufferPool, Config};
    ///
    /// let pool = BufferPool::new(Config::new());
    /// let mut message = pool.try_get_bytes(1 << 20)?;
    /// message.put_slice(b"key=value")?;
    /// let message = message.freeze();
    /// let key = pool.copy_bytes(&message[..3]);
    /// drop(message); // 1 MiB can be lent again
    /// assert_eq!(&key[..], b"key");
    /// # Ok::<(), perf_pool::PoolError>(())
    /// ```
    #[must_use]
    pub fn copy_bytes(&self, bytes: &[u8]) -> Bytes {
        let copy = self.try_get_bytes(bytes.len()).and_then(|mut guard| {
            guard.put_slice(bytes)?;
            Ok(guard.freeze())
        });
        copy.unwrap_or_else(|_| Bytes::copy_from_slice(bytes))
    }

    /// What the pool holds and did. Takes a lock and reads every thread's counters: for monitoring, not for hot paths.
    /// Exact while nothing moves; counts of running threads may lag each other by the operations in flight.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        PoolStats::of(&self.core)
    }

    /// Frees the idle memory of the shared tier and of this thread, and says how many bytes that were. Other
    /// threads keep their idle buffers, at most [`Config::thread_bytes_max`] each. Frozen buffers that are
    /// still read stay.
    pub fn trim(&self) -> u64 {
        local::flush(&self.core);
        let mut bytes = 0;
        for class in &self.core.classes {
            // As many as there are now: others may park meanwhile.
            for _ in 0..class.depot.len() {
                let Some(magazine) = class.unpark() else {
                    break;
                };
                bytes += self.core.free_magazine(class, magazine);
            }
            bytes += self.core.trim_retained(class);
        }
        bytes
    }
}

impl Drop for BufferPool {
    fn drop(&mut self) {
        self.core.close();
        local::flush(&self.core);
    }
}
