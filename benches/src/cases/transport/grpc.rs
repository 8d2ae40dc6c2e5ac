//! tonic: a service without generated code, whose codec passes bytes through.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{ClientStreamingService, Grpc, NamedService, StreamingService, UnaryService};
use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig,
};
use tonic::{Request, Response, Status, Streaming};

use super::drive::{self, Arrivals, Caller, Sender};
use super::tls;
use crate::case::Run;

const UNARY: &str = "/bench.Echo/Unary";
const STREAM: &str = "/bench.Echo/Stream";
#[cfg(feature = "peers")]
const BIDI: &str = "/bench.Echo/Bidi";
/// Large enough that flow control does not stop a stream of 64 KiB messages, as tonic's documentation advises for bulk.
const WINDOW_BYTES: u32 = 4 << 20;
const SERVER_NAME: &str = "server.bench";

/// Bytes in, bytes out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Echoes calls and streams, and counts one-way messages.
#[derive(Clone)]
struct Echo {
    arrivals: Arc<Arrivals>,
}

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

type Body = tonic::body::Body;

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(BytesCodec);
            Ok(match request.uri().path() {
                UNARY => grpc.unary(EchoUnary, request).await,
                STREAM => grpc.client_streaming(Count(echo.arrivals), request).await,
                _ => grpc.streaming(EchoStream, request).await,
            })
        })
    }
}

struct EchoUnary;

impl UnaryService<Bytes> for EchoUnary {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

struct Count(Arc<Arrivals>);

impl ClientStreamingService<Bytes> for Count {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let arrivals = Arc::clone(&self.0);
        Box::pin(async move {
            let mut messages = request.into_inner();
            while messages.message().await?.is_some() {
                arrivals.add(1);
            }
            Ok(Response::new(Bytes::new()))
        })
    }
}

struct EchoStream;

impl StreamingService<Bytes> for EchoStream {
    type Response = Bytes;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let messages: Self::ResponseStream = Box::pin(request.into_inner());
        ready(Ok(Response::new(messages)))
    }
}

/// A server, and one channel to it.
pub(super) async fn channel(secure: bool, arrivals: Arc<Arrivals>) -> Channel {
    channel_over(secure, arrivals, ready).await
}

/// The same, with something between the two: from the server's address to the one that the client dials.
pub(super) async fn channel_over(
    secure: bool,
    arrivals: Arc<Arrivals>,
    between: impl AsyncFnOnce(String) -> String,
) -> Channel {
    let address = serve(secure, arrivals).await;
    let address = between(address).await;
    dial(secure, &address).await
}

