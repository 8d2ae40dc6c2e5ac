//! Layers around handlers and calls, as the `tower` ecosystem has them.

use crate::body::Body;
use crate::call::Call;
use crate::error::{Rejection, TransportError};
use crate::items::ItemSender;
use crate::message::{Message, MessageRef, Reply};
use crate::proto::{FrameRef, Header, Kind};
use crate::remote::RemoteMethod;
use crate::router::{Handler, HandlerFuture};
use bytes::Bytes;
use std::fmt;
use std::future::{poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower_layer::Layer;
use tower_service::Service;

/// What a layer around handlers sees: the message, and for some handlers a body or the sender of an answer, which go on
/// to the handler.
#[derive(Debug)]
pub struct Request {
    /// The message: its origin, service, method and payload.
    pub message: Message,
    pub(crate) body: Option<Body>,
    pub(crate) answer: Option<ItemSender>,
}

impl Request {
    pub(crate) fn new(message: Message, body: Option<Body>, answer: Option<ItemSender>) -> Self {
        Self {
            message,
            body,
            answer,
        }
    }
}

/// A handler, for a layer to put something around: see [`Router::layer`](crate::Router::layer).
#[derive(Clone)]
pub struct HandlerService(Handler);

impl fmt::Debug for HandlerService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandlerService")
    }
}

impl Service<Request> for HandlerService {
    type Response = Bytes;
    type Error = Rejection;
    type Future = HandlerFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> HandlerFuture {
        let Request {
            message,
            body,
            answer,
        } = request;
        match (&self.0, body, answer) {
            (Handler::Inline(handler), ..) => {
                let mut buffer = Vec::new();
                let mut reply = Reply {
                    buffer: &mut buffer,
                    shared: None,
                };
                let result = handler(&message, &mut reply);
                let shared = reply.shared.take();
                Box::pin(ready(result.map(|()| joined(buffer, shared))))
            }
            (Handler::OneWay(handler), ..) => {
                handler(message);
                Box::pin(ready(Ok(Bytes::new())))
            }
            (Handler::OneWayRef(handler), ..) => {
                let header = Header::new(Kind::OneWay, 0, message.request_id);
                handler(MessageRef {
                    frame: FrameRef::of_message(header, &message.payload, &message.payload),
                    from: &message.origin,
                    sequence: message.origin.sequence,
                    name: &message.name,
                    trace: message.trace(),
                });
                Box::pin(ready(Ok(Bytes::new())))
            }
            (Handler::Now(handler) | Handler::Spawned(handler), ..) => handler(message),
            (Handler::Streamed(handler), Some(body), _) => handler(message, body),
            (Handler::Watch(handler), _, Some(answer)) => handler(message, answer),
            (Handler::Exchange(handler), Some(body), Some(answer)) => {
                handler(message, body, answer)
            }
            // A layer has made a request of its own, without what this handler reads or answers with.
            _ => Box::pin(ready(Err(Rejection::new(
                crate::error::RejectionCode::Internal,
                "a layer lost the body or the answer of the request",
            )))),
        }
    }
}

fn joined(mut buffer: Vec<u8>, shared: Option<Bytes>) -> Bytes {
    match shared {
        Some(shared) if buffer.is_empty() => shared,
        Some(shared) => {
            buffer.extend_from_slice(&shared);
            buffer.into()
        }
        None => buffer.into(),
    }
}

/// The handler with a layer around it.
pub(crate) fn layered<L>(handler: Handler, layer: &L) -> Handler
where
    L: Layer<HandlerService>,
    L::Service:
        Service<Request, Response = Bytes, Error = Rejection> + Clone + Send + Sync + 'static,
    <L::Service as Service<Request>>::Future: Send + 'static,
{
    let service = layer.layer(HandlerService(handler.clone()));
    let serve = move |request: Request| -> HandlerFuture {
        let mut service = service.clone();
        Box::pin(async move {
            poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(request).await
        })
    };
    match handler {
        Handler::Inline(_) | Handler::OneWay(_) | Handler::OneWayRef(_) | Handler::Now(_) => {
            Handler::Now(Arc::new(move |message| {
                serve(Request::new(message, None, None))
            }))
        }
        Handler::Spawned(_) => Handler::Spawned(Arc::new(move |message| {
            serve(Request::new(message, None, None))
        })),
        Handler::Streamed(_) => Handler::Streamed(Arc::new(move |message, body| {
            serve(Request::new(message, Some(body), None))
        })),
        Handler::Watch(_) => Handler::Watch(Arc::new(move |message, answer| {
            serve(Request::new(message, None, Some(answer)))
        })),
        Handler::Exchange(_) => Handler::Exchange(Arc::new(move |message, body, answer| {
            serve(Request::new(message, Some(body), Some(answer)))
        })),
    }
}

/// Calls to one method as a `tower` service, for layers around calls: retries, limits, timing.
///
/// It is always ready. A call that finds its queue full, or as many calls in flight as may be, fails with
/// [`QueueFull`](TransportError::QueueFull) or [`TooManyCalls`](TransportError::TooManyCalls): put a concurrency limit
/// around it, or retry those.
impl Service<Bytes> for RemoteMethod {
    type Response = Bytes;
    type Error = TransportError;
    type Future = Call;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, payload: Bytes) -> Call {
        RemoteMethod::call(self, payload)
    }
}

/// Polls a handler in the connection's task, once.
pub(crate) fn poll_now(future: &mut HandlerFuture) -> Poll<Result<Bytes, Rejection>> {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    Pin::new(future).poll(&mut cx)
}
