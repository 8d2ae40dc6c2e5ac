//! OTLP over gRPC, on a small runtime in the exporter's thread.

use super::http::accepted;
use super::options::SendOptions;
use super::{Accepted, ExportMetricsServiceRequest, OtlpError, SendError, Transport};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use prost::Message;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

pub(super) struct Grpc {
    endpoint: Endpoint,
    is_gzip: bool,
    /// None until the first request, and after an attempt that had no answer: its connection may be dead without a sign.
    client: Option<MetricsServiceClient<Channel>>,
    headers: MetadataMap,
    /// Taken when dropped.
    runtime: Option<Runtime>,
}

pub(super) fn endpoint(endpoint: &str) -> Result<Endpoint, OtlpError> {
    let invalid = |problem: String| OtlpError::InvalidEndpoint {
        endpoint: endpoint.to_owned(),
        problem,
    };
    let checked = Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| invalid(format!("{error}; allowed is `http://HOST:PORT`")))?;
    match checked.uri().scheme_str() {
        Some("http") => Ok(checked),
        Some("https") if cfg!(feature = "otlp-tls") => Ok(checked),
        Some("https") => Err(invalid(
            "TLS needs the feature `otlp-tls` of perf-metrics".to_owned(),
        )),
        _ => Err(invalid(
            "allowed is `http://HOST:PORT`, and `https`".to_owned(),
        )),
    }
}

impl Grpc {
    /// Connects at the first request, again whenever the connection is lost, and after an attempt that had no answer in time.
    pub(super) fn new(endpoint: Endpoint, options: &SendOptions) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        #[cfg(feature = "otlp-tls")]
        let endpoint = if endpoint.uri().scheme_str() == Some("https") {
            use tonic::transport::{Certificate, ClientTlsConfig};
            let tls = match &options.root_certificates {
                Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                None => ClientTlsConfig::new().with_native_roots(),
            };
            endpoint.tls_config(tls).map_err(std::io::Error::other)?
        } else {
            endpoint
        };
        Ok(Self {
            endpoint,
            is_gzip: options.is_gzip,
            client: None,
            headers: MetadataMap::from_headers(options.headers.clone()),
            runtime: Some(runtime),
        })
    }
}

/// Within a runtime, to which the connection belongs.
fn connect(endpoint: &Endpoint, is_gzip: bool) -> MetricsServiceClient<Channel> {
    let client = MetricsServiceClient::new(endpoint.connect_lazy())
        .accept_compressed(CompressionEncoding::Gzip);
    match is_gzip {
        true => client.send_compressed(CompressionEncoding::Gzip),
        false => client,
    }
}

impl Transport for Grpc {
    fn send(
        &mut self,
        request: &ExportMetricsServiceRequest,
        timeout: Duration,
    ) -> Result<Accepted, SendError> {
        let mut request = Request::new(request.clone());
        *request.metadata_mut() = self.headers.clone();
        let Some(runtime) = &self.runtime else {
            return Err(SendError::Refused {
                reason: "the exporter is over".to_owned(),
            });
        };
        let (endpoint, is_gzip) = (&self.endpoint, self.is_gzip);
        let slot = &mut self.client;
        let outcome = runtime.block_on(async {
            let client = slot.get_or_insert_with(|| connect(endpoint, is_gzip));
            tokio::time::timeout(timeout, client.export(request)).await
        });
        match outcome {
            Ok(Ok(response)) => Ok(accepted(response.into_inner())),
            Ok(Err(status)) => Err(judge(&status)),
            Err(_elapsed) => {
                // A network that drops packets leaves a connection that answers nothing for a quarter of an hour.
                self.client = None;
                Err(SendError::Retry {
                    reason: "the receiver does not answer in time".to_owned(),
                    after: None,
                })
            }
        }
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        // Without waiting for a resolver that hangs.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// By <https://opentelemetry.io/docs/specs/otlp/#failures>.
fn judge(status: &Status) -> SendError {
    let reason = format!("{}: {}", status.code(), status.message());
    if is_too_large(status) {
        return SendError::TooLarge { reason };
    }
    let after = retry_info(status.details());
    let is_retryable = match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        // Only a receiver that says when it recovers does.
        Code::ResourceExhausted => after.is_some(),
        // Of a connection that breaks, which is not the receiver's answer.
        Code::Unknown | Code::Internal => std::error::Error::source(status).is_some(),
        _ => false,
    };
    match is_retryable {
        true => SendError::Retry { reason, after },
        false => SendError::Refused { reason },
    }
}

/// gRPC has no code for a message beyond the receiver's limit: implementations say it in words.
fn is_too_large(status: &Status) -> bool {
    let text = status.message().to_ascii_lowercase();
    matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange)
        && [
            "larger than max",
            "too large",
            "exceeds maximum size",
            "exceeds the limit",
        ]
        .iter()
        .any(|sign| text.contains(sign))
}

/// `google.rpc.Status`, as far as it is of interest here.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<RpcAny>,
}

#[derive(Clone, PartialEq, Message)]
struct RpcAny {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<RpcDuration>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct RpcDuration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// How long the receiver asks to wait, if it does.
fn retry_info(details: &[u8]) -> Option<Duration> {
    let status = RpcStatus::decode(details).ok()?;
    let info = status
        .details
        .iter()
        .find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice())
        .ok()?
        .retry_delay
        .unwrap_or_default();
    let nanos = u32::try_from(delay.nanos).unwrap_or(0);
    Some(
        Duration::from_secs(u64::try_from(delay.seconds).unwrap_or(0))
            .saturating_add(Duration::from_nanos(nanos.into())),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_retry_info(code: Code, seconds: i64) -> Status {
        let info = RetryInfo {
            retry_delay: Some(RpcDuration { seconds, nanos: 5 }),
        };
        let any = RpcAny {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
            value: info.encode_to_vec(),
        };
        let status = RpcStatus { details: vec![any] };
        Status::with_details(code, "busy", status.encode_to_vec().into())
    }

    #[test]
    fn codes_are_judged_by_the_protocol() {
        use Code::{
            Aborted, Cancelled, DataLoss, DeadlineExceeded, OutOfRange, ResourceExhausted,
            Unavailable,
        };
        for code in (0..17).map(Code::from_i32) {
            let is_listed = [
                Cancelled,
                DeadlineExceeded,
                Aborted,
                OutOfRange,
                Unavailable,
                DataLoss,
            ]
            .contains(&code);
            let plain = judge(&Status::new(code, "why"));
            assert_eq!(
                matches!(plain, SendError::Retry { after: None, .. }),
                is_listed,
                "{plain:?}"
            );
            let timed = judge(&with_retry_info(code, 400));
            let waits = matches!(timed, SendError::Retry { after: Some(after), .. } if after.as_secs() == 400);
            assert_eq!(waits, is_listed || code == ResourceExhausted, "{timed:?}");
        }
        for (code, text) in [
            (
                ResourceExhausted,
                "grpc: received message larger than max (5000000 vs. 4194304)",
            ),
            (
                OutOfRange,
                "Error, decoded message length too large: found 5000000 bytes, the limit is: 4194304 bytes",
            ),
        ] {
            assert!(
                matches!(judge(&Status::new(code, text)), SendError::TooLarge { .. }),
                "{text}"
            );
        }
    }

    #[test]
    fn details_that_are_no_status_ask_for_nothing() {
        assert_eq!(retry_info(b""), None);
        assert_eq!(retry_info(b"\xff\xff\xff"), None);
        let negative = with_retry_info(Code::Unavailable, -3);
        assert_eq!(
            retry_info(negative.details()),
            Some(Duration::from_nanos(5))
        );
    }
}
