//! The network between the nodes: a proxy on the loopback interface for each directed pair, so that a direction can be
//! cut while the other one works.
//!
//! Node `a` connects to node `b` through the proxy of the pair `(a, b)`. That connection carries bytes both ways. Those
//! from `a` to `b` wait while the direction `a` to `b` is cut, the others while `b` to `a` is. A cut direction
//! loses no byte of a connection that stays open, as TCP would repeat them; a cut may also end the connections, as
//! middleboxes do.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes on their way in one direction of a connection.
const BUFFER_BYTES: usize = 64 * 1024;
/// In how many parts a slow link carries what it carries in a second.
const SLOW_PARTS: usize = 16;

/// A direction between two nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Direction {
    is_cut: bool,
    /// How many bytes get through in a second on one connection; 0 for as many as there are.
    bytes_per_second: u32,
    /// Grows each time connections are to end.
    resets: u64,
}

type State = watch::Sender<Direction>;

/// All proxies. They end when this is dropped.
pub(super) struct Network {
    directions: HashMap<(u64, u64), Arc<State>>,
    /// Where node `a` connects to for node `b`.
    proxies: HashMap<(u64, u64), SocketAddr>,
    tasks: JoinSet<()>,
}

impl Network {
    /// Listens for each pair of nodes. `nodes` are the ids with the addresses that they listen on for peers.
    ///
    /// # Errors
    ///
    /// A proxy cannot listen.
    pub(super) async fn start(nodes: &[(u64, SocketAddr)]) -> io::Result<Self> {
        let mut network = Self {
            directions: HashMap::new(),
            proxies: HashMap::new(),
            tasks: JoinSet::new(),
        };
        let ids = || nodes.iter().map(|(id, _)| *id);
        for from in ids() {
            for to in ids().filter(|&to| to != from) {
                let state = Arc::new(watch::Sender::new(Direction::default()));
                network.directions.insert((from, to), state);
            }
        }
        for from in ids() {
            for &(to, address) in nodes.iter().filter(|(to, _)| *to != from) {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                network.proxies.insert((from, to), listener.local_addr()?);
                let there = Arc::clone(&network.directions[&(from, to)]);
                let back = Arc::clone(&network.directions[&(to, from)]);
                network.tasks.spawn(serve(listener, address, there, back));
            }
        }
        Ok(network)
    }

    /// Where `from` connects to instead of the address of `to`.
    pub(super) fn proxy(&self, from: u64, to: u64) -> Option<SocketAddr> {
        self.proxies.get(&(from, to)).copied()
    }

    /// From now on nothing gets from one node to the other one. With `with_reset` their connections end, too.
    pub(super) fn cut(&self, from: u64, to: u64, with_reset: bool) {
        if let Some(state) = self.directions.get(&(from, to)) {
            state.send_modify(|direction| {
                direction.is_cut = true;
                direction.resets += u64::from(with_reset);
            });
        }
    }

    /// From now on so many bytes of each connection get from one node to the other one in a second.
    pub(super) fn slow(&self, from: u64, to: u64, bytes_per_second: u32) {
        if let Some(state) = self.directions.get(&(from, to)) {
            state.send_modify(|direction| direction.bytes_per_second = bytes_per_second);
        }
    }

