//! Requests with a reply.

use crate::call::Call;
use crate::config::millis;
use crate::envelope::Envelope;
use crate::error::TransportError;
use crate::proto::{CallKey, Kind, TimeLimit, Waiter};
use crate::refused::Refused;
use crate::route::Route;
use crate::shell::conn::{Conn, DIRECT_CALLS_MAX};
use crate::spans::Observed;
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::Transport;
use super::resolved_route::ResolvedRoute;

/// A slot of a call whose request is not queued yet. Dropping it frees the slot; the peer is not told, because it has
/// not got the request.
pub(super) struct Slot {
    pub(super) conn: Option<Arc<Conn>>,
    pub(super) key: CallKey,
}

impl Slot {
    pub(super) fn into_call(mut self, observed: Observed) -> Call {
        match self.conn.take() {
            Some(conn) => Call::waiting(conn, self.key, observed),
            None => Call::failed(TransportError::ShuttingDown, observed),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(conn) = &self.conn {
            conn.channel.pending.cancel(self.key);
        }
    }
}

/// A place in line for a slot. Dropping it gives the place up.
pub(super) struct WaitingForSlot<'a> {
    pub(super) conn: &'a Conn,
    pub(super) waiter: Waiter,
}

impl Drop for WaitingForSlot<'_> {
    fn drop(&mut self) {
        if let Some(next) = self.conn.channel.pending.forget(&mut self.waiter) {
            next.wake();
        }
    }
}

impl Transport {
    /// Sends a request and returns the future of its reply. The request is on its way when this returns, not when the
    /// future is first polled, so several calls can be begun before the first is awaited.
    ///
    /// # Errors
    /// The future's: those of [`send`](Self::send), [`TooManyCalls`](TransportError::TooManyCalls),
    /// [`Timeout`](TransportError::Timeout), [`Disconnected`](TransportError::Disconnected),
    /// [`PeerRejected`](TransportError::PeerRejected).
    #[inline]
    pub fn call(&self, envelope: Envelope<'_>) -> Call {
        match self.try_call(&envelope) {
            Ok(call) => call,
            Err(error) => Call::failed(error, self.observe(&envelope)),
        }
    }

    #[inline]
    pub(super) fn try_call(&self, envelope: &Envelope<'_>) -> Result<Call, TransportError> {
        self.with_route(envelope, |route| self.call_on(route, envelope))
    }

    #[inline]
    pub(crate) fn call_along(
        &self,
        route: &Route,
        envelope: &Envelope<'_>,
    ) -> Result<Call, TransportError> {
        self.along(route, envelope, |route| self.call_on(route, envelope))
    }

    #[inline]
    pub(super) fn call_on(&self, route: &Route, envelope: &Envelope<'_>) -> Result<Call, Refused> {
        let resolved = self.resolve(route, envelope)?;
        let timeout = envelope.timeout.unwrap_or(self.inner.config.call_timeout);
        let (key, limit) = self.open(&resolved, timeout)?;
        let conn = resolved.conn();
        let header = resolved.header(Kind::Request, key.id()).within(limit);
        let observed = self.observe_on(route, envelope);
        if let Err(refused) = self.queue_message(&resolved, header, envelope) {
            // The peer has not got the request and is not told.
            conn.channel.pending.cancel(key);
            return Err(refused);
        }
        conn.notify(conn.channel.pending.in_flight() <= DIRECT_CALLS_MAX);
        Ok(Call::waiting(Arc::clone(conn), key, observed))
    }

    /// Takes a slot. Returns its key and the time limit for the request's header.
    #[inline]
    pub(super) fn open(
        &self,
        resolved: &ResolvedRoute<'_>,
        timeout: Duration,
    ) -> Result<(CallKey, TimeLimit), Refused> {
        let deadline_ms = self.deadline_ms(timeout);
        let key = resolved
            .conn()
            .channel
            .pending
            .open(resolved.queue, deadline_ms);
        let key = key.ok_or(Refused::TooManyCalls)?;
        Ok((key, TimeLimit::from_millis(millis(timeout))))
    }

    #[inline]
    pub(super) fn deadline_ms(&self, timeout: Duration) -> u64 {
        // The clock is up to a tick behind.
        self.inner
            .now_ms()
            .saturating_add(millis(timeout))
            .saturating_add(millis(self.inner.config.tick))
    }
}

