//! Requests with a body, or with an answer in chunks.

use crate::body::{Body, Chunks};
use crate::error::{Rejection, RejectionCode};
use crate::items::ItemSender;
use crate::primitive::mutant;
use crate::proto::{ArrivedMessage, BodyState, CallKey, FrameError, Kind, SendWindow};
use crate::router::Handler;
use crate::shell::conn::Conn;
use crate::spans::HandlerSpan;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ServeRole;
use super::reply::panicked;

impl ServeRole {
    /// A request with a body, or whose answer comes in chunks, to its handler.
    pub(super) fn open(
        &mut self,
        arrived: ArrivedMessage,
        (body, in_chunks): (Option<Arc<BodyState>>, bool),
        conn: &Arc<Conn>,
    ) -> Result<(), FrameError> {
        let ArrivedMessage {
            method: number,
            id,
            sequence,
            limit,
            trace,
            payload,
        } = arrived;
        let key = CallKey::from_id(id);
        if in_chunks && conn.channel.has_window(key) {
            return Err(FrameError::Malformed { kind: Kind::Watch });
        }
        let Some(Some(method)) = self.methods.get(usize::from(number)) else {
            return Ok(());
        };
        let queue = method.priority.queue();
        let refuse = |role: &mut Self, code, text| {
            if let Some(body) = &body {
                body.end(false);
            }
            role.scratch.clear();
            role.reply_inline((id, queue), Err(Rejection::new(code, text)), None);
            Ok(())
        };
        let handler = match (&method.handler, &body, in_chunks) {
            (Some(handler @ Handler::Streamed(_)), Some(_), false)
            | (Some(handler @ Handler::Watch(_)), None, true)
            | (Some(handler @ Handler::Exchange(_)), Some(_), true) => handler.clone(),
            _ => {
                let text = "no handler of this service and method that reads and answers so";
                return refuse(self, RejectionCode::NotFound, text);
            }
        };
        if !method.may_start() {
            let text = "as many requests of this method run as may";
            return refuse(self, RejectionCode::Busy, text);
        }
        let streams = conn.streams.load(Ordering::SeqCst);
        if streams >= self.limits.handlers_max && !mutant::is("streams_without_bound") {
            let text = "as many streams of this connection are handled as may";
            return refuse(self, RejectionCode::Busy, text);
        }
        let message = method.message(self.origin_of(sequence), (id, limit), trace, payload);
        let mut responder = self.responder(method, true, &message, conn);
        responder.is_stream = true;
        conn.streams.fetch_add(1, Ordering::SeqCst);
        let message = self.detached(message);
        let item_bytes_max = self.limits.frame_bytes_max;
        let body = body.map(|body| Body::new(body, Arc::clone(conn), (id, item_bytes_max)));
        let answer = in_chunks.then(|| {
            let credit = self.answer_window_bytes.into();
            let bytes_max = self.limits.frame_bytes_max;
            // Bounded by the streams that are handled at once.
            let window = conn.channel.open_window(key, credit, usize::MAX);
            let window = window.unwrap_or_else(|| Arc::new(SendWindow::new(0)));
            let chunks = Chunks::new(Arc::clone(conn), (key, queue), window, bytes_max);
            ItemSender::new(chunks, false)
        });
        let span = HandlerSpan::new(&message);
        responder.spawn(span, move || match (handler, body, answer) {
            (Handler::Streamed(handler), Some(body), _) => handler(message, body),
            (Handler::Watch(handler), _, Some(answer)) => handler(message, answer),
            (Handler::Exchange(handler), Some(body), Some(answer)) => {
                handler(message, body, answer)
            }
            // Looked at above.
            _ => Box::pin(std::future::ready(Err(panicked()))),
        });
        // The first payload counts as a request's does.
        self.must_stop |= !self.has_handlers_left(conn);
        Ok(())
    }
}
