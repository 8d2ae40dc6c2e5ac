//! How a small value travels through atomic words.
//!
//! Safe Rust cannot view a struct as bytes, so a value says itself how it becomes `u64` words and
//! back. After inlining nothing is left of the conversion but moves.

use crate::primitive::{AtomicU64, Ordering};

/// A small `Copy` value that a [`Snapshot`](crate::Snapshot) can hold.
///
/// [`snapshot_value!`](crate::snapshot_value) implements it for a struct; it is implemented for
/// `[u64; 1]` to `[u64; 16]` and for the types that are a [`Word`].
///
/// `from_words(to_words(v))` must be `v`.
pub trait Words: Copy {
    /// The words: `[u64; N]` with N from 1 to 16.
    type Array: WordArray;

    /// The value as words.
    fn to_words(self) -> Self::Array;

    /// The value that [`to_words`](Self::to_words) turned into these words.
    fn from_words(words: Self::Array) -> Self;
}

/// A value that fits in one word: integers up to 64 bits, floats, `bool`, or a user's own enum.
pub trait Word: Copy {
    /// The value as a word.
    fn to_word(self) -> u64;

    /// The value that [`to_word`](Self::to_word) turned into this word.
    fn from_word(word: u64) -> Self;
}

/// `[u64; 1]` to `[u64; 16]`.
pub trait WordArray: Copy + sealed::Sealed {}

mod sealed {
    use super::{AtomicU64, Ordering};

    pub trait Sealed: Sized {
        type Cells: Send + Sync;

        fn new_cells() -> Self::Cells;
        fn load(cells: &Self::Cells) -> Self;
        fn store(self, cells: &Self::Cells);
    }

    impl<const N: usize> Sealed for [u64; N] {
        type Cells = [AtomicU64; N];

        fn new_cells() -> Self::Cells {
            std::array::from_fn(|_| AtomicU64::new(0))
        }

        #[inline]
        fn load(cells: &Self::Cells) -> Self {
            std::array::from_fn(|i| cells[i].load(Ordering::Relaxed))
        }

        #[inline]
        fn store(self, cells: &Self::Cells) {
            for (cell, word) in cells.iter().zip(self) {
                cell.store(word, Ordering::Relaxed);
            }
        }
    }
}

pub(crate) use sealed::Sealed as Cells;

macro_rules! word_arrays {
    ($($len:literal)+) => {$(
        impl WordArray for [u64; $len] {}

        impl Words for [u64; $len] {
            type Array = Self;

            #[inline]
            fn to_words(self) -> Self {
                self
            }

            #[inline]
            fn from_words(words: Self) -> Self {
                words
            }
        }
    )+};
}

word_arrays!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);

impl<T: Word> Words for T {
    type Array = [u64; 1];

    #[inline]
    fn to_words(self) -> [u64; 1] {
        [self.to_word()]
    }

    #[inline]
    fn from_words([word]: [u64; 1]) -> Self {
        Self::from_word(word)
    }
}

macro_rules! integer_words {
    ($($unsigned:ty, $signed:ty;)+) => {$(
        impl Word for $unsigned {
            #[inline]
            fn to_word(self) -> u64 {
                self as u64
            }

            #[inline]
            fn from_word(word: u64) -> Self {
                word as $unsigned
            }
        }

        impl Word for $signed {
            #[inline]
            fn to_word(self) -> u64 {
                self as $unsigned as u64
            }

            #[inline]
            fn from_word(word: u64) -> Self {
                word as $unsigned as $signed
            }
        }
    )+};
}

integer_words! {
    u8, i8;
    u16, i16;
    u32, i32;
    u64, i64;
    usize, isize;
}

impl Word for bool {
    #[inline]
    fn to_word(self) -> u64 {
        u64::from(self)
    }

    #[inline]
    fn from_word(word: u64) -> Self {
        word != 0
    }
}

impl Word for f64 {
    #[inline]
    fn to_word(self) -> u64 {
        self.to_bits()
    }

    #[inline]
    fn from_word(word: u64) -> Self {
        Self::from_bits(word)
    }
}

impl Word for f32 {
    #[inline]
    fn to_word(self) -> u64 {
        u64::from(self.to_bits())
    }

    #[inline]
    fn from_word(word: u64) -> Self {
        Self::from_bits(word as u32)
    }
}

/// Declares a `Copy` struct of up to 16 [`Word`] fields that a [`Snapshot`](crate::Snapshot) can hold.
///
/// ```
/// use perf_atomics::Snapshot;
///
/// perf_atomics::snapshot_value! {
///     /// Load of a node.
///     #[derive(Debug, PartialEq)]
///     pub struct Load {
///         /// Share of the CPUs in use, 0 to 1.
///         pub cpu: f64,
///         /// Memory in use, in MiB.
///         pub memory_mib: u64,
///         /// Whether the node takes new VMs.
///         pub is_open: bool,
///     }
/// }
///
/// let load = Snapshot::new(Load { cpu: 0.5, memory_mib: 2048, is_open: true });
/// load.update(|load| load.cpu = 0.75);
/// assert_eq!(load.read(), Load { cpu: 0.75, memory_mib: 2048, is_open: true });
/// ```
#[macro_export]
macro_rules! snapshot_value {
    (
        $(#[$meta:meta])*
        $vis:vis struct $Value:ident {
            $($(#[$field_meta:meta])* $field_vis:vis $field:ident : $Field:ty),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        $vis struct $Value {
            $($(#[$field_meta])* $field_vis $field: $Field,)+
        }

        impl $crate::Words for $Value {
            type Array = [u64; [$(stringify!($field)),+].len()];

            #[inline]
            fn to_words(self) -> Self::Array {
                [$($crate::Word::to_word(self.$field)),+]
            }

            #[inline]
            fn from_words([$($field),+]: Self::Array) -> Self {
                Self { $($field: $crate::Word::from_word($field)),+ }
            }
        }
    };
}
