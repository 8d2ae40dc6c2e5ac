//! One series of a sum: the hot path of counters.

use crate::MetricsError;
use crate::exemplar::{Exemplar, ExemplarSource, Exemplars};
use crate::number::{Number, Value};
use perf_atomics::slab::{self, CellHandle, CellRange};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// A cell that each thread adds to in a copy of its own, and its handle beside the reference that keeps it.
pub(crate) struct SumCell<T> {
    /// Of no cell if there are exemplars, so that every record takes the slow way.
    handle: CellHandle,
    shared: Arc<Shared>,
    _number: PhantomData<fn(T)>,
}

#[derive(Debug)]
struct Shared {
    range: CellRange,
    /// Boxed, as most series have none.
    exemplars: Option<Box<Exemplars>>,
}

/// What all series of a sum share. Keeps a private type out of a public trait's signature.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct SumSpec(pub(crate) Option<ExemplarSource>);

impl<T: Number> SumCell<T> {
    pub(crate) fn new(name: &str, spec: &SumSpec) -> Result<Self, MetricsError> {
        let range = slab::reserve(1).map_err(|source| MetricsError::NoCells {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self::of(range, spec.0.as_ref()))
    }

    pub(crate) fn detached() -> Self {
        Self::of(CellRange::detached(), None)
    }

    fn of(range: CellRange, source: Option<&ExemplarSource>) -> Self {
        let handle = match source {
            Some(_) => CellRange::detached().handle(),
            None => range.handle(),
        };
        let exemplars = source.map(|source| Box::new(Exemplars::new(source, 1)));
        Self {
            handle,
            shared: Arc::new(Shared { range, exemplars }),
            _number: PhantomData,
        }
    }

    #[inline]
    pub(crate) fn add(&self, amount: T) {
        if !amount.add_to_own(self.handle) {
            self.add_slow(amount);
        }
    }

    /// The first record of a thread, and every record of a series with exemplars.
    #[cold]
    #[inline(never)]
    fn add_slow(&self, amount: T) {
        if let Some(exemplars) = &self.shared.exemplars {
            exemplars.offer(0, amount);
        }
        self.shared.range.record(|cells| amount.add_to(cells, 0));
    }

    pub(crate) fn sum(&self) -> Value {
        T::sum(&self.shared.range, 0)
    }

    pub(crate) fn read_exemplars(&self, out: &mut Vec<Exemplar>) {
        if let Some(exemplars) = &self.shared.exemplars {
            exemplars.read::<T>(out);
        }
    }

    /// Whether there is another handle than this one.
    pub(crate) fn is_held(&self) -> bool {
        Arc::strong_count(&self.shared) > 1
    }
}

impl<T> Clone for SumCell<T> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle,
            shared: Arc::clone(&self.shared),
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
