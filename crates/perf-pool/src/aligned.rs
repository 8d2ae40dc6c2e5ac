//! Buffers that begin at a multiple of the block size, for direct I/O (`O_DIRECT`).

use crate::class::ALIGN_MAX;
use crate::error::PoolError;
use crate::item::{self, Item, Lent};
use crate::object_shared::{ObjectPoolStats, Shared};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A bounded pool of buffers of one size that begin at a multiple of an alignment.
///
/// Direct I/O wants the address, the length and the file offset to be multiples of the device's block size (512 or 4096 bytes).
/// Each buffer takes `align - 1` bytes more than its size: safe Rust cannot ask the allocator for an alignment that is chosen at run time.
///
/// Buffers hold zeros when they are made, and afterwards what their last user left, unless the pool clears them.
///
/// ```
/// use perf_pool::AlignedPool;
///
/// let pool = AlignedPool::new(64 << 10, 4096, 8)?;
/// let mut block = pool.try_get()?;
/// assert_eq!((block.len(), block.as_ptr() as usize % 4096), (64 << 10, 0));
/// block[..5].copy_from_slice(b"entry");
/// # Ok::<(), perf_pool::PoolError>(())
/// ```
pub struct AlignedPool {
    bytes: usize,
    align: usize,
    clear_on_return: bool,
    shared: Arc<Shared<Item<Block>>>,
}

struct Block {
    /// Never grows, so its memory never moves.
    vec: Vec<u8>,
    start: usize,
    bytes: usize,
    clear_on_return: bool,
}

/// No thread keeps idle buffers for itself: a pool that makes no more must find each of them. The lock is nothing beside the I/O.
const THREAD_BUFFERS_MAX: usize = 0;

impl AlignedPool {
    /// A pool of at most `buffers_max` buffers of `bytes` bytes, idle and lent together.
    ///
    /// # Errors
    /// [`PoolError::BadAlignment`] unless `align` is a power of two up to 1 MiB and `bytes` a multiple of it above 0.
    pub fn new(bytes: usize, align: usize, buffers_max: usize) -> Result<Self, PoolError> {
        let is_valid = align.is_power_of_two() && align <= ALIGN_MAX && bytes > 0;
        if !is_valid || !bytes.is_multiple_of(align) {
            return Err(PoolError::BadAlignment { bytes, align });
        }
        Ok(Self {
            bytes,
            align,
            clear_on_return: false,
            shared: Arc::new(Shared::new(buffers_max, THREAD_BUFFERS_MAX)),
        })
    }

    /// Overwrites each buffer with zeros when it comes back. O(n) in the buffer's size.
    #[must_use]
    pub fn clear_on_return(mut self, clear: bool) -> Self {
        self.clear_on_return = clear;
        self
    }

    /// Lends a buffer: an idle one, whichever thread returned it, else a new one. Takes one lock.
    ///
    /// # Errors
    /// [`PoolError::BuffersUsedUp`] if all are lent, [`PoolError::OutOfMemory`] if the allocator refuses a new one.
    pub fn try_get(&self) -> Result<AlignedGuard, PoolError> {
        match Lent::idle(self.shared.id, &self.shared) {
            Some(lent) => Ok(AlignedGuard { lent }),
            None => self.make(),
        }
    }

    #[cold]
    fn make(&self) -> Result<AlignedGuard, PoolError> {
        let charge = self.shared.charge();
        if !charge.is_pooled() {
            return Err(PoolError::BuffersUsedUp {
                buffers_max: self.shared.stats().objects_max,
            });
        }
        let out_of_memory = PoolError::OutOfMemory {
            requested_bytes: self.bytes,
        };
        let Some(size) = self.bytes.checked_add(self.align - 1) else {
            return Err(out_of_memory);
        };
        let mut vec = Vec::new();
        if vec.try_reserve_exact(size).is_err() {
            return Err(out_of_memory);
        }
        vec.resize(size, 0);
        let start = (vec.as_ptr() as usize).wrapping_neg() & (self.align - 1);
        let block = Block {
            vec,
            start,
            bytes: self.bytes,
            clear_on_return: self.clear_on_return,
        };
        Ok(AlignedGuard {
            lent: Lent::made(block, charge, &self.shared),
        })
    }

    /// Frees the idle buffers, and says how many.
    pub fn trim(&self) -> usize {
        item::trim(&self.shared)
    }

    /// What the pool holds and did, in buffers. A leaked guard stays in `charged_objects`.
    #[must_use]
    pub fn stats(&self) -> ObjectPoolStats {
        self.shared.stats()
    }
}

impl Drop for AlignedPool {
    fn drop(&mut self) {
        item::close(&self.shared);
    }
}

impl fmt::Debug for AlignedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedPool")
            .field("bytes", &self.bytes)
            .field("align", &self.align)
            .field("stats", &self.stats())
            .finish()
    }
}

/// A buffer lent by an [`AlignedPool`]: `[u8]` of the pool's size. It goes back when it is dropped, on whatever thread that is.
pub struct AlignedGuard {
    lent: Lent<Block>,
}

impl Drop for AlignedGuard {
    fn drop(&mut self) {
        let block = self.lent.get_mut();
        if block.clear_on_return {
            block.vec.fill(0);
            zeroize::optimization_barrier(block.vec.as_slice());
        }
    }
}

impl Deref for AlignedGuard {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let block = self.lent.get();
        &block.vec[block.start..block.start + block.bytes]
    }
}

impl DerefMut for AlignedGuard {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let block = self.lent.get_mut();
        &mut block.vec[block.start..block.start + block.bytes]
    }
}

impl AsRef<[u8]> for AlignedGuard {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for AlignedGuard {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// Lengths only: a buffer may hold secrets.
impl fmt::Debug for AlignedGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedGuard")
            .field("len", &self.len())
            .finish()
    }
}
