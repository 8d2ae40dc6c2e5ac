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

mod handle;
mod settings;
mod store;

pub use settings::Matcher;

use self::handle::{CounterHandle, GaugeHandle, HistogramHandle};
use self::settings::{Context, Descriptions, Settings};
use self::store::Store;
use crate::builder::SERIES_MAX_DEFAULT;
use crate::histogram::Buckets;
use crate::registry::{BeforeCollection, Registry};
use metrics::{Key, KeyName, Metadata, SharedString, Unit};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Settings of a [`Recorder`].
#[derive(Clone, Debug)]
#[must_use = "a recorder exists once it is built"]
pub struct RecorderBuilder(Settings);

impl RecorderBuilder {
    /// After how long without a record a series is removed, unless the program keeps a handle on it. Looked at when the registry is
    /// collected. A series without labels goes with the last of its name. Without this, series stay.
    pub fn with_idle_timeout(mut self, idle: Duration) -> Self {
        self.0.idle = Some(idle);
        self
    }

    /// How many sets of labels of a name are told apart: [`SERIES_MAX_DEFAULT`] unless said here.
    pub fn with_cardinality_limit(mut self, series_max: usize) -> Self {
        self.0.series_max = series_max;
        self
    }

    /// Buckets of histograms with these names. The first setting that matches counts.
    pub fn with_buckets(mut self, names: Matcher, buckets: Buckets) -> Self {
        self.0.buckets.push((names, buckets));
        self
    }

    /// The recorder, for [`metrics::with_local_recorder`] or layers of `metrics-util`.
    pub fn build(self) -> Recorder {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let inner = Arc::new(Inner {
            context: Context {
                id: NEXT.fetch_add(1, Ordering::Relaxed),
                settings: self.0,
                descriptions: Descriptions::default(),
            },
            counters: Store::default(),
            gauges: Store::default(),
            histograms: Store::default(),
            swept: Mutex::default(),
        });
        inner
            .context
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
        RecorderBuilder(Settings {
            registry: registry.clone(),
            idle: None,
            series_max: SERIES_MAX_DEFAULT,
            buckets: Vec::new(),
        })
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("settings", &self.inner.context.settings)
            .finish_non_exhaustive()
    }
}

struct Inner {
    context: Context,
    counters: Store<CounterHandle>,
    gauges: Store<GaugeHandle>,
    histograms: Store<HistogramHandle>,
    /// When idle series were last looked for.
    swept: Mutex<Option<Instant>>,
}

impl BeforeCollection for Inner {
    fn before_collection(&self) {
        let Some(idle) = self.context.settings.idle else {
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

impl Inner {
    fn describe(&self, name: &KeyName, unit: Option<Unit>, description: SharedString) {
        let descriptions = &self.context.descriptions;
        descriptions.put(name.as_str(), unit, description);
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe(&key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe(&key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe(&key, unit, description);
    }

    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> metrics::Counter {
        metrics::Counter::from_arc(self.inner.counters.get(&self.inner.context, key))
    }

    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::from_arc(self.inner.gauges.get(&self.inner.context, key))
    }

    fn register_histogram(&self, key: &Key, _metadata: &Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::from_arc(self.inner.histograms.get(&self.inner.context, key))
    }
}
