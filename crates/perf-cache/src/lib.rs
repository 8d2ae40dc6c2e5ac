#![doc = include_str!("../README.md")]
#![cfg_attr(
    feature = "document-features",
    doc = "## Feature flags of this version"
)]
#![cfg_attr(feature = "document-features", doc = document_features::document_features!())]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod background;
mod builder;
mod cache;
mod compute;
mod depth;
mod entry;
mod error;
mod flight;
mod front;
mod local;
mod policy;
mod primitive;
mod reader;
mod shadow;
mod shard;
mod stats;
mod time;

pub use builder::CacheBuilder;
pub use cache::TtlCache;
pub use error::CacheError;
pub use local::FRONT_PLACES;
pub use perf_atomics::DefaultHasher;
pub use policy::Policy;
pub use reader::CacheReader;
pub use stats::CacheStats;
pub use time::{CoarseTime, ManualTime, PreciseTime, Time};
