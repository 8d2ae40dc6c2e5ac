//! The instruments: a series without attributes, and those of the attributes they meet.

use crate::attributes::KeyValue;
use crate::cells::{BoundCounter, BoundUpDownCounter};
use crate::gauge::BoundGauge;
use crate::histogram::{BoundHistogram, HistogramNumber};
use crate::number::Number;
use crate::series::{Core, SeriesCell};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

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

            /// The series of these attributes, to record to without looking for it each time. Once the limit of series is
            /// reached it is the overflow series. While it is bound it is not removed for being idle.
            #[must_use]
            pub fn bind(&self, attributes: &[KeyValue]) -> $Bound<T> {
                self.core.with(&self.plain, attributes, false, Clone::clone)
            }

            /// Takes the series of these attributes out, in any order of theirs; whether it was done: `false` if there was none, or if four
            /// times the limit of series wait already for a collection. Readers get its last value, once
            /// each; what is recorded to these attributes later starts anew. A handle that [`bind`](Self::bind) gave out keeps
            /// its series: it leaves when that is dropped. The series without attributes and that of the overflow stay.
            ///
            /// Takes the lock of the instrument's series. Recorders need not stop: what they record meanwhile is told by the series
            /// that leaves or by the one that follows it.
            pub fn remove(&self, attributes: &[KeyValue]) -> bool {
                self.core.remove(attributes)
            }

            /// Takes out the series whose attributes `is_it` says yes to, such as those of a peer that is gone, but for those that are
            /// bound; see [`remove`](Self::remove). `is_it` runs under the lock of the instrument's series: it must not record to it.
            pub fn remove_if(&self, is_it: impl FnMut(&[KeyValue]) -> bool) {
                self.core.remove_if(is_it);
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
        self.core
            .with(&self.plain, attributes, true, |series| series.add(amount));
    }
}

impl<T: Number> UpDownCounter<T> {
    /// Adds an amount, which may be negative. Amounts that are not finite are ignored.
    #[inline]
    pub fn add(&self, amount: T, attributes: &[KeyValue]) {
        self.core
            .with(&self.plain, attributes, true, |series| series.add(amount));
    }
}

impl<T: Number> Gauge<T> {
    /// Sets the value, under OpenTelemetry's name.
    #[inline]
    pub fn record(&self, value: T, attributes: &[KeyValue]) {
        self.core
            .with(&self.plain, attributes, true, |series| series.set(value));
    }

    /// Sets the value.
    #[inline]
    pub fn set(&self, value: T, attributes: &[KeyValue]) {
        self.core
            .with(&self.plain, attributes, true, |series| series.set(value));
    }

    /// Changes the value by an amount; see [`BoundGauge::add`] for what it costs.
    pub fn add(&self, amount: T, attributes: &[KeyValue]) {
        self.core
            .with(&self.plain, attributes, true, |series| series.add(amount));
    }
}

impl<T: HistogramNumber> Histogram<T> {
    /// Records a value.
    #[inline]
    pub fn record(&self, value: T, attributes: &[KeyValue]) {
        self.core
            .with(&self.plain, attributes, true, |series| series.record(value));
    }
}

impl Histogram<f64> {
    /// Records, when the result is dropped, how many seconds have passed until then, to the series of these attributes.
    ///
    /// ```
    /// let latency = perf_metrics::Registry::new().f64_histogram("rpc.duration").with_unit("s").build()?;
    /// {
    ///     let _timer = latency.start_timer(perf_metrics::EMPTY_ATTRS);
    ///     // What is timed.
    /// }
    /// # Ok::<(), perf_metrics::MetricsError>(())
    /// ```
    pub fn start_timer(&self, attributes: &[KeyValue]) -> Timer {
        self.bind(attributes).start_timer()
    }
}

impl BoundHistogram<f64> {
    /// Records, when the result is dropped, how many seconds have passed until then.
    pub fn start_timer(&self) -> Timer {
        Timer {
            histogram: Some(self.clone()),
            start: Instant::now(),
        }
    }
}

/// Records how long it lived, in seconds.
#[derive(Debug)]
#[must_use = "it records when it is dropped"]
pub struct Timer {
    histogram: Option<BoundHistogram<f64>>,
    start: Instant,
}

impl Timer {
    /// Records now and returns the seconds.
    pub fn stop(mut self) -> f64 {
        self.record()
    }

    /// Records nothing.
    pub fn discard(mut self) {
        self.histogram = None;
    }

    fn record(&mut self) -> f64 {
        let seconds = self.start.elapsed().as_secs_f64();
        if let Some(histogram) = self.histogram.take() {
            histogram.record(seconds);
        }
        seconds
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.record();
    }
}
