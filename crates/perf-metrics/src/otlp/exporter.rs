//! The caller's side of an exporter: what it did, and what it is asked for.

use super::OtlpError;
use super::Transport;
use super::builder::{OtlpBuilder, Target};
use super::{http, options};
use parking_lot::{Condvar, Mutex};
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long dropping an exporter tries to deliver what is left.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);
/// Ten years. A duration beyond it means the same, and its sum with the clock's time may not exist.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(DURATION_MAX)
}

/// What an exporter has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OtlpStats {
    /// Requests the receiver took.
    pub delivered: u64,
    /// Requests it refused, which are lost.
    pub refused: u64,
    /// Data points it rejected of requests that it took.
    pub rejected_points: u64,
    /// Cumulative requests that were not sent because a newer one contains them.
    pub replaced: u64,
    /// Last values of series that have left, for which the queue had no room while the receiver failed; these are lost.
    pub lost_points: u64,
    /// Attempts that failed and are made again.
    pub retries: u64,
    /// Requests that wait.
    pub queued: usize,
    /// Why the last attempt failed; `None` after a success.
    pub last_error: Option<String>,
}

/// What became of the requests since a call of [`OtlpExporter::flush`] or [`shutdown`](OtlpExporter::shutdown) began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// Requests the receiver took.
    pub delivered: u64,
    /// Requests it refused, which are lost.
    pub refused: u64,
    /// Data points it rejected of requests that it took, which are lost.
    pub rejected_points: u64,
    /// Cumulative requests that were not sent because a newer one contains them.
    pub replaced: u64,
    /// Last values of series that have left, for which the queue had no room while the receiver failed; these are lost.
    pub lost_points: u64,
}

impl OtlpStats {
    fn since(&self, then: &Self) -> Delivery {
        Delivery {
            delivered: self.delivered - then.delivered,
            refused: self.refused - then.refused,
            rejected_points: self.rejected_points - then.rejected_points,
            replaced: self.replaced - then.replaced,
            lost_points: self.lost_points - then.lost_points,
        }
    }
}

#[derive(Default)]
pub(super) struct Shared {
    pub(super) control: Mutex<Control>,
    pub(super) changed: Condvar,
}

#[derive(Default)]
pub(super) struct Control {
    pub(super) stats: OtlpStats,
    /// How many flushes were asked for, and how many are done.
    pub(super) flushes: (u64, u64),
    /// Stop then, delivered or not.
    pub(super) stop_at: Option<Instant>,
    pub(super) is_over: bool,
    /// The thread ended before it was asked to: the transport could not be made, or panicked.
    pub(super) is_cut_short: bool,
}

/// Delivers a registry until it is shut down or dropped.
pub struct OtlpExporter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl OtlpExporter {
    pub(super) fn new(shared: Arc<Shared>, thread: JoinHandle<()>) -> Self {
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// To a receiver's HTTP endpoint, such as `http://127.0.0.1:4318`; `https` with the feature `otlp-tls`. Without a path it is
    /// `/v1/metrics`.
    pub fn http(endpoint: &str) -> OtlpBuilder {
        OtlpBuilder::new(
            http::Endpoint::new(endpoint).map(|endpoint| Target::Http(Box::new(endpoint))),
        )
    }

    /// As the environment says: `OTEL_EXPORTER_OTLP_*` (`ENDPOINT`, `PROTOCOL`, `HEADERS`, `TIMEOUT`, `COMPRESSION`, `CERTIFICATE`, each
    /// also with `METRICS_`), `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME` and
    /// `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`: <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.
    ///
    /// # Errors
    /// [`OtlpError::InvalidOption`] names the variable that is not valid.
    pub fn from_env() -> Result<OtlpBuilder, OtlpError> {
        options::from_env(&|name| std::env::var(name).ok())
    }

    /// To a receiver's gRPC endpoint, such as `http://127.0.0.1:4317`; `https` with the feature `otlp-tls`.
    #[cfg(feature = "otlp-grpc")]
    pub fn grpc(endpoint: &str) -> OtlpBuilder {
        OtlpBuilder::new(
            super::grpc::endpoint(endpoint).map(|endpoint| Target::Grpc(Box::new(endpoint))),
        )
    }

    /// By a transport of the caller's.
    pub fn custom(transport: impl Transport + 'static) -> OtlpBuilder {
        OtlpBuilder::new(Ok(Target::Custom(Box::new(transport))))
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> OtlpStats {
        self.shared.control.lock().stats.clone()
    }

    /// Collects now and waits until everything collected so far is delivered. `Ok` says that nothing was refused as a whole;
    /// [`Delivery::rejected_points`] may still be lost.
    ///
    /// # Errors
    /// [`OtlpError::Undelivered`] when `timeout` is over before; the exporter goes on trying. [`OtlpError::Refused`] when the receiver
    /// refused requests meanwhile.
    pub fn flush(&self, timeout: Duration) -> Result<Delivery, OtlpError> {
        let deadline = deadline(timeout);
        let mut control = self.shared.control.lock();
        let then = control.stats.clone();
        control.flushes.0 += 1;
        let wanted = control.flushes.0;
        self.shared.changed.notify_all();
        while control.flushes.1 < wanted && !control.is_over {
            if self
                .shared
                .changed
                .wait_until(&mut control, deadline)
                .timed_out()
            {
                break;
            }
        }
        outcome(&control, &then, control.flushes.1 >= wanted)
    }

    /// Collects once more, delivers what it can within `timeout`, and stops. A receiver that failed before is tried once more at once, unless
    /// it has asked for a pause. Returns early when no attempt is due within `timeout`.
    ///
    /// # Errors
    /// [`OtlpError::Undelivered`] if something is left, which is then lost. [`OtlpError::Refused`] when the receiver refused requests
    /// meanwhile.
    pub fn shutdown(mut self, timeout: Duration) -> Result<Delivery, OtlpError> {
        self.stop(timeout)
    }

    fn stop(&mut self, timeout: Duration) -> Result<Delivery, OtlpError> {
        let Some(thread) = self.thread.take() else {
            return Ok(Delivery::default());
        };
        let deadline = deadline(timeout);
        let mut control = self.shared.control.lock();
        let then = control.stats.clone();
        control.stop_at = Some(deadline);
        self.shared.changed.notify_all();
        while !control.is_over
            && !self
                .shared
                .changed
                .wait_until(&mut control, deadline)
                .timed_out()
        {}
        // A transport that hangs beyond its timeout is left behind rather than waited for.
        let is_over = control.is_over;
        let is_done = is_over && !control.is_cut_short && control.stats.queued == 0;
        let outcome = outcome(&control, &then, is_done);
        drop(control);
        if is_over {
            let _ = thread.join();
        }
        outcome
    }
}

fn outcome(control: &Control, then: &OtlpStats, is_done: bool) -> Result<Delivery, OtlpError> {
    let delivery = control.stats.since(then);
    let last_error = control.stats.last_error.clone();
    if !is_done {
        return Err(OtlpError::Undelivered {
            requests: control.stats.queued.max(1),
            last_error,
            delivery,
        });
    }
    if delivery.refused > 0 {
        return Err(OtlpError::Refused {
            delivery,
            last_error,
        });
    }
    Ok(delivery)
}

impl Drop for OtlpExporter {
    fn drop(&mut self) {
        // Reported to the error handler by the thread.
        let _ = self.stop(DROP_TIMEOUT);
    }
}

impl fmt::Debug for OtlpExporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpExporter")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
