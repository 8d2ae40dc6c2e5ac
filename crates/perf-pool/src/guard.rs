//! A lent buffer.

use crate::bytes_guard::BytesGuard;
use crate::class::CLASS_BYTES_MIN;
use crate::core::Core;
use crate::error::PoolError;
use crate::hot;
use crate::lend;
use crate::local;
use crate::magazine::BufferBox;
use bytes::Bytes;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

/// Up to this many bytes a frozen payload is copied into a retained buffer, which allocates nothing: 30 ns for 64 bytes. Sharing
/// the `Vec` costs one small allocation, but no copy: 45 ns (`docs/design/perf-pool.md`). Beyond 1 KiB the copy would
/// outgrow the allocation.
const FREEZE_COPY_BYTES_MAX: usize = CLASS_BYTES_MIN;

/// A buffer lent by a pool: a `Vec<u8>`, empty at first, that goes back when the guard is dropped.
///
/// It may be grown, swapped or taken like any `Vec`. Only a buffer that comes back with the capacity of its
/// class is kept; any other is freed and no longer counts against the budget.
///
/// `bytes::BufMut` is an unsafe trait, so the guard cannot implement it; the `Vec` does: pass `guard.get_mut()`
/// wherever a `BufMut` is wanted (prost's `encode`, for example).
///
/// The guard is one word. Lending and returning on one thread is about 5 ns, without locks, allocations or atomic
/// read-modify-writes; it may be dropped on any thread, at any time, also while its thread ends or after its pool is gone.
///
/// ```
/// use perf_pool::BufferGuard;
///
/// let mut buffer = BufferGuard::new(4096);
/// assert!(buffer.get().is_empty() && buffer.get().capacity() >= 4096);
/// buffer.get_mut().extend_from_slice(b"state");
/// assert_eq!(&buffer[..], b"state");
/// ```
pub struct BufferGuard {
    /// `None` only while the guard is being taken apart. `ManuallyDrop` because `drop` always takes it out: the
    /// compiler's own drop of the field would be two calls per guard for nothing.
    boxed: ManuallyDrop<Option<Box<BufferBox>>>,
}

static EMPTY: Vec<u8> = Vec::new();

impl BufferGuard {
    /// Lends a buffer of the global pool with room for `size_hint` bytes and length 0. Never fails: see
    /// [`BufferPool::get`](crate::BufferPool::get).
    #[inline]
    #[must_use]
    pub fn new(size_hint: usize) -> Self {
        Self::holding(lend::buffer_global(size_hint))
    }

    /// Like [`BufferGuard::new`], but refuses what is above the cap.
    ///
    /// # Errors
    /// As [`BufferPool::try_get`](crate::BufferPool::try_get).
    #[inline]
    pub fn try_new(size_hint: usize) -> Result<Self, PoolError> {
        lend::try_buffer(Core::global(), size_hint).map(Self::holding)
    }

    #[inline]
    pub(crate) fn holding(boxed: Box<BufferBox>) -> Self {
        Self {
            boxed: ManuallyDrop::new(Some(boxed)),
        }
    }

    /// The buffer.
    #[inline]
    #[must_use]
    pub fn get(&self) -> &Vec<u8> {
        match &*self.boxed {
            Some(boxed) => &boxed.vec,
            None => &EMPTY,
        }
    }

    /// The buffer, to do anything with that a `Vec` allows.
    #[inline]
    #[must_use]
    pub fn get_mut(&mut self) -> &mut Vec<u8> {
        let boxed = self.boxed.as_mut();
        &mut boxed
            .expect("a guard holds its buffer until it is consumed")
            .vec
    }

    /// Takes the buffer out of the pool for good; its budget charge is released. `clear_on_return` does not reach it.
    #[must_use]
    pub fn detach(mut self) -> Vec<u8> {
        let Some(boxed) = self.boxed.take() else {
            return Vec::new();
        };
        if !boxed.tag.is_unpooled()
            && let Some(core) = local::core_of(boxed.tag)
        {
            core.discard(&core.classes[boxed.tag.class()]);
        }
        boxed.vec
    }

    /// Turns the written bytes into shared, immutable ones. An empty buffer goes straight back.
    ///
    /// Up to 1 KiB they are copied into a retained buffer of the pool (see [`BytesGuard`](crate::BytesGuard)), and this one goes
    /// straight back: no allocation. Larger ones, and all of a pool with `clear_on_return`, are not copied:
    /// the buffer itself comes back (on the thread that drops the last clone), for one small allocation by `bytes`.
    /// To freeze large payloads without any, write into a [`BytesGuard`](crate::BytesGuard).
    #[must_use]
    pub fn freeze(self) -> Bytes {
        // The result is made last and in one place: carried across the return, its words would be written one by one
        // and read back two at a time (see `BufferBox`).
        match self.copy_small() {
            Some(copy) => {
                drop(self);
                copy.freeze()
            }
            None => self.freeze_owned(),
        }
    }

    /// A retained buffer with the written bytes, if they are few and the pool keeps such buffers.
    #[inline]
    fn copy_small(&self) -> Option<BytesGuard> {
        let boxed = self.boxed.as_ref()?;
        let is_small = (1..=FREEZE_COPY_BYTES_MAX).contains(&boxed.vec.len());
        if !is_small || !boxed.tag.is_plain() {
            return None;
        }
        let mut copy = BytesGuard::holding(lend::bytes_smallest(boxed.tag)?);
        copy.put_slice(&boxed.vec).ok()?;
        Some(copy)
    }

    #[inline(never)]
    fn freeze_owned(self) -> Bytes {
        if self.is_empty() {
            return Bytes::new();
        }
        Bytes::from_owner(self)
    }
}

impl Drop for BufferGuard {
    #[inline]
    fn drop(&mut self) {
        if let Some(boxed) = self.boxed.take()
            && let Some(boxed) = hot::put(boxed)
        {
            return_slow(boxed);
        }
    }
}

/// A return that the hot path could not finish.
#[cold]
#[inline(never)]
fn return_slow(mut boxed: Box<BufferBox>) {
    let tag = boxed.tag;
    if tag.is_clearing() {
        boxed.wipe();
    }
    // Not pooled: nothing was charged, the memory is freed here.
    if tag.is_unpooled() {
        return;
    }
    // The pool is gone: its budget with it.
    let Some(core) = local::core_of(tag) else {
        return;
    };
    let class = &core.classes[tag.class()];
    if boxed.fits() {
        boxed.vec.clear();
        local::keep(&core, class, boxed);
    } else {
        core.discard(class);
    }
}

impl Deref for BufferGuard {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.get()
    }
}

impl DerefMut for BufferGuard {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.get_mut()
    }
}

impl AsRef<[u8]> for BufferGuard {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self.get()
    }
}

impl AsMut<[u8]> for BufferGuard {
    #[inline]
    fn as_mut(&mut self) -> &mut [u8] {
        self.get_mut()
    }
}

impl From<BufferGuard> for Bytes {
    fn from(guard: BufferGuard) -> Self {
        guard.freeze()
    }
}

impl Extend<u8> for BufferGuard {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        self.get_mut().extend(bytes);
    }
}

impl io::Write for BufferGuard {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.get_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.get_mut().extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lengths only: a buffer may hold secrets.
impl fmt::Debug for BufferGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferGuard")
            .field("len", &self.get().len())
            .field("capacity", &self.get().capacity())
            .finish()
    }
}
