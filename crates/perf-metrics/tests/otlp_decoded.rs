//! What a receiver that shares nothing with the exporter reads: messages by `protobuf`, from the specification's own
//! files, which the package `opentelemetry-proto` brings, and connections by `hyper`.
#![cfg(feature = "otlp-grpc")]
// For `json!`.
#![recursion_limit = "256"]

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry::Array;
use perf_metrics::otlp::OtlpExporter;
use perf_metrics::{
    AttributeValue, EMPTY_ATTRS, Key, KeyValue, Registry, Scope, Temporality, TraceContext,
};
use protobuf3::reflect::{FileDescriptor, MessageDescriptor};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LONG: Duration = Duration::from_secs(60);
const SERVICE: &str = "opentelemetry/proto/collector/metrics/v1/metrics_service.proto";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Http,
    Grpc,
}

/// The bodies of requests, without gRPC's frame.
type Arrived = Arc<Mutex<Vec<Bytes>>>;

async fn answer(
    protocol: Protocol,
    request: Request<Incoming>,
    arrived: Arrived,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let (path, content_type) = match protocol {
        Protocol::Http => ("/v1/metrics", "application/x-protobuf"),
        Protocol::Grpc => (
            "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            "application/grpc",
        ),
    };
    assert_eq!(
        (request.method().as_str(), request.uri().path()),
        ("POST", path)
    );
    assert_eq!(request.headers()["content-type"], content_type);
    let mut body = request.into_body().collect().await.unwrap().to_bytes();
    let mut trailers = HeaderMap::new();
    let mut reply = Bytes::new();
    if protocol == Protocol::Grpc {
        let frame = body.split_to(5);
        assert_eq!(frame[0], 0, "not compressed");
        assert_eq!(frame[1..], u32::try_from(body.len()).unwrap().to_be_bytes());
        trailers.insert("grpc-status", "0".parse().unwrap());
        // A message without fields.
        reply = Bytes::from_static(&[0; 5]);
    }
    arrived.lock().unwrap().push(body);
    let trailers = (!trailers.is_empty()).then_some(Ok(trailers));
    let response = Response::builder().header("content-type", content_type);
    Ok(response
        .body(Full::new(reply).with_trailers(async { trailers }))
        .unwrap())
}

/// Serves until the process ends. The receiver's URL.
fn receiver(protocol: Protocol) -> (String, Arrived) {
    let arrived = Arrived::default();
    let kept = Arc::clone(&arrived);
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let stream = TokioIo::new(listener.accept().await.unwrap().0);
                let kept = Arc::clone(&kept);
                let service =
                    service_fn(move |request| answer(protocol, request, Arc::clone(&kept)));
                // A connection may be cut at the end of a test.
                tokio::spawn(async move {
                    let _ = match protocol {
                        Protocol::Http => {
                            http1::Builder::new()
                                .serve_connection(stream, service)
                                .await
                        }
                        Protocol::Grpc => {
                            let http2 = http2::Builder::new(TokioExecutor::new());
                            http2.serve_connection(stream, service).await
                        }
                    };
                });
            }
        });
    });
    (format!("http://{}", told.recv().unwrap()), arrived)
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).output();
    String::from_utf8(output.expect("cargo runs").stdout).expect("text")
}

