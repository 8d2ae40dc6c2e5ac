//! A Prometheus of the distribution scrapes every kind of instrument, as OpenMetrics and as protobuf with native histograms, and has the
//! values that were recorded. Skipped, and said so, where the program `prometheus` is not installed.
//!
//! `PERF_METRICS_PROMETHEUS_SECONDS=60` records for so long before the values are compared; otherwise for two scrapes.
#![cfg(feature = "http")]

use perf_metrics::prometheus::http::ScrapeServer;
use perf_metrics::prometheus::{Format, expose};
use perf_metrics::{EMPTY_ATTRS, KeyValue, NodeMetrics, Observable, Registry, Scope, TraceContext};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Ends the program with the test, however that ends.
struct Prometheus {
    program: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

impl Prometheus {
    fn start(target: SocketAddr, features: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n  - job_name: test\n    honor_labels: true\n    \
             static_configs: [{{targets: ['{target}']}}]\n"
        );
        std::fs::write(&config, text).unwrap();
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let program = Command::new("prometheus")
            .arg(flag("config.file", &config))
            .arg(flag("storage.tsdb.path", &directory.path().join("data")))
            .arg(format!("--web.listen-address={address}"))
            .arg(format!("--enable-feature={features}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            program,
            address,
            _directory: directory,
        }
    }

    /// The answer's `data`; `None` while it does not answer.
    fn get(&self, path: &str, query: &str) -> Option<Json> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .ok()?;
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let request = format!("GET /api/v1/{path}query={encoded} HTTP/1.0\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let mut body: Json = serde_json::from_str(body).ok()?;
        Some(body["data"].take())
    }

    /// Name and labels to value, of a query whose results are numbers.
    fn samples(&self, query: &str) -> BTreeMap<String, f64> {
        let data = self.get("query?", query).unwrap_or_default();
        let mut samples = BTreeMap::new();
        for result in data["result"].as_array().into_iter().flatten() {
            let labels = result["metric"].as_object().unwrap();
            let pairs = labels
                .iter()
                .map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned()));
            let Some(value) = result["value"][1].as_str() else {
                continue;
            };
            let value = value.replace("Inf", "inf").parse().unwrap();
            samples.insert(key(pairs.collect()), value);
        }
        samples
    }
}

/// One text for a sample's labels, its name among them. The target's own labels are left out, and bounds are numbers.
fn key(mut labels: BTreeMap<String, String>) -> String {
    labels.remove("job");
    labels.remove("instance");
    // An attribute of a counter may have that name too.
    if let Some(bound) = labels.get_mut("le")
        && let Ok(number) = bound.replace("Inf", "inf").parse::<f64>()
    {
        *bound = format!("{number:?}");
    }
    format!("{labels:?}")
}

/// The samples of an exposition in the same terms.
fn exposed(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let line = line.split(" # ").next().unwrap();
        let (left, value) = line.rsplit_once(' ').unwrap();
        let (name, mut rest) = left.split_once('{').unwrap_or((left, "}"));
        let mut labels = BTreeMap::from([("__name__".to_owned(), name.to_owned())]);
        while let Some((label, after)) = rest.split_once("=\"") {
            let (mut value, mut chars) = (String::new(), after.char_indices());
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
            labels.insert(label.trim_start_matches(',').to_owned(), value);
            rest = &after[end + 1..];
        }
        samples.insert(key(labels), value.replace("Inf", "inf").parse().unwrap());
    }
    samples
}

struct Instruments {
    registry: Registry,
    node: NodeMetrics,
    record: Box<dyn Fn(u64)>,
    _observed: Vec<Observable>,
}

