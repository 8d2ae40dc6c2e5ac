//! `metrics_otel_optimized`: attributes made once, and recording with them. Behind it: [`NodeMetrics`] and its tables, which need no attributes
//! on the hot path.
//!
//! | name | what differs |
//! |---|---|
//! | `static_attrs::OPERATION_*` | `LazyLock`s like the others, so `&*OPERATION_CREATE`, not `get_or_init` |
//! | `update_*_metrics_optimized` | take the structs of this module; totals are set, and do not grow at each update |
//! | the attribute of a node | `node.id`, not `node_id` |
//! | no cells left in the process | nothing is recorded, and nothing panics |
//!
//! ```
//! use perf_kit::compat::metrics_otel_optimized::*;
//!
//! record_vm_operation_optimized("create", true);
//! record_vm_placement_attempt_optimized("most_available", true, 0.002);
//! record_p2p_verification_optimized(true, true);
//! record_p2p_cache_access_optimized(false, true);
//!
//! let attrs = fast_attrs::FastAttrBuilder::with_capacity(3)
//!     .node_id(7)
//!     .peer_id(9)
//!     .static_attr(&static_attrs::SERVICE_VM)
//!     .build();
//! assert_eq!(attrs.len(), 3);
//! ```

use perf_metrics::{Counter, Gauge, Histogram, KeyValue, MetricsError, NodeMetrics, helpers};
use std::slice;
use std::sync::LazyLock;

/// Attributes that are made once.
pub mod static_attrs {
    use super::{KeyValue, LazyLock};

    macro_rules! attributes {
        ($($name:ident = $key:literal, $value:expr;)+) => {
            $(
                #[doc = concat!("`", $key, "`: `", stringify!($value), "`.")]
                pub static $name: LazyLock<KeyValue> = LazyLock::new(|| KeyValue::new($key, $value));
            )+
        };
    }

    attributes! {
        OPERATION_CREATE = "operation", "create";
        OPERATION_START = "operation", "start";
        OPERATION_STOP = "operation", "stop";
        OPERATION_DELETE = "operation", "delete";
        STATUS_SUCCESS = "status", "success";
        STATUS_FAILED = "status", "failed";
        ERROR_TRUE = "error", true;
        ERROR_FALSE = "error", false;
        SERVICE_HEALTH = "service", "health";
        SERVICE_CLUSTER = "service", "cluster";
        SERVICE_VM = "service", "vm";
        TRANSPORT_IROH = "transport", "iroh";
        TRANSPORT_GRPC = "transport", "grpc";
        VERIFY_NAR_HASH = "verification", "nar_hash";
        VERIFY_CHUNK_HASH = "verification", "chunk_hash";
        CACHE_CHUNK = "cache", "chunk";
        CACHE_IMAGE = "cache", "image";
        STRATEGY_MOST_AVAILABLE = "strategy", "most_available";
        STRATEGY_LEAST_AVAILABLE = "strategy", "least_available";
        STRATEGY_ROUND_ROBIN = "strategy", "round_robin";
        STRATEGY_MANUAL = "strategy", "manual";
    }
}

use static_attrs::{
    CACHE_CHUNK, CACHE_IMAGE, STATUS_FAILED, STATUS_SUCCESS, VERIFY_CHUNK_HASH, VERIFY_NAR_HASH,
};

/// What the catalogue of a node does not have: instruments of the same registry.
struct Others {
    placements: Counter<u64>,
    placement_duration: Histogram<f64>,
    verifications: Counter<u64>,
    cache_accesses: Counter<u64>,
    cluster_disk: Gauge<u64>,
}

static OTHERS: LazyLock<Result<Others, MetricsError>> = LazyLock::new(|| {
    let registry = NodeMetrics::global_registry();
    Ok(Others {
        placements: registry
            .u64_counter("vm.placement.attempts")
            .with_unit("{attempt}")
            .with_description("Placements of VMs by strategy and how they ended")
            .build()?,
        placement_duration: registry
            .f64_histogram("vm.placement.duration")
            .with_unit("s")
            .with_description("How long placements of VMs take")
            .build()?,
        verifications: registry
            .u64_counter("p2p.verifications")
            .with_unit("{verification}")
            .with_description("Verifications of what peers sent")
            .build()?,
        cache_accesses: registry
            .u64_counter("p2p.cache.accesses")
            .with_unit("{access}")
            .with_description("Look-ups in the caches of what peers sent")
            .build()?,
        cluster_disk: registry
            .u64_gauge("cluster.disk")
            .with_unit("GiBy")
            .with_description("Disk space of the cluster")
            .build()?,
    })
});

/// What a node has and uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeResourceUsage {
    /// Virtual CPUs in use.
    pub used_vcpus: u64,
    /// Memory in use, in MiB.
    pub used_memory_mb: u64,
    /// Disk space in use, in GiB.
    pub used_disk_gb: u64,
}

pub use super::caching::ClusterResourceSummary;

