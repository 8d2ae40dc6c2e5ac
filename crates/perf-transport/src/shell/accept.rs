//! Accepts connections: a bounded number, a bounded number of handshakes, a bounded time each.

use super::conn::Conn;
use super::handshake::welcome;
use super::serve::{ServeLimits, ServeRole};
use super::session::{self, Established};
use crate::connect::{BoxRead, BoxWrite, ByteStream, Listener};
use crate::error::TransportError;
use crate::event::PeerEvent;
use crate::message::Origin;
use crate::proto::{
    Accepted, Channel, Decoder, Fault, HandshakeError, ReadBuffer, Server, ServerLimits,
};
use crate::transport::{Handshaking, Inner};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// After an error of the listener (too many open files, usually) it is asked again, but not at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the transport shuts down.
pub(crate) async fn run(inner: Arc<Inner>, mut listener: Box<dyn Listener>) {
    let handshakes = Arc::new(Semaphore::new(inner.config.handshakes_max));
    let connections = Arc::new(Semaphore::new(inner.config.inbound_max));
    let mut stop = inner.stop.subscribe();
    loop {
        let next = async {
            let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
                return None;
            };
            Some((permit, listener.accept().await))
        };
        let next = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            next = next => next,
        };
        match next {
            None => return,
            Some((_, Err(_))) => tokio::time::sleep(ACCEPT_PAUSE).await,
            Some((permit, Ok((stream, from)))) => {
                let Some(handshaking) = inner.begin_handshake() else {
                    // Whoever dialled again would keep this node from ever being done.
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
                let inner = Arc::clone(&inner);
                tokio::spawn(async move {
                    let _connection = connection;
                    serve(&inner, stream, from, (permit, handshaking)).await;
                });
            }
        }
    }
}

/// What a handshake leaves behind.
struct Shaken {
    accepted: Accepted,
    read: BoxRead,
    write: BoxWrite,
    buffer: ReadBuffer,
}

async fn shake(inner: &Inner, stream: Box<dyn ByteStream>) -> Result<Shaken, HandshakeError> {
    #[cfg(feature = "tls")]
    let (stream, certificate) = match &inner.security {
        crate::security::Security::MutualTls(identity) => {
            let (stream, certificate) = identity.accept(stream).await?;
            (stream, Some(certificate))
        }
        crate::security::Security::InsecurePlaintext => (stream, None),
    };
    let check = |_node: u64| {
        #[cfg(feature = "tls")]
        if let Some(certificate) = &certificate {
            certificate.is_of(_node, &inner.local.cluster)?;
        }
        Ok(())
    };
    let (mut read, mut write) = stream.into_halves();
    let (first, most) = inner.config.read_bytes;
    let mut buffer = ReadBuffer::new(first, most);
    let accepted = welcome(&inner.local, &mut read, &mut write, &mut buffer, check).await?;
    Ok(Shaken {
        accepted,
        read,
        write,
        buffer,
    })
}

async fn serve(
    inner: &Arc<Inner>,
    stream: Box<dyn ByteStream>,
    from: String,
    (permit, handshaking): (OwnedSemaphorePermit, Handshaking),
) {
    let time = inner.config.handshake_timeout;
    let shaken = timeout(time, shake(inner, stream)).await.unwrap_or({
        Err(HandshakeError::Timeout {
            timeout_ms: crate::config::millis(time),
        })
    });
    drop(permit);
    let Shaken {
        accepted,
        read,
        write,
        buffer,
    } = match shaken {
        Ok(shaken) => shaken,
        Err(error) => {
            let error = TransportError::Handshake { peer: None, error };
            inner.events.report(PeerEvent::Refused { from, error });
            return;
        }
    };
    let config = &inner.config;
    let limits = config.channel(accepted.class, inner.local.checksum);
    let conn = Arc::new(Conn::new(accepted.node, Channel::new(limits)));
    let number = inner.add_inbound(&conn, handshaking);
    let (peer, class) = (accepted.node, accepted.class);
    inner.events.report(PeerEvent::Accepted { peer, class });
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
            backlog_bytes_max: config.queue_bytes[class as usize * 2] + config.outbox_bytes,
            frame_bytes_max: accepted.welcome.frame_bytes_max as usize,
        },
        inner.local.checksum,
        Arc::clone(&inner.unhandled),
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
    conn.disconnect(&Fault::Disconnected);
    inner.retire_inbound(number);
    inner.counts.transferred(&conn);
    inner.events.report(PeerEvent::Ended {
        peer,
        class,
        reason,
    });
    // Its other handlers go on, and its place is theirs until they end: otherwise a peer that connects again could have any number.
    let mut stop = inner.stop.subscribe();
    while !conn.is_handled() {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep(config.tick) => {}
        }
    }
    inner.forget_inbound(number);
}
