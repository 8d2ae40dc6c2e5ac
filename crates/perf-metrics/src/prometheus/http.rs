//! Answers scrapes.
//!
//! [`handle`] serves any server that speaks the types of the `http` crate (hyper, axum, tonic). [`ScrapeServer`] is for nodes
//! that have none: one thread with several connections at once, each of which has one request and one deadline for all of it.

use super::{Format, expose};
use crate::registry::Registry;
use ::http::header::{
    ACCEPT, ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue, VARY,
};
use ::http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, oneshot};

/// Where Prometheus looks unless told otherwise.
pub const PATH: &str = "/metrics";

/// Answers `GET /metrics` with all instruments, anything else with an error. The format is the one that the client accepts best:
/// text, OpenMetrics, or protobuf with native histograms; gzip where it is accepted.
#[must_use]
pub fn handle<B>(registry: &Registry, request: &Request<B>) -> Response<Bytes> {
    let (method, path) = (request.method(), request.uri().path());
    let text = |status: StatusCode, body: &'static str| {
        let mut response = Response::new(Bytes::from_static(body.as_bytes()));
        *response.status_mut() = status;
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    };
    if path != PATH {
        return text(StatusCode::NOT_FOUND, "there is only /metrics\n");
    }
    if method != Method::GET && method != Method::HEAD {
        let mut response = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are allowed\n",
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let format = negotiate(request.headers());
    let mut body = Vec::new();
    let _left_out = expose(&registry.collect(), format, &mut body);
    let is_gzip = accepts_gzip(request.headers());
    if is_gzip {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        // Writing to a vector cannot fail; if it did, the answer would be cut short, which the checksum tells.
        let _ = encoder.write_all(&body);
        body = encoder.finish().unwrap_or_default();
    }
    let mut response = Response::new(Bytes::from(body));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(format.content_type()),
    );
    headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    if is_gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// The members of a list header with their weights, those of weight zero left out.
fn members(headers: &HeaderMap, name: HeaderName) -> Vec<(String, f32)> {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    let member = |text: &str| {
        let weight = text
            .split(';')
            .skip(1)
            .filter_map(|part| {
                part.trim()
                    .to_ascii_lowercase()
                    .strip_prefix("q=")
                    .map(str::to_owned)
            })
            .find_map(|weight| weight.trim().parse::<f32>().ok())
            .unwrap_or(1.0);
        (text.trim().to_ascii_lowercase(), weight)
    };
    values
        .flat_map(|value| value.split(','))
        .map(member)
        .filter(|(_, weight)| *weight > 0.0)
        .collect()
}

/// The format that the client likes best, the text if it likes none of ours or says nothing.
fn negotiate(headers: &HeaderMap) -> Format {
    let format = |member: &str| {
        let media = member.split(';').next().unwrap_or_default().trim();
        match media {
            "application/vnd.google.protobuf" => member
                .contains("proto=io.prometheus.client.metricfamily")
                .then_some(Format::Protobuf)
                .filter(|_| member.contains("encoding=delimited")),
            "application/openmetrics-text" => Some(Format::OpenMetrics),
            "text/plain" | "text/*" | "*/*" => Some(Format::Text),
            _ => None,
        }
    };
    let mut best = (Format::Text, 0.0);
    for (member, weight) in members(headers, ACCEPT) {
        if let Some(format) = format(&member)
            && weight > best.1
        {
            best = (format, weight);
        }
    }
    best.0
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    members(headers, ACCEPT_ENCODING)
        .iter()
        .any(|(member, _)| member.split(';').next().map(str::trim) == Some("gzip"))
}

/// A connection takes at most so long: its request, and the answer.
const CONNECTION_MAX: Duration = Duration::from_secs(2);
/// So many connections are served at once; others wait until one of these ends.
pub const CONNECTIONS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Serves [`PATH`] from a thread of its own until it is dropped.
#[derive(Debug)]
pub struct ScrapeServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ScrapeServer {
    /// Starts to serve a listener. Bind it to an address that only the scraper reaches: every client that connects can read all metrics.
    ///
    /// # Errors
    /// What the system says when the thread or its runtime cannot be started.
    pub fn start(registry: Registry, listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                    return;
                };
                tokio::select! {
                    () = serve(&registry, &listener) => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("metrics-scrape".to_owned())
            .spawn(serve)?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for ScrapeServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(registry: &Registry, listener: &tokio::net::TcpListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let registry = registry.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    // A client that fails or is slow has itself to blame.
                    let _ =
                        tokio::time::timeout(CONNECTION_MAX, serve_one(&registry, stream)).await;
                });
            }
            // Out of descriptors, perhaps: not in a loop that takes all of the CPU.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve_one(registry: &Registry, stream: tokio::net::TcpStream) -> hyper::Result<()> {
    let answer = async |request: Request<Incoming>| {
        Ok::<_, Infallible>(handle(registry, &request).map(Full::new))
    };
    hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer))
        .await
}
