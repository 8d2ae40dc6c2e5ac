//! The public interface over loopback: every way to send, plain and encrypted.

mod support;

use bytes::Bytes;
use perf_transport::{
    Config, Envelope, Payload, Priority, Rejection, RejectionCode, Router, Transport,
    TransportError,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::{pair, soon, until};
use tokio::sync::mpsc;

fn echo() -> Router {
    Router::new()
        .inline("vm", "echo", |message, reply| {
            reply.put_slice(message.payload());
            Ok(())
        })
        .inline("vm", "share", |message, reply| {
            reply.put_slice(b"same: ");
            reply.set(message.payload().clone());
            Ok(())
        })
        .spawned("vm", "slow", |message| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(message.into_payload())
        })
        .inline("vm", "refuse", |_, _| {
            Err(Rejection::new(RejectionCode::Custom(200), "not today"))
        })
        .inline("vm", "panic", |_, _| panic!("on purpose"))
        .spawned("vm", "panic later", |_| async { panic!("on purpose") })
        .streamed("snapshot", "install", |message, mut body| async move {
            let body = body.collect(64 << 20).await;
            let body =
                body.map_err(|error| Rejection::new(RejectionCode::Invalid, error.to_string()))?;
            let sum: u64 = body.iter().map(|&byte| u64::from(byte)).sum();
            let head = message.payload().len();
            Ok(Bytes::from(format!("{head} {} {sum}", body.len())))
        })
}

async fn call<'a>(
    client: &Transport,
    method: &'a str,
    payload: impl Into<Payload<'a>>,
) -> Result<Bytes, TransportError> {
    soon(client.call(Envelope::new(2, "vm", method, payload))).await
}

