//! What an operator sees of each node.

#![cfg(not(perf_loom))]

mod support;

use perf_transport::{
    BoxFuture, ByteStream, Config, Connector, Envelope, PeerState, PeerStatus, Priority, Router,
    StreamOptions, TcpConnector, Transport, TransportError,
};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use support::{address, pair, plain, soon, until};
use tokio::sync::Notify;

fn echo() -> Router {
    Router::new().inline("vm", "echo", |_, _| Ok(()))
}

fn of(transport: &Transport, peer: u64) -> PeerStatus {
    let all = transport.peers();
    let found = all.into_iter().find(|status| status.peer == peer);
    found.expect("a status")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_are_shown_with_what_went_wrong() {
    let (client, server) = pair(echo(), Config::default()).await;
    assert_eq!(client.peer_ids(), [2]);
    let before = of(&client, 2);
    assert_eq!((before.state, before.is_known), (PeerState::Idle, true));
    soon(client.call(Envelope::new(2, "vm", "echo", b"x")))
        .await
        .expect("a reply");
    let status = of(&client, 2);
    assert_eq!(status.state, PeerState::Connected);
    assert_eq!(status.address.as_deref(), server.address());
    assert_eq!(status.connections.iter().filter(|one| one.is_up).count(), 1);
    assert_eq!(
        (status.last_error, status.certificate_expires_at),
        (None, None)
    );
    // The other side has not been told of this node, and shows it all the same.
    let status = of(&server, 1);
    assert!(!status.is_known && status.address.is_none());
    assert_eq!(status.connections.len(), 1);
    assert!(status.connections[0].is_up && !status.connections[0].is_dialled);
    // A peer that does not answer: what is queued for it is seen, then why it cannot be reached.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback");
    client.add_peer(3, silent.local_addr().expect("bound").to_string());
    client
        .send(Envelope::new(3, "vm", "echo", vec![7; 100]))
        .expect("room");
    let status = of(&client, 3);
    assert_eq!(status.state, PeerState::Connecting);
    let normal = status.queues[2];
    // The name of the method, and the message.
    assert_eq!(normal.frames, 2);
    assert!((116..200).contains(&normal.bytes), "{normal:?}");
    client.add_peer(4, "127.0.0.1:1");
    soon(client.call(Envelope::new(4, "vm", "echo", b"x")))
        .await
        .expect_err("nobody listens there");
    assert!(of(&client, 4).last_error.is_some());
    let is_unreachable = |status: &PeerStatus| {
        let at_most = Duration::from_secs(2);
        matches!(status.state, PeerState::Unreachable { retry_in } if retry_in <= at_most)
    };
    // The caller learns of it a moment before the state does.
    until(|| is_unreachable(&of(&client, 4))).await;
    // A peer that leaves.
    let client_sees = client.clone();
    let leaving = tokio::spawn(async move { server.drain(Duration::from_secs(5)).await });
    until(|| of(&client_sees, 2).state != PeerState::Connected).await;
    assert!(soon(leaving).await.expect("no panics"));
    client.remove_peer(2);
    assert!(client.peers().iter().all(|status| status.peer != 2));
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_expiry_of_certificates_is_shown_on_both_sides() {
    use perf_transport::{Security, TlsIdentity, node_name};
    use std::time::SystemTime;
    let authority = support::certificates::Authority::new();
    let identity = |node, seconds| {
        let (chain, key) = authority.issue_for(&node_name(node, "test"), -60, seconds);
        let authority = authority.pem().as_bytes();
        let identity = TlsIdentity::from_pem(authority, chain.as_bytes(), key.as_bytes());
        Security::MutualTls(identity.expect("sound"))
    };
    let (short, long) = (1000, 100_000);
    let server = Transport::builder(2, "test", identity(2, long)).router(echo());
    let server = server.listen("127.0.0.1:0").start().await.expect("starts");
    let client = Transport::builder(1, "test", identity(1, short));
    let client = client.peer(2, support::address(&server)).start();
    let client = client.await.expect("starts");
    soon(client.call(Envelope::new(2, "vm", "echo", b"x")))
        .await
        .expect("a reply");
    let left = |transport: &Transport, peer| {
        let at = of(transport, peer).certificate_expires_at.expect("TLS");
        at.duration_since(SystemTime::now())
            .expect("later")
            .as_secs()
    };
    assert!((short as u64..long as u64).contains(&left(&client, 2)));
    assert!(left(&server, 1) <= short as u64);
}

#[tokio::test]
async fn a_node_without_peers_shows_none() {
    let alone = plain(1).start().await.expect("starts");
    assert!(alone.peers().is_empty() && alone.peer_ids().is_empty());
}

/// A peer has moved. The next call goes to where it is now, however long ago and often it was not found at the old
/// address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_has_moved_is_dialled_at_once() {
    let server = plain(2).router(echo()).listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let mut config = Config::default();
    config.backoff = (Duration::from_secs(600), Duration::from_secs(600));
    let client = plain(1).config(config).peer(2, "127.0.0.1:1");
    let client = client.start().await.expect("starts");
    let call = || client.call(Envelope::new(2, "vm", "echo", b"x"));
    for _ in 0..2 {
        let refused = soon(call()).await.expect_err("nobody listens there");
        assert!(
            matches!(refused, TransportError::Unreachable { .. }),
            "{refused}"
        );
    }
    // The same address says nothing new.
    client.add_peer(2, "127.0.0.1:1");
    assert!(soon(call()).await.is_err());
    // Calls hear of a failed dial a moment before the link does; one in between would fail too.
    until(|| matches!(of(&client, 2).state, PeerState::Unreachable { .. })).await;
    client.add_peer(2, address(&server));
    assert!(soon(call()).await.is_ok());
}

/// The two connections of a peer fail for different reasons.
struct FailsByClass;

impl Connector for FailsByClass {
    fn connect<'a>(
        &'a self,
        _: &'a str,
        options: StreamOptions,
    ) -> BoxFuture<'a, io::Result<Box<dyn ByteStream>>> {
        let text = match options.send_buffer_bytes {
            Some(_) => "bulk is down",
            None => "control is down",
        };
        Box::pin(async move { Err(io::Error::other(text)) })
    }
}

