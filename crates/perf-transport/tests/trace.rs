//! Trace contexts go along with messages, come back with replies, and are never sent to a peer that does not know them.

#![cfg(not(perf_loom))]

mod support;

use bytes::Bytes;
use perf_transport::proto::Kind;
use perf_transport::{Config, Envelope, MessageRef, Router, TraceContext};
use std::sync::{Arc, Mutex};
use support::{PATIENCE, address, pair, plain, raw, soon, until};
use tokio::net::TcpListener;

fn context() -> TraceContext {
    let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    text.parse().expect("a traceparent")
}

/// What a receiver has seen: the context as text, and the payload.
type Seen = Arc<Mutex<Vec<(Option<String>, Vec<u8>)>>>;

fn text(context: Option<&TraceContext>) -> Option<String> {
    context.map(ToString::to_string)
}

/// Handlers of every kind that note what they see and answer with the next span of the trace.
fn router(seen: &Seen) -> Router {
    let note = |seen: &Seen| {
        let seen = Arc::clone(seen);
        move |context: Option<&TraceContext>, payload: &[u8]| {
            let mut seen = seen.lock().expect("no panics");
            seen.push((text(context), payload.to_vec()));
        }
    };
    let next = |context: &TraceContext| context.with_span(context.span_id() + 1);
    let (inline, spawned, streamed) = (note(seen), note(seen), note(seen));
    let (one_way, one_way_ref) = (note(seen), note(seen));
    Router::new()
        .inline("t", "inline", move |message, reply| {
            inline(message.trace(), message.payload());
            if let Some(context) = message.trace().and_then(next) {
                message.set_reply_trace(context);
            }
            reply.put_slice(message.payload());
            Ok(())
        })
        .spawned("t", "spawned", move |message| {
            spawned(message.trace(), message.payload());
            if let Some(context) = message.trace().and_then(next) {
                message.set_reply_trace(context);
            }
            async move { Ok(message.into_payload()) }
        })
        .streamed("t", "streamed", move |message, mut body| {
            streamed(message.trace(), message.payload());
            async move { Ok(body.collect(1 << 20).await.unwrap_or_default()) }
        })
        .one_way("t", "one_way", move |message| {
            one_way(message.trace(), message.payload());
        })
        .one_way_ref("t", "one_way_ref", move |message: MessageRef<'_>| {
            one_way_ref(message.trace(), message.payload());
        })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contexts_go_along_and_come_back() {
    let seen = Seen::default();
    let (client, _server) = pair(router(&seen), Config::default()).await;
    let context = context();
    let large = Bytes::from(vec![3; 50_000]);
    let parts = [large.clone(), Bytes::from_static(b"end")];
    let mut expected = Vec::new();
    for method in ["inline", "spawned"] {
        for payload in [
            perf_transport::Payload::from(b"short"),
            large.clone().into(),
            perf_transport::Payload::Parts {
                head: b"head",
                parts: &parts,
            },
        ] {
            let bytes = match &payload {
                perf_transport::Payload::Borrowed(bytes) => bytes.to_vec(),
                perf_transport::Payload::Shared(bytes) => bytes.to_vec(),
                _ => [b"head", &large[..], b"end"].concat(),
            };
            let envelope = Envelope::new(2, "t", method, payload);
            let mut call = client.call(envelope.clone().with_trace(&context));
            let reply = soon(&mut call).await.expect("a reply");
            assert!(reply == bytes, "{method}");
            let span = call.reply_trace().expect("the handler said one");
            assert_eq!(span.trace_id(), context.trace_id());
            assert_eq!(span.span_id(), context.span_id() + 1);
            expected.push((text(Some(&context)), bytes.clone()));
            let mut call = client.call(envelope.clone());
            assert!(soon(&mut call).await.expect("a reply") == bytes);
            assert_eq!(call.reply_trace(), None);
            expected.push((None, bytes.clone()));
            let waited = client.call_wait(envelope.with_trace(&context));
            assert!(soon(waited).await.expect("a reply") == bytes);
            expected.push((text(Some(&context)), bytes));
        }
    }
    assert!(*seen.lock().expect("no panics") == expected);
    seen.lock().expect("no panics").clear();
    let head = Envelope::new(2, "t", "streamed", b"head").with_trace(&context);
    let mut body = client.stream(head).expect("room");
    soon(body.send(Bytes::from_static(b"body")))
        .await
        .expect("wanted");
    assert_eq!(soon(body.finish()).await.as_deref(), Ok(&b"body"[..]));
    for method in ["one_way", "one_way_ref"] {
        let envelope = Envelope::new(2, "t", method, b"head").with_trace(&context);
        client.send(envelope.clone()).expect("room");
        soon(client.send_wait(envelope)).await.expect("room");
    }
    until(|| seen.lock().expect("no panics").len() == 5).await;
    let all = (text(Some(&context)), b"head".to_vec());
    assert!(
        seen.lock()
            .expect("no panics")
            .iter()
            .all(|one| *one == all)
    );
}

