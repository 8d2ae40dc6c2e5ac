//! The instruments: a series without attributes, and those of the attributes they meet.

use crate::attributes::KeyValue;
use crate::cells::{BoundCounter, BoundUpDownCounter};
use crate::gauge::BoundGauge;
use crate::histogram::{BoundHistogram, HistogramNumber};
use crate::number::Number;
use crate::series::{Core, SeriesCell};
use std::fmt;
use std::sync::Arc;

macro_rules! instrument {
    ($(#[$doc:meta])* $Instrument:ident, $Bound:ident, $Number:ident) => {
        $(#[$doc])*
        pub struct $Instrument<T: $Number = u64> {
            plain: $Bound<T>,
            core: Arc<Core<$Bound<T>>>,
        }

        impl<T: $Number> $Instrument<T> {
            pub(crate) fn from_parts(plain: $Bound<T>, core: Arc<Core<$Bound<T>>>) -> Self {
                Self { plain, core }
            }

            #[inline]
            fn series(&self, attributes: &[KeyValue]) -> &$Bound<T> {
                self.core.get(&self.plain, attributes)
            }

            /// The series of these attributes, to record to without looking for it each time. Once the limit of series is
            /// reached it is the overflow series.
            #[must_use]
            pub fn bind(&self, attributes: &[KeyValue]) -> $Bound<T> {
                self.series(attributes).clone()
            }

            /// The series without attributes.
            #[inline]
            #[must_use]
            pub fn plain(&self) -> &$Bound<T> {
                &self.plain
            }
        }

        impl<T: $Number> Clone for $Instrument<T> {
            fn clone(&self) -> Self {
                Self {
                    plain: self.plain.clone(),
                    core: Arc::clone(&self.core),
                }
            }
        }

        impl<T: $Number> fmt::Debug for $Instrument<T>
        where
            $Bound<T>: SeriesCell,
        {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($Instrument))
                    .field("name", &self.core.descriptor.name())
                    .finish_non_exhaustive()
            }
        }
    };
}

instrument! {
    /// A sum that only grows. Clones are the same counter.
    ///
    /// Adding without attributes is a plain load, add and store in a cell of this thread. Adding with attributes looks the series up first,
    /// without a lock; a set of attributes that is new takes a lock and allocates, until the limit of series is reached.
    ///
    /// ```
    /// use perf_metrics::{EMPTY_ATTRS, KeyValue, Registry};
    ///
    /// let counter = Registry::new().u64_counter("vm.operations").build()?;
    /// counter.add(1, EMPTY_ATTRS);
    /// counter.add(1, &[KeyValue::new("operation", "create")]);
    /// # Ok::<(), perf_metrics::MetricsError>(())
    /// ```
    Counter, BoundCounter, Number
}

instrument! {
    /// A sum that goes up and down: requests in flight. Clones are the same instrument.
    UpDownCounter, BoundUpDownCounter, Number
}

instrument! {
    /// The last value set: nodes in the cluster. Clones are the same gauge.
    Gauge, BoundGauge, Number
}

instrument! {
    /// A distribution: durations, sizes. Clones are the same histogram. See
    /// [`Buckets`](crate::Buckets) for how values are told apart, and [`BoundHistogram`] for what happens to values that are no numbers.
    Histogram, BoundHistogram, HistogramNumber
}

impl<T: Number> Counter<T> {
    /// Adds an amount. A negative or not finite amount is ignored: a counter only grows.
    #[inline]
    pub fn add(&self, amount: T, attributes: &[KeyValue]) {
        self.series(attributes).add(amount);
    }
}

impl<T: Number> UpDownCounter<T> {
    /// Adds an amount, which may be negative. Amounts that are not finite are ignored.
    #[inline]
    pub fn add(&self, amount: T, attributes: &[KeyValue]) {
        self.series(attributes).add(amount);
    }
}

impl<T: Number> Gauge<T> {
    /// Sets the value, under OpenTelemetry's name.
    #[inline]
    pub fn record(&self, value: T, attributes: &[KeyValue]) {
        self.series(attributes).set(value);
    }

    /// Sets the value.
    #[inline]
    pub fn set(&self, value: T, attributes: &[KeyValue]) {
        self.series(attributes).set(value);
    }

    /// Changes the value by an amount; see [`BoundGauge::add`] for what it costs.
    pub fn add(&self, amount: T, attributes: &[KeyValue]) {
        self.series(attributes).add(amount);
    }
}

impl<T: HistogramNumber> Histogram<T> {
    /// Records a value.
    #[inline]
    pub fn record(&self, value: T, attributes: &[KeyValue]) {
        self.series(attributes).record(value);
    }
}
