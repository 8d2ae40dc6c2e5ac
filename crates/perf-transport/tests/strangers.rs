//! Who gets in, and who does not keep the others out.

#![cfg(not(perf_loom))]

mod support;

use perf_transport::proto::Kind;
use perf_transport::{
    BoxFuture, BoxRead, BoxWrite, ByteStream, Config, Connector, Envelope, HandshakeError,
    Listener, PeerEvent, Router, StreamOptions, TcpConnector, Transport, TransportError,
};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use support::{address, plain, raw, soon, until};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;

fn echo() -> Router {
    Router::new().inline("vm", "echo", |message, reply| {
        reply.put_slice(message.payload());
        Ok(())
    })
}

async fn call(client: &Transport) -> Result<(), TransportError> {
    let reply = client.call(Envelope::new(2, "vm", "echo", b"x"));
    soon(reply).await.map(drop)
}

async fn client(node: u64, server: &Transport) -> Transport {
    let client = plain(node).peer(2, address(server));
    client.start().await.expect("starts")
}

async fn refusal(events: &mut Receiver<PeerEvent>) -> HandshakeError {
    soon(async {
        loop {
            if let PeerEvent::Refused {
                error: TransportError::Handshake { error, .. },
                ..
            } = events.recv().await.expect("events")
            {
                break error;
            }
        }
    })
    .await
}

