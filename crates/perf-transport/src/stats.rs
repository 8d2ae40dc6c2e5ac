//! What a transport has done and has waiting.

use crate::error::TransportError;
use crate::event::CloseReason;
use crate::proto::ConnectionClass;
use crate::shell::conn::Conn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// One connection to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStats {
    /// Whether it is established.
    pub is_up: bool,
    /// Attempts to connect.
    pub dials: u64,
    /// Attempts that succeeded.
    pub connects: u64,
    /// Calls in flight.
    pub calls_in_flight: usize,
    /// Bytes that wait to be written.
    pub queued_bytes: usize,
    /// Frames that wait to be written.
    pub queued_frames: usize,
    /// Frames that were dropped because their connection was lost or did not come about.
    pub dropped_frames: u64,
    /// Messages that were queued: one-way ones, requests and bodies.
    pub messages_sent: u64,
    /// Bytes written to the stream, before encryption.
    pub bytes_sent: u64,
    /// Writes that took them: `messages_sent / writes` is how well they were batched.
    pub writes: u64,
    /// How often the peer has said on this connection that it has too much to do to read.
    pub peer_busy: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Bytes received, after decryption.
    pub bytes_received: u64,
}

/// The two connections to one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStats {
    /// For Critical and High.
    pub control: LinkStats,
    /// For Normal and Low.
    pub bulk: LinkStats,
}

/// A connection that there is, or that a known peer had last: what an operator asks for first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionStatus {
    /// The node at the other end.
    pub peer: u64,
    /// Which of its connections.
    pub class: ConnectionClass,
    /// Whether this node dialled it.
    pub is_dialled: bool,
    /// Whether it is established.
    pub is_up: bool,
    /// Where the other end is: as it was dialled, or as the listener put it.
    pub address: String,
    /// The number that the peer's process chose when it started, if there was a connection.
    pub incarnation: Option<u64>,
    /// When the peer's certificate expires, where there is TLS.
    pub certificate_expires_at: Option<SystemTime>,
    /// Calls of this node that are in flight.
    pub calls_in_flight: usize,
    /// Handlers of this node that run for the peer, in tasks of their own.
    pub handlers: usize,
    /// Bytes that wait to be written.
    pub queued_bytes: usize,
    /// How often the peer has said that it has too much to do to read.
    pub peer_busy: u64,
    /// Why it was not possible to connect when that was last tried in vain.
    pub last_error: Option<TransportError>,
    /// Why the connection before this one ended, or this one if it is not established; only of dialled ones.
    pub last_close: Option<CloseReason>,
}

/// Where this node stands with a peer. Of a peer's two connections the one that asks for more attention counts, in this
/// order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PeerState {
    /// This node has not dialled it, or the connection was closed because it was idle: the next message dials.
    Idle,
    /// A connection is established.
    Connected,
    /// This node dials it.
    Connecting,
    /// The peer shuts down and takes no new requests.
    Draining,
    /// The last attempt to dial it failed. Messages are refused until the next one.
    Unreachable {
        /// When the next attempt may be made.
        retry_in: Duration,
    },
    /// It was removed, or this transport shuts down.
    Closed,
}

/// What waits to be written, of one priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueDepth {
    /// Bytes, headers included.
    pub bytes: usize,
    /// Frames; each message of a batch counts.
    pub frames: usize,
}

/// A node, as this one sees it: what an operator asks for when something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Its id.
    pub peer: u64,
    /// Whether it has been made known with `add_peer`. Others have connected on their own.
    pub is_known: bool,
    /// The state of the connections that this node dials; [`PeerState::Idle`] if it is not known.
    pub state: PeerState,
    /// Where it is dialled, if it is known.
    pub address: Option<String>,
    /// When the first of its certificates expires that are in use.
    pub certificate_expires_at: Option<SystemTime>,
    /// What waits to be written to it, by [`Priority`](crate::Priority): Critical, High, Normal, Low.
    pub queues: [QueueDepth; 4],
    /// Why it was not possible to connect when that was last tried in vain.
    pub last_error: Option<TransportError>,
    /// Its connections: those that this node dials, whether they are up or not, and those that it has dialled.
    pub connections: Vec<ConnectionStatus>,
}

impl PeerStatus {
    pub(crate) fn new(peer: u64) -> Self {
        Self {
            peer,
            is_known: false,
            state: PeerState::Idle,
            address: None,
            certificate_expires_at: None,
            queues: [QueueDepth::default(); 4],
            last_error: None,
            connections: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, connection: ConnectionStatus) {
        let expiries = self.certificate_expires_at.into_iter();
        let expires_at = connection
            .certificate_expires_at
            .filter(|_| connection.is_up);
        self.certificate_expires_at = expiries.chain(expires_at).min();
        if let Some(error) = &connection.last_error {
            self.last_error = Some(error.clone());
        }
        self.connections.push(connection);
    }
}

/// A whole transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Peers that are known.
    pub peers: usize,
    /// Connections to peers.
    pub outbound: usize,
    /// Connections from peers.
    pub inbound: usize,
    /// Handlers that run in tasks of their own.
    pub handlers: usize,
    /// Calls that ended at their deadline.
    pub timeouts: u64,
    /// Attempts to connect that failed.
    pub dials_failed: u64,
    /// One-way messages that no handler wanted.
    pub unhandled: u64,
}

/// Counts of rare events.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) timeouts: AtomicU64,
    pub(crate) dials_failed: AtomicU64,
    #[cfg(feature = "metrics")]
    pub(crate) metrics: Option<crate::metrics::Recorder>,
}

impl Counts {
    pub(crate) fn timeouts(&self, ended: usize) {
        self.timeouts.fetch_add(ended as u64, Ordering::Relaxed);
    }

    pub(crate) fn dial_failed(&self) {
        self.dials_failed.fetch_add(1, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &self.metrics {
            metrics.dialled(false);
        }
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn connected(&self, is_up: bool) {
        if let Some(metrics) = &self.metrics {
            metrics.connected(is_up);
        }
    }

    /// At each tick, and at the end of the connection.
    #[cfg(feature = "metrics")]
    pub(crate) fn transferred(&self, conn: &Conn) {
        if let Some(metrics) = &self.metrics {
            metrics.transferred(conn);
        }
    }

    /// Without the feature nothing is recorded.
    #[cfg(not(feature = "metrics"))]
    pub(crate) fn connected(&self, _is_up: bool) {}

    #[cfg(not(feature = "metrics"))]
    pub(crate) fn transferred(&self, _conn: &Conn) {}
}