impl Transport {
    /// Sends a request, waits while its queue is full or as many calls are in flight as may be, and then for the reply.
    /// All of it together takes no longer than the call may.
    ///
    /// Callers that wait have their turns, and are woken when it is theirs. Dropping the future before the request is
    /// queued sends nothing.
    ///
    /// # Errors
    /// As [`call`](Self::call), without `QueueFull`; `TooManyCalls` or `QueueFull` if there was no room in all that
    /// time.
    pub async fn call_wait(&self, envelope: Envelope<'_>) -> Result<Bytes, TransportError> {
        let route = self.route(&envelope)?;
        self.call_wait_on(&route, &envelope).await
    }

    pub(crate) async fn call_wait_along(
        &self,
        route: &Route,
        envelope: &Envelope<'_>,
    ) -> Result<Bytes, TransportError> {
        if route.era == self.era() {
            return self.call_wait_on(route, envelope).await;
        }
        self.call_wait_on(&self.route(envelope)?, envelope).await
    }

    pub(super) async fn call_wait_on(
        &self,
        route: &Route,
        envelope: &Envelope<'_>,
    ) -> Result<Bytes, TransportError> {
        let time = envelope.timeout.unwrap_or(self.inner.config.call_timeout);
        let mut full = Refused::TooManyCalls;
        let begun = self.begin_in_turn(route, envelope, time, &mut full);
        let refused = match tokio::time::timeout(time, begun).await {
            Ok(Ok(call)) => return call.await,
            Ok(Err(refused)) => refused,
            Err(_) => full,
        };
        Err(self.error(refused, envelope))
    }

    /// Waits in turn for a slot, then for room in the queue. `full` says which of the two the caller waits for.
    pub(super) async fn begin_in_turn(
        &self,
        route: &Route,
        envelope: &Envelope<'_>,
        time: Duration,
        full: &mut Refused,
    ) -> Result<Call, Refused> {
        let began = tokio::time::Instant::now();
        let left = || {
            time.saturating_sub(began.elapsed())
                .max(Duration::from_millis(1))
        };
        loop {
            let resolved = self.resolve(route, envelope)?;
            let conn = resolved.conn();
            *full = Refused::TooManyCalls;
            let slot = self.slot_in_turn(&resolved, left()).await?;
            let key = slot.key;
            *full = Refused::QueueFull;
            let head = resolved.trace_head(envelope);
            let push = |waiter: &mut Waiter, waker: &Waker| {
                let limit = TimeLimit::from_millis(millis(left()));
                let header = resolved.header(Kind::Request, key.id()).within(limit);
                resolved.push_or_wait((waiter, waker), header, &envelope.payload, head.as_deref())
            };
            // The connection may be lost meanwhile, and the slot with it: then this begins again.
            let mut queued = std::pin::pin!(self.queue_in_turn(&resolved, push));
            let queued = poll_fn(|cx| {
                if conn.channel.pending.poll_lost(key, cx).is_ready() {
                    return Poll::Ready(None);
                }
                queued.as_mut().poll(cx).map(Some)
            });
            match queued.await {
                Some(Ok(())) => return Ok(slot.into_call(self.observe_on(route, envelope))),
                Some(Err(refused)) => return Err(refused),
                None => {}
            }
        }
    }

    pub(super) async fn slot_in_turn(
        &self,
        resolved: &ResolvedRoute<'_>,
        time: Duration,
    ) -> Result<Slot, Refused> {
        let conn = resolved.conn();
        let mut waiting = WaitingForSlot {
            conn,
            waiter: Waiter::default(),
        };
        let deadline_ms = self.deadline_ms(time);
        poll_fn(|cx| {
            resolved.link.admit(&resolved.route.peer, &self.inner)?;
            let pending = &conn.channel.pending;
            let waiter = &mut waiting.waiter;
            let (key, next) = pending.open_or_wait(waiter, cx.waker(), resolved.queue, deadline_ms);
            if let Some(next) = next {
                next.wake();
            }
            let slot = |key| Slot {
                conn: Some(Arc::clone(conn)),
                key,
            };
            key.map_or(Poll::Pending, |key| Poll::Ready(Ok(slot(key))))
        })
        .await
    }
}