/// A message that is refused while its connection may not be dialled is told why that connection failed, and not why
/// the other one did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_connection_has_its_own_reason() {
    let mut config = Config::default();
    config.backoff = (Duration::from_secs(600), Duration::from_secs(600));
    config.bulk_send_buffer_bytes = Some(1 << 16);
    let client = plain(1).config(config).connector(FailsByClass);
    let client = client.peer(2, "nowhere").start().await.expect("starts");
    let envelope = |priority| Envelope::new(2, "vm", "echo", b"x").with_priority(priority);
    let reason = |error: &TransportError| {
        let source = std::error::Error::source(error);
        source.map(ToString::to_string).unwrap_or_default()
    };
    for (priority, text) in [
        (Priority::Critical, "control is down"),
        (Priority::Normal, "bulk is down"),
    ] {
        let error = soon(client.call(envelope(priority))).await;
        let error = error.expect_err("it fails");
        assert!(reason(&error).contains(text), "{error:?}");
    }
    let both = |status: &PeerStatus| {
        status
            .connections
            .iter()
            .all(|one| one.last_error.is_some())
    };
    until(|| both(&of(&client, 2))).await;
    until(|| {
        let refused = client.send(envelope(Priority::Normal)).expect_err("refused");
        let is_noted =
            matches!(refused.error, TransportError::Unreachable { retry_in_ms, .. } if retry_in_ms > 0);
        is_noted && reason(&refused.error).contains("bulk is down")
    })
    .await;
    let refused = client.send(envelope(Priority::High)).expect_err("refused");
    assert!(reason(&refused.error).contains("control is down"));
}

