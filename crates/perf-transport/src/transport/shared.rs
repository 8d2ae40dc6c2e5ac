//! What all tasks of a transport share.

use crate::accept::MaybeHook;
use crate::config::Config;
use crate::connect::Connector;
use crate::event::{CloseReason, Events};
use crate::names::NameTable;
use crate::payload::Payload;
use crate::primitive::mutant;
use crate::proto::{HandshakeError, Header, Kind, Local, SendQueue};
use crate::router::Router;
use crate::security::Security;
use crate::shell::conn::Conn;
use crate::shell::link::Peer;
use crate::stats::Counts;
use parking_lot::{Mutex, RwLock};
use perf_atomics::Membership;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
#[cfg(feature = "tls")]
use std::time::SystemTime;
use tokio::sync::watch;
#[cfg(feature = "tls")]
use {
    crate::proto::CertificateFault,
    crate::shell::conn::Info,
    crate::tls::{Side, TlsIdentity},
};

/// Transports that were started in this process.
pub(super) static TRANSPORTS: AtomicU64 = AtomicU64::new(0);

/// Connections from peers, by number.
#[derive(Default)]
pub(super) struct Inbound {
    /// Not open yet.
    pub(super) handshakes: usize,
    /// Those of them that have said which node they are.
    pub(super) arriving: HashMap<u64, usize>,
    pub(super) open: HashMap<u64, Arc<Conn>>,
    /// Over, with handlers that may still run.
    pub(super) ended: HashMap<u64, Arc<Conn>>,
}

/// What all tasks of a transport share.
pub(crate) struct Inner {
    /// Which transport of this process.
    pub(super) number: u64,
    pub(crate) config: Config,
    pub(crate) local: Local,
    pub(super) security: RwLock<Security>,
    #[cfg(feature = "tls")]
    pub(super) identity_era: AtomicU64,
    pub(crate) hook: MaybeHook,
    /// Hosts from which peers have come that were let in.
    pub(super) sources: Mutex<HashSet<String>>,
    /// Tasks of connections, and the one that accepts.
    pub(super) tasks: AtomicUsize,
    pub(crate) router: Arc<Router>,
    #[cfg(feature = "metrics")]
    pub(crate) method_metrics: Option<crate::methods::MethodMetrics>,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) events: Events,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) next_connection: AtomicU64,
    pub(crate) unhandled: Arc<AtomicU64>,
    pub(crate) counts: Counts,
    pub(super) names: NameTable,
    pub(super) peers: Membership<u64, Arc<Peer>>,
    /// The same peers, for the ticker.
    pub(super) all: Mutex<Vec<Arc<Peer>>>,
    pub(super) inbound: Mutex<Inbound>,
    pub(super) now_ms: AtomicU64,
    pub(super) draining: AtomicBool,
    pub(super) address: Option<String>,
}

/// A connection from a peer that is not open yet.
pub(crate) struct Handshaking {
    pub(super) inner: Arc<Inner>,
    pub(super) node: Option<u64>,
}

impl Handshaking {
    /// It is this node's: within the bound on the connections of one.
    pub(crate) fn is_of(&mut self, node: u64) -> Result<(), HandshakeError> {
        let connections_max = self.inner.config.inbound_per_node_max;
        let mut inbound = self.inner.inbound.lock();
        let conns = inbound.open.values().chain(inbound.ended.values());
        let known = conns.filter(|conn| conn.peer == node).count();
        let arriving = inbound.arriving.entry(node).or_insert(0);
        if known + *arriving >= connections_max && !mutant::is("node_without_bound") {
            return Err(HandshakeError::TooManyConnections {
                node,
                connections_max,
            });
        }
        *arriving += 1;
        self.node = Some(node);
        Ok(())
    }
}

impl Drop for Handshaking {
    fn drop(&mut self) {
        let mut inbound = self.inner.inbound.lock();
        inbound.handshakes -= 1;
        if let Some(node) = self.node
            && let Some(arriving) = inbound.arriving.get_mut(&node)
        {
            *arriving -= 1;
        }
        inbound.arriving.retain(|_, arriving| *arriving > 0);
    }
}