/// The folder of the specification's files.
fn specification() -> PathBuf {
    let version = cargo(&["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let metadata = cargo(&[
        "metadata",
        "--format-version=1",
        concat!(
            "--manifest-path=",
            env!("CARGO_MANIFEST_DIR"),
            "/Cargo.toml"
        ),
        "--filter-platform",
        host.expect("cargo names its host"),
    ]);
    let metadata: Value = serde_json::from_str(&metadata).expect("it is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package = packages
        .iter()
        .find(|package| package["name"] == "opentelemetry-proto");
    let manifest = package.expect("a dependency of these tests")["manifest_path"]
        .as_str()
        .expect("a path");
    Path::new(manifest).with_file_name("src/proto/opentelemetry-proto")
}

/// The type of a request, of the specification's files.
fn request_type() -> MessageDescriptor {
    let files = specification();
    let mut parser = protobuf_parse::Parser::new();
    parser.pure().include(&files).input(files.join(SERVICE));
    let parsed = parser.parse_and_typecheck().unwrap().file_descriptors;
    let files = FileDescriptor::new_dynamic_fds(parsed, &[]).unwrap();
    let service = files.iter().find(|file| file.name() == SERVICE).unwrap();
    let request = service.message_by_package_relative_name("ExportMetricsServiceRequest");
    request.unwrap()
}

fn decode(request: &MessageDescriptor, body: &[u8]) -> Value {
    let message = request.parse_from_bytes(body).unwrap();
    serde_json::from_str(&protobuf_json_mapping::print_to_string(&*message).unwrap()).unwrap()
}

type Times = BTreeMap<String, Vec<u64>>;

/// Start and end of each point and the times of exemplars, taken out of `message`, by where they stand.
fn take_times(message: &mut Value, path: &str, times: &mut Times) {
    match message {
        Value::Object(fields) => {
            for name in ["startTimeUnixNano", "timeUnixNano"] {
                if let Some(time) = fields.remove(name) {
                    let nanos = time.as_str().unwrap().parse().unwrap();
                    times.entry(path.to_owned()).or_default().push(nanos);
                }
            }
            for (name, value) in fields {
                take_times(value, &format!("{path}/{name}"), times);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                take_times(item, &format!("{path}/{index}"), times);
            }
        }
        _ => {}
    }
}

thread_local! {
    static TRACE: Cell<Option<TraceContext>> = const { Cell::new(None) };
}

fn within_a_trace(run: impl FnOnce()) {
    TRACE.set(Some(TraceContext {
        trace_id: [1; 16],
        span_id: [2; 8],
    }));
    run();
    TRACE.set(None);
}

fn attribute(key: &'static str, value: impl Into<AttributeValue>) -> KeyValue {
    KeyValue::new(Key::from_static_str(key), value)
}

/// Every kind of instrument, and what records to all of them.
fn instruments(registry: &Registry) -> impl Fn() {
    registry.set_exemplar_source(|| TRACE.get());
    registry.set_resource([attribute("service.name", "n\u{f8}de"), attribute("cpus", 8)]);
    let requests = registry.u64_counter("requests").with_unit("{request}");
    let requests = requests.with_description("What arrived.").build().unwrap();
    let seconds = registry
        .f64_counter("seconds")
        .with_unit("s")
        .build()
        .unwrap();
    let in_flight = registry.i64_up_down_counter("in.flight").build().unwrap();
    let balance = registry.f64_up_down_counter("balance").build().unwrap();
    let largest = registry.u64_gauge("largest").build().unwrap();
    let least = registry.i64_gauge("least").build().unwrap();
    let share = registry.f64_gauge("share").build().unwrap();
    let sizes = registry
        .u64_histogram("sizes")
        .with_unit("By")
        .with_boundaries([10.0, 100.0]);
    let sizes = sizes.build().unwrap();
    let waits = registry
        .f64_histogram("waits")
        .with_boundaries([0.5])
        .build()
        .unwrap();
    let powers = registry
        .u64_histogram("powers")
        .with_scale(0)
        .build()
        .unwrap();
    let changes = registry
        .f64_histogram("changes")
        .with_scale(3)
        .build()
        .unwrap();
    macro_rules! observed {
        ($($make:ident $name:literal $value:expr),*) => {$(
            let callback = |observer: &mut perf_metrics::Observer<'_, _>| {
                observer.observe($value, &[attribute("n", 1)]);
            };
            registry.$make($name).with_callback(callback).build().unwrap().keep();
        )*};
    }
    observed!(
        u64_observable_counter "observed.requests" 7,
        f64_observable_counter "observed.seconds" 1.5,
        i64_observable_up_down_counter "observed.in.flight" -7,
        f64_observable_up_down_counter "observed.balance" -1.5,
        u64_observable_gauge "observed.largest" 7,
        i64_observable_gauge "observed.least" -7,
        f64_observable_gauge "observed.share" 0.125
    );
    let library = Scope::new("library")
        .with_version("2.1")
        .with_schema_url("https://example.com/1");
    let library = registry.with_scope(library.with_attributes([attribute("part", "x")]));
    let library = library.u64_counter("requests").build().unwrap();
    let kinds = [
        attribute("text", "\u{fc}\n"),
        attribute("flag", true),
        attribute("integer", i64::MIN),
        attribute("float", 0.1),
        attribute(
            "texts",
            AttributeValue::Array(Array::String(vec!["a".into(), "b".into()])),
        ),
        attribute(
            "flags",
            AttributeValue::Array(Array::Bool(vec![true, false])),
        ),
        attribute("integers", AttributeValue::Array(Array::I64(vec![1, -2]))),
        attribute(
            "floats",
            AttributeValue::Array(Array::F64(vec![0.5, -1.25])),
        ),
    ];
    move || {
        // More than a float holds.
        requests.add((1 << 53) + 1, EMPTY_ATTRS);
        requests.add(5, &kinds);
        seconds.add(0.125, EMPTY_ATTRS);
        in_flight.add(-7, EMPTY_ATTRS);
        balance.add(-1.5, EMPTY_ATTRS);
        largest.record(u64::MAX, EMPTY_ATTRS);
        least.record(i64::MIN, EMPTY_ATTRS);
        share.record(0.25, EMPTY_ATTRS);
        [10, 11, 1000]
            .into_iter()
            .for_each(|size| sizes.record(size, EMPTY_ATTRS));
        waits.record(0.25, EMPTY_ATTRS);
        within_a_trace(|| {
            waits.record(0.75, EMPTY_ATTRS);
            seconds.add(0.5, EMPTY_ATTRS);
        });
        [0, 1, 2, 3, 4]
            .into_iter()
            .for_each(|power| powers.record(power, EMPTY_ATTRS));
        [1.0, 1.125, 2.0, 0.0, -4.0]
            .into_iter()
            .for_each(|change| changes.record(change, EMPTY_ATTRS));
        library.add(1, EMPTY_ATTRS);
    }
}

