//! The statistics of caches as instruments.

use crate::manager::CacheManager;
use crate::stats::CacheStats;
use parking_lot::Mutex;
use perf_metrics::{Counter, Gauge, KeyValue, MetricsError, Registry};
use std::collections::HashMap;
use std::fmt;

/// Feeds statistics to a registry of `perf-metrics`, with the cache's name as the attribute `cache.name`.
///
/// Caches count in cells of the same kind as instruments do; this brings what was counted since the last time over. Names beyond the
/// registry's bound of series count in the overflow series, as all attributes do.
///
/// ```
/// use perf_cache::{CacheManager, CacheMetrics, TtlCache};
/// use perf_metrics::Registry;
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// let registry = Registry::new();
/// let metrics = CacheMetrics::new(&registry)?;
/// let manager = CacheManager::new();
/// let cache: Arc<TtlCache<u64, u64>> = Arc::new(TtlCache::builder(100).build()?);
/// manager.register("sessions", &cache)?;
///
/// // In the background: after each cleanup.
/// let task = manager.start_with(Duration::from_secs(10), move |manager| metrics.publish(manager))?;
/// # drop(task);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CacheMetrics {
    reads: Counter<u64>,
    computations: Counter<u64>,
    failures: Counter<u64>,
    evictions: Counter<u64>,
    entries: Gauge<u64>,
    weight: Gauge<u64>,
    /// What was published last, by name. Holds the names of the caches alive.
    last: Mutex<HashMap<String, CacheStats>>,
}

impl CacheMetrics {
    /// Makes the instruments `cache.reads`, `cache.computations`, `cache.failures`, `cache.evictions`, `cache.entries` and `cache.weight`.
    ///
    /// # Errors
    /// [`MetricsError`] if the registry has other instruments of these names, or no room.
    pub fn new(registry: &Registry) -> Result<Self, MetricsError> {
        let counter = |name: &'static str, unit: &'static str, about: &'static str| {
            registry
                .u64_counter(name)
                .with_unit(unit)
                .with_description(about)
                .build()
        };
        let gauge = |name: &'static str, unit: &'static str, about: &'static str| {
            registry
                .u64_gauge(name)
                .with_unit(unit)
                .with_description(about)
                .build()
        };
        Ok(Self {
            reads: counter("cache.reads", "{read}", "Reads by what they found")?,
            computations: counter("cache.computations", "{computation}", "Computations begun")?,
            failures: counter(
                "cache.failures",
                "{computation}",
                "Computations that failed, panicked or were cancelled",
            )?,
            evictions: counter(
                "cache.evictions",
                "{entry}",
                "Values thrown out at capacity",
            )?,
            entries: gauge("cache.entries", "{entry}", "Entries held")?,
            weight: gauge("cache.weight", "1", "Weight of the entries held")?,
            last: Mutex::default(),
        })
    }

    /// Brings over what the manager's caches have counted since the last time. Caches of one name are added up.
    pub fn publish(&self, manager: &CacheManager) {
        let mut current: HashMap<String, CacheStats> = HashMap::new();
        for (name, stats) in manager.stats() {
            let sum = current.entry(name).or_default();
            add(sum, &stats);
        }
        let mut last = self.last.lock();
        for (name, now) in &current {
            let before = last.get(name).copied().unwrap_or_default();
            self.record(name, &before, now);
        }
        *last = current;
    }

    fn record(&self, name: &str, before: &CacheStats, now: &CacheStats) {
        let name = KeyValue::new("cache.name", name.to_owned());
        let attributes = std::slice::from_ref(&name);
        // A cache that was dropped takes its counts along: what is less than before counts from zero.
        let new = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        for (result, count) in [
            ("hit", new(now.hits, before.hits)),
            ("miss", new(now.misses, before.misses)),
            ("stale", new(now.stale_hits, before.stale_hits)),
            ("negative", new(now.negative_hits, before.negative_hits)),
        ] {
            self.reads.add(
                count,
                &[name.clone(), KeyValue::new("cache.result", result)],
            );
        }
        self.computations
            .add(new(now.computations, before.computations), attributes);
        self.failures.add(
            new(
                now.failures + now.abandoned,
                before.failures + before.abandoned,
            ),
            attributes,
        );
        self.evictions
            .add(new(now.evictions, before.evictions), attributes);
        self.entries.set(now.len, attributes);
        self.weight.set(now.weight, attributes);
    }
}

fn add(sum: &mut CacheStats, stats: &CacheStats) {
    sum.hits += stats.hits;
    sum.misses += stats.misses;
    sum.stale_hits += stats.stale_hits;
    sum.negative_hits += stats.negative_hits;
    sum.computations += stats.computations;
    sum.failures += stats.failures;
    sum.abandoned += stats.abandoned;
    sum.evictions += stats.evictions;
    sum.len += stats.len;
    sum.weight += stats.weight;
}

impl fmt::Debug for CacheMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheMetrics").finish_non_exhaustive()
    }
}
