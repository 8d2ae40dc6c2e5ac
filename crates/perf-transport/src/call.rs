//! A call in flight.

use crate::error::TransportError;
use crate::proto::CallKey;
use crate::shell::conn::Conn;
use bytes::Bytes;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A call in flight: a future of the reply. The request is on its way already; nothing is allocated for it.
///
/// It completes exactly once, with the reply or an error, at its deadline at the latest. Dropping it cancels the call: its slot
/// is free at once, and a late reply is dropped. The peer is told, as it is at the deadline, and stops the handler if that is one
/// [with cancellation](crate::Router::with_cancellation); others run to their end.
#[must_use = "dropping a call cancels it"]
pub struct Call {
    state: State,
}

enum State {
    Waiting { conn: Arc<Conn>, key: CallKey },
    Failed(TransportError),
    Done,
}

impl Call {
    #[inline]
    pub(crate) fn waiting(conn: Arc<Conn>, key: CallKey) -> Self {
        Self {
            state: State::Waiting { conn, key },
        }
    }

    #[cold]
    pub(crate) fn failed(error: TransportError) -> Self {
        Self {
            state: State::Failed(error),
        }
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
            let outcome = outcome.map_err(|fault| conn.error(fault));
            self.state = State::Done;
            return Poll::Ready(outcome);
        }
        match std::mem::replace(&mut self.state, State::Done) {
            State::Failed(error) => Poll::Ready(Err(error)),
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
            State::Done => ("done", None),
        };
        f.debug_struct("Call")
            .field("state", &state)
            .field("peer", &peer)
            .finish()
    }
}
