//! The names of the module from which this project grew, so that code written for it changes only the path.
//!
//! ```
//! use perf_kit::performance_simple::{AtomicCounters, AtomicFlags, BufferGuard};
//!
//! let flags = AtomicFlags::new();
//! flags.set_leader(true);
//! assert!(flags.is_leader());
//!
//! let counters = AtomicCounters::new();
//! counters.increment_vm_count();
//! counters.set_cluster_nodes(3);
//! assert_eq!((counters.vm_count(), counters.cluster_nodes()), (1, 3));
//!
//! let mut guard = BufferGuard::new(1024);
//! guard.get_mut().extend_from_slice(b"test data");
//! assert_eq!(guard.get().len(), 9);
//! // The buffer goes back to the pool here.
//! ```
//!
//! ```
//! use perf_kit::performance_simple::{helpers::*, string_constants::*};
//! use perf_kit::performance_simple::{EMPTY_ATTRS, NodeMetrics, record_vm_operation};
//!
//! // Hot paths: an index into a table.
//! let metrics = NodeMetrics::global()?;
//! record_vm_operation_fast(OPERATION_CREATE, true, metrics);
//! update_cluster_metrics_fast(3, 48, 12, 98_304, 20_480, metrics);
//!
//! // Cold paths: any name.
//! record_vm_operation("custom_operation", false);
//!
//! // Instruments without labels.
//! let counter = NodeMetrics::global_registry().u64_counter("my.events").build()?;
//! counter.add(1, EMPTY_ATTRS);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Where the names differ in more than the path: `decrement_*` and `remove_*` of the counters return a `Result`, since they
//! no longer wrap below zero; `BufferGuard::get` and `get_mut` return the buffer itself and no `Option`, since a
//! guard always holds one. `helpers` take the catalogue [`NodeMetrics`]; totals such as the nodes of a cluster are set there, and
//! no longer grow at every update.

pub use perf_atomics::{AtomicCounters, AtomicFlags};
pub use perf_metrics::{
    EMPTY_ATTRS, NodeMetrics, create_node_id_attr, create_operation_attr, create_service_attr,
    helpers, record_vm_operation, string_constants,
};
pub use perf_pool::{BufferGuard, BufferPool, buffer_pool};
