//! Byte streams, and where they come from.

use std::future::Future;
use std::io;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// A boxed future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// The read half of a stream.
pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
/// The write half of a stream.
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// A reliable, ordered stream of bytes: TCP, TLS over it, or anything else that keeps order.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Two halves that are used by different threads at once.
    ///
    /// The default shares the stream under a lock; override it where the stream can do better.
    fn into_halves(self: Box<Self>) -> (BoxRead, BoxWrite);
}

impl ByteStream for TcpStream {
    fn into_halves(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (read, write) = self.into_split();
        (Box::new(read), Box::new(write))
    }
}

impl ByteStream for tokio::io::DuplexStream {
    fn into_halves(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (read, write) = tokio::io::split(*self);
        (Box::new(read), Box::new(write))
    }
}

/// What a connection is for, so that a connector can treat them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Send small pieces at once.
    pub nodelay: bool,
    /// The kernel's send buffer, if it should not choose.
    pub send_buffer_bytes: Option<u32>,
}

/// Makes streams to peers. TCP by default; tests bring their own networks.
pub trait Connector: Send + Sync + 'static {
    /// Connects to an address as given to `add_peer`. The transport bounds the time.
    fn connect<'a>(
        &'a self,
        address: &'a str,
        options: StreamOptions,
    ) -> BoxFuture<'a, io::Result<Box<dyn ByteStream>>>;
}

/// Accepts streams.
pub trait Listener: Send + 'static {
    /// The next stream, with a text that names its origin in reports.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, String)>>;

    /// Where it listens, as peers would dial it.
    fn address(&self) -> String;
}

/// TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect<'a>(
        &'a self,
        address: &'a str,
        options: StreamOptions,
    ) -> BoxFuture<'a, io::Result<Box<dyn ByteStream>>> {
        Box::pin(async move {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in tokio::net::lookup_host(address).await? {
                let socket = if address.is_ipv4() {
                    TcpSocket::new_v4()?
                } else {
                    TcpSocket::new_v6()?
                };
                if let Some(bytes) = options.send_buffer_bytes {
                    socket.set_send_buffer_size(bytes)?;
                }
                match socket.connect(address).await {
                    Ok(stream) => {
                        stream.set_nodelay(options.nodelay)?;
                        return Ok(Box::new(stream) as Box<dyn ByteStream>);
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        })
    }
}

impl Listener for TcpListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, String)>> {
        Box::pin(async move {
            let (stream, from) = TcpListener::accept(self).await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as Box<dyn ByteStream>, from.to_string()))
        })
    }

    fn address(&self) -> String {
        self.local_addr()
            .map_or_else(|_| String::new(), |address| address.to_string())
    }
}
