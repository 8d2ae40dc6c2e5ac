//! A node's transport: peers, calls, and what is accepted.

use crate::accept::{Arrival, MaybeHook};
use crate::batch::Outgoing;
use crate::body::{AnswerBody, BodySender, Chunks};
use crate::call::Call;
use crate::config::{Config, millis};
use crate::connect::{Connector, Listener, TcpConnector};
use crate::envelope::Envelope;
use crate::error::{TransportError, Undelivered};
use crate::event::{Callback, CloseReason, Events, PeerEvent};
use crate::items::{Answer, ItemSender};
use crate::message::Message;
use crate::names::NameTable;
use crate::payload::Payload;
use crate::priority::Priority;
use crate::proto::{
    CallKey, ConnectionClass, HandshakeError, Header, Kind, Lane, LaneLimits, Local, NotQueued,
    TimeLimit, Waiter,
};
use crate::refused::{Attempt, Refused};
use crate::remote::RemoteMethod;
use crate::route::{self, Address, Era, Route};
use crate::router::Router;
use crate::security::Security;
use crate::shell::conn::{Conn, DIRECT_CALLS_MAX};
use crate::shell::link::{Link, Peer};
use crate::shell::serve::Waiting;
use crate::shell::{accept, ticker};
use crate::spans::{CallSpan, Observed};
use crate::stats::{ConnectionStatus, Counts, LinkStats, PeerStats, PeerStatus, QueueDepth, Stats};
use crate::trace::{TRACE_BYTES, with_head};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use perf_atomics::Membership;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};
use tokio::sync::{broadcast, watch};
#[cfg(feature = "tls")]
use {crate::proto::CertificateFault, crate::shell::conn::Info};

/// Transports that were started in this process.
static TRANSPORTS: AtomicU64 = AtomicU64::new(0);

/// Connections from peers, by number.
#[derive(Default)]
struct Inbound {
    /// Not open yet.
    handshakes: usize,
    /// Those of them that have said which node they are.
    arriving: HashMap<u64, usize>,
    open: HashMap<u64, Arc<Conn>>,
    /// Over, with handlers that may still run.
    ended: HashMap<u64, Arc<Conn>>,
}

/// What all tasks of a transport share.
pub(crate) struct Inner {
    /// Which transport of this process.
    number: u64,
    pub(crate) config: Config,
    pub(crate) local: Local,
    security: RwLock<Security>,
    pub(crate) hook: MaybeHook,
    /// Hosts from which peers have come that were let in.
    sources: Mutex<HashSet<String>>,
    /// Tasks of connections, and the one that accepts.
    tasks: AtomicUsize,
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
    names: NameTable,
    peers: Membership<u64, Arc<Peer>>,
    /// The same peers, for the ticker.
    all: Mutex<Vec<Arc<Peer>>>,
    inbound: Mutex<Inbound>,
    now_ms: AtomicU64,
    draining: AtomicBool,
    address: Option<String>,
}

/// A connection from a peer that is not open yet.
pub(crate) struct Handshaking {
    inner: Arc<Inner>,
    node: Option<u64>,
}

