//! A call in flight.

use crate::error::TransportError;
use crate::proto::{CallKey, Fault};
use crate::shell::conn::Conn;
use crate::spans::Observed;
use crate::trace::{TRACE_BYTES, TraceContext};
use bytes::{Buf, Bytes};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A call in flight: a future of the reply. The request is on its way already; nothing is allocated for it.
///
/// It completes exactly once, with the reply or an error, at its deadline at the latest. Dropping it cancels the call:
/// its slot is free at once, and a late reply is dropped. The peer is told, as it is at the deadline, and stops the
/// handler if that is one [with cancellation](crate::Router::with_cancellation); others run to their end.
#[must_use = "dropping a call cancels it"]
pub struct Call {
    state: State,
    observed: Observed,
}

enum State {
    Waiting {
        conn: Arc<Conn>,
        key: CallKey,
    },
    Failed(TransportError),
    Done,
    /// Done, with the trace context of the reply.
    Traced(TraceContext),
}

impl Call {
    #[inline]
    pub(crate) fn waiting(conn: Arc<Conn>, key: CallKey, observed: Observed) -> Self {
        Self {
            state: State::Waiting { conn, key },
            observed,
        }
    }

    #[cold]
    pub(crate) fn failed(error: TransportError, observed: Observed) -> Self {
        Self {
            state: State::Failed(error),
            observed,
        }
    }

    /// The trace context that the handler gave to its reply
    /// ([`Message::set_reply_trace`](crate::Message::set_reply_trace)). `None` before the reply is there: await the
    /// call by reference, then ask.
    #[must_use]
    pub fn reply_trace(&self) -> Option<TraceContext> {
        match self.state {
            State::Traced(context) => Some(context),
            _ => None,
        }
    }

    #[cold]
    fn faulted(&mut self, fault: Fault) -> Result<Bytes, TransportError> {
        let state = std::mem::replace(&mut self.state, State::Done);
        let State::Waiting { conn, .. } = &state else {
            return Err(TransportError::ShuttingDown);
        };
        let error = match fault {
            Fault::Traced(mut reply) => {
                if let Some(context) = reply.first_chunk().and_then(TraceContext::decode) {
                    self.state = State::Traced(context);
                }
                reply.advance(TRACE_BYTES.min(reply.len()));
                return Ok(reply);
            }
            fault => conn.error(fault),
        };
        Err(error)
    }
}

impl Future for Call {
    type Output = Result<Bytes, TransportError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Waiting { conn, key } = &self.state {
            let outcome = match conn.channel.pending.poll(*key, cx) {
                Poll::Ready(outcome) => outcome,
                Poll::Pending => return Poll::Pending,
            };
            let outcome = match outcome {
                Ok(reply) => {
                    self.state = State::Done;
                    Ok(reply)
                }
                Err(fault) => self.faulted(fault),
            };
            self.observed.ended(outcome.as_ref());
            return Poll::Ready(outcome);
        }
        match std::mem::replace(&mut self.state, State::Done) {
            State::Failed(error) => {
                self.observed.ended(Err(&error));
                Poll::Ready(Err(error))
            }
            // Polled again after its end, which the contract of futures forbids.
            _ => Poll::Pending,
        }
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        if let State::Waiting { conn, key } = &self.state {
            conn.cancel(*key);
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (state, peer) = match &self.state {
            State::Waiting { conn, .. } => ("waiting", Some(conn.peer)),
            State::Failed(_) => ("failed", None),
            State::Done | State::Traced(_) => ("done", None),
        };
        f.debug_struct("Call")
            .field("state", &state)
            .field("peer", &peer)
            .finish()
    }
}