/// Strangers that connect and say nothing, or only begin to, more than there is room for, all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_strangers_do_not_keep_nodes_out() {
    for said in [0, 10] {
        let mut config = Config::default();
        config.handshakes_max = 16;
        let server = plain(2).router(echo()).config(config).listen("127.0.0.1:0");
        let server = server.start().await.expect("starts");
        let to = address(&server);
        let came = Arc::new(AtomicUsize::new(0));
        let strangers = {
            let came = Arc::clone(&came);
            tokio::spawn(async move {
                let mut strangers = std::collections::VecDeque::new();
                loop {
                    if let Ok(mut stranger) = TcpStream::connect(&to).await {
                        let hello = raw::hello(9);
                        let _ = stranger.write_all(&hello[..said]).await;
                        strangers.push_back(stranger);
                        came.fetch_add(1, Ordering::Relaxed);
                    }
                    if strangers.len() > 500 {
                        strangers.pop_front();
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
        };
        until(|| came.load(Ordering::Relaxed) > 20).await;
        for node in 10..20 {
            let client = client(node, &server).await;
            assert_eq!(call(&client).await, Ok(()), "node {node}, {said} bytes");
        }
        strangers.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_cannot_have_all_connections() {
    let mut config = Config::default();
    config.inbound_per_node_max = 4;
    config.inbound_max = 20;
    let server = plain(2).router(echo()).config(config).listen("127.0.0.1:0");
    let server = server.start().await.expect("starts");
    let mut events = server.events();
    // At once, so that none of them is in when the others are asked.
    let greedy: Vec<_> = (0..12)
        .map(|_| {
            let to = address(&server);
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(to).await.expect("it listens");
                stream.write_all(&raw::hello(9)).await.expect("it reads");
                let (kind, ..) = soon(raw::read(&mut stream)).await.expect("an answer");
                (kind == Kind::Welcome as u8, stream)
            })
        })
        .collect();
    let mut streams = Vec::new();
    for stream in greedy {
        streams.push(stream.await.expect("no panics"));
    }
    assert_eq!(streams.iter().filter(|(is_in, _)| *is_in).count(), 4);
    let expected = HandshakeError::TooManyConnections {
        node: 9,
        connections_max: 4,
    };
    assert_eq!(refusal(&mut events).await, expected);
    assert_eq!(call(&client(10, &server).await).await, Ok(()));
    // Its places are its own again when they are free.
    drop(streams);
    until(|| server.stats().inbound <= 1).await;
    raw::connect(9, &address(&server)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_nodes_doubles_and_itself_are_seen() {
    let server = plain(2)
        .router(echo())
        .listen("127.0.0.1:0")
        .peer(10, "127.0.0.1:1");
    let server = server.start().await.expect("starts");
    let mut events = server.events();
    let first = client(10, &server).await;
    assert_eq!(call(&first).await, Ok(()));
    let second = client(10, &server).await;
    assert_eq!(call(&second).await, Ok(()));
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(soon(events.recv()).await.expect("an event"));
    }
    let is_double = |event: &PeerEvent| matches!(event, PeerEvent::Duplicate { peer: 10, .. });
    let is_accepted = |event: &PeerEvent| {
        matches!(
            event,
            PeerEvent::Accepted {
                peer: 10,
                is_known: true,
                ..
            }
        )
    };
    assert!(
        is_accepted(&seen[0]) && is_double(&seen[1]) && is_accepted(&seen[2]),
        "{seen:?}"
    );
    let unknown = client(11, &server).await;
    assert_eq!(call(&unknown).await, Ok(()));
    let event = soon(events.recv()).await.expect("an event");
    assert!(
        matches!(
            event,
            PeerEvent::Accepted {
                peer: 11,
                is_known: false,
                ..
            }
        ),
        "{event:?}"
    );
    // Somebody who says that it is the server.
    let itself = client(2, &server).await;
    assert!(call(&itself).await.is_err());
    assert_eq!(
        refusal(&mut events).await,
        HandshakeError::OwnNode { node: 2 }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_peer_is_gone_in_both_directions() {
    let mut config = Config::default();
    config.known_peers_only = true;
    let server = plain(2).router(echo()).config(config).listen("127.0.0.1:0");
    let server = server
        .peer(10, "127.0.0.1:1")
        .start()
        .await
        .expect("starts");
    let mut events = server.events();
    let (known, unknown) = (client(10, &server).await, client(11, &server).await);
    assert!(call(&unknown).await.is_err());
    assert_eq!(
        refusal(&mut events).await,
        HandshakeError::UnknownNode { node: 11 }
    );
    assert_eq!(call(&known).await, Ok(()));
    assert_eq!(server.stats().inbound, 1);
    assert!(server.remove_peer(10));
    until(|| server.stats().inbound == 0).await;
    let unreachable = |outcome| matches!(outcome, Err(TransportError::Unreachable { .. }));
    soon(async { while !unreachable(call(&known).await) {} }).await;
    assert_eq!(
        refusal(&mut events).await,
        HandshakeError::UnknownNode { node: 10 }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_decides_who_gets_in() {
    let server = plain(2)
        .router(echo())
        .listen("127.0.0.1:0")
        .on_accept(|arrival| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            match arrival.node {
                10 => Ok(()),
                11 => Err("not on a Saturday".to_owned()),
                12 => panic!("hooks have faults too"),
                _ => std::future::pending().await,
            }
        });
    let server = server.start().await.expect("starts");
    let mut events = server.events();
    assert_eq!(call(&client(10, &server).await).await, Ok(()));
    for (node, text) in [
        (11, "not on a Saturday"),
        (12, "panicked"),
        (13, "longer than"),
    ] {
        let error = call(&client(node, &server).await)
            .await
            .expect_err("refused");
        assert!(error.is_unsent());
        let said = refusal(&mut events).await.to_string();
        assert!(said.contains(text), "{said}");
    }
    assert_eq!(call(&client(10, &server).await).await, Ok(()));
}

/// Asking takes longer than a stranger's handshake may while others wait, and there are more nodes than handshakes may
/// be under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_hook_lets_many_nodes_in() {
    let mut config = Config::default();
    config.handshakes_max = 2;
    config.handshake_timeout = Duration::from_secs(8);
    let asked = Arc::new(AtomicUsize::new(0));
    let server = plain(2).router(echo()).config(config.clone());
    let server = server.listen("127.0.0.1:0").on_accept({
        let asked = Arc::clone(&asked);
        move |_| {
            asked.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::time::sleep(Duration::from_millis(1500)).await;
                Ok(())
            }
        }
    });
    let server = server.start().await.expect("starts");
    let mut calls = Vec::new();
    for node in 10..22 {
        let client = plain(node).config(config.clone()).peer(2, address(&server));
        let client = client.start().await.expect("starts");
        calls.push(tokio::spawn(async move {
            let envelope = Envelope::new(2, "vm", "echo", b"x");
            let reply = client.call(envelope.with_timeout(Duration::from_secs(20)));
            soon(reply).await.map(drop)
        }));
        // One after the other: one that has not said anything yet would make room for the next.
        until(|| asked.load(Ordering::SeqCst) == calls.len()).await;
    }
    for call in calls {
        assert_eq!(call.await.expect("no panics"), Ok(()));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 12);
}

/// A stream that knows who is at its other end, as a QUIC connection with certificates does.
struct Proven {
    stream: TcpStream,
    node: u64,
}

impl AsyncRead for Proven {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Proven {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl ByteStream for Proven {
    fn into_halves(self: Box<Self>) -> (BoxRead, BoxWrite) {
        Box::new(self.stream).into_halves()
    }

    fn authenticated_node(&self) -> Option<u64> {
        Some(self.node)
    }
}

/// All that comes is of node 10, and all that is dialled is node 2.
struct Network(Option<TcpListener>);

impl Listener for Network {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, String)>> {
        Box::pin(async {
            let listener = self.0.as_ref().ok_or(io::ErrorKind::NotFound)?;
            let (stream, from) = listener.accept().await?;
            let stream = Proven { stream, node: 10 };
            Ok((Box::new(stream) as Box<dyn ByteStream>, from.to_string()))
        })
    }

    fn address(&self) -> String {
        let listener = self.0.as_ref().expect("it listens");
        listener.local_addr().expect("bound").to_string()
    }
}

impl Connector for Network {
    fn connect<'a>(
        &'a self,
        address: &'a str,
        _: StreamOptions,
    ) -> BoxFuture<'a, io::Result<Box<dyn ByteStream>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            Ok(Box::new(Proven { stream, node: 2 }) as Box<dyn ByteStream>)
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_a_stream_has_proven_is_held_against_what_is_said() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let server = plain(2).router(echo()).listener(Network(Some(listener)));
    let server = server.start().await.expect("starts");
    let mut events = server.events();
    assert_eq!(call(&client(10, &server).await).await, Ok(()));
    // It can vote as itself only.
    assert!(call(&client(11, &server).await).await.is_err());
    let expected = HandshakeError::Node {
        expected: 11,
        found: 10,
    };
    assert_eq!(refusal(&mut events).await, expected);
    // Who dials checks as well.
    let dialler = plain(10)
        .connector(Network(None))
        .peer(2, address(&server))
        .peer(3, address(&server));
    let dialler = dialler.start().await.expect("starts");
    assert_eq!(call(&dialler).await, Ok(()));
    let other = soon(dialler.call(Envelope::new(3, "vm", "echo", b"x"))).await;
    let Err(TransportError::Unreachable {
        cause: Some(cause), ..
    }) = other
    else {
        panic!("{other:?}");
    };
    let found = HandshakeError::Node {
        expected: 3,
        found: 2,
    };
    assert!(
        matches!(&*cause, TransportError::Handshake { error, .. } if *error == found),
        "{cause}"
    );
}

struct Panicking(AtomicUsize);

impl Connector for Panicking {
    fn connect<'a>(
        &'a self,
        address: &'a str,
        options: StreamOptions,
    ) -> BoxFuture<'a, io::Result<Box<dyn ByteStream>>> {
        match self.0.fetch_add(1, Ordering::SeqCst) {
            0 => panic!("at once"),
            1 => Box::pin(async { panic!("later") }),
            _ => Box::pin(TcpConnector.connect(address, options)),
        }
    }
}

/// A callback, a connector or a listener that panics takes nothing with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panics_of_what_the_user_brings_stay_where_they_are() {
    let listener = Clumsy(TcpListener::bind("127.0.0.1:0").await.expect("loopback"), 0);
    let server = plain(2)
        .router(echo())
        .listener(listener)
        .on_event(|_| panic!("in `on_event`"));
    let server = server.start().await.expect("starts");
    let mut config = Config::default();
    config.backoff = (Duration::from_millis(5), Duration::from_millis(10));
    let client = plain(1)
        .config(config)
        .connector(Panicking(AtomicUsize::new(0)));
    let client = client
        .on_event(|_| panic!("in `on_event`"))
        .peer(2, address(&server));
    let client = client.start().await.expect("starts");
    for _ in 0..2 {
        let error = call(&client).await.expect_err("the connector panics");
        assert!(
            matches!(error, TransportError::Unreachable { .. }),
            "{error}"
        );
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(call(&client).await, Ok(()));
    // A stranger who is refused is an event too, and the listener goes on.
    let mut stranger = TcpStream::connect(address(&server)).await.expect("listens");
    stranger.write_all(&[0xFF; 64]).await.expect("it reads");
    let _ = soon(stranger.read_to_end(&mut Vec::new())).await;
    let other = self::client(3, &server).await;
    assert_eq!(call(&other).await, Ok(()));
}

/// A listener that panics every other time.
struct Clumsy(TcpListener, usize);

impl Listener for Clumsy {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, String)>> {
        self.1 += 1;
        assert!(self.1.is_multiple_of(2), "clumsy");
        Listener::accept(&mut self.0)
    }

    fn address(&self) -> String {
        Listener::address(&self.0)
    }
}

/// A stream that panics when it is read, once it is told to.
struct Fragile(TcpStream, Arc<AtomicBool>);

impl AsyncRead for Fragile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        assert!(!self.1.load(Ordering::SeqCst), "fragile");
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Fragile {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl ByteStream for Fragile {
    fn into_halves(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (read, write) = tokio::io::split(*self);
        (Box::new(read), Box::new(write))
    }
}

struct FragileListener(TcpListener, Arc<AtomicBool>);

impl Listener for FragileListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, String)>> {
        Box::pin(async {
            let (stream, from) = self.0.accept().await?;
            let stream = Fragile(stream, Arc::clone(&self.1));
            Ok((Box::new(stream) as Box<dyn ByteStream>, from.to_string()))
        })
    }

    fn address(&self) -> String {
        Listener::address(&self.0)
    }
}

/// The task of a connection ends by a panic. Handlers that read a body, or wait for events, end as they do when a
/// connection is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handler_outlives_a_connection_whose_task_panics() {
    let is_broken = Arc::new(AtomicBool::new(false));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let listener = FragileListener(listener, Arc::clone(&is_broken));
    let (running, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    /// Counts handlers that run, and those that have ended in whatever way.
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let begin = {
        let (running, ended) = (Arc::clone(&running), Arc::clone(&ended));
        move || {
            running.fetch_add(1, Ordering::SeqCst);
            Counted(Arc::clone(&ended))
        }
    };
    let (stored, watched) = (begin.clone(), begin);
    let router = Router::new()
        .streamed("vm", "store", move |_, mut body| {
            let counted = stored();
            async move {
                while let Some(Ok(_)) = body.next().await {}
                drop(counted);
                Ok(bytes::Bytes::new())
            }
        })
        .watch("vm", "events", move |_, answer| {
            let counted = watched();
            async move {
                std::future::pending::<()>().await;
                drop((counted, answer));
                Ok(())
            }
        });
    let server = plain(2).router(router).listener(listener);
    let server = server.start().await.expect("starts");
    let client = client(10, &server).await;
    let mut body = client
        .stream(Envelope::new(2, "vm", "store", b""))
        .expect("room");
    soon(body.send(vec![7; 100].into()))
        .await
        .expect("it is read");
    let mut answer = client
        .watch(Envelope::new(2, "vm", "events", b""))
        .expect("room");
    until(|| running.load(Ordering::SeqCst) == 2).await;
    is_broken.store(true, Ordering::SeqCst);
    let _ = soon(body.send(vec![7; 100].into())).await;
    until(|| ended.load(Ordering::SeqCst) == 2).await;
    until(|| server.stats().inbound == 0).await;
    assert!(soon(answer.next()).await.expect("an end").is_err());
    assert!(soon(body.finish()).await.is_err());
}

/// Streams of nodes and of strangers, by the sockets that they came to, in the order in which they came.
struct Mixed(tokio::sync::mpsc::UnboundedReceiver<(TcpStream, String)>);

impl Listener for Mixed {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, String)>> {
        Box::pin(async {
            let next = self.0.recv().await.ok_or(io::ErrorKind::NotFound)?;
            let (stream, from) = next;
            Ok((Box::new(stream) as Box<dyn ByteStream>, from))
        })
    }

    fn address(&self) -> String {
        "of two sockets".to_owned()
    }
}