impl Handshaking {
    /// It is this node's: within the bound on the connections of one.
    pub(crate) fn is_of(&mut self, node: u64) -> Result<(), HandshakeError> {
        let connections_max = self.inner.config.inbound_per_node_max;
        let mut inbound = self.inner.inbound.lock();
        let conns = inbound.open.values().chain(inbound.ended.values());
        let known = conns.filter(|conn| conn.peer == node).count();
        let arriving = inbound.arriving.entry(node).or_insert(0);
        if known + *arriving >= connections_max {
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
const SOURCES_MAX: usize = 4096;
/// How long `drain` waits for the tasks to end after all is closed.
const LAST_WORDS: Duration = Duration::from_millis(500);

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
        let is_of = |peer: &Arc<Peer>| accept::source_of(&peer.address.lock()) == source;
        self.sources.lock().contains(source) || self.all.lock().iter().any(is_of)
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

    fn peers(&self) -> Vec<Arc<Peer>> {
        self.all.lock().clone()
    }

    pub(crate) fn inbound_into(&self, inbound: &mut Vec<(u64, Arc<Conn>)>) {
        let known = self.inbound.lock();
        let pairs = known.open.iter();
        inbound.extend(pairs.map(|(number, conn)| (*number, Arc::clone(conn))));
    }

    fn inbound(&self) -> Vec<(u64, Arc<Conn>)> {
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
    fn connections(&self) -> Vec<(Arc<Conn>, bool)> {
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
            if expires_at.is_some_and(|expires_at| expires_at <= now) {
                let error = HandshakeError::Certificate {
                    fault: CertificateFault::Expired,
                    reason: "it has expired since the connection was made".to_owned(),
                };
                conn.close(CloseReason::Certificate(error));
            }
        }
    }

    fn stop(&self) {
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
fn goodbye(conn: &Conn) {
    let header = Header::new(Kind::Goodbye, 0, 0);
    let lanes = &conn.channel.lanes;
    if lanes
        .push(Lane::System, header, &Payload::default(), None)
        .is_ok()
    {
        conn.notify(true);
    }
}

/// A node's transport. Cheap to clone; when the last clone is dropped all connections are closed.
///
/// # Delivery
///
/// - A message is sent at most once: nothing is ever repeated by the transport. What is queued when a connection is lost is dropped, counted, and
///   for calls reported.
/// - Messages to one peer of one priority arrive in the order in which they were sent, without gaps while a connection lasts. Priorities have no
///   order among each other.
/// - A call completes exactly once: with its reply or with a [`TransportError`], at its deadline at the latest. A cancelled call frees its slot; its late reply is
///   dropped, and the peer is told, behind the request. A reply of an earlier connection never completes a later call.
///
/// # Costs
///
/// A call to a connected peer takes no allocation and no lock that is held for longer than the copy of a small message. With up to three calls in
/// flight the caller writes to the socket itself; with more the connection's task writes for all of them. `send` may be called from any
/// thread; it never blocks on the network.
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

/// What a message needs to be sent.
struct Way<'a> {
    route: &'a Route,
    link: &'a Link,
    lane: Lane,
}

impl Way<'_> {
    #[inline]
    fn conn(&self) -> &Arc<Conn> {
        &self.link.conn
    }

    #[inline]
    fn define(&self) -> Option<&Bytes> {
        Some(&self.route.name.define)
    }

    #[inline]
    fn header(&self, kind: Kind, id: u64) -> Header {
        Header::new(kind, self.route.number, id)
    }

    /// The trace context of an envelope, and what of its payload is copied anyway, if the peer knows contexts and takes so much.
    fn trace_head(&self, envelope: &Envelope<'_>) -> Option<Vec<u8>> {
        let trace = envelope.trace?;
        let conn = self.conn();
        let bytes_max = conn.frame_bytes_max.load(Ordering::Relaxed) as usize;
        let fits = envelope.payload.len() + TRACE_BYTES <= bytes_max;
        let is_heard = conn.hears_traces.load(Ordering::Relaxed);
        (fits && is_heard).then(|| trace.before(&envelope.payload))
    }

    /// Queues a message or puts the caller in line, with the trace context that `head` begins with if the peer takes it.
    fn push_or_wait(
        &self,
        (waiter, waker): (&mut Waiter, &Waker),
        header: Header,
        payload: &Payload<'_>,
        head: Option<&[u8]>,
    ) -> (Result<(), NotQueued>, Option<Waker>) {
        let lanes = &self.conn().channel.lanes;
        if let (Some(head), Some(kind)) = (head, header.kind.traced()) {
            let traced = Header { kind, ..header };
            let payload = with_head(head, payload);
            let (lane, define) = (self.lane, self.define());
            match lanes.push_or_wait(waiter, waker, lane, traced, &payload, define) {
                // What the peer takes has become known since. The turn is given up and taken again.
                (Err(NotQueued::Untraced | NotQueued::TooLong { .. }), next) => {
                    if let Some(next) = next {
                        next.wake();
                    }
                }
                other => return other,
            }
        }
        lanes.push_or_wait(waiter, waker, self.lane, header, payload, self.define())
    }
}

/// A request with a body in chunks, or an answer that comes so.
struct Streams {
    chunks: Option<Chunks>,
    answer: Option<AnswerBody>,
    call: Call,
}

impl Streams {
    fn into_answer(self, item_bytes_max: usize) -> Result<Answer, TransportError> {
        let Self { answer, call, .. } = self;
        match answer {
            Some(body) => Ok(Answer::new(body, call, item_bytes_max)),
            None => Err(TransportError::ShuttingDown),
        }
    }
}

/// A slot of a call whose request is not queued yet. It is freed when dropped, and the peer has nothing to be told.
struct Slot {
    conn: Option<Arc<Conn>>,
    key: CallKey,
}

impl Slot {
    fn into_call(mut self, observed: Observed) -> Call {
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

/// Gives up its place in line for a slot when dropped.
struct WaitingForSlot<'a> {
    conn: &'a Conn,
    waiter: Waiter,
}

impl Drop for WaitingForSlot<'_> {
    fn drop(&mut self) {
        if let Some(next) = self.conn.channel.pending.forget(&mut self.waiter) {
            next.wake();
        }
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

    /// Makes a peer known, or gives a known one another address. Dials nothing: the first message does.
    pub fn add_peer(&self, peer: u64, address: impl Into<String>) {
        let address = address.into();
        let mut all = self.inner.all.lock();
        if let Some(known) = all.iter().find(|known| known.id == peer) {
            *known.address.lock() = address;
            return;
        }
        let new = Arc::new(Peer::new(peer, address, &self.inner));
        all.push(Arc::clone(&new));
        self.inner.peers.insert(peer, new);
    }

    /// Forgets a peer: its connections are closed, in both directions, and calls in flight end with `Disconnected`. `false` if it was not known. It
    /// may come again, unless [`Config::known_peers_only`] is set or the hook of [`Builder::on_accept`] refuses it.
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

    /// Ids of the peers that are known.
    #[must_use]
    pub fn peer_ids(&self) -> Vec<u64> {
        self.inner.all.lock().iter().map(|peer| peer.id).collect()
    }

    /// All nodes there is something to say of, by id: those that are known, and others that have connected. For each its state, its connections, what is
    /// queued, and what went wrong last. Takes a few locks for each connection.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        let mut all: BTreeMap<u64, PeerStatus> = BTreeMap::new();
        for peer in self.inner.peers() {
            let mut status = PeerStatus::new(peer.id);
            status.address = Some(peer.address.lock().clone());
            status.is_known = true;
            let [control, bulk] = peer.links();
            status.state = control
                .state(self.inner.now_ms())
                .max(bulk.state(self.inner.now_ms()));
            let depths = |link: &Link| {
                let [_, first, second] = link.conn.channel.lanes.depths();
                [first, second].map(|(bytes, frames)| QueueDepth { bytes, frames })
            };
            let ([critical, high], [normal, low]) = (depths(control), depths(bulk));
            status.queues = [critical, high, normal, low];
            all.insert(peer.id, status);
        }
        for connection in self.connections() {
            let peer = connection.peer;
            let status = all.entry(peer).or_insert_with(|| PeerStatus::new(peer));
            status.add(connection);
        }
        all.into_values().collect()
    }

    /// The most bytes of one message's payload that this node sends and takes: [`Config::frame_bytes_max`]. A peer may take less;
    /// [`RemoteMethod::payload_bytes_max`] knows what it said. Longer bodies go by [`stream`](Self::stream).
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

    /// The bounds of the queue of a priority.
    pub(crate) fn lane_limits(&self, priority: Priority) -> LaneLimits {
        self.inner.config.lane(priority)
    }

    pub(crate) fn has_checksums(&self) -> bool {
        self.inner.local.checksum
    }

    #[inline]
    fn era(&self) -> Era {
        Era {
            transport: self.inner.number,
            generation: self.inner.peers.generation(),
        }
    }

    /// Does something with the route of an envelope: the one that the thread remembers, or a new one.
    #[inline]
    fn with_route<R>(
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

    /// The same with a route that somebody holds, while it is good.
    #[inline]
    fn along<R>(
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
    fn with_new_route<R>(
        &self,
        envelope: &Envelope<'_>,
        act: &dyn Fn(&Route) -> Result<R, Refused>,
    ) -> Result<R, TransportError> {
        let route = self.route(envelope)?;
        let result = act(&route);
        route::remember(address(envelope), route);
        result.map_err(|refused| self.error(refused, envelope))
    }

    fn error(&self, refused: Refused, envelope: &Envelope<'_>) -> TransportError {
        refused.into_error(Attempt {
            peer: envelope.target,
            bytes: envelope.payload.len(),
            calls_max: self.inner.config.calls_max,
            cause: self.cause(refused, envelope.target),
        })
    }

    /// Why a peer that could not be reached could not be.
    fn cause(&self, refused: Refused, peer: u64) -> Option<Arc<TransportError>> {
        let Refused::Unreachable { .. } = refused else {
            return None;
        };
        let peer = self.inner.peers.get(&peer)?;
        let links = peer.links();
        let errors = links.iter().map(|link| link.conn.last_error.lock().clone());
        errors.flatten().next()
    }

    /// Looks up peer and name.
    fn route(&self, envelope: &Envelope<'_>) -> Result<Route, TransportError> {
        let inner = &self.inner;
        // Before the look-up: a change in between makes the route one of the past.
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

    /// Whether and how an envelope can go this way now; dials where nobody has.
    #[inline]
    fn way<'a>(&self, route: &'a Route, envelope: &Envelope<'_>) -> Result<Way<'a>, Refused> {
        self.way_of(route, envelope.priority, envelope.payload.len())
    }

    /// The same for payloads of `bytes` at most.
    #[inline]
    fn way_of<'a>(
        &self,
        route: &'a Route,
        priority: Option<Priority>,
        bytes: usize,
    ) -> Result<Way<'a>, Refused> {
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
        Ok(Way {
            route,
            link,
            lane: priority.lane(),
        })
    }

    /// What is told of a call that was not sent.
    #[cold]
    pub(crate) fn observe(&self, envelope: &Envelope<'_>) -> Observed {
        match self.route(envelope) {
            Ok(route) => self.observe_on(&route, envelope),
            Err(_) => Observed::new(span_of(envelope)),
        }
    }

    /// What is told of a call.
    #[inline]
    fn observe_on(&self, route: &Route, envelope: &Envelope<'_>) -> Observed {
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

    /// Sends a message without a reply. It is queued, or written at once where the connection is idle and the message urgent. Never waits.
    ///
    /// # Errors
    /// Gives the message back, with the reason: [`QueueFull`](TransportError::QueueFull), [`Unreachable`](TransportError::Unreachable),
    /// [`UnknownPeer`](TransportError::UnknownPeer), [`TooLarge`](TransportError::TooLarge), [`PeerDraining`](TransportError::PeerDraining),
    /// [`ShuttingDown`](TransportError::ShuttingDown) or [`InvalidName`](TransportError::InvalidName). Nothing was sent then.
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
    fn try_send(&self, envelope: &Envelope<'_>) -> Result<(), TransportError> {
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
    fn send_on(&self, route: &Route, envelope: &Envelope<'_>) -> Result<(), Refused> {
        let way = self.way(route, envelope)?;
        let header = way.header(Kind::OneWay, envelope.request_id);
        self.queue_message(&way, header, envelope)?;
        way.conn().notify(is_urgent(&way));
        Ok(())
    }

    /// Sends a message without a reply, and waits while its queue is full: in turn with others who wait for the same queue.
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

    async fn send_wait_on(
        &self,
        route: &Route,
        envelope: &Envelope<'_>,
    ) -> Result<(), TransportError> {
        let refused = |refused| self.error(refused, envelope);
        let way = self.way(route, envelope).map_err(refused)?;
        let header = way.header(Kind::OneWay, envelope.request_id);
        let head = way.trace_head(envelope);
        let push = |waiter: &mut Waiter, waker: &Waker| {
            way.push_or_wait((waiter, waker), header, &envelope.payload, head.as_deref())
        };
        self.queue_in_turn(&way, push).await.map_err(refused)
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
            bytes: batch.block.longest(),
            calls_max: self.inner.config.calls_max,
            cause: None,
        };
        let refused = |refused: Refused| {
            let cause = self.cause(refused, attempt.peer);
            refused.into_error(Attempt {
                cause,
                ..attempt.clone()
            })
        };
        let way = self.way_of(route, batch.priority, batch.block.longest());
        let way = way.map_err(refused)?;
        let lanes = &way.conn().channel.lanes;
        let push = |waiter: &mut Waiter, waker: &Waker| {
            let name = (route.number, &route.name.define);
            lanes.push_batch_or_wait(waiter, waker, way.lane, &mut batch.block, name)
        };
        self.queue_in_turn(&way, push).await.map_err(refused)
    }

    /// Queues a message at once or not at all.
    #[inline]
    fn queue(&self, way: &Way<'_>, header: Header, payload: &Payload<'_>) -> Result<(), Refused> {
        let lanes = &way.conn().channel.lanes;
        match lanes.push(way.lane, header, payload, way.define()) {
            Ok(()) => Ok(()),
            Err(NotQueued::Full) => Err(Refused::QueueFull),
            Err(NotQueued::TooLong { bytes_max }) => Err(Refused::TooLarge { bytes_max }),
            Err(NotQueued::Closed) => self.queue_again(way, header, payload),
            Err(NotQueued::Untraced) => Err(Refused::Untraced),
            Err(NotQueued::Unsupported) => Err(Refused::Unsupported),
        }
    }

    /// The same for a message that may have a trace context.
    #[inline]
    fn queue_message(
        &self,
        way: &Way<'_>,
        header: Header,
        envelope: &Envelope<'_>,
    ) -> Result<(), Refused> {
        if envelope.trace.is_some() {
            return self.queue_traced(way, header, envelope);
        }
        self.queue(way, header, &envelope.payload)
    }

    #[cold]
    fn queue_traced(
        &self,
        way: &Way<'_>,
        header: Header,
        envelope: &Envelope<'_>,
    ) -> Result<(), Refused> {
        if let (Some(head), Some(kind)) = (way.trace_head(envelope), header.kind.traced()) {
            let traced = Header { kind, ..header };
            match self.queue(way, traced, &with_head(&head, &envelope.payload)) {
                // What the peer takes has become known since.
                Err(Refused::Untraced | Refused::TooLarge { .. }) => {}
                other => return other,
            }
        }
        self.queue(way, header, &envelope.payload)
    }

    /// The connection ended since this way was found: another one is dialled, unless it is still ending.
    #[cold]
    fn queue_again(
        &self,
        way: &Way<'_>,
        header: Header,
        payload: &Payload<'_>,
    ) -> Result<(), Refused> {
        way.link.admit_slow(&way.route.peer, &self.inner)?;
        let lanes = &way.conn().channel.lanes;
        let pushed = lanes.push(way.lane, header, payload, way.define());
        pushed.map_err(|reason| match reason {
            NotQueued::TooLong { bytes_max } => Refused::TooLarge { bytes_max },
            NotQueued::Untraced => Refused::Untraced,
            NotQueued::Unsupported => Refused::Unsupported,
            NotQueued::Full | NotQueued::Closed => Refused::QueueFull,
        })
    }

    /// Queues something, in turn with others who wait for the same queue, and sees to it that it is written.
    async fn queue_in_turn(
        &self,
        way: &Way<'_>,
        mut push: impl FnMut(&mut Waiter, &Waker) -> (Result<(), NotQueued>, Option<Waker>),
    ) -> Result<(), Refused> {
        let conn = way.conn();
        let mut waiting = Waiting {
            conn,
            lane: way.lane,
            waiter: Waiter::default(),
        };
        poll_fn(|cx| {
            // The connection may have been lost while this waited: then it may have to be dialled anew.
            if let Err(reason) = way.link.admit(&way.route.peer, &self.inner) {
                return Poll::Ready(Err(reason));
            }
            let (result, next) = push(&mut waiting.waiter, cx.waker());
            if let Some(next) = next {
                next.wake();
            }
            match result {
                Ok(()) => Poll::Ready(Ok(())),
                Err(NotQueued::Full) => Poll::Pending,
                Err(NotQueued::TooLong { bytes_max }) => {
                    Poll::Ready(Err(Refused::TooLarge { bytes_max }))
                }
                Err(NotQueued::Untraced) => Poll::Ready(Err(Refused::Untraced)),
                Err(NotQueued::Unsupported) => Poll::Ready(Err(Refused::Unsupported)),
                Err(NotQueued::Closed) => {
                    // The connection ended since the look above, and soon it is known what comes next.
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        })
        .await?;
        drop(waiting);
        conn.notify(is_urgent(way));
        Ok(())
    }

    /// Sends a request and returns the future of its reply. The request is on its way when this returns, not when the future is first
    /// polled, so several calls can be begun before the first is awaited.
    ///
    /// # Errors
    /// The future's: those of [`send`](Self::send), [`TooManyCalls`](TransportError::TooManyCalls), [`Timeout`](TransportError::Timeout),
    /// [`Disconnected`](TransportError::Disconnected), [`PeerRejected`](TransportError::PeerRejected).
    #[inline]
    pub fn call(&self, envelope: Envelope<'_>) -> Call {
        match self.try_call(&envelope) {
            Ok(call) => call,
            Err(error) => Call::failed(error, self.observe(&envelope)),
        }
    }

    /// Sends a request, waits while its queue is full or as many calls are in flight as may be, and then for the reply. All of it together takes no
    /// longer than the call may.
    ///
    /// Callers that wait have their turns, and are woken when it is theirs. Dropping the future before the request is queued sends nothing.
    ///
    /// # Errors
    /// As [`call`](Self::call), without `QueueFull`; `TooManyCalls` or `QueueFull` if there was no room in all that time.
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

    async fn call_wait_on(
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

    /// Takes a slot in turn, then a place in the queue. `full` says which of the two is waited for.
    async fn begin_in_turn(
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
            let way = self.way(route, envelope)?;
            let conn = way.conn();
            *full = Refused::TooManyCalls;
            let slot = self.slot_in_turn(&way, left()).await?;
            let key = slot.key;
            *full = Refused::QueueFull;
            let head = way.trace_head(envelope);
            let push = |waiter: &mut Waiter, waker: &Waker| {
                let limit = TimeLimit::from_millis(millis(left()));
                let header = way.header(Kind::Request, key.id()).within(limit);
                way.push_or_wait((waiter, waker), header, &envelope.payload, head.as_deref())
            };
            // The connection may be lost while this waits, and the slot with it.
            let mut queued = std::pin::pin!(self.queue_in_turn(&way, push));
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

    async fn slot_in_turn(&self, way: &Way<'_>, time: Duration) -> Result<Slot, Refused> {
        let conn = way.conn();
        let mut waiting = WaitingForSlot {
            conn,
            waiter: Waiter::default(),
        };
        let deadline_ms = self.deadline_ms(time);
        poll_fn(|cx| {
            way.link.admit(&way.route.peer, &self.inner)?;
            let pending = &conn.channel.pending;
            let waiter = &mut waiting.waiter;
            let (key, next) = pending.open_or_wait(waiter, cx.waker(), way.lane, deadline_ms);
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

    #[inline]
    fn try_call(&self, envelope: &Envelope<'_>) -> Result<Call, TransportError> {
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
    fn call_on(&self, route: &Route, envelope: &Envelope<'_>) -> Result<Call, Refused> {
        let way = self.way(route, envelope)?;
        let timeout = envelope.timeout.unwrap_or(self.inner.config.call_timeout);
        let (key, limit) = self.open(&way, timeout)?;
        let conn = way.conn();
        let header = way.header(Kind::Request, key.id()).within(limit);
        let observed = self.observe_on(route, envelope);
        if let Err(refused) = self.queue_message(&way, header, envelope) {
            // The peer has not got it, and need not be told.
            conn.channel.pending.cancel(key);
            return Err(refused);
        }
        conn.notify(conn.channel.pending.in_flight() <= DIRECT_CALLS_MAX);
        Ok(Call::waiting(Arc::clone(conn), key, observed))
    }

    /// Takes a slot, and says what the peer is told of the timeout.
    #[inline]
    fn open(&self, way: &Way<'_>, timeout: Duration) -> Result<(CallKey, TimeLimit), Refused> {
        let deadline_ms = self.deadline_ms(timeout);
        let key = way.conn().channel.pending.open(way.lane, deadline_ms);
        let key = key.ok_or(Refused::TooManyCalls)?;
        Ok((key, TimeLimit::from_millis(millis(timeout))))
    }

    #[inline]
    fn deadline_ms(&self, timeout: Duration) -> u64 {
        // The clock is up to a tick behind.
        self.inner
            .now_ms()
            .saturating_add(millis(timeout))
            .saturating_add(millis(self.inner.config.tick))
    }

    /// Sends the same message to several peers. A shared payload is not copied, whatever their number: give large ones as `Bytes`. The
    /// envelope's own target is ignored.
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

    /// Relays a received message to another node as it is: same service, method, number and bytes, which are neither decoded nor copied
    /// (up to 1 KiB they are copied once).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn forward(&self, target: u64, message: &Message) -> Result<(), TransportError> {
        self.try_send(&relayed(target, message))
    }

    /// Relays a received request to another node as it is, and returns the future of the reply. It waits as long as the request's own caller
    /// ([`Message::time_limit`]).
    ///
    /// # Errors
    /// The future's, as of [`call`](Self::call).
    pub fn forward_call(&self, target: u64, message: &Message) -> Call {
        let mut envelope = relayed(target, message);
        envelope.timeout = message.time_limit();
        self.call(envelope)
    }

    /// Begins a request whose body is sent in chunks: snapshots, and whatever is longer than a frame. The envelope's payload is the
    /// request's head. It is answered once, when the receiver's handler returns.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`TooManyStreams`](TransportError::TooManyStreams).
    pub fn stream(&self, envelope: Envelope<'_>) -> Result<BodySender, TransportError> {
        let begun = self.begin_streams(&envelope, Kind::StreamOpen)?;
        let Some(chunks) = begun.chunks else {
            return Err(TransportError::ShuttingDown);
        };
        Ok(BodySender::new(chunks, begun.call))
    }

    /// Sends a request that is answered item by item: a watch of what changes, a long list. The peer's handler is one of
    /// [`Router::watch`]. The answer may take as long as a streamed body ([`Config::stream_timeout`](crate::Config::stream_timeout)) where the envelope does not say.
    ///
    /// ```no_run
    /// # async fn f(transport: &perf_transport::Transport) -> Result<(), perf_transport::TransportError> {
    /// use perf_transport::Envelope;
    ///
    /// let mut events = transport.watch(Envelope::new(2, "vm", "events", b"vm-7"))?;
    /// while let Some(event) = events.next().await {
    ///     println!("{:?}", event?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`stream`](Self::stream), and [`Unsupported`](TransportError::Unsupported) if the peer's version does not know this.
    pub fn watch(&self, envelope: Envelope<'_>) -> Result<Answer, TransportError> {
        let begun = self.begin_streams(&envelope, Kind::Watch)?;
        begun.into_answer(self.payload_bytes_max())
    }

    /// Sends a request with items both ways at once: the caller sends and reads at its own pace. The peer's handler is one of
    /// [`Router::exchange`].
    ///
    /// # Errors
    /// As [`watch`](Self::watch).
    pub fn exchange(&self, envelope: Envelope<'_>) -> Result<(ItemSender, Answer), TransportError> {
        let mut begun = self.begin_streams(&envelope, Kind::Exchange)?;
        let Some(chunks) = begun.chunks.take() else {
            return Err(TransportError::ShuttingDown);
        };
        let sender = ItemSender::new(chunks, true);
        Ok((sender, begun.into_answer(self.payload_bytes_max())?))
    }

    /// Queues a request with a body that is sent in chunks, an answer that comes so, or both.
    fn begin_streams(
        &self,
        envelope: &Envelope<'_>,
        kind: Kind,
    ) -> Result<Streams, TransportError> {
        let route = self.route(envelope)?;
        let refused = |refused| self.error(refused, envelope);
        let way = self.way(&route, envelope).map_err(refused)?;
        let timeout = envelope.timeout.unwrap_or(self.inner.config.stream_timeout);
        let (key, limit) = self.open(&way, timeout).map_err(refused)?;
        let (link, conn) = (way.link, way.conn());
        let mut streams = Streams {
            chunks: None,
            answer: None,
            call: Call::waiting(Arc::clone(conn), key, self.observe_on(&route, envelope)),
        };
        let channel = &conn.channel;
        let fail = |streams: Streams, error| {
            // The peer has not got it, and need not be told.
            channel.close_window(key);
            channel.pending.cancel(key);
            drop(streams);
            Err(error)
        };
        let too_many = |streams_max| TransportError::TooManyStreams {
            peer: envelope.target,
            streams_max,
        };
        if matches!(kind, Kind::StreamOpen | Kind::Exchange) {
            let credit = link.stream_window_bytes.load(Ordering::Relaxed);
            let streams_max = link.streams_max.load(Ordering::Relaxed) as usize;
            let Some(window) = channel.open_window(key, credit.into(), streams_max) else {
                return fail(streams, too_many(streams_max));
            };
            let chunks = Chunks::new(Arc::clone(conn), (key, way.lane), window, usize::MAX);
            streams.chunks = Some(chunks);
        }
        if kind.is_watch() {
            let config = &self.inner.config;
            let answers_max = config.streams_max as usize;
            let body = channel.open_answer(key, config.stream_window_bytes, answers_max);
            let Some(body) = body else {
                return fail(streams, too_many(answers_max));
            };
            streams.answer = Some(AnswerBody::new(body, Arc::clone(conn), key));
        }
        let header = way.header(kind, key.id()).within(limit);
        if let Err(reason) = self.queue_message(&way, header, envelope) {
            return fail(streams, refused(reason));
        }
        conn.notify(false);
        Ok(streams)
    }

    /// Gives this node another certificate, key, authority and revocation lists, for connections from now on. Connections whose peers the new
    /// authority accepts go on; others are closed, with [`CloseReason::Certificate`].
    ///
    /// Costs a verification for each connection.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] if other nodes would refuse the certificate, or the transport was started without TLS. Nothing has
    /// changed then.
    #[cfg(feature = "tls")]
    pub fn set_identity(&self, identity: crate::tls::TlsIdentity) -> Result<(), TransportError> {
        use crate::tls::Side;
        let inner = &self.inner;
        if inner.security().is_plain() {
            return Err(TransportError::Configuration {
                reason: "a transport that was started without TLS has no identity".to_owned(),
            });
        }
        identity.check(inner.local.node, &inner.local.cluster)?;
        *inner.security.write() = Security::MutualTls(identity.clone());
        for (conn, side) in inner.connections() {
            let side = if side { Side::Dialled } else { Side::Accepted };
            let certificate = conn
                .info
                .lock()
                .as_ref()
                .and_then(|info| info.certificate.clone());
            let Some(certificate) = certificate else {
                continue;
            };
            let cluster = &inner.local.cluster;
            if let Err(error) = identity.check_peer(&certificate, side, (conn.peer, cluster)) {
                conn.close(CloseReason::Certificate(error));
            }
        }
        Ok(())
    }

    /// What happens to connections from now on. A subscriber that is 256 events behind loses the oldest, and is told how many.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.inner.events.subscribe()
    }

    /// Counts of the whole transport.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let inner = &self.inner;
        let peers = inner.peers();
        let links = peers.iter().flat_map(|peer| peer.links());
        let outbound = links.filter(|link| link.is_up()).count();
        let inbound = inner.inbound.lock();
        let handlers = inbound
            .open
            .values()
            .chain(inbound.ended.values())
            .map(|conn| conn.handlers.load(Ordering::Relaxed));
        Stats {
            peers: peers.len(),
            outbound,
            inbound: inbound.open.len(),
            handlers: handlers.sum(),
            timeouts: inner.counts.timeouts.load(Ordering::Relaxed),
            dials_failed: inner.counts.dials_failed.load(Ordering::Relaxed),
            unhandled: inner.unhandled.load(Ordering::Relaxed),
        }
    }

    /// All connections: two for each known peer, whether they are up or not, and those that peers have dialled. Takes a few locks for each.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        let mut all = Vec::new();
        for peer in self.inner.peers() {
            let address = peer.address.lock().clone();
            for link in peer.links() {
                let status = connection_status(&link.conn, link.class, address.clone());
                all.push(ConnectionStatus {
                    is_dialled: true,
                    is_up: link.is_up(),
                    ..status
                });
            }
        }
        for (_, conn) in self.inner.inbound() {
            let known = {
                let info = conn.info.lock();
                info.as_ref().map(|info| (info.class, info.address.clone()))
            };
            if let Some((class, address)) = known {
                all.push(connection_status(&conn, class, address));
            }
        }
        all
    }

    /// Counts of one peer; `None` if it is not known.
    #[must_use]
    pub fn peer_stats(&self, peer: u64) -> Option<PeerStats> {
        let peer = self.inner.peers.get(&peer)?;
        Some(PeerStats {
            control: link_stats(&peer.control),
            bulk: link_stats(&peer.bulk),
        })
    }

    /// Shuts down in good order: takes no new messages and no new connections, tells the peers to send nothing new, waits until what is queued is
    /// written, calls in flight have ended, peers have had the replies to what they sent and closed their connections, and handlers
    /// have ended, and closes. After `time_max` it closes whatever is left.
    ///
    /// Returns whether everything was done in time. A peer that is gone without a word is waited for until its heartbeats are missed.
    pub async fn drain(&self, time_max: Duration) -> bool {
        let inner = &self.inner;
        inner.draining.store(true, Ordering::SeqCst);
        for (_, conn) in inner.inbound() {
            goodbye(&conn);
        }
        let quiet = async {
            while !self.is_quiet() {
                tokio::time::sleep(inner.config.tick).await;
            }
        };
        let in_time = tokio::time::timeout(time_max, quiet).await.is_ok();
        self.shutdown();
        // Peers hear the end of their connections, and the address can be listened on again.
        let gone = async {
            while inner.tasks.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // A task that does not end is not worth waiting for.
        let _ = tokio::time::timeout(LAST_WORDS, gone).await;
        in_time
    }

    fn is_quiet(&self) -> bool {
        let peers = self.inner.peers();
        let mut links = peers.iter().flat_map(|peer| peer.links());
        let links_are = links.all(|link| {
            let channel = &link.conn.channel;
            // What is queued for a peer that cannot be reached will not be written.
            let is_written = link.conn.backlog() == 0 || !link.is_up();
            channel.pending.in_flight() == 0 && is_written
        });
        // A peer closes when it has all its replies. What it sent without waiting for one is handled until then, or soon after.
        let inbound = self.inner.inbound.lock();
        let is_alone =
            inbound.handshakes == 0 && inbound.open.is_empty() && inbound.ended.is_empty();
        links_are && is_alone
    }

    /// Closes everything at once: calls in flight end with `Disconnected`, what is queued is dropped. Also done when the last clone is dropped.
    pub fn shutdown(&self) {
        self.inner.stop();
    }
}

/// Around a call to where an envelope goes.
#[inline]
fn span_of(envelope: &Envelope<'_>) -> CallSpan {
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
fn is_urgent(way: &Way<'_>) -> bool {
    way.link.class == crate::proto::ConnectionClass::Control
}

#[inline]
fn address<'a>(envelope: &Envelope<'a>) -> Address<'a> {
    Address {
        target: envelope.target,
        service: envelope.service,
        method: envelope.method,
    }
}

fn relayed<'a>(target: u64, message: &'a Message) -> Envelope<'a> {
    let payload = Payload::Shared(message.payload().clone());
    let mut envelope = Envelope::new(target, message.service(), message.method(), payload)
        .with_request_id(message.request_id());
    envelope.trace = message.trace();
    envelope
}

fn connection_status(conn: &Conn, class: ConnectionClass, address: String) -> ConnectionStatus {
    let info = conn.info.lock();
    #[cfg(feature = "tls")]
    let expires_at = info.as_ref().and_then(Info::expires_at);
    #[cfg(not(feature = "tls"))]
    let expires_at: Option<Duration> = None;
    ConnectionStatus {
        peer: conn.peer,
        class,
        is_dialled: false,
        is_up: true,
        address,
        incarnation: info.as_ref().map(|info| info.incarnation),
        certificate_expires_at: expires_at.map(|at| SystemTime::UNIX_EPOCH + at),
        calls_in_flight: conn.channel.pending.in_flight(),
        handlers: conn.handlers.load(Ordering::Relaxed),
        queued_bytes: conn.backlog(),
        peer_busy: conn.peer_busy.load(Ordering::Relaxed),
        last_error: conn.last_error.lock().as_deref().cloned(),
        last_close: conn.last_close.lock().as_deref().cloned(),
    }
}

fn link_stats(link: &Link) -> LinkStats {
    let conn = &link.conn;
    let (queued_bytes, queued_frames) = conn.channel.lanes.queued();
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    LinkStats {
        is_up: link.is_up(),
        dials: get(&link.dials),
        connects: get(&link.connects),
        calls_in_flight: conn.channel.pending.in_flight(),
        queued_bytes: queued_bytes + conn.unwritten.load(Ordering::Relaxed),
        queued_frames,
        dropped_frames: conn.channel.lanes.dropped(),
        messages_sent: conn.channel.lanes.messages(),
        bytes_sent: get(&conn.bytes_written),
        writes: get(&conn.writes),
        peer_busy: get(&conn.peer_busy),
        frames_received: get(&conn.frames_received),
        bytes_received: get(&conn.bytes_received),
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

/// What became of a [`broadcast`](Transport::broadcast).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Broadcast {
    /// How many peers it was queued for.
    pub accepted: usize,
    /// The others, with the reason.
    pub refused: Vec<(u64, TransportError)>,
}

enum ListenOn {
    Nothing,
    Address(String),
    Listener(Box<dyn Listener>),
}

/// Prepares a [`Transport`].
#[must_use = "nothing happens before `start`"]
pub struct Builder {
    node: u64,
    cluster: String,
    security: Security,
    config: Config,
    router: Router,
    connector: Arc<dyn Connector>,
    listener: ListenOn,
    callback: Option<Arc<Callback>>,
    hook: MaybeHook,
    peers: Vec<(u64, String)>,
    #[cfg(feature = "metrics")]
    metrics: Option<&'static perf_metrics::NodeMetrics>,
    #[cfg(feature = "metrics")]
    method_metrics: Option<crate::methods::MethodMetrics>,
}

impl Builder {
    /// Bounds and times.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Handlers of what arrives, and the priorities of what is sent.
    pub fn router(mut self, router: Router) -> Self {
        self.router = router;
        self
    }

    /// Accepts connections at an address, `host:port`, or on Unix `unix:/path`; port 0 lets the system choose. Without it the node only dials.
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listener = ListenOn::Address(address.into());
        self
    }

    /// Accepts connections from a listener of the caller's.
    pub fn listener(mut self, listener: impl Listener) -> Self {
        self.listener = ListenOn::Listener(Box::new(listener));
        self
    }

    /// Dials through a connector of the caller's instead of TCP.
    pub fn connector(mut self, connector: impl Connector) -> Self {
        self.connector = Arc::new(connector);
        self
    }

    /// Makes a peer known.
    pub fn peer(mut self, peer: u64, address: impl Into<String>) -> Self {
        self.peers.push((peer, address.into()));
        self
    }

    /// Called with everything that happens to connections, in the task where it happens: it must not block.
    pub fn on_event(mut self, callback: impl Fn(&PeerEvent) + Send + Sync + 'static) -> Self {
        self.callback = Some(Arc::new(callback));
        self
    }

    /// Asked about each peer that has proven who it is, before it is let in; `Err` refuses it, with a text that it gets. The answer must come within
    /// [`Config::handshake_timeout`].
    ///
    /// ```
    /// # use perf_transport::{Security, Transport};
    /// let builder = Transport::builder(2, "prod", Security::InsecurePlaintext)
    ///     .on_accept(|arrival| async move {
    ///         match arrival.is_duplicate {
    ///             true => Err("this node is here already".to_owned()),
    ///             false => Ok(()),
    ///         }
    ///     });
    /// ```
    pub fn on_accept<F>(mut self, hook: impl Fn(Arrival) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.hook = Some(Arc::new(move |arrival| Box::pin(hook(arrival))));
        self
    }

    /// Records into a node's catalogue.
    #[cfg(feature = "metrics")]
    pub fn metrics(mut self, metrics: &'static perf_metrics::NodeMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Records calls, errors, latency, bytes and what is in flight, for each service and method.
    #[cfg(feature = "metrics")]
    pub fn method_metrics(mut self, metrics: crate::methods::MethodMetrics) -> Self {
        self.method_metrics = Some(metrics);
        self
    }

    /// Starts the transport on the current tokio runtime, which must have time and IO enabled.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] if the configuration cannot work, [`TransportError::Io`] if the address cannot be listened on.
    pub async fn start(mut self) -> Result<Transport, TransportError> {
        self.config.check()?;
        if self.cluster.is_empty() || self.cluster.len() > 128 {
            return Err(TransportError::Configuration {
                reason: "the cluster's name must have 1 to 128 bytes".to_owned(),
            });
        }
        self.security.check(self.node, &self.cluster)?;
        let io = |error: std::io::Error| TransportError::Io {
            action: "listen",
            reason: error.to_string(),
        };
        let listen_on = std::mem::replace(&mut self.listener, ListenOn::Nothing);
        let listener: Option<Box<dyn Listener>> = match listen_on {
            ListenOn::Nothing => None,
            ListenOn::Address(address) => Some(crate::connect::listen(&address).await.map_err(io)?),
            ListenOn::Listener(listener) => Some(listener),
        };
        let address = listener.as_ref().map(|listener| listener.address());
        let peers = std::mem::take(&mut self.peers);
        let inner = Arc::new(self.into_inner(address));
        let transport = Transport {
            _life: Arc::new(Life(Arc::clone(&inner))),
            inner: Arc::clone(&inner),
        };
        for (peer, address) in peers {
            transport.add_peer(peer, address);
        }
        if let Some(listener) = listener {
            let (alive, accepting) = (inner.alive(), Arc::clone(&inner));
            tokio::spawn(async move {
                accept::run(accepting, listener).await;
                drop(alive);
            });
        }
        // With its runtime the transport ends: nothing would move on, and nothing would time out.
        let life = Life(Arc::clone(&inner));
        tokio::spawn(async move {
            ticker::run(inner).await;
            drop(life);
        });
        Ok(transport)
    }

    /// What the tasks share. Called on the runtime that they will run on.
    fn into_inner(self, address: Option<String>) -> Inner {
        let local = Local {
            cluster: self.cluster,
            node: self.node,
            incarnation: foldhash::quality::RandomState::default().hash_one(self.node),
            frame_bytes_max: self.config.frame_bytes_max,
            stream_window_bytes: self.config.stream_window_bytes,
            streams_max: self.config.streams_max,
            checksum: self.config.checksum && self.security.is_plain(),
        };
        Inner {
            number: TRANSPORTS.fetch_add(1, Ordering::Relaxed),
            counts: Counts {
                #[cfg(feature = "metrics")]
                metrics: self.metrics.map(crate::metrics::Recorder::new),
                ..Counts::default()
            },
            config: self.config,
            local,
            security: RwLock::new(self.security),
            hook: self.hook,
            sources: Mutex::default(),
            tasks: AtomicUsize::new(0),
            router: Arc::new(self.router),
            #[cfg(feature = "metrics")]
            method_metrics: self.method_metrics,
            connector: self.connector,
            events: Events::new(self.callback),
            runtime: tokio::runtime::Handle::current(),
            stop: watch::Sender::new(false),
            next_connection: AtomicU64::new(1),
            unhandled: Arc::new(AtomicU64::new(0)),
            names: NameTable::new(),
            peers: Membership::new(),
            all: Mutex::new(Vec::new()),
            inbound: Mutex::default(),
            now_ms: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            address,
        }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("node", &self.node)
            .field("cluster", &self.cluster)
            .field("security", &self.security)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
