//! Where instruments are known, so that they can be collected.

use crate::MetricsError;
use crate::attributes::{KeyValue, normalize};
use crate::descriptor::{Descriptor, Scope};
use crate::exemplar::{ExemplarSource, TraceContext};
use crate::liveness::{ANONYMOUS, Leaving};
use crate::reader::{Reader, Temporality};
use crate::series::Source;
use crate::snapshot::{InstrumentSnapshot, MetricsSnapshot};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

/// How many instruments a registry holds.
pub const INSTRUMENTS_MAX: usize = 4096;

/// How many [`Reader`]s a registry serves at once.
pub const READERS_MAX: usize = 8;

/// How long what has left waits for [`Registry::collect`] and [`Registry::collect_into`] to be called again: an hour. A single call of them would
/// otherwise keep series and instruments that have left for ever.
pub const ANONYMOUS_READER_MAX: Duration = Duration::from_secs(3600);

/// Is told of instruments that are made after it came.
pub(crate) trait Listener: Send + Sync {
    fn on_instrument(&self, source: &Arc<dyn Source>);
}

/// Is called before each collection.
#[cfg(feature = "recorder")]
pub(crate) trait BeforeCollection: Send + Sync {
    fn before_collection(&self);
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
/// let recorded = |metric: &perf_metrics::InstrumentSnapshot| metric.series().iter().filter(|series| series.is_recorded()).count();
/// assert_eq!(snapshot.metric("requests").map(recorded), Some(2));
/// # Ok::<(), perf_metrics::MetricsError>(())
/// ```
///
/// # Instruments that are dropped
/// An instrument leaves the registry once no handle on it or on one of its series is left and every reader has collected its last value.
/// Made again before that it is the same; made again later it starts anew.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
    scope: Option<Arc<Scope>>,
}

type OnError = Arc<dyn Fn(&MetricsError) + Send + Sync>;

struct Inner {
    id: usize,
    start: SystemTime,
    sources: RwLock<Sources>,
    resource: RwLock<Arc<[KeyValue]>>,
    on_error: RwLock<Option<OnError>>,
    exemplar_source: RwLock<Option<ExemplarSource>>,
    readers: Mutex<[bool; READERS_MAX]>,
    made: Instant,
    /// When a collection was last made that belongs to no reader: seconds since `made`, plus one; zero if none was.
    anonymous_read: AtomicU64,
    listeners: Mutex<Vec<Weak<dyn Listener>>>,
    #[cfg(feature = "recorder")]
    before: Mutex<Vec<Weak<dyn BeforeCollection>>>,
}

#[derive(Default)]
struct Sources {
    /// By their ids, which ascend.
    list: BTreeMap<u64, Arc<dyn Source>>,
    /// In lower case: names differ in more than their case.
    names: HashMap<String, Vec<Arc<dyn Source>>>,
}

impl Sources {
    /// Those of the same name and scope.
    fn find(&self, descriptor: &Descriptor) -> Vec<Arc<dyn Source>> {
        let named = self.names.get(&descriptor.name().to_ascii_lowercase());
        named
            .into_iter()
            .flatten()
            .filter(|source| source.descriptor().scope() == descriptor.scope())
            .cloned()
            .collect()
    }

    fn insert(&mut self, source: &Arc<dyn Source>) {
        self.list.insert(source.id(), Arc::clone(source));
        let name = source.descriptor().name().to_ascii_lowercase();
        self.names.entry(name).or_default().push(Arc::clone(source));
    }

    fn remove(&mut self, source: &Arc<dyn Source>) {
        self.list.remove(&source.id());
        let name = source.descriptor().name().to_ascii_lowercase();
        if let Some(named) = self.names.get_mut(&name) {
            named.retain(|other| other.id() != source.id());
            if named.is_empty() {
                self.names.remove(&name);
            }
        }
    }
}

/// A registry that may be gone.
#[derive(Clone)]
pub(crate) struct WeakRegistry(Weak<Inner>);

