//! Messages without a reply: to one peer, to several, and on to another.

use crate::batch::Outgoing;
use crate::call::Call;
use crate::envelope::Envelope;
use crate::error::{TransportError, Undelivered};
use crate::message::Message;
use crate::payload::Payload;
use crate::proto::{Kind, Waiter};
use crate::refused::{Attempt, Refused};
use crate::route::Route;
use crate::spans::Observed;
use std::task::Waker;

use super::Transport;
use super::resolved_route::{is_urgent, span_of};

/// What became of a [`broadcast`](Transport::broadcast).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Broadcast {
    /// How many peers it was queued for.
    pub accepted: usize,
    /// The others, with the reason.
    pub refused: Vec<(u64, TransportError)>,
}

pub(super) fn relayed<'a>(target: u64, message: &'a Message) -> Envelope<'a> {
    let payload = Payload::Shared(message.payload().clone());
    let mut envelope = Envelope::new(target, message.service(), message.method(), payload)
        .with_request_id(message.request_id());
    envelope.trace = message.trace();
    envelope
}

impl Transport {
    /// Sends a message without a reply. It is queued, or written at once where the connection is idle and the message
    /// urgent. Never waits.
    ///
    /// # Errors
    /// Gives the message back, with the reason: [`QueueFull`](TransportError::QueueFull), also while others wait for
    /// room in turn, [`Unreachable`](TransportError::Unreachable), [`UnknownPeer`](TransportError::UnknownPeer),
    /// [`TooLarge`](TransportError::TooLarge), [`PeerDraining`](TransportError::PeerDraining),
    /// [`ShuttingDown`](TransportError::ShuttingDown) or [`InvalidName`](TransportError::InvalidName). Nothing was sent
    /// then.
    #[allow(
        clippy::result_large_err,
        reason = "the error is the message itself, given back; a box would be an allocation where the node is busiest"
    )]
    #[inline]
    pub fn send<'a>(&self, envelope: Envelope<'a>) -> Result<(), Undelivered<'a>> {
        match self.try_send(&envelope) {
            Ok(()) => Ok(()),
            Err(error) => Err(Undelivered { envelope, error }),
        }
    }

    #[inline]
    pub(super) fn try_send(&self, envelope: &Envelope<'_>) -> Result<(), TransportError> {
        self.with_route(envelope, |route| self.send_on(route, envelope))
    }

    #[inline]
    pub(crate) fn send_along(
        &self,
        route: &Route,
        envelope: &Envelope<'_>,
    ) -> Result<(), TransportError> {
        self.along(route, envelope, |route| self.send_on(route, envelope))
    }

    #[inline]
    pub(super) fn send_on(&self, route: &Route, envelope: &Envelope<'_>) -> Result<(), Refused> {
        let resolved = self.resolve(route, envelope)?;
        let header = resolved.header(Kind::OneWay, envelope.request_id);
        self.queue_message(&resolved, header, envelope)?;
        resolved.conn().notify(is_urgent(&resolved));
        Ok(())
    }

    /// Sends a message without a reply, and waits while its queue is full: in turn with others who wait for the same
    /// queue.
    ///
    /// Dropping the future before it is ready sends nothing.
    ///
    /// # Errors
    /// As [`send`](Self::send), without `QueueFull`.
    pub async fn send_wait(&self, envelope: Envelope<'_>) -> Result<(), TransportError> {
        let route = self.route(&envelope)?;
        self.send_wait_on(&route, &envelope).await
    }

    pub(crate) async fn send_wait_along(
        &self,
        route: &Route,
        envelope: &Envelope<'_>,
    ) -> Result<(), TransportError> {
        if route.era == self.era() {
            return self.send_wait_on(route, envelope).await;
        }
        self.send_wait_on(&self.route(envelope)?, envelope).await
    }

    pub(super) async fn send_wait_on(
        &self,
        route: &Route,
        envelope: &Envelope<'_>,
    ) -> Result<(), TransportError> {
        let refused = |refused| self.error(refused, envelope);
        let resolved = self.resolve(route, envelope).map_err(refused)?;
        let header = resolved.header(Kind::OneWay, envelope.request_id);
        let head = resolved.trace_head(envelope);
        let push = |waiter: &mut Waiter, waker: &Waker| {
            resolved.push_or_wait((waiter, waker), header, &envelope.payload, head.as_deref())
        };
        self.queue_in_turn(&resolved, push).await.map_err(refused)
    }

    /// Queues the messages of a batch, and waits for room.
    pub(crate) async fn send_batch_along(
        &self,
        route: &Route,
        batch: &mut Outgoing,
    ) -> Result<(), TransportError> {
        let looked_up;
        let route = if route.era == self.era() {
            route
        } else {
            looked_up = self.route(&Envelope::new(
                route.peer.id,
                route.name.service(),
                route.name.method(),
                &[],
            ))?;
            &looked_up
        };
        let attempt = Attempt {
            peer: route.peer.id,
            bytes: batch.buffer.longest(),
            calls_max: self.inner.config.calls_max,
            cause: None,
        };
        let priority = batch.priority;
        let refused = |refused: Refused| {
            let priority = priority.unwrap_or(route.name.priority);
            let cause = self.cause(refused, attempt.peer, || priority);
            refused.into_error(Attempt {
                cause,
                ..attempt.clone()
            })
        };
        let resolved = self.resolve_for(route, batch.priority, batch.buffer.longest());
        let resolved = resolved.map_err(refused)?;
        let queues = &resolved.conn().channel.queues;
        let push = |waiter: &mut Waiter, waker: &Waker| {
            let name = (route.number, &route.name.define);
            queues.push_batch_or_wait(waiter, waker, resolved.queue, &mut batch.buffer, name)
        };
        self.queue_in_turn(&resolved, push).await.map_err(refused)
    }
}

