#![doc = include_str!("../README.md")]
#![cfg_attr(
    feature = "document-features",
    doc = "## Feature flags of this version"
)]
#![cfg_attr(feature = "document-features", doc = document_features::document_features!())]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod background;
mod builder;
#[cfg(feature = "moka")]
mod by_moka;
#[cfg(not(feature = "moka"))]
#[path = "without_moka.rs"]
mod by_moka;
mod cache;
mod compute;
mod decisions;
mod depth;
mod entry;
mod error;
mod flight;
mod front;
mod fronts;
mod hash;
mod in_place;
mod index;
mod local;
mod manager;
#[cfg(feature = "metrics")]
mod metrics;
mod peers;
mod placement;
mod policy;
mod primitive;
mod queues;
#[cfg(test)]
mod random;
mod read;
mod reader;
mod removal;
mod shared;
mod sketch;
mod stats;
mod store;
mod summary;
mod table;
mod time;
mod value;
mod write;

#[cfg(perf_loom)]
#[doc(hidden)]
#[path = "loom.rs"]
pub mod __loom;

pub use builder::{CacheBuilder, RefreshTask};
pub use cache::TtlCache;
pub use decisions::PlacementDecisionCache;
pub use error::CacheError;
pub use local::{FRONT_PLACES, WIDE_FRONT_PLACES};
pub use manager::{CACHES_MAX, CacheManager, CleanupTask, Managed, Watched};
#[cfg(feature = "metrics")]
pub use metrics::CacheMetrics;
pub use peers::PeerConnectionCache;
pub use perf_atomics::DefaultHasher;
pub use placement::{
    AVOID_MAX, LABELS_MAX, Label, NODES_MAX, NodeCapacity, PlacementIndex, REQUIRE_MAX,
    Requirements, Strategy, Unfit,
};
pub use policy::Policy;
pub use reader::CacheReader;
pub use removal::Removal;
pub use stats::CacheStats;
pub use summary::{ResourceSummary, ResourceSummaryCache};
pub use time::{CoarseTime, ManualTime, PreciseTime, Time};
pub use value::{CachedValue, ValueBuilder, ValueReader};