/// Strangers that begin to speak, many more than there is time for: a node whose address is known does not stand in
/// line behind them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_strangers_that_begin_to_speak_keeps_no_known_node_out() {
    let (arrived, arrivals) = tokio::sync::mpsc::unbounded_channel();
    let mut addresses = Vec::new();
    for source in ["192.0.2.9:1", "10.0.0.10:1"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        addresses.push(listener.local_addr().expect("bound").to_string());
        let arrived = arrived.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = arrived.send((stream, source.to_owned()));
            }
        });
    }
    let mut config = Config::default();
    // Four strangers that speak have a place for a second: 400 in line would take 100.
    config.handshakes_max = 4;
    config.handshake_timeout = Duration::from_secs(8);
    let server = plain(2).router(echo()).config(config.clone());
    let server = server.listener(Mixed(arrivals)).peer(10, "10.0.0.10:7");
    let server = server.start().await.expect("starts");
    let mut strangers = Vec::new();
    for _ in 0..400 {
        let mut stranger = TcpStream::connect(&addresses[0]).await.expect("listens");
        let _ = stranger.write_all(&raw::hello(9)[..10]).await;
        strangers.push(stranger);
    }
    let client = plain(10).config(config).peer(2, &*addresses[1]);
    let client = client.start().await.expect("starts");
    let call = client.call(Envelope::new(2, "vm", "echo", b"x").with_timeout(support::PATIENCE));
    assert_eq!(soon(call).await.map(drop), Ok(()));
    assert!(
        server.connections()[..]
            .iter()
            .any(|one| one.peer == 10 && one.is_up)
    );
}