/// Attempts at the address `old` say that they have begun, and wait until they are told to fail.
struct OldIsSlow {
    begun: Arc<Notify>,
    fail: Arc<Notify>,
}

impl Connector for OldIsSlow {
    fn connect<'a>(
        &'a self,
        address: &'a str,
        options: StreamOptions,
    ) -> BoxFuture<'a, io::Result<Box<dyn ByteStream>>> {
        Box::pin(async move {
            if address == "old" {
                self.begun.notify_one();
                self.fail.notified().await;
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            TcpConnector.connect(address, options).await
        })
    }
}

/// A peer has moved while it was dialled at its old address. What waits goes to where it is now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_that_fails_at_an_old_address_loses_nothing() {
    let server = plain(2).router(echo()).listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let (begun, fail) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let connector = OldIsSlow {
        begun: Arc::clone(&begun),
        fail: Arc::clone(&fail),
    };
    let mut config = Config::default();
    config.dial_timeout = support::PATIENCE;
    let client = plain(1).config(config).connector(connector);
    let client = client.peer(2, "old").start().await.expect("starts");
    let before = client.call(Envelope::new(2, "vm", "echo", b"x"));
    soon(begun.notified()).await;
    client.add_peer(2, address(&server));
    let after = client.call(Envelope::new(2, "vm", "echo", b"y"));
    fail.notify_one();
    assert!(soon(before).await.is_ok());
    assert!(soon(after).await.is_ok());
    assert_eq!(client.peer_stats(2).expect("known").bulk.connects, 1);
}

/// A peer that was down has connected to this node: it lives, and is dialled at the next message, however long the
/// backoff is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_connects_is_not_waited_for() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = free.local_addr().expect("bound").to_string();
    drop(free);
    let mut config = Config::default();
    config.backoff = (Duration::from_secs(600), Duration::from_secs(600));
    let node = plain(1).config(config).router(echo()).peer(2, &at);
    let node = node.listen("127.0.0.1:0").start().await.expect("starts");
    let call = || node.call(Envelope::new(2, "vm", "echo", b"x"));
    assert!(soon(call()).await.is_err());
    until(|| matches!(of(&node, 2).state, PeerState::Unreachable { .. })).await;
    let peer = plain(2).router(echo()).peer(1, address(&node)).listen(&at);
    let peer = peer.start().await.expect("the port is free");
    let hello = peer.call(Envelope::new(1, "vm", "echo", b"here"));
    assert!(soon(hello).await.is_ok());
    assert!(soon(call()).await.is_ok());
}

/// A dial that hangs at an old address, or is not wanted any more, is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_that_is_not_wanted_any_more_is_given_up() {
    let server = plain(2).router(echo()).listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let begun = Arc::new(Notify::new());
    let fail = Arc::new(Notify::new());
    let connector = || OldIsSlow {
        begun: Arc::clone(&begun),
        fail: Arc::clone(&fail),
    };
    let mut config = Config::default();
    config.dial_timeout = support::PATIENCE * 10;
    config.call_timeout = support::PATIENCE * 10;
    let call = |client: &Transport| client.call(Envelope::new(2, "vm", "echo", b"x"));
    // It has moved: what waits goes there at once.
    let client = plain(1).config(config.clone()).connector(connector());
    let client = client.peer(2, "old").start().await.expect("starts");
    let reply = call(&client);
    soon(begun.notified()).await;
    client.add_peer(2, address(&server));
    assert!(soon(reply).await.is_ok());
    // Its node shuts down, or forgets it: the connector's future is dropped with all that it holds.
    for is_removed in [true, false] {
        let client = plain(1).config(config.clone()).connector(connector());
        let client = client.peer(2, "old").start().await.expect("starts");
        let reply = call(&client);
        soon(begun.notified()).await;
        let dials = || Arc::strong_count(&fail);
        let before = dials();
        if is_removed {
            client.remove_peer(2);
        } else {
            client.shutdown();
        }
        assert!(soon(reply).await.is_err());
        drop(client);
        until(|| dials() < before).await;
    }
}
