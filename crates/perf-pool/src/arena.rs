//! Arenas for everything that one request or batch allocates.

use crate::error::PoolError;
use crate::item::{self, Item, Lent};
use crate::object_shared::{ObjectPoolStats, Shared};
use crate::primitive::cold::{AtomicU64, Relaxed};
use bumpalo::Bump;
use std::alloc::Layout;
use std::fmt;
use std::mem;
use std::sync::Arc;

/// The bounds of an [`ArenaPool`].
#[derive(Clone, Debug)]
pub struct ArenaConfig {
    arenas_max: usize,
    thread_arenas_max: usize,
    first_bytes: usize,
    keep_bytes_max: usize,
    request_bytes_max: usize,
}

impl ArenaConfig {
    /// The defaults: 256 arenas, 4 idle ones per thread, 4 KiB at first, 1 MiB kept between requests, 64 MiB for one request.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            arenas_max: 256,
            thread_arenas_max: 4,
            first_bytes: 4 << 10,
            keep_bytes_max: 1 << 20,
            request_bytes_max: 64 << 20,
        }
    }

    /// Bounds the pooled arenas, idle and lent together. Further ones are made, counted as unpooled and freed on return.
    #[must_use]
    pub const fn arenas_max(mut self, arenas: usize) -> Self {
        self.arenas_max = arenas;
        self
    }

    /// Bounds the idle arenas that one thread keeps for itself.
    #[must_use]
    pub const fn thread_arenas_max(mut self, arenas: usize) -> Self {
        self.thread_arenas_max = arenas;
        self
    }

    /// The bytes that a new arena has room for, at most 1 GiB. If there is no memory for them, a new arena starts empty.
    #[must_use]
    pub const fn first_bytes(mut self, bytes: usize) -> Self {
        self.first_bytes = bytes;
        self
    }

    /// Bounds the memory that an arena keeps between requests: one that a large request made grow beyond is freed, and counted.
    /// `arenas_max` times this bounds the idle memory of the pool.
    #[must_use]
    pub const fn keep_bytes_max(mut self, bytes: usize) -> Self {
        self.keep_bytes_max = bytes;
        self
    }

    /// Bounds the memory of one request. Beyond it the `try_` methods say [`PoolError::ArenaFull`].
    #[must_use]
    pub const fn request_bytes_max(mut self, bytes: usize) -> Self {
        self.request_bytes_max = bytes;
        self
    }
}

/// More room at first is no use, and `bumpalo` panics near the end of the address space.
const FIRST_BYTES_MAX: usize = 1 << 30;

impl Default for ArenaConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// A bounded pool of arenas, one for each request or batch.
///
/// A request's small objects are placed one after the other in one block, and go all at once when the arena comes
/// back. The block stays: once an arena has grown to the size that requests need, no request allocates.
///
/// Dropping the pool frees the idle arenas of the shared tier and of this thread; lent ones stay valid.
///
/// ```
/// use perf_pool::{ArenaConfig, ArenaPool};
///
/// let pool = ArenaPool::new(ArenaConfig::new());
/// let arena = pool.get();
/// let name = arena.try_alloc_str("vm-17")?;
/// let ports = arena.try_alloc_slice(&[80_u16, 443])?;
/// let pair = arena.try_alloc((&*name, &*ports))?;
/// assert_eq!(*pair, ("vm-17", &[80, 443][..]));
/// drop(arena); // all three go, the memory stays
/// assert_eq!(pool.stats().created, 1);
/// # Ok::<(), perf_pool::PoolError>(())
/// ```
pub struct ArenaPool {
    config: ArenaConfig,
    id: u64,
    shared: Arc<Shared<Item<Block>>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    pooled_bytes: AtomicU64,
    outgrown: AtomicU64,
}

/// An arena and what it needs to come back.
struct Block {
    bump: Bump,
    keep_bytes_max: usize,
    request_bytes_max: usize,
    is_pooled: bool,
    /// How many bytes of it are counted in `counts`.
    counted_bytes: usize,
    counts: Arc<Counts>,
}

/// What an [`ArenaPool`] holds and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArenaPoolStats {
    /// Pooled arenas, idle and lent, now. A leaked one stays here.
    pub arenas: u64,
    /// The most there ever were.
    pub arenas_peak: u64,
    /// The bound on both.
    pub arenas_max: u64,
    /// The bytes of the pooled arenas, as each was when it was made or last came back.
    pub pooled_bytes: u64,
    /// Arenas made because none was idle.
    pub created: u64,
    /// Arenas made beyond the bound.
    pub unpooled: u64,
    /// Arenas freed on return because a request had made them grow beyond `keep_bytes_max`.
    pub outgrown: u64,
}

impl ArenaPool {
    /// A pool without arenas.
    #[must_use]
    pub fn new(config: ArenaConfig) -> Self {
        let shared = Arc::new(Shared::new(config.arenas_max, config.thread_arenas_max));
        Self {
            id: shared.id,
            config,
            shared,
            counts: Arc::default(),
        }
    }

    /// Lends an empty arena: an idle one of this thread, else a shared one, else a new one. O(1).
    #[inline]
    #[must_use]
    pub fn get(&self) -> Arena {
        match Lent::idle(self.id, &self.shared) {
            Some(lent) => Arena { lent },
            None => self.make(),
        }
    }

