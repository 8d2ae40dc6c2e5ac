//! The thread that collects and delivers.

use super::encode::{Origin, request};
use super::http::{self, Http};
use super::left_behind;
use super::options::{self, SendOptions};
use super::split::{self, REQUEST_BYTES_MAX_DEFAULT, REQUEST_POINTS_MAX_DEFAULT};
use super::{ExportMetricsServiceRequest, OtlpError, SendError, Transport, retry};
use crate::attributes::{KeyValue, normalize};
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
/// Ten years. A duration beyond it means the same, and its sum with the clock's time may not exist.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(DURATION_MAX)
}

type OnError = Box<dyn Fn(&str) + Send>;

enum Target {
    Http(Box<http::Endpoint>),
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
    request_max: split::Max,
    options: SendOptions,
    /// The first option that is not valid.
    invalid: Option<OtlpError>,
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
            request_max: split::Max {
                bytes: REQUEST_BYTES_MAX_DEFAULT,
                points: REQUEST_POINTS_MAX_DEFAULT,
            },
            options: SendOptions::default(),
            invalid: None,
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
        self.interval = interval.clamp(Duration::from_millis(1), DURATION_MAX);
        self
    }

    /// How long one attempt may take: ten seconds unless said here.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.clamp(Duration::from_millis(1), DURATION_MAX);
        self
    }

    /// Cumulative unless said here.
    pub fn with_temporality(mut self, temporality: Temporality) -> Self {
        self.temporality = temporality;
        self
    }

    /// How large a request is at most, in bytes before compression and in data points: [`REQUEST_BYTES_MAX_DEFAULT`] and
    /// [`REQUEST_POINTS_MAX_DEFAULT`] unless said here. A single point is sent however large it is.
    pub fn with_request_max(mut self, bytes_max: usize, points_max: usize) -> Self {
        self.request_max = split::Max {
            bytes: bytes_max.max(1),
            points: points_max.max(1),
        };
        self
    }

    /// One more header of each request, in gRPC one more entry of its metadata. A name or value that is not valid is an error of
    /// [`start`](Self::start). Names and values are kept out of error messages but for the name.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        match options::header(name, value) {
            Ok((name, value)) => drop(self.options.headers.append(name, value)),
            Err(error) => self.invalid = self.invalid.or(Some(error)),
        }
        self
    }

    /// Compresses requests with gzip.
    pub fn with_gzip(mut self) -> Self {
        self.options.is_gzip = true;
        self
    }

    /// The certificates, in PEM, of the authorities to trust in the place of the system's.
    #[cfg(feature = "otlp-tls")]
    pub fn with_root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.options.root_certificates = Some(pem.into());
        self
    }

    /// After how many waiting requests no more is collected: 16 unless said here. One collection can be several requests, all of which are
    /// kept.
    pub fn with_queue_max(mut self, requests_max: usize) -> Self {
        self.queue_max = requests_max.max(1);
        self
    }

    /// What the metrics are about. Of a key that is repeated the last counts.
    pub fn with_resource(mut self, attributes: impl IntoIterator<Item = KeyValue>) -> Self {
        self.origin.resource = normalize(&attributes.into_iter().collect::<Vec<_>>());
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
    /// [`OtlpError`]: the endpoint or an option is not valid, the registry has all its readers, or no thread can be started.
    pub fn start(self, registry: &Registry) -> Result<OtlpExporter, OtlpError> {
        let target = self.target?;
        if let Some(invalid) = self.invalid {
            return Err(invalid);
        }
        let options = self.options;
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
            request_max: self.request_max,
            queue: VecDeque::new(),
            failures: 0,
            is_told_to_wait: false,
            next_attempt: Instant::now(),
            jitter: RandomState::new(),
            on_error: self.on_error,
            last_error: None,
            collected: (None, false),
        };
        let run = move || match connect(target, &options) {
            Ok(mut transport) => worker.run(&mut *transport),
            Err(error) => worker.end(&format!("cannot start: {error}")),
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
            .field("target", &self.target)
            .field("interval", &self.interval)
            .field("timeout", &self.timeout)
            .field("temporality", &self.temporality)
            .field("options", &self.options)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(endpoint) => endpoint.fmt(f),
            #[cfg(feature = "otlp-grpc")]
            Self::Grpc(endpoint) => endpoint.uri().fmt(f),
            Self::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// In the exporter's thread: a runtime must not be dropped within another.
fn connect(target: Target, options: &SendOptions) -> std::io::Result<Box<dyn Transport>> {
    Ok(match target {
        Target::Http(endpoint) => Box::new(Http::new(*endpoint, options)?),
        #[cfg(feature = "otlp-grpc")]
        Target::Grpc(endpoint) => Box::new(super::grpc::Grpc::new(*endpoint, options)?),
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
    /// The thread ended before it was asked to: the transport could not be made, or panicked.
    is_cut_short: bool,
}

/// Delivers a registry until it is shut down or dropped.
pub struct OtlpExporter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl OtlpExporter {
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

struct Worker {
    shared: Arc<Shared>,
    reader: Reader,
    origin: Origin,
    interval: Duration,
    timeout: Duration,
    queue_max: usize,
    request_max: split::Max,
    queue: VecDeque<ExportMetricsServiceRequest>,
    /// In a row.
    failures: u32,
    /// The receiver has asked for the pause until `next_attempt`.
    is_told_to_wait: bool,
    next_attempt: Instant,
    jitter: RandomState,
    on_error: OnError,
    last_error: Option<String>,
    /// For which flush, and whether for the end, was collected already.
    collected: (Option<u64>, bool),
}

/// Says that the thread is over, also when a transport panics.
struct OnExit {
    shared: Arc<Shared>,
    is_cut_short: bool,
}

impl Drop for OnExit {
    fn drop(&mut self) {
        let mut control = self.shared.control.lock();
        control.is_over = true;
        control.is_cut_short = self.is_cut_short;
        self.shared.changed.notify_all();
    }
}

impl Worker {
    fn run(&mut self, transport: &mut dyn Transport) {
        let mut on_exit = OnExit {
            shared: Arc::clone(&self.shared),
            is_cut_short: true,
        };
        let mut next_collection = Instant::now() + self.interval;
        loop {
            let (flushes, stop_at) = self.wait(next_collection);
            let now = Instant::now();
            let is_asked = flushes > self.collected.0 || stop_at.is_some() && !self.collected.1;
            if is_asked || now >= next_collection {
                if stop_at.is_some() && !self.collected.1 && !self.is_told_to_wait {
                    // One attempt is due, whatever failed before.
                    self.next_attempt = now;
                }
                if self.collect(stop_at.is_some()) {
                    self.collected = (flushes.max(self.collected.0), stop_at.is_some());
                }
                next_collection = now + self.interval;
            }
            self.deliver(transport, flushes.is_some(), stop_at);
            let is_empty = self.queue.is_empty();
            // A full queue of deltas may have left no room for the collection that the flush waits for: it is made next.
            let is_flushed = |flushes: &u64| is_empty && self.collected.0 >= Some(*flushes);
            if let Some(flushes) = flushes.filter(is_flushed) {
                self.shared.control.lock().flushes.1 = flushes;
                self.shared.changed.notify_all();
            }
            if let Some(stop_at) = stop_at
                && (is_empty || Instant::now().max(self.next_attempt) >= stop_at)
            {
                on_exit.is_cut_short = false;
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
        // With something in the queue and a receiver that fails, a flush waits for the next attempt too; a stop does so after one attempt.
        let is_held = |control: &Control| {
            let is_new_stop = control.stop_at.is_some() && !self.collected.1;
            self.failures > 0 && (self.is_told_to_wait || !is_new_stop)
        };
        while Instant::now() < until {
            let until = match control.stop_at {
                Some(stop_at) => until.min(stop_at),
                None => until,
            };
            if (asked(&control).is_some() || control.stop_at.is_some())
                && (!is_held(&control) || Instant::now() >= until)
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

    /// Collects into the queue; `false` if that has to wait for room.
    fn collect(&mut self, is_last: bool) -> bool {
        let is_full = self.queue.len() >= self.queue_max;
        let temporality = self.reader.temporality();
        if is_full && temporality == Temporality::Delta && !is_last {
            return false;
        }
        let request = request(self.reader.collect(), temporality, &self.origin);
        let (mut replaced, mut lost) = (0, 0);
        if let Some(request) = request {
            if temporality == Temporality::Cumulative && (is_full || self.failures > 0) {
                (replaced, lost) = self.replace_by(&request);
            }
            self.queue.extend(split::split(request, self.request_max));
        }
        {
            let stats = &mut self.shared.control.lock().stats;
            stats.queued = self.queue.len();
            stats.replaced += replaced;
            stats.lost_points += lost;
        }
        if lost > 0 {
            self.fail(&format!(
                "the last values of {lost} series that have left are lost: the queue is full of them; mend the receiver, or allow a longer queue"
            ));
        }
        true
    }

    /// Empties the queue but for what `newer` does not contain: the last values of series that have left. How many requests it replaces, and
    /// how many points found no room.
    fn replace_by(&mut self, newer: &ExportMetricsServiceRequest) -> (u64, u64) {
        let before = self.queue.len();
        if let Some(left) = left_behind::left_behind(self.queue.drain(..), newer) {
            self.queue.extend(split::split(left, self.request_max));
        }
        let mut lost = 0;
        while self.queue.len() > self.queue_max {
            let oldest = self.queue.pop_front();
            lost += oldest.as_ref().map_or(0, split::points) as u64;
        }
        (before.saturating_sub(self.queue.len()) as u64, lost)
    }

    /// The thread cannot go on.
    fn end(&mut self, error: &str) {
        let _on_exit = OnExit {
            shared: Arc::clone(&self.shared),
            is_cut_short: true,
        };
        self.fail(error);
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
                    self.succeed();
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
                Err(error @ (SendError::Refused { .. } | SendError::TooLarge { .. })) => {
                    let halves = match (&error, self.queue.pop_front()) {
                        (SendError::TooLarge { .. }, Some(request)) => split::halve(request),
                        _ => None,
                    };
                    self.succeed();
                    if let Some((first, second)) = halves {
                        // What comes after is as large.
                        self.request_max.bytes = self
                            .request_max
                            .bytes
                            .min(split::bytes(&first).max(split::bytes(&second)));
                        self.queue.push_front(second);
                        self.queue.push_front(first);
                        self.fail(&error.to_string());
                        self.shared.control.lock().stats.queued = self.queue.len();
                        continue;
                    }
                    self.fail(&error.to_string());
                    let stats = &mut self.shared.control.lock().stats;
                    stats.refused += 1;
                    stats.queued = self.queue.len();
                }
                Err(error) => {
                    let after = match error {
                        SendError::Retry { after, .. } => after,
                        SendError::TooLarge { .. } | SendError::Refused { .. } => None,
                    };
                    self.failures = self.failures.saturating_add(1);
                    self.is_told_to_wait = after.is_some();
                    self.next_attempt =
                        Instant::now() + retry::pause(self.failures, after, &self.jitter);
                    self.fail(&error.to_string());
                    self.shared.control.lock().stats.retries += 1;
                }
            }
        }
    }

    /// The receiver has answered, be it that it refuses.
    fn succeed(&mut self) {
        self.failures = 0;
        self.is_told_to_wait = false;
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
