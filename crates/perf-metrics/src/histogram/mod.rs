//! Distributions: layouts of buckets, recording, and what a snapshot tells of them.

mod bucket_table;
mod layout;
mod record;
mod scale;
mod snapshot;

pub(crate) use bucket_table::Domain;
pub use layout::{
    BOUNDARIES_MAX, Buckets, CELLS_PER_SERIES_MAX, DEFAULT_BOUNDARIES, DEFAULT_SCALE,
};
pub(crate) use layout::{Layout, Shape};
pub use record::{BoundHistogram, HistogramNumber};
#[cfg(feature = "prometheus")]
pub(crate) use scale::{index_f64, lower_bound};
pub use snapshot::{ExponentialBuckets, HistogramSnapshot, Quantile};
