//! An OTLP receiver over HTTP with the real messages, which keeps what arrives.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use prost::Message;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

pub(crate) type Arrived = Arc<Mutex<Vec<ExportMetricsServiceRequest>>>;

/// Answers with each of `statuses` in turn, and with 200 after them. Serves until the process ends.
pub(crate) fn http(statuses: Vec<u16>) -> (SocketAddr, Arrived) {
    let arrived = Arrived::default();
    let kept = Arc::clone(&arrived);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut statuses = statuses.into_iter();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = Vec::new();
            let mut part = [0; 4096];
            let body = loop {
                let read = stream.read(&mut part).unwrap();
                bytes.extend_from_slice(&part[..read]);
                let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else {
                    continue;
                };
                let head = String::from_utf8(bytes[..end].to_vec())
                    .unwrap()
                    .to_lowercase();
                assert!(
                    head.starts_with("post /v1/metrics http/1.1")
                        && head.contains("content-type: application/x-protobuf")
                );
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "))
                    .unwrap()
                    .parse::<usize>()
                    .unwrap();
                if bytes.len() - end - 4 >= length {
                    break bytes[end + 4..].to_vec();
                }
            };
            let status = statuses.next().unwrap_or(200);
            if status == 200 {
                kept.lock()
                    .unwrap()
                    .push(ExportMetricsServiceRequest::decode(&*body).unwrap());
            }
            write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
    });
    (address, arrived)
}
