//! Accepts connections: a bounded number, a bounded number of handshakes, a bounded time each.

use super::conn::{Conn, Info};
use super::handshake::{answer, hear, refuse};
use super::handshakes::{HandshakeBounds, Handshakes, Place};
use super::parting;
use super::serve::{ServeLimits, ServeRole};
use super::session::{self, Established};
use crate::accept::Arrival;
use crate::connect::{BoxRead, BoxWrite, ByteStream, Listener};
use crate::error::TransportError;
use crate::event::{CloseReason, PeerEvent};
use crate::message::Origin;
use crate::primitive::mutant;
use crate::proto::{
    Accepted, Channel, Decoder, Fault, HandshakeError, ReadBuffer, Server, ServerLimits,
};
use crate::transport::{Alive, Handshaking, Inner};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// After an error of the listener (too many open files, usually) it is asked again, but not at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the transport shuts down.
pub(crate) async fn run(inner: Arc<Inner>, mut listener: Box<dyn Listener>) {
    let config = &inner.config;
    let bounds = HandshakeBounds::new(config.handshakes_max, config.inbound_max);
    let handshakes = Handshakes::new(bounds, config.handshake_timeout);
    let inbound_max = config.inbound_max.min(Semaphore::MAX_PERMITS);
    let connections = Arc::new(Semaphore::new(inbound_max));
    let mut stop = inner.stop.subscribe();
    let mut last_failure = None;
    loop {
        let next = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            next = accept(&mut *listener) => next,
        };
        let (stream, from) = match next {
            Ok(accepted) => accepted,
            Err(error) if is_of_peer(&error) => continue,
            Err(error) => {
                let failure = Some(error.to_string());
                if failure != last_failure {
                    inner.events.report(accept_failed(&error));
                    last_failure = failure;
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        last_failure = None;
        let Some(handshaking) = inner.begin_handshake() else {
            // The node drains. Peers that dial again must not keep it from its end.
            continue;
        };
        let Ok(connection) = Arc::clone(&connections).try_acquire_owned() else {
            let error = TransportError::Configuration {
                reason: format!(
                    "{} connections are accepted, no more are allowed: raise inbound_max",
                    inner.config.inbound_max
                ),
            };
            inner.events.report(PeerEvent::Refused { from, error });
            continue;
        };
        let host = source_of(&from);
        let is_known = inner.is_known_source(&host) && !mutant::is("known_sources_forgotten");
        let source = network_of(&host);
        let place = match handshakes.enter(&source, is_known) {
            Some(place) => Ok(place),
            None => Err(handshakes.wait(is_known)),
        };
        let inner = Arc::clone(&inner);
        let refuse = |inner: &Inner, from| {
            let handshakes_max = inner.config.handshakes_max;
            let error = HandshakeError::Displaced { handshakes_max };
            let error = TransportError::Handshake { peer: None, error };
            inner.events.report(PeerEvent::Refused { from, error });
        };
        if let Err(None) = place {
            refuse(&inner, from);
            continue;
        }
        let mut stop = inner.stop.subscribe();
        // Others are accepted while this one waits.
        tokio::spawn(async move {
            let _connection = connection;
            let time = inner.config.handshake_timeout;
            let place = match place {
                Ok(place) => Some(place),
                Err(Some(waiting)) => tokio::select! {
                    place = waiting.place(&source, is_known, time) => place,
                    _ = stop.wait_for(|stop| *stop) => None,
                },
                Err(None) => None,
            };
            match place {
                Some(place) => serve(&inner, stream, from, place, handshaking).await,
                None => refuse(&inner, from),
            }
        });
    }
}

/// Whether an error is about one stream, whose peer is gone before it was accepted. The next one can be accepted at
/// once.
fn is_of_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, NotConnected};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | NotConnected
    )
}

fn accept_failed(error: &io::Error) -> PeerEvent {
    PeerEvent::AcceptFailed {
        error: TransportError::Io {
            action: "accept a connection",
            reason: error.to_string(),
        },
    }
}

/// The next stream. A listener that panics has failed, and is asked again.
async fn accept(listener: &mut dyn Listener) -> io::Result<(Box<dyn ByteStream>, String)> {
    let mut next = Box::pin(async move { listener.accept().await });
    poll_fn(move |cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| next.as_mut().poll(cx)));
        let panicked = |_| Poll::Ready(Err(io::Error::other("the listener panicked")));
        polled.unwrap_or_else(panicked)
    })
    .await
}

/// The host, where a stream's origin is an address with a port. Each IP address has one spelling: a listener for both
/// families says those of IPv4 as ones of IPv6.
pub(crate) fn source_of(from: &str) -> String {
    if let Ok(address) = from.parse::<SocketAddr>() {
        return address.ip().to_canonical().to_string();
    }
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match from.rsplit_once(':') {
        Some((host, port)) if is_port(port) => host.to_owned(),
        _ => from.to_owned(),
    }
}

