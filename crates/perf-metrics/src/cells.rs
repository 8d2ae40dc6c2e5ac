//! One series of a sum: the hot path of counters.

use crate::MetricsError;
use crate::number::{Number, Value};
use perf_atomics::slab::{self, CellHandle, CellRange};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// A cell that each thread adds to in a copy of its own, and its handle beside the reference that keeps it.
pub(crate) struct SumCell<T> {
    handle: CellHandle,
    range: Arc<CellRange>,
    _number: PhantomData<fn(T)>,
}

impl<T: Number> SumCell<T> {
    pub(crate) fn new(name: &str) -> Result<Self, MetricsError> {
        let range = slab::reserve(1).map_err(|source| MetricsError::NoCells {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self {
            handle: range.handle(),
            range: Arc::new(range),
            _number: PhantomData,
        })
    }

    pub(crate) fn detached() -> Self {
        let range = CellRange::detached();
        Self {
            handle: range.handle(),
            range: Arc::new(range),
            _number: PhantomData,
        }
    }

    #[inline]
    pub(crate) fn add(&self, amount: T) {
        amount.add_to_handle(self.handle);
    }

    pub(crate) fn sum(&self) -> Value {
        T::sum(&self.range, 0)
    }

    /// Whether there is another handle than this one.
    pub(crate) fn is_held(&self) -> bool {
        Arc::strong_count(&self.range) > 1
    }
}

impl<T> Clone for SumCell<T> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle,
            range: Arc::clone(&self.range),
            _number: PhantomData,
        }
    }
}

macro_rules! bound_sum {
    ($(#[$doc:meta])* $Bound:ident) => {
        $(#[$doc])*
        pub struct $Bound<T>(pub(crate) SumCell<T>);

        impl<T> Clone for $Bound<T> {
            fn clone(&self) -> Self {
                Self(self.0.clone())
            }
        }

        impl<T: Number> fmt::Debug for $Bound<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($Bound)).field(&self.0.sum()).finish()
            }
        }
    };
}

bound_sum! {
    /// One series of a counter: a fixed set of attributes.
    BoundCounter
}

bound_sum! {
    /// One series of an up-down counter: a fixed set of attributes.
    BoundUpDownCounter
}

impl BoundCounter<u64> {
    /// Adds one.
    #[inline]
    pub fn increment(&self) {
        self.0.add(1);
    }
}

impl<T: Number> BoundCounter<T> {
    /// Adds an amount. A negative or not finite amount is ignored: a counter only grows.
    #[inline]
    pub fn add(&self, amount: T) {
        if amount.is_growth() {
            self.0.add(amount);
        }
    }

    /// The total over all threads.
    #[must_use]
    pub fn get(&self) -> Value {
        self.0.sum()
    }
}

impl<T: Number> BoundUpDownCounter<T> {
    /// Adds an amount, which may be negative. Amounts that are not finite are ignored.
    #[inline]
    pub fn add(&self, amount: T) {
        if amount.is_countable() {
            self.0.add(amount);
        }
    }

    /// The total over all threads.
    #[must_use]
    pub fn get(&self) -> Value {
        self.0.sum()
    }
}
