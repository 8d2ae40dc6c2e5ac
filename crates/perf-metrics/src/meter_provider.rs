//! OpenTelemetry's `MeterProvider` on a registry: code that uses the API records here, without a change.
//!
//! ```
//! use opentelemetry::{KeyValue, global};
//! use perf_metrics::{Registry, meter_provider::RegistryMeterProvider};
//!
//! let registry = Registry::new();
//! global::set_meter_provider(RegistryMeterProvider::new(&registry));
//! // Anywhere, in code that knows the API alone:
//! let requests = global::meter("server").u64_counter("requests").build();
//! requests.add(1, &[KeyValue::new("peer", "n2")]);
//! assert!(registry.collect().metric("requests").is_some());
//! ```
//!
//! | | |
//! |---|---|
//! | scopes | part of an instrument's identity, and exported |
//! | the same instrument again | one stream; its description is that of the first |
//! | an instrument whose handles are all dropped | stays, as in the SDK: code may make it anew for each record |
//! | the same name with another kind, number or unit | both are kept and exported; the registry's error handler is told |
//! | histograms | the boundaries that are asked for, else those of the SDK, or exponential buckets: [`RegistryMeterProvider::with_exponential_histograms`] |
//! | bound instruments | a series that is found once |
//! | observable instruments | their callbacks run at each collection of the registry, as long as the registry is there |
//! | invalid names and units | the instrument records nothing; the registry's error handler is told |
//! | cardinality | 2000 sets of attributes an instrument, then `otel.metric.overflow = true`, as in the SDK |
//! | views, readers and exporters of the SDK | not there: use the exporters of this crate, or the feature `otel` |

use crate::attributes::KeyValue;
use crate::builder::{Instrument, InstrumentBuilder, SERIES_MAX_DEFAULT};
use crate::cells::{BoundCounter, BoundUpDownCounter};
use crate::descriptor::Scope;
use crate::gauge::BoundGauge;
use crate::histogram::{BoundHistogram, DEFAULT_BOUNDARIES, HistogramNumber};
use crate::instruments::{Counter, Gauge, Histogram, UpDownCounter};
use crate::number::Number;
use crate::observable::{ObservableBuilder, Observer};
use crate::registry::Registry;
use opentelemetry::InstrumentationScope;
use opentelemetry::metrics as api;
use parking_lot::Mutex;
use std::sync::Arc;

/// Provides meters whose instruments are those of a registry.
#[derive(Clone, Debug)]
pub struct RegistryMeterProvider {
    registry: Registry,
    is_exponential: bool,
}

impl RegistryMeterProvider {
    /// A provider of this registry's instruments.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            registry: registry.clone(),
            is_exponential: false,
        }
    }

    /// Gives exponential buckets of scale 3 to histograms for which no boundaries are asked, in the place of
    /// [`DEFAULT_BOUNDARIES`].
    #[must_use]
    pub fn with_exponential_histograms(mut self) -> Self {
        self.is_exponential = true;
        self
    }

    /// The registry, for exporters.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl api::MeterProvider for RegistryMeterProvider {
    fn meter_with_scope(&self, scope: InstrumentationScope) -> api::Meter {
        let mut own =
            Scope::new(scope.name().to_owned()).with_attributes(scope.attributes().cloned());
        if let Some(version) = scope.version() {
            own = own.with_version(version.to_owned());
        }
        if let Some(url) = scope.schema_url() {
            own = own.with_schema_url(url.to_owned());
        }
        api::Meter::new(Arc::new(Instruments {
            registry: self.registry.with_scope(own),
            is_exponential: self.is_exponential,
        }))
    }
}

/// Makes the instruments of one meter.
struct Instruments {
    registry: Registry,
    is_exponential: bool,
}

/// An instrument or a series of this crate in the API's terms.
struct Adapter<I>(I);

macro_rules! adapt {
    ($Instrument:ident, $Bound:ident, $Number:ident, $record:ident) => {
        impl<T: $Number> api::SyncInstrument<T> for Adapter<$Instrument<T>> {
            fn measure(&self, measurement: T, attributes: &[KeyValue]) {
                self.0.$record(measurement, attributes);
            }

            fn bind(
                &self,
                attributes: &[KeyValue],
            ) -> Box<dyn api::BoundSyncInstrument<T> + Send + Sync> {
                Box::new(Adapter(self.0.bind(attributes)))
            }
        }

        impl<T: $Number> api::BoundSyncInstrument<T> for Adapter<$Bound<T>> {
            fn measure(&self, measurement: T) {
                self.0.$record(measurement);
            }
        }
    };
}

