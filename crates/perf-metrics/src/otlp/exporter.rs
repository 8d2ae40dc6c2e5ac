//! The thread that collects and delivers.

use super::encode::{Origin, request};
use super::http::Http;
use super::{ExportMetricsServiceRequest, OtlpError, SendError, Transport, retry};
use crate::attributes::KeyValue;
use crate::reader::{Reader, Temporality};
use crate::registry::Registry;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::fmt;
use std::hash::RandomState;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long dropping an exporter tries to deliver what is left.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);

type OnError = Box<dyn Fn(&str) + Send>;

enum Target {
    Http(Http),
    #[cfg(feature = "otlp-grpc")]
    Grpc(Box<tonic::transport::Endpoint>),
    Custom(Box<dyn Transport>),
}

/// Describes an exporter and starts it.
#[must_use = "an exporter runs once it is started"]
pub struct OtlpBuilder {
    target: Result<Target, OtlpError>,
    interval: Duration,
    timeout: Duration,
    temporality: Temporality,
    queue_max: usize,
    origin: Origin,
    on_error: OnError,
}

impl OtlpBuilder {
    fn new(target: Result<Target, OtlpError>) -> Self {
        Self {
            target,
            interval: Duration::from_secs(60),
            timeout: Duration::from_secs(10),
            temporality: Temporality::Cumulative,
            queue_max: 16,
            origin: Origin {
                resource: Vec::new(),
                scope_name: "perf-metrics".to_owned(),
                scope_version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            on_error: Box::new(|error| eprintln!("perf-metrics: OTLP: {error}")),
        }
    }

    /// How often to collect: a minute unless said here, at least a millisecond.
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval.max(Duration::from_millis(1));
        self
    }

    /// How long one attempt may take: ten seconds unless said here.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.max(Duration::from_millis(1));
        self
    }

    /// Cumulative unless said here.
    pub fn with_temporality(mut self, temporality: Temporality) -> Self {
        self.temporality = temporality;
        self
    }

    /// How many requests wait at most: 16 unless said here.
    pub fn with_queue_max(mut self, requests_max: usize) -> Self {
        self.queue_max = requests_max.max(1);
        self
    }

    /// What the metrics are about.
    pub fn with_resource(mut self, attributes: impl IntoIterator<Item = KeyValue>) -> Self {
        self.origin.resource = attributes.into_iter().collect();
        self
    }

    /// The name and version of the instrumentation.
    pub fn with_scope(mut self, name: impl Into<String>, version: impl Into<String>) -> Self {
        (self.origin.scope_name, self.origin.scope_version) = (name.into(), version.into());
        self
    }

    /// Who is told of failures, in the exporter's thread, once while they stay the same. Unless said here they are
    /// written to the standard error.
    pub fn with_error_handler(mut self, on_error: impl Fn(&str) + Send + 'static) -> Self {
        self.on_error = Box::new(on_error);
        self
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// [`OtlpError`]: the endpoint is not valid, the registry has all its readers, or no thread can be started.
    pub fn start(self, registry: &Registry) -> Result<OtlpExporter, OtlpError> {
        let target = self.target?;
        let reader = registry
            .reader(self.temporality)
            .map_err(OtlpError::Registry)?;
        let shared = Arc::new(Shared::default());
        let mut worker = Worker {
            shared: Arc::clone(&shared),
            reader,
            origin: self.origin,
            interval: self.interval,
            timeout: self.timeout,
            queue_max: self.queue_max,
            queue: VecDeque::new(),
            failures: 0,
            next_attempt: Instant::now(),
            jitter: RandomState::new(),
            on_error: self.on_error,
            last_error: None,
            collected: (None, false),
        };
        let run = move || match connect(target) {
            Ok(mut transport) => worker.run(&mut *transport),
            Err(error) => worker.fail(&format!("cannot start: {error}")),
        };
        let thread = std::thread::Builder::new()
            .name("metrics-otlp".to_owned())
            .spawn(run)
            .map_err(OtlpError::Thread)?;
        Ok(OtlpExporter {
            shared,
            thread: Some(thread),
        })
    }
}

impl fmt::Debug for OtlpBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpBuilder")
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

