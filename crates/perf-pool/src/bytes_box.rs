//! The box a retained frozen buffer lives in.

use crate::class::{Tag, bytes_of};
use bytes::BytesMut;

/// A `BytesMut` of which the pool keeps a handle while frozen parts of it are read elsewhere.
///
/// The handle is an empty view at the start of the memory: `bytes` then lends the whole again by setting one word,
/// where a view behind the written bytes would have to be moved back (5 ns, `docs/design/perf-pool.md`).
///
/// Boxed for the same reason as [`BufferBox`](crate::magazine::BufferBox).
#[derive(Debug)]
pub(crate) struct BytesBox {
    pub(crate) buf: BytesMut,
    pub(crate) tag: Tag,
    /// The capacity that the guard promises.
    pub(crate) size: usize,
}

impl BytesBox {
    pub(crate) fn of_class(tag: Tag) -> Box<Self> {
        let size = bytes_of(tag.class());
        Self::holding(BytesMut::with_capacity(size), size, tag)
    }

    pub(crate) fn holding(buf: BytesMut, size: usize, tag: Tag) -> Box<Self> {
        Box::new(Self { buf, tag, size })
    }

    /// Whether the whole buffer is free again. No frozen part of it lives then; allocates nothing. An idle buffer's
    /// length is 0.
    #[inline]
    pub(crate) fn try_reclaim(&mut self) -> bool {
        self.buf.try_reclaim(self.size)
    }

    /// Whether the buffer is the one that the class made, unsplit.
    #[inline]
    pub(crate) fn is_whole(&self) -> bool {
        self.buf.capacity() == self.size
    }

    /// Whether there is something to freeze in a buffer that the pool keeps, without a wipe.
    #[inline]
    pub(crate) fn is_ordinary(&self) -> bool {
        self.tag.is_plain() && self.is_whole() && !self.buf.is_empty()
    }

    /// Splits the written bytes off; the handle on the memory stays. Allocates only the first time (the
    /// reference count that `bytes` shares among the parts).
    #[inline]
    pub(crate) fn split_written(&mut self) -> BytesMut {
        self.buf.split_off(0)
    }

    /// Overwrites the whole capacity with zeros and sets the length to 0.
    pub(crate) fn wipe(&mut self) {
        zero_whole(&mut self.buf);
        self.buf.clear();
    }
}

/// Sets the length to the capacity and every byte to zero: a `memset`, and a barrier that keeps
/// the compiler from dropping it when the memory is freed next.
fn zero_whole(buf: &mut BytesMut) {
    buf.clear();
    buf.resize(buf.capacity(), 0);
    zeroize::optimization_barrier(&buf[..]);
}

#[cfg(test)]
mod tests {
    use super::{BytesBox, zero_whole};
    use crate::class::Tag;

    #[test]
    fn is_free_again_when_the_last_clone_is_dropped() {
        let mut boxed = BytesBox::of_class(Tag::new(0, 0));
        boxed.buf.resize(1024, 7);
        let address = boxed.buf.as_ptr();
        let frozen = boxed.split_written().freeze();
        let clone = frozen.slice(10..20);
        drop(frozen);
        assert!(!boxed.try_reclaim());
        drop(clone);
        assert!(boxed.try_reclaim());
        assert_eq!((boxed.buf.capacity(), boxed.buf.as_ptr()), (1024, address));
        assert!(boxed.buf.is_empty());
    }

    #[test]
    fn wiping_leaves_no_byte_of_the_whole_capacity() {
        let mut boxed = BytesBox::of_class(Tag::new(0, 0).clearing(true));
        boxed.buf.resize(1024, 0xA5);
        boxed.buf.truncate(3);
        zero_whole(&mut boxed.buf);
        assert_eq!((boxed.buf.len(), boxed.buf.capacity()), (1024, 1024));
        assert!(boxed.buf.iter().all(|&byte| byte == 0));
        boxed.wipe();
        assert_eq!((boxed.buf.len(), boxed.buf.capacity()), (0, 1024));
    }
}