impl Transport {
    /// Sends the same message to several peers. A shared payload is not copied, whatever their number: give large ones
    /// as `Bytes`. The envelope's own target is ignored.
    ///
    /// ```no_run
    /// # fn f(transport: &perf_transport::Transport) {
    /// use perf_transport::Envelope;
    ///
    /// let sent = transport.broadcast(&[2, 3], Envelope::new(0, "raft", "heartbeat", b"term 7"));
    /// for (peer, error) in &sent.refused {
    ///     eprintln!("node {peer}: {error}");
    /// }
    /// # }
    /// ```
    pub fn broadcast(&self, targets: &[u64], envelope: Envelope<'_>) -> Broadcast {
        let mut outcome = Broadcast::default();
        let mut envelope = envelope;
        for &target in targets {
            envelope.target = target;
            match self.try_send(&envelope) {
                Ok(()) => outcome.accepted += 1,
                Err(error) => outcome.refused.push((target, error)),
            }
        }
        outcome
    }

    /// Relays a received message to another node as it is: same service, method, number and bytes, which are neither
    /// decoded nor copied (up to 1 KiB they are copied once).
    ///
    /// # Errors
    /// As [`send`](Self::send). [`InvalidName`](TransportError::InvalidName) also for a new name where 1024 are in use:
    /// peers that choose names do not use up all 2048 of the node.
    pub fn forward(&self, target: u64, message: &Message) -> Result<(), TransportError> {
        self.inner
            .names
            .check_relayed(message.service(), message.method())?;
        self.try_send(&relayed(target, message))
    }

    /// Relays a received request to another node as it is, and returns the future of the reply. It waits as long as the
    /// request's own caller ([`Message::time_limit`]).
    ///
    /// # Errors
    /// The future's, as of [`call`](Self::call) and [`forward`](Self::forward).
    pub fn forward_call(&self, target: u64, message: &Message) -> Call {
        let mut envelope = relayed(target, message);
        envelope.timeout = message.time_limit();
        let names = &self.inner.names;
        match names.check_relayed(message.service(), message.method()) {
            Ok(()) => self.call(envelope),
            Err(error) => Call::failed(error, Observed::new(span_of(&envelope))),
        }
    }
}
