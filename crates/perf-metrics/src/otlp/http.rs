//! OTLP over HTTP/1.1 with binary protobuf, by hyper: one connection for each request, as requests are seconds apart.

use super::{Accepted, ExportMetricsServiceRequest, OtlpError, SendError, Transport, retry};
use crate::otlp::options::SendOptions;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message;
use std::io::Write;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

const DEFAULT_PORT: u16 = 4318;
pub(super) const DEFAULT_PATH: &str = "/v1/metrics";
/// Of an answer so much is read: 4 MiB, as gRPC's limit.
const ANSWER_BYTES_MAX: usize = 4 << 20;
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// A checked endpoint.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    host: String,
    port: u16,
    authority: HeaderValue,
    /// The path, with the query if there is one.
    path: Uri,
    #[cfg(feature = "otlp-tls")]
    is_tls: bool,
    shown: String,
}

impl Endpoint {
    pub(super) fn new(endpoint: &str) -> Result<Self, OtlpError> {
        let invalid = |problem: &str| OtlpError::InvalidEndpoint {
            endpoint: endpoint.to_owned(),
            problem: problem.to_owned(),
        };
        let uri: Uri = endpoint
            .parse()
            .map_err(|_| invalid("it is no URL; allowed is `http://HOST[:PORT][/PATH]`"))?;
        #[cfg(feature = "otlp-tls")]
        let is_tls = uri.scheme_str() == Some("https");
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") if cfg!(feature = "otlp-tls") => {}
            Some("https") => {
                return Err(invalid("TLS needs the feature `otlp-tls` of perf-metrics"));
            }
            _ => {
                return Err(invalid(
                    "allowed is `http://HOST[:PORT][/PATH]`, and `https`",
                ));
            }
        }
        let authority = uri.authority().ok_or_else(|| invalid("it has no host"))?;
        let host = uri.host().unwrap_or_default();
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(invalid(
                "it has no host, or a user name, which is not allowed",
            ));
        }
        // `Uri` takes a port that is no number up to 65535 for none.
        let after_host = authority.as_str().get(host.len()..).unwrap_or_default();
        let port = match uri.port_u16() {
            Some(port) => port,
            None if after_host.is_empty() => DEFAULT_PORT,
            None => return Err(invalid("the port is not a number up to 65535")),
        };
        let path = match uri.path_and_query().map(|path| path.as_str()) {
            None | Some("" | "/") => DEFAULT_PATH,
            Some(path) => path,
        };
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            authority: HeaderValue::from_str(authority.as_str())
                .map_err(|_| invalid("its host has characters that are not allowed there"))?,
            path: path.parse().map_err(|_| invalid("its path is not valid"))?,
            #[cfg(feature = "otlp-tls")]
            is_tls,
            shown: endpoint.to_owned(),
        })
    }
}

pub(super) struct Http {
    endpoint: Endpoint,
    headers: HeaderMap,
    is_gzip: bool,
    #[cfg(feature = "otlp-tls")]
    tls: Option<tokio_rustls::TlsConnector>,
    /// Taken when dropped.
    runtime: Option<Runtime>,
}

impl Http {
    /// In the exporter's thread: a runtime must not be dropped within another.
    pub(super) fn new(endpoint: Endpoint, options: &SendOptions) -> std::io::Result<Self> {
        Ok(Self {
            #[cfg(feature = "otlp-tls")]
            tls: match endpoint.is_tls {
                true => Some(super::tls::connector(options.root_certificates.as_deref())?),
                false => None,
            },
            endpoint,
            headers: options.headers.clone(),
            is_gzip: options.is_gzip,
            runtime: Some(Builder::new_current_thread().enable_all().build()?),
        })
    }

    fn request(
        &self,
        message: &ExportMetricsServiceRequest,
    ) -> Result<Request<Full<Bytes>>, SendError> {
        let mut body = message.encode_to_vec();
        if self.is_gzip {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            body = encoder
                .write_all(&body)
                .and_then(|()| encoder.finish())
                .map_err(|error| SendError::Refused {
                    reason: format!("cannot compress the request: {error}"),
                })?;
        }
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.path.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.endpoint.authority.clone());
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!(
                "OTel-OTLP-Exporter-Rust/perf-metrics-",
                env!("CARGO_PKG_VERSION")
            )),
        );
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        headers.insert(CONTENT_TYPE, PROTOBUF);
        if self.is_gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Ok(request)
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<Accepted, SendError> {
        let failed = |problem: &dyn std::fmt::Display| SendError::Retry {
            reason: format!("{}: {problem}", self.endpoint.shown),
            after: None,
        };
        let answered = async {
            // Resolving the host is within the deadline too.
            let stream = TcpStream::connect((self.endpoint.host.as_str(), self.endpoint.port))
                .await
                .map_err(|error| failed(&error))?;
            #[cfg(feature = "otlp-tls")]
            if let Some(tls) = &self.tls {
                let stream = super::tls::connect(tls, &self.endpoint.host, stream)
                    .await
                    .map_err(|error| failed(&error))?;
                return converse(stream, request)
                    .await
                    .map_err(|error| failed(&error));
            }
            converse(stream, request)
                .await
                .map_err(|error| failed(&error))
        };
        let outcome = match timeout_at(deadline, answered).await {
            Ok(Ok((response, connection))) => {
                let outcome = judge(response, deadline).await;
                connection.close().await;
                outcome
            }
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => Err(failed(&"the receiver does not answer in time")),
        };
        // The runtime stands still until the next request: tasks that were ended are dropped now, and their connections closed.
        tokio::task::yield_now().await;
        outcome
    }
}

