//! The resolved route of a message, and the ways into its queue.

use crate::envelope::Envelope;
use crate::error::TransportError;
use crate::payload::Payload;
use crate::priority::Priority;
use crate::proto::{Header, Kind, NotQueued, QueueLimits, SendQueue, Waiter};
use crate::refused::{Attempt, Refused};
use crate::route::{self, Address, Era, Route};
use crate::shell::conn::Conn;
use crate::shell::link::Link;
use crate::shell::serve::Waiting;
use crate::spans::{CallSpan, Observed};
use crate::trace::{TRACE_BYTES, with_head};
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use super::Transport;

/// A resolved route: the link and the queue that a message goes to.
pub(super) struct ResolvedRoute<'a> {
    pub(super) route: &'a Route,
    pub(super) link: &'a Link,
    pub(super) queue: SendQueue,
}

impl ResolvedRoute<'_> {
    #[inline]
    pub(super) fn conn(&self) -> &Arc<Conn> {
        &self.link.conn
    }

    #[inline]
    pub(super) fn define(&self) -> Option<&Bytes> {
        Some(&self.route.name.define)
    }

    #[inline]
    pub(super) fn header(&self, kind: Kind, id: u64) -> Header {
        Header::new(kind, self.route.number, id)
    }

    /// The trace context of an envelope, followed by the part of its payload that is copied anyway. `None` if the
    /// envelope has no context, if the peer does not know contexts, or if the message is too long with it.
    pub(super) fn trace_head(&self, envelope: &Envelope<'_>) -> Option<Vec<u8>> {
        let trace = envelope.trace?;
        let conn = self.conn();
        let bytes_max = conn.frame_bytes_max.load(Ordering::Relaxed) as usize;
        let fits = envelope.payload.len() + TRACE_BYTES <= bytes_max;
        let is_heard = conn.hears_traces.load(Ordering::Relaxed);
        (fits && is_heard).then(|| trace.before(&envelope.payload))
    }

    /// Queues a message or puts the caller in line. `head` is that of [`trace_head`](Self::trace_head); a peer that
    /// does not take it gets the message without.
    pub(super) fn push_or_wait(
        &self,
        (waiter, waker): (&mut Waiter, &Waker),
        header: Header,
        payload: &Payload<'_>,
        head: Option<&[u8]>,
    ) -> (Result<(), NotQueued>, Option<Waker>) {
        let queues = &self.conn().channel.queues;
        if let (Some(head), Some(kind)) = (head, header.kind.traced()) {
            let traced = Header { kind, ..header };
            let payload = with_head(head, payload);
            let (queue, define) = (self.queue, self.define());
            match queues.push_or_wait(waiter, waker, queue, traced, &payload, define) {
                // The peer has said since that it takes no context. The turn is given up and taken again.
                (Err(NotQueued::Untraced | NotQueued::TooLong { .. }), next) => {
                    if let Some(next) = next {
                        next.wake();
                    }
                }
                other => return other,
            }
        }
        queues.push_or_wait(waiter, waker, self.queue, header, payload, self.define())
    }
}

#[inline]
pub(super) fn address<'a>(envelope: &Envelope<'a>) -> Address<'a> {
    Address {
        target: envelope.target,
        service: envelope.service,
        method: envelope.method,
    }
}

/// The span of a call.
#[inline]
pub(super) fn span_of(envelope: &Envelope<'_>) -> CallSpan {
    let Envelope {
        target,
        service,
        method,
        trace,
        ..
    } = *envelope;
    CallSpan::new(target, service, method, trace)
}

#[inline]
pub(super) fn is_urgent(resolved: &ResolvedRoute<'_>) -> bool {
    resolved.link.class == crate::proto::ConnectionClass::Control
}

impl Transport {
    /// The bounds of the queue of a priority.
    pub(crate) fn queue_limits(&self, priority: Priority) -> QueueLimits {
        self.inner.config.queue(priority)
    }

    pub(crate) fn has_checksums(&self) -> bool {
        self.inner.local.checksum
    }

    #[inline]
    pub(super) fn era(&self) -> Era {
        Era {
            transport: self.inner.number,
            generation: self.inner.peers.generation(),
        }
    }