/// A peer is removed while the hook is asked about it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_removed_during_its_handshake_does_not_stay() {
    let mut config = Config::default();
    config.known_peers_only = true;
    config.handshake_timeout = support::PATIENCE;
    let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let server = plain(2).router(echo()).config(config.clone());
    let server = server
        .peer(10, "127.0.0.1:1")
        .listen("127.0.0.1:0")
        .on_accept({
            let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
            move |_| {
                let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
                async move {
                    asked.notify_one();
                    answer.notified().await;
                    Ok(())
                }
            }
        });
    let server = server.start().await.expect("starts");
    let mut events = server.events();
    let client = plain(10).config(config).peer(2, address(&server));
    let client = client.start().await.expect("starts");
    let _reply = client.call(Envelope::new(2, "vm", "echo", b"x"));
    soon(asked.notified()).await;
    assert!(server.remove_peer(10));
    answer.notify_one();
    soon(async {
        loop {
            let event = events.recv().await.expect("events");
            if matches!(event, PeerEvent::Ended { peer: 10, .. }) {
                break;
            }
        }
    })
    .await;
    assert_eq!(server.stats().inbound, 0);
}

/// A listener that has no files left at first.
struct OutOfFiles(TcpListener, usize);

impl Listener for OutOfFiles {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, String)>> {
        Box::pin(async move {
            if self.1 > 0 {
                self.1 -= 1;
                let text = if self.1 > 2 {
                    "too many open files"
                } else {
                    "no memory"
                };
                return Err(io::Error::other(text));
            }
            let (stream, from) = self.0.accept().await?;
            Ok((Box::new(stream) as Box<dyn ByteStream>, from.to_string()))
        })
    }

    fn address(&self) -> String {
        self.0.local_addr().expect("bound").to_string()
    }
}

/// A node that cannot accept says so, once for each reason, and serves when it can again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_accept_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let failures = Arc::new(std::sync::Mutex::new(Vec::new()));
    let server = plain(2).router(echo()).listener(OutOfFiles(listener, 6));
    let server = server.on_event({
        let failures = Arc::clone(&failures);
        move |event| {
            if let PeerEvent::AcceptFailed { error } = event {
                failures.lock().expect("no panics").push(error.to_string());
            }
        }
    });
    let server = server.start().await.expect("starts");
    assert_eq!(call(&client(10, &server).await).await, Ok(()));
    let said = failures.lock().expect("no panics").clone();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("too many open files") && said[1].contains("no memory"));
}
