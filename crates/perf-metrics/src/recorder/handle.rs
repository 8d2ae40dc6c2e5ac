//! A series as the macros of one thread use it, and the table by which the thread finds it.

use crate::attributes::KeyValue;
use crate::builder::{Instrument, InstrumentBuilder};
use crate::cells::BoundCounter;
use crate::gauge::BoundGauge;
use crate::histogram::{BoundHistogram, Buckets};
use crate::instruments::{Counter, Gauge, Histogram};
use crate::number::Value;
use crate::registry::Registry;
use crate::series::SeriesCell;
use metrics::Key;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};

/// A series as the macros of one thread use it. Each thread has its own, so that threads do not share its reference count.
pub(super) trait Handle: Send + Sync + Sized + 'static {
    type Instrument: Instrument + Clone + Send + Sync;
    fn builder(
        registry: &Registry,
        name: String,
        buckets: Option<Buckets>,
    ) -> InstrumentBuilder<Self::Instrument>;
    fn of(instrument: &Self::Instrument, labels: &[KeyValue]) -> Self;
    /// Another of the same series.
    fn again(&self) -> Self;
    fn remove(instrument: &Self::Instrument, labels: &[KeyValue]) -> bool;
    /// Whether it was recorded to since the last call, and a number that changes with records.
    fn activity(&self) -> (bool, u64);
    fn cache<R>(run: impl FnOnce(&mut Cache<Self>) -> R) -> Option<R>;
}

pub(super) struct CounterHandle {
    counter: BoundCounter<u64>,
    /// Held by `absolute`, so that two of them do not both raise the counter.
    raising: Arc<Mutex<()>>,
}

impl metrics::CounterFn for CounterHandle {
    fn increment(&self, value: u64) {
        self.counter.add(value);
    }

    fn absolute(&self, value: u64) {
        let _raising = self.raising.lock();
        if let Value::U64(now) = self.counter.get() {
            self.counter.add(value.saturating_sub(now));
        }
    }
}

pub(super) struct GaugeHandle(BoundGauge<f64>);

impl metrics::GaugeFn for GaugeHandle {
    fn increment(&self, value: f64) {
        self.0.add(value);
    }

    fn decrement(&self, value: f64) {
        self.0.add(-value);
    }

    fn set(&self, value: f64) {
        self.0.set(value);
    }
}

pub(super) struct HistogramHandle(BoundHistogram<f64>);

impl metrics::HistogramFn for HistogramHandle {
    fn record(&self, value: f64) {
        self.0.record(value);
    }
}

macro_rules! handle {
    ($Handle:ident, $Instrument:ty, $method:ident, $cache:ident, |$builder:ident, $buckets:ident| $configured:expr, |$bound:ident| $make:expr, |$handle:ident| $again:expr, $cell:tt) => {
        thread_local! {
            static $cache: RefCell<Cache<$Handle>> = const { RefCell::new(Cache(Vec::new())) };
        }

        impl Handle for $Handle {
            type Instrument = $Instrument;

            fn builder(
                registry: &Registry,
                name: String,
                $buckets: Option<Buckets>,
            ) -> InstrumentBuilder<$Instrument> {
                let $builder = registry.$method(name);
                $configured
            }

            fn of(instrument: &$Instrument, labels: &[KeyValue]) -> Self {
                let $bound = instrument.bind(labels);
                $make
            }

            fn again(&self) -> Self {
                let $handle = self;
                $again
            }

            fn remove(instrument: &$Instrument, labels: &[KeyValue]) -> bool {
                instrument.remove(labels)
            }

            fn activity(&self) -> (bool, u64) {
                let cell = &self.$cell;
                (cell.take_touched(), SeriesCell::fingerprint(cell))
            }

            fn cache<R>(run: impl FnOnce(&mut Cache<Self>) -> R) -> Option<R> {
                $cache
                    .try_with(|cache| cache.try_borrow_mut().ok().map(|mut cache| run(&mut cache)))
                    .ok()
                    .flatten()
            }
        }
    };
}

handle!(
    CounterHandle,
    Counter<u64>,
    u64_counter,
    COUNTERS,
    |builder, _buckets| builder,
    |counter| Self {
        counter,
        raising: Arc::default(),
    },
    |handle| Self {
        counter: handle.counter.clone(),
        raising: Arc::clone(&handle.raising),
    },
    counter
);
handle!(
    GaugeHandle,
    Gauge<f64>,
    f64_gauge,
    GAUGES,
    |builder, _buckets| builder,
    |gauge| Self(gauge),
    |handle| Self(handle.0.clone()),
    0
);
handle!(
    HistogramHandle,
    Histogram<f64>,
    f64_histogram,
    HISTOGRAMS,
    |builder, buckets| match buckets {
        Some(buckets) => builder.with_buckets(buckets),
        None => builder,
    },
    |histogram| Self(histogram),
    |handle| Self(handle.0.clone()),
    0
);

/// How many keys a thread remembers of each kind; a power of two. A key that finds its place taken takes it.
const CACHE_SLOTS: usize = 256;

/// Which handle a thread last used for a key, by the key's hash. Empty until its first use.
pub(super) struct Cache<H>(Vec<Option<Cached<H>>>);

struct Cached<H> {
    recorder: u64,
    key: Key,
    /// The recorder has the other reference, for as long as the series is there.
    handle: Weak<H>,
}

impl<H> Cache<H> {
    #[inline]
    pub(super) fn find(&self, recorder: u64, hash: u64, key: &Key) -> Option<Arc<H>> {
        let slot = self.0.get(hash as usize & (CACHE_SLOTS - 1))?.as_ref()?;
        if slot.recorder == recorder && (is_in_place(&slot.key, key) || slot.key == *key) {
            return slot.handle.upgrade();
        }
        None
    }

    pub(super) fn put(&mut self, recorder: u64, key: &Key, handle: &Arc<H>) {
        if self.0.is_empty() {
            self.0.resize_with(CACHE_SLOTS, || None);
        }
        if let Some(slot) = self.0.get_mut(hash_of(key) as usize & (CACHE_SLOTS - 1)) {
            *slot = Some(Cached {
                recorder,
                key: key.clone(),
                handle: Arc::downgrade(handle),
            });
        }
    }
}

/// A key brings its hash with it.
#[derive(Default)]
pub(super) struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not what a key writes; any mixture is right.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[inline]
pub(super) fn hash_of(key: &Key) -> u64 {
    let mut hasher = PassThrough::default();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Whether both keys are made of the same memory, as those of constants are: then they say the same, as the one that is kept keeps it as
/// it is.
#[inline]
fn is_in_place(kept: &Key, key: &Key) -> bool {
    let labels = |key: &Key| {
        let labels = key.labels();
        (labels.as_slice().as_ptr() as usize, labels.len())
    };
    let name = |key: &Key| (key.name().as_ptr() as usize, key.name().len());
    labels(kept) == labels(key) && name(kept) == name(key)
}