    /// Calls `act` with the route of an envelope: the one that the thread remembers, or a new one.
    #[inline]
    pub(super) fn with_route<R>(
        &self,
        envelope: &Envelope<'_>,
        act: impl Fn(&Route) -> Result<R, Refused>,
    ) -> Result<R, TransportError> {
        match route::with(self.era(), address(envelope), |route| act(route)) {
            Some(Ok(done)) => Ok(done),
            Some(Err(refused)) => Err(self.error(refused, envelope)),
            None => self.with_new_route(envelope, &act),
        }
    }

    /// Calls `act` with a route that the caller holds, or with that of the envelope where the caller's is out of date.
    #[inline]
    pub(super) fn along<R>(
        &self,
        route: &Route,
        envelope: &Envelope<'_>,
        act: impl Fn(&Route) -> Result<R, Refused>,
    ) -> Result<R, TransportError> {
        if route.era != self.era() {
            return self.with_route(envelope, act);
        }
        act(route).map_err(|refused| self.error(refused, envelope))
    }

    #[cold]
    pub(super) fn with_new_route<R>(
        &self,
        envelope: &Envelope<'_>,
        act: &dyn Fn(&Route) -> Result<R, Refused>,
    ) -> Result<R, TransportError> {
        let route = self.route(envelope)?;
        let result = act(&route);
        route::remember(address(envelope), route);
        result.map_err(|refused| self.error(refused, envelope))
    }

    pub(super) fn error(&self, refused: Refused, envelope: &Envelope<'_>) -> TransportError {
        refused.into_error(Attempt {
            peer: envelope.target,
            bytes: envelope.payload.len(),
            calls_max: self.inner.config.calls_max,
            cause: self.cause(refused, envelope.target, || {
                let router = &self.inner.router;
                let of_method = || router.priority(envelope.service, envelope.method);
                envelope.priority.unwrap_or_else(of_method)
            }),
        })
    }

    /// Why the peer cannot be reached: the error of the link that messages of this priority take.
    pub(super) fn cause(
        &self,
        refused: Refused,
        peer: u64,
        priority: impl FnOnce() -> Priority,
    ) -> Option<Arc<TransportError>> {
        let Refused::Unreachable { .. } = refused else {
            return None;
        };
        let peer = self.inner.peers.get(&peer)?;
        peer.link(priority().class()).conn.dial_error()
    }

    /// Looks up peer and name.
    pub(super) fn route(&self, envelope: &Envelope<'_>) -> Result<Route, TransportError> {
        let inner = &self.inner;
        // Read before the look-up: a change of the peers in between makes the route out of date.
        let era = self.era();
        let Some(peer) = inner.peers.get(&envelope.target) else {
            return Err(TransportError::UnknownPeer {
                peer: envelope.target,
            });
        };
        let (service, method) = (envelope.service, envelope.method);
        let priority = || inner.router.priority(service, method);
        let (number, name) = inner.names.number(service, method, priority)?;
        Ok(Route {
            era,
            peer,
            name: Arc::clone(name),
            number,
        })
    }

    /// Resolves a route for an envelope: its link and queue. Dials if there is no connection.
    ///
    /// # Errors
    /// [`Refused`] if the message cannot be queued now.
    #[inline]
    pub(super) fn resolve<'a>(
        &self,
        route: &'a Route,
        envelope: &Envelope<'_>,
    ) -> Result<ResolvedRoute<'a>, Refused> {
        self.resolve_for(route, envelope.priority, envelope.payload.len())
    }

    /// Resolves a route for payloads of at most `bytes`, see [`resolve`](Self::resolve).
    #[inline]
    pub(super) fn resolve_for<'a>(
        &self,
        route: &'a Route,
        priority: Option<Priority>,
        bytes: usize,
    ) -> Result<ResolvedRoute<'a>, Refused> {
        let inner = &self.inner;
        if inner.draining.load(Ordering::Relaxed) {
            return Err(Refused::ShuttingDown);
        }
        let priority = priority.unwrap_or(route.name.priority);
        let link = route.peer.link(priority.class());
        let bytes_max = link.conn.frame_bytes_max.load(Ordering::Relaxed);
        if bytes > bytes_max as usize {
            return Err(Refused::TooLarge { bytes_max });
        }
        link.admit(&route.peer, inner)?;
        Ok(ResolvedRoute {
            route,
            link,
            queue: priority.queue(),
        })
    }

    /// Span and metrics of a call that was not sent.
    #[cold]
    pub(crate) fn observe(&self, envelope: &Envelope<'_>) -> Observed {
        match self.route(envelope) {
            Ok(route) => self.observe_on(&route, envelope),
            Err(_) => Observed::new(span_of(envelope)),
        }
    }

    /// Span and metrics of a call.
    #[inline]
    pub(super) fn observe_on(&self, route: &Route, envelope: &Envelope<'_>) -> Observed {
        let observed = Observed::new(span_of(envelope));
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &self.inner.method_metrics {
            let recorder = route.name.recorder(metrics);
            let measured = crate::methods::Measured::call(recorder, envelope.payload.len());
            return observed.measured(measured);
        }
        let _ = route;
        observed
    }
}

