//! `performance_simple`: flags, counters, buffers, attributes and helpers. Behind it: `perf-atomics`, `perf-pool`, `perf-metrics`.
//!
//! | name | what differs |
//! |---|---|
//! | fields of `AtomicFlags`, `AtomicCounters` | none are public: all flags lie in one word, each counter on its own cache line. Use the methods |
//! | `decrement_vm_count`, `remove_used_vcpus` | stay at zero, where the origin's wrapped to `u64::MAX` |
//! | `create_node_id_attr` | the attribute is `node.id`, not `node_id` |
//! | `helpers` | take `NodeMetrics`; totals are set, and do not grow at each update |
//! | `SimpleBufferPool` | a buffer that has grown to another size is freed, not kept |
//!
//! ```
//! use perf_kit::compat::performance_simple::*;
//!
//! let flags = AtomicFlags::new();
//! flags.set_leader(true);
//! assert!(flags.is_leader() && !flags.is_connected());
//!
//! let counters = AtomicCounters::new();
//! assert_eq!(counters.increment_vm_count(), 0);
//! assert_eq!(counters.decrement_vm_count(), 1);
//! counters.set_cluster_nodes(3);
//! counters.add_used_vcpus(8);
//! assert_eq!(counters.remove_used_vcpus(3), 8);
//! assert_eq!((counters.cluster_nodes(), counters.used_vcpus()), (3, 5));
//!
//! let mut guard = BufferGuard::new(1024);
//! guard.get_mut().extend_from_slice(b"test data");
//! assert_eq!(guard.get().len(), 9);
//!
//! let pool = buffer_pool();
//! let mut buffer = pool.get_buffer(4096);
//! buffer.extend_from_slice(b"frame");
//! pool.return_buffer(buffer);
//!
//! let words = reuse_vec_capacity(vec![1, 2, 3]);
//! assert!(words.is_empty() && words.capacity() >= 3);
//! ```
//!
//! ```
//! use perf_kit::compat::performance_simple::{EMPTY_ATTRS, NodeMetrics, helpers::*, string_constants::*};
//!
//! let metrics = NodeMetrics::global()?;
//! record_vm_operation_fast(OPERATION_CREATE, true, metrics);
//! update_resource_metrics_fast(1, 8, 16_384, 100, metrics);
//! update_cluster_metrics_fast(3, 48, 12, 98_304, 20_480, metrics);
//!
//! let vm_count = NodeMetrics::global_registry().u64_counter("my.vm.count").build()?;
//! vm_count.add(1, EMPTY_ATTRS);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use perf_pool::BufferPool;

pub use perf_atomics::AtomicFlags;
pub use perf_metrics::{
    EMPTY_ATTRS, NodeMetrics, create_node_id_attr, create_operation_attr, create_service_attr,
    helpers, record_vm_operation, string_constants,
};
pub use perf_pool::BufferGuard;

/// The counters of a node. Reads are one load, changes one compare-exchange.
#[derive(Debug, Default)]
pub struct AtomicCounters {
    counters: perf_atomics::AtomicCounters,
}

/// The value before a removal, which stops at zero.
pub(super) fn before(removal: Result<u64, perf_atomics::CounterUnderflow>) -> u64 {
    removal.unwrap_or_else(|underflow| underflow.available)
}

impl AtomicCounters {
    /// All counters at zero.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            counters: perf_atomics::AtomicCounters::new(),
        }
    }

    /// VMs known to this node.
    #[must_use]
    pub fn vm_count(&self) -> u64 {
        self.counters.vm_count()
    }

    /// Adds a VM and returns the count before.
    pub fn increment_vm_count(&self) -> u64 {
        self.counters.increment_vm_count()
    }

    /// Takes a VM away and returns the count before. Stays at zero.
    pub fn decrement_vm_count(&self) -> u64 {
        before(self.counters.decrement_vm_count())
    }

    /// VMs that run.
    #[must_use]
    pub fn running_vms(&self) -> u64 {
        self.counters.running_vms()
    }

    /// Sets how many VMs run.
    pub fn set_running_vms(&self, count: u64) {
        self.counters.set_running_vms(count);
    }

    /// Nodes in the cluster.
    #[must_use]
    pub fn cluster_nodes(&self) -> u64 {
        self.counters.cluster_nodes()
    }

    /// Sets how many nodes the cluster has.
    pub fn set_cluster_nodes(&self, count: u64) {
        self.counters.set_cluster_nodes(count);
    }

    /// Virtual CPUs of the cluster.
    #[must_use]
    pub fn total_vcpus(&self) -> u64 {
        self.counters.total_vcpus()
    }

    /// Sets how many virtual CPUs the cluster has.
    pub fn set_total_vcpus(&self, count: u64) {
        self.counters.set_total_vcpus(count);
    }

    /// Virtual CPUs given to VMs.
    #[must_use]
    pub fn used_vcpus(&self) -> u64 {
        self.counters.used_vcpus()
    }

    /// Adds used virtual CPUs and returns how many there were.
    pub fn add_used_vcpus(&self, count: u64) -> u64 {
        self.counters.add_used_vcpus(count)
    }

    /// Takes used virtual CPUs away and returns how many there were. Stays at zero.
    pub fn remove_used_vcpus(&self, count: u64) -> u64 {
        before(self.counters.remove_used_vcpus(count))
    }
}

/// Empties a vector and keeps its memory.
#[must_use]
pub fn reuse_vec_capacity<T>(mut vec: Vec<T>) -> Vec<T> {
    vec.clear();
    vec
}

/// Buffers handed out and taken back by hand. A [`BufferGuard`] comes back by itself and costs less.
#[derive(Debug, Default)]
pub struct SimpleBufferPool {
    /// `None` for the global one.
    own: Option<BufferPool>,
}

impl SimpleBufferPool {
    /// A pool of its own, with the bounds of [`perf_pool::Config::new`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            own: Some(BufferPool::new(perf_pool::Config::new())),
        }
    }

    fn pool(&self) -> &BufferPool {
        self.own
            .as_ref()
            .unwrap_or_else(|| perf_pool::buffer_pool())
    }

    /// An empty buffer with room for `size_hint` bytes.
    #[must_use]
    pub fn get_buffer(&self, size_hint: usize) -> Vec<u8> {
        self.pool().get(size_hint).detach()
    }

    /// Takes a buffer back. It is kept if it has the capacity of a class and the budget allows; else it is freed.
    pub fn return_buffer(&self, buffer: Vec<u8>) {
        // What the pool does not want is freed here.
        drop(self.pool().adopt(buffer));
    }
}

/// The buffers of the global pool.
#[must_use]
pub fn buffer_pool() -> &'static SimpleBufferPool {
    static GLOBAL: SimpleBufferPool = SimpleBufferPool { own: None };
    &GLOBAL
}
