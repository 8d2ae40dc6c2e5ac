//! A method of a peer, looked up once.

use crate::batch::Batch;
use crate::call::Call;
use crate::envelope::Envelope;
use crate::error::{TransportError, Undelivered};
use crate::payload::Payload;
use crate::priority::Priority;
use crate::route::Route;
use crate::trace::TraceContext;
use crate::transport::Transport;
use bytes::Bytes;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A method of a peer, looked up once, for senders that use it often: [`Transport::send`] and [`Transport::call`] find
/// peer and method anew for each message.
///
/// It keeps its transport alive, as a clone of that does, and no connection open. When peers are added or removed it
/// stays right, and looks up as a transport does from then on; make another then.
///
/// ```no_run
/// # async fn f(transport: &perf_transport::Transport) -> Result<(), Box<dyn std::error::Error>> {
/// let status = transport.method(2, "vm", "status")?;
/// let reply = status.call(b"vm-17").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RemoteMethod {
    pub(crate) transport: Transport,
    pub(crate) route: Route,
    pub(crate) priority: Option<Priority>,
    timeout: Option<Duration>,
}

impl fmt::Debug for RemoteMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteMethod")
            .field("peer", &self.peer())
            .field("service", &self.service())
            .field("method", &self.method())
            .field("priority", &self.priority)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl RemoteMethod {
    pub(crate) fn new(transport: Transport, route: Route) -> Self {
        Self {
            transport,
            route,
            priority: None,
            timeout: None,
        }
    }

    /// Id of the node.
    #[must_use]
    pub fn peer(&self) -> u64 {
        self.route.peer.id
    }

    /// The service there.
    #[must_use]
    pub fn service(&self) -> &str {
        self.route.name.service()
    }

    /// Its method.
    #[must_use]
    pub fn method(&self) -> &str {
        self.route.name.method()
    }

    /// Sets the priority of all that is sent this way, in the place of that of the router's table.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Sets how long calls may take, in the place of [`Config::call_timeout`](crate::Config::call_timeout).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The most bytes of one message's payload that this node sends to this peer: the smaller of both nodes'
    /// `frame_bytes_max`. Before the first connection only this node's own bound is known.
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        let priority = self.priority.unwrap_or(self.route.name.priority);
        let link = self.route.peer.link(priority.class());
        link.conn.frame_bytes_max.load(Ordering::Relaxed) as usize
    }

    /// Whether the peer takes a payload of this length, as far as is known.
    pub(crate) fn check_length(&self, bytes: usize) -> Result<(), TransportError> {
        let bytes_max = self.payload_bytes_max();
        if bytes > bytes_max {
            return Err(TransportError::TooLarge { bytes, bytes_max });
        }
        Ok(())
    }

    #[inline]
    fn envelope<'a>(&'a self, payload: Payload<'a>) -> Envelope<'a> {
        Envelope {
            target: self.peer(),
            service: self.service(),
            method: self.method(),
            payload,
            priority: self.priority,
            request_id: 0,
            timeout: self.timeout,
            trace: None,
        }
    }

    /// Sends a message without a reply, as [`Transport::send`] does.
    ///
    /// # Errors
    /// Those of [`Transport::send`], with the message.
    #[allow(
        clippy::result_large_err,
        reason = "the error is the message itself, given back; a box would be an allocation where the node is busiest"
    )]
    #[inline]
    pub fn send<'a>(&'a self, payload: impl Into<Payload<'a>>) -> Result<(), Undelivered<'a>> {
        let envelope = self.envelope(payload.into());
        match self.transport.send_along(&self.route, &envelope) {
            Ok(()) => Ok(()),
            Err(error) => Err(Undelivered { envelope, error }),
        }
    }

    /// Sends a message without a reply, and waits while its queue is full, as [`Transport::send_wait`] does.
    ///
    /// # Errors
    /// Those of [`Transport::send_wait`].
    pub async fn send_wait(&self, payload: impl Into<Payload<'_>>) -> Result<(), TransportError> {
        let envelope = self.envelope(payload.into());
        self.transport.send_wait_along(&self.route, &envelope).await
    }

    /// Begins a batch of messages without a reply, for senders that have many at once: see [`Batch`].
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch::new(self.clone())
    }

    /// Sends a request and returns the future of its reply, as [`Transport::call`] does.
    ///
    /// # Errors
    /// The future's: those of [`Transport::call`].
    #[inline]
    pub fn call<'a>(&'a self, payload: impl Into<Payload<'a>>) -> Call {
        self.begin(&self.envelope(payload.into()))
    }

    #[inline]
    fn begin(&self, envelope: &Envelope<'_>) -> Call {
        match self.transport.call_along(&self.route, envelope) {
            Ok(call) => call,
            Err(error) => Call::failed(error, self.transport.observe(envelope)),
        }
    }

    /// Sends a message without a reply, with a trace context.
    ///
    /// # Errors
    /// Those of [`Transport::send`].
    pub fn send_traced<'a>(
        &'a self,
        payload: impl Into<Payload<'a>>,
        trace: &'a TraceContext,
    ) -> Result<(), TransportError> {
        let envelope = self.envelope(payload.into()).with_trace(trace);
        self.transport.send_along(&self.route, &envelope)
    }

    /// Sends a request with a trace context, and returns the future of its reply.
    ///
    /// # Errors
    /// The future's: those of [`Transport::call`].
    pub fn call_traced<'a>(
        &'a self,
        payload: impl Into<Payload<'a>>,
        trace: &'a TraceContext,
    ) -> Call {
        self.begin(&self.envelope(payload.into()).with_trace(trace))
    }

    /// Sends a request and waits for room first, as [`Transport::call_wait`] does.
    ///
    /// # Errors
    /// Those of [`Transport::call_wait`].
    pub async fn call_wait(
        &self,
        payload: impl Into<Payload<'_>>,
    ) -> Result<Bytes, TransportError> {
        let envelope = self.envelope(payload.into());
        self.transport.call_wait_along(&self.route, &envelope).await
    }
}
