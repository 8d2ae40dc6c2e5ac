//! OTLP over HTTP/1.1 with binary protobuf: one connection for each request, as requests are seconds apart.

use super::{Accepted, ExportMetricsServiceRequest, OtlpError, SendError, Transport};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

const DEFAULT_PORT: u16 = 4318;
const DEFAULT_PATH: &str = "/v1/metrics";
/// Of an answer so much is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Http {
    /// For the header `host`.
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl Http {
    pub(super) fn new(endpoint: &str) -> Result<Self, OtlpError> {
        let invalid = |problem: &str| OtlpError::InvalidEndpoint {
            endpoint: endpoint.to_owned(),
            problem: problem.to_owned(),
        };
        let rest = endpoint.strip_prefix("http://").ok_or_else(|| {
            invalid("allowed is `http://HOST[:PORT][/PATH]`; for TLS give a transport of your own, or send to a collector beside the node")
        })?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.is_empty()
            || endpoint.chars().any(|c| c.is_control() || c == ' ')
            || authority.contains('@')
        {
            return Err(invalid(
                "it has no host, or characters that are not allowed there",
            ));
        }
        let port_at = authority
            .rfind(':')
            .filter(|at| !authority[*at..].contains(']'));
        let (host, port) = match port_at {
            Some(at) => (
                &authority[..at],
                authority[at + 1..]
                    .parse()
                    .map_err(|_| invalid("the port is not a number up to 65535"))?,
            ),
            None => (authority, DEFAULT_PORT),
        };
        Ok(Self {
            authority: authority.to_owned(),
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            path: if path.len() <= 1 {
                DEFAULT_PATH.to_owned()
            } else {
                path.to_owned()
            },
        })
    }

    fn exchange(&self, body: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
        let left = || match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
            left => Ok(left),
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            let mut stream = match TcpStream::connect_timeout(&address, left()?) {
                Ok(stream) => stream,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            stream.set_write_timeout(Some(left()?))?;
            let head = format!(
                "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/x-protobuf\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                self.path,
                self.authority,
                body.len()
            );
            stream.write_all(head.as_bytes())?;
            stream.write_all(body)?;
            let mut answer = Vec::new();
            let mut part = [0; 4096];
            while answer.len() < ANSWER_BYTES_MAX && !is_whole(&answer) {
                stream.set_read_timeout(Some(left()?))?;
                match stream.read(&mut part)? {
                    0 => break,
                    read => answer.extend_from_slice(&part[..read]),
                }
            }
            return Ok(answer);
        }
        Err(last)
    }
}

impl Transport for Http {
    fn send(
        &mut self,
        request: &ExportMetricsServiceRequest,
        timeout: Duration,
    ) -> Result<Accepted, SendError> {
        let answer = self.exchange(&request.encode_to_vec(), Instant::now() + timeout);
        let answer = answer.map_err(|error| SendError::Retry {
            reason: format!("http://{}{}: {error}", self.authority, self.path),
            after: None,
        })?;
        judge(&answer)
    }
}

struct Answer<'a> {
    status: u16,
    retry_after: Option<Duration>,
    length: Option<usize>,
    body: &'a [u8],
}

fn parse(answer: &[u8]) -> Option<Answer<'_>> {
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()?
        .strip_prefix("HTTP/1.")?
        .get(2..5)?
        .parse()
        .ok()?;
    let header = |wanted: &str| {
        let value = |line: &str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted)
                .then(|| value.trim().to_owned())
        };
        head.split("\r\n").skip(1).find_map(value)
    };
    Some(Answer {
        status,
        retry_after: header("retry-after")
            .and_then(|seconds| seconds.parse().ok())
            .map(Duration::from_secs),
        length: header("content-length").and_then(|length| length.parse().ok()),
        body: &answer[end + 4..],
    })
}

fn is_whole(answer: &[u8]) -> bool {
    parse(answer).is_some_and(|answer| {
        answer
            .length
            .is_some_and(|length| answer.body.len() >= length)
    })
}

fn judge(answer: &[u8]) -> Result<Accepted, SendError> {
    let Some(answer) = parse(answer) else {
        return Err(SendError::Retry {
            reason: "the answer is not one of HTTP/1".to_owned(),
            after: None,
        });
    };
    match answer.status {
        200..=299 => {
            let body = answer.length.and_then(|length| answer.body.get(..length));
            let response = body.and_then(|body| ExportMetricsServiceResponse::decode(body).ok());
            Ok(accepted(response))
        }
        // <https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes>
        status @ (429 | 502 | 503 | 504) => Err(SendError::Retry {
            reason: format!("the receiver answers {status}"),
            after: answer.retry_after,
        }),
        status => Err(SendError::Refused {
            reason: format!("the receiver answers {status}"),
        }),
    }
}

pub(super) fn accepted(response: Option<ExportMetricsServiceResponse>) -> Accepted {
    let partial = response
        .and_then(|response| response.partial_success)
        .unwrap_or_default();
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
        let http = Http::new("http://[::1]:9/x").unwrap();
        assert_eq!(
            (http.host.as_str(), http.port, http.path.as_str()),
            ("::1", 9, "/x")
        );
        let http = Http::new("http://collector").unwrap();
        assert_eq!(
            (http.host.as_str(), http.port, http.path.as_str()),
            ("collector", 4318, "/v1/metrics")
        );
        for bad in [
            "https://x",
            "x:1",
            "http://",
            "http://x:99999",
            "http://a b",
            "http://u@h",
            "http://x\r\n",
        ] {
            assert!(Http::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_are_judged_by_the_protocol() {
        assert_eq!(
            judge(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
            Ok(Accepted::default())
        );
        let busy = judge(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n");
        assert!(
            matches!(busy, Err(SendError::Retry { after: Some(after), .. }) if after.as_secs() == 7)
        );
        assert!(matches!(
            judge(b"HTTP/1.1 400 Bad\r\n\r\n"),
            Err(SendError::Refused { .. })
        ));
        assert!(matches!(judge(b"garbage"), Err(SendError::Retry { .. })));
    }
}