/// What they say after so many times, counters and histograms that are recorded to for `new` of them.
fn expected(times: u64, new: u64, temporality: Temporality) -> Value {
    let delta = "AGGREGATION_TEMPORALITY_DELTA";
    let cumulative = "AGGREGATION_TEMPORALITY_CUMULATIVE";
    let (recorded, observed) = match temporality {
        Temporality::Cumulative => (cumulative, cumulative),
        Temporality::Delta => (delta, delta),
        Temporality::LowMemory => (delta, cumulative),
    };
    let text = |n: u64| n.to_string();
    let sum_of = |points: Value, temporality: &str| {
        json!({
            "dataPoints": points,
            "aggregationTemporality": temporality,
            "isMonotonic": true
        })
    };
    let array = |values: Value| json!({"arrayValue": {"values": values}});
    let sum = |points: Value| sum_of(points, recorded);
    let up_down =
        |points: Value| json!({"dataPoints": points, "aggregationTemporality": cumulative});
    // What is observed does not change.
    let change = u8::from(times == 1 || observed == cumulative);
    let n = json!([{"key": "n", "value": {"intValue": "1"}}]);
    let trace = json!({"spanId": "AgICAgICAgI=", "traceId": "AQEBAQEBAQEBAQEBAQEBAQ=="});
    let exemplar = |value: f64| json!([{"asDouble": value, "spanId": trace["spanId"], "traceId": trace["traceId"]}]);
    json!({"resourceMetrics": [{
        "resource": {"attributes": [
            {"key": "cpus", "value": {"intValue": "8"}},
            {"key": "service.name", "value": {"stringValue": "n\u{f8}de"}},
        ]},
        "scopeMetrics": [
            {"scope": {"name": "tests", "version": "1.2.3"}, "metrics": [
                {"name": "requests", "unit": "{request}", "description": "What arrived.", "sum": sum(json!([
                    {"asInt": text(new * ((1 << 53) + 1))},
                    {"asInt": text(new * 5), "attributes": [
                        {"key": "flag", "value": {"boolValue": true}},
                        {"key": "flags", "value": array(json!([{"boolValue": true}, {"boolValue": false}]))},
                        {"key": "float", "value": {"doubleValue": 0.1}},
                        {"key": "floats", "value": array(json!([{"doubleValue": 0.5}, {"doubleValue": -1.25}]))},
                        {"key": "integer", "value": {"intValue": "-9223372036854775808"}},
                        {"key": "integers", "value": array(json!([{"intValue": "1"}, {"intValue": "-2"}]))},
                        {"key": "text", "value": {"stringValue": "\u{fc}\n"}},
                        {"key": "texts", "value": array(json!([{"stringValue": "a"}, {"stringValue": "b"}]))},
                    ]},
                ]))},
                {"name": "seconds", "unit": "s", "sum": sum(json!([
                    {"asDouble": 0.625 * new as f64, "exemplars": exemplar(0.5)},
                ]))},
                {"name": "in.flight", "sum": up_down(json!([{"asInt": (times as i64 * -7).to_string()}]))},
                {"name": "balance", "sum": up_down(json!([{"asDouble": times as f64 * -1.5}]))},
                {"name": "largest", "gauge": {"dataPoints": [{"asDouble": u64::MAX as f64}]}},
                {"name": "least", "gauge": {"dataPoints": [{"asInt": i64::MIN.to_string()}]}},
                {"name": "share", "gauge": {"dataPoints": [{"asDouble": 0.25}]}},
                {"name": "sizes", "unit": "By", "histogram": {"aggregationTemporality": recorded, "dataPoints": [{
                    "count": text(3 * new), "sum": 1021.0 * new as f64, "min": 10.0, "max": 1000.0,
                    "explicitBounds": [10.0, 100.0], "bucketCounts": [text(new), text(new), text(new)],
                }]}},
                {"name": "waits", "histogram": {"aggregationTemporality": recorded, "dataPoints": [{
                    "count": text(2 * new), "sum": new as f64, "min": 0.25, "max": 0.75,
                    "explicitBounds": [0.5], "bucketCounts": [text(new), text(new)], "exemplars": exemplar(0.75),
                }]}},
                // Upper bounds belong to their buckets: 1, 2, and 4 with 3.
                {"name": "powers", "exponentialHistogram": {"aggregationTemporality": recorded, "dataPoints": [{
                    "count": text(5 * new), "sum": 10.0 * new as f64, "min": 0.0, "max": 4.0, "zeroCount": text(new),
                    "positive": {"offset": -1, "bucketCounts": [text(new), text(new), text(2 * new)]}, "negative": {},
                }]}},
                // Eight buckets an octave.
                {"name": "changes", "exponentialHistogram": {"aggregationTemporality": recorded, "dataPoints": [{
                    "count": text(5 * new), "sum": 0.125 * new as f64, "min": -4.0, "max": 2.0,
                    "scale": 3, "zeroCount": text(new), "zeroThreshold": 2f64.powi(-30),
                    "positive": {"offset": -1, "bucketCounts": [
                        text(new), "0", text(new), "0", "0", "0", "0", "0", text(new),
                    ]},
                    "negative": {"offset": 15, "bucketCounts": [text(new)]},
                }]}},
                {"name": "observed.requests", "sum": sum_of(json!([
                    {"attributes": n, "asInt": (7 * change).to_string()},
                ]), observed)},
                {"name": "observed.seconds", "sum": sum_of(json!([
                    {"attributes": n, "asDouble": 1.5 * f64::from(change)},
                ]), observed)},
                {"name": "observed.in.flight", "sum": up_down(json!([{"attributes": n, "asInt": "-7"}]))},
                {"name": "observed.balance", "sum": up_down(json!([{"attributes": n, "asDouble": -1.5}]))},
                {"name": "observed.largest", "gauge": {"dataPoints": [{"attributes": n, "asInt": "7"}]}},
                {"name": "observed.least", "gauge": {"dataPoints": [{"attributes": n, "asInt": "-7"}]}},
                {"name": "observed.share", "gauge": {"dataPoints": [{"attributes": n, "asDouble": 0.125}]}},
            ]},
            {"scope": {
                "name": "library", "version": "2.1",
                "attributes": [{"key": "part", "value": {"stringValue": "x"}}],
            }, "schemaUrl": "https://example.com/1", "metrics": [
                {"name": "requests", "sum": sum(json!([{"asInt": text(new)}]))},
            ]},
        ],
    }]})
}