impl WeakRegistry {
    /// Tells the registry's error handler, if it is there.
    pub(crate) fn report(&self, error: &MetricsError) {
        if let Some(inner) = self.0.upgrade() {
            Registry { inner, scope: None }.report(error);
        }
    }
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
                resource: RwLock::new(Arc::new([])),
                on_error: RwLock::default(),
                exemplar_source: RwLock::default(),
                made: Instant::now(),
                anonymous_read: AtomicU64::new(0),
                readers: Mutex::default(),
                listeners: Mutex::default(),
                #[cfg(feature = "recorder")]
                before: Mutex::default(),
            }),
            scope: None,
        }
    }

    /// The same registry, whose instruments are made in a scope: they are others than those of the same name in other scopes, and
    /// exporters say whose they are.
    #[must_use]
    pub fn with_scope(&self, scope: Scope) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            scope: Some(Arc::new(scope)),
        }
    }

    /// Says what the metrics are about: `service.name`, `host.name`. Exporters that were started before may keep what they were told
    /// then. Of a key that is repeated the last counts.
    pub fn set_resource(&self, attributes: impl IntoIterator<Item = KeyValue>) {
        let attributes: Vec<_> = attributes.into_iter().collect();
        *self.inner.resource.write() = normalize(&attributes).into();
    }

    /// Instruments of this registry that are made from now on keep exemplars: measurements with the trace they were made in, of which
    /// exporters send some. `source` tells the trace of the calling thread, `None` for measurements that are no exemplars, such as those
    /// outside of a sampled trace. It is called at each record and must not record to this registry. Gauges have no exemplars.
    ///
    /// Recording to these instruments costs the call of `source` and a few nanoseconds more, with the clock's reading for what becomes an
    /// exemplar; it still takes no lock and allocates nothing. Instruments made before, and those of registries without a source, cost
    /// what they did.
    pub fn set_exemplar_source(
        &self,
        source: impl Fn() -> Option<TraceContext> + Send + Sync + 'static,
    ) {
        *self.inner.exemplar_source.write() = Some(ExemplarSource::new(source));
    }

    pub(crate) fn exemplar_source(&self) -> Option<ExemplarSource> {
        self.inner.exemplar_source.read().clone()
    }

    pub(crate) fn scope(&self) -> Option<Arc<Scope>> {
        self.scope.clone()
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

    /// Reads all instruments into a snapshot, whose memory is reused: no allocation when it was collected into before, and since
    /// then no series was made and no histogram's range of values has grown. Linear in the number of series times [`chunk_count`](perf_atomics::slab::chunk_count), of histograms
    /// in the number of buckets in use times [`wide_chunk_count`](perf_atomics::slab::wide_chunk_count).
    ///
    /// A program that collects this way at least every hour ([`ANONYMOUS_READER_MAX`]) sees the last value of each series that leaves.
    pub fn collect_into(&self, snapshot: &mut MetricsSnapshot) {
        let second = self.inner.made.elapsed().as_secs().saturating_add(1);
        // Relaxed: what leaves waits for those that collect this way from the first time on.
        self.inner.anonymous_read.store(second, Ordering::Relaxed);
        self.collect_for(ANONYMOUS, false, snapshot);
    }

    /// `takes_extremes` says that the reader wants those since its last collection.
    pub(crate) fn collect_for(
        &self,
        reader: usize,
        takes_extremes: bool,
        snapshot: &mut MetricsSnapshot,
    ) {
        #[cfg(feature = "recorder")]
        self.run_before();
        if snapshot.registry != self.inner.id {
            snapshot.metrics.clear();
            snapshot.registry = self.inner.id;
        }
        snapshot.start = Some(self.inner.start);
        snapshot.cumulative_start = snapshot.start;
        snapshot.resource = Arc::clone(&self.inner.resource.read());
        let readers = self.readers(self.inner.made.elapsed());
        let mut index = 0;
        let mut after = 0;
        // One by one, so that the lock is not held while an instrument is read.
        while let Some(source) = self.source_after(after) {
            after = source.id();
            // One reference each of the list, of the names, and ours.
            let is_dropped = || Arc::strong_count(&source) == 3 && !source.is_held();
            let leaving = if is_dropped() {
                // What was recorded through handles that are gone is seen by what follows.
                fence(Ordering::Acquire);
                source.leave(reader, readers)
            } else {
                Leaving::Tell
            };
            match leaving {
                Leaving::Tell => {}
                Leaving::Known => continue,
                Leaving::Gone => {
                    // Under the lock, so that no handle is made meanwhile.
                    let mut sources = self.inner.sources.write();
                    if is_dropped() {
                        sources.remove(&source);
                        continue;
                    }
                }
            }
            let gone = snapshot.metrics[index..]
                .iter()
                .take_while(|old| old.id < after)
                .count();
            snapshot.metrics.drain(index..index + gone);
            if snapshot
                .metrics
                .get(index)
                .is_none_or(|old| old.id != after)
            {
                let new = InstrumentSnapshot::new(after, source.descriptor());
                snapshot.metrics.insert(index, new);
            }
            let extremes = takes_extremes.then_some(reader);
            source.collect(reader, extremes, readers, &mut snapshot.metrics[index]);
            index += 1;
        }
        snapshot.metrics.truncate(index);
        // Now, as series may have begun meanwhile.
        snapshot.time = Some(SystemTime::now());
    }

    /// Sets the error handler. It is told of instruments that [`build_or_detached`](crate::InstrumentBuilder::build_or_detached) could not
    /// make and of callbacks that panic, in the thread where that happens. Default: print to standard error.
    pub fn set_error_handler(&self, on_error: impl Fn(&MetricsError) + Send + Sync + 'static) {
        *self.inner.on_error.write() = Some(Arc::new(on_error));
    }

    #[cfg(feature = "recorder")]
    pub(crate) fn before_collection(&self, hook: &Arc<dyn BeforeCollection>) {
        let mut before = self.inner.before.lock();
        before.retain(|other| other.strong_count() > 0);
        before.push(Arc::downgrade(hook));
    }

    #[cfg(feature = "recorder")]
    fn run_before(&self) {
        let mut index = 0;
        // Without the lock, and without a list that would be allocated.
        loop {
            let hook = self.inner.before.lock().get(index).cloned();
            let Some(hook) = hook else { break };
            if let Some(hook) = hook.upgrade() {
                hook.before_collection();
            }
            index += 1;
        }
    }

    pub(crate) fn downgrade(&self) -> WeakRegistry {
        WeakRegistry(Arc::downgrade(&self.inner))
    }

    pub(crate) fn report(&self, error: &MetricsError) {
        let on_error = self.inner.on_error.read().clone();
        match on_error {
            Some(on_error) => on_error(error),
            None => eprintln!("perf-metrics: {error}"),
        }
    }

    /// A bit for each reader that is to have the last value of what leaves, when the registry is so old.
    fn readers(&self, age: Duration) -> u16 {
        let last = self.inner.anonymous_read.load(Ordering::Relaxed);
        let is_recent =
            last > 0 && age.as_secs() < last.saturating_add(ANONYMOUS_READER_MAX.as_secs());
        let anonymous = u16::from(is_recent) << ANONYMOUS;
        let readers = self.inner.readers.lock();
        readers
            .iter()
            .enumerate()
            .fold(anonymous, |bits, (slot, taken)| {
                bits | u16::from(*taken) << slot
            })
    }

    fn source_after(&self, id: u64) -> Option<Arc<dyn Source>> {
        let sources = self.inner.sources.read();
        let mut next = sources.list.range((Bound::Excluded(id), Bound::Unbounded));
        next.next().map(|(_, source)| Arc::clone(source))
    }

    /// A reader that remembers what it has read: several can count deltas of the same registry.
    ///
    /// # Errors
    /// [`MetricsError::TooManyReaders`] if there are [`READERS_MAX`].
    pub fn reader(&self, temporality: Temporality) -> Result<Reader, MetricsError> {
        let mut readers = self.inner.readers.lock();
        let slot = readers
            .iter()
            .position(|taken| !taken)
            .ok_or(MetricsError::TooManyReaders {
                readers_max: READERS_MAX,
            })?;
        readers[slot] = true;
        drop(readers);
        Ok(Reader::new(self.clone(), slot, temporality))
    }

    pub(crate) fn forget_reader(&self, reader: usize) {
        let mut after = 0;
        while let Some(source) = self.source_after(after) {
            source.forget(reader);
            after = source.id();
        }
        self.inner.readers.lock()[reader] = false;
    }

    /// The instrument of this name and scope, if `get` takes it for what is asked for; otherwise a new one, which `make` makes.
    /// `is_beside_others` lets the new one have a name that another has; the description then does not matter, and the conflict is
    /// reported.
    pub(crate) fn get_or_make<R>(
        &self,
        descriptor: &Descriptor,
        is_beside_others: bool,
        get: impl Fn(Arc<dyn Source>) -> Option<R>,
        make: impl FnOnce() -> Result<(R, Arc<dyn Source>), MetricsError>,
    ) -> Result<R, MetricsError> {
        let duplicate = || MetricsError::DuplicateName {
            name: descriptor.name().to_owned(),
        };
        let name = descriptor.name();
        let (made, source, has_conflict) = {
            let mut sources = self.inner.sources.write();
            let found = sources.find(descriptor);
            let get = |source: &Arc<dyn Source>| {
                let got = source
                    .descriptor()
                    .is_same(descriptor, !is_beside_others)
                    .then(|| get(Arc::clone(source)))?;
                source.stay();
                got
            };
            let has_conflict = match found.iter().find_map(get) {
                Some(got) => return Ok(got),
                None => !found.is_empty(),
            };
            if has_conflict && !is_beside_others {
                return Err(duplicate());
            }
            if sources.list.len() >= INSTRUMENTS_MAX {
                return Err(MetricsError::TooManyInstruments {
                    name: name.to_owned(),
                    instruments_max: INSTRUMENTS_MAX,
                });
            }
            let (made, source) = make()?;
            sources.insert(&source);
            (made, source, has_conflict)
        };
        if has_conflict {
            self.report(&duplicate());
        }
        // Told without a lock: a listener makes instruments of its own.
        let listeners: Vec<_> = self
            .inner
            .listeners
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for listener in listeners {
            listener.on_instrument(&source);
        }
        Ok(made)
    }

    /// Tells `listener` of all instruments, those that are and those to come; of one that is made meanwhile perhaps twice.
    #[cfg(feature = "otel")]
    pub(crate) fn listen(&self, listener: &Arc<dyn Listener>) {
        {
            let mut listeners = self.inner.listeners.lock();
            listeners.retain(|other| other.strong_count() > 0);
            listeners.push(Arc::downgrade(listener));
        }
        let mut after = 0;
        while let Some(source) = self.source_after(after) {
            listener.on_instrument(&source);
            after = source.id();
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
        let _resource = self.inner.resource.write();
        let _readers = self.inner.readers.lock();
        let _listeners = self.inner.listeners.lock();
        let list: Vec<_> = sources.list.values().cloned().collect();
        hold(&list, run);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_waits_an_hour_for_collections_of_no_reader() {
        let registry = Registry::new();
        let hour = ANONYMOUS_READER_MAX;
        assert_eq!(registry.readers(Duration::ZERO), 0);
        let _ = registry.collect();
        for (age, waits) in [(Duration::ZERO, 1), (hour / 2, 1), (2 * hour, 0)] {
            assert_eq!(registry.readers(age) >> ANONYMOUS, waits, "{age:?}");
        }
        let _reader = registry.reader(Temporality::Delta).unwrap();
        assert_eq!(registry.readers(2 * hour), 1, "readers are waited for");
    }
}
