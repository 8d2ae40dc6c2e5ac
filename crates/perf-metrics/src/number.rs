//! The types of measurements.

use crate::descriptor::NumberKind;
use perf_atomics::slab::{CellHandle, CellRange, Cells};

/// A measurement: `u64`, `i64` or `f64`. Sealed.
pub trait Number:
    Copy + Send + Sync + PartialOrd + std::fmt::Debug + sealed::Sealed + 'static
{
    #[doc(hidden)]
    const KIND: NumberKind;
    #[doc(hidden)]
    fn add_to(self, cells: Cells<'_>, offset: usize);
    #[doc(hidden)]
    fn add_to_own(self, handle: CellHandle) -> bool;
    #[doc(hidden)]
    fn sum<const WIDE: bool>(range: &CellRange<WIDE>, offset: usize) -> Value;
    #[doc(hidden)]
    fn to_value(self) -> Value;
    #[doc(hidden)]
    fn to_bits64(self) -> u64;
    #[doc(hidden)]
    fn from_bits64(bits: u64) -> Self;
    #[doc(hidden)]
    fn plus(self, other: Self) -> Self;
    /// Whether a counter may grow by this: not negative and finite.
    #[doc(hidden)]
    fn is_growth(self) -> bool;
    /// Whether it spoils no sum: finite.
    #[doc(hidden)]
    fn is_countable(self) -> bool;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u64 {}
    impl Sealed for i64 {}
    impl Sealed for f64 {}
}

/// A number of an instrument's type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Of an instrument of `u64`.
    U64(u64),
    /// Of an instrument of `i64`.
    I64(i64),
    /// Of an instrument of `f64`.
    F64(f64),
}

impl Value {
    /// The number as `f64`; integers beyond `2^53` are rounded.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        match self {
            Self::U64(value) => value as f64,
            Self::I64(value) => value as f64,
            Self::F64(value) => value,
        }
    }

    pub(crate) fn is_zero(self) -> bool {
        self.as_f64() == 0.0
    }

    /// Both together, wrapping; of different types as floats.
    #[cfg(feature = "prometheus")]
    pub(crate) fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::U64(a), Self::U64(b)) => Self::U64(a.wrapping_add(b)),
            (Self::I64(a), Self::I64(b)) => Self::I64(a.wrapping_add(b)),
            (a, b) => Self::F64(a.as_f64() + b.as_f64()),
        }
    }

    /// The bits, to see whether it has changed.
    pub(crate) fn bits(self) -> u64 {
        match self {
            Self::U64(value) => value,
            Self::I64(value) => value as u64,
            Self::F64(value) => value.to_bits(),
        }
    }

    /// What it has grown by since `earlier`, which is of the same type.
    pub(crate) fn since(self, earlier: Self) -> Self {
        match (self, earlier) {
            (Self::U64(now), Self::U64(then)) => Self::U64(now.wrapping_sub(then)),
            (Self::I64(now), Self::I64(then)) => Self::I64(now.wrapping_sub(then)),
            // A sum that has overflown is infinite, and the difference of infinities is not a number.
            (Self::F64(now), Self::F64(then)) if now == then => Self::F64(0.0),
            (Self::F64(now), Self::F64(then)) => Self::F64(now - then),
            (now, _) => now,
        }
    }
}

macro_rules! integer {
    ($Type:ty, $Variant:ident, $is_growth:expr) => {
        impl Number for $Type {
            const KIND: NumberKind = NumberKind::$Variant;

            #[inline]
            fn add_to(self, cells: Cells<'_>, offset: usize) {
                cells.add(offset, self as u64);
            }

            #[inline]
            fn add_to_own(self, handle: CellHandle) -> bool {
                handle.add_own(self as u64)
            }

            fn sum<const WIDE: bool>(range: &CellRange<WIDE>, offset: usize) -> Value {
                Value::$Variant(range.sum(offset) as $Type)
            }

            fn to_value(self) -> Value {
                Value::$Variant(self)
            }

            fn to_bits64(self) -> u64 {
                self as u64
            }

            fn from_bits64(bits: u64) -> Self {
                bits as $Type
            }

            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline]
            fn is_growth(self) -> bool {
                let is_growth: fn($Type) -> bool = $is_growth;
                is_growth(self)
            }

            #[inline]
            fn is_countable(self) -> bool {
                true
            }
        }
    };
}

integer!(u64, U64, |_| true);
integer!(i64, I64, |value| value >= 0);

impl Number for f64 {
    const KIND: NumberKind = NumberKind::F64;

    #[inline]
    fn add_to(self, cells: Cells<'_>, offset: usize) {
        cells.add_f64(offset, self);
    }

    #[inline]
    fn add_to_own(self, handle: CellHandle) -> bool {
        handle.add_f64_own(self)
    }

    fn sum<const WIDE: bool>(range: &CellRange<WIDE>, offset: usize) -> Value {
        Value::F64(range.sum_f64(offset))
    }

    fn to_value(self) -> Value {
        Value::F64(self)
    }

    fn to_bits64(self) -> u64 {
        self.to_bits()
    }

    fn from_bits64(bits: u64) -> Self {
        Self::from_bits(bits)
    }

    fn plus(self, other: Self) -> Self {
        self + other
    }

    #[inline]
    fn is_growth(self) -> bool {
        (0.0..Self::INFINITY).contains(&self)
    }

    #[inline]
    fn is_countable(self) -> bool {
        self.is_finite()
    }
}
