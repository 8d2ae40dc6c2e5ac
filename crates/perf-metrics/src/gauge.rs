//! The last value set, by whichever thread.

use crate::number::{Number, Value};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One series of a gauge: a fixed set of attributes.
pub struct BoundGauge<T> {
    state: Arc<State>,
    _number: PhantomData<fn(T)>,
}

/// A line of its own: a thread that sets it takes the line away from the others.
#[derive(Default)]
#[repr(align(64))]
struct State {
    bits: AtomicU64,
    is_set: AtomicBool,
    /// Set again since retention last looked, perhaps to the same value.
    is_touched: AtomicBool,
}

impl<T: Number> BoundGauge<T> {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            _number: PhantomData,
        }
    }

    /// Sets the value. Values that are not finite are kept as they are: a gauge is not summed.
    ///
    /// One plain store. When threads set at the same time, one of their values remains.
    #[inline]
    pub fn set(&self, value: T) {
        // Relaxed: the word stands for itself. Release and Acquire on the flag, so that who sees a gauge set
        // does not see the value it had before.
        self.state.bits.store(value.to_bits64(), Ordering::Relaxed);
        if !self.state.is_set.load(Ordering::Relaxed) {
            self.state.is_set.store(true, Ordering::Release);
        }
        // Relaxed: a hint for retention, which looks again later.
        self.state.is_touched.store(true, Ordering::Relaxed);
    }

    /// Whether it was set since the last call.
    pub(crate) fn take_touched(&self) -> bool {
        self.state.is_touched.swap(false, Ordering::Relaxed)
    }

    /// Whether there is another handle than this one.
    pub(crate) fn is_held(&self) -> bool {
        Arc::strong_count(&self.state) > 1
    }

    /// The same as [`set`](Self::set), under OpenTelemetry's name.
    #[inline]
    pub fn record(&self, value: T) {
        self.set(value);
    }

    /// Changes the value by an amount, by a read-modify-write that threads contend for: where this is hot, an
    /// up-down counter is the right instrument.
    pub fn add(&self, amount: T) {
        let change = |bits| Some(T::from_bits64(bits).plus(amount).to_bits64());
        // The closure always returns a value, so this cannot fail.
        let _ = self
            .state
            .bits
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        self.state.is_set.store(true, Ordering::Release);
        self.state.is_touched.store(true, Ordering::Relaxed);
    }

    /// The value; `None` if none was set.
    #[must_use]
    pub fn get(&self) -> Option<Value> {
        let is_set = self.state.is_set.load(Ordering::Acquire);
        is_set.then(|| T::from_bits64(self.state.bits.load(Ordering::Relaxed)).to_value())
    }
}

impl<T> Clone for BoundGauge<T> {
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            _number: PhantomData,
        }
    }
}

impl<T: Number> fmt::Debug for BoundGauge<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BoundGauge").field(&self.get()).finish()
    }
}
