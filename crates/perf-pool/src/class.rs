//! Size classes and the tag that says where a buffer belongs.

/// The smallest class: below it a pool saves nothing over the allocator's own thread cache.
pub const CLASS_BYTES_MIN: usize = 1 << CLASS_SHIFT_MIN;

/// The largest class. Larger requests are served unpooled.
pub const CLASS_BYTES_MAX: usize = 1 << 20;

/// How many classes there are: the powers of two from [`CLASS_BYTES_MIN`] to [`CLASS_BYTES_MAX`].
pub const CLASSES: usize = 11;

/// The largest alignment of an aligned buffer.
pub(crate) const ALIGN_MAX: usize = 1 << 20;

const CLASS_SHIFT_MIN: usize = 10;

/// Pools that have a thread tier on one thread at the same time: the global one and three others.
pub(crate) const POOL_SLOTS: usize = 4;

/// Slots in each thread's tier: sixteen for each pool, so that an index is a mask of the tag.
pub(crate) const SLOTS: usize = POOL_SLOTS * 16;

const _: () = assert!(CLASS_BYTES_MIN << (CLASSES - 1) == CLASS_BYTES_MAX);

/// The bytes of a buffer of class `class`.
#[inline]
pub(crate) const fn bytes_of(class: usize) -> usize {
    CLASS_BYTES_MIN << class
}

/// The smallest class that holds `size_hint` bytes. The caller has checked that one does.
#[inline]
pub(crate) const fn class_of(size_hint: usize) -> usize {
    let last = if size_hint <= CLASS_BYTES_MIN {
        CLASS_BYTES_MIN - 1
    } else {
        size_hint - 1
    };
    (usize::BITS - last.leading_zeros()) as usize - CLASS_SHIFT_MIN
}

/// Where a buffer belongs: bits 0..4 class, 4..6 the pool's slot in a thread's tier, 6 "not
/// pooled", 7 "clear on return", 8.. the pool's id.
///
/// One comparison with a slot's tag checks pool and class at once. A slot's tag never has bit 6 or
/// 7, so a buffer that has either takes the slow path without a branch of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag(u64);

impl Tag {
    /// Matches no buffer.
    pub(crate) const NONE: Self = Self(u64::MAX);
    const UNPOOLED: u64 = 1 << 6;
    const CLEAR: u64 = 1 << 7;

    /// The tag of a class of a pool. Ids grow from 0 (the global pool) and are never used twice.
    pub(crate) const fn new(pool_id: u64, class: usize) -> Self {
        Self((pool_id << 8) | ((Self::slot_of(pool_id) as u64) << 4) | class as u64)
    }

    const fn slot_of(pool_id: u64) -> usize {
        if pool_id == 0 {
            0
        } else {
            1 + ((pool_id - 1) % (POOL_SLOTS as u64 - 1)) as usize
        }
    }

    pub(crate) const fn unpooled(self) -> Self {
        Self(self.0 | Self::UNPOOLED)
    }

    pub(crate) const fn clearing(self, clear: bool) -> Self {
        Self(if clear { self.0 | Self::CLEAR } else { self.0 })
    }

    pub(crate) const fn is_unpooled(self) -> bool {
        self.0 & Self::UNPOOLED != 0
    }

    pub(crate) const fn is_clearing(self) -> bool {
        self.0 & Self::CLEAR != 0
    }

    /// Neither unpooled nor to be cleared.
    pub(crate) const fn is_plain(self) -> bool {
        self.0 & (Self::UNPOOLED | Self::CLEAR) == 0
    }

    pub(crate) const fn pool_id(self) -> u64 {
        self.0 >> 8
    }

    pub(crate) const fn pool_slot(self) -> usize {
        (self.0 as usize >> 4) & (POOL_SLOTS - 1)
    }

    pub(crate) const fn class(self) -> usize {
        self.0 as usize & 15
    }

    /// The same pool's smallest class.
    pub(crate) const fn smallest(self) -> Self {
        Self(self.0 & !15)
    }

    /// The index of the slot that may hold this buffer.
    #[inline]
    pub(crate) const fn index(self) -> usize {
        self.0 as usize & (SLOTS - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::{CLASS_BYTES_MAX, CLASSES, Tag, bytes_of, class_of};

    #[test]
    fn a_class_holds_its_hint_and_the_class_below_does_not() {
        for hint in (0..=CLASS_BYTES_MAX)
            .step_by(61)
            .chain([1, 1024, 1025, CLASS_BYTES_MAX])
        {
            let class = class_of(hint);
            assert!(class < CLASSES);
            assert!(bytes_of(class) >= hint);
            assert!(class == 0 || bytes_of(class - 1) < hint);
        }
    }

    #[test]
    fn tags_keep_their_parts() {
        for id in [0, 1, 2, 3, 4, 5, u64::MAX >> 9] {
            let tag = Tag::new(id, 10).clearing(true);
            assert_eq!((tag.pool_id(), tag.class()), (id, 10));
            assert!(tag.is_clearing() && !tag.is_unpooled() && tag.unpooled().is_unpooled());
            assert_eq!(tag.index(), tag.pool_slot() * 16 + 10);
            assert_eq!(tag.pool_slot() == 0, id == 0);
            assert_eq!(Tag::new(id, 10).smallest(), Tag::new(id, 0));
            assert!(tag.smallest().is_clearing() && !tag.is_plain());
        }
    }
}