fn instruments() -> Instruments {
    let registry = Registry::new();
    registry.set_resource([KeyValue::new("service.name", "a \"test\" of\\ours\n")]);
    registry.set_exemplar_source(|| {
        Some(TraceContext {
            trace_id: [0xab; 16],
            span_id: [0xcd; 8],
        })
    });
    let node = NodeMetrics::new(&registry).unwrap();
    let counter = registry.u64_counter("c").with_unit("By").build().unwrap();
    let floats = registry.f64_counter("c.float").build().unwrap();
    let up_down = registry.i64_up_down_counter("up.down").build().unwrap();
    let gauge = registry.f64_gauge("g").with_unit("s").build().unwrap();
    let explicit = registry
        .u64_histogram("explicit")
        .with_boundaries([1.0, 10.0, 100.0])
        .build()
        .unwrap();
    let exponential = registry.f64_histogram("exponential").build().unwrap();
    let scoped = registry.with_scope(Scope::new("lib").with_version("1"));
    let scoped = scoped.u64_counter("scoped").build().unwrap();
    let observed = vec![
        registry
            .u64_observable_counter("o.c")
            .with_callback(|o| o.observe(5, &[KeyValue::new("k", "v")]))
            .build()
            .unwrap(),
        registry
            .f64_observable_up_down_counter("o.u")
            .with_callback(|o| o.observe(-2.5, &[]))
            .build()
            .unwrap(),
        registry
            .i64_observable_gauge("o.g")
            .with_callback(|o| o.observe(-7, &[]))
            .build()
            .unwrap(),
    ];
    let record = move |n: u64| {
        let sets = [
            vec![],
            vec![KeyValue::new("empty", "")],
            vec![KeyValue::new("__name__", "x"), KeyValue::new("le", "y")],
            vec![KeyValue::new("text", "quote \" back \\ line\nend é")],
        ];
        for set in &sets {
            counter.add(n, set);
            floats.add(0.25, set);
            up_down.add(-1, set);
            gauge.set(n as f64 / 8.0, set);
            explicit.record(n % 200, set);
            // An empty label is none to Prometheus, and exponential histograms are not added up: one is then left out, and said to be.
            if set.first().is_none_or(|kv| kv.key.as_str() != "empty") {
                exponential.record((n % 50) as f64 * 0.125, set);
            }
        }
        scoped.add(1, EMPTY_ATTRS);
    };
    Instruments {
        registry,
        node,
        record: Box::new(record),
        _observed: observed,
    }
}

fn is_installed() -> bool {
    let version = Command::new("prometheus")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let is_installed = version.is_ok_and(|status| status.success());
    if !is_installed {
        eprintln!("skipped: the program `prometheus` is not installed");
    }
    is_installed
}

