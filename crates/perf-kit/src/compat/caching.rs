//! `caching`: values with a time to live. Behind it: `perf-cache`.
//!
//! | name | what differs |
//! |---|---|
//! | every cache | is bounded ([`CAPACITY`] entries): at the bound the coldest entry goes |
//! | `get_or_compute` | computes once for all callers that ask at the same time; the origin's computed once for each |
//! | `ResourceSummaryCache::get_cluster_summary` | keeps one summary per `node_id` |
//! | fields of `AtomicMetricsCache` | none are public: use the methods. Counters stay at zero where the origin's wrapped |
//! | `CachedValue` | is `perf_cache::CachedValue`, a value with its cache; the origin's had no public methods |
//!
//! ```
//! # use perf_kit::compat::caching::*;
//! # use std::time::Duration;
//! # async fn sample() {
//! let cache = TtlCache::new(Duration::from_secs(30));
//! let length = cache.get_or_compute("node-1", || async { 6 }).await;
//! assert_eq!(length, 6);
//! cache.invalidate(&"node-1").await;
//! assert_eq!(cache.get_or_compute("node-1", || async { 7 }).await, 7);
//!
//! let manager = global_cache();
//! manager.atomic_metrics.increment_vm_count();
//! assert_eq!(manager.atomic_metrics.vm_count(), 1);
//! manager.cleanup_expired().await;
//! manager.clear_all().await;
//! # }
//! # let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
//! # runtime.block_on(sample());
//! ```

use super::performance_simple::before;
use perf_atomics::AtomicCounters;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

pub use perf_cache::CachedValue;

/// Entries of each cache at most.
pub const CAPACITY: u64 = 10_000;

/// Values that are fresh for a time, each computed once for all who ask.
pub struct TtlCache<K, V>
where
    K: Hash + Eq + Clone,
    V: Clone,
{
    cache: perf_cache::TtlCache<K, V>,
}

impl<K, V> TtlCache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A cache whose values are fresh for `default_ttl`. Zero counts as a nanosecond.
    #[must_use]
    pub fn new(default_ttl: Duration) -> Self {
        let builder = perf_cache::TtlCache::builder(CAPACITY);
        let cache = builder
            .ttl(default_ttl.max(Duration::from_nanos(1)))
            .build()
            .expect("capacity and time to live are above zero");
        Self { cache }
    }

    /// The value of a key: the kept one if it is fresh, else a new one. If `compute` is dropped or panics, one of those who wait computes.
    pub async fn get_or_compute<F, Fut>(&self, key: K, compute: F) -> V
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = V>,
    {
        self.cache.get_or_compute_async(&key, compute).await
    }

    /// Takes a value out.
    pub async fn invalidate(&self, key: &K) {
        self.cache.invalidate(key);
    }

    /// Takes all values out.
    pub async fn clear(&self) {
        self.cache.clear();
    }

    /// Takes out the values that are no longer fresh.
    pub async fn cleanup_expired(&self) {
        self.cache.cleanup_expired();
    }
}

impl<K: Hash + Eq + Clone, V: Clone> fmt::Debug for TtlCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TtlCache").finish_non_exhaustive()
    }
}

/// The resources of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterResourceSummary {
    /// Nodes.
    pub total_nodes: u32,
    /// Nodes that answer.
    pub healthy_nodes: u32,
    /// Virtual CPUs.
    pub total_vcpus: u32,
    /// Virtual CPUs given to VMs.
    pub used_vcpus: u32,
    /// Memory, in MiB.
    pub total_memory_mb: u64,
    /// Memory given to VMs, in MiB.
    pub used_memory_mb: u64,
    /// Disk space, in GiB.
    pub total_disk_gb: u64,
    /// Disk space given to VMs, in GiB.
    pub used_disk_gb: u64,
    /// When this was computed.
    pub computed_at: Instant,
}

/// What a VM needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VmRequirements {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mb: u64,
    /// Disk space, in GiB.
    pub disk_gb: u64,
    /// What the node must offer.
    pub features: Vec<String>,
}

/// A question for a place: the needs, and the state of the cluster that they were asked in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PlacementKey {
    /// What the VM needs.
    pub vm_requirements: VmRequirements,
    /// Stands for the cluster's state, such as a membership's generation.
    pub cluster_state_hash: u64,
}

/// Where a VM goes.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacementResult {
    /// The node, if one fits.
    pub target_node: Option<u64>,
    /// How good the choice is, from 0 to 1.
    pub confidence_score: f64,
    /// Why.
    pub reason: String,
}

/// How good a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionQuality {
    /// As good as it gets.
    Excellent,
    /// Good.
    Good,
    /// Usable.
    Fair,
    /// Barely usable.
    Poor,
    /// There is none.
    Disconnected,
}

/// What is known of the connection to a peer.
#[derive(Clone, Debug)]
pub struct PeerConnectionInfo {
    /// The peer.
    pub node_id: u64,
    /// Whether there is a connection.
    pub is_connected: bool,
    /// When the peer was last heard of.
    pub last_seen: Instant,
    /// How good the connection is.
    pub connection_quality: ConnectionQuality,
    /// From a message to its answer.
    pub round_trip_time: Duration,
}

