//! Attaches a registry to an OpenTelemetry `Meter`.
//!
//! The SDK has no way to take sums from outside: foreign code cannot build its data, and there is no observable histogram. What works is an
//! observable instrument that observes nothing: its callback runs when a reader of the SDK collects, and brings what was recorded since
//! the last time into synchronous instruments of the SDK, bound to their attributes. From there on views, readers and
//! exporters work as ever; several readers, cumulative and delta, are all exact.
//!
//! Everything that needs the SDK's `experimental_metrics_bound_instruments` is in its module `sink`.
//!
//! # Costs and limits
//! - Sums cost one call of the SDK for each series that changed. Histograms are replayed, one call for each value: see
//!   [`Attachment::set_replay_max`] for the budget, and what exceeds it.
//! - A replayed value is not the recorded one but one of its bucket, chosen such that count, sum, smallest and largest value come out
//!   as recorded (the sum of floats but for rounding). The SDK's buckets are exact if it has the boundaries that the histogram here was
//!   made with; a view with others sorts the replayed values.
//! - Gauges are reported at each collection once they were set, also to delta readers.

mod replay;
mod sink;

use crate::registry::{Listener, Registry};
use crate::series::Source;
use crate::{MetricsError, Reader, Temporality};
use opentelemetry::metrics::Meter;
use parking_lot::Mutex;
use sink::Sink;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// How many values of histograms are replayed at one collection unless said otherwise: a few milliseconds.
pub const REPLAY_MAX_DEFAULT: u64 = 100_000;

/// Why a registry could not be attached, or does not reach its meter any more.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum OtelError {
    /// The meter did not keep our callback, so that nothing would ever arrive.
    NotCollected,
    /// The registry has no place for another reader.
    Registry(MetricsError),
}

impl fmt::Display for OtelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCollected => write!(
                f,
                "the meter does not call `{HOOK_NAME}`, so no metrics arrive: either a view drops everything (let it keep that \
                 name), or its provider has no reader, was shut down or dropped (attach before, to a meter of a live provider)"
            ),
            Self::Registry(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OtelError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotCollected => None,
            Self::Registry(error) => Some(error),
        }
    }
}

/// The instrument that carries the callback. It has no data points, so it is never exported.
pub const HOOK_NAME: &str = "perf_metrics.flush";

/// Brings everything that is recorded to the registry into a meter, until the result is dropped.
///
/// Attach a registry to one meter; attached to two of the same provider, everything arrives twice.
///
/// # Errors
/// [`OtelError::NotCollected`] if the meter will never ask, [`OtelError::Registry`] if the registry has all its readers.
pub fn attach(registry: &Registry, meter: &Meter) -> Result<Attachment, OtelError> {
    let reader = registry
        .reader(Temporality::Delta)
        .map_err(OtelError::Registry)?;
    let bridge = Arc::new(Bridge {
        meter: meter.clone(),
        sinks: Mutex::default(),
        reader: Mutex::new(reader),
        replay_max: AtomicU64::new(REPLAY_MAX_DEFAULT),
    });
    // Instruments are made here and when the registry gets new ones, never in the callback: the SDK holds a lock meanwhile.
    registry.listen(&(Arc::clone(&bridge) as Arc<dyn Listener>));
    let kept = Arc::new(());
    let (callback, witness) = (Arc::downgrade(&bridge), Arc::clone(&kept));
    meter
        .u64_observable_counter(HOOK_NAME)
        .with_description("Carries the callback that brings metrics in; has no data points")
        .with_callback(move |_observer| {
            let _ = &witness;
            if let Some(bridge) = Weak::upgrade(&callback) {
                bridge.flush();
            }
        })
        .build();
    let attachment = Attachment { bridge, kept };
    if attachment.is_live() {
        Ok(attachment)
    } else {
        Err(OtelError::NotCollected)
    }
}

/// A registry's connection to a meter. Dropping it brings in what is left and ends it.
#[must_use = "dropping it detaches the registry"]
pub struct Attachment {
    bridge: Arc<Bridge>,
    /// The callback has the other reference for as long as the SDK has the callback.
    kept: Arc<()>,
}

impl Attachment {
    /// Whether the SDK still has the callback. A provider that was shut down keeps it until it is dropped.
    #[must_use]
    pub fn is_live(&self) -> bool {
        Arc::strong_count(&self.kept) > 1
    }

    /// Brings everything recorded so far into the SDK's instruments, as each collection does.
    ///
    /// # Errors
    /// [`OtelError::NotCollected`] if the provider is gone. What was recorded is still in the registry, for other readers.
    pub fn flush(&self) -> Result<(), OtelError> {
        if !self.is_live() {
            return Err(OtelError::NotCollected);
        }
        self.bridge.flush();
        Ok(())
    }

    /// How many values of histograms one collection replays at most, at about 20 to 50 ns each. The others stay pending for the next
    /// collection: nothing is lost, and sums of counts lag behind while more is recorded than this per collection.
    /// [`REPLAY_MAX_DEFAULT`] unless set.
    pub fn set_replay_max(&self, values_max: u64) {
        self.bridge.replay_max.store(values_max, Ordering::Relaxed);
    }

    /// How many values of histograms wait to be replayed.
    #[must_use]
    pub fn replay_pending(&self) -> u64 {
        self.bridge.sinks.lock().values().map(Sink::pending).sum()
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.bridge.flush();
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment")
            .field("is_live", &self.is_live())
            .finish_non_exhaustive()
    }
}

struct Bridge {
    meter: Meter,
    /// By the instrument's id.
    sinks: Mutex<HashMap<u64, Sink>>,
    reader: Mutex<Reader>,
    replay_max: AtomicU64,
}

impl Bridge {
    /// Runs within the SDK's collection: makes no instruments, and takes no lock that is held while instruments are made.
    fn flush(&self) {
        let mut reader = self.reader.lock();
        let snapshot = reader.collect();
        let mut sinks = self.sinks.lock();
        let mut budget = self.replay_max.load(Ordering::Relaxed);
        for metric in snapshot.metrics() {
            // None: it is being made, and no thread can have recorded to it, as its maker gets it after this.
            if let Some(sink) = sinks.get_mut(&metric.id) {
                sink.flush(metric, &mut budget);
            }
        }
        // Of instruments that have left, once nothing of theirs is to be replayed.
        sinks.retain(|id, sink| {
            sink.pending() > 0
                || snapshot
                    .metrics()
                    .binary_search_by_key(id, |metric| metric.id)
                    .is_ok()
                || !sink.was_seen()
        });
    }
}

impl Listener for Bridge {
    fn on_instrument(&self, source: &Arc<dyn Source>) {
        let id = source.id();
        if self.sinks.lock().contains_key(&id) {
            return;
        }
        // Without the lock: the SDK may be collecting, and wait for it.
        let sink = Sink::new(&self.meter, source.descriptor(), source.boundaries());
        self.sinks.lock().entry(id).or_insert(sink);
    }
}
