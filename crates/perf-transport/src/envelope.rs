//! A message with its address.

use crate::payload::Payload;
use crate::priority::Priority;
use crate::trace::TraceContext;
use std::time::Duration;

/// A message with its address. It borrows everything, so making one costs nothing.
///
/// ```
/// use perf_transport::{Envelope, Priority};
/// use std::time::Duration;
///
/// let vote = Envelope::new(2, "raft", "vote", b"term 7");
/// let check = Envelope::new(2, "audit", "check", b"...")
///     .with_priority(Priority::High)
///     .with_timeout(Duration::from_millis(200));
/// assert_eq!((vote.priority, check.priority), (None, Some(Priority::High)));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Envelope<'a> {
    /// Id of the node it is for.
    pub target: u64,
    /// The service there, at most 128 bytes.
    pub service: &'a str,
    /// Its method, at most 128 bytes.
    pub method: &'a str,
    /// The bytes, at most [`Config::frame_bytes_max`](crate::Config::frame_bytes_max).
    pub payload: Payload<'a>,
    /// How urgent it is; by default what the router's table says of the service and method.
    pub priority: Option<Priority>,
    /// The sender's own number of a one-way message, handed to its receiver; 0 by default. A call has one of the
    /// transport's.
    pub request_id: u64,
    /// How long a call may take; by default [`Config::call_timeout`](crate::Config::call_timeout).
    pub timeout: Option<Duration>,
    /// Where it belongs in a distributed trace; nothing by default. The receiver gets it
    /// ([`Message::trace`](crate::Message::trace)) if its version knows trace contexts. A payload that is within 25
    /// bytes of the peer's cap goes without.
    pub trace: Option<&'a TraceContext>,
}

impl<'a> Envelope<'a> {
    /// A message of default priority.
    #[inline]
    #[must_use]
    pub fn new(
        target: u64,
        service: &'a str,
        method: &'a str,
        payload: impl Into<Payload<'a>>,
    ) -> Self {
        Self {
            target,
            service,
            method,
            payload: payload.into(),
            priority: None,
            request_id: 0,
            timeout: None,
            trace: None,
        }
    }

    /// Sets the priority.
    #[inline]
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Sets the number that the receiver of a one-way message gets.
    #[inline]
    #[must_use]
    pub fn with_request_id(mut self, request_id: u64) -> Self {
        self.request_id = request_id;
        self
    }

    /// Sets where it belongs in a distributed trace.
    #[inline]
    #[must_use]
    pub fn with_trace(mut self, trace: &'a TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Sets how long a call may take. It is never ended earlier, and at most two ticks later. The peer is told
    /// ([`Message::time_limit`](crate::Message::time_limit)).
    #[inline]
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}
