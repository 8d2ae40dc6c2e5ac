//! `perf-transport` itself, as a user would use it.

use std::sync::Arc;

use bytes::Bytes;
use perf_transport::{Batch, Payload, RemoteMethod, Router, Security, TlsIdentity, Transport};
use tokio::runtime::Runtime;

use super::drive::{self, Arrivals, Caller, Sender};
use super::tls;
use crate::case::Run;

pub(super) const SERVER: u64 = 2;
pub(super) const CLIENT: u64 = 1;

fn security(node: u64, secure: bool) -> Security {
    if !secure {
        return Security::InsecurePlaintext;
    }
    let identity = tls::identity(&perf_transport::node_name(node, tls::CLUSTER));
    let identity = TlsIdentity::from_pem(
        identity.authority.as_bytes(),
        identity.chain.as_bytes(),
        identity.key.as_bytes(),
    );
    Security::MutualTls(identity.expect("certificates made here are sound"))
}

/// A server with these handlers, and a client that knows it.
pub(super) async fn pair(router: Router, secure: bool) -> (Transport, Transport) {
    let server = Transport::builder(SERVER, tls::CLUSTER, security(SERVER, secure))
        .router(router)
        .listen("127.0.0.1:0")
        .start()
        .await
        .expect("loopback can be listened on");
    let address = server.address().expect("it listens").to_owned();
    let client = Transport::builder(CLIENT, tls::CLUSTER, security(CLIENT, secure))
        .peer(SERVER, address)
        .start()
        .await
        .expect("a client needs nothing");
    (client, server)
}

struct OurCaller<const BYTES: usize> {
    status: RemoteMethod,
    /// Lives as long as the callers: a server in this process, or the client.
    _kept: Transport,
}

impl<const BYTES: usize> Caller for OurCaller<BYTES> {
    async fn call(&mut self) {
        let payload = [0x5A; BYTES];
        let reply = self.status.call(&payload).await;
        assert_eq!(reply.map(|reply| reply.len()), Ok(BYTES));
    }
}

fn callers<const CALLERS: usize, const BYTES: usize>(router: Router, secure: bool) -> Run {
    let runtime = drive::runtime();
    let (client, server) = runtime.block_on(pair(router, secure));
    let status = client.method(SERVER, "vm", "status");
    let status = status.expect("the client knows the server");
    let callers = (0..CALLERS)
        .map(|_| OurCaller::<BYTES> {
            status: status.clone(),
            _kept: server.clone(),
        })
        .collect();
    drive::calls(runtime, callers)
}

/// Callers of 64 bytes, of a server that the client knows.
pub(super) fn calls(runtime: Runtime, client: &Transport, callers: usize) -> Run {
    let status = client.method(SERVER, "vm", "status");
    let status = status.expect("the client knows the server");
    let callers = (0..callers)
        .map(|_| OurCaller::<64> {
            status: status.clone(),
            _kept: client.clone(),
        })
        .collect();
    drive::calls(runtime, callers)
}

pub(super) fn inline<const CALLERS: usize, const BYTES: usize, const SECURE: bool>() -> Run {
    let router = Router::new().inline("vm", "status", |message, reply| {
        reply.put_slice(message.payload());
        Ok(())
    });
    callers::<CALLERS, BYTES>(router, SECURE)
}

pub(super) fn spawned<const CALLERS: usize, const SECURE: bool>() -> Run {
    let router = Router::new().spawned("vm", "status", |message| async move {
        Ok(message.into_payload())
    });
    callers::<CALLERS, 64>(router, SECURE)
}

/// Sends each message by itself.
struct EachSender<const BYTES: usize> {
    log: RemoteMethod,
    _server: Transport,
    payload: Bytes,
}

impl<const BYTES: usize> Sender for EachSender<BYTES> {
    async fn send(&mut self, count: u64) {
        for _ in 0..count {
            // Small messages are encoded in place; large ones are shared, like a snapshot's chunks.
            let payload = if BYTES <= 1024 {
                Payload::Borrowed(&self.payload)
            } else {
                Payload::Shared(self.payload.clone())
            };
            if let Err(full) = self.log.send(payload) {
                let sent = self.log.send_wait(full.envelope.payload).await;
                assert_eq!(sent, Ok(()));
            }
        }
    }
}

/// Messages sent one by one, each given to its handler.
pub(super) fn each<const BYTES: usize, const SECURE: bool>() -> Run {
    let runtime: Runtime = drive::runtime();
    let arrivals = Arc::new(Arrivals::default());
    let counted = Arc::clone(&arrivals);
    let router = Router::new().one_way("vm", "log", move |message| {
        assert_eq!(message.payload().len(), BYTES);
        counted.add(1);
    });
    let (client, server) = runtime.block_on(pair(router, SECURE));
    let log = client.method(SERVER, "vm", "log");
    let sender = EachSender::<BYTES> {
        log: log.expect("the client knows the server"),
        _server: server,
        payload: Bytes::from(vec![0x5A; BYTES]),
    };
    drive::messages(runtime, sender, arrivals)
}

/// Messages between two flushes: as many as the peer's path has.
const BATCH: u64 = 1024;

struct BatchSender<const BYTES: usize> {
    batch: Batch,
    _server: Transport,
}

impl<const BYTES: usize> Sender for BatchSender<BYTES> {
    async fn send(&mut self, count: u64) {
        let payload = [0x5A; BYTES];
        for number in 1..=count {
            if self.batch.push(&payload).is_err() {
                assert_eq!(self.batch.flush().await, Ok(()));
                assert_eq!(self.batch.push(&payload), Ok(()));
            }
            if number % BATCH == 0 {
                assert_eq!(self.batch.flush().await, Ok(()));
            }
        }
        assert_eq!(self.batch.flush().await, Ok(()));
    }
}

/// Messages fed to a batch, looked at by a handler that keeps none.
pub(super) fn batched<const BYTES: usize, const SECURE: bool>() -> Run {
    let runtime: Runtime = drive::runtime();
    let arrivals = Arc::new(Arrivals::default());
    let counted = Arc::clone(&arrivals);
    let router = Router::new().one_way_ref("vm", "log", move |message| {
        assert_eq!(message.payload().len(), BYTES);
        counted.add(1);
    });
    let (client, server) = runtime.block_on(pair(router, SECURE));
    let log = client.method(SERVER, "vm", "log");
    let sender = BatchSender::<BYTES> {
        batch: log.expect("the client knows the server").batch(),
        _server: server,
    };
    drive::messages(runtime, sender, arrivals)
}
