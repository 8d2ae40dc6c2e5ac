//! Who gets in under mutual TLS, and who does not.

#![cfg(all(feature = "tls", not(perf_loom)))]

mod support;

use perf_transport::proto::Kind;
use perf_transport::{
    CertificateFault, CloseReason, Config, ConnectionClass, Envelope, HandshakeError, PeerEvent,
    Router, Security, TlsIdentity, Transport, TransportError, node_name,
};
use prost::Message;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::sync::Arc;
use std::time::Duration;
use support::certificates::Authority;
use support::{address, raw, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::broadcast::Receiver;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, version};

fn echo() -> Router {
    Router::new().inline("vm", "echo", |message, reply| {
        reply.put_slice(message.payload());
        Ok(())
    })
}

async fn server(authority: &Authority) -> Transport {
    let security = Security::MutualTls(authority.identity(2, "test"));
    let server = Transport::builder(2, "test", security)
        .router(echo())
        .listen("127.0.0.1:0");
    server.start().await.expect("starts")
}

/// What node `node` of `cluster` with this identity gets from the server.
async fn attempt(
    server: &Transport,
    (node, cluster): (u64, &str),
    security: Security,
) -> Result<(), TransportError> {
    let client = Transport::builder(node, cluster, security).peer(2, address(server));
    let client = client.start().await?;
    let reply = soon(client.call(Envelope::new(2, "vm", "echo", b"x"))).await;
    reply.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_certificates_of_the_cluster_and_the_node_get_in() {
    let authority = Authority::new();
    let server = server(&authority).await;
    let tls = Security::MutualTls;
    let own = authority.identity(1, "test");
    assert_eq!(
        attempt(&server, (1, "test"), tls(own.clone())).await,
        Ok(())
    );

    let mut events = server.events();
    // Another authority; another cluster; no encryption.
    let foreign = Authority::new();
    let attempts = [
        ((1, "test"), tls(foreign.identity(1, "test"))),
        ((1, "other"), tls(authority.identity(1, "other"))),
        ((1, "test"), Security::InsecurePlaintext),
    ];
    for (place, (who, security)) in attempts.into_iter().enumerate() {
        let outcome = attempt(&server, who, security).await;
        assert!(outcome.is_err(), "attempt {place} got in");
        let text = soon(refused(&mut events)).await.to_string();
        assert!(text.contains("handshake"), "attempt {place}: {text}");
    }
    // Who has the key of node 1 and says that it is node 3, or of another cluster, which this crate does not even try.
    let (chain, key) = authority.issue(vec![node_name(1, "test")]);
    for (node, cluster) in [(3, "test"), (1, "other")] {
        let hello = said_under_tls(&server, &authority, (&chain, &key), node, cluster).await;
        assert_eq!(
            hello,
            Some(Kind::Refuse as u8),
            "{node} of {cluster} got in"
        );
        soon(refused(&mut events)).await;
    }
    let welcome = said_under_tls(&server, &authority, (&chain, &key), 1, "test").await;
    assert_eq!(welcome, Some(Kind::Welcome as u8));
    // A certificate of another authority that was made for this node and cluster.
    let (chain, key) = foreign.issue(vec![node_name(1, "test")]);
    let nothing = said_under_tls(&server, &authority, (&chain, &key), 1, "test").await;
    assert_eq!(nothing, None);
}

async fn refused(events: &mut Receiver<PeerEvent>) -> TransportError {
    loop {
        match events.recv().await.expect("there are events") {
            PeerEvent::Accepted { peer, .. } => panic!("somebody got in as {peer}"),
            PeerEvent::Refused { error, .. } => return error,
            _ => {}
        }
    }
}

/// What the server answers to a hello of node `node`, under TLS with this certificate; nothing if it closes.
async fn said_under_tls(
    server: &Transport,
    authority: &Authority,
    (chain, key): (&str, &str),
    node: u64,
    cluster: &str,
) -> Option<u8> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("PEM");
    roots.add(root).expect("an authority");
    let chain = CertificateDer::from_pem_slice(chain.as_bytes()).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![chain], key)
        .expect("they fit");
    let stream = TcpStream::connect(address(server)).await.expect("listens");
    let name = ServerName::try_from(node_name(2, "test")).expect("a name");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await.ok()?;
    let mut local = raw::local(node);
    local.cluster = cluster.to_owned();
    let hello = local.hello(2, 1, ConnectionClass::Bulk).encode_to_vec();
    let hello = raw::frame(Kind::Hello, (0, 0), &hello);
    stream.write_all(&hello).await.ok()?;
    let mut header = [0; 16];
    soon(stream.read_exact(&mut header)).await.ok()?;
    Some(header[4])
}

