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
//! Where the names differ in more than the path: `decrement_*` and `remove_*` of the counters return a `Result`, since they
//! no longer wrap below zero; `BufferGuard::get` and `get_mut` return the buffer itself and no `Option`, since a
//! guard always holds one.

pub use perf_atomics::{AtomicCounters, AtomicFlags};
pub use perf_pool::{BufferGuard, BufferPool, buffer_pool};
