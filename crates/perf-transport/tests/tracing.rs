//! What a `tracing` subscriber sees.

#![cfg(all(feature = "tracing", not(perf_loom)))]

mod support;

use perf_transport::{Config, Envelope, Rejection, RejectionCode, Router, TraceContext};
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use support::{pair, soon, until};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Keeps all spans and events of this crate, a line each.
#[derive(Clone, Default)]
struct Lines {
    spans: Arc<Mutex<Vec<String>>>,
    events: Arc<Mutex<Vec<String>>>,
    ids: Arc<AtomicU64>,
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").expect("a string");
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("perf_transport")
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut line = attributes.metadata().name().to_owned();
        attributes.record(&mut Fields(&mut line));
        self.spans.lock().expect("no panics").push(line);
        Id::from_u64(self.ids.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut spans = self.spans.lock().expect("no panics");
        let line = usize::try_from(span.into_u64() - 1).expect("few");
        values.record(&mut Fields(&mut spans[line]));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = event.metadata().level().to_string();
        event.record(&mut Fields(&mut line));
        self.events.lock().expect("no panics").push(line);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// One test: the subscriber is the process's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_handlers_are_spans_and_connections_make_events() {
    let lines = Lines::default();
    tracing::subscriber::set_global_default(lines.clone()).expect("the only one");
    let router =
        Router::new()
            .inline("vm", "inline", |_, _| Ok(()))
            .spawned("vm", "no", |_| async {
                Err(Rejection::new(RejectionCode::Invalid, "no such vm"))
            });
    let (client, _server) = pair(router, Config::default()).await;
    let context = TraceContext::new(0xABC, 0xDEF, 1).expect("ids");
    let traced = Envelope::new(2, "vm", "inline", b"x").with_trace(&context);
    soon(client.call(traced)).await.expect("a reply");
    let refused = soon(client.call(Envelope::new(2, "vm", "no", b"x"))).await;
    refused.expect_err("it says no");
    client.add_peer(9, "127.0.0.1:1");
    let unreachable = soon(client.call(Envelope::new(9, "vm", "no", b"x"))).await;
    unreachable.expect_err("nobody listens there");
    let spans = lines.spans.lock().expect("no panics").clone();
    let has = |name: &str, parts: &[&str]| {
        let is_it = |line: &&String| line.starts_with(name);
        let mut of_name = spans.iter().filter(is_it);
        let found = of_name.any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "{name} {parts:?} in {spans:#?}");
    };
    let trace = [
        "trace_id=00000000000000000000000000000abc",
        "span_id=0000000000000def",
    ];
    has("call", &["peer=2", "method=\"inline\"", trace[0], trace[1]]);
    has(
        "handler",
        &["peer=1", "method=\"inline\"", trace[0], trace[1]],
    );
    has("call", &["method=\"no\"", "error=", "no such vm"]);
    has("handler", &["method=\"no\""]);
    has("call", &["peer=9", "error="]);
    let has_event = |part: &str| {
        let events = lines.events.lock().expect("no panics");
        events.iter().any(|line| line.contains(part))
    };
    until(|| has_event("connected to node 2")).await;
    until(|| has_event("node 1 connected from")).await;
    until(|| has_event("WARN message=node 9 cannot be reached")).await;
}
