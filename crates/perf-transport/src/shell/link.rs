//! The dialling side: one link per peer and class, and the task that connects it.

use super::accept::source_of;
use super::conn::{Conn, Info};
use super::handshake::{read_frame, write_frame};
use super::parting;
use super::session::{self, Established, Role};
use crate::connect::{ByteStream, StreamOptions};
use crate::error::TransportError;
use crate::event::{CloseReason, PeerEvent};
use crate::primitive::mutant;
use crate::proto::{
    Admission, Backoff, Channel, Client, ConnectionClass, Decoder, DialState, Dialer,
    FEATURE_GOODBYE, FEATURE_TRACE, FEATURE_WATCH, Fault, FrameError, FrameRef, HandshakeError,
    Kind, ReadBuffer, Takes, Welcome, check_welcome,
};
use crate::refused::Refused;
use crate::stats::PeerState;
use crate::transport::{Alive, Inner};
use bytes::Bytes;
use parking_lot::Mutex;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;

/// One of a peer's two connections, from this node's side.
pub(crate) struct Link {
    pub(crate) class: ConnectionClass,
    pub(crate) conn: Arc<Conn>,
    pub(crate) dialer: Mutex<Dialer>,
    /// Messages may be queued without asking the dialer.
    is_open: AtomicBool,
    pub(crate) stream_window_bytes: AtomicU32,
    pub(crate) streams_max: AtomicU32,
    pub(crate) dials: AtomicU64,
    pub(crate) connects: AtomicU64,
    /// The peer has another address, or the link was closed: a dial under way looks at both.
    changed: Notify,
}

