//! Where instruments are known, so that they can be collected.

use crate::MetricsError;
use crate::builder::InstrumentBuilder;
use crate::instruments::{Counter, Gauge, Histogram, UpDownCounter};
use crate::reader::{Reader, Temporality};
use crate::series::Source;
use crate::snapshot::{MetricSnapshot, MetricsSnapshot};
use parking_lot::{Mutex, RwLock};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::SystemTime;

/// How many instruments a registry holds.
pub const INSTRUMENTS_MAX: usize = 4096;

/// How many [`Reader`]s a registry serves at once.
pub const READERS_MAX: usize = 8;

/// Is told of instruments that are made after it came.
pub(crate) trait Listener: Send + Sync {
    fn on_instrument(&self, source: &Arc<dyn Source>, place: usize);
}

/// A set of instruments. Clones are the same registry.
///
/// ```
/// use perf_metrics::{EMPTY_ATTRS, KeyValue, Registry};
///
/// let registry = Registry::new();
/// let requests = registry.u64_counter("requests").with_unit("{request}").build()?;
/// requests.add(1, EMPTY_ATTRS);
/// requests.add(2, &[KeyValue::new("peer", "n2")]);
///
/// let snapshot = registry.collect();
/// assert_eq!(snapshot.metric("requests").map(|metric| metric.series().len()), Some(3));
/// # Ok::<(), perf_metrics::MetricsError>(())
/// ```
///
/// (The third series is the one for overflow.)
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    id: usize,
    start: SystemTime,
    sources: RwLock<Sources>,
    readers: Mutex<[bool; READERS_MAX]>,
    listeners: Mutex<Vec<Weak<dyn Listener>>>,
}