/// A node between two others hands the context on, in both of the ways to relay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contexts_go_along_with_what_is_relayed() {
    let seen = Seen::default();
    let last = plain(3).router(router(&seen)).listen("127.0.0.1:0");
    let last = last.start().await.expect("starts");
    let onward = plain(2)
        .peer(3, address(&last))
        .start()
        .await
        .expect("starts");
    let (relay, forward) = (onward.clone(), onward.clone());
    let between = Router::new()
        .spawned("t", "inline", move |message| {
            let call = relay.forward_call(3, &message);
            async move { Ok(call.await.unwrap_or_default()) }
        })
        .one_way("t", "one_way", move |message| {
            forward.forward(3, &message).expect("room");
        });
    let (client, _between) = pair(between, Config::default()).await;
    let context = context();
    let call = Envelope::new(2, "t", "inline", b"x").with_trace(&context);
    assert_eq!(soon(client.call(call)).await.as_deref(), Ok(&b"x"[..]));
    let message = Envelope::new(2, "t", "one_way", b"y").with_trace(&context);
    client.send(message).expect("room");
    until(|| seen.lock().expect("no panics").len() == 2).await;
    let seen = seen.lock().expect("no panics");
    assert!(seen.iter().all(|(trace, _)| *trace == text(Some(&context))));
}

/// A handler that must wait for others keeps its context meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_held_keeps_its_context() {
    let seen = Seen::default();
    let note = Arc::clone(&seen);
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let its = Arc::clone(&gate);
    let router = Router::new()
        .spawned("t", "slow", move |message| {
            let mut seen = note.lock().expect("no panics");
            seen.push((text(message.trace()), Vec::new()));
            let gate = Arc::clone(&its);
            async move {
                gate.acquire().await.expect("open").forget();
                Ok(Bytes::new())
            }
        })
        .with_limit("t", "slow", 1);
    let (client, _server) = pair(router, Config::default()).await;
    let context = context();
    let slow = client.method(2, "t", "slow").expect("known");
    let slow = slow.with_timeout(PATIENCE);
    let calls: Vec<_> = (0..3).map(|_| slow.call_traced(b"x", &context)).collect();
    gate.add_permits(3);
    for call in calls {
        soon(call).await.expect("a reply");
    }
    let seen = seen.lock().expect("no panics");
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|(trace, _)| *trace == text(Some(&context))));
}

/// A peer of an earlier version gets the messages as it knows them, those that were queued before it said so among
/// them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_knows_no_contexts_gets_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let at = listener.local_addr().expect("bound").to_string();
    let client = plain(1).peer(2, at).start().await.expect("starts");
    let context = context();
    let method = client.method(2, "vm", "any").expect("known");
    for length in [10, 5000] {
        let sent = method.send_traced(vec![7; length], &context);
        sent.expect("room");
    }
    let (mut stream, _) = soon(listener.accept()).await.expect("it dials");
    raw::welcome(&mut stream).await;
    let mut messages = Vec::new();
    while messages.len() < 5 {
        let (kind, _, payload) = soon(raw::read(&mut stream)).await.expect("frames");
        if kind == Kind::Define as u8 || kind == Kind::Ping as u8 {
            continue;
        }
        messages.push((kind, payload));
        if messages.len() == 2 {
            method.send_traced(vec![7; 20], &context).expect("room");
            let envelope = Envelope::new(2, "vm", "any", vec![7; 30]).with_trace(&context);
            soon(client.send_wait(envelope)).await.expect("room");
            method.send(vec![7; 40]).expect("room");
        }
    }
    let plain = Kind::OneWay as u8;
    let expected = [10, 5000, 20, 30, 40].map(|length| (plain, vec![7; length]));
    assert!(messages == expected);
}

/// Payloads up to the cap arrive, with the context where there is room for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_context_makes_no_message_too_long() {
    let seen = Seen::default();
    let mut config = Config::default();
    config.frame_bytes_max = 10_000;
    let (client, _server) = pair(router(&seen), config).await;
    let context = context();
    for method in ["inline", "spawned"] {
        for length in [9975, 9976, 10_000] {
            let payload = vec![7; length];
            let envelope = Envelope::new(2, "t", method, payload.clone()).with_trace(&context);
            let mut call = client.call(envelope);
            assert!(soon(&mut call).await.expect("a reply") == payload);
            assert_eq!(call.reply_trace().is_some(), length == 9975);
        }
    }
}
