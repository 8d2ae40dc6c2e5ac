//! What a transport knows of its peers and connections.

use crate::proto::ConnectionClass;
use crate::shell::conn::Conn;
#[cfg(feature = "tls")]
use crate::shell::conn::Info;
use crate::shell::link::Link;
use crate::stats::{ConnectionStatus, LinkStats, PeerStats, PeerStatus, QueueDepth, Stats};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(feature = "tls"))]
use std::time::Duration;
use std::time::SystemTime;

use super::Transport;

pub(super) fn connection_status(
    conn: &Conn,
    class: ConnectionClass,
    address: String,
) -> ConnectionStatus {
    let info = conn.info.lock();
    #[cfg(feature = "tls")]
    let expires_at = info.as_ref().and_then(Info::expires_at);
    #[cfg(not(feature = "tls"))]
    let expires_at: Option<Duration> = None;
    ConnectionStatus {
        peer: conn.peer,
        class,
        is_dialled: false,
        is_up: true,
        address,
        incarnation: info.as_ref().map(|info| info.incarnation),
        certificate_expires_at: expires_at.map(|at| SystemTime::UNIX_EPOCH + at),
        calls_in_flight: conn.channel.pending.in_flight(),
        handlers: conn.handlers.load(Ordering::Relaxed),
        queued_bytes: conn.backlog(),
        peer_busy: conn.peer_busy.load(Ordering::Relaxed),
        last_error: conn.last_error.lock().as_deref().cloned(),
        last_close: conn.last_close.lock().as_deref().cloned(),
    }
}

pub(super) fn link_stats(link: &Link) -> LinkStats {
    let conn = &link.conn;
    let (queued_bytes, queued_frames) = conn.channel.queues.queued();
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    LinkStats {
        is_up: link.is_up(),
        dials: get(&link.dials),
        connects: get(&link.connects),
        calls_in_flight: conn.channel.pending.in_flight(),
        queued_bytes: queued_bytes + conn.unwritten.load(Ordering::Relaxed),
        queued_frames,
        dropped_frames: conn.channel.queues.dropped(),
        messages_sent: conn.channel.queues.messages(),
        bytes_sent: get(&conn.bytes_written),
        writes: get(&conn.writes),
        peer_busy: get(&conn.peer_busy),
        frames_received: get(&conn.frames_received),
        bytes_received: get(&conn.bytes_received),
    }
}

impl Transport {
    /// Ids of the peers that are known.
    #[must_use]
    pub fn peer_ids(&self) -> Vec<u64> {
        self.inner.all.lock().iter().map(|peer| peer.id).collect()
    }

    /// All nodes there is something to say of, by id: those that are known, and others that have connected. For each
    /// its state, its connections, what is queued, and what went wrong last. Takes a few locks for each connection.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        let mut all: BTreeMap<u64, PeerStatus> = BTreeMap::new();
        for peer in self.inner.peers() {
            let mut status = PeerStatus::new(peer.id);
            status.address = Some(peer.address.lock().clone());
            status.is_known = true;
            let [control, bulk] = peer.links();
            status.state = control
                .state(self.inner.now_ms())
                .max(bulk.state(self.inner.now_ms()));
            let depths = |link: &Link| {
                let [_, first, second] = link.conn.channel.queues.depths();
                [first, second].map(|(bytes, frames)| QueueDepth { bytes, frames })
            };
            let ([critical, high], [normal, low]) = (depths(control), depths(bulk));
            status.queues = [critical, high, normal, low];
            all.insert(peer.id, status);
        }
        for connection in self.connections() {
            let peer = connection.peer;
            let status = all.entry(peer).or_insert_with(|| PeerStatus::new(peer));
            status.add(connection);
        }
        all.into_values().collect()
    }
}

impl Transport {
    /// Counts of the whole transport.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let inner = &self.inner;
        let peers = inner.peers();
        let links = peers.iter().flat_map(|peer| peer.links());
        let outbound = links.filter(|link| link.is_up()).count();
        let inbound = inner.inbound.lock();
        let handlers = inbound
            .open
            .values()
            .chain(inbound.ended.values())
            .map(|conn| conn.handlers.load(Ordering::Relaxed));
        Stats {
            peers: peers.len(),
            outbound,
            inbound: inbound.open.len(),
            handlers: handlers.sum(),
            timeouts: inner.counts.timeouts.load(Ordering::Relaxed),
            dials_failed: inner.counts.dials_failed.load(Ordering::Relaxed),
            unhandled: inner.unhandled.load(Ordering::Relaxed),
        }
    }

    /// All connections: two for each known peer, whether they are up or not, and those that peers have dialled. Takes a
    /// few locks for each.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        let mut all = Vec::new();
        for peer in self.inner.peers() {
            let address = peer.address.lock().clone();
            for link in peer.links() {
                let status = connection_status(&link.conn, link.class, address.clone());
                all.push(ConnectionStatus {
                    is_dialled: true,
                    is_up: link.is_up(),
                    ..status
                });
            }
        }
        for (_, conn) in self.inner.inbound() {
            let known = {
                let info = conn.info.lock();
                info.as_ref().map(|info| (info.class, info.address.clone()))
            };
            if let Some((class, address)) = known {
                all.push(connection_status(&conn, class, address));
            }
        }
        all
    }

    /// Counts of one peer; `None` if it is not known.
    #[must_use]
    pub fn peer_stats(&self, peer: u64) -> Option<PeerStats> {
        let peer = self.inner.peers.get(&peer)?;
        Some(PeerStats {
            control: link_stats(&peer.control),
            bulk: link_stats(&peer.bulk),
        })
    }
}
