//! The box a retained frozen buffer lives in.

use crate::class::{Tag, bytes_of};
use bytes::{Bytes, BytesMut};

/// A `BytesMut` of which the pool keeps a handle while frozen parts of it are read elsewhere.
///
/// Boxed for the same reason as [`Node`](crate::node::Node).
#[derive(Debug)]
pub(crate) struct BytesNode {
    pub(crate) buf: BytesMut,
    pub(crate) tag: Tag,
    /// The capacity that the guard promises.
    pub(crate) size: usize,
}

impl BytesNode {
    pub(crate) fn of_class(tag: Tag) -> Box<Self> {
        let size = bytes_of(tag.class());
        Self::holding(BytesMut::with_capacity(size), size, tag)
    }

    pub(crate) fn holding(buf: BytesMut, size: usize, tag: Tag) -> Box<Self> {
        Box::new(Self { buf, tag, size })
    }

    /// Whether the whole buffer is free again. No frozen part of it lives then; allocates nothing.
    #[inline]
    pub(crate) fn try_reclaim(&mut self) -> bool {
        self.buf.clear();
        self.buf.try_reclaim(self.size)
    }

    /// Whether the buffer is the one that the class made, unsplit.
    #[inline]
    pub(crate) fn is_whole(&self) -> bool {
        self.buf.capacity() == self.size
    }

    /// Splits the written bytes off; the handle on the memory stays. Allocates only the first time (the
    /// reference count that `bytes` shares among the parts).
    #[inline]
    pub(crate) fn split_frozen(&mut self) -> Bytes {
        self.buf.split().freeze()
    }

    /// Overwrites the whole capacity with zeros and sets the length to 0.
    pub(crate) fn wipe(&mut self) {
        self.buf.clear();
        self.buf.resize(self.buf.capacity(), 0);
        zeroize::optimization_barrier(&self.buf[..]);
        self.buf.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::BytesNode;
    use crate::class::Tag;

    #[test]
    fn is_free_again_when_the_last_clone_is_dropped() {
        let mut node = BytesNode::of_class(Tag::new(0, 0));
        node.buf.resize(1024, 7);
        let address = node.buf.as_ptr();
        let frozen = node.split_frozen();
        let clone = frozen.slice(10..20);
        drop(frozen);
        assert!(!node.try_reclaim());
        drop(clone);
        assert!(node.try_reclaim());
        assert_eq!((node.buf.capacity(), node.buf.as_ptr()), (1024, address));
    }
}
