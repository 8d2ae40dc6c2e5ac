//! Instruments whose values are asked for when they are collected.

mod state;

use self::state::State;
use crate::MetricsError;
use crate::attributes::{KeyValue, normalize};
use crate::builder::SERIES_MAX_DEFAULT;
use crate::descriptor::{Descriptor, InstrumentKind};
use crate::liveness::{Leaving, Liveness};
use crate::number::Number;
use crate::registry::{Registry, WeakRegistry};
use crate::series::Source;
use crate::snapshot::InstrumentSnapshot;
use crate::table::next_id;
use parking_lot::Mutex;
use std::any::Any;
use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

thread_local! {
    /// This thread runs a callback.
    static IS_OBSERVING: Cell<bool> = const { Cell::new(false) };
}

/// Says that this thread runs callbacks, until it is dropped.
struct Observing;

impl Observing {
    fn begin() -> Self {
        let _ = IS_OBSERVING.try_with(|observing| observing.set(true));
        Self
    }
}

impl Drop for Observing {
    fn drop(&mut self) {
        let _ = IS_OBSERVING.try_with(|observing| observing.set(false));
    }
}

type Callback<T> = Arc<dyn Fn(&mut Observer<'_, T>) + Send + Sync>;

/// Takes what a callback observes.
pub struct Observer<'a, T> {
    observed: &'a mut Vec<(Vec<KeyValue>, T)>,
    kind: InstrumentKind,
}

impl<T: Number> Observer<'_, T> {
    /// Says the value of these attributes: for counters and up-down counters the sum so far, not what was added to it. Of the same
    /// attributes the last counts. Negative sums of counters and sums that are not finite are ignored.
    pub fn observe(&mut self, value: T, attributes: &[KeyValue]) {
        let is_valid = match self.kind {
            InstrumentKind::Counter => value.is_growth(),
            InstrumentKind::UpDownCounter => value.is_countable(),
            InstrumentKind::Gauge | InstrumentKind::Histogram => true,
        };
        if is_valid {
            self.observed.push((normalize(attributes), value));
        }
    }
}

impl<T> fmt::Debug for Observer<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer")
            .field("observed", &self.observed.len())
            .finish_non_exhaustive()
    }
}

/// Describes an instrument that is observed, and makes it.
#[must_use = "an instrument exists once it is built"]
pub struct ObservableBuilder<T> {
    registry: Registry,
    name: Cow<'static, str>,
    unit: Cow<'static, str>,
    description: Cow<'static, str>,
    kind: InstrumentKind,
    series_max: usize,
    is_beside_others: bool,
    callbacks: Vec<Callback<T>>,
}

impl<T: Number> ObservableBuilder<T> {
    pub(crate) fn new(registry: &Registry, name: Cow<'static, str>, kind: InstrumentKind) -> Self {
        Self {
            registry: registry.clone(),
            name,
            unit: Cow::Borrowed(""),
            description: Cow::Borrowed(""),
            kind,
            series_max: SERIES_MAX_DEFAULT,
            is_beside_others: false,
            callbacks: Vec::new(),
        }
    }

    /// The unit in UCUM notation: `s`, `By`, `{request}`.
    pub fn with_unit(mut self, unit: impl Into<Cow<'static, str>>) -> Self {
        self.unit = unit.into();
        self
    }

    /// One sentence for the reader of a dashboard.
    pub fn with_description(mut self, description: impl Into<Cow<'static, str>>) -> Self {
        self.description = description.into();
        self
    }

    /// How many sets of attributes are told apart, [`SERIES_MAX_DEFAULT`] unless said here. Sets that were observed before and are
    /// not any more make room for new ones. What exceeds the limit is in one series with the attribute `otel.metric.overflow = true`:
    /// the sum of the others, of gauges the last.
    pub fn with_cardinality_limit(mut self, series_max: usize) -> Self {
        self.series_max = series_max;
        self
    }

