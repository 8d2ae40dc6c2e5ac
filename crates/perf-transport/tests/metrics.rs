//! What a transport records.
#![cfg(all(feature = "metrics", not(perf_loom)))]

mod support;

use perf_metrics::node::{ConnectionState, Direction, NodeMetrics, Outcome, Transport as Kind};
use perf_metrics::{Registry, Value};
use perf_transport::{Config, Envelope, MethodMetrics, Rejection, RejectionCode, Router};
use std::time::Duration;
use support::{PATIENCE, address, plain, soon, until};

const CALLS: u64 = 50;
const PAYLOAD: [u8; 1000] = [7; 1000];

fn catalogue() -> &'static NodeMetrics {
    let metrics = NodeMetrics::new(&Registry::new()).expect("a new registry");
    Box::leak(Box::new(metrics))
}

fn bytes(metrics: &NodeMetrics, direction: Direction) -> u64 {
    match metrics.network_io[Kind::Tcp][direction].get() {
        Value::U64(bytes) => bytes,
        other => panic!("bytes are counted, not {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_their_bytes_are_recorded() {
    let (ours, theirs) = (catalogue(), catalogue());
    let router = Router::new().inline("vm", "echo", |message, reply| {
        reply.put_slice(message.payload());
        Ok(())
    });
    let server = plain(2).router(router).metrics(theirs);
    let server = soon(server.listen("127.0.0.1:0").start()).await;
    let server = server.expect("loopback can be listened on");
    let client = plain(1).metrics(ours).peer(2, address(&server));
    let client = soon(client.start()).await.expect("starts");
    for _ in 0..CALLS {
        let call = client.call(Envelope::new(2, "vm", "echo", &PAYLOAD[..]));
        soon(call).await.expect("it is answered");
    }
    assert_eq!(ours.pool_dials[Outcome::Success].get(), Value::U64(1));
    let used = &ours.pool_connections[ConnectionState::Used];
    assert_eq!(used.get(), Value::I64(1));
    let least = CALLS * PAYLOAD.len() as u64;
    // While it is open, at each tick.
    until(|| bytes(ours, Direction::Transmit) > least).await;
    until(|| bytes(ours, Direction::Receive) > least).await;
    assert!(soon(client.drain(Duration::from_secs(5))).await);
    // What came after the last tick, at its end.
    until(|| used.get() == Value::I64(0)).await;
    until(|| bytes(theirs, Direction::Receive) == bytes(ours, Direction::Transmit)).await;
    server.shutdown();
}

/// The values of an instrument's series as text, each with its attributes: what a reader of any exporter sees.
fn series(registry: &Registry, name: &str) -> Vec<(String, String)> {
    let snapshot = registry.collect();
    let metric = snapshot.metric(name).expect("an instrument");
    let recorded = metric.series().iter().filter(|series| series.is_recorded());
    recorded
        .map(|series| {
            let attributes = format!("{:?}", series.attributes());
            (attributes, format!("{:?}", series.point()))
        })
        .collect()
}

/// The one value of a method, which must be a number.
fn value(registry: &Registry, name: &str, parts: &[&str]) -> Option<String> {
    let all = series(registry, name);
    let is_it = |attributes: &str| parts.iter().all(|part| attributes.contains(part));
    let mut found = all.iter().filter(|(attributes, _)| is_it(attributes));
    found.next().map(|(_, point)| point.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_method_is_recorded_on_both_sides() {
    let (ours, theirs) = (Registry::new(), Registry::new());
    let metrics = |registry| MethodMetrics::new(registry).expect("a new registry");
    let router = Router::new()
        .inline("vm", "echo", |message, reply| {
            reply.put_slice(message.payload());
            reply.put_slice(message.payload());
            Ok(())
        })
        .spawned("vm", "no", |_| async {
            Err(Rejection::new(RejectionCode::Busy, "later"))
        })
        .spawned("vm", "panics", |_| async { panic!("on purpose") })
        .spawned("vm", "hangs", |_| std::future::pending())
        .with_cancellation("vm", "hangs");
    let server = plain(2).router(router).method_metrics(metrics(&theirs));
    let server = soon(server.listen("127.0.0.1:0").start()).await;
    let server = server.expect("loopback can be listened on");
    let client = plain(1)
        .config(Config::default())
        .method_metrics(metrics(&ours))
        .peer(2, address(&server));
    let client = soon(client.start()).await.expect("starts");
    let call = |method: &'static str| {
        client.call(Envelope::new(2, "vm", method, b"ten bytes.").with_timeout(PATIENCE))
    };
    for _ in 0..3 {
        soon(call("echo")).await.expect("a reply");
    }
    for method in ["no", "panics", "missing"] {
        soon(call(method)).await.expect_err("it is refused");
    }
    let hanging = call("hangs");
    let of = |registry, name: &str, parts: &[&str]| value(registry, name, parts);
    until(|| of(&theirs, "rpc.server.active", &["hangs"]).is_some()).await;
    let active = of(&ours, "rpc.client.active", &["hangs"]).expect("a series");
    assert!(active.contains('1'), "{active}");
    drop(hanging);
    let ended = &["hangs", "cancelled"];
    until(|| of(&ours, "rpc.client.errors", ended).is_some()).await;
    until(|| of(&theirs, "rpc.server.errors", ended).is_some()).await;
    for (registry, side) in [(&ours, "client"), (&theirs, "server")] {
        let name = |what: &str| format!("rpc.{side}.{what}");
        let duration = of(registry, &name("duration"), &["vm", "echo"]);
        let duration = duration.expect("a series");
        assert!(duration.contains("count: 3"), "{duration}");
        let (requests, replies) = match side {
            "client" => ("sent", "received"),
            _ => ("received", "sent"),
        };
        let bytes = of(registry, &name(requests), &["echo"]).expect("a series");
        assert!(bytes.contains("30"), "{bytes}");
        let bytes = of(registry, &name(replies), &["echo"]).expect("a series");
        assert!(bytes.contains("60"), "{bytes}");
        for (method, kind) in [("no", "busy"), ("panics", "internal")] {
            let errors = of(registry, &name("errors"), &[method, kind]);
            assert!(
                errors.is_some_and(|errors| errors.contains('1')),
                "{method}"
            );
        }
        assert_eq!(of(registry, &name("errors"), &["echo"]), None);
    }
    assert!(of(&ours, "rpc.client.errors", &["missing", "not_found"]).is_some());
    // What a peer asks for in vain makes no series here.
    assert_eq!(of(&theirs, "rpc.server.duration", &["missing"]), None);
}

/// Peers choose the names that a handler of all methods and a fallback get. They make one series each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_peers_choose_make_no_series() {
    let registry = Registry::new();
    let router = Router::new()
        .inline("vm", "*", |_, _| Ok(()))
        .inline("vm", "echo", |_, _| Ok(()))
        .fallback(|message| async move { Ok(message.into_payload()) });
    let metrics = MethodMetrics::new(&registry).expect("a new registry");
    let server = plain(2).router(router).method_metrics(metrics);
    let server = soon(server.listen("127.0.0.1:0").start()).await;
    let server = server.expect("loopback can be listened on");
    let client = plain(1).peer(2, address(&server));
    let client = soon(client.start()).await.expect("starts");
    for number in 0..20 {
        let number = number.to_string();
        for (service, method) in [("vm", &number[..]), (&number, "any"), ("vm", "echo")] {
            let call = client.call(Envelope::new(2, service, method, b"x"));
            soon(call).await.expect("a reply");
        }
    }
    let all = series(&registry, "rpc.server.duration");
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(
        all.iter().all(|(_, point)| point.contains("count: 20")),
        "{all:?}"
    );
}