macro_rules! caches {
    ($(
        $(#[$doc:meta])+
        $Cache:ident($Key:ty => $Value:ty, $ttl:literal s), $get:ident($key:ident);
    )+) => {
        $(
            $(#[$doc])+
            #[derive(Debug)]
            pub struct $Cache {
                cache: TtlCache<$Key, $Value>,
            }

            impl $Cache {
                #[doc = concat!("An empty cache, whose values are fresh for ", $ttl, " seconds.")]
                #[must_use]
                pub fn new() -> Self {
                    Self {
                        cache: TtlCache::new(Duration::from_secs($ttl)),
                    }
                }

                /// The kept value if it is fresh, else a new one, computed once for all who ask.
                pub async fn $get<F, Fut>(&self, $key: $Key, compute: F) -> $Value
                where
                    F: FnOnce() -> Fut,
                    Fut: Future<Output = $Value>,
                {
                    self.cache.get_or_compute($key, compute).await
                }

                /// Takes out the values that are no longer fresh.
                pub async fn cleanup_expired(&self) {
                    self.cache.cleanup_expired().await;
                }

                /// Takes all values out.
                pub async fn clear(&self) {
                    self.cache.clear().await;
                }
            }

            impl Default for $Cache {
                fn default() -> Self {
                    Self::new()
                }
            }
        )+
    };
}

caches! {
    /// Summaries of the cluster, one for each node that asks. New code: [`perf_cache::ResourceSummaryCache`].
    ResourceSummaryCache(u64 => ClusterResourceSummary, 30 s), get_cluster_summary(node_id);
    /// Places that were found. New code: [`perf_cache::PlacementDecisionCache`].
    PlacementDecisionCache(PlacementKey => PlacementResult, 60 s), get_placement(key);
    /// What is known of connections. New code: [`perf_cache::PeerConnectionCache`], which keeps the connections themselves.
    PeerConnectionCache(u64 => PeerConnectionInfo, 10 s), get_connection_info(node_id);
}

/// Numbers of a node, read by one load each.
#[derive(Debug, Default)]
pub struct AtomicMetricsCache {
    counters: AtomicCounters,
}

macro_rules! numbers {
    ($($(#[$doc:meta])+ $name:ident, $set:ident => $counter:ident, $set_counter:ident;)+) => {
        $(
            $(#[$doc])+
            #[must_use]
            pub fn $name(&self) -> u64 {
                self.counters.$counter()
            }

            #[doc = concat!("Sets [`", stringify!($name), "`](Self::", stringify!($name), ").")]
            pub fn $set(&self, count: u64) {
                self.counters.$set_counter(count);
            }
        )+
    };
}

impl AtomicMetricsCache {
    /// All numbers at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    numbers! {
        /// VMs known to this node.
        vm_count, set_vm_count => vm_count, set_vm_count;
        /// VMs that run.
        running_vm_count, set_running_vm_count => running_vms, set_running_vms;
        /// Nodes in the cluster.
        cluster_node_count, set_cluster_node_count => cluster_nodes, set_cluster_nodes;
        /// Virtual CPUs of the cluster.
        total_vcpus, set_total_vcpus => total_vcpus, set_total_vcpus;
        /// Virtual CPUs given to VMs.
        used_vcpus, set_used_vcpus => used_vcpus, set_used_vcpus;
        /// Memory of the cluster, in MiB.
        total_memory_mb, set_total_memory_mb => total_memory_mb, set_total_memory_mb;
        /// Memory given to VMs, in MiB.
        used_memory_mb, set_used_memory_mb => used_memory_mb, set_used_memory_mb;
    }

    /// Adds a VM.
    pub fn increment_vm_count(&self) {
        self.counters.increment_vm_count();
    }

    /// Takes a VM away. Stays at zero.
    pub fn decrement_vm_count(&self) {
        before(self.counters.decrement_vm_count());
    }

    /// Adds used virtual CPUs.
    pub fn add_used_vcpus(&self, count: u64) {
        self.counters.add_used_vcpus(count);
    }

    /// Takes used virtual CPUs away. Stays at zero.
    pub fn remove_used_vcpus(&self, count: u64) {
        before(self.counters.remove_used_vcpus(count));
    }
}

/// The caches of a node. New code: [`perf_cache::CacheManager`], which caches of any kind register with.
#[derive(Debug, Default)]
pub struct GlobalCacheManager {
    /// Summaries of the cluster.
    pub resource_summary: ResourceSummaryCache,
    /// Places that were found.
    pub placement_decisions: PlacementDecisionCache,
    /// What is known of connections.
    pub peer_connections: PeerConnectionCache,
    /// Numbers.
    pub atomic_metrics: AtomicMetricsCache,
}

impl GlobalCacheManager {
    /// Empty caches.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes out all values that are no longer fresh.
    pub async fn cleanup_expired(&self) {
        self.resource_summary.cleanup_expired().await;
        self.placement_decisions.cleanup_expired().await;
        self.peer_connections.cleanup_expired().await;
    }

    /// Takes all values out. Numbers stay.
    pub async fn clear_all(&self) {
        self.resource_summary.clear().await;
        self.placement_decisions.clear().await;
        self.peer_connections.clear().await;
    }
}

/// The caches of the process.
#[must_use]
pub fn global_cache() -> &'static GlobalCacheManager {
    static GLOBAL: LazyLock<GlobalCacheManager> = LazyLock::new(GlobalCacheManager::new);
    &GLOBAL
}
