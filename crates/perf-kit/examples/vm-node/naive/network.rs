//! One connection to each peer, first in first out, each message encoded into a fresh buffer.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{RwLock, mpsc};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Event;
use crate::certificates::{self, Identity};

/// Messages that wait for a peer; further ones are dropped, and Raft sends again what matters.
const QUEUE_MAX: usize = 4096;
/// Longest message that is taken.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Wait between two attempts to connect.
const RETRY: Duration = Duration::from_millis(200);

/// The ways to all peers.
#[derive(Clone)]
pub(super) struct Network {
    queues: Arc<RwLock<HashMap<u64, mpsc::Sender<Vec<u8>>>>>,
    connector: TlsConnector,
}

impl Network {
    /// Listens for peers, whose messages become events.
    pub(super) async fn start(
        identity: &Identity,
        listen: SocketAddr,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let acceptor = identity.acceptor()?;
        tokio::spawn(accept(listener, acceptor, events));
        Ok(Self {
            queues: Arc::default(),
            connector: identity.connector()?,
        })
    }

    /// Makes a peer known.
    pub(super) async fn add_peer(&self, id: u64, address: String) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        self.queues.write().await.insert(id, sender);
        tokio::spawn(write(id, address, self.connector.clone(), receiver));
    }

    /// Sends a message, or drops it.
    pub(super) async fn send(&self, message: &Message) -> Result<(), protobuf::ProtobufError> {
        let body = message.write_to_bytes()?;
        let mut frame = Vec::new();
        frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
        frame.extend_from_slice(&body);
        if let Some(queue) = self.queues.read().await.get(&message.to) {
            // Dropped when full: Raft allows it.
            let _ = queue.try_send(frame);
        }
        Ok(())
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, events: mpsc::Sender<Event>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let (acceptor, events) = (acceptor.clone(), events.clone());
        tokio::spawn(async move {
            // A peer that fails connects again.
            let _ = read(stream, acceptor, events).await;
        });
    }
}

async fn read(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    events: mpsc::Sender<Event>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = acceptor.accept(stream).await?;
    loop {
        let length = stream.read_u32_le().await? as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(io::Error::other("the message is too long"));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let mut message = Message::default();
        message.merge_from_bytes(&body).map_err(io::Error::other)?;
        if events.send(Event::Message(message)).await.is_err() {
            return Ok(());
        }
    }
}

/// Connects, writes what comes, and begins anew when the connection breaks.
async fn write(
    id: u64,
    address: String,
    connector: TlsConnector,
    mut queue: mpsc::Receiver<Vec<u8>>,
) {
    while !queue.is_closed() {
        // What waited for a connection that is gone is old by now.
        while queue.try_recv().is_ok() {}
        if let Ok(mut stream) = connect(id, &address, &connector).await {
            while let Some(frame) = queue.recv().await {
                let written = async {
                    stream.write_all(&frame).await?;
                    stream.flush().await
                };
                if written.await.is_err() {
                    break;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn connect(
    id: u64,
    address: &str,
    connector: &TlsConnector,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(certificates::name(id)).map_err(io::Error::other)?;
    connector.connect(name, stream).await
}