/// `message` says what the times are of.
fn check_times(first: &Times, second: &Times, message: &Value) {
    assert!(first.keys().eq(second.keys()));
    for (path, first) in first {
        let data = path.split_once("/dataPoints").unwrap().0;
        let temporality = &message.pointer(data).unwrap()["aggregationTemporality"];
        match (
            temporality.as_str(),
            first.as_slice(),
            second[path].as_slice(),
        ) {
            (_, [first], [second]) if path.contains("/exemplars/") => assert!(first <= second),
            (None, [first], [second]) => assert!(first <= second, "a gauge has no start"),
            (Some("AGGREGATION_TEMPORALITY_DELTA"), [_, end], [start, _]) => assert_eq!(end, start),
            (Some(_), [first_start, end], [start, second_end]) => {
                assert!(first_start == start && end <= second_end);
            }
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[test]
fn a_decoder_of_others_reads_what_was_recorded() {
    let request = request_type();
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let (url, arrived) = receiver(protocol);
        for temporality in [
            Temporality::Cumulative,
            Temporality::Delta,
            Temporality::LowMemory,
        ] {
            let registry = Registry::new();
            let before = nanos();
            let record = instruments(&registry);
            let exporter = match protocol {
                Protocol::Http => OtlpExporter::http(&url),
                Protocol::Grpc => OtlpExporter::grpc(&url),
            };
            let exporter = exporter.with_interval(LONG).with_temporality(temporality);
            let exporter = exporter
                .with_scope("tests", "1.2.3")
                .start(&registry)
                .unwrap();
            let mut collected = Vec::new();
            for times in [1, 2] {
                record();
                exporter.flush(LONG).unwrap();
                let body = arrived.lock().unwrap().pop().unwrap();
                let mut message = decode(&request, &body);
                let mut found = Times::new();
                take_times(&mut message, "", &mut found);
                let new = match temporality {
                    Temporality::Delta | Temporality::LowMemory => 1,
                    Temporality::Cumulative => times,
                };
                assert_eq!(message, expected(times, new, temporality), "{protocol:?}");
                for times in found.values() {
                    assert!(
                        times.is_sorted()
                            && before <= times[0]
                            && times[times.len() - 1] <= nanos()
                    );
                }
                collected.push(found);
            }
            check_times(&collected[0], &collected[1], &expected(1, 1, temporality));
        }
    }
}

fn nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_nanos()).unwrap()
}