/// A task that `drain` waits for.
pub(crate) struct Alive(Arc<Inner>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Hosts that are remembered, at most: the first that came.
pub(super) const SOURCES_MAX: usize = 4096;
/// How long `drain` waits for the tasks to end after all is closed.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(500);

impl Inner {
    /// Begins a handshake; `None` if no new connections are taken.
    pub(crate) fn begin_handshake(self: &Arc<Self>) -> Option<Handshaking> {
        // Under the lock: `drain` says so first, and looks here afterwards.
        let mut inbound = self.inbound.lock();
        if self.draining.load(Ordering::SeqCst) {
            return None;
        }
        inbound.handshakes += 1;
        Some(Handshaking {
            inner: Arc::clone(self),
            node: None,
        })
    }

    pub(crate) fn alive(self: &Arc<Self>) -> Alive {
        self.tasks.fetch_add(1, Ordering::SeqCst);
        Alive(Arc::clone(self))
    }

    #[cfg_attr(not(feature = "tls"), allow(dead_code))]
    pub(crate) fn security(&self) -> Security {
        self.security.read().clone()
    }

    /// Whether a node has been made known.
    pub(crate) fn is_known(&self, node: u64) -> bool {
        self.peers.get(&node).is_some()
    }

    /// Whether a host is one of a peer's: by its address, or since one has come from there.
    pub(crate) fn is_known_source(&self, source: &str) -> bool {
        let is_at = |peer: &Arc<Peer>| peer.is_at(source);
        self.sources.lock().contains(source) || self.all.lock().iter().any(is_at)
    }

    /// A peer that was dialled in vain may be dialled at once.
    pub(crate) fn forget_failures(&self, peer: u64) {
        if let Some(peer) = self.peers.get(&peer) {
            peer.forget_failures();
        }
    }

    /// How often the identity was replaced. Read before an identity is taken for a handshake, and compared when the
    /// connection is listed.
    #[cfg(feature = "tls")]
    pub(crate) fn identity_era(&self) -> u64 {
        self.identity_era.load(Ordering::SeqCst)
    }

    /// Replaces the identity, and holds all connections against the new one.
    #[cfg(feature = "tls")]
    pub(super) fn set_identity(&self, identity: &TlsIdentity) {
        *self.security.write() = Security::MutualTls(identity.clone());
        // Before the connections are listed: one that is listed later sees that it must be checked again.
        self.identity_era.fetch_add(1, Ordering::SeqCst);
        for (conn, is_dialled) in self.connections() {
            let side = if is_dialled {
                Side::Dialled
            } else {
                Side::Accepted
            };
            self.check(&conn, side, identity);
        }
    }

    /// Holds a connection that is listed by now against the identity, if that was replaced during its handshake.
    #[cfg(feature = "tls")]
    pub(crate) fn check_again(&self, conn: &Conn, side: Side) {
        let era = conn.info.lock().as_ref().map(|info| info.identity_era);
        if era == Some(self.identity_era()) || mutant::is("replaced_identity_unseen") {
            return;
        }
        if let Security::MutualTls(identity) = self.security() {
            self.check(conn, side, &identity);
        }
    }

    /// Closes a connection whose peer's certificate this identity does not accept. Costs a verification.
    #[cfg(feature = "tls")]
    fn check(&self, conn: &Conn, side: Side, identity: &TlsIdentity) {
        let certificate = conn
            .info
            .lock()
            .as_ref()
            .and_then(|info| info.certificate.clone());
        let Some(certificate) = certificate else {
            return;
        };
        let checked = identity.check_peer(&certificate, side, (conn.peer, &self.local.cluster));
        if let Err(error) = checked {
            conn.close(CloseReason::Certificate(error));
        }
    }

    pub(crate) fn remember_source(&self, source: &str) {
        let mut sources = self.sources.lock();
        if sources.len() < SOURCES_MAX && !sources.contains(source) {
            sources.insert(source.to_owned());
        }
    }

    /// Whether another process with this node id is connected.
    pub(crate) fn has_other_process(&self, node: u64, incarnation: u64) -> bool {
        let inbound = self.inbound.lock();
        let mut of_node = inbound.open.values().filter(|conn| conn.peer == node);
        of_node.any(|conn| {
            let info = conn.info.lock();
            info.as_ref()
                .is_some_and(|info| info.incarnation != incarnation)
        })
    }

    /// Whether this node takes no new messages: it drains, or it has shut down.
    pub(crate) fn is_ending(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    #[inline]
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn set_now_ms(&self, now_ms: u64) {
        self.now_ms.store(now_ms, Ordering::Relaxed);
    }

    pub(crate) fn peers_into(&self, peers: &mut Vec<Arc<Peer>>) {
        peers.extend(self.all.lock().iter().cloned());
    }

    pub(super) fn peers(&self) -> Vec<Arc<Peer>> {
        self.all.lock().clone()
    }

    pub(crate) fn inbound_into(&self, inbound: &mut Vec<(u64, Arc<Conn>)>) {
        let known = self.inbound.lock();
        let pairs = known.open.iter();
        inbound.extend(pairs.map(|(number, conn)| (*number, Arc::clone(conn))));
    }

    pub(super) fn inbound(&self) -> Vec<(u64, Arc<Conn>)> {
        let mut inbound = Vec::new();
        self.inbound_into(&mut inbound);
        inbound
    }

    pub(crate) fn add_inbound(&self, conn: &Arc<Conn>, handshaking: Handshaking) -> u64 {
        let number = self.next_connection.fetch_add(1, Ordering::Relaxed);
        self.inbound.lock().open.insert(number, Arc::clone(conn));
        drop(handshaking);
        if *self.stop.borrow() {
            // Its handshake ended too late for `stop` to find it.
            conn.close(CloseReason::Closed);
        } else if self.draining.load(Ordering::SeqCst) {
            goodbye(conn);
        }
        number
    }

    /// A connection is over.
    pub(crate) fn retire_inbound(&self, number: u64) {
        let mut inbound = self.inbound.lock();
        if let Some(conn) = inbound.open.remove(&number) {
            inbound.ended.insert(number, conn);
        }
    }

    /// Its handlers have ended too.
    pub(crate) fn forget_inbound(&self, number: u64) {
        self.inbound.lock().ended.remove(&number);
    }

    /// All connections, and whether this node dialled them.
    #[cfg_attr(not(feature = "tls"), allow(dead_code))]
    pub(super) fn connections(&self) -> Vec<(Arc<Conn>, bool)> {
        let peers = self.peers();
        let links = peers.iter().flat_map(|peer| peer.links());
        let dialled = links.filter(|link| link.is_up());
        let dialled = dialled.map(|link| (Arc::clone(&link.conn), true));
        let accepted = self.inbound().into_iter().map(|(_, conn)| (conn, false));
        dialled.chain(accepted).collect()
    }

    /// Closes connections whose peers' certificates have expired. Costs a lock and a look at the certificate for each.
    #[cfg(feature = "tls")]
    pub(crate) fn end_expired(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default();
        for (conn, _) in self.connections() {
            let expires_at = conn.info.lock().as_ref().and_then(Info::expires_at);
            let is_over = expires_at.is_some_and(|expires_at| expires_at <= now);
            if is_over && !mutant::is("expiry_ends_nothing") {
                let error = HandshakeError::Certificate {
                    fault: CertificateFault::Expired,
                    reason: "it has expired since the connection was made".to_owned(),
                };
                conn.close(CloseReason::Certificate(error));
            }
        }
    }

    pub(super) fn stop(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.stop.send_replace(true);
        for peer in self.peers() {
            for link in peer.links() {
                link.close();
            }
        }
        for (_, conn) in self.inbound() {
            conn.close(CloseReason::Closed);
        }
    }
}

/// Tells a peer that it should send no new requests.
pub(super) fn goodbye(conn: &Conn) {
    let header = Header::new(Kind::Goodbye, 0, 0);
    let queues = &conn.channel.queues;
    if queues
        .push(SendQueue::System, header, &Payload::default(), None)
        .is_ok()
    {
        conn.notify(true);
    }
}
