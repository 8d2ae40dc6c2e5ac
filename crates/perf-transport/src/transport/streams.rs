//! Requests with bodies, or answers, in chunks.

use crate::body::{AnswerBody, BodySender, Chunks};
use crate::call::Call;
use crate::envelope::Envelope;
use crate::error::TransportError;
use crate::items::{Answer, ItemSender};
use crate::proto::Kind;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Transport;

/// A request with a body in chunks, or an answer that comes so.
pub(super) struct Streams {
    pub(super) chunks: Option<Chunks>,
    pub(super) answer: Option<AnswerBody>,
    pub(super) call: Call,
}

impl Streams {
    pub(super) fn into_answer(self, item_bytes_max: usize) -> Result<Answer, TransportError> {
        let Self { answer, call, .. } = self;
        match answer {
            Some(body) => Ok(Answer::new(body, call, item_bytes_max)),
            None => Err(TransportError::ShuttingDown),
        }
    }
}

impl Transport {
    /// Begins a request whose body is sent in chunks: snapshots, and whatever is longer than a frame. The envelope's
    /// payload is the request's head. It is answered once, when the receiver's handler returns.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`TooManyStreams`](TransportError::TooManyStreams).
    pub fn stream(&self, envelope: Envelope<'_>) -> Result<BodySender, TransportError> {
        let begun = self.begin_streams(&envelope, Kind::StreamOpen)?;
        let Some(chunks) = begun.chunks else {
            return Err(TransportError::ShuttingDown);
        };
        Ok(BodySender::new(chunks, begun.call))
    }

    /// Sends a request that is answered item by item: a watch of what changes, a long list. The peer's handler is one
    /// of [`Router::watch`](crate::Router::watch). The answer may take as long as a streamed body
    /// ([`Config::stream_timeout`](crate::Config::stream_timeout)) where the envelope does not say.
    ///
    /// ```no_run
    /// # async fn f(transport: &perf_transport::Transport) -> Result<(), perf_transport::TransportError> {
    /// use perf_transport::Envelope;
    ///
    /// let mut events = transport.watch(Envelope::new(2, "vm", "events", b"vm-7"))?;
    /// while let Some(event) = events.next().await {
    ///     println!("{:?}", event?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`stream`](Self::stream), and [`Unsupported`](TransportError::Unsupported) if the peer's version does not
    /// know this.
    pub fn watch(&self, envelope: Envelope<'_>) -> Result<Answer, TransportError> {
        let begun = self.begin_streams(&envelope, Kind::Watch)?;
        begun.into_answer(self.payload_bytes_max())
    }

    /// Sends a request with items both ways at once: the caller sends and reads at its own pace. The peer's handler is
    /// one of [`Router::exchange`](crate::Router::exchange).
    ///
    /// # Errors
    /// As [`watch`](Self::watch).
    pub fn exchange(&self, envelope: Envelope<'_>) -> Result<(ItemSender, Answer), TransportError> {
        let mut begun = self.begin_streams(&envelope, Kind::Exchange)?;
        let Some(chunks) = begun.chunks.take() else {
            return Err(TransportError::ShuttingDown);
        };
        let sender = ItemSender::new(chunks, true);
        Ok((sender, begun.into_answer(self.payload_bytes_max())?))
    }

    /// Queues a request with a body that is sent in chunks, an answer that comes so, or both.
    pub(super) fn begin_streams(
        &self,
        envelope: &Envelope<'_>,
        kind: Kind,
    ) -> Result<Streams, TransportError> {
        let route = self.route(envelope)?;
        let refused = |refused| self.error(refused, envelope);
        let resolved = self.resolve(&route, envelope).map_err(refused)?;
        let timeout = envelope.timeout.unwrap_or(self.inner.config.stream_timeout);
        let (key, limit) = self.open(&resolved, timeout).map_err(refused)?;
        let (link, conn) = (resolved.link, resolved.conn());
        let mut streams = Streams {
            chunks: None,
            answer: None,
            call: Call::waiting(Arc::clone(conn), key, self.observe_on(&route, envelope)),
        };
        let channel = &conn.channel;
        let fail = |streams: Streams, error| {
            // The peer has not got it, and need not be told.
            channel.close_window(key);
            channel.pending.cancel(key);
            drop(streams);
            Err(error)
        };
        let too_many = |streams_max| TransportError::TooManyStreams {
            peer: envelope.target,
            streams_max,
        };
        if matches!(kind, Kind::StreamOpen | Kind::Exchange) {
            let credit = link.stream_window_bytes.load(Ordering::Relaxed);
            let streams_max = link.streams_max.load(Ordering::Relaxed) as usize;
            let Some(window) = channel.open_window(key, credit.into(), streams_max) else {
                return fail(streams, too_many(streams_max));
            };
            let chunks = Chunks::new(Arc::clone(conn), (key, resolved.queue), window, usize::MAX);
            streams.chunks = Some(chunks);
        }
        if kind.is_watch() {
            let config = &self.inner.config;
            let answers_max = config.streams_max as usize;
            let body = channel.open_answer(key, config.stream_window_bytes, answers_max);
            let Some(body) = body else {
                return fail(streams, too_many(answers_max));
            };
            streams.answer = Some(AnswerBody::new(body, Arc::clone(conn), (key, answers_max)));
        }
        let header = resolved.header(kind, key.id()).within(limit);
        if let Err(reason) = self.queue_message(&resolved, header, envelope) {
            return fail(streams, refused(reason));
        }
        conn.notify(false);
        Ok(streams)
    }
}
