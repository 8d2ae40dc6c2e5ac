//! Ready instruments for what runs the program: its allocator and, with the feature `tokio-runtime`, its async runtime.

use crate::MetricsError;
use crate::observable::Observable;
use crate::registry::Registry;

/// What an allocator has done since the program began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocatorCounts {
    /// How often memory was given out.
    pub allocations: u64,
    /// How often it was given back.
    pub deallocations: u64,
    /// How much was given out, in bytes.
    pub bytes_allocated: u64,
    /// How much was given back, in bytes.
    pub bytes_deallocated: u64,
}

/// Observes an allocator that counts, through `counts`: `process.allocator.allocations` and `.deallocations`,
/// `process.allocator.io` in bytes by the attribute `direction`, and `process.allocator.in_use` in bytes. Observed until the result is
/// dropped.
///
/// ```
/// use perf_metrics::{Registry, runtime};
/// use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
/// use std::alloc::System;
///
/// #[global_allocator]
/// static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;
///
/// let registry = Registry::new();
/// let observed = runtime::observe_allocator(&registry, || {
///     let stats = ALLOCATOR.stats();
///     runtime::AllocatorCounts {
///         allocations: stats.allocations as u64,
///         deallocations: stats.deallocations as u64,
///         bytes_allocated: stats.bytes_allocated as u64,
///         bytes_deallocated: stats.bytes_deallocated as u64,
///     }
/// })?;
/// # drop(observed);
/// # Ok::<(), perf_metrics::MetricsError>(())
/// ```
///
/// # Errors
/// [`MetricsError`] if the registry has an instrument of one of the names, or is full.
pub fn observe_allocator(
    registry: &Registry,
    counts: impl Fn() -> AllocatorCounts + Clone + Send + Sync + 'static,
) -> Result<Vec<Observable>, MetricsError> {
    use crate::KeyValue;
    let counter = |name, description, value: fn(AllocatorCounts) -> u64| {
        let counts = counts.clone();
        registry
            .u64_observable_counter(name)
            .with_unit("{allocation}")
            .with_description(description)
            .with_callback(move |observer| observer.observe(value(counts()), &[]))
            .build()
    };
    let (io, in_use) = (counts.clone(), counts.clone());
    Ok(vec![
        counter(
            "process.allocator.allocations",
            "How often the allocator gave out memory",
            |counts| counts.allocations,
        )?,
        counter(
            "process.allocator.deallocations",
            "How often memory was given back to the allocator",
            |counts| counts.deallocations,
        )?,
        registry
            .u64_observable_counter("process.allocator.io")
            .with_unit("By")
            .with_description("Bytes that the allocator gave out and took back")
            .with_callback(move |observer| {
                let counts = io();
                let direction = |value| [KeyValue::new("direction", value)];
                observer.observe(counts.bytes_allocated, &direction("allocated"));
                observer.observe(counts.bytes_deallocated, &direction("deallocated"));
            })
            .build()?,
        registry
            .i64_observable_up_down_counter("process.allocator.in_use")
            .with_unit("By")
            .with_description("Bytes that the allocator gave out and has not taken back")
            .with_callback(move |observer| {
                let counts = in_use();
                let bytes = counts
                    .bytes_allocated
                    .wrapping_sub(counts.bytes_deallocated);
                observer.observe(bytes as i64, &[]);
            })
            .build()?,
    ])
}

/// Observes a runtime of tokio: `tokio.workers`, `tokio.tasks`, `tokio.global_queue.depth`, and by the attribute `worker`
/// `tokio.worker.busy_time` and `tokio.worker.parks`, as far as tokio offers them without its unstable features. Observed until the
/// result is dropped.
///
/// ```
/// use perf_metrics::{Registry, runtime};
///
/// # let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # tokio.block_on(async {
/// let registry = Registry::new();
/// let observed = runtime::observe_tokio(&registry, &tokio::runtime::Handle::current())?;
/// assert!(registry.collect().metric("tokio.tasks").is_some());
/// # drop(observed);
/// # Ok::<(), perf_metrics::MetricsError>(())
/// # }).unwrap();
/// ```
///
/// # Errors
/// [`MetricsError`] if the registry has an instrument of one of the names, or is full.
#[cfg(feature = "tokio-runtime")]
pub fn observe_tokio(
    registry: &Registry,
    handle: &tokio::runtime::Handle,
) -> Result<Vec<Observable>, MetricsError> {
    use tokio::runtime::RuntimeMetrics;
    let metrics = handle.metrics();
    let gauge = |name, unit, description, value: fn(&RuntimeMetrics) -> usize| {
        let metrics = metrics.clone();
        registry
            .u64_observable_gauge(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |observer| observer.observe(value(&metrics) as u64, &[]))
            .build()
    };
    let mut observed = vec![
        gauge(
            "tokio.workers",
            "{thread}",
            "Worker threads of the runtime",
            RuntimeMetrics::num_workers,
        )?,
        gauge(
            "tokio.tasks",
            "{task}",
            "Tasks that are alive",
            RuntimeMetrics::num_alive_tasks,
        )?,
        gauge(
            "tokio.global_queue.depth",
            "{task}",
            "Tasks that wait in the queue of all workers",
            RuntimeMetrics::global_queue_depth,
        )?,
    ];
    #[cfg(target_has_atomic = "64")]
    observed.extend(observe_workers(registry, metrics)?);
    #[cfg(not(target_has_atomic = "64"))]
    observed.shrink_to_fit();
    Ok(observed)
}

#[cfg(all(feature = "tokio-runtime", target_has_atomic = "64"))]
fn observe_workers(
    registry: &Registry,
    metrics: tokio::runtime::RuntimeMetrics,
) -> Result<[Observable; 2], MetricsError> {
    use crate::KeyValue;
    let by_worker = |worker: usize| [KeyValue::new("worker", worker as i64)];
    let parks = metrics.clone();
    Ok([
        registry
            .f64_observable_counter("tokio.worker.busy_time")
            .with_unit("s")
            .with_description("How long the worker was busy")
            .with_callback(move |observer| {
                for worker in 0..metrics.num_workers() {
                    let busy = metrics.worker_total_busy_duration(worker);
                    observer.observe(busy.as_secs_f64(), &by_worker(worker));
                }
            })
            .build()?,
        registry
            .u64_observable_counter("tokio.worker.parks")
            .with_unit("{park}")
            .with_description("How often the worker had nothing to do and slept")
            .with_callback(move |observer| {
                for worker in 0..parks.num_workers() {
                    observer.observe(parks.worker_park_count(worker), &by_worker(worker));
                }
            })
            .build()?,
    ])
}
