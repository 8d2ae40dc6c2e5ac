//! What the exporter does with answers, limits and slow receivers.
#![cfg(feature = "otlp-grpc")]

#[path = "common/grpc.rs"]
mod grpc_receiver;

use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use perf_metrics::otlp::{Accepted, OtlpBuilder, OtlpError, OtlpExporter, SendError, Transport};
use perf_metrics::{EMPTY_ATTRS, KeyValue, Registry, Temporality};
use prost::Message;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn quiet(builder: OtlpBuilder) -> OtlpBuilder {
    builder
        .with_interval(Duration::from_secs(3600))
        .with_error_handler(|_| {})
}

/// A receiver whose connections are handled by `answer`, each in a thread, until the process ends.
fn raw(answer: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || answer(stream));
        }
    });
    format!("http://{address}")
}

/// Head and body of a request.
fn read_request(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut part = [0; 65536];
    loop {
        let read = stream.read(&mut part).unwrap();
        assert!(read > 0, "the request ends early");
        bytes.extend_from_slice(&part[..read]);
        let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(bytes[..end].to_vec())
            .unwrap()
            .to_lowercase();
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap()
            .parse()
            .unwrap();
        if bytes.len() >= end + 4 + length {
            return (head, bytes[end + 4..].to_vec());
        }
    }
}

fn one_counter() -> Registry {
    let registry = Registry::new();
    // Registries live by their instruments: the counter is kept for the test.
    let counter = registry.u64_counter("c").build().unwrap();
    counter.add(1, EMPTY_ATTRS);
    std::mem::forget(counter);
    registry
}

fn partial(rejected: i64, message: String) -> Vec<u8> {
    let partial_success = Some(ExportMetricsPartialSuccess {
        rejected_data_points: rejected,
        error_message: message,
    });
    ExportMetricsServiceResponse { partial_success }.encode_to_vec()
}

#[test]
fn a_dropped_request_is_an_error_of_flush_and_shutdown() {
    for status in [
        "413 Too Large",
        "404 Not Found",
        "301 Moved",
        "400 Bad",
        "500 Oops",
    ] {
        let endpoint = raw(move |mut stream| {
            read_request(&mut stream);
            write!(
                stream,
                "HTTP/1.1 {status}\r\nlocation: /\r\ncontent-length: 0\r\n\r\n"
            )
            .unwrap();
        });
        let exporter = quiet(OtlpExporter::http(&endpoint))
            .start(&one_counter())
            .unwrap();
        let error = exporter.flush(LONG).unwrap_err();
        assert!(
            matches!(&error, OtlpError::Refused { delivery, last_error: Some(why) }
                if delivery.refused == 1 && delivery.delivered == 0 && why.contains(&status[..3])),
            "{status}: {error:?}"
        );
        let error = exporter.shutdown(LONG).unwrap_err();
        assert!(
            matches!(&error, OtlpError::Refused { delivery, .. } if delivery.refused == 1),
            "{error:?}"
        );
    }
}

#[test]
fn partial_success_is_seen_in_every_form_of_an_answer() {
    let long = partial(7, "x".repeat(200_000));
    let short = partial(7, "short".to_owned());
    let chunked = |body: &[u8]| {
        let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for part in body.chunks(1000) {
            answer.extend(format!("{:x}\r\n", part.len()).bytes());
            answer.extend(part);
            answer.extend(b"\r\n");
        }
        answer.extend(b"0\r\n\r\n");
        answer
    };
    let with_length = |body: &[u8]| {
        let mut answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend(body);
        answer
    };
    let until_the_end = |body: &[u8]| [b"HTTP/1.0 200 OK\r\n\r\n".as_slice(), body].concat();
    for (answer, stays_open) in [
        (chunked(&short), true),
        (chunked(&long), true),
        (with_length(&short), true),
        (with_length(&long), false),
        (until_the_end(&short), false),
    ] {
        let endpoint = raw(move |mut stream| {
            read_request(&mut stream);
            stream.write_all(&answer).unwrap();
            if stays_open {
                // Until the exporter has enough.
                let _ = stream.read(&mut [0; 1]);
            }
        });
        let exporter = quiet(OtlpExporter::http(&endpoint))
            .start(&one_counter())
            .unwrap();
        let delivery = exporter.flush(LONG).unwrap();
        assert_eq!(
            (
                delivery.delivered,
                delivery.rejected_points,
                delivery.refused
            ),
            (1, 7, 0)
        );
    }
}