/// All that an error says, with its causes.
fn causes(error: &TransportError) -> Vec<String> {
    let mut all = Vec::new();
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        all.push(error.to_string());
        next = error.source();
    }
    all
}

fn fault(error: &TransportError) -> Option<CertificateFault> {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(HandshakeError::Certificate { fault, .. }) = cause.downcast_ref() {
            return Some(*fault);
        }
        next = cause.source();
    }
    None
}

fn identity_of(authority: &Authority, (chain, key): (String, String)) -> TlsIdentity {
    let pem = authority.pem().as_bytes();
    TlsIdentity::from_pem(pem, chain.as_bytes(), key.as_bytes()).expect("sound")
}

/// The caller learns why the peer cannot be reached: of the peer's certificate, and of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_says_what_is_wrong_with_a_certificate() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let server = server(&authority).await;
    // Of another authority than the server, and believing another one.
    let stranger = Security::MutualTls(foreign.identity(1, "test"));
    let stranger = Transport::builder(1, "test", stranger).peer(2, address(&server));
    let stranger = stranger.start().await.expect("starts");
    let call = || stranger.call(Envelope::new(2, "vm", "echo", b"x"));
    // A slow machine may take too long for the handshake at first.
    soon(async {
        loop {
            let error = call().await.expect_err("not let in");
            assert!(
                matches!(error, TransportError::Unreachable { peer: 2, .. }),
                "{error:?}"
            );
            if fault(&error) == Some(CertificateFault::UnknownAuthority) {
                break;
            }
        }
    })
    .await;
    // Another node is there.
    let security = Security::MutualTls(authority.identity(1, "test"));
    let client = Transport::builder(1, "test", security).peer(3, address(&server));
    let client = client.start().await.expect("starts");
    soon(async {
        let mut found = 0;
        while found < 2 {
            let error = client.call(Envelope::new(3, "vm", "echo", b"x")).await;
            let error = error.expect_err("it is another node");
            found += usize::from(fault(&error) == Some(CertificateFault::WrongName));
        }
    })
    .await;
}

/// Certificates that no other node would accept are found when the transport starts.
#[tokio::test]
async fn a_certificate_that_is_of_no_use_is_said_at_the_start() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let name = node_name(1, "test");
    let own = || authority.identity(1, "test");
    let attempts = [
        ("of another node", (3, "test"), own()),
        ("of another cluster", (1, "other"), own()),
        (
            "of another authority",
            (1, "test"),
            identity_of(&authority, foreign.issue(vec![name.clone()])),
        ),
        (
            "expired",
            (1, "test"),
            identity_of(&authority, authority.issue_for(&name, -7200, -60)),
        ),
        (
            "not yet valid",
            (1, "test"),
            identity_of(&authority, authority.issue_for(&name, 60, 7200)),
        ),
        (
            "without names",
            (1, "test"),
            identity_of(&authority, authority.issue(Vec::new())),
        ),
    ];
    for (what, (node, cluster), identity) in attempts {
        let started = Transport::builder(node, cluster, Security::MutualTls(identity))
            .start()
            .await;
        let error = started.expect_err(what);
        assert!(
            matches!(error, TransportError::Configuration { .. }),
            "{what}: {error}"
        );
    }
    let sound = Transport::builder(1, "test", Security::MutualTls(own()))
        .start()
        .await;
    assert!(sound.is_ok());
}

#[test]
fn an_encrypted_key_is_called_one() {
    let authority = Authority::new();
    let (chain, _) = authority.issue(vec![node_name(1, "test")]);
    let pkcs8 =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let sec1 = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES\n\nAAAA\n-----END EC PRIVATE KEY-----\n";
    for key in [pkcs8, sec1] {
        let made =
            TlsIdentity::from_pem(authority.pem().as_bytes(), chain.as_bytes(), key.as_bytes());
        let error = made.expect_err("encrypted").to_string();
        assert!(error.contains("encrypted"), "{error}");
    }
}

