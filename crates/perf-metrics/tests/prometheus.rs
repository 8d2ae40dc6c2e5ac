//! The text is what Prometheus reads, and says what the SDK would have counted.
#![cfg(feature = "prometheus")]

mod common;

use common::{Op, Ours, Point, Sdk, assert_same, normal, ops};
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
use perf_metrics::{EMPTY_ATTRS, KeyValue, NodeMetrics, Registry, prometheus};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Metric name, labels, value; panics on what is not the format.
fn parse(text: &str) -> Vec<(String, BTreeMap<String, String>, f64)> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    let mut samples = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (left, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = left.split_once('{').map_or((left, ""), |(name, rest)| {
            (name, rest.strip_suffix('}').unwrap())
        });
        assert!(is_name(name), "{line}");
        let mut parsed = BTreeMap::new();
        let mut rest = labels;
        while !rest.is_empty() {
            let (key, after) = rest.split_once("=\"").unwrap();
            assert!(is_name(key), "{line}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().unwrap() {
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        other => other,
                    }),
                    (at, '"') => break at,
                    (_, other) => value.push(other),
                }
            };
            assert!(parsed.insert(key.to_owned(), value).is_none(), "{line}");
            rest = after[end + 1..].trim_start_matches(',');
        }
        let value = value.replace("+Inf", "inf").parse().unwrap();
        assert!(
            !samples.contains(&(name.to_owned(), parsed.clone(), value)),
            "twice: {line}"
        );
        samples.push((name.to_owned(), parsed, value));
    }
    samples
}

/// The SDK's points in the terms of the text: cumulative buckets, no extremes, names with units.
fn text_of_sdk(points: &[Point]) -> Vec<Point> {
    let mut all = Vec::new();
    for point in points {
        let mut push = |name: &str, le: &str, value: f64| {
            let mut attributes = point.attributes.clone();
            if !le.is_empty() {
                attributes = format!("{attributes}|{le}");
            }
            all.push(Point {
                name: name.to_owned(),
                unit: String::new(),
                description: String::new(),
                kind: String::new(),
                attributes,
                numbers: vec![value],
            });
        };
        match point.name.as_str() {
            "count" => push("count_total", "", point.numbers[0]),
            "count.float" => push("count_float_seconds_total", "", point.numbers[0]),
            "up.down" => push("up_down", "", point.numbers[0]),
            "gauge" => push("gauge", "", point.numbers[0]),
            histogram => {
                let name = if histogram == "size" {
                    "size_bytes"
                } else {
                    "time_milliseconds"
                };
                let (bounds, counts) = point.numbers[4..].split_at(15);
                let mut total = 0.0;
                for (bound, count) in bounds.iter().chain([&f64::INFINITY]).zip(counts) {
                    total += count;
                    push(
                        &format!("{name}_bucket"),
                        &format!("{bound:?}").replace("inf", "+Inf"),
                        total,
                    );
                }
                push(&format!("{name}_sum"), "", point.numbers[1]);
                push(&format!("{name}_count"), "", point.numbers[0]);
            }
        }
    }
    normal(all)
}