#[derive(Default)]
struct Sources {
    /// Append-only: a place in here is an instrument for good.
    list: Vec<Arc<dyn Source>>,
    /// In lower case: names differ in more than their case.
    names: HashSet<String>,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        Self {
            inner: Arc::new(Inner {
                id: NEXT.fetch_add(1, Ordering::Relaxed),
                start: SystemTime::now(),
                sources: RwLock::default(),
                readers: Mutex::default(),
                listeners: Mutex::default(),
            }),
        }
    }

    /// The registry of the whole process.
    #[must_use]
    pub fn global() -> &'static Self {
        static GLOBAL: OnceLock<Registry> = OnceLock::new();
        GLOBAL.get_or_init(Self::new)
    }

    /// Reads all instruments. Takes no lock that recording meets, and resets nothing.
    #[must_use]
    pub fn collect(&self) -> MetricsSnapshot {
        let mut snapshot = MetricsSnapshot::new();
        self.collect_into(&mut snapshot);
        snapshot
    }

    /// Reads all instruments into a snapshot, whose memory is reused: no allocation when it was collected into before and
    /// no series was made since. Linear in the number of cells times [`chunk_count`](perf_atomics::slab::chunk_count).
    pub fn collect_into(&self, snapshot: &mut MetricsSnapshot) {
        self.collect_for(None, snapshot);
    }

    pub(crate) fn collect_for(&self, reader: Option<usize>, snapshot: &mut MetricsSnapshot) {
        if snapshot.registry != self.inner.id {
            snapshot.metrics.clear();
            snapshot.registry = self.inner.id;
        }
        snapshot.start = Some(self.inner.start);
        snapshot.cumulative_start = snapshot.start;
        snapshot.time = Some(SystemTime::now());
        let mut place = 0;
        // By place, so that the lock is not held while an instrument is read.
        while let Some(source) = self.source(place) {
            if place == snapshot.metrics.len() {
                snapshot.metrics.push(MetricSnapshot {
                    descriptor: Arc::clone(source.descriptor()),
                    series: Vec::new(),
                });
            }
            source.collect(reader, &mut snapshot.metrics[place]);
            place += 1;
        }
    }

    fn source(&self, place: usize) -> Option<Arc<dyn Source>> {
        self.inner.sources.read().list.get(place).cloned()
    }

    /// A reader that remembers what it has read: several can count deltas of the same registry.
    ///
    /// # Errors
    /// [`MetricsError::TooManyReaders`] if there are [`READERS_MAX`].
    pub fn reader(&self, temporality: Temporality) -> Result<Reader, MetricsError> {
        let mut readers = self.inner.readers.lock();
        let place =
            readers
                .iter()
                .position(|taken| !taken)
                .ok_or(MetricsError::TooManyReaders {
                    readers_max: READERS_MAX,
                })?;
        readers[place] = true;
        drop(readers);
        Ok(Reader::new(self.clone(), place, temporality))
    }

    pub(crate) fn forget_reader(&self, reader: usize) {
        let mut place = 0;
        while let Some(source) = self.source(place) {
            source.forget(reader);
            place += 1;
        }
        self.inner.readers.lock()[reader] = false;
    }

    pub(crate) fn register(&self, source: Arc<dyn Source>) -> Result<(), MetricsError> {
        let name = source.descriptor().name();
        let place = {
            let mut sources = self.inner.sources.write();
            if sources.list.len() >= INSTRUMENTS_MAX {
                return Err(MetricsError::TooManyInstruments {
                    name: name.to_owned(),
                    instruments_max: INSTRUMENTS_MAX,
                });
            }
            if !sources.names.insert(name.to_ascii_lowercase()) {
                return Err(MetricsError::DuplicateName {
                    name: name.to_owned(),
                });
            }
            sources.list.push(Arc::clone(&source));
            sources.list.len() - 1
        };
        // Told without a lock: a listener makes instruments of its own.
        let listeners: Vec<_> = self
            .inner
            .listeners
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for listener in listeners {
            listener.on_instrument(&source, place);
        }
        Ok(())
    }

    /// Tells `listener` of all instruments, those that are and those to come; of one that is made meanwhile perhaps twice.
    #[cfg(feature = "otel")]
    pub(crate) fn listen(&self, listener: &Arc<dyn Listener>) {
        {
            let mut listeners = self.inner.listeners.lock();
            listeners.retain(|other| other.strong_count() > 0);
            listeners.push(Arc::downgrade(listener));
        }
        let mut place = 0;
        while let Some(source) = self.source(place) {
            listener.on_instrument(&source, place);
            place += 1;
        }
    }

    /// Runs `run` while every lock of the registry and its instruments is held, for tests of the promise that recording takes
    /// none. Not a public interface.
    #[doc(hidden)]
    pub fn __hold_locks(&self, run: &mut dyn FnMut()) {
        fn hold(sources: &[Arc<dyn Source>], run: &mut dyn FnMut()) {
            match sources {
                [] => run(),
                [first, rest @ ..] => first.hold(&mut || hold(rest, run)),
            }
        }
        let sources = self.inner.sources.write();
        let _readers = self.inner.readers.lock();
        let _listeners = self.inner.listeners.lock();
        hold(&sources.list, run);
    }

    /// A counter of integers: requests, bytes.
    pub fn u64_counter(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> InstrumentBuilder<Counter<u64>> {
        InstrumentBuilder::new(self, name.into())
    }

    /// A counter of fractions: seconds of CPU time.
    pub fn f64_counter(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> InstrumentBuilder<Counter<f64>> {
        InstrumentBuilder::new(self, name.into())
    }

    /// A sum of integers that goes up and down: requests in flight.
    pub fn i64_up_down_counter(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> InstrumentBuilder<UpDownCounter<i64>> {
        InstrumentBuilder::new(self, name.into())
    }

    /// A sum of fractions that goes up and down.
    pub fn f64_up_down_counter(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> InstrumentBuilder<UpDownCounter<f64>> {
        InstrumentBuilder::new(self, name.into())
    }

    /// A value that is set: nodes in the cluster.
    pub fn u64_gauge(&self, name: impl Into<Cow<'static, str>>) -> InstrumentBuilder<Gauge<u64>> {
        InstrumentBuilder::new(self, name.into())
    }

    /// A signed value that is set.
    pub fn i64_gauge(&self, name: impl Into<Cow<'static, str>>) -> InstrumentBuilder<Gauge<i64>> {
        InstrumentBuilder::new(self, name.into())
    }

    /// A fraction that is set: a temperature, a share in use.
    pub fn f64_gauge(&self, name: impl Into<Cow<'static, str>>) -> InstrumentBuilder<Gauge<f64>> {
        InstrumentBuilder::new(self, name.into())
    }

    /// A distribution of integers: sizes in bytes.
    pub fn u64_histogram(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> InstrumentBuilder<Histogram<u64>> {
        InstrumentBuilder::new(self, name.into())
    }

    /// A distribution of fractions: durations in seconds.
    pub fn f64_histogram(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> InstrumentBuilder<Histogram<f64>> {
        InstrumentBuilder::new(self, name.into())
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instruments = self.inner.sources.read().list.len();
        f.debug_struct("Registry")
            .field("instruments", &instruments)
            .finish_non_exhaustive()
    }
}
