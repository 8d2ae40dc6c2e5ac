//! Delivers to an OTLP receiver, without the SDK: <https://opentelemetry.io/docs/specs/otlp/>.
//!
//! A thread of its own collects at an interval, encodes, and sends over HTTP, or over gRPC with the feature `otlp-grpc`.
//!
//! | | |
//! |---|---|
//! | receiver down, busy or hanging | the same request is sent again, unchanged, after a pause that doubles from one second to thirty, with jitter, or as long as the receiver asks for, up to [`RETRY_AFTER_MAX`] |
//! | much to send | a collection is divided into requests of at most [`REQUEST_BYTES_MAX_DEFAULT`] bytes and [`REQUEST_POINTS_MAX_DEFAULT`] points |
//! | request larger than the receiver takes | it is divided, with all that waits, until it is taken; a single point that is too large is refused; the lowered bound grows back |
//! | queue full, deltas | nothing is collected until there is room: the next request then covers a longer time, so nothing is lost |
//! | queue full, or receiver down, cumulative | the newest takes the place of all before it, which it contains; the last values of series that have left stay in the queue, up to its length, and what exceeds it is counted in [`OtlpStats::lost_points`] |
//! | request refused | it is dropped, counted in [`OtlpStats::refused`] and reported; `flush` and `shutdown` return [`OtlpError::Refused`] |
//! | shutdown | collects once more, makes an attempt at once unless the receiver asked for a pause, and tries until the time given is over; says what is left |
//!
//! A request whose answer got lost is sent again, as the protocol demands, and a receiver that took it the first time takes it
//! twice: for sums that must not tolerate this, use cumulative temporality. Exponential histograms have at most 160
//! buckets a side, as in the SDK; explicit ones have their boundaries.

mod builder;
pub mod encode;
mod exporter;
#[cfg(feature = "otlp-grpc")]
mod grpc;
mod http;
mod left_behind;
mod limit;
mod options;
mod retry;
mod split;
#[cfg(feature = "otlp-tls")]
mod tls;
mod worker;

pub use builder::OtlpBuilder;
pub use exporter::{Delivery, OtlpExporter, OtlpStats};
pub use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
pub use retry::RETRY_AFTER_MAX;
pub use split::{REQUEST_BYTES_MAX_DEFAULT, REQUEST_POINTS_MAX_DEFAULT};

use std::fmt;
use std::time::Duration;

/// How a request reaches a receiver. Implement it to bring a proxy or a protocol of your own.
pub trait Transport: Send {
    /// Sends one request, and takes not much longer than `timeout` for all of it: finding the host, connecting, sending, and reading the
    /// answer.
    ///
    /// # Errors
    /// [`SendError`], which says whether to try again.
    fn send(
        &mut self,
        request: &ExportMetricsServiceRequest,
        timeout: Duration,
    ) -> Result<Accepted, SendError>;
}

/// The receiver took a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// How many data points it rejected all the same.
    pub rejected_points: u64,
    /// What it says about that.
    pub message: String,
}

/// The receiver did not take a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// It may take it later.
    Retry {
        /// What went wrong.
        reason: String,
        /// How long the receiver asks to wait.
        after: Option<Duration>,
    },
    /// It is larger than the receiver takes: it is divided and sent again.
    TooLarge {
        /// What the receiver says.
        reason: String,
    },
    /// It never will.
    Refused {
        /// What went wrong.
        reason: String,
    },
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry { reason, .. } => write!(f, "not delivered, will be sent again: {reason}"),
            Self::TooLarge { reason } => {
                write!(f, "too large for the receiver, will be divided: {reason}")
            }
            Self::Refused { reason } => write!(f, "refused by the receiver and dropped: {reason}"),
        }
    }
}

impl std::error::Error for SendError {}

/// Why an exporter did not start, or did not deliver everything.
#[derive(Debug)]
#[non_exhaustive]
pub enum OtlpError {
    /// The endpoint is no URL that this exporter can reach.
    InvalidEndpoint {
        /// The endpoint that was given.
        endpoint: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// An option, or a variable of the environment, is not valid.
    InvalidOption {
        /// Its name.
        option: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// The registry has no place for another reader.
    Registry(crate::MetricsError),
    /// The thread could not be started.
    Thread(std::io::Error),
    /// The time was over before everything was delivered.
    Undelivered {
        /// How many requests are left.
        requests: usize,
        /// Why the last one failed, if one did.
        last_error: Option<String>,
        /// What became of the other requests meanwhile.
        delivery: Delivery,
    },
    /// Nothing is left to send, but the receiver refused requests, which are lost.
    Refused {
        /// What became of the requests.
        delivery: Delivery,
        /// What the receiver said last.
        last_error: Option<String>,
    },
}

impl fmt::Display for OtlpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidEndpoint { endpoint, problem } => {
                write!(f, "OTLP endpoint {endpoint:?}: {problem}")
            }
            Self::InvalidOption { option, problem } => write!(f, "OTLP option {option}: {problem}"),
            Self::Registry(error) => error.fmt(f),
            Self::Thread(error) => {
                write!(f, "cannot start the thread of the OTLP exporter: {error}")
            }
            Self::Undelivered {
                requests,
                last_error,
                ..
            } => {
                let error = last_error
                    .as_deref()
                    .unwrap_or("the receiver has not answered yet");
                write!(
                    f,
                    "{requests} OTLP requests are not delivered ({error}); allow more time, or check the receiver"
                )
            }
            Self::Refused {
                delivery,
                last_error,
            } => write!(
                f,
                "the receiver refused {} of {} OTLP requests, which are lost ({})",
                delivery.refused,
                delivery.refused + delivery.delivered,
                last_error.as_deref().unwrap_or("no reason is known")
            ),
        }
    }
}

impl std::error::Error for OtlpError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Registry(error) => Some(error),
            Self::Thread(error) => Some(error),
            _ => None,
        }
    }
}
