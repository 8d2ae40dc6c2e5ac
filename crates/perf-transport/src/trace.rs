//! Trace contexts of messages.

use crate::payload::Payload;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// Bytes of a trace context on the wire.
pub(crate) const TRACE_BYTES: usize = 25;

/// Where a message belongs in a distributed trace: W3C Trace Context, level 1.
///
/// A message carries it in 25 bytes. A message without one carries nothing, and neither do messages to peers of
/// versions that do not know it.
///
/// ```
/// use perf_transport::{Envelope, TraceContext};
///
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let context: TraceContext = text.parse()?;
/// assert!(context.is_sampled());
/// assert_eq!(context.to_string(), text);
/// let vote = Envelope::new(2, "raft", "vote", b"term 7").with_trace(&context);
/// # assert!(vote.trace.is_some());
/// # Ok::<(), perf_transport::InvalidTraceparent>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceContext {
    /// A context. `None` if one of the ids is 0, which the standard forbids.
    #[must_use]
    pub const fn new(trace_id: u128, span_id: u64, flags: u8) -> Option<Self> {
        if trace_id == 0 || span_id == 0 {
            return None;
        }
        Some(Self {
            trace_id,
            span_id,
            flags,
        })
    }

    /// The id of the whole trace.
    #[must_use]
    pub const fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The id of the span that sent the message: the parent of the receiver's span.
    #[must_use]
    pub const fn span_id(&self) -> u64 {
        self.span_id
    }

    /// The flags. Bit 0 says that the sender records the trace.
    #[must_use]
    pub const fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether the sender records the trace.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// The context of another span of the same trace. `None` if the id is 0.
    #[must_use]
    pub const fn with_span(self, span_id: u64) -> Option<Self> {
        Self::new(self.trace_id, span_id, self.flags)
    }

    /// As on the wire: the two ids, big endian as in their text, then the flags.
    pub(crate) fn encode(&self) -> [u8; TRACE_BYTES] {
        let mut bytes = [0; TRACE_BYTES];
        bytes[..16].copy_from_slice(&self.trace_id.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.span_id.to_be_bytes());
        bytes[24] = self.flags;
        bytes
    }

    /// What the peer sent. An id that is 0 means that there is no context.
    pub(crate) fn decode(bytes: &[u8; TRACE_BYTES]) -> Option<Self> {
        let [trace_id @ .., _, _, _, _, _, _, _, _, _] = bytes;
        let [.., a, b, c, d, e, f, g, h, flags] = *bytes;
        let span_id = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        Self::new(u128::from_be_bytes(*trace_id), span_id, flags)
    }

    /// The context, then what of a payload is copied anyway.
    pub(crate) fn before(&self, payload: &Payload<'_>) -> Vec<u8> {
        let head: &[u8] = match payload {
            Payload::Borrowed(head) | Payload::Parts { head, .. } => head,
            Payload::Shared(_) => &[],
        };
        let mut bytes = Vec::with_capacity(TRACE_BYTES + head.len());
        bytes.extend_from_slice(&self.encode());
        bytes.extend_from_slice(head);
        bytes
    }
}

/// A payload with its context in front, as [`TraceContext::before`] made it.
pub(crate) fn with_head<'a>(head: &'a [u8], payload: &'a Payload<'a>) -> Payload<'a> {
    match payload {
        Payload::Borrowed(_) => Payload::Borrowed(head),
        Payload::Shared(bytes) => Payload::Parts {
            head,
            parts: std::slice::from_ref(bytes),
        },
        Payload::Parts { parts, .. } => Payload::Parts { head, parts },
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trace_id,
            span_id,
            flags,
        } = self;
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{flags:02x}")
    }
}

/// A text is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidTraceparent;

impl fmt::Display for InvalidTraceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "not a traceparent: expected 00-<32 hex digits>-<16 hex digits>-<2 hex digits> in lower case, with ids that are not 0",
        )
    }
}

impl std::error::Error for InvalidTraceparent {}

impl FromStr for TraceContext {
    type Err = InvalidTraceparent;

    /// Reads a `traceparent` header. Later versions of the standard are read as far as this one knows them.
    fn from_str(text: &str) -> Result<Self, InvalidTraceparent> {
        let mut fields = text.split('-');
        let mut hex = |digits: usize| {
            let field = fields.next().ok_or(InvalidTraceparent)?;
            let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            if field.len() != digits || !field.bytes().all(is_hex) {
                return Err(InvalidTraceparent);
            }
            u128::from_str_radix(field, 16).map_err(|_| InvalidTraceparent)
        };
        let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        // 255 is forbidden, and version 0 has nothing behind its flags.
        if version == 0xFF || (version == 0 && fields.next().is_some()) {
            return Err(InvalidTraceparent);
        }
        // Both have as many digits as fit.
        Self::new(trace_id, span_id as u64, flags as u8).ok_or(InvalidTraceparent)
    }
}

/// The context of a request, and that of its answer once the handler has said one.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) context: TraceContext,
    pub(crate) reply: OnceLock<TraceContext>,
}

impl Traced {
    pub(crate) fn new(context: TraceContext) -> Self {
        Self {
            context,
            reply: OnceLock::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_survive_text_and_wire() {
        let context = TraceContext::new(0x4bf9_2f35, 0xf067_aa0b, 1).expect("ids");
        assert_eq!(context.to_string().parse(), Ok(context));
        assert_eq!(TraceContext::decode(&context.encode()), Some(context));
        assert_eq!(TraceContext::decode(&[0; TRACE_BYTES]), None);
        let other = context.with_span(7).expect("an id");
        assert_eq!((other.trace_id(), other.span_id()), (0x4bf9_2f35, 7));
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let span = "00f067aa0ba902b7";
        let good = [
            format!("00-{trace}-{span}-01"),
            format!("01-{trace}-{span}-00-more"),
        ];
        assert!(good.iter().all(|text| text.parse::<TraceContext>().is_ok()));
        let bad = [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-1"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{trace}-+0f067aa0ba902b7-01"),
        ];
        for text in bad {
            assert_eq!(
                text.parse::<TraceContext>(),
                Err(InvalidTraceparent),
                "{text}"
            );
        }
    }
}