/// A server, by its address.
pub(super) async fn serve(secure: bool, arrivals: Arc<Arrivals>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("loopback can be listened on");
    let address = listener.local_addr().expect("it is bound");
    let mut server = Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .tcp_nodelay(true);
    if secure {
        let own = tls::identity(SERVER_NAME);
        let config = ServerTlsConfig::new()
            .identity(Identity::from_pem(own.chain, own.key))
            .client_ca_root(Certificate::from_pem(own.authority));
        server = server
            .tls_config(config)
            .expect("certificates made here are sound");
    }
    let incoming = TcpListenerStream::new(listener).map(|stream| {
        stream.and_then(|stream| {
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    });
    tokio::spawn(
        server
            .add_service(Echo { arrivals })
            .serve_with_incoming(incoming),
    );
    address.to_string()
}

/// A channel to a server.
pub(super) async fn dial(secure: bool, address: &str) -> Channel {
    let scheme = if secure { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .expect("an address is a URI")
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .tcp_nodelay(true);
    if secure {
        let own = tls::identity("client.bench");
        let config = ClientTlsConfig::new()
            .domain_name(SERVER_NAME)
            .ca_certificate(Certificate::from_pem(own.authority))
            .identity(Identity::from_pem(own.chain, own.key));
        endpoint = endpoint
            .tls_config(config)
            .expect("certificates made here are sound");
    }
    for _ in 0..100 {
        if let Ok(channel) = endpoint.connect().await {
            return channel;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the server does not answer");
}

struct Unary<const BYTES: usize> {
    client: tonic::client::Grpc<Channel>,
}

impl<const BYTES: usize> Caller for Unary<BYTES> {
    async fn call(&mut self) {
        // As generated code does: wait for room, then call with an owned message.
        self.client.ready().await.expect("the server lives");
        let request = Request::new(Bytes::copy_from_slice(&[0x5A; BYTES]));
        let path = http::uri::PathAndQuery::from_static(UNARY);
        let reply: Response<Bytes> = self
            .client
            .unary(request, path, BytesCodec)
            .await
            .expect("the server lives");
        assert_eq!(reply.get_ref().len(), BYTES);
    }
}

fn unary_of<const CALLERS: usize, const BYTES: usize>(secure: bool) -> Run {
    let runtime = drive::runtime();
    let channel = runtime.block_on(channel(secure, Arc::default()));
    unary_sized::<BYTES>(runtime, &channel, CALLERS)
}

/// Callers of 64 bytes on a channel.
pub(super) fn unary_over(runtime: Runtime, channel: &Channel, callers: usize) -> Run {
    unary_sized::<64>(runtime, channel, callers)
}

fn unary_sized<const BYTES: usize>(runtime: Runtime, channel: &Channel, callers: usize) -> Run {
    let callers = (0..callers)
        .map(|_| Unary::<BYTES> {
            client: tonic::client::Grpc::new(channel.clone()),
        })
        .collect();
    drive::calls(runtime, callers)
}

pub(super) fn unary<const CALLERS: usize, const SECURE: bool>() -> Run {
    unary_of::<CALLERS, 64>(SECURE)
}

pub(super) fn unary_1k<const CALLERS: usize>() -> Run {
    unary_of::<CALLERS, 1024>(false)
}

pub(super) fn unary_64k() -> Run {
    unary_of::<1, 65_536>(false)
}

/// Sends into a client stream that lasts.
struct Streamed {
    queue: mpsc::Sender<Bytes>,
    payload: Bytes,
}

impl Sender for Streamed {
    async fn send(&mut self, count: u64) {
        for _ in 0..count {
            let sent = self.queue.send(self.payload.clone()).await;
            sent.expect("the stream lasts");
        }
    }
}

pub(super) fn streamed<const BYTES: usize, const SECURE: bool>() -> Run {
    let runtime = drive::runtime();
    let arrivals = Arc::new(Arrivals::default());
    let channel = runtime.block_on(channel(SECURE, Arc::clone(&arrivals)));
    let (queue, messages) = mpsc::channel(1024);
    runtime.spawn(async move {
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.expect("the server lives");
        let request = Request::new(ReceiverStream::new(messages));
        let path = http::uri::PathAndQuery::from_static(STREAM);
        let reply: Result<Response<Bytes>, _> =
            client.client_streaming(request, path, BytesCodec).await;
        drop(reply);
    });
    let sender = Streamed {
        queue,
        payload: Bytes::from(vec![0x5A; BYTES]),
    };
    drive::messages(runtime, sender, arrivals)
}

/// Keeps a client stream on the channel full.
pub(super) fn saturate(channel: Channel, bytes: usize) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.expect("the server lives");
        let payload = Bytes::from(vec![0x5A; bytes]);
        let request = Request::new(tokio_stream::iter(std::iter::repeat(payload)));
        let path = http::uri::PathAndQuery::from_static(STREAM);
        let reply: Result<Response<Bytes>, _> =
            client.client_streaming(request, path, BytesCodec).await;
        drop(reply);
    })
}

/// One small unary call.
pub(super) async fn beat(channel: &Channel) -> Result<(), String> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| error.to_string())?;
    let path = http::uri::PathAndQuery::from_static(UNARY);
    let reply: Result<Response<Bytes>, Status> = client
        .unary(
            Request::new(Bytes::from_static(b"term 7")),
            path,
            BytesCodec,
        )
        .await;
    reply.map(drop).map_err(|error| error.to_string())
}

/// A call over one bidirectional stream for all callers: replies come in the order of the requests.
#[cfg(feature = "peers")]
pub(super) fn bidi<const CALLERS: usize, const SECURE: bool>() -> Run {
    let runtime = drive::runtime();
    let channel = runtime.block_on(channel(SECURE, Arc::default()));
    bidi_over(runtime, channel, CALLERS)
}

/// The same on a channel.
#[cfg(feature = "peers")]
pub(super) fn bidi_over(runtime: Runtime, channel: Channel, callers: usize) -> Run {
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use tokio::sync::oneshot;

    struct Bidi {
        queue: mpsc::Sender<Bytes>,
        waiting: Arc<Mutex<VecDeque<oneshot::Sender<Bytes>>>>,
    }

    impl Caller for Bidi {
        async fn call(&mut self) {
            let permit = self.queue.reserve().await.expect("the stream lasts");
            let (sender, receiver) = oneshot::channel();
            {
                // Requests leave in the order of the places in line.
                let mut waiting = self.waiting.lock().expect("nobody panics under it");
                waiting.push_back(sender);
                permit.send(Bytes::copy_from_slice(&[0x5A; 64]));
            }
            assert_eq!(receiver.await.expect("the stream lasts").len(), 64);
        }
    }

    let (queue, messages) = mpsc::channel(1024);
    let waiting = Arc::new(Mutex::new(VecDeque::<oneshot::Sender<Bytes>>::new()));
    let line = Arc::clone(&waiting);
    runtime.spawn(async move {
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.expect("the server lives");
        let request = Request::new(ReceiverStream::new(messages));
        let path = http::uri::PathAndQuery::from_static(BIDI);
        let replies: Result<Response<Streaming<Bytes>>, _> =
            client.streaming(request, path, BytesCodec).await;
        let mut replies = replies.expect("the server lives").into_inner();
        while let Ok(Some(reply)) = replies.message().await {
            let first = line.lock().expect("nobody panics under it").pop_front();
            // A path that is dropped leaves nobody waiting.
            let _ = first.expect("a reply has a request").send(reply);
        }
    });
    let callers = (0..callers)
        .map(|_| Bidi {
            queue: queue.clone(),
            waiting: Arc::clone(&waiting),
        })
        .collect();
    drive::calls(runtime, callers)
}
