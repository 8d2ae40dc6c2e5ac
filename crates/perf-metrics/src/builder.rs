//! How instruments are made.

use crate::MetricsError;
use crate::cells::{BoundCounter, BoundUpDownCounter, SumSpec};
use crate::descriptor::{Descriptor, InstrumentKind, NumberKind};
use crate::exemplar::ExemplarSource;
use crate::gauge::BoundGauge;
use crate::histogram::{BoundHistogram, Buckets, Domain, HistogramNumber, Layout};
use crate::instruments::{Counter, Gauge, Histogram, UpDownCounter};
use crate::labels::Labels;
use crate::number::Number;
use crate::registry::Registry;
use crate::series::{Core, HistogramSpec, SeriesCell, Source};
use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How many sets of attributes a counter or gauge tells apart where its maker says nothing: as many as the SDK,
/// <https://opentelemetry.io/docs/specs/otel/metrics/sdk/#cardinality-limits>.
pub const SERIES_MAX_DEFAULT: usize = 2000;

/// The same for a histogram, whose series are hundreds of cells each.
pub const HISTOGRAM_SERIES_MAX_DEFAULT: usize = 100;

/// A kind of instrument that [`InstrumentBuilder`] makes. Sealed.
pub trait Instrument: Sized + sealed::Sealed {
    /// One series of it.
    type Bound: SeriesCell;
    #[doc(hidden)]
    const KIND: InstrumentKind;
    #[doc(hidden)]
    const NUMBER: NumberKind;
    #[doc(hidden)]
    const SERIES_MAX: usize = SERIES_MAX_DEFAULT;
    #[doc(hidden)]
    fn spec(
        name: &str,
        buckets: Option<&Buckets>,
        source: Option<ExemplarSource>,
    ) -> Result<<Self::Bound as SeriesCell>::Spec, MetricsError>;
    #[doc(hidden)]
    fn default_spec() -> <Self::Bound as SeriesCell>::Spec;
    #[doc(hidden)]
    fn from_core(made: Made<Self::Bound>) -> Self;
}

/// Keeps a private type out of a public trait's signature.
#[doc(hidden)]
#[derive(Debug)]
pub struct Made<C: SeriesCell> {
    plain: C,
    core: Arc<Core<C>>,
}

mod sealed {
    use super::{Counter, Gauge, Histogram, HistogramNumber, Number, UpDownCounter};

    pub trait Sealed {}
    impl<T: Number> Sealed for Counter<T> {}
    impl<T: Number> Sealed for UpDownCounter<T> {}
    impl<T: Number> Sealed for Gauge<T> {}
    impl<T: HistogramNumber> Sealed for Histogram<T> {}
}

macro_rules! simple {
    ($Instrument:ident, $Bound:ident, $Spec:ty, $spec:expr) => {
        impl<T: Number> Instrument for $Instrument<T> {
            type Bound = $Bound<T>;
            const KIND: InstrumentKind = InstrumentKind::$Instrument;
            const NUMBER: NumberKind = T::KIND;

            fn spec(
                _name: &str,
                _buckets: Option<&Buckets>,
                source: Option<ExemplarSource>,
            ) -> Result<$Spec, MetricsError> {
                let spec: fn(Option<ExemplarSource>) -> $Spec = $spec;
                Ok(spec(source))
            }

            fn default_spec() -> $Spec {
                let spec: fn(Option<ExemplarSource>) -> $Spec = $spec;
                spec(None)
            }

            fn from_core(made: Made<$Bound<T>>) -> Self {
                Self::from_parts(made.plain, made.core)
            }
        }
    };
}

simple!(Counter, BoundCounter, SumSpec, SumSpec);
simple!(UpDownCounter, BoundUpDownCounter, SumSpec, SumSpec);
simple!(Gauge, BoundGauge, (), |_| ());

impl<T: HistogramNumber> Instrument for Histogram<T> {
    type Bound = BoundHistogram<T>;
    const KIND: InstrumentKind = InstrumentKind::Histogram;
    const NUMBER: NumberKind = T::KIND;
    const SERIES_MAX: usize = HISTOGRAM_SERIES_MAX_DEFAULT;

    fn spec(
        name: &str,
        buckets: Option<&Buckets>,
        source: Option<ExemplarSource>,
    ) -> Result<HistogramSpec, MetricsError> {
        let domain = T::DOMAIN.0;
        let layout = match buckets {
            Some(buckets) => Arc::new(Layout::new(name, buckets, domain)?),
            None => Layout::shared_default(domain),
        };
        Ok(HistogramSpec { layout, source })
    }

