//! Byte streams, and where they come from.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

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

    /// The node at the other end, where the stream itself has proven it: a QUIC connection with certificates, or the
    /// credentials of a unix socket's peer. A connection whose handshake says another id is refused, on both sides.
    fn authenticated_node(&self) -> Option<u64> {
        None
    }
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

#[cfg(unix)]
impl ByteStream for tokio::net::UnixStream {
    fn into_halves(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (read, write) = self.into_split();
        (Box::new(read), Box::new(write))
    }
}

/// What addresses of unix sockets begin with: `unix:/run/node-7.sock`.
pub(crate) const UNIX: &str = "unix:";

/// TCP for addresses `host:port` (the system looks names up, at most 16 of them at once for a process), and on Unix a
/// socket in the file system for addresses like `unix:/run/node-7.sock`: for peers on one machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect<'a>(
        &'a self,
        address: &'a str,
        options: StreamOptions,
    ) -> BoxFuture<'a, io::Result<Box<dyn ByteStream>>> {
        Box::pin(async move {
            #[cfg(unix)]
            if let Some(path) = address.strip_prefix(UNIX) {
                let stream = tokio::net::UnixStream::connect(path).await?;
                return Ok(Box::new(stream) as Box<dyn ByteStream>);
            }
            let addresses = crate::lookup::addresses(address).await?;
            let stream = first_of(by_turns(addresses), options).await?;
            Ok(Box::new(stream) as Box<dyn ByteStream>)
        })
    }
}

/// Attempts that are made for one name, at most.
const ADDRESSES_MAX: usize = 16;
/// How long the first address has before the next one is tried beside it: RFC 8305 allows 100 ms at least.
const NEXT_ADDRESS: Duration = Duration::from_millis(100);

/// The two families by turns, as the resolver has ordered them.
fn by_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_first = |address: &SocketAddr| address.is_ipv4() == addresses[0].is_ipv4();
    let (first, second): (Vec<_>, Vec<_>) = addresses.iter().partition(|one| is_first(one));
    let mut second = second.into_iter();
    let turns = first.into_iter().flat_map(|one| [Some(one), second.next()]);
    let mut turns: Vec<SocketAddr> = turns.flatten().collect();
    turns.extend(second);
    turns.truncate(ADDRESSES_MAX);
    turns
}

/// Connects to the first address that answers. Each has a start before the next, and none waits for another one to
/// fail.
async fn first_of(addresses: Vec<SocketAddr>, options: StreamOptions) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut attempts = JoinSet::new();
    let mut addresses = addresses.into_iter();
    loop {
        match addresses.next() {
            Some(address) => {
                attempts.spawn(connect_to(address, options));
            }
            None if attempts.is_empty() => return Err(last),
            None => {}
        }
        let is_last = addresses.len() == 0;
        let ended = tokio::select! {
            ended = attempts.join_next() => ended,
            () = tokio::time::sleep(NEXT_ADDRESS), if !is_last => continue,
        };
        match ended {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(error))) => last = error,
            Some(Err(_)) | None => {}
        }
    }
}

async fn connect_to(address: SocketAddr, options: StreamOptions) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(bytes) = options.send_buffer_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(options.nodelay)?;
    Ok(stream)
}

/// Listens at an address: TCP, or a unix socket.
pub(crate) async fn listen(address: &str) -> io::Result<Box<dyn Listener>> {
    #[cfg(unix)]
    if let Some(path) = address.strip_prefix(UNIX) {
        return Ok(Box::new(UnixSocket::bind(path).await?));
    }
    Ok(Box::new(TcpListener::bind(address).await?))
}

/// A unix socket that is listened on. Its file is removed at the end.
#[cfg(unix)]
struct UnixSocket {
    listener: tokio::net::UnixListener,
    path: std::path::PathBuf,
    address: String,
}

#[cfg(unix)]
impl UnixSocket {
    async fn bind(path: &str) -> io::Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        let bind = || tokio::net::UnixListener::bind(path);
        let listener = match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                // A file that is no socket refuses connections too, and is not this node's to remove.
                let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
                let answer = tokio::net::UnixStream::connect(path).await;
                let is_dead =
                    answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                if !is_socket || !is_dead {
                    return Err(error);
                }
                // Left by a process that crashed.
                std::fs::remove_file(path)?;
                bind()?
            }
            other => other?,
        };
        Ok(Self {
            listener,
            path: path.into(),
            address: format!("{UNIX}{path}"),
        })
    }
}

#[cfg(unix)]
impl Drop for UnixSocket {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(unix)]
impl Listener for UnixSocket {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, String)>> {
        Box::pin(async move {
            let (stream, _) = self.listener.accept().await?;
            // Peers have no address of their own.
            Ok((
                Box::new(stream) as Box<dyn ByteStream>,
                self.address.clone(),
            ))
        })
    }

    fn address(&self) -> String {
        self.address.clone()
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

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::*;

    const OPTIONS: StreamOptions = StreamOptions {
        nodelay: true,
        send_buffer_bytes: None,
    };

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_families_take_turns() {
        let [a, b, c] = ["[::1]:1", "[::2]:1", "[::3]:1"].map(address);
        let x = address("10.0.0.1:1");
        assert_eq!(by_turns(vec![a, b, c, x]), [a, x, b, c]);
        assert_eq!(by_turns(vec![x, a, b]), [x, a, b]);
        assert_eq!(by_turns(Vec::new()), []);
    }

    /// The first addresses take no connection and refuse none, as a host that is gone does.
    #[tokio::test]
    async fn addresses_that_are_dead_do_not_keep_from_one_that_lives() {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(address("127.0.0.1:0")).expect("loopback");
        let full = socket.listen(1).expect("loopback");
        let dead = full.local_addr().expect("bound");
        let mut filling = JoinSet::new();
        for _ in 0..8 {
            filling.spawn(TcpStream::connect(dead));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let alive = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let good = alive.local_addr().expect("bound");
        let refused = address("127.0.0.1:1");
        let addresses = vec![dead, refused, dead, good];
        let connected = tokio::time::timeout(Duration::from_secs(1), first_of(addresses, OPTIONS));
        let stream = connected.await.expect("within the time to dial");
        assert_eq!(
            stream.expect("it listens").peer_addr().expect("connected"),
            good
        );
        let error = first_of(vec![refused], OPTIONS)
            .await
            .expect_err("it is refused");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
