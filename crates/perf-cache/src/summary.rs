//! What the whole cluster has.

use crate::error::CacheError;
use crate::value::CachedValue;
use std::ops::Deref;
use std::time::Duration;

/// The resources of a cluster, summed over its nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResourceSummary {
    /// Nodes.
    pub nodes: u64,
    /// Virtual machines.
    pub vms: u64,
    /// Virtual CPUs of all nodes.
    pub total_vcpus: u64,
    /// Virtual CPUs in use.
    pub used_vcpus: u64,
    /// Memory of all nodes in MiB.
    pub total_memory_mib: u64,
    /// Memory in use in MiB.
    pub used_memory_mib: u64,
    /// Disk space of all nodes in GiB.
    pub total_disk_gib: u64,
    /// Disk space in use in GiB.
    pub used_disk_gib: u64,
}

/// The cluster's summary, computed once per TTL however many ask. It is a [`CachedValue`] and has its methods.
///
/// ```
/// use perf_cache::{ResourceSummary, ResourceSummaryCache};
/// use std::time::Duration;
///
/// let cache = ResourceSummaryCache::new(Duration::from_secs(5))?;
/// let summary = cache.get_or_compute(|| ResourceSummary { nodes: 3, ..Default::default() });
/// assert_eq!(summary.nodes, 3);
/// assert_eq!(cache.reader().get().map(|summary| summary.nodes), Some(3));
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ResourceSummaryCache {
    value: CachedValue<ResourceSummary>,
}

impl ResourceSummaryCache {
    /// A summary that is fresh for `ttl`, and for as long again it is served stale while it is computed anew.
    ///
    /// # Errors
    /// [`CacheError::ZeroDuration`] if `ttl` is zero.
    pub fn new(ttl: Duration) -> Result<Self, CacheError> {
        let value = CachedValue::<ResourceSummary>::builder()
            .ttl(ttl)
            .stale_while_revalidate(ttl)
            .build()?;
        Ok(Self { value })
    }

    /// A summary that `compute` makes anew in the background when it is stale, so that no reader waits for it.
    ///
    /// # Errors
    /// [`CacheError::ZeroDuration`] if `ttl` is zero.
    pub fn refreshed_by(
        ttl: Duration,
        compute: impl Fn() -> Option<ResourceSummary> + Send + Sync + 'static,
    ) -> Result<Self, CacheError> {
        let value = CachedValue::<ResourceSummary>::builder()
            .ttl(ttl)
            .stale_while_revalidate(ttl)
            .refresh_with(compute)
            .build()?;
        Ok(Self { value })
    }
}

impl Deref for ResourceSummaryCache {
    type Target = CachedValue<ResourceSummary>;

    fn deref(&self) -> &Self::Target {
        &self.value
    }
}

impl crate::manager::Managed for ResourceSummaryCache {
    fn cleanup_expired(&self) -> usize {
        crate::manager::Managed::cleanup_expired(&self.value)
    }

    fn clear(&self) {
        crate::manager::Managed::clear(&self.value);
    }

    fn stats(&self) -> crate::CacheStats {
        self.value.stats()
    }

    fn watch(&self) -> crate::manager::Watched {
        crate::manager::Managed::watch(&self.value)
    }
}