    fn default_spec() -> HistogramSpec {
        HistogramSpec {
            layout: Layout::shared_default(T::DOMAIN.0),
            source: None,
        }
    }

    fn from_core(made: Made<BoundHistogram<T>>) -> Self {
        Self::from_parts(made.plain, made.core)
    }
}

/// Describes an instrument and makes it.
#[derive(Clone, Debug)]
#[must_use = "an instrument exists once it is built"]
pub struct InstrumentBuilder<I> {
    registry: Registry,
    name: Cow<'static, str>,
    unit: Cow<'static, str>,
    description: Cow<'static, str>,
    series_max: Option<usize>,
    retention: Option<Duration>,
    buckets: Option<Buckets>,
    is_beside_others: bool,
    is_kept: bool,
    _instrument: PhantomData<fn() -> I>,
}

impl<I: Instrument> InstrumentBuilder<I> {
    pub(crate) fn new(registry: &Registry, name: Cow<'static, str>) -> Self {
        Self {
            registry: registry.clone(),
            name,
            unit: Cow::Borrowed(""),
            description: Cow::Borrowed(""),
            series_max: None,
            retention: None,
            buckets: None,
            is_beside_others: false,
            is_kept: false,
            _instrument: PhantomData,
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

    /// How many sets of attributes given at run time are told apart; what exceeds them counts in one series with the attribute
    /// `otel.metric.overflow = true`. [`SERIES_MAX_DEFAULT`], for histograms
    /// [`HISTOGRAM_SERIES_MAX_DEFAULT`] unless said here. At most `1 << 20`, as many as there are cells.
    pub fn with_cardinality_limit(mut self, series_max: usize) -> Self {
        self.series_max = Some(series_max.min(perf_atomics::slab::CELLS_MAX));
        self
    }

    /// After how long without a record a series of attributes given at run time is removed, like by
    /// [`remove`](crate::Counter::remove). Looked at when the registry is collected. Series that are bound stay. Without this, series
    /// stay as long as their instrument.
    pub fn with_retention(mut self, idle: Duration) -> Self {
        self.retention = Some(idle);
        self
    }

    fn descriptor(&self) -> Result<Descriptor, MetricsError> {
        let descriptor = Descriptor::new(
            self.name.clone(),
            self.unit.clone(),
            self.description.clone(),
            I::KIND,
            I::NUMBER,
        )?;
        Ok(descriptor.in_scope(self.registry.scope()))
    }

    fn spec(&self) -> Result<<I::Bound as SeriesCell>::Spec, MetricsError> {
        let source = self.registry.exemplar_source();
        I::spec(&self.name, self.buckets.as_ref(), source)
    }

    /// Lets instruments that differ in kind, number or unit have the name too: exporters then meet both. An instrument that differs in
    /// less is the one that there is.
    #[cfg(any(feature = "meter-provider", feature = "recorder"))]
    pub(crate) fn beside_others(mut self) -> Self {
        self.is_beside_others = true;
        self
    }

    /// Lets the instrument stay in the registry when no handle on it is left.
    #[cfg(feature = "meter-provider")]
    pub(crate) fn kept(mut self) -> Self {
        self.is_kept = true;
        self
    }

    /// The instrument: the registry's, if it has one of this name, kind, number, unit, description and buckets, whatever its limits;
    /// otherwise a new one. Takes locks, allocates.
    ///
    /// # Errors
    /// [`MetricsError`]: name, unit or buckets are not valid, another instrument has the name, or something is full.
    pub fn build(self) -> Result<I, MetricsError> {
        let descriptor = self.descriptor()?;
        let spec = self.spec()?;
        let got = |source: Arc<dyn Source>| {
            let core = source.into_any().downcast::<Core<I::Bound>>().ok()?;
            let plain = core
                .plain_cell()
                .filter(|_| self.is_beside_others || I::Bound::is_same_spec(&core.spec, &spec))?;
            if self.is_kept {
                core.keep();
            }
            Some(I::from_core(Made { plain, core }))
        };
        let spec_of_new = self.spec()?;
        let make = || {
            let limit = self.series_max.unwrap_or(I::SERIES_MAX);
            let core = Core::plain(
                descriptor.clone(),
                spec_of_new,
                limit,
                self.retention,
                SystemTime::now(),
            )?;
            let core = Arc::new(core);
            if self.is_kept {
                core.keep();
            }
            // Just made, with the series that a plain instrument has.
            let plain = core.plain_cell().ok_or(MetricsError::DuplicateName {
                name: String::new(),
            })?;
            let source: Arc<dyn Source> = Arc::clone(&core) as _;
            Ok((I::from_core(Made { plain, core }), source))
        };
        self.registry
            .get_or_make(&descriptor, self.is_beside_others, got, make)
    }

    /// [`build`](Self::build) for code that must go on: where that fails, the problem is told to
    /// [`Registry::set_error_handler`](crate::Registry::set_error_handler), and the result is an instrument that no registry knows.
    /// What is recorded to it is lost.
    pub fn build_or_detached(self) -> I {
        let registry = self.registry.clone();
        self.build().unwrap_or_else(|error| {
            registry.report(&error);
            let spec = I::default_spec();
            let plain = I::Bound::detached(&spec);
            let core = Arc::new(Core::detached(
                Descriptor::detached(I::KIND, I::NUMBER),
                spec,
            ));
            I::from_core(Made { plain, core })
        })
    }

    /// Makes a table with one series for each combination of labels: `(Operation,)`, `(Operation, Outcome)`,
    /// or three of them.
    ///
    /// ```
    /// perf_metrics::label_set! {
    ///     enum Operation: "operation" { Create => "create", Stop => "stop" }
    /// }
    /// perf_metrics::label_set! {
    ///     enum Outcome: "outcome" { Success => "success", Failed => "failed" }
    /// }
    ///
    /// let registry = perf_metrics::Registry::new();
    /// let operations = registry.u64_counter("vm.operations").build_table::<(Operation, Outcome)>()?;
    /// operations[Operation::Create][Outcome::Success].increment();
    /// # Ok::<(), perf_metrics::MetricsError>(())
    /// ```
    ///
    /// # Errors
    /// The same as [`build`](Self::build).
    pub fn build_table<L: Labels>(self) -> Result<L::Table<I::Bound>, MetricsError> {
        let descriptor = self.descriptor()?;
        let spec = self.spec()?;
        let spec_of_new = self.spec()?;
        let got = |source: Arc<dyn Source>| {
            let core = source.into_any().downcast::<Core<I::Bound>>().ok()?;
            if !I::Bound::is_same_spec(&core.spec, &spec) {
                return None;
            }
            let other = || MetricsError::DuplicateName {
                name: self.name.clone().into_owned(),
            };
            let mut count = 0;
            let table = L::make(&mut Vec::new(), &mut |attributes| {
                count += 1;
                core.fixed_cell(attributes).ok_or_else(other)
            });
            table.ok().filter(|_| count == core.fixed_len())
        };
        let make = || {
            let mut core = Core::table(descriptor.clone(), spec_of_new, SystemTime::now());
            let table = L::make(&mut Vec::new(), &mut |attributes| core.push(attributes))?;
            Ok((table, Arc::new(core) as Arc<dyn Source>))
        };
        self.registry.get_or_make(&descriptor, false, got, make)
    }
}

impl<T: HistogramNumber> InstrumentBuilder<Histogram<T>> {
    /// Explicit buckets with these upper bounds, the same as in the SDK.
    pub fn with_boundaries(self, boundaries: impl Into<Vec<f64>>) -> Self {
        self.with_buckets(Buckets::Explicit(boundaries.into()))
    }

    /// Exponential buckets of this scale, of `u64` over all of its range, of `f64` from `2^-30` to `2^34`.
    pub fn with_scale(self, scale: u8) -> Self {
        let mut buckets = Layout::default_buckets(T::DOMAIN.0);
        if let Buckets::Exponential { scale: chosen, .. } = &mut buckets {
            *chosen = scale;
        }
        self.with_buckets(buckets)
    }

    /// Any buckets. Without this a histogram has exponential buckets of scale 3.
    pub fn with_buckets(mut self, buckets: Buckets) -> Self {
        self.buckets = Some(buckets);
        self
    }
}

impl Layout {
    fn default_buckets(domain: Domain) -> Buckets {
        match domain {
            Domain::U64 => Buckets::default_u64(),
            Domain::F64 => Buckets::default_f64(),
        }
    }
}

impl Registry {
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