    /// Calls `callback` at each collection, in the thread that collects. It should be quick, and it may record to instruments and
    /// make some. If it collects a registry itself, that collection calls no callbacks. If it panics, what it observed at that
    /// collection is lost, and the registry's error handler is told of the first of several panics in a row.
    pub fn with_callback(
        mut self,
        callback: impl Fn(&mut Observer<'_, T>) + Send + Sync + 'static,
    ) -> Self {
        self.callbacks.push(Arc::new(callback));
        self
    }

    #[cfg(feature = "meter-provider")]
    pub(crate) fn beside_others(mut self) -> Self {
        self.is_beside_others = true;
        self
    }

    /// Makes the instrument, or adds the callbacks to the registry's instrument of this description.
    ///
    /// # Errors
    /// [`MetricsError`]: name or unit are not valid, another instrument has the name, or the registry is full.
    pub fn build(self) -> Result<Observable, MetricsError> {
        let descriptor = Descriptor::new(
            self.name.clone(),
            self.unit.clone(),
            self.description.clone(),
            self.kind,
            T::KIND,
        )?;
        let descriptor = descriptor.in_scope(self.registry.scope()).observable();
        let handle = |core: Arc<Core<T>>| {
            let id = next_id();
            let callbacks = self.callbacks.iter().cloned();
            core.callbacks
                .lock()
                .extend(callbacks.map(|callback| (id, callback)));
            Observable {
                core: Some(core),
                id,
            }
        };
        let get = |source: Arc<dyn Source>| source.into_any().downcast().ok().map(handle);
        let make = || {
            let start = SystemTime::now();
            let core = Arc::new(Core {
                id: next_id(),
                descriptor: Arc::new(descriptor.clone()),
                registry: self.registry.downgrade(),
                series_max: self.series_max,
                callbacks: Mutex::default(),
                liveness: Liveness::new(start, false),
                state: Mutex::new(State::new(start)),
                has_panicked: AtomicBool::new(false),
            });
            Ok((handle(Arc::clone(&core)), core as Arc<dyn Source>))
        };
        self.registry
            .get_or_make(&descriptor, self.is_beside_others, get, make)
    }
}

impl<T> fmt::Debug for ObservableBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservableBuilder")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Keeps the callbacks of an instrument. They are called until it is dropped; a call in progress then ends as usual.
///
/// ```
/// use perf_metrics::Registry;
///
/// let registry = Registry::new();
/// let uptime = std::time::Instant::now();
/// let observed = registry
///     .f64_observable_counter("process.uptime")
///     .with_unit("s")
///     .with_callback(move |observer| observer.observe(uptime.elapsed().as_secs_f64(), &[]))
///     .build()?;
/// assert!(registry.collect().metric("process.uptime").is_some());
/// // Observed for as long as the registry is there.
/// observed.keep();
/// # Ok::<(), perf_metrics::MetricsError>(())
/// ```
#[must_use = "dropping it ends the callbacks; `keep` lets them run as long as the registry"]
pub struct Observable {
    core: Option<Arc<dyn Callbacks>>,
    id: u64,
}

impl Observable {
    /// Lets the callbacks run as long as the registry is there.
    pub fn keep(mut self) {
        self.core = None;
    }
}

impl Drop for Observable {
    fn drop(&mut self) {
        if let Some(core) = &self.core {
            core.end(self.id);
        }
    }
}

impl fmt::Debug for Observable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observable").finish_non_exhaustive()
    }
}