/// Of an address of IPv6 its network of 64 bits, all of which one machine may have; other hosts are what they are.
fn network_of(host: &str) -> String {
    let Ok(address) = host.parse::<Ipv6Addr>() else {
        return host.to_owned();
    };
    let host_bits = u128::from(u64::MAX);
    format!("{}/64", Ipv6Addr::from_bits(address.to_bits() & !host_bits))
}

/// What a handshake leaves behind.
struct Shaken {
    accepted: Accepted,
    read: BoxRead,
    write: BoxWrite,
    buffer: ReadBuffer,
    info: Info,
}

async fn shake(
    inner: &Inner,
    stream: Box<dyn ByteStream>,
    from: &str,
    place: &Place,
    handshaking: &mut Handshaking,
) -> Result<Shaken, HandshakeError> {
    let authenticated = stream.authenticated_node();
    #[cfg(feature = "tls")]
    let identity_era = inner.identity_era();
    #[cfg(feature = "tls")]
    let (stream, certificate) = match inner.security() {
        crate::security::Security::MutualTls(identity) => {
            let (stream, certificate) = identity.accept(stream, || place.spoken()).await?;
            (stream, Some(certificate))
        }
        crate::security::Security::InsecurePlaintext => (stream, None),
    };
    let (mut read, mut write) = stream.into_halves();
    let (first, most) = inner.config.read_bytes;
    let mut buffer = ReadBuffer::new(first, most);
    let local = &inner.local;
    let decided = async {
        let accepted = hear(local, &mut read, &mut buffer, || place.spoken()).await?;
        let node = accepted.node;
        if let Some(found) = authenticated
            && found != node
        {
            let expected = node;
            return Err(HandshakeError::Node { expected, found });
        }
        #[cfg(feature = "tls")]
        if let Some(certificate) = &certificate {
            certificate.is_of(node, &local.cluster)?;
        }
        handshaking.is_of(node)?;
        let arrival = Arrival {
            node,
            incarnation: accepted.incarnation,
            class: accepted.class,
            from: from.to_owned(),
            is_known: inner.is_known(node),
            is_duplicate: inner.has_other_process(node, accepted.incarnation),
            #[cfg(feature = "tls")]
            certificate: certificate.as_ref().map(|shown| shown.der().to_vec()),
            #[cfg(not(feature = "tls"))]
            certificate: None,
        };
        if inner.config.known_peers_only && !arrival.is_known {
            return Err(HandshakeError::UnknownNode { node });
        }
        // The hook may take its time: neither do strangers wait for it, nor do they take the peer's turn.
        if !mutant::is("hook_holds_place") {
            place.proven();
        }
        ask(inner, arrival).await?;
        Ok(accepted)
    };
    let decided = decided.await;
    match decided {
        Ok(accepted) => {
            answer(local, &mut write, &accepted).await?;
            let info = Info {
                address: from.to_owned(),
                class: accepted.class,
                incarnation: accepted.incarnation,
                #[cfg(feature = "tls")]
                certificate,
                #[cfg(feature = "tls")]
                identity_era,
            };
            Ok(Shaken {
                accepted,
                read,
                write,
                buffer,
                info,
            })
        }
        Err(error) => {
            refuse(local, &mut write, &error).await;
            Err(error)
        }
    }
}

