#![doc = include_str!("../README.md")]

mod aligned;
#[cfg(feature = "arena")]
mod arena;
mod block;
// Public within: `tests/loom.rs` reaches it through `model`.
#[cfg_attr(not(perf_loom), allow(unreachable_pub))]
mod budget;
mod bytes_box;
mod bytes_guard;
mod class;
mod config;
mod core;
#[cfg_attr(not(perf_loom), allow(unreachable_pub))]
mod depot;
mod error;
mod guard;
mod hot;
mod item;
mod lend;
mod local;
mod magazine;
mod object_local;
mod object_pool;
mod object_shared;
mod pool;
mod pooled;
mod primitive;
mod stats;

pub use aligned::{AlignedGuard, AlignedPool};
#[cfg(feature = "arena")]
pub use arena::{Arena, ArenaConfig, ArenaPool, ArenaPoolStats};
pub use bytes_guard::BytesGuard;
pub use class::{CLASS_BYTES_MAX, CLASS_BYTES_MIN, CLASSES};
pub use config::Config;
pub use error::PoolError;
pub use guard::BufferGuard;
pub use object_pool::{ObjectGuard, ObjectPool, ObjectPoolBuilder};
pub use object_shared::ObjectPoolStats;
pub use pool::{BufferPool, buffer_pool};
pub use pooled::{BoxPool, Pooled};
pub use stats::{ClassStats, PoolStats};

/// The protocols that `tests/loom.rs` models. Exists under `--cfg perf_loom` only.
#[cfg(perf_loom)]
#[doc(hidden)]
pub mod model {
    pub use crate::budget::Budget;
    pub use crate::depot::Depot;

    /// Switches a seeded fault on; the empty name switches it off.
    pub fn set_mutant(name: &'static str) {
        crate::primitive::mutant::set(name);
    }
}