/// Attributes by the numbers of nodes, kept by nothing: making one allocates nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttributeCache;

impl AttributeCache {
    /// The attribute `node.id`.
    #[must_use]
    pub fn node_id(node_id: u64) -> KeyValue {
        perf_metrics::create_node_id_attr(node_id)
    }
}

fn status(success: bool) -> KeyValue {
    if success {
        STATUS_SUCCESS.clone()
    } else {
        STATUS_FAILED.clone()
    }
}

/// Counts an operation on a VM.
pub fn record_vm_operation_optimized(operation: &'static str, success: bool) {
    if let Ok(metrics) = NodeMetrics::global() {
        helpers::record_vm_operation_fast(operation, success, metrics);
    }
}

/// Sets what a node uses.
pub fn update_node_resource_metrics_optimized(node_id: u64, usage: &NodeResourceUsage) {
    if let Ok(metrics) = NodeMetrics::global() {
        let NodeResourceUsage {
            used_vcpus,
            used_memory_mb,
            used_disk_gb,
        } = *usage;
        helpers::update_resource_metrics_fast(
            node_id,
            used_vcpus,
            used_memory_mb,
            used_disk_gb,
            metrics,
        );
    }
}

/// Counts an attempt to place a VM, and records how long it took.
pub fn record_vm_placement_attempt_optimized(strategy: &str, success: bool, duration_secs: f64) {
    if let Ok(others) = &*OTHERS {
        let attributes = [
            KeyValue::new("strategy", strategy.to_owned()),
            status(success),
        ];
        others.placements.add(1, &attributes);
        others
            .placement_duration
            .record(duration_secs, &attributes[..1]);
    }
}

/// Counts a verification of what a peer sent.
pub fn record_p2p_verification_optimized(success: bool, is_nar_hash: bool) {
    if let Ok(others) = &*OTHERS {
        let kind = if is_nar_hash {
            VERIFY_NAR_HASH.clone()
        } else {
            VERIFY_CHUNK_HASH.clone()
        };
        others.verifications.add(1, &[kind, status(success)]);
    }
}

/// Counts a look-up in a cache of what peers sent.
pub fn record_p2p_cache_access_optimized(hit: bool, is_chunk_cache: bool) {
    if let Ok(others) = &*OTHERS {
        let kind = if is_chunk_cache {
            CACHE_CHUNK.clone()
        } else {
            CACHE_IMAGE.clone()
        };
        let attributes = [kind, KeyValue::new("hit", hit)];
        others.cache_accesses.add(1, &attributes);
    }
}

/// Sets what the cluster has and uses.
pub fn update_cluster_resource_metrics_optimized(summary: &ClusterResourceSummary) {
    if let Ok(metrics) = NodeMetrics::global() {
        helpers::update_cluster_metrics_fast(
            summary.total_nodes.into(),
            summary.total_vcpus.into(),
            summary.used_vcpus.into(),
            summary.total_memory_mb,
            summary.used_memory_mb,
            metrics,
        );
    }
    if let Ok(others) = &*OTHERS {
        let (total, used) = (summary.total_disk_gb, summary.used_disk_gb);
        others
            .cluster_disk
            .set(total, slice::from_ref(&*STATE_TOTAL));
        others.cluster_disk.set(used, slice::from_ref(&*STATE_USED));
    }
}

/// The attributes of `cluster.memory` and `cluster.vcpus`.
static STATE_TOTAL: LazyLock<KeyValue> = LazyLock::new(|| KeyValue::new("state", "total"));
static STATE_USED: LazyLock<KeyValue> = LazyLock::new(|| KeyValue::new("state", "used"));

/// Lists of attributes, one by one.
pub mod fast_attrs {
    use super::KeyValue;

    /// A list of attributes that is being made.
    #[derive(Clone, Debug, Default)]
    pub struct FastAttrBuilder {
        attributes: Vec<KeyValue>,
    }

    impl FastAttrBuilder {
        /// An empty list with room for `cap` attributes.
        #[must_use]
        pub fn with_capacity(cap: usize) -> Self {
            Self {
                attributes: Vec::with_capacity(cap),
            }
        }

        /// Adds `node.id`.
        #[must_use]
        pub fn node_id(mut self, id: u64) -> Self {
            self.attributes.push(perf_metrics::create_node_id_attr(id));
            self
        }

        /// Adds `peer.id`. Ids beyond `i64::MAX` become negative, and stay distinct.
        #[must_use]
        pub fn peer_id(mut self, id: u64) -> Self {
            self.attributes.push(KeyValue::new("peer.id", id as i64));
            self
        }

        /// Adds an attribute that is there already.
        #[must_use]
        pub fn static_attr(mut self, attr: &KeyValue) -> Self {
            self.attributes.push(attr.clone());
            self
        }

        /// The list.
        #[must_use]
        pub fn build(self) -> Vec<KeyValue> {
            self.attributes
        }
    }
}