    #[cold]
    #[inline(never)]
    fn make(&self) -> Arena {
        let charge = self.shared.charge();
        let mut bump = Bump::new();
        bump.set_allocation_limit(Some(self.config.request_bytes_max));
        // Makes the first block, under the bound. If there is no room for it, the arena starts empty.
        let first_bytes = self.config.first_bytes.min(FIRST_BYTES_MAX);
        if let Ok(layout) = Layout::from_size_align(first_bytes, 1)
            && bump.try_alloc_layout(layout).is_ok()
        {
            bump.reset();
        }
        let is_pooled = charge.is_pooled();
        let counted_bytes = if is_pooled { bump.allocated_bytes() } else { 0 };
        self.counts
            .pooled_bytes
            .fetch_add(counted_bytes as u64, Relaxed);
        let block = Block {
            bump,
            keep_bytes_max: self.config.keep_bytes_max,
            request_bytes_max: self.config.request_bytes_max,
            is_pooled,
            counted_bytes,
            counts: Arc::clone(&self.counts),
        };
        Arena {
            lent: Lent::made(block, charge, &self.shared),
        }
    }

    /// Frees the idle arenas that are shared or this thread's, and says how many.
    pub fn trim(&self) -> usize {
        item::trim(&self.shared)
    }

    /// What the pool holds and did.
    #[must_use]
    pub fn stats(&self) -> ArenaPoolStats {
        let ObjectPoolStats {
            charged_objects,
            charged_objects_peak,
            objects_max,
            created,
            unpooled,
            ..
        } = self.shared.stats();
        ArenaPoolStats {
            arenas: charged_objects,
            arenas_peak: charged_objects_peak,
            arenas_max: objects_max,
            pooled_bytes: self.counts.pooled_bytes.load(Relaxed),
            created,
            unpooled,
            outgrown: self.counts.outgrown.load(Relaxed),
        }
    }
}

impl Drop for ArenaPool {
    fn drop(&mut self) {
        item::close(&self.shared);
    }
}

impl fmt::Debug for ArenaPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArenaPool")
            .field("stats", &self.stats())
            .finish()
    }
}

impl Block {
    /// Counts the bytes as they are now; touches the shared count only if they changed.
    fn count(&mut self) {
        let bytes = self.bump.allocated_bytes();
        if self.is_pooled && bytes != self.counted_bytes {
            self.counts.pooled_bytes.fetch_add(bytes as u64, Relaxed);
            self.counts
                .pooled_bytes
                .fetch_sub(self.counted_bytes as u64, Relaxed);
            self.counted_bytes = bytes;
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.counts
            .pooled_bytes
            .fetch_sub(self.counted_bytes as u64, Relaxed);
    }
}

/// An arena lent by an [`ArenaPool`]. What it holds goes when it is dropped, on whatever thread that is; its memory goes back to the pool.
///
/// Values in it are never dropped one by one, so a type that needs dropping (a `Vec`, a `String`) is refused when
/// the program is compiled: place a slice or a `str` instead, or use a collection of `bumpalo` on [`Arena::bump`].
pub struct Arena {
    /// Goes back when the field is dropped, after `drop` has reset it.
    lent: Lent<Block>,
}

impl Arena {
    #[inline]
    fn block(&self) -> &Block {
        self.lent.get()
    }

    /// Places a value. O(1).
    ///
    /// # Errors
    /// [`PoolError::ArenaFull`] if the request's bound or the allocator has no room for it.
    #[inline]
    pub fn try_alloc<T>(&self, value: T) -> Result<&mut T, PoolError> {
        const { assert!(!mem::needs_drop::<T>(), "an arena drops no values") };
        let block = self.block();
        let place = block.bump.try_alloc(value);
        place.map_err(|_| full(block, size_of::<T>()))
    }

    /// Places a copy of a slice. O(n).
    ///
    /// # Errors
    /// As [`Arena::try_alloc`].
    #[inline]
    pub fn try_alloc_slice<T: Copy>(&self, slice: &[T]) -> Result<&mut [T], PoolError> {
        let block = self.block();
        let place = block.bump.try_alloc_slice_copy(slice);
        place.map_err(|_| full(block, size_of_val(slice)))
    }

    /// Places a copy of a string. O(n).
    ///
    /// # Errors
    /// As [`Arena::try_alloc`].
    #[inline]
    pub fn try_alloc_str(&self, text: &str) -> Result<&mut str, PoolError> {
        let block = self.block();
        let place = block.bump.try_alloc_str(text);
        place.map_err(|_| full(block, text.len()))
    }

    /// The arena itself, for what only `bumpalo` offers: its collections, iterators, and values that need dropping.
    ///
    /// Its methods that do not begin with `try_` panic where the bound on the request is reached.
    #[must_use]
    pub fn bump(&self) -> &Bump {
        &self.block().bump
    }

    /// The bytes that the arena holds, used or not.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.block().bump.allocated_bytes()
    }
}

#[cold]
fn full(block: &Block, requested_bytes: usize) -> PoolError {
    PoolError::ArenaFull {
        requested_bytes,
        held_bytes: block.bump.allocated_bytes(),
        request_bytes_max: block.request_bytes_max,
    }
}

impl Drop for Arena {
    #[inline]
    fn drop(&mut self) {
        let block = self.lent.get_mut();
        // Keeps the largest block only: when a request has needed several, the next one of its size needs one.
        block.bump.reset();
        // A user of `bump` can have changed it, for the next one as well.
        let limit = Some(block.request_bytes_max);
        block.bump.set_allocation_limit(limit);
        block.count();
        if block.bump.allocated_bytes() > block.keep_bytes_max {
            block.counts.outgrown.fetch_add(1, Relaxed);
            self.lent.discard();
        }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("held_bytes", &self.held_bytes())
            .finish()
    }
}
