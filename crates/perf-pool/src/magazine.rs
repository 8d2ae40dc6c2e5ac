//! The box a buffer lives in, and magazines of them.

use crate::class::{Tag, bytes_of};

/// A buffer, where it belongs, and the next one of its magazine.
///
/// Boxed so that lending moves one word. Moving the `Vec` itself costs three to four times as
/// much: its words are written one by one and read back two at a time, which defeats the
/// processor's store forwarding (the table in `docs/design/perf-pool.md`).
#[derive(Debug)]
pub(crate) struct BufferBox {
    pub(crate) vec: Vec<u8>,
    pub(crate) tag: Tag,
    /// The capacity that `vec` was made with.
    pub(crate) size: usize,
    pub(crate) next: Option<Box<BufferBox>>,
}

impl BufferBox {
    pub(crate) fn of_class(tag: Tag) -> Box<Self> {
        Self::holding(Vec::with_capacity(bytes_of(tag.class())), tag)
    }

    pub(crate) fn holding(vec: Vec<u8>, tag: Tag) -> Box<Self> {
        let size = vec.capacity();
        Box::new(Self {
            vec,
            tag,
            size,
            next: None,
        })
    }

    /// Whether the buffer is as large as its class says: users may grow, swap or take the `Vec`.
    #[inline]
    pub(crate) fn fits(&self) -> bool {
        self.vec.capacity() == self.size
    }

    /// Overwrites the whole capacity with zeros and sets the length to 0.
    pub(crate) fn wipe(&mut self) {
        zero_whole(&mut self.vec);
        self.vec.clear();
    }
}

/// Sets the length to the capacity and every byte to zero: a `memset`, and a barrier that keeps
/// the compiler from dropping it when the memory is freed next.
fn zero_whole(vec: &mut Vec<u8>) {
    vec.clear();
    vec.resize(vec.capacity(), 0);
    zeroize::optimization_barrier(vec.as_slice());
}

/// At least one boxed, linked. The unit of exchange between threads.
#[derive(Debug)]
pub(crate) struct Magazine {
    pub(crate) head: Box<BufferBox>,
    pub(crate) len: usize,
}

impl Magazine {
    pub(crate) fn single(boxed: Box<BufferBox>) -> Self {
        Self {
            head: boxed,
            len: 1,
        }
    }

    /// Takes the first boxed off; the rest is `None` when that was the last.
    pub(crate) fn split_first(mut self) -> (Box<BufferBox>, Option<Self>) {
        let rest = self.head.next.take();
        let len = self.len - 1;
        (self.head, rest.map(|head| Self { head, len }))
    }
}

#[cfg(test)]
mod tests {
    use super::{BufferBox, Magazine, zero_whole};
    use crate::class::Tag;

    #[test]
    fn wiping_leaves_no_byte_of_the_whole_capacity() {
        let mut boxed = BufferBox::of_class(Tag::new(0, 0).clearing(true));
        boxed.vec.resize(1024, 0xA5);
        boxed.vec.truncate(3);
        zero_whole(&mut boxed.vec);
        assert_eq!((boxed.vec.len(), boxed.vec.capacity()), (1024, 1024));
        assert!(boxed.vec.iter().all(|&byte| byte == 0));
        boxed.wipe();
        assert_eq!((boxed.vec.len(), boxed.vec.capacity()), (0, 1024));
    }

    #[test]
    fn a_magazine_gives_its_boxes_in_order() {
        let mut first = BufferBox::of_class(Tag::new(0, 0));
        first.next = Some(BufferBox::of_class(Tag::new(0, 1)));
        let (boxed, rest) = Magazine {
            head: first,
            len: 2,
        }
        .split_first();
        assert_eq!((boxed.tag.class(), boxed.next.is_none()), (0, true));
        let (boxed, rest) = rest.expect("two boxes").split_first();
        assert_eq!(boxed.tag.class(), 1);
        assert!(rest.is_none());
    }
}