/// Records, lets Prometheus scrape, and compares until all is equal; the last difference is the failure.
fn scrape(features: &str, is_native: bool) {
    if !is_installed() {
        return;
    }
    let instruments = instruments();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = ScrapeServer::start(instruments.registry.clone(), listener).unwrap();
    let prometheus = Prometheus::start(server.address(), features);
    let seconds = std::env::var("PERF_METRICS_PROMETHEUS_SECONDS");
    let seconds: u64 = seconds.map_or(2, |seconds| seconds.parse().unwrap());
    for n in 0..seconds * 20 {
        (instruments.record)(n);
        instruments.node.raft_elections.increment();
        instruments.node.message_size.record(n);
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut text = Vec::new();
    expose(
        &instruments.registry.collect(),
        Format::OpenMetrics,
        &mut text,
    );
    let mut expected = exposed(std::str::from_utf8(&text).unwrap());
    // Those that are native have no samples of their own in protobuf, and Prometheus does not read when they began.
    let native = ["exponential", "network_message_size_bytes"];
    let is_part_of = |key: &str, name: &str| key.contains(&format!("\"__name__\": \"{name}_"));
    if is_native {
        expected.retain(|key, _| !native.iter().any(|name| is_part_of(key, name)));
        expected.retain(|key, _| !key.contains("_created\""));
    }
    let counts = |name| {
        let series = instruments.registry.collect();
        let metric = series.metric(name).unwrap();
        let series = metric.series().iter().filter(|series| series.is_recorded());
        let count = |h: &perf_metrics::HistogramSnapshot| (h.count() as f64, h.sum().as_f64());
        series.fold((0.0, 0.0), |(n, sum), series| {
            let (more, plus) = count(series.histogram().unwrap());
            (n + more, sum + plus)
        })
    };
    let mut difference = vec!["it never answered".to_owned()];
    for _ in 0..120 {
        let found = prometheus.samples("{job=\"test\"}");
        difference = expected
            .iter()
            .filter(|(key, value)| {
                found
                    .get(*key)
                    .is_none_or(|found| (found - **value).abs() > 1e-9 * value.abs())
            })
            .map(|(key, value)| format!("{key}: {value}, found {:?}", found.get(key)))
            .collect();
        if is_native {
            for (name, instrument) in native.iter().zip(["exponential", "network.message.size"]) {
                let sum_of = |function: &str| {
                    let query = format!("sum({function}({name}))");
                    prometheus.samples(&query).into_values().next()
                };
                let (count, sum) = counts(instrument);
                let found = (sum_of("histogram_count"), sum_of("histogram_sum"));
                if found != (Some(count), Some(sum)) {
                    let each = prometheus.samples(&format!("histogram_count({name})"));
                    difference.push(format!(
                        "{name}: {count} {sum}, found {found:?} of {each:?}"
                    ));
                }
            }
        }
        if difference.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    assert!(difference.is_empty(), "{difference:#?}");
    let up = prometheus.samples("min_over_time(up[10m])");
    assert_eq!(
        up.into_values().collect::<Vec<_>>(),
        [1.0],
        "a scrape failed"
    );
    let exemplars = prometheus.get("query_exemplars?start=0&end=99999999999&", "c_bytes_total");
    let exemplars = exemplars.unwrap_or_default().to_string();
    assert!(exemplars.contains(&"ab".repeat(16)), "{exemplars}");
}

#[test]
fn all_values_arrive_as_open_metrics() {
    scrape("exemplar-storage", false);
}

#[test]
fn all_values_arrive_as_protobuf_with_native_histograms() {
    scrape("native-histograms,exemplar-storage", true);
}

/// The linter of Prometheus finds no fault that makes a scrape fail, whatever is recorded.
#[test]
fn promtool_reads_the_text() {
    let version = Command::new("promtool").arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: the program `promtool` is not installed");
        return;
    }
    let instruments = instruments();
    (0..300).for_each(|n| (instruments.record)(n));
    let mut text = String::new();
    perf_metrics::prometheus::write(&instruments.registry.collect(), &mut text);
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    // 1 is a fault of the text; 3 is advice on names and descriptions.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{said}");
}

/// Names that no series should have, and values that no sum should have.
#[test]
fn promtool_reads_what_is_recorded_whatever_it_is() {
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("skipped: the program `promtool` is not installed");
        return;
    }
    let texts = [
        "",
        " ",
        "\"",
        "\\",
        "\\n",
        "a\nb",
        "\r\n",
        "\t",
        "\0",
        "\u{7f}\u{80}\u{ffff}\u{10ffff}",
        "{}=,#",
        "9",
        "__name__",
        "le",
        "quantile",
        "exported_le",
        "otel_scope_name",
        "é",
    ];
    let numbers = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        0.0,
        -0.0,
        f64::MIN_POSITIVE / 3.0,
        f64::MAX,
        f64::MIN,
        1e16,
        0.1 + 0.2,
    ];
    let registry = Registry::new();
    registry.set_resource(texts.map(|text| KeyValue::new(text, text)));
    let scope = perf_metrics::Scope::new("a\nb")
        .with_version("\"")
        .with_attributes(texts.map(|text| KeyValue::new(text, text)));
    let scoped = registry.with_scope(scope);
    for registry in [&registry, &scoped] {
        let counter = registry
            .u64_counter("a//b..total")
            .with_unit("{\"\\}/\n")
            .with_description("a\n\\n \"b\"\r")
            .build()
            .unwrap();
        let gauge = registry.f64_gauge("g").with_unit("1/%").build().unwrap();
        let signed = registry.i64_up_down_counter("g.i").build().unwrap();
        let histogram = registry.f64_histogram("le").build().unwrap();
        let classic = registry
            .f64_histogram("h")
            .with_boundaries([-1e300, -0.0, 5e-324, 1e300])
            .build()
            .unwrap();
        for key in texts {
            for value in texts {
                let set = [KeyValue::new(key, value), KeyValue::new("le", value)];
                counter.add(u64::MAX / 1000, &set);
                histogram.record(1.5, &set);
            }
        }
        for (place, number) in numbers.into_iter().enumerate() {
            let set = [KeyValue::new("n", place as i64)];
            gauge.set(number, &set);
            histogram.record(number, &set);
            classic.record(number, &set);
        }
        signed.add(i64::MIN, &[]);
        signed.add(i64::MAX, &[KeyValue::new("n", f64::NAN)]);
    }
    let mut text = String::new();
    perf_metrics::prometheus::write(&registry.collect(), &mut text);
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{said}");
    assert!(text.contains("-9223372036854775808") && text.contains("NaN"));
}