/// How long a connection may take to say goodbye.
const CLOSE_MAX: Duration = Duration::from_millis(100);

/// The task of a connection, which ends with this.
struct Connection(JoinHandle<()>);

impl Connection {
    /// Waits a moment for the connection to end by itself, as TLS asks for.
    async fn close(mut self) {
        let _ = tokio::time::timeout(CLOSE_MAX, &mut self.0).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends the request and reads the head of the answer; the connection goes on in a task of the runtime.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> hyper::Result<(Response<Incoming>, Connection)> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = Connection(tokio::spawn(async {
        // What fails is told by the request.
        let _ = connection.await;
    }));
    let response = sender.send_request(request).await?;
    Ok((response, connection))
}

impl Transport for Http {
    fn send(
        &mut self,
        request: &ExportMetricsServiceRequest,
        timeout: Duration,
    ) -> Result<Accepted, SendError> {
        let deadline = Instant::now() + timeout;
        let request = self.request(request)?;
        match &self.runtime {
            Some(runtime) => runtime.block_on(self.exchange(request, deadline)),
            None => Err(SendError::Refused {
                reason: "the exporter is over".to_owned(),
            }),
        }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        // Without waiting for a resolver that hangs.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// By <https://opentelemetry.io/docs/specs/otlp/#otlphttp-response>.
async fn judge<B: Body<Data: Send> + Unpin>(
    response: Response<B>,
    deadline: Instant,
) -> Result<Accepted, SendError>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = response.into_parts();
    let reason = format!("the receiver answers {}", head.status);
    match head.status {
        status if status.is_success() => {}
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            let asked = head
                .headers
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok());
            let after = asked.and_then(|value| retry::after(value, SystemTime::now()));
            return Err(SendError::Retry { reason, after });
        }
        StatusCode::PAYLOAD_TOO_LARGE => return Err(SendError::TooLarge { reason }),
        _ => return Err(SendError::Refused { reason }),
    }
    // The receiver has taken the request: what is wrong from here on is told, and the request not sent again.
    let taken = |problem: String| Accepted {
        rejected_points: 0,
        message: problem,
    };
    let is_protobuf = head
        .headers
        .get(CONTENT_TYPE)
        .is_none_or(|kind| kind.as_bytes().starts_with(PROTOBUF.as_bytes()));
    if !is_protobuf {
        return Ok(Accepted::default());
    }
    Ok(
        match timeout_at(deadline, Limited::new(body, ANSWER_BYTES_MAX).collect()).await {
            Ok(Ok(body)) => match ExportMetricsServiceResponse::decode(body.to_bytes()) {
                Ok(response) => accepted(response),
                Err(error) => taken(format!("taken, but the answer cannot be decoded: {error}")),
            },
            Ok(Err(error)) => taken(format!("taken, but the answer cannot be read: {error}")),
            Err(_elapsed) => taken("taken, but the answer does not end in time".to_owned()),
        },
    )
}

pub(super) fn accepted(response: ExportMetricsServiceResponse) -> Accepted {
    let partial = response.partial_success.unwrap_or_default();
    Accepted {
        rejected_points: u64::try_from(partial.rejected_data_points).unwrap_or(0),
        message: partial.error_message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked_before_anything_is_sent() {
        let http = Endpoint::new("http://[::1]:9/x?y=1").unwrap();
        assert_eq!(
            (
                http.host.as_str(),
                http.port,
                http.path.to_string().as_str()
            ),
            ("::1", 9, "/x?y=1")
        );
        let http = Endpoint::new("http://collector").unwrap();
        assert_eq!(
            (
                http.host.as_str(),
                http.port,
                http.path.to_string().as_str()
            ),
            ("collector", 4318, "/v1/metrics")
        );
        for bad in [
            "ftp://x",
            "x:1",
            "http://",
            "http://x:99999",
            "http://x:",
            "http://a b",
            "http://u@h",
            "http://x\r\n",
            "",
        ] {
            assert!(Endpoint::new(bad).is_err(), "{bad}");
        }
        assert_eq!(
            Endpoint::new("https://x").is_ok(),
            cfg!(feature = "otlp-tls")
        );
    }

    #[test]
    fn statuses_are_judged_by_the_protocol() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let judge = |status: u16| {
            let response = Response::builder()
                .status(status)
                .header("retry-after", "7")
                .body(Full::new(Bytes::new()))
                .unwrap();
            runtime.block_on(judge(response, Instant::now() + Duration::from_secs(5)))
        };
        for status in 100..=599 {
            let outcome = judge(status);
            let is_as_specified = match status {
                200..=299 => outcome == Ok(Accepted::default()),
                429 | 502 | 503 | 504 => {
                    matches!(&outcome, Err(SendError::Retry { after: Some(after), .. }) if after.as_secs() == 7)
                }
                413 => matches!(&outcome, Err(SendError::TooLarge { .. })),
                _ => matches!(&outcome, Err(SendError::Refused { .. })),
            };
            assert!(is_as_specified, "{status}: {outcome:?}");
        }
    }
}