/// In the exporter's thread: a runtime must not be dropped within another.
fn connect(target: Target) -> std::io::Result<Box<dyn Transport>> {
    Ok(match target {
        Target::Http(http) => Box::new(http),
        #[cfg(feature = "otlp-grpc")]
        Target::Grpc(endpoint) => Box::new(super::grpc::Grpc::new(&endpoint)?),
        Target::Custom(transport) => transport,
    })
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
    /// Attempts that failed and are made again.
    pub retries: u64,
    /// Requests that wait.
    pub queued: usize,
    /// Why the last attempt failed; `None` after a success.
    pub last_error: Option<String>,
}

#[derive(Default)]
struct Shared {
    control: Mutex<Control>,
    changed: Condvar,
}

#[derive(Default)]
struct Control {
    stats: OtlpStats,
    /// How many flushes were asked for, and how many are done.
    flushes: (u64, u64),
    /// Stop then, delivered or not.
    stop_at: Option<Instant>,
    is_over: bool,
}

/// Delivers a registry until it is shut down or dropped.
pub struct OtlpExporter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl OtlpExporter {
    /// To a receiver's HTTP endpoint, such as `http://127.0.0.1:4318`. Without TLS.
    pub fn http(endpoint: &str) -> OtlpBuilder {
        OtlpBuilder::new(Http::new(endpoint).map(Target::Http))
    }

    /// To a receiver's gRPC endpoint, such as `http://127.0.0.1:4317`. Without TLS.
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

    /// Collects now and waits until everything collected so far is delivered.
    ///
    /// # Errors
    /// [`OtlpError::Undelivered`] when `timeout` is over before; the exporter goes on trying.
    pub fn flush(&self, timeout: Duration) -> Result<(), OtlpError> {
        let deadline = Instant::now() + timeout;
        let mut control = self.shared.control.lock();
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
        if control.flushes.1 >= wanted {
            Ok(())
        } else {
            Err(undelivered(&control))
        }
    }

    /// Collects once more, delivers what it can within `timeout`, and stops.
    ///
    /// # Errors
    /// [`OtlpError::Undelivered`] if something is left, which is then lost.
    pub fn shutdown(mut self, timeout: Duration) -> Result<(), OtlpError> {
        self.stop(timeout)
    }

    fn stop(&mut self, timeout: Duration) -> Result<(), OtlpError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let deadline = Instant::now() + timeout;
        let mut control = self.shared.control.lock();
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
        let (is_over, left) = (control.is_over, control.stats.queued);
        let outcome = if is_over && left == 0 {
            Ok(())
        } else {
            Err(undelivered(&control))
        };
        drop(control);
        if is_over {
            let _ = thread.join();
        }
        outcome
    }
}