impl Registry {
    /// A sum of integers that only grows and is kept elsewhere: bytes that the system has read. See [`ObservableBuilder::with_callback`].
    pub fn u64_observable_counter(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> ObservableBuilder<u64> {
        ObservableBuilder::new(self, name.into(), InstrumentKind::Counter)
    }

    /// A sum of fractions that only grows and is kept elsewhere: seconds of CPU time. See [`ObservableBuilder::with_callback`].
    pub fn f64_observable_counter(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> ObservableBuilder<f64> {
        ObservableBuilder::new(self, name.into(), InstrumentKind::Counter)
    }

    /// A sum of integers that goes up and down and is kept elsewhere: open files. See [`ObservableBuilder::with_callback`].
    pub fn i64_observable_up_down_counter(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> ObservableBuilder<i64> {
        ObservableBuilder::new(self, name.into(), InstrumentKind::UpDownCounter)
    }

    /// A sum of fractions that goes up and down and is kept elsewhere. See [`ObservableBuilder::with_callback`].
    pub fn f64_observable_up_down_counter(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> ObservableBuilder<f64> {
        ObservableBuilder::new(self, name.into(), InstrumentKind::UpDownCounter)
    }

    /// A value that is asked for: the length of a queue. See [`ObservableBuilder::with_callback`].
    pub fn u64_observable_gauge(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> ObservableBuilder<u64> {
        ObservableBuilder::new(self, name.into(), InstrumentKind::Gauge)
    }

    /// A signed value that is asked for. See [`ObservableBuilder::with_callback`].
    pub fn i64_observable_gauge(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> ObservableBuilder<i64> {
        ObservableBuilder::new(self, name.into(), InstrumentKind::Gauge)
    }

    /// A fraction that is asked for: a temperature. See [`ObservableBuilder::with_callback`].
    pub fn f64_observable_gauge(
        &self,
        name: impl Into<Cow<'static, str>>,
    ) -> ObservableBuilder<f64> {
        ObservableBuilder::new(self, name.into(), InstrumentKind::Gauge)
    }
}

trait Callbacks: Send + Sync {
    fn end(&self, id: u64);
}

struct Core<T> {
    id: u64,
    descriptor: Arc<Descriptor>,
    registry: WeakRegistry,
    series_max: usize,
    /// With the id of the handle that keeps them. Not locked while they run.
    callbacks: Mutex<Vec<(u64, Callback<T>)>>,
    liveness: Liveness,
    /// Locked while callbacks run, so that what is observed first is also kept first.
    state: Mutex<State<T>>,
    has_panicked: AtomicBool,
}

impl<T: Number> Callbacks for Core<T> {
    fn end(&self, id: u64) {
        let ended: Vec<_> = {
            let mut callbacks = self.callbacks.lock();
            let (ended, others) = callbacks.drain(..).partition(|(other, _)| *other == id);
            *callbacks = others;
            ended
        };
        // Dropped without the lock: what they own may drop other handles.
        drop(ended);
    }
}

impl<T: Number> Core<T> {
    fn run_callbacks(&self) -> Vec<(Vec<KeyValue>, T)> {
        let callbacks: Vec<_> = {
            let callbacks = self.callbacks.lock();
            callbacks.iter().map(|(_, call)| Arc::clone(call)).collect()
        };
        let mut observed = Vec::new();
        let mut has_panicked = false;
        let _observing = Observing::begin();
        for callback in callbacks {
            let before = observed.len();
            let mut observer = Observer {
                observed: &mut observed,
                kind: self.descriptor.kind(),
            };
            if catch_unwind(AssertUnwindSafe(|| callback(&mut observer))).is_err() {
                observed.truncate(before);
                has_panicked = true;
            }
        }
        // Still observing: an error handler that collects would otherwise wait for the lock that this thread holds.
        if has_panicked && !self.has_panicked.swap(has_panicked, Ordering::Relaxed) {
            self.registry.report(&MetricsError::CallbackPanicked {
                name: self.descriptor.name().to_owned(),
            });
        }
        self.has_panicked.store(has_panicked, Ordering::Relaxed);
        observed
    }
}

impl<T: Number> Source for Core<T> {
    fn id(&self) -> u64 {
        self.id
    }

    fn descriptor(&self) -> &Arc<Descriptor> {
        &self.descriptor
    }

    fn collect(
        &self,
        _reader: usize,
        _extremes: Option<usize>,
        _readers: u16,
        out: &mut InstrumentSnapshot,
    ) {
        // A collection within a callback: another one may hold the lock and wait for it.
        if IS_OBSERVING.try_with(Cell::get).unwrap_or(true) {
            out.series.clear();
            return;
        }
        let mut state = self.state.lock();
        let (observed, now) = (self.run_callbacks(), SystemTime::now());
        state.observe(observed, self.descriptor.kind(), self.series_max, now);
        state.read(out);
    }

    fn forget(&self, _reader: usize) {}

    #[cfg(feature = "otel")]
    fn boundaries(&self) -> Option<&[f64]> {
        None
    }

    fn hold(&self, run: &mut dyn FnMut()) {
        run();
    }

    fn is_held(&self) -> bool {
        !self.callbacks.lock().is_empty()
    }

    fn leave(&self, reader: usize, readers: u16) -> Leaving {
        self.liveness.leave(reader, readers, true, 0)
    }

    fn stay(&self) {
        self.liveness.stay();
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl<T: Number> fmt::Debug for Core<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("name", &self.descriptor.name())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::number::Value;

    #[test]
    fn series_that_are_not_observed_any_more_make_room() {
        let registry = Registry::new();
        let round = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let seen = Arc::clone(&round);
        let _observed = registry
            .u64_observable_counter("c")
            .with_cardinality_limit(2)
            .with_callback(move |observer| {
                let n = seen.load(Ordering::Relaxed) as i64;
                for key in [n, n + 1] {
                    observer.observe(5, &[KeyValue::new("n", key)]);
                }
            })
            .build()
            .unwrap();
        for n in 0..20 {
            round.store(n, Ordering::Relaxed);
            let snapshot = registry.collect();
            let metric = snapshot.metric("c").unwrap();
            for key in [n as i64, n as i64 + 1] {
                let found = metric.find(&[KeyValue::new("n", key)]).unwrap();
                assert_eq!(found.value(), Some(Value::U64(5)));
            }
            assert_eq!(metric.series().len(), 2);
        }
    }
}
