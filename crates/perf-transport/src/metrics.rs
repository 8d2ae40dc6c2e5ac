//! Records into the catalogue of `perf-metrics`.

use perf_metrics::NodeMetrics;
use perf_metrics::node::{ConnectionState, Outcome};
use std::fmt;

/// Where a transport records.
pub(crate) struct Recorder {
    metrics: &'static NodeMetrics,
}

impl Recorder {
    pub(crate) fn new(metrics: &'static NodeMetrics) -> Self {
        Self { metrics }
    }

    pub(crate) fn dialled(&self, succeeded: bool) {
        self.metrics.pool_dials[Outcome::of(succeeded)].increment();
    }

    pub(crate) fn connected(&self, is_up: bool) {
        if is_up {
            self.dialled(true);
        }
        let change = if is_up { 1 } else { -1 };
        self.metrics.pool_connections[ConnectionState::Used].add(change);
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}