/// A peer that was let in once is checked anew at each connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_has_expired_since_is_not_accepted_again() {
    let authority = Authority::new();
    let server = server(&authority).await;
    let mut config = Config::default();
    config.idle_timeout = Duration::from_millis(50);
    config.backoff = (Duration::from_millis(10), Duration::from_millis(20));
    let identity = identity_of(
        &authority,
        authority.issue_for(&node_name(1, "test"), -60, 3),
    );
    let client = Transport::builder(1, "test", Security::MutualTls(identity)).config(config);
    let client = client
        .peer(2, address(&server))
        .start()
        .await
        .expect("starts");
    let call = || client.call(Envelope::new(2, "vm", "echo", b"x"));
    // It connects again and again, until that does no more.
    let error = soon(async {
        let mut connects = 0;
        loop {
            if let Err(error) = call().await {
                assert!(connects > 1, "{error}: {connects} connects");
                break error;
            }
            connects = client.peer_stats(2).expect("known").bulk.connects;
            tokio::time::sleep(Duration::from_millis(120)).await;
        }
    })
    .await;
    // Disconnected while the server's alert was on its way, or the alert itself.
    if let TransportError::Unreachable { .. } = &error {
        assert_eq!(
            fault(&error),
            Some(CertificateFault::Expired),
            "{:?}",
            causes(&error)
        );
    }
    soon(async {
        while fault(&call().await.expect_err("expired")) != Some(CertificateFault::Expired) {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_with_its_certificate_if_that_is_wanted() {
    let authority = Authority::new();
    let mut config = Config::default();
    config.expiry_ends_connections = true;
    let security = Security::MutualTls(authority.identity(2, "test"));
    let server = Transport::builder(2, "test", security)
        .router(echo())
        .config(config);
    let server = server.listen("127.0.0.1:0").start().await.expect("starts");
    let identity = identity_of(
        &authority,
        authority.issue_for(&node_name(1, "test"), -60, 3),
    );
    let mut events = server.events();
    attempt_and_stay(
        &server,
        identity,
        &mut events,
        CertificateFault::Expired,
        |_| (),
    )
    .await;
}

/// Connects, does something to the server, and sees the server close the connection.
async fn attempt_and_stay(
    server: &Transport,
    identity: TlsIdentity,
    events: &mut Receiver<PeerEvent>,
    wanted: CertificateFault,
    change: impl FnOnce(&Transport),
) {
    let client = Transport::builder(1, "test", Security::MutualTls(identity));
    let client = client
        .peer(2, address(server))
        .start()
        .await
        .expect("starts");
    let reply = soon(client.call(Envelope::new(2, "vm", "echo", b"x"))).await;
    assert_eq!(reply.as_deref(), Ok(&b"x"[..]));
    change(server);
    let reason = soon(async {
        loop {
            if let PeerEvent::Ended { reason, .. } = events.recv().await.expect("events") {
                break reason;
            }
        }
    })
    .await;
    let CloseReason::Certificate(HandshakeError::Certificate { fault, .. }) = reason else {
        panic!("{reason}");
    };
    assert_eq!(fault, wanted);
}

/// A running node gets another certificate, other authorities and a list of what is revoked; what is still sound goes
/// on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_is_replaced_without_losing_sound_connections() {
    let authority = Authority::new();
    let server = server(&authority).await;
    let sound = Transport::builder(
        3,
        "test",
        Security::MutualTls(authority.identity(3, "test")),
    );
    let sound = sound
        .peer(2, address(&server))
        .start()
        .await
        .expect("starts");
    let call = || soon(sound.call(Envelope::new(2, "vm", "echo", b"x")));
    call().await.expect("a reply");
    let (ours, theirs) = (sound.connections(), server.connections());
    let ours: Vec<_> = ours.iter().filter(|status| status.is_up).collect();
    let ([ours], [theirs]) = (&ours[..], &theirs[..]) else {
        panic!("{ours:?} and {theirs:?}");
    };
    assert_eq!(
        (ours.peer, ours.is_dialled, &ours.address),
        (2, true, &address(&server))
    );
    assert_eq!(
        (theirs.peer, theirs.is_dialled, theirs.class),
        (3, false, ConnectionClass::Bulk)
    );
    let later = Some(std::time::SystemTime::now() + Duration::from_secs(86_400));
    assert!(ours.certificate_expires_at > later && theirs.certificate_expires_at > later);
    // Another certificate of the same authority: nothing ends.
    server
        .set_identity(authority.identity(2, "test"))
        .expect("sound");
    sound
        .set_identity(authority.identity(3, "test"))
        .expect("sound");
    call().await.expect("a reply");
    // One of another node is refused, and nothing changes.
    assert!(server.set_identity(authority.identity(7, "test")).is_err());
    // One peer's certificate is revoked.
    let revoked = identity_of(
        &authority,
        authority.issue_numbered(&node_name(1, "test"), 77),
    );
    let mut events = server.events();
    attempt_and_stay(
        &server,
        revoked.clone(),
        &mut events,
        CertificateFault::Revoked,
        |server| {
            let (chain, key) = authority.issue(vec![node_name(2, "test")]);
            let list = authority.revoke(77);
            let identity = TlsIdentity::from_pem_with_crl(
                authority.pem().as_bytes(),
                chain.as_bytes(),
                key.as_bytes(),
                list.as_bytes(),
            );
            server
                .set_identity(identity.expect("sound"))
                .expect("sound");
        },
    )
    .await;
    let error = attempt(&server, (1, "test"), Security::MutualTls(revoked)).await;
    assert!(error.is_err());
    call().await.expect("a reply");
    assert_eq!(sound.peer_stats(2).expect("known").bulk.connects, 1);
    // Another authority is believed now: nobody of the old one is.
    let foreign = Authority::new();
    server
        .set_identity(foreign.identity(2, "test"))
        .expect("sound");
    soon(async { while call().await.is_ok() {} }).await;
    sound
        .set_identity(foreign.identity(3, "test"))
        .expect("sound");
    soon(async {
        while call().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// The end of a connection in good order is no error of the system, on neither side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_end_under_tls_is_orderly() {
    let authority = Authority::new();
    for client_leaves in [true, false] {
        let server = server(&authority).await;
        let client = Transport::builder(
            1,
            "test",
            Security::MutualTls(authority.identity(1, "test")),
        );
        let client = client
            .peer(2, address(&server))
            .start()
            .await
            .expect("starts");
        let (mut at_server, mut at_client) = (server.events(), client.events());
        let reply = soon(client.call(Envelope::new(2, "vm", "echo", b"x"))).await;
        reply.expect("a reply");
        if client_leaves {
            assert!(soon(client.drain(Duration::from_secs(5))).await);
        } else {
            assert!(soon(server.drain(Duration::from_secs(5))).await);
        }
        let reasons = soon(async {
            let ended = async {
                loop {
                    if let PeerEvent::Ended { reason, .. } = at_server.recv().await.expect("events")
                    {
                        break reason;
                    }
                }
            };
            let lost = async {
                loop {
                    if let PeerEvent::Lost { reason, .. } = at_client.recv().await.expect("events")
                    {
                        break reason;
                    }
                }
            };
            [ended.await, lost.await]
        })
        .await;
        assert!(
            reasons.iter().all(CloseReason::is_orderly),
            "{client_leaves}: {reasons:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_another_node_is_not_talked_to() {
    let authority = Authority::new();
    let server = server(&authority).await;
    let security = Security::MutualTls(authority.identity(1, "test"));
    // Node 3 is expected where node 2 listens.
    let client = Transport::builder(1, "test", security).peer(3, address(&server));
    let client = client.start().await.expect("starts");
    let mut events = client.events();
    let outcome = soon(client.call(Envelope::new(3, "vm", "echo", b"x"))).await;
    assert!(
        matches!(outcome, Err(TransportError::Unreachable { peer: 3, .. })),
        "{outcome:?}"
    );
    let PeerEvent::Unreachable { error, .. } = soon(events.recv()).await.expect("an event") else {
        panic!("it was reached");
    };
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_readable_crosses_the_wire() {
    // A relay between the two sees every byte.
    let authority = Authority::new();
    let server = server(&authority).await;
    let to = address(&server);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("loopback");
    let relay = listener.local_addr().expect("bound").to_string();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let record = std::sync::Arc::clone(&seen);
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.expect("a client");
        let server = TcpStream::connect(to).await.expect("listens");
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
            record
                .lock()
                .expect("no panics")
                .extend_from_slice(&buffer[..read]);
            if to_server.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    });
    let security = Security::MutualTls(authority.identity(1, "test"));
    let client = Transport::builder(1, "test", security).peer(2, relay);
    let client = client.start().await.expect("starts");
    let secret = b"the launch code is 0000";
    let reply = soon(client.call(Envelope::new(2, "vm", "echo", secret))).await;
    assert_eq!(reply.as_deref(), Ok(&secret[..]));
    let seen = seen.lock().expect("no panics");
    assert!(seen.len() > 500, "the relay was not used");
    assert!(!seen.windows(6).any(|window| window == b"launch"));
}

#[test]
fn unusable_certificates_are_named() {
    let authority = Authority::new();
    let (chain, key) = authority.issue(vec![node_name(1, "test")]);
    let (_, other_key) = authority.issue(vec![node_name(1, "test")]);
    let pem = authority.pem().as_bytes();
    for (authority, chain, key) in [
        (&b""[..], chain.as_bytes(), key.as_bytes()),
        (pem, b"nothing", key.as_bytes()),
        (pem, chain.as_bytes(), b"nothing"),
        (pem, chain.as_bytes(), other_key.as_bytes()),
    ] {
        let error = TlsIdentity::from_pem(authority, chain, key).expect_err("unusable");
        assert!(
            matches!(error, TransportError::Configuration { .. }),
            "{error}"
        );
    }
}

/// A peer has proven its certificate and waits to be let in, by a hook that takes its time. Meanwhile the identity is
/// replaced on the side that `replaces`.
async fn replaced_while_the_hook_is_asked(
    replaces_server: bool,
) -> (
    Transport,
    Transport,
    Arc<tokio::sync::Notify>,
    Receiver<PeerEvent>,
) {
    let authority = Authority::new();
    let asked = Arc::new(tokio::sync::Notify::new());
    let answer = Arc::new(tokio::sync::Notify::new());
    let server = Transport::builder(
        2,
        "test",
        Security::MutualTls(authority.identity(2, "test")),
    );
    let server = server.router(echo()).listen("127.0.0.1:0").on_accept({
        let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
        move |_| {
            let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
            async move {
                asked.notify_one();
                answer.notified().await;
                Ok(())
            }
        }
    });
    let mut config = Config::default();
    config.handshake_timeout = support::PATIENCE;
    let server = server.config(config.clone()).start().await.expect("starts");
    let client = Transport::builder(
        1,
        "test",
        Security::MutualTls(authority.identity(1, "test")),
    );
    let client = client.config(config).peer(2, address(&server));
    let client = client.start().await.expect("starts");
    let events = if replaces_server {
        server.events()
    } else {
        client.events()
    };
    let _ = client.send(Envelope::new(2, "vm", "echo", b"x"));
    soon(asked.notified()).await;
    let foreign = Authority::new();
    if replaces_server {
        server
            .set_identity(foreign.identity(2, "test"))
            .expect("sound");
    } else {
        client
            .set_identity(foreign.identity(1, "test"))
            .expect("sound");
    }
    answer.notify_one();
    (client, server, answer, events)
}

/// A certificate that was proven just before the identity was replaced is held against the new one, too: its connection
/// would last otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_under_way_is_held_against_a_new_identity() {
    for replaces_server in [true, false] {
        let (_client, _server, _answer, mut events) =
            replaced_while_the_hook_is_asked(replaces_server).await;
        let fault = soon(async {
            loop {
                let reason = match events.recv().await.expect("events") {
                    PeerEvent::Ended { reason, .. } | PeerEvent::Lost { reason, .. } => reason,
                    _ => continue,
                };
                if let CloseReason::Certificate(HandshakeError::Certificate { fault, .. }) = reason
                {
                    break fault;
                }
                panic!("{reason}");
            }
        })
        .await;
        assert_eq!(fault, CertificateFault::UnknownAuthority);
    }
}