    /// Ends all cuts, and lets all bytes through.
    pub(super) fn heal(&self) {
        for state in self.directions.values() {
            state.send_modify(|direction| {
                direction.is_cut = false;
                direction.bytes_per_second = 0;
            });
        }
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, there: Arc<State>, back: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Without descriptors it tries again, as the node that dials does.
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    continue;
                };
                connections.spawn(connect(stream, target, there.subscribe(), back.subscribe()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection. A handshake of TCP needs both directions, so it waits for them.
async fn connect(
    stream: TcpStream,
    target: SocketAddr,
    there: watch::Receiver<Direction>,
    back: watch::Receiver<Direction>,
) {
    let resets = (there.borrow().resets, back.borrow().resets);
    let opened = open(target, there.clone(), back.clone());
    let mut is_reset = (there.clone(), back.clone());
    let reset = async {
        tokio::select! {
            _ = is_reset.0.wait_for(|direction| direction.resets != resets.0) => {}
            _ = is_reset.1.wait_for(|direction| direction.resets != resets.1) => {}
        }
    };
    let work = async {
        let Some(onward) = opened.await else {
            return;
        };
        // A slower proxy is no fault.
        let _ = (stream.set_nodelay(true), onward.set_nodelay(true));
        let (near_read, near_write) = stream.into_split();
        let (far_read, far_write) = onward.into_split();
        // Both ends are closed with the first one that is.
        tokio::select! {
            _ = pump(near_read, far_write, there) => {}
            _ = pump(far_read, near_write, back) => {}
        }
    };
    tokio::select! {
        () = work => {}
        () = reset => {}
    }
}

/// Connects once both directions are open.
async fn open(
    target: SocketAddr,
    mut there: watch::Receiver<Direction>,
    mut back: watch::Receiver<Direction>,
) -> Option<TcpStream> {
    loop {
        there.wait_for(|direction| !direction.is_cut).await.ok()?;
        back.wait_for(|direction| !direction.is_cut).await.ok()?;
        if !there.borrow().is_cut {
            return TcpStream::connect(target).await.ok();
        }
    }
}

/// Carries bytes one way, none while that way is cut.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut direction: watch::Receiver<Direction>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let rate = direction.borrow().bytes_per_second as usize;
        // What is waited for at once is short where the link is slow.
        let most = match rate {
            0 => BUFFER_BYTES,
            rate => (rate / SLOW_PARTS).clamp(1, BUFFER_BYTES),
        };
        let length = from.read(&mut buffer[..most]).await?;
        if rate > 0 {
            tokio::time::sleep(Duration::from_secs_f64(length as f64 / rate as f64)).await;
        }
        let is_open = direction
            .wait_for(|direction| !direction.is_cut)
            .await
            .is_ok();
        if length == 0 || !is_open {
            return Ok(());
        }
        to.write_all(&buffer[..length]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long against a hop on the loopback interface; only waited for in full when nothing comes.
    const SILENCE: Duration = Duration::from_millis(200);

    async fn pair(network: &Network, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let proxy = network.proxy(1, 2).expect("there is such a pair");
        let near = TcpStream::connect(proxy).await.expect("it listens");
        let (far, _) = listener.accept().await.expect("the proxy connects");
        (near, far)
    }

    async fn network() -> (Network, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("it is free");
        let address = listener.local_addr().expect("it is bound");
        let nodes = [(1, "127.0.0.1:1".parse().expect("it is one")), (2, address)];
        let network = Network::start(&nodes).await.expect("ports are free");
        (network, listener)
    }

    #[tokio::test]
    async fn one_direction_is_cut_and_the_other_one_works() {
        let (network, listener) = network().await;
        let (mut near, mut far) = pair(&network, &listener).await;
        let mut byte = [0];
        network.cut(1, 2, false);
        near.write_all(b"a").await.expect("the proxy takes it");
        far.write_all(b"b").await.expect("the proxy takes it");
        near.read_exact(&mut byte).await.expect("this way is open");
        assert_eq!(&byte, b"b");
        let cut = tokio::time::timeout(SILENCE, far.read_exact(&mut byte)).await;
        assert!(cut.is_err(), "{byte:?} came through");
        network.heal();
        far.read_exact(&mut byte).await.expect("it is open again");
        assert_eq!(&byte, b"a");
    }

    #[tokio::test]
    async fn a_slow_direction_carries_every_byte_but_slowly() {
        let (network, listener) = network().await;
        network.slow(1, 2, 1);
        let (mut near, mut far) = pair(&network, &listener).await;
        let sent: Vec<u8> = (0..200).collect();
        near.write_all(&sent).await.expect("the proxy takes it");
        let (mut got, mut buffer) = (Vec::new(), [0; 200]);
        while let Ok(read) = tokio::time::timeout(SILENCE, far.read(&mut buffer)).await {
            got.extend_from_slice(&buffer[..read.expect("the connection is open")]);
        }
        assert!(got.len() < 100, "{} bytes came through", got.len());
        network.heal();
        while got.len() < sent.len() {
            let read = far.read(&mut buffer).await.expect("the connection is open");
            got.extend_from_slice(&buffer[..read]);
        }
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn a_cut_with_a_reset_ends_connections_and_lets_none_through() {
        let (network, listener) = network().await;
        let (mut near, _far) = pair(&network, &listener).await;
        network.cut(2, 1, true);
        let mut byte = [0];
        let ended = near.read(&mut byte).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        let proxy = network.proxy(1, 2).expect("there is such a pair");
        let _waiting = TcpStream::connect(proxy).await.expect("it listens");
        let accepted = tokio::time::timeout(SILENCE, listener.accept()).await;
        assert!(accepted.is_err(), "the handshake got through");
        network.heal();
        listener.accept().await.expect("it connects now");
    }
}
