//! A lent buffer.

use crate::error::PoolError;
use crate::hot;
use crate::local;
use crate::node::Node;
use crate::pool::{BufferPool, buffer_pool, lend_bytes};
use bytes::Bytes;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

/// Up to this many bytes a frozen payload is copied into a retained buffer, which allocates nothing. Sharing the
/// `Vec` costs one small allocation, but no copy: 45 ns against 51 to 56 for 64 bytes (`docs/design/perf-pool.md`). Beyond
/// 1 KiB the copy would outgrow the allocation by far.
const FREEZE_COPY_BYTES_MAX: usize = 1024;

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
    node: ManuallyDrop<Option<Box<Node>>>,
}

static EMPTY: Vec<u8> = Vec::new();

impl BufferGuard {
    /// Lends a buffer of the global pool with room for `size_hint` bytes and length 0. Never fails: see
    /// [`BufferPool::get`].
    #[inline]
    #[must_use]
    pub fn new(size_hint: usize) -> Self {
        BufferPool::get_global(size_hint)
    }

    /// Like [`BufferGuard::new`], but refuses what is above the cap.
    ///
    /// # Errors
    /// As [`BufferPool::try_get`].
    #[inline]
    pub fn try_new(size_hint: usize) -> Result<Self, PoolError> {
        buffer_pool().try_get(size_hint)
    }

    #[inline]
    pub(crate) fn holding(node: Box<Node>) -> Self {
        Self {
            node: ManuallyDrop::new(Some(node)),
        }
    }

    /// The buffer.
    #[inline]
    #[must_use]
    pub fn get(&self) -> &Vec<u8> {
        match &*self.node {
            Some(node) => &node.vec,
            None => &EMPTY,
        }
    }

    /// The buffer, to do anything with that a `Vec` allows.
    #[inline]
    #[must_use]
    pub fn get_mut(&mut self) -> &mut Vec<u8> {
        let node = self.node.as_mut();
        &mut node
            .expect("a guard holds its buffer until it is consumed")
            .vec
    }

    /// Takes the buffer out of the pool for good; its budget charge is released. `clear_on_return` does not reach it.
    #[must_use]
    pub fn detach(mut self) -> Vec<u8> {
        let Some(node) = self.node.take() else {
            return Vec::new();
        };
        if !node.tag.is_unpooled()
            && let Some(core) = local::core_of(node.tag)
        {
            core.discard(&core.classes[node.tag.class()]);
        }
        node.vec
    }

    /// Turns the written bytes into shared, immutable ones. An empty buffer goes straight back.
    ///
    /// Up to 1 KiB they are copied into a retained buffer of the pool (see [`BytesGuard`](crate::BytesGuard)), and this one goes
    /// straight back: no allocation. Larger ones, and all of a pool with `clear_on_return`, are not copied:
    /// the buffer itself comes back (on the thread that drops the last clone), for one small allocation by `bytes`.
    /// To freeze large payloads without any, write into a [`BytesGuard`](crate::BytesGuard).
    #[must_use]
    pub fn freeze(self) -> Bytes {
        let Some(node) = &*self.node else {
            return Bytes::new();
        };
        let len = node.vec.len();
        if len == 0 {
            return Bytes::new();
        }
        if len <= FREEZE_COPY_BYTES_MAX
            && !node.tag.is_clearing()
            && !node.tag.is_unpooled()
            && let Some(frozen) = self.freeze_copy()
        {
            return frozen;
        }
        Bytes::from_owner(self)
    }

    fn freeze_copy(&self) -> Option<Bytes> {
        let node = self.node.as_ref()?;
        let len = node.vec.len();
        let mut copy = if node.tag.pool_id() == 0 {
            lend_bytes(buffer_pool().core(), len).ok()?
        } else {
            lend_bytes(&local::core_of(node.tag)?, len).ok()?
        };
        copy.put_slice(&node.vec).ok()?;
        Some(copy.freeze())
    }
}

impl Drop for BufferGuard {
    #[inline]
    fn drop(&mut self) {
        if let Some(node) = self.node.take()
            && let Some(node) = hot::put(node)
        {
            return_slow(node);
        }
    }
}

/// A return that the hot path could not finish.
#[cold]
#[inline(never)]
fn return_slow(mut node: Box<Node>) {
    let tag = node.tag;
    if tag.is_clearing() {
        node.wipe();
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
    if node.fits() {
        node.vec.clear();
        local::keep(&core, class, node);
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
