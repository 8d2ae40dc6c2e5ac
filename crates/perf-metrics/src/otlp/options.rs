//! What can be set about an exporter, in code and by the environment.

use super::OtlpError;
use super::builder::OtlpBuilder;
use super::exporter::OtlpExporter;
use super::http::DEFAULT_PATH;
use crate::attributes::KeyValue;
use crate::reader::Temporality;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;

/// How requests look on the wire.
#[derive(Clone, Debug, Default)]
pub(super) struct SendOptions {
    pub(super) headers: HeaderMap,
    pub(super) is_gzip: bool,
    #[cfg(feature = "otlp-tls")]
    pub(super) root_certificates: Option<Vec<u8>>,
}

pub(super) fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), OtlpError> {
    let invalid = |problem: &str| OtlpError::InvalidOption {
        option: format!("header `{name}`"),
        problem: problem.to_owned(),
    };
    let is_ours = [
        "host",
        "content-type",
        "content-length",
        "content-encoding",
        "transfer-encoding",
        "connection",
        "te",
    ];
    if is_ours.iter().any(|ours| name.eq_ignore_ascii_case(ours))
        || name.to_ascii_lowercase().starts_with("grpc-")
    {
        return Err(invalid("this header is the protocol's own"));
    }
    Ok((
        name.parse()
            .map_err(|_| invalid("the name is not that of a header"))?,
        value
            .parse()
            .map_err(|_| invalid("the value is not one of a header"))?,
    ))
}

/// Reads the variables of <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.
pub(super) fn from_env(
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<OtlpBuilder, OtlpError> {
    // Empty is not set, by the specification.
    let set = |name: &str| {
        variable(name)
            .map(|value| value.trim().to_owned())
            .filter(|value| !value.is_empty())
    };
    // What is said for metrics goes before what is said for all signals.
    let otlp = |name: &str| {
        ["OTEL_EXPORTER_OTLP_METRICS_", "OTEL_EXPORTER_OTLP_"]
            .iter()
            .find_map(|prefix| Some((format!("{prefix}{name}"), set(&format!("{prefix}{name}"))?)))
    };
    let invalid = |option: &str, problem: String| OtlpError::InvalidOption {
        option: option.to_owned(),
        problem,
    };
    let protocol = otlp("PROTOCOL").map_or_else(|| "http/protobuf".to_owned(), |(_, value)| value);
    let mut builder = match protocol.as_str() {
        "http/protobuf" => {
            let endpoint = match (
                set("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"),
                set("OTEL_EXPORTER_OTLP_ENDPOINT"),
            ) {
                (Some(endpoint), _) => endpoint,
                (None, Some(base)) => format!("{}{DEFAULT_PATH}", base.trim_end_matches('/')),
                (None, None) => "http://localhost:4318".to_owned(),
            };
            OtlpExporter::http(&endpoint)
        }
        #[cfg(feature = "otlp-grpc")]
        "grpc" => {
            let endpoint = otlp("ENDPOINT")
                .map_or_else(|| "http://localhost:4317".to_owned(), |(_, value)| value);
            OtlpExporter::grpc(&endpoint)
        }
        other => {
            let problem = format!(
                "{other:?} is not built in; allowed are `http/protobuf`, and `grpc` with the feature `otlp-grpc`"
            );
            return Err(invalid("OTEL_EXPORTER_OTLP_PROTOCOL", problem));
        }
    };
    if let Some((option, value)) = otlp("TIMEOUT") {
        builder = builder.with_timeout(millis(&option, &value)?);
    }
    if let Some(value) = set("OTEL_METRIC_EXPORT_INTERVAL") {
        builder = builder.with_interval(millis("OTEL_METRIC_EXPORT_INTERVAL", &value)?);
    }
    if let Some((option, value)) = otlp("COMPRESSION") {
        builder = match value.as_str() {
            "gzip" => builder.with_gzip(),
            "none" => builder,
            other => {
                return Err(invalid(
                    &option,
                    format!("{other:?}; allowed are `gzip` and `none`"),
                ));
            }
        };
    }
    if let Some((option, value)) = otlp("HEADERS") {
        for (name, value) in pairs(&option, &value)? {
            builder = builder.with_header(&name, &value);
        }
    }
    #[cfg(feature = "otlp-tls")]
    if let Some((option, path)) = otlp("CERTIFICATE") {
        let pem =
            std::fs::read(&path).map_err(|error| invalid(&option, format!("{path}: {error}")))?;
        builder = builder.with_root_certificates(pem);
    }
    if let Some(value) = set("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE") {
        builder = builder.with_temporality(match value.to_ascii_lowercase().as_str() {
            "cumulative" => Temporality::Cumulative,
            "delta" => Temporality::Delta,
            "lowmemory" => Temporality::LowMemory,
            other => {
                let problem =
                    format!("{other:?}; allowed are `cumulative`, `delta` and `lowmemory`");
                return Err(invalid(
                    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
                    problem,
                ));
            }
        });
    }
    let mut resource = Vec::new();
    if let Some(value) = set("OTEL_RESOURCE_ATTRIBUTES") {
        for (key, value) in pairs("OTEL_RESOURCE_ATTRIBUTES", &value)? {
            resource.push(KeyValue::new(key, value));
        }
    }
    if let Some(name) = set("OTEL_SERVICE_NAME") {
        resource.retain(|attribute| attribute.key.as_str() != "service.name");
        resource.push(KeyValue::new("service.name", name));
    }
    Ok(builder.with_resource(resource))
}

fn millis(option: &str, value: &str) -> Result<Duration, OtlpError> {
    value
        .parse()
        .map(Duration::from_millis)
        .map_err(|_| OtlpError::InvalidOption {
            option: option.to_owned(),
            problem: format!("{value:?} is not a whole number of milliseconds"),
        })
}

/// `key=value` divided by commas; both may be percent-encoded.
fn pairs(option: &str, text: &str) -> Result<Vec<(String, String)>, OtlpError> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    let pair = |part: &str| {
        let (key, value) = part.split_once('=')?;
        let (key, value) = (decode(key.trim())?, decode(value.trim())?);
        (!key.is_empty()).then_some((key, value))
    };
    parts
        .map(|part| {
            pair(part).ok_or_else(|| OtlpError::InvalidOption {
                option: option.to_owned(),
                problem: format!("{part:?} is not `key=value`, percent-encoded"),
            })
        })
        .collect()
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, after) = match (*first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                (u8::try_from(digit(high)? * 16 + digit(low)?).ok()?, after)
            }
            (b'%', _) => return None,
            (byte, after) => (byte, after),
        };
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<OtlpBuilder, OtlpError> {
        from_env(&|name| {
            set.iter()
                .find(|(other, _)| *other == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_says_what_the_specification_has() {
        let builder = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:1/base/"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b,x = y ,"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "250"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "9"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1500"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,host=a%2Cb"),
            ("OTEL_SERVICE_NAME", "yes"),
        ])
        .unwrap();
        let shown = format!("{builder:?}");
        for part in [
            "/base/v1/metrics",
            "api-key",
            "a b",
            "250ms",
            "1.5s",
            "is_gzip: true",
            "Delta",
            "a,b",
            "yes",
        ] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
        assert!(!shown.contains("\"no\""), "{shown}");
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "novalue"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=%zz"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "x"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.to_string().contains("OTEL_"), "{error}");
        }
        assert!(
            read(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "")]).is_ok(),
            "empty is not set"
        );
    }
}
