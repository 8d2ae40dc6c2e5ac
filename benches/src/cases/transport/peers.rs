//! What others offer for the same work.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_util::codec::{Framed, FramedRead, FramedWrite, LengthDelimitedCodec};

use super::drive::{self, Arrivals, Caller, Sender};
use super::{grpc, tls};
use crate::case::{Path, Run, path};

pub(super) fn round_trips<const CALLERS: usize>(secure: bool) -> Vec<Path> {
    if secure {
        vec![
            path("tonic bidi", grpc::bidi::<CALLERS, true>),
            path("quinn", quinn_calls::<CALLERS>),
        ]
    } else {
        vec![
            path("tonic bidi", grpc::bidi::<CALLERS, false>),
            path("tarpc", tarpc_calls::<CALLERS>),
        ]
    }
}

pub(super) fn one_way<const BYTES: usize>(secure: bool) -> Vec<Path> {
    if secure {
        vec![path("quinn", quinn_stream::<BYTES>)]
    } else {
        vec![path("LengthDelimitedCodec", delimited::<BYTES>)]
    }
}

// tarpc: its own framing with bincode, a service by its macro.

#[tarpc::service]
trait Echo {
    async fn echo(payload: Vec<u8>) -> Vec<u8>;
}

#[derive(Clone)]
struct EchoServer;

impl Echo for EchoServer {
    async fn echo(self, _: tarpc::context::Context, payload: Vec<u8>) -> Vec<u8> {
        payload
    }
}

struct TarpcCaller {
    client: EchoClient,
}

impl Caller for TarpcCaller {
    async fn call(&mut self) {
        let reply = self
            .client
            .echo(tarpc::context::current(), vec![0x5A; 64])
            .await;
        assert_eq!(reply.expect("the server lives").len(), 64);
    }
}

fn tarpc_calls<const CALLERS: usize>() -> Run {
    let runtime = drive::runtime();
    let address = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("loopback can be listened on");
        let address = listener.local_addr().expect("it is bound");
        tarpc_serve(listener);
        address
    });
    tarpc_over(runtime, &address.to_string(), CALLERS)
}

/// Serves one client, on the current runtime.
pub(super) fn tarpc_serve(listener: TcpListener) {
    use tarpc::server::{BaseChannel, Channel};
    use tarpc::tokio_serde::formats::Bincode;

    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client connects");
        stream.set_nodelay(true).expect("TCP has it");
        let framed = Framed::new(stream, LengthDelimitedCodec::new());
        let transport = tarpc::serde_transport::new(framed, Bincode::default());
        // Requests are answered as they come, without a task for each: its fastest way.
        BaseChannel::with_defaults(transport)
            .execute(EchoServer.serve())
            .for_each_concurrent(None, |answer| answer)
            .await;
    });
}

/// Callers of such a server.
pub(super) fn tarpc_over(runtime: Runtime, address: &str, callers: usize) -> Run {
    use tarpc::tokio_serde::formats::Bincode;

    let client = runtime.block_on(async {
        let stream = TcpStream::connect(address).await.expect("somebody listens");
        stream.set_nodelay(true).expect("TCP has it");
        let framed = Framed::new(stream, LengthDelimitedCodec::new());
        let transport = tarpc::serde_transport::new(framed, Bincode::default());
        EchoClient::new(tarpc::client::Config::default(), transport).spawn()
    });
    let callers = (0..callers)
        .map(|_| TarpcCaller {
            client: client.clone(),
        })
        .collect();
    drive::calls(runtime, callers)
}

/// Callers of tonic's bidirectional stream, of a server that listens elsewhere.
pub(super) fn bidi_over(runtime: Runtime, address: &str, callers: usize) -> Run {
    let channel = runtime.block_on(grpc::dial(false, address));
    grpc::bidi_over(runtime, channel, callers)
}

// tokio-util's codec, fed in batches.

/// Messages between two flushes, and the bytes that the codec gathers before it writes by itself.
const BATCH: u64 = 1024;
const GATHER_BYTES: usize = 256 * 1024;

struct DelimitedSender {
    sink: FramedWrite<TcpStream, LengthDelimitedCodec>,
    payload: Bytes,
}

impl DelimitedSender {
    async fn flush(&mut self) -> std::io::Result<()> {
        SinkExt::<Bytes>::flush(&mut self.sink).await
    }
}

impl Sender for DelimitedSender {
    async fn send(&mut self, count: u64) {
        for number in 1..=count {
            self.sink
                .feed(self.payload.clone())
                .await
                .expect("the server lives");
            if number % BATCH == 0 {
                self.flush().await.expect("the server lives");
            }
        }
        self.flush().await.expect("the server lives");
    }
}

fn delimited<const BYTES: usize>() -> Run {
    let runtime = drive::runtime();
    let arrivals = Arc::new(Arrivals::default());
    let counted = Arc::clone(&arrivals);
    let stream = runtime.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("loopback can be listened on");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client connects");
            let codec = LengthDelimitedCodec::new();
            let mut frames = FramedRead::with_capacity(stream, codec, GATHER_BYTES);
            while let Some(Ok(frame)) = frames.next().await {
                let frame: BytesMut = frame;
                assert_eq!(frame.len(), BYTES);
                counted.add(1);
            }
        });
        TcpStream::connect(address).await.expect("somebody listens")
    });
    stream.set_nodelay(true).expect("TCP has it");
    let mut sink = FramedWrite::new(stream, LengthDelimitedCodec::new());
    sink.set_backpressure_boundary(GATHER_BYTES);
    let payload = Bytes::from(vec![0x5A; BYTES]);
    drive::messages(runtime, DelimitedSender { sink, payload }, arrivals)
}

