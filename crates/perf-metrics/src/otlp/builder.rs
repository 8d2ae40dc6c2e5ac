//! Describes an exporter and starts it.

use super::encode::Origin;
use super::exporter::{DURATION_MAX, OtlpExporter, Shared};
use super::http::{self, Http};
use super::options::{self, SendOptions};
use super::split::{self, REQUEST_BYTES_MAX_DEFAULT, REQUEST_POINTS_MAX_DEFAULT};
use super::worker::{Settings, Worker};
use super::{OtlpError, Transport};
use crate::attributes::{KeyValue, normalize};
use crate::reader::Temporality;
use crate::registry::Registry;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub(super) enum Target {
    Http(Box<http::Endpoint>),
    #[cfg(feature = "otlp-grpc")]
    Grpc(Box<tonic::transport::Endpoint>),
    Custom(Box<dyn Transport>),
}

/// Describes an exporter and starts it.
#[must_use = "an exporter runs once it is started"]
pub struct OtlpBuilder {
    target: Result<Target, OtlpError>,
    temporality: Temporality,
    options: SendOptions,
    settings: Settings,
    /// The first option that is not valid.
    invalid: Option<OtlpError>,
}

impl OtlpBuilder {
    pub(super) fn new(target: Result<Target, OtlpError>) -> Self {
        Self {
            target,
            temporality: Temporality::Cumulative,
            options: SendOptions::default(),
            settings: Settings {
                interval: Duration::from_secs(60),
                timeout: Duration::from_secs(10),
                queue_max: 16,
                request_max: split::Max {
                    bytes: REQUEST_BYTES_MAX_DEFAULT,
                    points: REQUEST_POINTS_MAX_DEFAULT,
                },
                origin: Origin {
                    resource: Vec::new(),
                    scope_name: "perf-metrics".to_owned(),
                    scope_version: env!("CARGO_PKG_VERSION").to_owned(),
                },
                on_error: Box::new(|error| eprintln!("perf-metrics: OTLP: {error}")),
            },
            invalid: None,
        }
    }

    /// How often to collect: a minute unless said here, at least a millisecond.
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.settings.interval = interval.clamp(Duration::from_millis(1), DURATION_MAX);
        self
    }

    /// How long one attempt may take: ten seconds unless said here.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout.clamp(Duration::from_millis(1), DURATION_MAX);
        self
    }

    /// Cumulative unless said here.
    pub fn with_temporality(mut self, temporality: Temporality) -> Self {
        self.temporality = temporality;
        self
    }

    /// How large a request is at most, in bytes before compression and in data points: [`REQUEST_BYTES_MAX_DEFAULT`] and
    /// [`REQUEST_POINTS_MAX_DEFAULT`] unless said here. A single point is sent however large it is.
    ///
    /// A receiver that refuses a request for its length lowers the bound of bytes to half of that request. After 32
    /// requests that were taken the bound doubles, up to what is set here; after twice as many each time that this is
    /// refused again, up to 4096.
    pub fn with_request_max(mut self, bytes_max: usize, points_max: usize) -> Self {
        self.settings.request_max = split::Max {
            bytes: bytes_max.max(1),
            points: points_max.max(1),
        };
        self
    }

    /// One more header of each request, in gRPC one more entry of its metadata. A name or value that is not valid is an error of
    /// [`start`](Self::start). Names and values are kept out of error messages but for the name.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        match options::header(name, value) {
            Ok((name, value)) => drop(self.options.headers.append(name, value)),
            Err(error) => self.invalid = self.invalid.or(Some(error)),
        }
        self
    }

    /// Compresses requests with gzip.
    pub fn with_gzip(mut self) -> Self {
        self.options.is_gzip = true;
        self
    }

    /// The certificates, in PEM, of the authorities to trust in the place of the system's.
    #[cfg(feature = "otlp-tls")]
    pub fn with_root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.options.root_certificates = Some(pem.into());
        self
    }

    /// After how many waiting requests no more is collected: 16 unless said here. One collection can be several requests, all of which are
    /// kept.
    pub fn with_queue_max(mut self, requests_max: usize) -> Self {
        self.settings.queue_max = requests_max.max(1);
        self
    }

    /// What the metrics are about. Of a key that is repeated the last counts.
    pub fn with_resource(mut self, attributes: impl IntoIterator<Item = KeyValue>) -> Self {
        self.settings.origin.resource = normalize(&attributes.into_iter().collect::<Vec<_>>());
        self
    }

    /// The name and version of the instrumentation.
    pub fn with_scope(mut self, name: impl Into<String>, version: impl Into<String>) -> Self {
        (
            self.settings.origin.scope_name,
            self.settings.origin.scope_version,
        ) = (name.into(), version.into());
        self
    }

    /// Who is told of failures, in the exporter's thread, once while they stay the same. Unless said here they are
    /// written to the standard error.
    pub fn with_error_handler(mut self, on_error: impl Fn(&str) + Send + 'static) -> Self {
        self.settings.on_error = Box::new(on_error);
        self
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// [`OtlpError`]: the endpoint or an option is not valid, the registry has all its readers, or no thread can be started.
    pub fn start(self, registry: &Registry) -> Result<OtlpExporter, OtlpError> {
        let target = self.target?;
        if let Some(invalid) = self.invalid {
            return Err(invalid);
        }
        let options = self.options;
        let reader = registry
            .reader(self.temporality)
            .map_err(OtlpError::Registry)?;
        let shared = Arc::new(Shared::default());
        let mut worker = Worker::new(self.settings, reader, Arc::clone(&shared));
        let run = move || match connect(target, &options) {
            Ok(mut transport) => worker.run(&mut *transport),
            Err(error) => worker.end(&format!("cannot start: {error}")),
        };
        let thread = std::thread::Builder::new()
            .name("metrics-otlp".to_owned())
            .spawn(run)
            .map_err(OtlpError::Thread)?;
        Ok(OtlpExporter::new(shared, thread))
    }
}

impl fmt::Debug for OtlpBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpBuilder")
            .field("target", &self.target)
            .field("interval", &self.settings.interval)
            .field("timeout", &self.settings.timeout)
            .field("temporality", &self.temporality)
            .field("options", &self.options)
            .field("origin", &self.settings.origin)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(endpoint) => endpoint.fmt(f),
            #[cfg(feature = "otlp-grpc")]
            Self::Grpc(endpoint) => endpoint.uri().fmt(f),
            Self::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// In the exporter's thread: a runtime must not be dropped within another.
fn connect(target: Target, options: &SendOptions) -> std::io::Result<Box<dyn Transport>> {
    Ok(match target {
        Target::Http(endpoint) => Box::new(Http::new(*endpoint, options)?),
        #[cfg(feature = "otlp-grpc")]
        Target::Grpc(endpoint) => Box::new(super::grpc::Grpc::new(*endpoint, options)?),
        Target::Custom(transport) => transport,
    })
}
