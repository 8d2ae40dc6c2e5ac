//! The `Recorder` of the `metrics` crate on a registry: code that uses its macros records here, without a change.
//!
//! ```
//! let registry = perf_metrics::recorder::install()?;
//! metrics::counter!("requests", "peer" => "n2").increment(1);
//! assert!(registry.collect().metric("requests").is_some());
//! # Ok::<(), perf_metrics::recorder::InstallError>(())
//! ```
//!
//! A macro finds its series in a table of the calling thread, so that threads share neither a lock nor a reference count. A handle that
//! the program keeps costs what a bound series of this crate costs, and a virtual call.
//!
//! | | |
//! |---|---|
//! | names | what OpenTelemetry does not allow becomes `_`; a name that does not begin with a letter gets an `m` before it |
//! | the same name for a counter and a gauge | both are kept; the registry's error handler is told |
//! | histograms | exponential buckets of scale 3, unless [`RecorderBuilder::with_buckets`] gives others to some names |
//! | descriptions and units | count if they are given before the metric is first used |
//! | `absolute` | raises a counter to a value; mixed with `increment` by several threads it may count too much, as the crate's own |
//! | idle series | [`RecorderBuilder::with_idle_timeout`] |
//! | cardinality | 2000 sets of labels a name, or [`RecorderBuilder::with_cardinality_limit`], then the labels `otel.metric.overflow = true` |

use crate::attributes::KeyValue;
use crate::builder::{Instrument, InstrumentBuilder, SERIES_MAX_DEFAULT};
use crate::cells::BoundCounter;
use crate::gauge::BoundGauge;
use crate::histogram::{BoundHistogram, Buckets};
use crate::instruments::{Counter, Gauge, Histogram};
use crate::number::Value;
use crate::registry::{BeforeCollection, INSTRUMENTS_MAX, Registry};
use crate::series::SeriesCell;
use metrics::{Key, KeyName, Metadata, SharedString, Unit};
use parking_lot::{Mutex, RwLock};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Records everything that the macros of `metrics` record to [`Registry::global`], which it returns for exporters.
///
/// # Errors
/// [`InstallError`] if the process has a recorder already.
pub fn install() -> Result<&'static Registry, InstallError> {
    Recorder::builder(Registry::global()).install()?;
    Ok(Registry::global())
}

/// The process has a recorder for `metrics` already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstallError;

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the process has a recorder for the crate `metrics` already: install one, at the start of the program",
        )
    }
}

impl std::error::Error for InstallError {}

/// Which names a setting is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matcher {
    /// This name.
    Full(String),
    /// Names that begin so.
    Prefix(String),
    /// Names that end so.
    Suffix(String),
}

impl Matcher {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Full(full) => name == full,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => name.ends_with(suffix.as_str()),
        }
    }
}

/// Settings of a [`Recorder`].
#[derive(Clone, Debug)]
#[must_use = "a recorder exists once it is built"]
pub struct RecorderBuilder {
    registry: Registry,
    idle: Option<Duration>,
    series_max: usize,
    buckets: Vec<(Matcher, Buckets)>,
}

impl RecorderBuilder {
    /// After how long without a record a series is removed, unless the program keeps a handle on it. Looked at when the registry is
    /// collected. A series without labels goes with the last of its name. Without this, series stay.
    pub fn with_idle_timeout(mut self, idle: Duration) -> Self {
        self.idle = Some(idle);
        self
    }

    /// How many sets of labels of a name are told apart: [`SERIES_MAX_DEFAULT`] unless said here.
    pub fn with_cardinality_limit(mut self, series_max: usize) -> Self {
        self.series_max = series_max;
        self
    }

    /// Buckets of histograms with these names. The first setting that matches counts.
    pub fn with_buckets(mut self, names: Matcher, buckets: Buckets) -> Self {
        self.buckets.push((names, buckets));
        self
    }

    /// The recorder, for [`metrics::with_local_recorder`] or layers of `metrics-util`.
    pub fn build(self) -> Recorder {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let inner = Arc::new(Inner {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            settings: self,
            descriptions: Mutex::default(),
            counters: Store::default(),
            gauges: Store::default(),
            histograms: Store::default(),
            swept: Mutex::default(),
        });
        inner
            .settings
            .registry
            .before_collection(&(Arc::clone(&inner) as Arc<dyn BeforeCollection>));
        Recorder { inner }
    }

    /// Makes it the recorder of the process.
    ///
    /// # Errors
    /// [`InstallError`] if the process has one already.
    pub fn install(self) -> Result<(), InstallError> {
        metrics::set_global_recorder(self.build()).map_err(|_| InstallError)
    }
}

/// Records to a registry what the macros of `metrics` record. Clones are the same recorder.
#[derive(Clone)]
pub struct Recorder {
    inner: Arc<Inner>,
}