/// Asks the hook, if there is one. One that panics has refused.
async fn ask(inner: &Inner, arrival: Arrival) -> Result<(), HandshakeError> {
    let Some(hook) = inner.hook.clone().filter(|_| !mutant::is("hook_not_asked")) else {
        return Ok(());
    };
    let node = arrival.node;
    // In a task of its own, whose end is heard of whatever it is.
    let answer = tokio::spawn(async move { hook(arrival).await });
    let answer = AbortOnDrop(answer);
    let refused = |reason: String| HandshakeError::Hook { node, reason };
    match answer.await {
        Ok(answer) => answer.map_err(refused),
        Err(_) => Err(refused("the accept hook panicked".to_owned())),
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An accepted connection: it ends with its task, also if that panics or the runtime ends.
struct Inbound {
    inner: Arc<Inner>,
    conn: Arc<Conn>,
    number: u64,
    _alive: Alive,
}

impl Drop for Inbound {
    fn drop(&mut self) {
        if mutant::is("handlers_outlive_task") {
            return;
        }
        self.conn.running.stop_all();
        self.conn.close(CloseReason::Closed);
        self.conn.disconnect(&Fault::Disconnected);
        self.inner.retire_inbound(self.number);
        self.inner.forget_inbound(self.number);
    }
}

async fn serve(
    inner: &Arc<Inner>,
    stream: Box<dyn ByteStream>,
    from: String,
    place: Place,
    mut handshaking: Handshaking,
) {
    let time = inner.config.handshake_timeout;
    let shaken = tokio::select! {
        () = place.displaced() => Err(HandshakeError::Displaced {
            handshakes_max: inner.config.handshakes_max,
        }),
        shaken = timeout(time, shake(inner, stream, &from, &place, &mut handshaking)) => {
            shaken.unwrap_or({
                Err(HandshakeError::Timeout {
                    timeout_ms: crate::config::millis(time),
                })
            })
        }
    };
    drop(place);
    let Shaken {
        accepted,
        read,
        write,
        buffer,
        info,
    } = match shaken {
        Ok(shaken) => shaken,
        Err(error) => {
            let error = TransportError::Handshake { peer: None, error };
            inner.events.report(PeerEvent::Refused { from, error });
            return;
        }
    };
    inner.remember_source(&source_of(&from));
    let config = &inner.config;
    let limits = config.channel(accepted.class, inner.local.checksum);
    let (peer, class) = (accepted.node, accepted.class);
    let conn = Arc::new(Conn::new(peer, Channel::new(limits)));
    *conn.info.lock() = Some(info);
    let is_duplicate = inner.has_other_process(peer, accepted.incarnation);
    let number = inner.add_inbound(&conn, handshaking);
    let inbound = Inbound {
        inner: Arc::clone(inner),
        conn: Arc::clone(&conn),
        number,
        _alive: inner.alive(),
    };
    let is_known = inner.is_known(peer);
    // What was changed while hands were shaken holds for this connection, too.
    if config.known_peers_only && !is_known && !mutant::is("removed_peer_stays") {
        conn.close(CloseReason::Closed);
    }
    #[cfg(feature = "tls")]
    inner.check_again(&conn, crate::tls::Side::Accepted);
    // The peer lives, whatever came of dialling it before.
    inner.forget_failures(peer);
    if is_duplicate {
        let from = from.clone();
        inner.events.report(PeerEvent::Duplicate { peer, from });
    }
    inner.events.report(PeerEvent::Accepted {
        peer,
        class,
        from,
        is_known,
    });
    let role = ServeRole::new(
        Server::new(ServerLimits {
            streams_max: config.streams_max as usize,
            stream_window_bytes: config.stream_window_bytes,
        }),
        Arc::clone(&inner.router),
        Origin {
            node: peer,
            incarnation: accepted.incarnation,
            connection: accepted.connection,
            sequence: 0,
        },
        ServeLimits {
            handlers_max: config.handlers_max,
            handlers_per_method_max: config.handlers_per_method_max,
            held_max: config.calls_max,
            handler_bytes_max: config.handler_bytes_max,
            backlog_bytes_max: config.queue_bytes[class as usize * 2]
                .saturating_add(config.outbox_bytes),
            frame_bytes_max: accepted.welcome.frame_bytes_max as usize,
        },
        (inner.local.checksum, accepted.stream_window_bytes),
        Arc::clone(&inner.unhandled),
        #[cfg(feature = "metrics")]
        inner.method_metrics.clone(),
    );
    let established = Established {
        read,
        write,
        buffer,
        decoder: Decoder::new(inner.local.frame_bytes_max, inner.local.checksum),
    };
    let (reason, mut role) =
        session::run(Arc::clone(&conn), established, config.outbox_bytes, role).await;
    role.lost();
    conn.running.stop_all();
    conn.close(reason.clone());
    parting::say(&conn, &reason, inner.local.checksum).await;
    conn.disconnect(&Fault::Disconnected);
    inner.retire_inbound(number);
    inner.counts.transferred(&conn);
    inner.events.report(PeerEvent::Ended {
        peer,
        class,
        reason,
    });
    // Its other handlers go on, and its place is theirs until they end: otherwise a peer that connects again could have
    // any number.
    let mut stop = inner.stop.subscribe();
    while !conn.is_handled() {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep(config.tick) => {}
        }
    }
    drop(inbound);
}

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::*;

    /// The address that a listener for both families says, other spellings of one address, and origins that are no
    /// addresses.
    #[test]
    fn a_host_has_one_name() {
        for (from, source) in [
            ("10.0.0.7:7000", "10.0.0.7"),
            ("[::ffff:10.0.0.7]:7000", "10.0.0.7"),
            ("[2001:db8:0:0::7]:7000", "2001:db8::7"),
            ("[2001:DB8::7]:1", "2001:db8::7"),
            ("node-7.example:7000", "node-7.example"),
            ("unix:/run/node-7.sock", "unix:/run/node-7.sock"),
            ("", ""),
        ] {
            assert_eq!(source_of(from), source, "{from}");
        }
    }

    /// Whoever has one address of IPv6 has all of its network: they count as one source.
    #[test]
    fn addresses_of_one_network_are_one_source() {
        let network = network_of("2001:db8:1:2::7");
        assert_eq!(network, network_of("2001:db8:1:2:ffff::9"));
        assert_ne!(network, network_of("2001:db8:1:3::7"));
        assert_eq!(network_of("10.0.0.7"), "10.0.0.7");
        assert_eq!(network_of("node-7.example"), "node-7.example");
    }
}
