//! A lent buffer of fixed capacity that freezes for free.

use crate::bytes_box::BytesBox;
use crate::class::Tag;
use crate::error::PoolError;
use crate::lend;
use crate::local;
use bytes::{BufMut, Bytes};
use std::fmt;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::ops::{Deref, DerefMut};

/// A buffer lent by a pool for bytes that will be shared: freezing it neither copies nor allocates, at any size.
///
/// The pool keeps a handle on the memory and lends it again once the last clone of the frozen
/// bytes is gone (it looks when the next buffer of this class is asked for). The capacity is fixed, so that the pool's
/// budget holds: a write that does not fit is refused.
///
/// In a pool with `clear_on_return` the memory is zeroed when the last clone is dropped, which costs one small
/// allocation per freeze.
///
/// ```
/// use perf_pool::BytesGuard;
///
/// let mut buffer = BytesGuard::try_new(100_000)?;
/// buffer.put_slice(&[7; 100_000])?;
/// let frozen = buffer.freeze();
/// assert_eq!(frozen.len(), 100_000);
/// # Ok::<(), perf_pool::PoolError>(())
/// ```
pub struct BytesGuard {
    /// `None` only while the guard is being taken apart. `ManuallyDrop` because `drop` always takes it out.
    boxed: ManuallyDrop<Option<Box<BytesBox>>>,
}

impl BytesGuard {
    /// Lends a buffer of the global pool with room for at least `size_hint` bytes.
    ///
    /// # Errors
    /// As [`BufferPool::try_get_bytes`](crate::BufferPool::try_get_bytes).
    #[inline]
    pub fn try_new(size_hint: usize) -> Result<Self, PoolError> {
        lend::bytes_global(size_hint).map(Self::holding)
    }

    #[inline]
    pub(crate) fn holding(boxed: Box<BytesBox>) -> Self {
        Self {
            boxed: ManuallyDrop::new(Some(boxed)),
        }
    }

    #[inline]
    fn boxed_mut(&mut self) -> &mut BytesBox {
        let boxed = self.boxed.as_mut();
        boxed.expect("a guard holds its buffer until it is consumed")
    }

    /// How many bytes fit in all.
    #[inline]
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.boxed.as_ref().map_or(0, |boxed| boxed.size)
    }

    /// How many more bytes fit.
    #[inline]
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.capacity().saturating_sub(self.len())
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`PoolError::BufferFull`] if they do not fit; nothing is written then.
    #[inline]
    pub fn put_slice(&mut self, bytes: &[u8]) -> Result<(), PoolError> {
        let remaining_bytes = self.remaining();
        if bytes.len() > remaining_bytes {
            return Err(PoolError::BufferFull {
                requested_bytes: bytes.len(),
                remaining_bytes,
            });
        }
        self.boxed_mut().buf.extend_from_slice(bytes);
        Ok(())
    }

    /// The rest of the buffer as a [`BufMut`], for encoders such as prost's.
    #[inline]
    pub fn buf_mut(&mut self) -> impl BufMut + '_ {
        let remaining = self.remaining();
        (&mut self.boxed_mut().buf).limit(remaining)
    }

    /// Forgets what was written.
    pub fn clear(&mut self) {
        self.boxed_mut().buf.clear();
    }

    /// Turns the written bytes into shared, immutable ones without copying them.
    #[inline]
    #[must_use]
    pub fn freeze(mut self) -> Bytes {
        let boxed = self.boxed.take();
        // Nothing is left to drop: spares a call.
        mem::forget(self);
        match boxed {
            Some(mut boxed) if boxed.is_ordinary() => {
                let written = boxed.split_written();
                local::keep_bytes(boxed, true);
                written.freeze()
            }
            Some(boxed) => Self::holding(boxed).freeze_slow(),
            None => Bytes::new(),
        }
    }

    /// What is empty, not pooled, to be cleared or reallocated.
    #[cold]
    #[inline(never)]
    fn freeze_slow(mut self) -> Bytes {
        if self.is_empty() {
            return Bytes::new();
        }
        if matches!(&*self.boxed, Some(boxed) if boxed.tag.is_clearing()) {
            return Bytes::from_owner(self);
        }
        let Some(boxed) = self.boxed.take() else {
            return Bytes::new();
        };
        if !boxed.tag.is_unpooled() {
            discard(boxed.tag);
        }
        boxed.buf.freeze()
    }
}

/// Lets go of a buffer that was reallocated: `BufMut::chunk_mut` grows a full `BytesMut`.
#[cold]
fn discard(tag: Tag) {
    if let Some(core) = local::core_of(tag) {
        core.discard(&core.classes[tag.class()]);
    }
}

impl Drop for BytesGuard {
    fn drop(&mut self) {
        let Some(mut boxed) = self.boxed.take() else {
            return;
        };
        if boxed.tag.is_clearing() {
            boxed.wipe();
        }
        if boxed.tag.is_unpooled() {
            return;
        }
        boxed.buf.clear();
        if boxed.is_whole() {
            local::keep_bytes(boxed, false);
        } else {
            discard(boxed.tag);
        }
    }
}

impl Deref for BytesGuard {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.boxed.as_ref().map_or(&[], |boxed| &boxed.buf)
    }
}

impl DerefMut for BytesGuard {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.boxed_mut().buf
    }
}

impl AsRef<[u8]> for BytesGuard {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<BytesGuard> for Bytes {
    fn from(guard: BytesGuard) -> Self {
        guard.freeze()
    }
}

/// Writes what fits; at the end of the buffer `write` returns 0 and `write_all` fails with `WriteZero`.
impl io::Write for BytesGuard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fitting = &bytes[..bytes.len().min(self.remaining())];
        self.boxed_mut().buf.extend_from_slice(fitting);
        Ok(fitting.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lengths only: a buffer may hold secrets.
impl fmt::Debug for BytesGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BytesGuard")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .finish()
    }
}