/// A peer and the way to it.
pub(crate) struct Peer {
    pub(crate) id: u64,
    pub(crate) address: Mutex<String>,
    /// The host of the address.
    host: Mutex<String>,
    pub(crate) control: Link,
    pub(crate) bulk: Link,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Peer {
    pub(crate) fn new(id: u64, address: String, inner: &Inner) -> Self {
        Self {
            id,
            host: Mutex::new(source_of(&address)),
            address: Mutex::new(address),
            control: Link::new(id, ConnectionClass::Control, inner),
            bulk: Link::new(id, ConnectionClass::Bulk, inner),
        }
    }

    /// Whether it is dialled at this host.
    pub(crate) fn is_at(&self, host: &str) -> bool {
        *self.host.lock() == host
    }

    #[inline]
    pub(crate) fn link(&self, class: ConnectionClass) -> &Link {
        match class {
            ConnectionClass::Control => &self.control,
            ConnectionClass::Bulk => &self.bulk,
        }
    }

    /// From now on the peer is dialled at this address.
    pub(crate) fn move_to(&self, address: String) {
        let mut known = self.address.lock();
        if *known == address {
            return;
        }
        *self.host.lock() = source_of(&address);
        *known = address;
        // Under the lock of the address: a dialler that has failed looks at the address behind this, or has told its
        // dialer before.
        self.forget_failures();
        for link in self.links() {
            link.changed.notify_one();
        }
    }

    /// What failed says nothing any more: the next message dials at once.
    pub(crate) fn forget_failures(&self) {
        for link in self.links() {
            link.dialer.lock().moved();
        }
    }

    pub(crate) fn links(&self) -> [&Link; 2] {
        [&self.control, &self.bulk]
    }
}

impl Link {
    fn new(peer: u64, class: ConnectionClass, inner: &Inner) -> Self {
        let config = &inner.config;
        let limits = config.channel(class, inner.local.checksum);
        let base_ms = crate::config::millis(config.backoff.0);
        let max_ms = crate::config::millis(config.backoff.1);
        // Any number that differs between nodes and peers will do.
        let seed = inner.local.incarnation ^ peer.rotate_left(17) ^ class as u64;
        let conn = Conn::new(peer, Channel::new(limits));
        conn.frame_bytes_max
            .store(config.frame_bytes_max, Ordering::Relaxed);
        Self {
            class,
            conn: Arc::new(conn),
            dialer: Mutex::new(Dialer::new(Backoff::new(base_ms, max_ms, seed))),
            is_open: AtomicBool::new(false),
            stream_window_bytes: AtomicU32::new(config.stream_window_bytes),
            streams_max: AtomicU32::new(config.streams_max),
            dials: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }

    /// Whether a message may be queued. Dials if there is no connection and no dial is under way.
    #[inline]
    pub(crate) fn admit(&self, peer: &Arc<Peer>, inner: &Arc<Inner>) -> Result<(), Refused> {
        if self.is_open.load(Ordering::Acquire) {
            return Ok(());
        }
        self.admit_slow(peer, inner)
    }

    /// Slow path of [`admit`](Self::admit), also used after a push failed on a link that looked open: takes the
    /// dialer's lock to learn the true state.
    #[cold]
    pub(crate) fn admit_slow(&self, peer: &Arc<Peer>, inner: &Arc<Inner>) -> Result<(), Refused> {
        let mut dialer = self.dialer.lock();
        match dialer.want(inner.now_ms()) {
            Admission::Queue => Ok(()),
            Admission::QueueAndDial => {
                // Under the dialer's lock: `lost` closes them before it says that there is nothing to wait for.
                self.conn.channel.queues.open();
                drop(dialer);
                self.dials.fetch_add(1, Ordering::Relaxed);
                let task = Running {
                    _alive: inner.alive(),
                    inner: Arc::clone(inner),
                    peer: Arc::clone(peer),
                    class: self.class,
                    has_ended: false,
                };
                inner.runtime.spawn(run(task));
                Ok(())
            }
            Admission::Refused { retry_in_ms } => Err(Refused::Unreachable { retry_in_ms }),
            Admission::Draining => Err(Refused::PeerDraining),
            Admission::Closed if inner.is_ending() => Err(Refused::ShuttingDown),
            Admission::Closed => Err(Refused::UnknownPeer),
        }
    }

    /// The handshake is done. `false` if the link was closed meanwhile.
    fn connected(&self) -> bool {
        let mut dialer = self.dialer.lock();
        let is_wanted = dialer.connected();
        if is_wanted {
            self.conn.has_failed.store(false, Ordering::Release);
            self.connects.fetch_add(1, Ordering::Relaxed);
            self.is_open.store(true, Ordering::Release);
        }
        is_wanted
    }

    /// Closes the connection if it is idle. Messages that are queued meanwhile wait for the next connection.
    pub(crate) fn end_if_idle(&self) {
        // A caller that closed queues refuse asks the dialer, and so waits until this is done.
        let mut dialer = self.dialer.lock();
        let channel = &self.conn.channel;
        if dialer.state() != DialState::Up || !channel.queues.close_if_empty() {
            return;
        }
        if !self.is_quiet() {
            // What was queued a moment ago is on its way.
            channel.queues.open();
            return;
        }
        dialer.ending();
        self.is_open.store(false, Ordering::Release);
        self.conn.close(CloseReason::Idle);
        // Nothing but a good-bye can be written to it any more.
        self.conn.begin_parting();
        channel.queues.renew();
    }

    /// Whether there are no calls, no bodies and nothing to write.
    pub(crate) fn is_quiet(&self) -> bool {
        let channel = &self.conn.channel;
        channel.pending.in_flight() == 0 && self.conn.backlog() == 0 && channel.windows() == 0
    }

    /// Notes the end of the connection. Returns `true` if messages wait for the next one.
    fn ended(&self, reason: &CloseReason) -> bool {
        *self.conn.last_close.lock() = Some(Arc::new(reason.clone()));
        let mut dialer = self.dialer.lock();
        self.is_open.store(false, Ordering::Release);
        // Closed until the next dial. A caller that is refused meanwhile dials.
        let wakers = self.conn.channel.close();
        let was_idle = dialer.state() == DialState::Ending;
        if was_idle {
            self.conn.detach();
            dialer.lost();
        }
        drop(dialer);
        wake(wakers);
        if !was_idle {
            self.lost(&Fault::Disconnected, Dialer::lost);
        }
        was_idle && self.conn.channel.queues.queued().1 > 0
    }

    /// The peer takes no new requests.
    fn draining(&self) {
        let mut dialer = self.dialer.lock();
        dialer.draining();
        if dialer.state() == DialState::Draining {
            self.is_open.store(false, Ordering::Release);
            let wakers = self.conn.channel.close();
            drop(dialer);
            wake(wakers);
        }
    }

    /// No more connections.
    pub(crate) fn close(&self) {
        self.conn
            .last_close
            .lock()
            .get_or_insert_with(|| Arc::new(CloseReason::Closed));
        self.dialer.lock().close();
        self.is_open.store(false, Ordering::Release);
        self.refuse_new();
        self.conn.close(CloseReason::Closed);
        // Where no task runs, nothing else would end the calls that wait.
        self.conn.channel.pending.fail_all(&Fault::Disconnected);
        self.changed.notify_one();
    }

    /// Queues no new messages until the next connection is dialled. Who waits for room asks anew whether there is a
    /// way.
    fn refuse_new(&self) {
        wake(self.conn.channel.close());
    }

    /// The connection is lost, or there will be none: what is queued is dropped. Only then `say` tells the dialer, so
    /// that the next caller that asks it finds the queues empty.
    fn lost<R>(&self, fault: &Fault, say: impl FnOnce(&mut Dialer) -> R) -> R {
        self.refuse_new();
        self.conn.disconnect(fault);
        say(&mut self.dialer.lock())
    }

    /// Whether it will never be connected again.
    pub(crate) fn is_closed(&self) -> bool {
        self.dialer.lock().state() == DialState::Closed
    }

    /// Where it stands, for people.
    pub(crate) fn state(&self, now_ms: u64) -> PeerState {
        match self.dialer.lock().state() {
            DialState::Idle => PeerState::Idle,
            DialState::Dialing => PeerState::Connecting,
            DialState::Up | DialState::Ending => PeerState::Connected,
            DialState::Draining => PeerState::Draining,
            DialState::Backoff { until_ms } => PeerState::Unreachable {
                retry_in: Duration::from_millis(until_ms.saturating_sub(now_ms)),
            },
            DialState::Closed => PeerState::Closed,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(
            self.dialer.lock().state(),
            DialState::Up | DialState::Draining | DialState::Ending
        )
    }
}

/// The task of a link. When it is dropped before its end, by a panic or with its runtime, the link learns of it: it
/// would count as connecting, or connected, for ever otherwise.
struct Running {
    inner: Arc<Inner>,
    peer: Arc<Peer>,
    class: ConnectionClass,
    has_ended: bool,
    _alive: Alive,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let error = TransportError::Io {
            action: "go on with the connection",
            reason: "its task ended: the connector or the stream panicked, or the runtime is gone"
                .to_owned(),
        };
        let link = self.peer.link(self.class);
        let fault = if link.is_up() {
            let reason = CloseReason::Io(error.to_string());
            *link.conn.last_close.lock() = Some(Arc::new(reason));
            Fault::Disconnected
        } else {
            Fault::Unreachable
        };
        fail(&self.inner, &self.peer, link, fault, error);
    }
}

/// Dials, and runs the connection until it ends.
async fn run(mut task: Running) {
    connected(&task.inner, &task.peer, task.class).await;
    task.has_ended = true;
}

async fn connected(inner: &Arc<Inner>, peer: &Arc<Peer>, class: ConnectionClass) {
    let link = peer.link(class);
    link.conn.reopen();
    let mut address = peer.address.lock().clone();
    let (established, welcome) = loop {
        let error = match dial_while_wanted(inner, peer, class, &address).await {
            Ok(dialled) => break dialled,
            Err(error) => error,
        };
        if link.is_closed() {
            link.lost(&Fault::Unreachable, |_| ());
            return;
        }
        let now = peer.address.lock().clone();
        if now == address {
            fail(inner, peer, link, Fault::Unreachable, error);
            let now = peer.address.lock();
            if *now != address {
                // Given while the failure was noted.
                link.dialer.lock().moved();
            }
            return;
        }
        // What failed is not where the peer is: what waits goes there.
        address = now;
        inner.counts.dial_failed();
        link.dials.fetch_add(1, Ordering::Relaxed);
    };
    let hears = welcome.features & FEATURE_GOODBYE != 0;
    link.conn.hears_goodbye.store(hears, Ordering::Relaxed);
    link.stream_window_bytes
        .store(welcome.stream_window_bytes, Ordering::Relaxed);
    link.streams_max
        .store(welcome.streams_max, Ordering::Relaxed);
    // What the peer takes may have grown or shrunk since the last connection, by another configuration.
    link.conn
        .frame_bytes_max
        .store(welcome.frame_bytes_max, Ordering::Relaxed);
    let traces = welcome.features & FEATURE_TRACE != 0;
    link.conn.hears_traces.store(traces, Ordering::Relaxed);
    link.conn.channel.fit_to(Takes {
        frame_bytes_max: welcome.frame_bytes_max,
        traces,
        watches: welcome.features & FEATURE_WATCH != 0,
    });
    if !link.connected() {
        link.lost(&Fault::Unreachable, |_| ());
        return;
    }
    #[cfg(feature = "tls")]
    inner.check_again(&link.conn, crate::tls::Side::Dialled);
    inner.counts.connected(true);
    inner.events.report(PeerEvent::Connected {
        peer: peer.id,
        class,
    });
    let role = ClientRole {
        client: Client::new(),
        queued: false,
        peer: Arc::clone(peer),
        class,
    };
    let conn = Arc::clone(&link.conn);
    let (reason, _) = session::run(conn, established, inner.config.outbox_bytes, role).await;
    parting::say(&link.conn, &reason, inner.local.checksum).await;
    inner.counts.connected(false);
    inner.counts.transferred(&link.conn);
    let is_wanted = link.ended(&reason);
    inner.events.report(PeerEvent::Lost {
        peer: peer.id,
        class,
        reason,
    });
    if is_wanted {
        // Refused: the transport shuts down.
        let _ = link.admit(peer, inner);
    }
}

fn wake(wakers: Vec<Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}

fn fail(inner: &Inner, peer: &Peer, link: &Link, fault: Fault, error: TransportError) {
    link.conn.note_dial_error(error.clone());
    let failures = link.lost(&fault, |dialer| {
        dialer.failed(inner.now_ms());
        dialer.failures()
    });
    inner.counts.dial_failed();
    inner.events.report(PeerEvent::Unreachable {
        peer: peer.id,
        class: link.class,
        failures,
        error,
    });
}

/// Dials until the peer has another address or the link is closed.
async fn dial_while_wanted(
    inner: &Inner,
    peer: &Peer,
    class: ConnectionClass,
    address: &str,
) -> Result<(Established, Welcome), TransportError> {
    let link = peer.link(class);
    let mut dial = pin!(dial(inner, peer, class, address));
    loop {
        tokio::select! {
            dialled = &mut dial => return dialled,
            () = link.changed.notified(), if !mutant::is("dial_outlives_want") => {}
        }
        let is_wanted = !link.is_closed() && *peer.address.lock() == address;
        if !is_wanted {
            return Err(TransportError::Io {
                action: "go on with the dial",
                reason: format!("{address} is not dialled any more"),
            });
        }
    }
}

async fn dial(
    inner: &Inner,
    peer: &Peer,
    class: ConnectionClass,
    address: &str,
) -> Result<(Established, Welcome), TransportError> {
    let stream = connect(inner, class, address).await?;
    let time = inner.config.handshake_timeout;
    let shaken = timeout(time, shake(inner, peer, class, (stream, address))).await;
    let late = HandshakeError::Timeout {
        timeout_ms: crate::config::millis(time),
    };
    shaken
        .unwrap_or(Err(late))
        .map_err(|error| TransportError::Handshake {
            peer: Some(peer.id),
            error,
        })
}

async fn connect(
    inner: &Inner,
    class: ConnectionClass,
    address: &str,
) -> Result<Box<dyn ByteStream>, TransportError> {
    let config = &inner.config;
    let options = StreamOptions {
        nodelay: config.nodelay,
        send_buffer_bytes: match class {
            ConnectionClass::Control => None,
            ConnectionClass::Bulk => config.bulk_send_buffer_bytes,
        },
    };
    let connected = timeout(
        config.dial_timeout,
        inner.connector.connect(address, options),
    )
    .await
    .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    connected.map_err(|error| TransportError::Io {
        action: "connect to the peer",
        reason: format!("{address}: {error}"),
    })
}

async fn shake(
    inner: &Inner,
    peer: &Peer,
    class: ConnectionClass,
    (stream, address): (Box<dyn ByteStream>, &str),
) -> Result<(Established, Welcome), HandshakeError> {
    let authenticated = stream.authenticated_node();
    if let Some(found) = authenticated.filter(|found| *found != peer.id) {
        let expected = peer.id;
        return Err(HandshakeError::Node { expected, found });
    }
    #[cfg(feature = "tls")]
    let identity_era = inner.identity_era();
    #[cfg(feature = "tls")]
    let (stream, certificate) = match inner.security() {
        crate::security::Security::MutualTls(identity) => {
            let cluster = &inner.local.cluster;
            let (stream, certificate) = identity.connect(stream, peer.id, cluster).await?;
            (stream, Some(certificate))
        }
        crate::security::Security::InsecurePlaintext => (stream, None),
    };
    let (mut read, mut write) = stream.into_halves();
    let number = inner.next_connection.fetch_add(1, Ordering::Relaxed);
    let hello = inner.local.hello(peer.id, number, class);
    let checksum = inner.local.checksum;
    write_frame(&mut write, Kind::Hello, &hello, checksum).await?;
    let (first, most) = inner.config.read_bytes;
    let mut buffer = ReadBuffer::new(first, most);
    let frame = read_frame(&mut read, &mut buffer, checksum).await?;
    let welcome = check_welcome(&inner.local, peer.id, &frame.header, &frame.payload)?;
    *peer.link(class).conn.info.lock() = Some(Info {
        address: address.to_owned(),
        class,
        incarnation: welcome.incarnation,
        #[cfg(feature = "tls")]
        certificate,
        #[cfg(feature = "tls")]
        identity_era,
    });
    let established = Established {
        read,
        write,
        buffer,
        decoder: Decoder::new(inner.local.frame_bytes_max, checksum),
    };
    Ok((established, welcome))
}

/// The dialling side's part in a session.
struct ClientRole {
    client: Client,
    queued: bool,
    peer: Arc<Peer>,
    class: ConnectionClass,
}

impl Role for ClientRole {
    #[inline]
    fn receive(&mut self, frame: FrameRef<'_>, conn: &Arc<Conn>) -> Result<(), FrameError> {
        let was_draining = self.client.is_draining();
        let mut frame = frame.to_frame();
        if frame.header.kind == Kind::StreamChunk {
            // It may lie there unread for long, and must not keep the memory around it.
            frame.payload = Bytes::copy_from_slice(&frame.payload);
        }
        self.queued |= self.client.receive(frame, &conn.channel)?;
        if self.client.is_draining() && !was_draining {
            self.peer.link(self.class).draining();
        }
        Ok(())
    }

    #[inline]
    fn batch_end(&mut self, conn: &Conn) -> bool {
        conn.peer_busy.store(self.client.busy(), Ordering::Relaxed);
        std::mem::take(&mut self.queued)
    }

    fn is_overloaded(&self, _conn: &Conn) -> bool {
        false
    }

    fn has_said_goodbye(&self) -> bool {
        self.client.is_draining()
    }

    #[inline]
    fn in_flight(&self, conn: &Conn) -> usize {
        conn.channel.pending.in_flight()
    }
}
