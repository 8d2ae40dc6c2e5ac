//! TLS to a collector: what is trusted gets the metrics, what is not gets nothing.
#![cfg(feature = "otlp-tls")]

#[cfg(feature = "otlp-grpc")]
#[path = "common/grpc.rs"]
mod grpc_receiver;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use perf_metrics::otlp::{OtlpError, OtlpExporter};
use perf_metrics::{EMPTY_ATTRS, Registry};
use prost::Message;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

type Arrived = Arc<Mutex<Vec<ExportMetricsServiceRequest>>>;

/// A certificate for `localhost`, and its key.
fn certificate() -> (rcgen::Certificate, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (parameters.self_signed(&key).unwrap(), key)
}

/// A receiver with a certificate for `localhost`, which it returns in PEM.
fn receiver() -> (SocketAddr, String, Arrived) {
    let (certificate, key) = certificate();
    let pem = certificate.pem();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let arrived = Arrived::default();
    let kept = Arc::clone(&arrived);
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A client that trusts us not ends the handshake.
                if let Ok(stream) = tls.accept(stream).await {
                    serve(stream, &kept).await;
                }
            }
        });
    });
    (told.recv().unwrap(), pem, arrived)
}

async fn serve(mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>, kept: &Arrived) {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(bytes[..end].to_vec())
            .unwrap()
            .to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap().parse().unwrap();
        if bytes.len() < end + 4 + length {
            continue;
        }
        let request = ExportMetricsServiceRequest::decode(&bytes[end + 4..]).unwrap();
        kept.lock().unwrap().push(request);
        let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let _ = stream.shutdown().await;
        return;
    }
}

#[test]
fn a_receiver_whose_certificate_is_trusted_gets_the_metrics() {
    let (address, pem, arrived) = receiver();
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    counter.add(7, EMPTY_ATTRS);
    let exporter = OtlpExporter::http(&format!("https://localhost:{}", address.port()))
        .with_root_certificates(pem)
        .with_interval(Duration::from_secs(3600))
        .start(&registry)
        .unwrap();
    exporter.shutdown(Duration::from_secs(60)).unwrap();
    let arrived = arrived.lock().unwrap();
    let metric = &arrived[0].resource_metrics[0].scope_metrics[0].metrics[0];
    assert_eq!((arrived.len(), metric.name.as_str()), (1, "c"));
}

#[test]
fn a_receiver_that_is_not_trusted_gets_nothing() {
    let (address, _, arrived) = receiver();
    let (_, other, _) = receiver();
    let registry = Registry::new();
    let counter = registry.u64_counter("c").build().unwrap();
    counter.add(7, EMPTY_ATTRS);
    let exporter = OtlpExporter::http(&format!("https://localhost:{}", address.port()))
        .with_root_certificates(other)
        .with_interval(Duration::from_secs(3600))
        .start(&registry)
        .unwrap();
    // The first attempt fails; the pause before the next is longer than this.
    let error = exporter.shutdown(Duration::from_millis(500)).unwrap_err();
    match error {
        OtlpError::Undelivered { requests, .. } => assert!(requests > 0),
        OtlpError::Refused { delivery, .. } => assert!(delivery.refused > 0),
        other => panic!("{other}"),
    }
    assert!(arrived.lock().unwrap().is_empty());
}

#[cfg(feature = "otlp-grpc")]
mod grpc {
    use super::grpc_receiver as service;
    use super::*;
    use tonic::transport::{Identity, Server, ServerTlsConfig};

    /// The service behind TLS, with a certificate for `localhost`, which it returns in PEM.
    fn receiver() -> (SocketAddr, String, Arrived) {
        let (certificate, key) = certificate();
        let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
        let tls = ServerTlsConfig::new().identity(identity);
        let server = Server::builder().tls_config(tls).unwrap();
        let (address, arrived) = service::serve(server, service::BYTES_MAX, None);
        (address, certificate.pem(), arrived)
    }

    fn deliver(port: u16, trusted: String) -> Result<perf_metrics::otlp::Delivery, OtlpError> {
        let registry = Registry::new();
        let counter = registry.u64_counter("c").build().unwrap();
        counter.add(7, EMPTY_ATTRS);
        let exporter = OtlpExporter::grpc(&format!("https://localhost:{port}"))
            .with_root_certificates(trusted)
            .with_interval(Duration::from_secs(3600))
            .with_error_handler(|_| {})
            .with_gzip()
            .start(&registry)
            .unwrap();
        let flushed = exporter.flush(Duration::from_millis(2000));
        match flushed {
            Ok(delivery) => Ok(delivery),
            Err(_) => exporter.shutdown(Duration::from_millis(500)),
        }
    }

    #[test]
    fn grpc_reaches_a_receiver_that_is_trusted_and_no_other() {
        let (address, pem, arrived) = receiver();
        assert_eq!(deliver(address.port(), pem).unwrap().delivered, 1);
        let metric =
            arrived.lock().unwrap()[0].resource_metrics[0].scope_metrics[0].metrics[0].clone();
        assert_eq!(metric.name, "c");
        let before = arrived.lock().unwrap().len();
        let (_, other, _) = receiver();
        let error = deliver(address.port(), other).unwrap_err();
        assert!(matches!(error, OtlpError::Undelivered { .. }), "{error}");
        assert_eq!(arrived.lock().unwrap().len(), before);
    }
}