impl Transport {
    /// Queues a message at once or not at all.
    #[inline]
    pub(super) fn queue(
        &self,
        resolved: &ResolvedRoute<'_>,
        header: Header,
        payload: &Payload<'_>,
    ) -> Result<(), Refused> {
        let queues = &resolved.conn().channel.queues;
        match queues.push(resolved.queue, header, payload, resolved.define()) {
            Err(NotQueued::Closed) => self.queue_again(resolved, header, payload),
            other => other.map_err(Refused::from),
        }
    }

    /// Queues a message at once or not at all, with its trace context if it has one.
    #[inline]
    pub(super) fn queue_message(
        &self,
        resolved: &ResolvedRoute<'_>,
        header: Header,
        envelope: &Envelope<'_>,
    ) -> Result<(), Refused> {
        if envelope.trace.is_some() {
            return self.queue_traced(resolved, header, envelope);
        }
        self.queue(resolved, header, &envelope.payload)
    }

    #[cold]
    pub(super) fn queue_traced(
        &self,
        resolved: &ResolvedRoute<'_>,
        header: Header,
        envelope: &Envelope<'_>,
    ) -> Result<(), Refused> {
        if let (Some(head), Some(kind)) = (resolved.trace_head(envelope), header.kind.traced()) {
            let traced = Header { kind, ..header };
            match self.queue(resolved, traced, &with_head(&head, &envelope.payload)) {
                // The peer has said since that it takes no context.
                Err(Refused::Untraced | Refused::TooLarge { .. }) => {}
                other => return other,
            }
        }
        self.queue(resolved, header, &envelope.payload)
    }

    /// Queues a message for the next connection, because the one of this route has ended since. Dials it, unless the
    /// last one is still ending.
    #[cold]
    pub(super) fn queue_again(
        &self,
        resolved: &ResolvedRoute<'_>,
        header: Header,
        payload: &Payload<'_>,
    ) -> Result<(), Refused> {
        resolved
            .link
            .admit_slow(&resolved.route.peer, &self.inner)?;
        let queues = &resolved.conn().channel.queues;
        let pushed = queues.push(resolved.queue, header, payload, resolved.define());
        pushed.map_err(Refused::from)
    }

    /// Queues what `push` brings, in turn with other callers that wait for the same queue, and notifies the writer.
    pub(super) async fn queue_in_turn(
        &self,
        resolved: &ResolvedRoute<'_>,
        mut push: impl FnMut(&mut Waiter, &Waker) -> (Result<(), NotQueued>, Option<Waker>),
    ) -> Result<(), Refused> {
        let conn = resolved.conn();
        let mut waiting = Waiting {
            conn,
            queue: resolved.queue,
            waiter: Waiter::default(),
        };
        poll_fn(|cx| {
            // The connection may have been lost while this caller waited: `admit` dials again.
            if let Err(reason) = resolved.link.admit(&resolved.route.peer, &self.inner) {
                return Poll::Ready(Err(reason));
            }
            let (result, next) = push(&mut waiting.waiter, cx.waker());
            if let Some(next) = next {
                next.wake();
            }
            match result {
                Err(NotQueued::Full) => Poll::Pending,
                Err(NotQueued::Closed) => {
                    // The connection ended since `admit` above. The task that ends it is about to tell the dialer.
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                other => Poll::Ready(other.map_err(Refused::from)),
            }
        })
        .await?;
        drop(waiting);
        conn.notify(is_urgent(resolved));
        Ok(())
    }
}
