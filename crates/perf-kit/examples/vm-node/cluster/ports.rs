//! Ports for nodes that are killed and started again.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Below those that outgoing connections are given (from 32768 on Linux, from 49152 by RFC 6335 elsewhere): a
/// port from there may be some connection's own before a node has begun to listen, or while it is down.
const PORTS: std::ops::Range<usize> = 20_000..32_000;
/// How far from each other two processes begin to look.
const APART: usize = 97;

/// Addresses on the loopback interface that nobody listens on, other ones at each call.
///
/// # Errors
///
/// The error of the last bind when fewer than `count` ports are free.
pub(crate) fn free_addresses(count: usize) -> io::Result<Vec<SocketAddr>> {
    static LOOKED_AT: AtomicUsize = AtomicUsize::new(0);
    let begin = std::process::id() as usize % PORTS.len() * APART;
    let mut found = Vec::with_capacity(count);
    let mut refused = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in PORTS {
        if found.len() == count {
            return Ok(found);
        }
        let place = begin + LOOKED_AT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + place % PORTS.len();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
        match TcpListener::bind(address) {
            Ok(_) => found.push(address),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}