#[test]
fn an_answer_that_comes_before_the_body_is_read_is_understood() {
    let endpoint = raw(|mut stream| {
        let mut part = [0; 256];
        let _ = stream.read(&mut part).unwrap();
        stream
            .write_all(
                b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            )
            .unwrap();
        // As servers do: what is unread when a connection is closed would reset it.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        while stream.read(&mut [0; 65536]).is_ok_and(|read| read > 0) {}
    });
    let registry = Registry::new();
    let counter = registry
        .u64_counter("c")
        .with_cardinality_limit(20_000)
        .build()
        .unwrap();
    for n in 0..20_000 {
        counter.add(1, &[KeyValue::new("n", n)]);
    }
    let exporter = quiet(OtlpExporter::http(&endpoint))
        .with_request_max(usize::MAX, usize::MAX)
        .start(&registry)
        .unwrap();
    let error = exporter.flush(LONG).unwrap_err();
    assert!(
        matches!(&error, OtlpError::Refused { last_error: Some(why), .. } if why.contains("401")),
        "{error:?}"
    );
    drop(counter);
}

#[test]
fn one_deadline_holds_for_the_whole_attempt() {
    // Each answers a byte now and then: no single call takes long.
    let head = raw(|mut stream| {
        while stream.write_all(b"H").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let reader = raw(|mut stream| {
        while stream.read(&mut [0; 8]).is_ok_and(|read| read > 0) {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let line = raw(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"a: b\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    for endpoint in [head, reader, line] {
        let exporter = quiet(OtlpExporter::http(&endpoint))
            .with_timeout(Duration::from_millis(60))
            .start(&one_counter())
            .unwrap();
        // Comes to an end only when the attempt does.
        assert!(exporter.flush(Duration::from_millis(900)).is_err());
        assert!(exporter.stats().retries > 0, "{:?}", exporter.stats());
    }
}

#[test]
fn an_answer_on_a_connection_that_stays_open_is_followed_by_its_end() {
    let (tell, told) = std::sync::mpsc::channel();
    let endpoint = raw(move |mut stream| {
        read_request(&mut stream);
        stream
            .write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
            .unwrap();
        tell.send(stream.read(&mut [0; 8]).unwrap_or(0)).unwrap();
    });
    let exporter = quiet(OtlpExporter::http(&endpoint))
        .start(&one_counter())
        .unwrap();
    assert_eq!(exporter.flush(LONG).unwrap().delivered, 1);
    assert_eq!(told.recv_timeout(LONG), Ok(0));
}

#[test]
fn headers_and_gzip_arrive() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&seen);
    let endpoint = raw(move |mut stream| {
        let (head, body) = read_request(&mut stream);
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&*body)
            .read_to_end(&mut plain)
            .unwrap();
        let request = ExportMetricsServiceRequest::decode(&*plain).unwrap();
        keep.lock().unwrap().push((head, request));
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
    });
    let exporter = quiet(OtlpExporter::http(&endpoint))
        .with_gzip()
        .with_header("api-key", "secret")
        .start(&one_counter())
        .unwrap();
    exporter.flush(LONG).unwrap();
    let seen = seen.lock().unwrap();
    assert!(
        seen[0].0.contains("api-key: secret") && seen[0].0.contains("content-encoding: gzip"),
        "{}",
        seen[0].0
    );
    assert_eq!(sums(&seen[0].1).len(), 1);
    for (name, value) in [("content-type", "x"), ("a b", "x"), ("x", "a\r\nb: c")] {
        let error = OtlpExporter::http(&endpoint)
            .with_header(name, value)
            .start(&one_counter())
            .unwrap_err();
        assert!(matches!(error, OtlpError::InvalidOption { .. }), "{error}");
    }
}

/// Points of sums by their attributes.
fn sums(request: &ExportMetricsServiceRequest) -> BTreeMap<String, i64> {
    use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
    let metrics = request
        .resource_metrics
        .iter()
        .flat_map(|r| &r.scope_metrics)
        .flat_map(|s| &s.metrics);
    let points = metrics.flat_map(|metric| match &metric.data {
        Some(Data::Sum(sum)) => sum.data_points.as_slice(),
        _ => &[],
    });
    points
        .map(|point| match point.value {
            Some(Value::AsInt(value)) => (format!("{:?}", point.attributes), value),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn grpc(
    bytes_max: usize,
    status: Option<tonic::Status>,
) -> (SocketAddr, Arc<Mutex<Vec<ExportMetricsServiceRequest>>>) {
    grpc_receiver::serve(tonic::transport::Server::builder(), bytes_max, status)
}

#[test]
fn what_exceeds_the_receivers_limit_arrives_in_parts() {
    const SERIES: i64 = 30_000;
    let registry = Registry::new();
    let counter = registry
        .u64_counter("c")
        .with_cardinality_limit(SERIES as usize)
        .build()
        .unwrap();
    let text = "t".repeat(200);
    for n in 0..SERIES {
        counter.add(
            n as u64 + 1,
            &[KeyValue::new("n", n), KeyValue::new("text", text.clone())],
        );
    }
    // gRPC's default limit, which our default keeps; and a receiver whose limit is lower than ours.
    for bytes_max in [grpc_receiver::BYTES_MAX, 300_000] {
        let (address, arrived) = grpc(bytes_max, None);
        let exporter = quiet(OtlpExporter::grpc(&format!("http://{address}")))
            .with_temporality(Temporality::Delta)
            .with_request_max(3 << 20, usize::MAX)
            .start(&registry)
            .unwrap();
        let delivery = exporter.flush(LONG).unwrap();
        assert!(
            delivery.delivered > 1 && delivery.refused == 0,
            "{delivery:?}"
        );
        let arrived = arrived.lock().unwrap();
        assert!(
            arrived
                .iter()
                .all(|request| request.encoded_len() <= bytes_max)
        );
        let parts: Vec<_> = arrived.iter().map(sums).collect();
        let all: BTreeMap<String, i64> = parts
            .iter()
            .flatten()
            .map(|(name, value)| (name.clone(), *value))
            .collect();
        assert_eq!(
            parts.iter().map(BTreeMap::len).sum::<usize>(),
            SERIES as usize,
            "each point once"
        );
        assert_eq!(all.values().sum::<i64>(), SERIES * (SERIES + 1) / 2);
    }
}

/// Takes requests of up to so many bytes, and keeps for each its bytes and whether it was taken.
struct Narrow(Arc<AtomicUsize>, Arc<Mutex<Vec<(usize, bool)>>>);

impl Transport for Narrow {
    fn send(
        &mut self,
        request: &ExportMetricsServiceRequest,
        _timeout: Duration,
    ) -> Result<Accepted, SendError> {
        let bytes = request.encoded_len();
        let is_taken = bytes <= self.0.load(Ordering::Relaxed);
        self.1.lock().unwrap().push((bytes, is_taken));
        match is_taken {
            true => Ok(Accepted::default()),
            false => Err(SendError::TooLarge {
                reason: "narrow".to_owned(),
            }),
        }
    }
}

#[test]
fn a_bound_that_the_receiver_lowered_comes_back() {
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    for n in 0..1000i64 {
        counter.add(1, &[KeyValue::new("n", n)]);
    }
    let bytes_max = Arc::new(AtomicUsize::new(usize::MAX));
    let sent = Arc::default();
    let narrow = Narrow(Arc::clone(&bytes_max), Arc::clone(&sent));
    let exporter = quiet(OtlpExporter::custom(narrow))
        .start(&registry)
        .unwrap();
    let flush = || {
        assert_eq!(exporter.flush(LONG).unwrap().refused, 0);
        std::mem::take(&mut *sent.lock().unwrap())
    };
    let refused = |sent: &[(usize, bool)]| sent.iter().filter(|(_, is_taken)| !is_taken).count();
    let whole = flush();
    assert_eq!((whole.len(), refused(&whole)), (1, 0));
    let whole = whole[0].0;

    // An eighth: three times half, and the queue with it, so that no request is refused that is known to be too large.
    bytes_max.store(whole / 8 + 1000, Ordering::Relaxed);
    assert_eq!(refused(&flush()), 3);
    // Eight requests each: of 400, trials are after 32, 96, 224.
    let many: Vec<_> = (0..50).flat_map(|_| flush()).collect();
    assert_eq!(refused(&many), 3, "{many:?}");

    bytes_max.store(usize::MAX, Ordering::Relaxed);
    let until_whole = (0..200).take_while(|_| flush().len() > 1).count();
    assert!(until_whole < 200);
}

#[test]
fn requests_keep_the_bounds_that_are_set() {
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    let histogram = registry.f64_histogram("h").build().unwrap();
    for n in 0..90i64 {
        counter.add(1, &[KeyValue::new("n", n)]);
        histogram.record(n as f64, &[KeyValue::new("n", n)]);
    }
    for (bytes_max, points_max) in [(2000, usize::MAX), (usize::MAX, 7), (500, 3), (1, 1)] {
        let (address, arrived) = grpc(grpc_receiver::BYTES_MAX, None);
        let exporter = quiet(OtlpExporter::grpc(&format!("http://{address}")))
            .with_request_max(bytes_max, points_max)
            .start(&registry)
            .unwrap();
        exporter.flush(LONG).unwrap();
        let arrived = arrived.lock().unwrap();
        let count = |request: &ExportMetricsServiceRequest| {
            let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
            let points = metrics
                .iter()
                .map(|metric| match metric.data.as_ref().unwrap() {
                    Data::Sum(data) => data.data_points.len(),
                    Data::ExponentialHistogram(data) => data.data_points.len(),
                    other => panic!("{other:?}"),
                });
            points.sum::<usize>()
        };
        assert_eq!(arrived.iter().map(count).sum::<usize>(), 180);
        for request in arrived.iter() {
            let points = count(request);
            assert!(
                points <= points_max && (points == 1 || request.encoded_len() <= bytes_max),
                "{points}"
            );
        }
    }
}

#[test]
fn a_code_that_is_not_retryable_drops_the_request_and_says_so() {
    for status in [
        tonic::Status::unknown("application"),
        tonic::Status::resource_exhausted("quota"),
        tonic::Status::invalid_argument("no"),
        tonic::Status::internal("bug"),
    ] {
        let (address, _) = grpc(grpc_receiver::BYTES_MAX, Some(status));
        let exporter = quiet(OtlpExporter::grpc(&format!("http://{address}")))
            .start(&one_counter())
            .unwrap();
        let error = exporter.flush(LONG).unwrap_err();
        assert!(
            matches!(&error, OtlpError::Refused { delivery, .. } if delivery.refused == 1),
            "{error:?}"
        );
        assert_eq!(exporter.stats().retries, 0);
    }
    let (address, _) = grpc(
        grpc_receiver::BYTES_MAX,
        Some(tonic::Status::unavailable("later")),
    );
    let exporter = quiet(OtlpExporter::grpc(&format!("http://{address}")))
        .start(&one_counter())
        .unwrap();
    assert!(matches!(
        exporter.flush(Duration::from_millis(300)),
        Err(OtlpError::Undelivered { .. })
    ));
    assert_eq!(exporter.stats().refused, 0);
}

/// As after a network that drops packets: the first connection is taken and never answered.
#[test]
fn a_connection_that_answers_nothing_is_given_up() {
    let (address, arrived) = grpc(usize::MAX, None);
    let count = Arc::new(AtomicUsize::new(0));
    let endpoint = raw(move |mut stream| {
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
            return;
        }
        let mut to = TcpStream::connect(address).unwrap();
        let (mut back, mut from) = (to.try_clone().unwrap(), stream.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut back, &mut from);
        });
        let _ = std::io::copy(&mut stream, &mut to);
    });
    let exporter = quiet(OtlpExporter::grpc(&endpoint))
        .with_timeout(Duration::from_millis(500))
        .start(&one_counter())
        .unwrap();
    exporter.shutdown(LONG).unwrap();
    assert_eq!(arrived.lock().unwrap().len(), 1);
}