// quinn: QUIC is always encrypted, so it stands beside mutual TLS. A call is a stream of its own.

use quinn::rustls;

fn quinn_pair(
    runtime: &tokio::runtime::Runtime,
) -> (quinn::Endpoint, quinn::Connection, quinn::Connection) {
    use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let parse = |name: &str| {
        let own = tls::identity(name);
        let chain = CertificateDer::from_pem_slice(own.chain.as_bytes()).expect("sound");
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("sound");
        let root = CertificateDer::from_pem_slice(own.authority.as_bytes()).expect("sound");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root).expect("sound");
        (chain, key, Arc::new(roots))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (chain, key, roots) = parse("server.bench");
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("there is such a version")
        .with_client_cert_verifier(verifier.build().expect("there is a root"))
        .with_single_cert(vec![chain], key)
        .expect("sound");
    let (chain, key, roots) = parse("client.bench");
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("there is such a version")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![chain], key)
        .expect("sound");
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_bidi_streams(1024_u32.into());
    transport.stream_receive_window((4_u32 << 20).into());
    transport.send_window(8 << 20);
    let transport = Arc::new(transport);
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(
        QuicServerConfig::try_from(server).expect("TLS 1.3 has the suites"),
    ));
    server.transport_config(Arc::clone(&transport));
    let mut client = quinn::ClientConfig::new(Arc::new(
        QuicClientConfig::try_from(client).expect("TLS 1.3 has the suites"),
    ));
    client.transport_config(transport);
    runtime.block_on(async {
        let any = "127.0.0.1:0".parse().expect("an address");
        let accepting = quinn::Endpoint::server(server, any).expect("loopback can be bound");
        let address = accepting.local_addr().expect("it is bound");
        let accepted = tokio::spawn(async move {
            let incoming = accepting.accept().await.expect("a client connects");
            (incoming.await.expect("it shakes hands"), accepting)
        });
        let dialling = quinn::Endpoint::client(any).expect("loopback can be bound");
        let connecting = dialling.connect_with(client, address, "server.bench");
        let connection = connecting.expect("sound").await.expect("somebody listens");
        let (theirs, accepting) = accepted.await.expect("no panics");
        (accepting, connection, theirs)
    })
}

struct QuinnCaller {
    connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
}

impl Caller for QuinnCaller {
    async fn call(&mut self) {
        let (mut send, mut receive) = self.connection.open_bi().await.expect("it lives");
        send.write_all(&[0x5A; 64]).await.expect("it lives");
        send.finish().expect("it lives");
        let reply = receive.read_to_end(64).await.expect("it lives");
        assert_eq!(reply.len(), 64);
    }
}

fn quinn_calls<const CALLERS: usize>() -> Run {
    let runtime = drive::runtime();
    let (endpoint, connection, theirs) = quinn_pair(&runtime);
    runtime.spawn(async move {
        while let Ok((mut send, mut receive)) = theirs.accept_bi().await {
            tokio::spawn(async move {
                let request = receive.read_to_end(64).await.expect("it lives");
                send.write_all(&request).await.expect("it lives");
                send.finish().expect("it lives");
            });
        }
    });
    let callers = (0..CALLERS)
        .map(|_| QuinnCaller {
            connection: connection.clone(),
            _endpoint: endpoint.clone(),
        })
        .collect();
    drive::calls(runtime, callers)
}

struct QuinnSender {
    stream: quinn::SendStream,
    payload: Bytes,
    _endpoint: quinn::Endpoint,
}

impl Sender for QuinnSender {
    async fn send(&mut self, count: u64) {
        for _ in 0..count {
            let length = (self.payload.len() as u32).to_le_bytes();
            self.stream.write_all(&length).await.expect("it lives");
            self.stream
                .write_all(&self.payload)
                .await
                .expect("it lives");
        }
    }
}

fn quinn_stream<const BYTES: usize>() -> Run {
    let runtime = drive::runtime();
    let arrivals = Arc::new(Arrivals::default());
    let counted = Arc::clone(&arrivals);
    let (endpoint, connection, theirs) = quinn_pair(&runtime);
    let mut stream = runtime.block_on(connection.open_uni()).expect("it lives");
    // A stream exists for the other side with its first byte.
    runtime.block_on(stream.write_all(&[0])).expect("it lives");
    runtime.spawn(async move {
        let mut stream = theirs.accept_uni().await.expect("it lives");
        let mut left = 1;
        while let Ok(Some(chunk)) = stream.read_chunk(256 * 1024, true).await {
            let mut read = chunk.bytes.len();
            let mut whole = 0;
            // Only the lengths are looked at: a message is its 4 bytes and the payload.
            while read >= left {
                read -= left;
                left = 4 + BYTES;
                whole += 1;
            }
            left -= read;
            counted.add(whole);
        }
    });
    // The first byte counts as a message.
    runtime.block_on(async {
        while arrivals.count() < 1 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    });
    arrivals.reset();
    let sender = QuinnSender {
        stream,
        payload: Bytes::from(vec![0x5A; BYTES]),
        _endpoint: endpoint,
    };
    let _keep = Box::leak(Box::new(connection));
    drive::messages(runtime, sender, arrivals)
}