impl Recorder {
    /// Settings of a recorder to this registry.
    pub fn builder(registry: &Registry) -> RecorderBuilder {
        RecorderBuilder {
            registry: registry.clone(),
            idle: None,
            series_max: SERIES_MAX_DEFAULT,
            buckets: Vec::new(),
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("settings", &self.inner.settings)
            .finish_non_exhaustive()
    }
}

struct Inner {
    id: u64,
    settings: RecorderBuilder,
    descriptions: Mutex<HashMap<String, (Option<Unit>, String)>>,
    counters: Store<CounterHandle>,
    gauges: Store<GaugeHandle>,
    histograms: Store<HistogramHandle>,
    /// When idle series were last looked for.
    swept: Mutex<Option<Instant>>,
}

/// A series as the macros of one thread use it. Each thread has its own, so that threads do not share its reference count.
trait Handle: Send + Sync + Sized + 'static {
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

struct CounterHandle {
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

struct GaugeHandle(BoundGauge<f64>);

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

struct HistogramHandle(BoundHistogram<f64>);

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
struct Cache<H>(Vec<Option<Cached<H>>>);

struct Cached<H> {
    recorder: u64,
    key: Key,
    /// The recorder has the other reference, for as long as the series is there.
    handle: Weak<H>,
}

impl<H> Cache<H> {
    #[inline]
    fn find(&self, recorder: u64, hash: u64, key: &Key) -> Option<Arc<H>> {
        let slot = self.0.get(hash as usize & (CACHE_SLOTS - 1))?.as_ref()?;
        if slot.recorder == recorder && (is_in_place(&slot.key, key) || slot.key == *key) {
            return slot.handle.upgrade();
        }
        None
    }

