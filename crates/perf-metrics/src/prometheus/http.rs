//! Answers scrapes.
//!
//! [`handle`] serves any server that speaks the types of the `http` crate (hyper, axum, tonic). [`ScrapeServer`] is for nodes
//! that have none: one thread, one request at a time, every request bounded in time and size.

use super::{CONTENT_TYPE, write};
use crate::registry::Registry;
use ::http::header::{ALLOW, CONTENT_TYPE as CONTENT_TYPE_HEADER, HeaderValue};
use ::http::{Method, Request, Response, StatusCode};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where Prometheus looks unless told otherwise.
pub const PATH: &str = "/metrics";

/// Answers `GET /metrics` with all instruments, anything else with an error.
#[must_use]
pub fn handle<B>(registry: &Registry, request: &Request<B>) -> Response<String> {
    answer(registry, request.method(), request.uri().path())
}

fn answer(registry: &Registry, method: &Method, path: &str) -> Response<String> {
    let mut response = Response::new(String::new());
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    if path != PATH {
        *response.status_mut() = StatusCode::NOT_FOUND;
        response.headers_mut().insert(CONTENT_TYPE_HEADER, text);
        *response.body_mut() = format!("there is only {PATH}\n");
    } else if method != Method::GET && method != Method::HEAD {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(CONTENT_TYPE_HEADER, text);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        *response.body_mut() = "only GET and HEAD are allowed\n".to_owned();
    } else {
        response
            .headers_mut()
            .insert(CONTENT_TYPE_HEADER, HeaderValue::from_static(CONTENT_TYPE));
        write(&registry.collect(), response.body_mut());
    }
    response
}

/// A request takes at most so long, and its head is at most so large.
const REQUEST_MAX: Duration = Duration::from_secs(2);
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Serves [`PATH`] from a thread of its own until it is dropped.
#[derive(Debug)]
pub struct ScrapeServer {
    address: SocketAddr,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ScrapeServer {
    /// Starts to serve a listener. Bind it to an address that only the scraper reaches: whoever connects can read all metrics.
    ///
    /// # Errors
    /// What the system says when the thread cannot be started.
    pub fn start(registry: Registry, listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_stopped);
        let serve = move || {
            while !stop.load(Ordering::Acquire) {
                match listener.accept() {
                    // A client that fails has itself to blame; the next one is served.
                    Ok((stream, _)) if !stop.load(Ordering::Acquire) => {
                        drop(serve_one(&registry, &stream))
                    }
                    Ok(_) => {}
                    // Out of descriptors, perhaps: not in a loop that takes all of the CPU.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("metrics-scrape".to_owned())
            .spawn(serve)?;
        Ok(Self {
            address,
            is_stopped,
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
        self.is_stopped.store(true, Ordering::Release);
        // Wakes the thread up. If that fails, it is left alone: it ends with the next connection.
        let woken = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

fn serve_one(registry: &Registry, mut stream: &TcpStream) -> io::Result<()> {
    let deadline = Instant::now() + REQUEST_MAX;
    stream.set_write_timeout(Some(REQUEST_MAX))?;
    let response = match read_head(stream, deadline)? {
        Some((method, path)) => answer(registry, &method, &path),
        None => {
            let mut response = Response::new(
                "the request is not one of HTTP/1, or its head is too large\n".to_owned(),
            );
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    };
    let mut head = format!("HTTP/1.1 {}\r\n", response.status());
    for (name, value) in response.headers() {
        head.push_str(&format!(
            "{name}: {}\r\n",
            value.to_str().unwrap_or_default()
        ));
    }
    head.push_str(&format!(
        "content-length: {}\r\nconnection: close\r\n\r\n",
        response.body().len()
    ));
    stream.write_all(head.as_bytes())?;
    stream.write_all(response.body().as_bytes())?;
    stream.flush()
}

/// Method and path of a request; `None` if it is no request.
fn read_head(mut stream: &TcpStream, deadline: Instant) -> io::Result<Option<(Method, String)>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let read = stream.read(&mut part)?;
        head.extend_from_slice(&part[..read]);
        if read == 0 || head.len() > HEAD_BYTES_MAX {
            return Ok(None);
        }
    }
    let head = String::from_utf8_lossy(&head);
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next())
    else {
        return Ok(None);
    };
    let method = Method::from_bytes(method.as_bytes())
        .ok()
        .filter(|_| version.starts_with("HTTP/1."));
    let path = target
        .split(['?', '#'])
        .next()
        .unwrap_or_default()
        .to_owned();
    Ok(method.map(|method| (method, path)))
}
