//! OTLP over gRPC, on a small runtime in the exporter's thread.

use super::http::accepted;
use super::{Accepted, ExportMetricsServiceRequest, OtlpError, SendError, Transport};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

pub(super) struct Grpc {
    client: MetricsServiceClient<Channel>,
    runtime: Runtime,
}

pub(super) fn endpoint(endpoint: &str) -> Result<Endpoint, OtlpError> {
    Endpoint::from_shared(endpoint.to_owned()).map_err(|error| OtlpError::InvalidEndpoint {
        endpoint: endpoint.to_owned(),
        problem: format!("{error}; allowed is `http://HOST:PORT`"),
    })
}

impl Grpc {
    /// Connects at the first request, and again whenever the connection is lost.
    pub(super) fn new(endpoint: &Endpoint) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        Ok(Self {
            client: MetricsServiceClient::new(channel),
            runtime,
        })
    }
}

impl Transport for Grpc {
    fn send(
        &mut self,
        request: &ExportMetricsServiceRequest,
        timeout: Duration,
    ) -> Result<Accepted, SendError> {
        let export = self.client.export(request.clone());
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(timeout, export).await });
        match answer {
            Ok(Ok(response)) => Ok(accepted(Some(response.into_inner()))),
            Ok(Err(status)) => Err(judge(&status)),
            Err(_elapsed) => Err(SendError::Retry {
                reason: "the receiver does not answer in time".to_owned(),
                after: None,
            }),
        }
    }
}

/// By <https://opentelemetry.io/docs/specs/otlp/#failures>.
fn judge(status: &tonic::Status) -> SendError {
    let reason = format!("{}: {}", status.code(), status.message());
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => SendError::Retry {
            reason,
            after: None,
        },
        // A connection that breaks is reported like that.
        Code::Unknown => SendError::Retry {
            reason,
            after: None,
        },
        _ => SendError::Refused { reason },
    }
}