    fn put(&mut self, recorder: u64, key: &Key, handle: &Arc<H>) {
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
struct PassThrough(u64);

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
fn hash_of(key: &Key) -> u64 {
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

/// All series of one kind.
struct Store<H: Handle> {
    entries: RwLock<HashMap<Key, Entry<H>, BuildHasherDefault<PassThrough>>>,
    instruments: Mutex<HashMap<String, Named<H::Instrument>>>,
}

struct Named<I> {
    instrument: I,
    /// How many of `entries` are of this name, at most as many as it can have series: the others are the overflow series.
    entries: usize,
}

impl<H: Handle> Default for Store<H> {
    fn default() -> Self {
        Self {
            entries: RwLock::default(),
            instruments: Mutex::default(),
        }
    }
}

struct Entry<H> {
    /// One for each thread that uses it; never empty.
    handles: Vec<Arc<H>>,
    name: String,
    labels: Vec<KeyValue>,
    /// What was last seen of it, and since when.
    seen: Option<(u64, Instant)>,
}

impl<H: Handle> Store<H> {
    #[inline]
    fn get(&self, inner: &Inner, key: &Key) -> Arc<H> {
        let hash = hash_of(key);
        if let Some(Some(handle)) = H::cache(|cache| cache.find(inner.id, hash, key)) {
            return handle;
        }
        self.get_slow(inner, key)
    }

    #[cold]
    #[inline(never)]
    fn get_slow(&self, inner: &Inner, key: &Key) -> Arc<H> {
        let handle = {
            let mut entries = self.entries.write();
            match entries.get_mut(key) {
                Some(entry) => {
                    // The handles of threads that have ended have no other reference.
                    let first = Arc::clone(&entry.handles[0]);
                    entry
                        .handles
                        .retain(|handle| Arc::strong_count(handle) + Arc::weak_count(handle) > 1);
                    let handle = Arc::new(first.again());
                    entry.handles.push(Arc::clone(&handle));
                    handle
                }
                None => {
                    let name = valid_name(key.name());
                    let labels = labels_of(key);
                    let (instrument, has_room) = self.instrument(inner, &name, key.name());
                    let handle = Arc::new(H::of(&instrument, &labels));
                    if !has_room {
                        return handle;
                    }
                    let entry = Entry {
                        handles: vec![Arc::clone(&handle)],
                        name,
                        labels,
                        seen: None,
                    };
                    entries.insert(key.clone(), entry);
                    handle
                }
            }
        };
        H::cache(|cache| cache.put(inner.id, key, &handle));
        handle
    }

    /// The instrument of this name, and whether it has room for another entry, which is then counted.
    fn instrument(&self, inner: &Inner, name: &str, given: &str) -> (H::Instrument, bool) {
        let mut instruments = self.instruments.lock();
        // One more, without labels.
        let entries_max = inner.settings.series_max.saturating_add(1);
        if let Some(named) = instruments.get_mut(name) {
            let has_room = named.entries < entries_max;
            named.entries += usize::from(has_room);
            return (named.instrument.clone(), has_room);
        }
        let settings = &inner.settings;
        let mut buckets = settings.buckets.iter();
        let buckets = buckets.find(|(names, _)| names.matches(given));
        let mut builder = H::builder(
            &settings.registry,
            name.to_owned(),
            buckets.map(|(_, buckets)| buckets.clone()),
        )
        .with_cardinality_limit(settings.series_max)
        .beside_others();
        if let Some((unit, description)) = inner.descriptions.lock().get(given) {
            builder = builder.with_description(description.clone());
            if let Some(unit) = unit {
                builder = builder.with_unit(ucum(*unit));
            }
        }
        let instrument = builder.build_or_detached();
        let named = Named {
            instrument: instrument.clone(),
            entries: 1,
        };
        instruments.insert(name.to_owned(), named);
        (instrument, true)
    }

    /// Removes the series that were not recorded to for so long and that the program holds no handle of.
    fn sweep(&self, now: Instant, idle: Duration) {
        let mut entries = self.entries.write();
        let mut instruments = self.instruments.lock();
        entries.retain(|_, entry| {
            let (is_touched, fingerprint) = entry.handles[0].activity();
            let since = match entry.seen {
                Some((seen, since)) if seen == fingerprint && !is_touched => since,
                _ => now,
            };
            entry.seen = Some((fingerprint, since));
            // Threads remember handles weakly, so that every other reference is the program's.
            let is_held = entry
                .handles
                .iter()
                .any(|handle| Arc::strong_count(handle) > 1);
            if is_held || now.saturating_duration_since(since) < idle {
                return true;
            }
            // Dropped first, so that the series is bound by no handle.
            entry.handles.truncate(1);
            let Some(named) = instruments.get_mut(&entry.name) else {
                return false;
            };
            let stays = !entry.labels.is_empty() && !H::remove(&named.instrument, &entry.labels);
            named.entries -= usize::from(!stays);
            stays
        });
        instruments.retain(|_, named| named.entries > 0);
    }
}

impl BeforeCollection for Inner {
    fn before_collection(&self) {
        let Some(idle) = self.settings.idle else {
            return;
        };
        let now = Instant::now();
        {
            // Often enough that what is idle is found soon, seldom enough that collections stay cheap.
            let mut swept = self.swept.lock();
            if swept.is_some_and(|then| now.saturating_duration_since(then) < idle / 4) {
                return;
            }
            *swept = Some(now);
        }
        self.counters.sweep(now, idle);
        self.gauges.sweep(now, idle);
        self.histograms.sweep(now, idle);
    }
}

fn labels_of(key: &Key) -> Vec<KeyValue> {
    key.labels()
        .map(|label| KeyValue::new(label.key().to_owned(), label.value().to_owned()))
        .collect()
}

/// A name that OpenTelemetry allows.
fn valid_name(name: &str) -> String {
    let valid = |c: char| {
        let is_valid = c.is_ascii_alphanumeric() || "_.-/".contains(c);
        if is_valid { c } else { '_' }
    };
    let mut name: String = name.chars().map(valid).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        name.insert(0, 'm');
    }
    name
}

fn ucum(unit: Unit) -> &'static str {
    match unit {
        Unit::Count => "",
        Unit::Percent => "%",
        Unit::Seconds => "s",
        Unit::Milliseconds => "ms",
        Unit::Microseconds => "us",
        Unit::Nanoseconds => "ns",
        Unit::Tebibytes => "TiBy",
        Unit::Gibibytes => "GiBy",
        Unit::Mebibytes => "MiBy",
        Unit::Kibibytes => "KiBy",
        Unit::Bytes => "By",
        Unit::TerabitsPerSecond => "Tbit/s",
        Unit::GigabitsPerSecond => "Gbit/s",
        Unit::MegabitsPerSecond => "Mbit/s",
        Unit::KilobitsPerSecond => "kbit/s",
        Unit::BitsPerSecond => "bit/s",
        Unit::CountPerSecond => "1/s",
    }
}

impl Recorder {
    fn describe(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        let mut descriptions = self.inner.descriptions.lock();
        let name = name.as_str();
        // Bounded like the instruments that they describe.
        if descriptions.len() < INSTRUMENTS_MAX || descriptions.contains_key(name) {
            descriptions.insert(name.to_owned(), (unit, description.into_owned()));
        }
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(key, unit, description);
    }

    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> metrics::Counter {
        metrics::Counter::from_arc(self.inner.counters.get(&self.inner, key))
    }

    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::from_arc(self.inner.gauges.get(&self.inner, key))
    }

    fn register_histogram(&self, key: &Key, _metadata: &Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::from_arc(self.inner.histograms.get(&self.inner, key))
    }
}
