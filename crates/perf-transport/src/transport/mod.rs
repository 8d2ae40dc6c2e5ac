//! A node's transport: peers, calls, and what is accepted.

mod builder;
mod call;
mod drain;
mod resolved_route;
mod send;
mod shared;
mod status;
mod streams;

pub use builder::Builder;
use builder::ListenOn;
pub use send::Broadcast;
pub(crate) use shared::{Alive, Handshaking, Inner};

use crate::config::Config;
use crate::connect::TcpConnector;
use crate::envelope::Envelope;
use crate::error::TransportError;
use crate::event::{CloseReason, PeerEvent};
use crate::remote::RemoteMethod;
use crate::router::Router;
use crate::security::Security;
use crate::shell::link::Peer;
use std::fmt;
use std::sync::Arc;
use tokio::sync::broadcast;

/// A node's transport. Cheap to clone; when the last clone is dropped all connections are closed.
///
/// # Delivery
///
/// - A message is sent at most once: nothing is ever repeated by the transport. What is queued when a connection is
///   lost is dropped, counted, and for calls reported.
/// - Messages to one peer of one priority arrive in the order in which they were sent, without gaps while a connection
///   lasts. Priorities have no order among each other.
/// - A call completes exactly once: with its reply or with a [`TransportError`], at its deadline at the latest. A
///   cancelled call frees its slot; its late reply is dropped, and the peer is told, behind the request. A reply of an
///   earlier connection never completes a later call.
///
/// # Costs
///
/// A call to a connected peer takes no allocation and no lock that is held for longer than the copy of a small message.
/// With up to three calls in flight the caller writes to the socket itself; with more the connection's task writes for
/// all of them. `send` may be called from any thread; it never blocks on the network.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
    _life: Arc<Life>,
}

/// Stops the tasks when the last [`Transport`] is gone.
struct Life(Arc<Inner>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Transport {
    /// Prepares the transport of a node in a cluster.
    ///
    /// With TLS the cluster's name is part of the names in certificates: letters, digits, `-` and `.`.
    pub fn builder(node: u64, cluster: &str, security: Security) -> Builder {
        Builder {
            node,
            cluster: cluster.to_owned(),
            security,
            config: Config::default(),
            router: Router::new(),
            connector: Arc::new(TcpConnector),
            listener: ListenOn::Nothing,
            callback: None,
            hook: None,
            peers: Vec::new(),
            #[cfg(feature = "metrics")]
            metrics: None,
            #[cfg(feature = "metrics")]
            method_metrics: None,
        }
    }

    /// This node's id.
    #[must_use]
    pub fn node(&self) -> u64 {
        self.inner.local.node
    }

    /// Where it accepts connections, as peers dial it; `None` if it only dials.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.inner.address.as_deref()
    }

    /// Makes a peer known, or gives a known one another address. Dials nothing: the first message does, and does not
    /// wait for what failed at another address. A dial at the old address is given up, and what waits for it goes to
    /// the new one. A connection that is up stays, whatever address it was dialled at. The backoff of a peer that was
    /// dialled in vain ends, too, when the peer connects to this node.
    pub fn add_peer(&self, peer: u64, address: impl Into<String>) {
        let address = address.into();
        let mut all = self.inner.all.lock();
        if let Some(known) = all.iter().find(|known| known.id == peer) {
            known.move_to(address);
            return;
        }
        let new = Arc::new(Peer::new(peer, address, &self.inner));
        all.push(Arc::clone(&new));
        self.inner.peers.insert(peer, new);
    }

    /// Forgets a peer: its connections are closed, in both directions, calls in flight end with `Disconnected`, and
    /// callers that wait for room or for a slot with `UnknownPeer`. `false` if it was not known. It may come again,
    /// unless [`Config::known_peers_only`] is set or the hook of [`Builder::on_accept`] refuses it.
    pub fn remove_peer(&self, peer: u64) -> bool {
        let removed = {
            let mut all = self.inner.all.lock();
            self.inner.peers.remove(&peer);
            let place = all.iter().position(|known| known.id == peer);
            place.map(|place| all.swap_remove(place))
        };
        let Some(removed) = removed else { return false };
        for link in removed.links() {
            link.close();
        }
        for (_, conn) in self.inner.inbound() {
            if conn.peer == peer {
                conn.close(CloseReason::Closed);
            }
        }
        true
    }

    /// The most bytes of one message's payload that this node sends and takes: [`Config::frame_bytes_max`]. A peer may
    /// take less; [`RemoteMethod::payload_bytes_max`] knows what it said. Longer bodies go by [`stream`](Self::stream).
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        self.inner.config.frame_bytes_max as usize
    }

    /// Looks up a method of a peer, for messages that go there often.
    ///
    /// # Errors
    /// [`UnknownPeer`](TransportError::UnknownPeer), [`InvalidName`](TransportError::InvalidName).
    pub fn method(
        &self,
        peer: u64,
        service: &str,
        method: &str,
    ) -> Result<RemoteMethod, TransportError> {
        let route = self.route(&Envelope::new(peer, service, method, &[]))?;
        Ok(RemoteMethod::new(self.clone(), route))
    }

    /// Gives this node another certificate, key, authority and revocation lists, for connections from now on.
    /// Connections whose peers the new authority accepts go on; others are closed, with [`CloseReason::Certificate`].
    ///
    /// Costs a verification for each connection.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] if other nodes would refuse the certificate, or the transport was started
    /// without TLS. Nothing has changed then.
    #[cfg(feature = "tls")]
    pub fn set_identity(&self, identity: crate::tls::TlsIdentity) -> Result<(), TransportError> {
        let inner = &self.inner;
        if inner.security().is_plain() {
            return Err(TransportError::Configuration {
                reason: "a transport that was started without TLS has no identity".to_owned(),
            });
        }
        identity.check(inner.local.node, &inner.local.cluster)?;
        inner.set_identity(&identity);
        Ok(())
    }

    /// What happens to connections from now on. A subscriber that is 256 events behind loses the oldest, and is told
    /// how many.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.inner.events.subscribe()
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("node", &self.inner.local.node)
            .field("cluster", &self.inner.local.cluster)
            .field("security", &self.inner.security())
            .finish_non_exhaustive()
    }
}
