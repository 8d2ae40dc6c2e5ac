#![doc = include_str!("../README.md")]
//!
//! ## Features
#![cfg_attr(feature = "document-features", doc = document_features::document_features!())]

#[cfg(feature = "atomics")]
#[doc(inline)]
pub use perf_atomics as atomics;

#[cfg(feature = "cache")]
#[doc(inline)]
pub use perf_cache as cache;

#[cfg(feature = "metrics")]
#[doc(inline)]
pub use perf_metrics as metrics;

#[cfg(feature = "pool")]
#[doc(inline)]
pub use perf_pool as pool;

#[cfg(feature = "raft")]
#[doc(inline)]
pub use perf_raft as raft;

#[cfg(feature = "transport")]
#[doc(inline)]
pub use perf_transport as transport;

#[cfg(feature = "compat")]
pub mod compat;

#[cfg(feature = "performance_simple")]
pub mod performance_simple;

/// What most nodes use, for a glob import.
///
/// ```
/// # #[cfg(feature = "atomics")] {
/// use perf_kit::prelude::*;
///
/// let flags = AtomicFlags::new();
/// flags.set_connected(true);
/// assert!(flags.is_connected());
/// # }
/// ```
pub mod prelude {
    #[cfg(feature = "atomics")]
    pub use perf_atomics::{
        AtomicCounters, AtomicFlags, Membership, MembershipReader, NodeState, OwnedCounter,
        RaftStatus, Role, Snapshot,
    };
    #[cfg(feature = "cache")]
    pub use perf_cache::{CacheManager, CachedValue, PlacementIndex, TtlCache};
    #[cfg(feature = "metrics")]
    pub use perf_metrics::{EMPTY_ATTRS, KeyValue, NodeMetrics, Registry, label_set};
    #[cfg(feature = "pool")]
    pub use perf_pool::{BufferGuard, BufferPool, BytesGuard, ObjectPool, buffer_pool};
    #[cfg(feature = "raft")]
    pub use perf_raft::{RaftHandle, RaftNode, RaftOptions, StateMachine};
    #[cfg(feature = "transport")]
    pub use perf_transport::{Envelope, Priority, Router, Security, Transport};
}
