//! Records into the catalogue of `perf-metrics`.

use crate::shell::conn::Conn;
use perf_metrics::NodeMetrics;
use perf_metrics::node::{ConnectionState, Direction, Outcome, Transport};
use std::fmt;
use std::sync::atomic::Ordering;

/// How many of a connection's bytes are recorded.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    received: u64,
    sent: u64,
}

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

    /// Records what a connection received and sent since this was last asked for.
    pub(crate) fn transferred(&self, conn: &Conn) {
        let table = &self.metrics.network_io[Transport::Tcp];
        // Held for as long as this takes: the ticker and the end of the connection may both be here.
        let mut recorded = conn.recorded.lock();
        let received = conn.bytes_received.load(Ordering::Relaxed);
        let sent = conn.bytes_written.load(Ordering::Relaxed);
        table[Direction::Receive].add(received.wrapping_sub(recorded.received));
        table[Direction::Transmit].add(sent.wrapping_sub(recorded.sent));
        *recorded = Recorded { received, sent };
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}
