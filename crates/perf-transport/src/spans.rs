//! Spans and events of the `tracing` ecosystem. Without the feature all of this is empty and compiled away.

use crate::error::TransportError;
use crate::event::PeerEvent;
use crate::message::Message;
use crate::trace::TraceContext;
use bytes::Bytes;

#[cfg(feature = "tracing")]
mod imp {
    use super::{Message, PeerEvent, TraceContext};
    use std::future::Future;
    use tracing::field::{Empty, display};
    use tracing::{Instrument, Level, Span};

    /// Around a call, from when it is begun until it is answered or dropped.
    #[derive(Debug)]
    pub(crate) struct CallSpan(Span);

    impl CallSpan {
        pub(crate) fn new(
            peer: u64,
            service: &str,
            method: &str,
            trace: Option<&TraceContext>,
        ) -> Self {
            let span = tracing::span!(
                target: "perf_transport::call", Level::DEBUG, "call",
                peer, service, method, trace_id = Empty, span_id = Empty, error = Empty,
            );
            note_trace(&span, trace);
            Self(span)
        }

        pub(crate) fn ended(&self, error: Option<&crate::error::TransportError>) {
            if let Some(error) = error {
                self.0.record("error", display(error));
            }
        }
    }

    fn note_trace(span: &Span, trace: Option<&TraceContext>) {
        if let Some(trace) = trace.filter(|_| !span.is_disabled()) {
            span.record(
                "trace_id",
                display(format_args!("{:032x}", trace.trace_id())),
            );
            span.record("span_id", display(format_args!("{:016x}", trace.span_id())));
        }
    }

    fn handler_span(message: &Message) -> Span {
        let span = tracing::span!(
            target: "perf_transport::handler", Level::DEBUG, "handler",
            peer = message.from(), service = message.service(), method = message.method(),
            trace_id = Empty, span_id = Empty,
        );
        note_trace(&span, message.trace());
        span
    }

    #[inline]
    pub(crate) fn handle<R>(message: &Message, handle: impl FnOnce() -> R) -> R {
        handler_span(message).in_scope(handle)
    }

    pub(crate) fn instrumented<F: Future>(
        span: HandlerSpan,
        future: F,
    ) -> impl Future<Output = F::Output> {
        future.instrument(span.0)
    }

    pub(crate) struct HandlerSpan(Span);

    impl HandlerSpan {
        pub(crate) fn new(message: &Message) -> Self {
            Self(handler_span(message))
        }

        #[inline]
        pub(crate) fn within<R>(&self, act: impl FnOnce() -> R) -> R {
            self.0.in_scope(act)
        }
    }

    pub(crate) fn event(event: &PeerEvent) {
        let is_orderly = match event {
            PeerEvent::Connected { .. } | PeerEvent::Accepted { .. } => true,
            PeerEvent::Lost { reason, .. } | PeerEvent::Ended { reason, .. } => reason.is_orderly(),
            _ => false,
        };
        if is_orderly {
            tracing::info!(target: "perf_transport::peer", "{event}");
        } else {
            tracing::warn!(target: "perf_transport::peer", "{event}");
        }
    }
}

#[cfg(not(feature = "tracing"))]
mod imp {
    use super::{Message, PeerEvent, TraceContext};
    use std::future::Future;

    #[derive(Debug)]
    pub(crate) struct CallSpan;

    impl CallSpan {
        #[inline(always)]
        pub(crate) fn new(_: u64, _: &str, _: &str, _: Option<&TraceContext>) -> Self {
            Self
        }

        #[inline(always)]
        pub(crate) fn ended(&self, _: Option<&crate::error::TransportError>) {}
    }

    #[inline(always)]
    pub(crate) fn handle<R>(_: &Message, handle: impl FnOnce() -> R) -> R {
        handle()
    }

    #[inline(always)]
    pub(crate) fn instrumented<F: Future>(
        _: HandlerSpan,
        future: F,
    ) -> impl Future<Output = F::Output> {
        future
    }

    pub(crate) struct HandlerSpan;

    impl HandlerSpan {
        #[inline(always)]
        pub(crate) fn new(_: &Message) -> Self {
            Self
        }

        #[inline(always)]
        pub(crate) fn within<R>(&self, act: impl FnOnce() -> R) -> R {
            act()
        }
    }

    #[inline(always)]
    pub(crate) fn event(_: &PeerEvent) {}
}

pub(crate) use imp::*;

/// What is told of a call: its span, and its method's metrics.
#[derive(Debug)]
pub(crate) struct Observed {
    span: CallSpan,
    #[cfg(feature = "metrics")]
    measured: Option<crate::methods::Measured>,
}

impl Observed {
    #[inline]
    pub(crate) fn new(span: CallSpan) -> Self {
        Self {
            span,
            #[cfg(feature = "metrics")]
            measured: None,
        }
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn measured(self, measured: crate::methods::Measured) -> Self {
        Self {
            measured: Some(measured),
            ..self
        }
    }

    #[inline]
    pub(crate) fn ended(&mut self, outcome: Result<&Bytes, &TransportError>) {
        self.span.ended(outcome.err());
        #[cfg(feature = "metrics")]
        if let Some(mut measured) = self.measured.take() {
            measured.called(outcome.map(Bytes::len));
        }
    }
}