fn text_of_ours(text: &str) -> Vec<Point> {
    let point = |(name, mut labels, value): (String, BTreeMap<String, String>, f64)| {
        let le = labels.remove("le");
        let mut pairs: Vec<String> = labels
            .into_iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        pairs.sort();
        let mut attributes = pairs.join(",");
        if let Some(le) = le {
            attributes = format!("{attributes}|{le}");
        }
        Point {
            name,
            unit: String::new(),
            description: String::new(),
            kind: String::new(),
            attributes,
            numbers: vec![value],
        }
    };
    normal(parse(text).into_iter().map(point).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_text_says_what_the_sdk_counts(ops in ops()) {
        let exporter = InMemoryMetricExporter::default();
        let reader = PeriodicReader::builder(exporter.clone()).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        let registry = Registry::new();
        let (ours, sdk) = (Ours::new(&registry), Sdk::new(&provider.meter("test")));
        for op in ops.iter().chain([&Op::Collect]) {
            ours.apply(op);
            sdk.apply(op);
        }
        provider.force_flush().unwrap();
        let mut text = String::new();
        prometheus::write(&registry.collect(), &mut text);
        let expected: Vec<Point> = exporter.get_finished_metrics().unwrap().last().map(common::sdk_points).unwrap_or_default();
        let mut found = text_of_ours(&text);
        let mut expected = text_of_sdk(&expected);
        // The text has series that were never recorded to, or came back to zero, as zeros.
        found.retain(|point| point.numbers != [0.0]);
        expected.retain(|point| point.numbers != [0.0]);
        assert_same(&found, &expected);
    }
}

#[test]
fn exponential_buckets_grow_and_end_with_all() {
    let registry = Registry::new();
    let histogram = registry.f64_histogram("h").build().unwrap();
    for value in [0.0, 0.5, 1.0, 1.5, 3.0, 1e300, -4.0] {
        histogram.record(value, EMPTY_ATTRS);
    }
    let mut text = String::new();
    prometheus::write(&registry.collect(), &mut text);
    let buckets: BTreeMap<String, f64> = parse(&text)
        .into_iter()
        .filter_map(|(_, labels, value)| Some((labels.get("le")?.clone(), value)))
        .collect();
    let at = |le: &str| buckets[le];
    // Values below zero are below every bound.
    assert_eq!(
        (at("0.5"), at("1.0"), at("2.0"), at("4.0"), at("+Inf")),
        (3.0, 4.0, 5.0, 6.0, 7.0)
    );
    assert!(buckets.len() > 60);
}

#[test]
fn counters_whose_names_become_the_same_are_one_family() {
    let registry = Registry::new();
    registry
        .u64_counter("a.b")
        .build()
        .unwrap()
        .add(1, &[KeyValue::new("k", "line\nend")]);
    registry
        .u64_counter("a_b")
        .with_description("other")
        .build()
        .unwrap()
        .add(2, EMPTY_ATTRS);
    let mut text = String::new();
    prometheus::write(&registry.collect(), &mut text);
    // Both are counters of one family, with labels of their own.
    let samples = parse(&text);
    assert_eq!(samples.len(), 2, "{text}");
    assert!(samples.iter().all(|(name, ..)| name == "a_b_total"));
}

/// <https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>, its sections on resources and scopes.
#[test]
fn the_resource_is_target_info_and_scopes_are_labels() {
    let registry = Registry::new();
    registry.set_resource([KeyValue::new("service.name", "node"), KeyValue::new("n", 1)]);
    let scope = perf_metrics::Scope::new("lib")
        .with_version("1.2")
        .with_schema_url("https://example.com/1")
        .with_attributes([KeyValue::new("a.b", "c")]);
    let scoped = registry.with_scope(scope).u64_counter("c").build().unwrap();
    scoped.add(1, &[KeyValue::new("k", "v")]);
    registry
        .u64_counter("plain")
        .build()
        .unwrap()
        .add(1, EMPTY_ATTRS);
    let mut text = String::new();
    prometheus::write(&registry.collect(), &mut text);
    let samples: BTreeMap<String, BTreeMap<String, String>> = parse(&text)
        .into_iter()
        .map(|(name, labels, _)| (name, labels))
        .collect();
    let of = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        let pairs = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        pairs.collect()
    };
    assert_eq!(
        samples["target_info"],
        of(&[("service_name", "node"), ("n", "1")])
    );
    let expected = of(&[
        ("k", "v"),
        ("otel_scope_name", "lib"),
        ("otel_scope_version", "1.2"),
        ("otel_scope_schema_url", "https://example.com/1"),
        ("otel_scope_a_b", "c"),
    ]);
    assert_eq!(samples["c_total"], expected);
    assert_eq!(samples["plain_total"], of(&[]));
    let mut open = Vec::new();
    prometheus::expose(
        &registry.collect(),
        prometheus::Format::OpenMetrics,
        &mut open,
    );
    let open = String::from_utf8(open).unwrap();
    assert!(
        open.contains("# TYPE target info\n") && open.contains("\ntarget_info{"),
        "{open}"
    );
    assert!(open.ends_with("# EOF\n"));
}

