//! What a message may weigh, and what becomes of messages when a peer takes less than this node.

#![cfg(not(perf_loom))]

mod support;

use perf_transport::{Config, Envelope, Router, TransportError};
use support::{address, plain, soon};

fn echo() -> Router {
    Router::new().inline("vm", "length", |message, reply| {
        reply.put_slice(&message.payload().len().to_le_bytes());
        Ok(())
    })
}

fn capped(frame_bytes_max: u32) -> Config {
    let mut config = Config::default();
    config.frame_bytes_max = frame_bytes_max;
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_payload_can_be_asked_for_and_is_sent() {
    let server = plain(2)
        .router(echo())
        .config(capped(10_000))
        .listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let client = plain(1).config(capped(20_000)).peer(2, address(&server));
    let client = client.start().await.expect("starts");
    assert_eq!(client.payload_bytes_max(), 20_000);
    let method = client.method(2, "vm", "length").expect("known");
    assert_eq!(method.payload_bytes_max(), 20_000);
    soon(method.call(b"x")).await.expect("a reply");
    let bytes_max = method.payload_bytes_max();
    assert_eq!(bytes_max, 10_000);
    let reply = soon(method.call(vec![7; bytes_max]))
        .await
        .expect("a reply");
    assert_eq!(reply[..], bytes_max.to_le_bytes());
    let refused = soon(method.call(vec![7; bytes_max + 1])).await;
    assert_eq!(
        refused,
        Err(TransportError::TooLarge {
            bytes: bytes_max + 1,
            bytes_max
        })
    );
}

/// Messages were queued before it was known that the peer takes less: those that it takes arrive, and the others are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smaller_frame_cap_costs_only_what_is_too_long() {
    let server = plain(2)
        .router(echo())
        .config(capped(10_000))
        .listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let client = plain(1).config(capped(20_000)).peer(2, address(&server));
    let client = client.start().await.expect("starts");
    let lengths = [1, 5000, 10_001, 15_000, 9999, 10_000, 3];
    let calls =
        lengths.map(|length| client.call(Envelope::new(2, "vm", "length", vec![7; length])));
    for (call, length) in calls.into_iter().zip(lengths) {
        match soon(call).await {
            Ok(reply) => assert_eq!(reply[..], length.to_le_bytes()),
            Err(TransportError::TooLarge {
                bytes_max: 10_000, ..
            }) => assert!(length > 10_000),
            Err(error) => panic!("{length} bytes: {error}"),
        }
    }
}

/// Callers on several threads queue messages of all lengths while the connection comes about on which it is learned that the peer takes less. None of those
/// that are too long gets in behind the look at what is queued: the peer would cut the connection off, and all others would be lost with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_that_is_learned_while_messages_are_queued_holds_for_all_of_them() {
    let server = plain(2)
        .router(echo())
        .config(capped(10_000))
        .listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    for _ in 0..40 {
        let client = plain(1).config(capped(20_000)).peer(2, address(&server));
        let client = client.start().await.expect("starts");
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move {
                    for round in 0..100 {
                        let length = if round % 2 == 0 { 11_000 } else { 7 };
                        let envelope = Envelope::new(2, "vm", "length", vec![7; length]);
                        match client.call_wait(envelope).await {
                            Ok(reply) => assert_eq!(reply[..], length.to_le_bytes()),
                            Err(TransportError::TooLarge { bytes, .. }) => {
                                assert_eq!(bytes, 11_000)
                            }
                            Err(error) => panic!("{length} bytes: {error}"),
                        }
                    }
                })
            })
            .collect();
        for caller in callers {
            soon(caller).await.expect("no panics");
        }
    }
}
