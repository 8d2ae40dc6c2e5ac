//! OTLP receivers that keep what arrives: the real gRPC service, and HTTP with the real messages.

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use prost::Message;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

pub(crate) type Arrived = Arc<Mutex<Vec<ExportMetricsServiceRequest>>>;

struct Service(Arrived);

#[tonic::async_trait]
impl MetricsService for Service {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// Serves until the process ends.
pub(crate) fn grpc() -> (SocketAddr, Arrived) {
    let arrived = Arrived::default();
    let service = MetricsServiceServer::new(Service(Arc::clone(&arrived)));
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
    });
    (told.recv().unwrap(), arrived)
}

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
