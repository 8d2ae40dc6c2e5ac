//! Prometheus' formats: text 0.0.4, OpenMetrics 1.0, and protobuf with native histograms.
//!
//! Names follow OpenTelemetry's rules for Prometheus,
//! <https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>: what the formats do not allow becomes `_`, the
//! unit is appended in words, and `_total` to counters. The registry's resource is `target_info`, scopes are labels `otel_scope_*`.
//!
//! | | |
//! |---|---|
//! | any name, key and value | the exposition is valid: keys are made valid, those that become the same are one label |
//! | two series that become the same | sums, histograms with the same boundaries and exponential histograms are added up; gauges keep the first |
//! | two instruments that become the same | of one type they are one family; otherwise the second is left out, is a sample of `perf_metrics_left_out`, and is in the result of [`expose`] |
//! | series that were never recorded | left out, but for counters of tables, whose labels are declared: they begin as zeros |
//! | exponential histograms | as native histograms in protobuf; as classic ones with the buckets between the least and the largest value, at the histogram's scale or as much coarser as keeps them to 160 |

#[cfg(feature = "http")]
pub mod http;
mod model;
mod names;
mod native;
#[cfg(feature = "http")]
mod protobuf;
mod text;

pub use model::LeftOut;

use crate::snapshot::MetricsSnapshot;
use text::Dialect;

/// What a response with this text must declare.
pub const CONTENT_TYPE: &str = Format::Text.content_type();

/// A format of the exposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>, version 0.0.4.
    Text,
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>, version 1.0.0.
    OpenMetrics,
    /// Messages `io.prometheus.client.MetricFamily`, each behind its length.
    #[cfg(feature = "http")]
    Protobuf,
}

impl Format {
    /// What a response in this format must declare.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            #[cfg(feature = "http")]
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

/// Writes a snapshot, which must be cumulative: Prometheus knows no deltas. Appends to `out`, whose memory can be reused.
pub fn write(snapshot: &MetricsSnapshot, out: &mut String) {
    let (families, _) = model::families(snapshot);
    text::write(&families, Dialect::Prometheus, out);
}

/// Writes a snapshot, which must be cumulative, in a format. Appends to `out`. Says what could not be exposed beside others.
pub fn expose(snapshot: &MetricsSnapshot, format: Format, out: &mut Vec<u8>) -> Vec<LeftOut> {
    let (families, left_out) = model::families(snapshot);
    let mut write_text = |dialect| {
        let mut text = String::new();
        text::write(&families, dialect, &mut text);
        out.extend_from_slice(text.as_bytes());
    };
    match format {
        Format::Text => write_text(Dialect::Prometheus),
        Format::OpenMetrics => write_text(Dialect::OpenMetrics),
        #[cfg(feature = "http")]
        Format::Protobuf => protobuf::write(&families, out),
    }
    left_out
}