fn undelivered(control: &Control) -> OtlpError {
    OtlpError::Undelivered {
        requests: control.stats.queued.max(1),
        last_error: control.stats.last_error.clone(),
    }
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

struct Worker {
    shared: Arc<Shared>,
    reader: Reader,
    origin: Origin,
    interval: Duration,
    timeout: Duration,
    queue_max: usize,
    queue: VecDeque<ExportMetricsServiceRequest>,
    /// In a row.
    failures: u32,
    next_attempt: Instant,
    jitter: RandomState,
    on_error: OnError,
    last_error: Option<String>,
    /// For which flush, and whether for the end, was collected already.
    collected: (Option<u64>, bool),
}

/// Says that the thread is over, also when a transport panics.
struct OnExit(Arc<Shared>);

impl Drop for OnExit {
    fn drop(&mut self) {
        self.0.control.lock().is_over = true;
        self.0.changed.notify_all();
    }
}

impl Worker {
    fn run(&mut self, transport: &mut dyn Transport) {
        let _on_exit = OnExit(Arc::clone(&self.shared));
        let mut next_collection = Instant::now() + self.interval;
        loop {
            let (flushes, stop_at) = self.wait(next_collection);
            let now = Instant::now();
            let is_asked = flushes > self.collected.0 || stop_at.is_some() && !self.collected.1;
            if is_asked || now >= next_collection {
                self.collect(stop_at.is_some());
                self.collected = (flushes.max(self.collected.0), stop_at.is_some());
                next_collection = now + self.interval;
            }
            self.deliver(transport, flushes.is_some(), stop_at);
            let is_empty = self.queue.is_empty();
            if let Some(flushes) = flushes.filter(|_| is_empty) {
                self.shared.control.lock().flushes.1 = flushes;
                self.shared.changed.notify_all();
            }
            if let Some(stop_at) = stop_at
                && (is_empty || Instant::now() >= stop_at)
            {
                return;
            }
        }
    }

    /// Waits for something to do: the number of flushes asked for, if more than are done, and when to stop, if so.
    fn wait(&self, next_collection: Instant) -> (Option<u64>, Option<Instant>) {
        let until = if self.queue.is_empty() {
            next_collection
        } else {
            next_collection.min(self.next_attempt)
        };
        let mut control = self.shared.control.lock();
        let asked = |control: &Control| {
            (control.flushes.0 > control.flushes.1).then_some(control.flushes.0)
        };
        // With something in the queue and a receiver that fails, flush and stop wait for the next attempt too.
        let is_held = self.failures > 0;
        while Instant::now() < until {
            let until = match control.stop_at {
                Some(stop_at) => until.min(stop_at),
                None => until,
            };
            if (asked(&control).is_some() || control.stop_at.is_some())
                && (!is_held || Instant::now() >= until)
            {
                break;
            }
            if self
                .shared
                .changed
                .wait_until(&mut control, until)
                .timed_out()
            {
                break;
            }
        }
        (asked(&control), control.stop_at)
    }

    fn collect(&mut self, is_last: bool) {
        let is_full = self.queue.len() >= self.queue_max;
        if is_full && self.reader.temporality() == Temporality::Delta && !is_last {
            return;
        }
        let temporality = self.reader.temporality();
        let request = request(self.reader.collect(), temporality, &self.origin);
        if let Some(request) = request {
            if temporality == Temporality::Cumulative && (is_full || self.failures > 0) {
                self.queue.clear();
            }
            self.queue.push_back(request);
        }
        self.shared.control.lock().stats.queued = self.queue.len();
    }

    fn deliver(&mut self, transport: &mut dyn Transport, is_flush: bool, stop_at: Option<Instant>) {
        while let Some(request) = self.queue.front() {
            let now = Instant::now();
            if now < self.next_attempt && !(is_flush && self.failures == 0) {
                return;
            }
            let timeout = stop_at.map_or(self.timeout, |stop| {
                stop.saturating_duration_since(now).min(self.timeout)
            });
            if timeout.is_zero() {
                return;
            }
            match transport.send(request, timeout) {
                Ok(accepted) => {
                    self.queue.pop_front();
                    self.failures = 0;
                    self.last_error = None;
                    if accepted.rejected_points > 0 || !accepted.message.is_empty() {
                        self.fail(&format!(
                            "{} points rejected by the receiver: {}",
                            accepted.rejected_points, accepted.message
                        ));
                    }
                    let stats = &mut self.shared.control.lock().stats;
                    stats.delivered += 1;
                    stats.rejected_points += accepted.rejected_points;
                    stats.queued = self.queue.len();
                    stats.last_error.clone_from(&self.last_error);
                }
                Err(error @ SendError::Refused { .. }) => {
                    self.queue.pop_front();
                    self.failures = 0;
                    self.fail(&error.to_string());
                    let stats = &mut self.shared.control.lock().stats;
                    stats.refused += 1;
                    stats.queued = self.queue.len();
                }
                Err(error) => {
                    let after = match error {
                        SendError::Retry { after, .. } => after,
                        SendError::Refused { .. } => None,
                    };
                    self.failures = self.failures.saturating_add(1);
                    self.next_attempt =
                        Instant::now() + retry::pause(self.failures, after, &self.jitter);
                    self.fail(&error.to_string());
                    self.shared.control.lock().stats.retries += 1;
                }
            }
        }
    }

    /// Tells of a failure, once while it stays the same.
    fn fail(&mut self, error: &str) {
        if self.last_error.as_deref() != Some(error) {
            (self.on_error)(error);
            self.last_error = Some(error.to_owned());
        }
        self.shared.control.lock().stats.last_error = Some(error.to_owned());
    }
}
