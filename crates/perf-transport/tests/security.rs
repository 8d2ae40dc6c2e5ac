//! Who gets in under mutual TLS, and who does not.

#![cfg(all(feature = "tls", not(perf_loom)))]

mod support;

use perf_transport::{
    Envelope, PeerEvent, Router, Security, TlsIdentity, Transport, TransportError, node_name,
};
use support::certificates::Authority;
use support::{address, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
    let client = client.start().await.expect("starts");
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
    // Another authority; the id of another node; another cluster; none at all.
    let foreign = Authority::new();
    let mixed = {
        let (chain, key) = foreign.issue(vec![node_name(1, "test")]);
        let pem = authority.pem().as_bytes();
        TlsIdentity::from_pem(pem, chain.as_bytes(), key.as_bytes()).expect("sound")
    };
    let attempts = [
        ((1, "test"), tls(foreign.identity(1, "test"))),
        ((1, "test"), tls(mixed)),
        ((3, "test"), tls(own.clone())),
        ((1, "test"), tls(authority.identity(1, "other"))),
        ((1, "other"), tls(own)),
        ((1, "test"), Security::InsecurePlaintext),
    ];
    for (place, (who, security)) in attempts.into_iter().enumerate() {
        let outcome = attempt(&server, who, security).await;
        assert!(outcome.is_err(), "attempt {place} got in");
        let refused = soon(async {
            loop {
                match events.recv().await.expect("there are events") {
                    PeerEvent::Accepted { peer, .. } => panic!("attempt {place} got in as {peer}"),
                    PeerEvent::Refused { error, .. } => return error,
                    _ => {}
                }
            }
        })
        .await;
        let text = refused.to_string();
        assert!(text.contains("handshake"), "attempt {place}: {text}");
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
