//! Metrics of each method: calls, errors, latency, bytes, what is in flight.

use crate::error::{RejectionCode, TransportError};
use perf_metrics::{
    BoundCounter, BoundHistogram, BoundUpDownCounter, Counter, Histogram, KeyValue, MetricsError,
    Registry, UpDownCounter,
};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// Instruments with a series for each service and method, on both sides. Given to
/// [`Builder::method_metrics`](crate::Builder::method_metrics).
///
/// | instrument | |
/// |---|---|
/// | `rpc.client.duration`, `rpc.server.duration` | seconds, a histogram: its count is the number of calls, or of requests and messages that were handled |
/// | `rpc.client.errors`, `rpc.server.errors` | how many of them failed, by `error.type` |
/// | `rpc.client.active`, `rpc.server.active` | how many are in flight |
/// | `rpc.client.sent`, `rpc.server.received` | bytes of requests |
/// | `rpc.client.received`, `rpc.server.sent` | bytes of replies; streamed bodies are not counted |
///
/// The attributes are `rpc.service` and `rpc.method`. A call costs two readings of the clock and five recordings, some
/// 100 ns on each side; without this it costs nothing. Requests that a handler of `*` or the fallback gets are recorded
/// as `*`, and those without a handler not at all: peers cannot make series.
#[derive(Clone)]
pub struct MethodMetrics {
    inner: Arc<[Side; 2]>,
}

struct Side {
    duration: Histogram<f64>,
    errors: Counter,
    active: UpDownCounter<i64>,
    sent: Counter,
    received: Counter,
}

impl Side {
    fn new(registry: &Registry, side: &str) -> Result<Self, MetricsError> {
        let name = |what: &str| format!("rpc.{side}.{what}");
        let counter = |what, unit| registry.u64_counter(name(what)).with_unit(unit).build();
        let active = registry.i64_up_down_counter(name("active"));
        Ok(Self {
            duration: registry
                .f64_histogram(name("duration"))
                .with_unit("s")
                .build()?,
            errors: counter("errors", "{error}")?,
            active: active.with_unit("{call}").build()?,
            sent: counter("sent", "By")?,
            received: counter("received", "By")?,
        })
    }

    fn method(&self, service: &str, method: &str) -> MethodRecorder {
        let name = [
            KeyValue::new("rpc.service", service.to_owned()),
            KeyValue::new("rpc.method", method.to_owned()),
        ];
        MethodRecorder {
            duration: self.duration.bind(&name),
            active: self.active.bind(&name),
            sent: self.sent.bind(&name),
            received: self.received.bind(&name),
            errors: self.errors.clone(),
            name,
        }
    }
}

impl MethodMetrics {
    /// Makes the instruments.
    ///
    /// # Errors
    /// [`MetricsError`] if one of the names is taken by another kind of instrument.
    pub fn new(registry: &Registry) -> Result<Self, MetricsError> {
        let sides = [
            Side::new(registry, "client")?,
            Side::new(registry, "server")?,
        ];
        Ok(Self {
            inner: Arc::new(sides),
        })
    }

    pub(crate) fn client(&self, service: &str, method: &str) -> Arc<MethodRecorder> {
        Arc::new(self.inner[0].method(service, method))
    }

    pub(crate) fn server(&self, service: &str, method: &str) -> Arc<MethodRecorder> {
        Arc::new(self.inner[1].method(service, method))
    }
}

impl fmt::Debug for MethodMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MethodMetrics")
    }
}

/// The series of one method.
pub(crate) struct MethodRecorder {
    duration: BoundHistogram<f64>,
    active: BoundUpDownCounter<i64>,
    sent: BoundCounter<u64>,
    received: BoundCounter<u64>,
    errors: Counter,
    name: [KeyValue; 2],
}

impl fmt::Debug for MethodRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MethodRecorder")
    }
}

impl MethodRecorder {
    fn failed(&self, kind: &'static str) {
        let [service, method] = self.name.clone();
        let attributes = [service, method, KeyValue::new("error.type", kind)];
        self.errors.add(1, &attributes);
    }
}

/// A call in flight, or a handler that runs. One that is dropped before its end was cancelled.
#[derive(Debug)]
pub(crate) struct Measured {
    recorder: Arc<MethodRecorder>,
    began: Instant,
    has_ended: bool,
}

impl Measured {
    /// A call begins, with so many bytes.
    pub(crate) fn call(recorder: Arc<MethodRecorder>, bytes: usize) -> Self {
        recorder.sent.add(bytes as u64);
        Self::new(recorder)
    }

    /// A handler begins, with so many bytes.
    pub(crate) fn handler(recorder: Arc<MethodRecorder>, bytes: usize) -> Self {
        recorder.received.add(bytes as u64);
        Self::new(recorder)
    }

    fn new(recorder: Arc<MethodRecorder>) -> Self {
        recorder.active.add(1);
        Self {
            recorder,
            began: Instant::now(),
            has_ended: false,
        }
    }

    /// The call has a reply of so many bytes, or failed.
    pub(crate) fn called(&mut self, outcome: Result<usize, &TransportError>) {
        let recorder = &self.recorder;
        match outcome {
            Ok(bytes) => recorder.received.add(bytes as u64),
            Err(error) => recorder.failed(kind_of(error)),
        }
        self.end();
    }

    /// The handler has answered with so many bytes, or with an error.
    pub(crate) fn handled(&mut self, outcome: Result<usize, RejectionCode>) {
        let recorder = &self.recorder;
        match outcome {
            Ok(bytes) => recorder.sent.add(bytes as u64),
            Err(code) => recorder.failed(kind_of_code(code)),
        }
        self.end();
    }

    fn end(&mut self) {
        self.has_ended = true;
        let recorder = &self.recorder;
        recorder.duration.record(self.began.elapsed().as_secs_f64());
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        if !self.has_ended {
            self.recorder.failed("cancelled");
            self.end();
        }
        self.recorder.active.add(-1);
    }
}

fn kind_of(error: &TransportError) -> &'static str {
    match error {
        TransportError::Timeout { .. } => "timeout",
        TransportError::Disconnected { .. } => "disconnected",
        TransportError::Unreachable { .. } => "unreachable",
        TransportError::QueueFull { .. } => "queue_full",
        TransportError::TooManyCalls { .. } | TransportError::TooManyStreams { .. } => {
            "too_many_calls"
        }
        TransportError::TooLarge { .. } => "too_large",
        TransportError::PeerRejected { code, .. } => kind_of_code(*code),
        _ => "other",
    }
}

fn kind_of_code(code: RejectionCode) -> &'static str {
    match code {
        RejectionCode::NotFound => "not_found",
        RejectionCode::Invalid => "invalid",
        RejectionCode::Busy => "busy",
        RejectionCode::NotHere => "not_here",
        RejectionCode::Forbidden => "forbidden",
        RejectionCode::Internal => "internal",
        RejectionCode::Custom(_) => "custom",
    }
}
