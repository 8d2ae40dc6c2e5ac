//! Distributions: layouts of buckets, recording, and what a snapshot tells of them.

mod layout;
mod record;
mod scale;
mod snapshot;
mod steps;

pub use layout::{
    BOUNDARIES_MAX, Buckets, CELLS_PER_SERIES_MAX, DEFAULT_BOUNDARIES, DEFAULT_SCALE,
};
pub(crate) use layout::{Layout, Shape};
pub use record::{BoundHistogram, HistogramNumber};
pub use snapshot::{ExponentialBuckets, HistogramSnapshot, Quantile};
pub(crate) use steps::Domain;
