#![doc = include_str!("../README.md")]
#![cfg_attr(
    feature = "document-features",
    doc = "## Feature flags of this version"
)]
#![cfg_attr(feature = "document-features", doc = document_features::document_features!())]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod addresses;
mod attributes;
mod builder;
mod cells;
mod descriptor;
mod dynamic;
mod error;
mod exemplar;
mod gauge;
pub mod helpers;
mod histogram;
mod instruments;
mod labels;
mod liveness;
pub mod node;
mod number;
mod observable;
mod origin;
mod primitive;
mod reader;
mod registry;
mod series;
mod snapshot;
mod table;

#[cfg(feature = "otel")]
pub mod otel;

#[cfg(feature = "meter-provider")]
pub mod meter_provider;
#[cfg(feature = "otlp")]
pub mod otlp;
#[cfg(feature = "prometheus")]
pub mod prometheus;
#[cfg(feature = "recorder")]
pub mod recorder;
pub mod runtime;

pub use attributes::{AttributeValue, EMPTY_ATTRS, Key, KeyValue};
pub use builder::{
    HISTOGRAM_SERIES_MAX_DEFAULT, Instrument, InstrumentBuilder, SERIES_MAX_DEFAULT,
};
pub use cells::{BoundCounter, BoundUpDownCounter};
pub use descriptor::{Descriptor, InstrumentKind, NumberKind, Scope};
pub use dynamic::ATTRIBUTES_MAX;
pub use error::MetricsError;
pub use exemplar::{EXEMPLARS_MAX, Exemplar, TraceContext};
pub use gauge::BoundGauge;
pub use histogram::{
    BOUNDARIES_MAX, BoundHistogram, Buckets, CELLS_PER_SERIES_MAX, DEFAULT_BOUNDARIES,
    DEFAULT_SCALE, ExponentialBuckets, HistogramNumber, HistogramSnapshot, Quantile,
};
pub use instruments::{Counter, Gauge, Histogram, Timer, UpDownCounter};
pub use labels::{LabelSet, Labels, Row};
pub use node::NodeMetrics;
pub use number::{Number, Value};
pub use observable::{Observable, ObservableBuilder, Observer};
pub use origin::{
    create_node_id_attr, create_operation_attr, create_service_attr, record_vm_operation,
    string_constants,
};
pub use reader::{Reader, Temporality};
pub use registry::{ANONYMOUS_READER_MAX, INSTRUMENTS_MAX, READERS_MAX, Registry};
pub use snapshot::{InstrumentSnapshot, MetricsSnapshot, Point, SeriesSnapshot};

/// Lets the loom tests choose a deliberate fault. Not a public interface.
#[cfg(perf_loom)]
#[doc(hidden)]
pub use perf_atomics::__loom;
