//! What happens to connections: events and the reasons of ends.

use crate::error::TransportError;
use crate::proto::{ConnectionClass, FrameError, HandshakeError};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::sync::broadcast;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed it.
    PeerClosed,
    /// The peer sent what is not of the protocol.
    Protocol(FrameError),
    /// The system said so.
    Io(String),
    /// Nothing was received for the heartbeat timeout.
    Silent,
    /// The peer took nothing for the heartbeat timeout.
    Stalled,
    /// It had no messages for the idle timeout.
    Idle,
    /// The peer shuts down, and all calls to it have ended.
    PeerDrained,
    /// The peer was removed, or this transport shuts down.
    Closed,
    /// The peer's certificate is not accepted any more: it has expired, was revoked, or its authority is believed no
    /// longer.
    Certificate(HandshakeError),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerClosed => f.write_str("the peer closed the connection"),
            Self::Protocol(error) => error.fmt(f),
            Self::Io(error) => f.write_str(error),
            Self::Silent => f.write_str("nothing was received for the heartbeat timeout"),
            Self::Stalled => f.write_str("the peer read nothing for the heartbeat timeout"),
            Self::Idle => f.write_str("no messages for the idle timeout"),
            Self::PeerDrained => f.write_str("the peer shuts down"),
            Self::Closed => f.write_str("closed by this node"),
            Self::Certificate(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CloseReason {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Protocol(error) => Some(error),
            Self::Certificate(error) => Some(error),
            _ => None,
        }
    }
}

impl CloseReason {
    /// Whether this is what happens in an orderly life.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::Idle | Self::PeerDrained | Self::Closed)
    }
}

/// Something that happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerEvent {
    /// A connection to a peer is established.
    Connected {
        /// The peer.
        peer: u64,
        /// Which of its connections.
        class: ConnectionClass,
    },
    /// An attempt to connect failed. What was queued is dropped.
    Unreachable {
        /// The peer.
        peer: u64,
        /// Which of its connections.
        class: ConnectionClass,
        /// Attempts that failed in a row.
        failures: u32,
        /// Why.
        error: TransportError,
    },
    /// An established connection to a peer has ended. What was queued is dropped, calls in flight have failed.
    Lost {
        /// The peer.
        peer: u64,
        /// Which of its connections.
        class: ConnectionClass,
        /// Why.
        reason: CloseReason,
    },
    /// A connection from a peer was accepted.
    Accepted {
        /// The peer.
        peer: u64,
        /// Which of its connections.
        class: ConnectionClass,
        /// Where it came from, as the listener put it.
        from: String,
        /// Whether the peer has been made known with `add_peer`.
        is_known: bool,
    },
    /// A node was accepted while another process with the same id is connected: it was restarted, or two nodes have the
    /// same id.
    Duplicate {
        /// The peer.
        peer: u64,
        /// Where the new connection came from.
        from: String,
    },
    /// A peer says that it has too much to do to read: a method of it hangs, or it is overloaded. Said once, until it
    /// reads again.
    PeerBusy {
        /// The peer.
        peer: u64,
        /// Which of its connections.
        class: ConnectionClass,
    },
    /// A connection from a peer has ended.
    Ended {
        /// The peer.
        peer: u64,
        /// Which of its connections.
        class: ConnectionClass,
        /// Why.
        reason: CloseReason,
    },
    /// The listener failed: no more files, usually. It is asked again until it can; said once for each reason in a row.
    AcceptFailed {
        /// Why.
        error: TransportError,
    },
    /// A peer was not let in.
    Refused {
        /// Where the connection came from.
        from: String,
        /// Why.
        error: TransportError,
    },
}

impl fmt::Display for PeerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { peer, class } => write!(f, "connected to node {peer} ({class:?})"),
            Self::Unreachable {
                peer,
                class,
                failures,
                error,
            } => write!(
                f,
                "node {peer} cannot be reached ({class:?}), {failures} attempts in a row: {error}"
            ),
            Self::Lost {
                peer,
                class,
                reason,
            } => write!(f, "connection to node {peer} ({class:?}) ended: {reason}"),
            Self::Accepted {
                peer, class, from, ..
            } => write!(f, "node {peer} connected from {from} ({class:?})"),
            Self::Duplicate { peer, from } => write!(
                f,
                "another process that is node {peer} connected from {from}"
            ),
            Self::PeerBusy { peer, class } => {
                write!(f, "node {peer} has too much to do to read ({class:?})")
            }
            Self::Ended {
                peer,
                class,
                reason,
            } => write!(f, "connection from node {peer} ({class:?}) ended: {reason}"),
            Self::AcceptFailed { error } => write!(f, "no connection can be accepted: {error}"),
            Self::Refused { from, error } => write!(f, "refused {from}: {error}"),
        }
    }
}

impl PeerEvent {
    /// The peer that is not reachable, if that is what this says: dialling failed, or a connection broke.
    #[must_use]
    pub fn unreachable_peer(&self) -> Option<u64> {
        match self {
            Self::Unreachable { peer, .. } => Some(*peer),
            Self::Lost { peer, reason, .. } if !reason.is_orderly() => Some(*peer),
            _ => None,
        }
    }
}

pub(crate) type Callback = dyn Fn(&PeerEvent) + Send + Sync;

/// Events that are kept for a subscriber that does not keep up; older ones are lost to it, and it learns how many.
const EVENTS_KEPT: usize = 256;

#[derive(Clone)]
pub(crate) struct Events {
    callback: Option<Arc<Callback>>,
    sender: broadcast::Sender<PeerEvent>,
}

impl Events {
    pub(crate) fn new(callback: Option<Arc<Callback>>) -> Self {
        let (sender, _) = broadcast::channel(EVENTS_KEPT);
        Self { callback, sender }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<PeerEvent> {
        self.sender.subscribe()
    }

    pub(crate) fn report(&self, event: PeerEvent) {
        crate::spans::event(&event);
        if let Some(callback) = &self.callback {
            // A callback that panics must not end the task where something happened.
            let _ = catch_unwind(AssertUnwindSafe(|| callback(&event)));
        }
        // Fails where there is no subscriber.
        let _ = self.sender.send(event);
    }
}
