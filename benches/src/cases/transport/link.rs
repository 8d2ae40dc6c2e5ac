//! A network link of 1 Gbit/s.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

/// 1 Gbit/s, as between the nodes of a small cluster.
const BYTES_PER_SECOND: f64 = 125e6;
/// What the link carries in one go: then it is another connection's turn.
const TURN_BYTES: usize = 16 * 1024;
/// What is made up for at most where the system woke the link too late.
const LATE_MAX: Duration = Duration::from_millis(1);
/// Of a switch port, not of a machine with memory to spare.
const BUFFER_BYTES: u32 = 128 * 1024;

/// One direction of the link. All connections of the pair of nodes share it, and nothing else moves while it carries something.
struct Wire {
    free_at: Cell<Instant>,
}

impl Wire {
    fn new() -> Rc<Self> {
        let free_at = Cell::new(Instant::now());
        Rc::new(Self { free_at })
    }

    /// Returns when so many bytes are over. It blocks its thread: that is the wire.
    fn carry(&self, bytes: usize) {
        let time = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND);
        let now = Instant::now();
        let begin = self.free_at.get().max(now - LATE_MAX);
        self.free_at.set(begin + time);
        thread::sleep((begin + time).saturating_duration_since(now));
    }
}

async fn forward(mut from: TcpStream, mut to: TcpStream, wire: Rc<Wire>) {
    let mut buffer = vec![0; TURN_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        wire.carry(read);
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
        // The wire takes turns.
        tokio::task::yield_now().await;
    }
    // Both directions have handles of their own to a connection, so dropping one ends nothing.
    let _ = to.shutdown().await;
}

/// A direction's connections: what is read here is written there.
type Directions = mpsc::UnboundedSender<(std::net::TcpStream, std::net::TcpStream)>;

/// A link in front of a server. Each direction is a thread of its own, so it takes no time of the nodes' workers, and its clock is not
/// that of their timers. It ends when this is dropped.
pub(super) struct Link {
    pub(super) address: String,
    _end: oneshot::Sender<()>,
}

impl Link {
    /// Puts a link in front of a server.
    pub(super) async fn to(server: String) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(BUFFER_BYTES)?;
        socket.bind(([127, 0, 0, 1], 0).into())?;
        let listener = socket.listen(64)?;
        let address = listener.local_addr()?.to_string();
        let (end, ended) = oneshot::channel();
        let (there, back) = (direction(), direction());
        tokio::spawn(async move {
            tokio::select! {
                _ = ended => {}
                _ = accept(listener, &server, there, back) => {}
            }
        });
        let _end = end;
        Ok(Self { address, _end })
    }
}

/// Accepts connections, and gives their ends to the two directions, which end with this.
async fn accept(
    listener: TcpListener,
    server: &str,
    there: Directions,
    back: Directions,
) -> io::Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        let upstream = TcpStream::connect(server).await?;
        let (client, upstream) = (client.into_std()?, upstream.into_std()?);
        client.set_nodelay(true)?;
        upstream.set_nodelay(true)?;
        // Nobody waits for what a direction that has ended would have carried.
        let _ = there.send((client.try_clone()?, upstream.try_clone()?));
        let _ = back.send((upstream, client));
    }
}

/// Starts the thread of a direction.
fn direction() -> Directions {
    let (sender, mut connections) = mpsc::unbounded_channel();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_io().build();
        let runtime = runtime.expect("the system gives what a runtime needs");
        let local = LocalSet::new();
        local.block_on(&runtime, async {
            let wire = Wire::new();
            while let Some((from, to)) = connections.recv().await {
                // What cannot be registered carries nothing, and the experiment says so.
                let ends = (TcpStream::from_std(from), TcpStream::from_std(to));
                let (Ok(from), Ok(to)) = ends else { continue };
                tokio::task::spawn_local(forward(from, to, Rc::clone(&wire)));
            }
        });
    });
    sender
}