adapt!(Counter, BoundCounter, Number, add);
adapt!(UpDownCounter, BoundUpDownCounter, Number, add);
adapt!(Gauge, BoundGauge, Number, set);
adapt!(Histogram, BoundHistogram, HistogramNumber, record);

/// A callback of the API meets an observer of this crate. The API wants it to be shared between threads, which no callback does.
struct AsyncAdapter<'a, 'b, T>(Mutex<&'a mut Observer<'b, T>>);

impl<T: Number> api::AsyncInstrument<T> for AsyncAdapter<'_, '_, T> {
    fn observe(&self, measurement: T, attributes: &[KeyValue]) {
        self.0.lock().observe(measurement, attributes);
    }
}

fn sync<I: Instrument, A>(
    builder: InstrumentBuilder<I>,
    from: &api::InstrumentBuilder<'_, A>,
) -> Adapter<I> {
    let builder = builder
        .with_unit(from.unit.clone().unwrap_or_default())
        .with_description(from.description.clone().unwrap_or_default());
    Adapter(builder.beside_others().kept().build_or_detached())
}

impl Instruments {
    fn histogram<T: HistogramNumber, A>(
        &self,
        builder: InstrumentBuilder<Histogram<T>>,
        from: api::HistogramBuilder<'_, A>,
    ) -> Adapter<Histogram<T>> {
        let mut builder = builder
            .with_unit(from.unit.unwrap_or_default())
            .with_description(from.description.unwrap_or_default())
            .with_cardinality_limit(SERIES_MAX_DEFAULT)
            .beside_others()
            .kept();
        match from.boundaries {
            Some(boundaries) => builder = builder.with_boundaries(boundaries),
            None if self.is_exponential => {}
            None => builder = builder.with_boundaries(DEFAULT_BOUNDARIES),
        }
        Adapter(builder.build_or_detached())
    }

    fn observable<T: Number, A>(
        &self,
        builder: ObservableBuilder<T>,
        from: api::AsyncInstrumentBuilder<'_, A, T>,
    ) {
        let mut builder = builder
            .with_unit(from.unit.unwrap_or_default())
            .with_description(from.description.unwrap_or_default())
            .beside_others();
        for callback in from.callbacks {
            builder = builder.with_callback(move |observer| {
                callback(&AsyncAdapter(Mutex::new(observer)));
            });
        }
        match builder.build() {
            Ok(observed) => observed.keep(),
            Err(error) => self.registry.report(&error),
        }
    }
}

macro_rules! provide {
    ($($method:ident: $Instrument:ident<$T:ty>;)+) => {
        $(
            fn $method(
                &self,
                builder: api::InstrumentBuilder<'_, api::$Instrument<$T>>,
            ) -> api::$Instrument<$T> {
                let own = self.registry.$method(builder.name.clone());
                api::$Instrument::new(Arc::new(sync(own, &builder)))
            }
        )+
    };
}

macro_rules! provide_histograms {
    ($($method:ident: $T:ty;)+) => {
        $(
            fn $method(
                &self,
                builder: api::HistogramBuilder<'_, api::Histogram<$T>>,
            ) -> api::Histogram<$T> {
                let own = self.registry.$method(builder.name.clone());
                api::Histogram::new(Arc::new(self.histogram(own, builder)))
            }
        )+
    };
}

macro_rules! provide_observables {
    ($($method:ident: $Instrument:ident<$T:ty>;)+) => {
        $(
            fn $method(
                &self,
                builder: api::AsyncInstrumentBuilder<'_, api::$Instrument<$T>, $T>,
            ) -> api::$Instrument<$T> {
                self.observable(self.registry.$method(builder.name.clone()), builder);
                api::$Instrument::new()
            }
        )+
    };
}

impl api::InstrumentProvider for Instruments {
    provide! {
        u64_counter: Counter<u64>;
        f64_counter: Counter<f64>;
        i64_up_down_counter: UpDownCounter<i64>;
        f64_up_down_counter: UpDownCounter<f64>;
        u64_gauge: Gauge<u64>;
        i64_gauge: Gauge<i64>;
        f64_gauge: Gauge<f64>;
    }

    provide_histograms! {
        u64_histogram: u64;
        f64_histogram: f64;
    }

    provide_observables! {
        u64_observable_counter: ObservableCounter<u64>;
        f64_observable_counter: ObservableCounter<f64>;
        i64_observable_up_down_counter: ObservableUpDownCounter<i64>;
        f64_observable_up_down_counter: ObservableUpDownCounter<f64>;
        u64_observable_gauge: ObservableGauge<u64>;
        i64_observable_gauge: ObservableGauge<i64>;
        f64_observable_gauge: ObservableGauge<f64>;
    }
}