async fn every_way(client: &Transport) {
    for size in [0, 1, 64, 1024, 1025, 5000, 70_000, 1 << 20] {
        let payload: Vec<u8> = (0..size).map(|n| n as u8).collect();
        let reply = call(client, "echo", &payload[..]).await;
        assert_eq!(reply.as_deref(), Ok(&payload[..]), "{size} bytes borrowed");
        let reply = call(client, "slow", Bytes::from(payload.clone())).await;
        assert_eq!(reply.as_deref(), Ok(&payload[..]), "{size} bytes shared");
    }
    let reply = call(client, "share", &[7; 50_000]).await.expect("a reply");
    assert_eq!((reply.len(), &reply[..6]), (50_006, &b"same: "[..]));
    let parts = [Bytes::from(vec![1; 100]), Bytes::from(vec![2; 9000])];
    let payload = Payload::Parts {
        head: b"head",
        parts: &parts,
    };
    let reply = call(client, "echo", payload).await.expect("a reply");
    assert_eq!((reply.len(), &reply[..4]), (9104, &b"head"[..]));

    let refused = call(client, "refuse", b"").await;
    let expected = TransportError::PeerRejected {
        peer: 2,
        code: RejectionCode::Custom(200),
        message: "not today".to_owned(),
    };
    assert_eq!(refused, Err(expected));
    for (method, code) in [
        ("panic", RejectionCode::Internal),
        ("panic later", RejectionCode::Internal),
        ("unheard of", RejectionCode::NotFound),
    ] {
        let refused = call(client, method, b"").await;
        let is_so = matches!(&refused, Err(TransportError::PeerRejected { code: found, .. }) if *found == code);
        assert!(is_so, "{method}: {refused:?}");
    }

    let head = Envelope::new(2, "snapshot", "install", b"meta");
    let mut body = client.stream(head).expect("room");
    let part = Bytes::from(vec![3; 300_000]);
    for _ in 0..20 {
        soon(body.send(part.clone())).await.expect("wanted");
    }
    let reply = soon(body.finish()).await.expect("a reply");
    assert_eq!(
        &reply[..],
        format!("4 {} {}", 6_000_000, 18_000_000).as_bytes()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_plain() {
    let (client, _server) = pair(echo(), Config::default()).await;
    every_way(&client).await;
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_encrypted() {
    use perf_transport::Security;
    let authority = support::certificates::Authority::new();
    let secure = |node| Security::MutualTls(authority.identity(node, "test"));
    let server = Transport::builder(2, "test", secure(2))
        .router(echo())
        .listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let client = Transport::builder(1, "test", secure(1)).peer(2, support::address(&server));
    let client = client.start().await.expect("starts");
    every_way(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_way_messages_keep_their_order_and_origin() {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let router = Router::new().one_way("raft", "append", move |message| {
        let _ = sender.send(message);
    });
    let (client, _server) = pair(router, Config::default()).await;
    for number in 0..5000_u64 {
        let payload = number.to_le_bytes();
        let envelope = Envelope::new(2, "raft", "append", &payload).with_request_id(number);
        soon(client.send_wait(envelope)).await.expect("sent");
    }
    let mut connection = None;
    for number in 0..5000_u64 {
        let message = soon(receiver.recv()).await.expect("a message");
        assert_eq!(&message.payload()[..], number.to_le_bytes());
        assert_eq!((message.request_id(), message.from()), (number, 1));
        let origin = message.origin();
        assert_eq!(origin.sequence, number + 1);
        let same = *connection.get_or_insert((origin.incarnation, origin.connection));
        assert_eq!(same, (origin.incarnation, origin.connection));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_at_once_all_get_their_own_reply() {
    let (client, _server) = pair(echo(), Config::default()).await;
    let mut tasks = Vec::new();
    for task in 0..64_u64 {
        let client = client.clone();
        tasks.push(tokio::spawn(async move {
            for round in 0..200_u64 {
                let payload = (task << 32 | round).to_le_bytes();
                let method = if round.is_multiple_of(10) {
                    "slow"
                } else {
                    "echo"
                };
                let reply = call(&client, method, &payload).await;
                assert_eq!(reply.as_deref(), Ok(&payload[..]));
            }
        }));
    }
    for task in tasks {
        soon(task).await.expect("no panics");
    }
    let stats = client.peer_stats(2).expect("known");
    assert_eq!(stats.bulk.calls_in_flight, 0);
    assert_eq!(stats.bulk.messages_sent, 64 * 200);
    assert_eq!(stats.bulk.connects, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_and_forward_reach_every_peer_unchanged() {
    let seen = Arc::new(AtomicU64::new(0));
    let counting = |seen: &Arc<AtomicU64>| {
        let seen = Arc::clone(seen);
        Router::new().one_way("raft", "beat", move |message| {
            assert_eq!(&message.payload()[..], b"term 7");
            seen.fetch_add(1, Ordering::Relaxed);
        })
    };
    let third = support::plain(3)
        .router(counting(&seen))
        .listen("127.0.0.1:0");
    let third = third.start().await.expect("starts");
    // Node 2 relays everything of service `vm` to node 4.
    let fourth = support::plain(4).router(echo()).listen("127.0.0.1:0");
    let fourth = fourth.start().await.expect("starts");
    let relay = support::plain(5).peer(4, support::address(&fourth));
    let relay = relay.start().await.expect("starts");
    let router = counting(&seen).spawned("vm", "*", move |message| {
        let relayed = relay.forward_call(4, &message);
        async move {
            let reply = relayed.await;
            reply.map_err(|error| Rejection::new(RejectionCode::NotHere, error.to_string()))
        }
    });
    let (client, _second) = pair(router, Config::default()).await;
    client.add_peer(3, support::address(&third));
    let sent = client.broadcast(&[2, 3, 9], Envelope::new(0, "raft", "beat", b"term 7"));
    assert_eq!(sent.accepted, 2);
    assert_eq!(sent.refused, [(9, TransportError::UnknownPeer { peer: 9 })]);
    until(|| seen.load(Ordering::Relaxed) == 2).await;
    let reply = call(&client, "echo", b"through two").await;
    assert_eq!(reply.as_deref(), Ok(&b"through two"[..]));
}

#[tokio::test]
async fn priorities_choose_the_connection() {
    let (client, _server) = pair(echo(), Config::default()).await;
    let urgent = Envelope::new(2, "vm", "echo", b"x").with_priority(Priority::Critical);
    soon(client.call(urgent)).await.expect("a reply");
    let stats = client.peer_stats(2).expect("known");
    assert_eq!(
        (stats.control.messages_sent, stats.bulk.messages_sent),
        (1, 0)
    );
    call(&client, "echo", b"x").await.expect("a reply");
    let stats = client.peer_stats(2).expect("known");
    assert_eq!((stats.control.connects, stats.bulk.connects), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_that_was_looked_up_stays_right_while_peers_come_and_go() {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let router = echo().one_way("raft", "append", move |message| {
        let _ = sender.send(message);
    });
    let (client, server) = pair(router, Config::default()).await;
    let echo = client.method(2, "vm", "echo").expect("a known peer");
    let append = client.method(2, "raft", "append").expect("a known peer");
    let named = (append.peer(), append.service(), append.method());
    assert_eq!(named, (2, "raft", "append"));
    for number in 0..500_u64 {
        let payload = number.to_le_bytes();
        let reply = soon(echo.call(&payload)).await;
        assert_eq!(reply.as_deref(), Ok(&payload[..]));
        if append.send(&payload).is_err() {
            soon(append.send_wait(&payload)).await.expect("sent");
        }
        let message = soon(receiver.recv()).await.expect("a message");
        assert_eq!(&message.payload()[..], payload);
    }

    client.add_peer(3, "127.0.0.1:9");
    let reply = soon(echo.call(b"others came")).await;
    assert_eq!(reply.as_deref(), Ok(&b"others came"[..]));
    assert!(client.remove_peer(2));
    let gone = TransportError::UnknownPeer { peer: 2 };
    assert_eq!(soon(echo.call(b"x")).await.err().as_ref(), Some(&gone));
    let undelivered = append.send(b"x").expect_err("the peer is gone");
    assert_eq!(undelivered.error, gone);
    assert_eq!(undelivered.envelope.method, "append");
    client.add_peer(2, support::address(&server));
    let reply = soon(echo.call(b"and is back")).await;
    assert_eq!(reply.as_deref(), Ok(&b"and is back"[..]));
    soon(append.send_wait(b"too")).await.expect("sent");
    let message = soon(receiver.recv()).await.expect("a message");
    assert_eq!(&message.payload()[..], b"too");

    let before = client.peer_stats(2).expect("known").control.messages_sent;
    let urgent = echo.with_priority(Priority::Critical);
    soon(urgent.call(b"x")).await.expect("a reply");
    let after = client.peer_stats(2).expect("known").control.messages_sent;
    assert_eq!(after, before + 1);
    let hasty = client.method(2, "vm", "slow").expect("a known peer");
    let hasty = hasty.with_timeout(Duration::from_millis(1));
    let late = soon(hasty.call(b"x")).await;
    assert!(
        matches!(late, Err(TransportError::Timeout { .. })),
        "{late:?}"
    );
    let unknown = client.method(9, "vm", "echo").err();
    assert_eq!(unknown, Some(TransportError::UnknownPeer { peer: 9 }));
    let nameless = client.method(2, "", "echo").err();
    assert!(
        matches!(nameless, Some(TransportError::InvalidName { .. })),
        "{nameless:?}"
    );
}