#[cfg(feature = "http")]
mod http {
    use super::*;
    use ::http::{Method, Request};
    use perf_metrics::prometheus::http::{ScrapeServer, handle};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_handler_answers_scrapes_and_refuses_the_rest() {
        let registry = Registry::new();
        NodeMetrics::new(&registry).unwrap();
        let ask = |method: Method, uri: &str| {
            handle(
                &registry,
                &Request::builder().method(method).uri(uri).body(()).unwrap(),
            )
        };
        let answer = ask(Method::GET, "http://node:9000/metrics?x=1");
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-type"]),
            (200, &prometheus::CONTENT_TYPE.parse().unwrap())
        );
        assert!(
            parse(std::str::from_utf8(answer.body()).unwrap())
                .iter()
                .any(|(name, labels, value)| name == "vm_operations_total"
                    && labels["status"] == "failed"
                    && *value == 0.0)
        );
        assert_eq!(ask(Method::GET, "/other").status().as_u16(), 404);
        assert_eq!(ask(Method::POST, "/metrics").status().as_u16(), 405);
    }

    #[test]
    fn the_server_survives_bad_clients_and_stops() {
        let registry = Registry::new();
        registry
            .u64_counter("c")
            .build()
            .unwrap()
            .add(7, EMPTY_ATTRS);
        let server =
            ScrapeServer::start(registry, TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let ask = |request: &[u8]| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            // The server may have closed already, having seen enough.
            let _ = stream.write_all(request);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            String::from_utf8(answer).unwrap()
        };
        drop(TcpStream::connect(server.address()).unwrap());
        assert!(ask(b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
        ask(&[b'x'; 100_000]);
        let answer = ask(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("c_total 7\n"),
            "{answer}"
        );
        drop(server);
    }

    /// Clients that send nothing, or a byte at a time, or read nothing, hold no other up. That the scrape is answered while they are
    /// there is the proof: they stay open until it was.
    #[test]
    fn slow_clients_hold_no_other_up_and_are_closed_at_one_deadline() {
        let registry = Registry::new();
        registry
            .u64_counter("c")
            .build()
            .unwrap()
            .add(7, EMPTY_ATTRS);
        let server =
            ScrapeServer::start(registry, TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let mut slow: Vec<TcpStream> = (0..10)
            .map(|_| TcpStream::connect(server.address()).unwrap())
            .collect();
        for (n, stream) in slow.iter_mut().enumerate().skip(5) {
            stream
                .write_all(&b"GET /metrics HTTP/1.1\r\n"[..n])
                .unwrap();
        }
        let mut scrape = TcpStream::connect(server.address()).unwrap();
        scrape
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        scrape.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("c_total 7\n"), "{answer}");
        // One that sends a byte now and then is closed all the same: a deadline for each read would let it stay.
        let mut dripping = TcpStream::connect(server.address()).unwrap();
        dripping
            .set_read_timeout(Some(std::time::Duration::from_millis(50)))
            .unwrap();
        let is_closed = (0..600).any(|_| {
            let is_broken = dripping.write_all(b"x").is_err();
            is_broken || matches!(dripping.read(&mut [0; 64]), Ok(0))
        });
        assert!(is_closed, "it may stay as long as it likes");
    }
}

#[test]
fn exponential_histograms_whose_names_become_the_same_are_added_up() {
    let registry = Registry::new();
    let one = registry.f64_histogram("a.b").build().unwrap();
    let other = registry.f64_histogram("a_b").with_scale(5).build().unwrap();
    let integers = registry.u64_histogram("a/b").build().unwrap();
    for value in [0.5, 1.0, 2.0] {
        one.record(value, EMPTY_ATTRS);
        other.record(value * 4.0, EMPTY_ATTRS);
    }
    integers.record(8, EMPTY_ATTRS);
    let mut out = Vec::new();
    let left_out = prometheus::expose(&registry.collect(), prometheus::Format::Text, &mut out);
    assert!(left_out.is_empty(), "{left_out:?}");
    let samples = parse(&String::from_utf8(out).unwrap());
    let of = |name: &str, le: Option<&str>| {
        let is_it = |sample: &&(String, BTreeMap<String, String>, f64)| {
            sample.0 == name && sample.1.get("le").map(String::as_str) == le
        };
        samples.iter().find(is_it).unwrap().2
    };
    assert_eq!((of("a_b_count", None), of("a_b_sum", None)), (7.0, 25.5));
    let bounds = ["0.5", "1.0", "2.0", "4.0", "8.0"];
    let found = bounds.map(|le| of("a_b_bucket", Some(le)));
    assert_eq!(found, [1.0, 2.0, 4.0, 5.0, 7.0]);
}

/// OpenMetrics calls the family of `target_info` `target`, which an instrument may be called too.
#[test]
fn an_instrument_named_as_the_targets_family_is_another() {
    use perf_metrics::prometheus::{Format, expose};
    let registry = Registry::new();
    registry.set_resource([KeyValue::new("service.name", "node")]);
    let gauge = registry.u64_gauge("target").build().unwrap();
    let lines = |registry: &Registry| {
        let mut out = Vec::new();
        assert!(expose(&registry.collect(), Format::OpenMetrics, &mut out).is_empty());
        let text = String::from_utf8(out).unwrap();
        let types = text.lines().filter(|line| line.starts_with("# TYPE"));
        types.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(&registry), ["# TYPE target info"]);
    gauge.set(3, EMPTY_ATTRS);
    assert_eq!(
        lines(&registry),
        ["# TYPE target_info gauge", "# TYPE target gauge"]
    );
}

/// Otherwise Prometheus rejects the whole target.
#[test]
fn a_unit_is_told_only_where_the_name_ends_with_it() {
    let registry = Registry::new();
    let mut gauges = Vec::new();
    let mut counters = Vec::new();
    let units = [
        "cpu-seconds",
        "s",
        "{a}/s",
        "By/cpu-s",
        "1",
        "%",
        "",
        "By{x}",
        "s{",
        "a b per s",
        "/s",
        "s/",
        "//",
        "total",
    ];
    for (n, unit) in units.into_iter().enumerate() {
        for name in [format!("m{n}"), format!("s.bytes.m{n}.seconds.x")] {
            let gauge = registry.f64_gauge(name.clone() + ".g").with_unit(unit);
            gauges.push(gauge.build().unwrap());
            let counter = registry.u64_counter(name).with_unit(unit);
            counters.push(counter.build().unwrap());
        }
    }
    gauges
        .iter()
        .for_each(|gauge| gauge.record(1.0, EMPTY_ATTRS));
    counters
        .iter()
        .for_each(|counter| counter.add(1, EMPTY_ATTRS));
    let mut text = Vec::new();
    let left_out = prometheus::expose(
        &registry.collect(),
        prometheus::Format::OpenMetrics,
        &mut text,
    );
    assert!(left_out.is_empty(), "{left_out:?}");
    let text = String::from_utf8(text).unwrap();
    let told: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# UNIT "))
        .collect();
    assert!(told.len() > units.len(), "{told:?}");
    for line in told {
        let (name, unit) = line.split_once(' ').unwrap();
        assert!(
            name.strip_suffix(unit)
                .is_some_and(|stem| stem.ends_with('_')),
            "{line}"
        );
        assert!(
            !unit.contains(|c: char| !c.is_ascii_alphanumeric() && c != '_'),
            "{line}"
        );
    }
}
