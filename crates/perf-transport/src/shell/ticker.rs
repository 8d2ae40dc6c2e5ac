//! One timer for all connections: deadlines, heartbeats, idle connections, dialling again.

use super::conn::Conn;
use super::link::{Link, Peer};
use crate::config::millis;
use crate::event::{CloseReason, PeerEvent};
use crate::proto::{DialState, Header, Kind, Liveness, Progress, Verdict};
use crate::transport::Inner;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// What the ticker remembers of one connection.
struct Watch {
    liveness: Liveness,
    messages: u64,
    messages_ms: u64,
    /// Which connect this is about.
    connects: u64,
    seen: bool,
    /// How often the peer has said that it is busy, and when it last did; 0 if it was not for a while.
    busy: u64,
    busy_ms: u64,
}

/// Ticks until the transport shuts down.
pub(crate) async fn run(inner: Arc<Inner>) {
    let start = Instant::now();
    let first_ms = inner.now_ms();
    let mut interval = interval(inner.config.tick);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop = inner.stop.subscribe();
    let mut ticker = Ticker {
        inner: Arc::clone(&inner),
        links: HashMap::new(),
        inbound: HashMap::new(),
        peers: Vec::new(),
        conns: Vec::new(),
        #[cfg(feature = "tls")]
        expiry_ms: 0,
    };
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            now = interval.tick() => {
                let now_ms = first_ms + millis(now.max(Instant::now()) - start);
                inner.set_now_ms(now_ms);
                ticker.tick(now_ms);
            }
        }
    }
}

struct Ticker {
    inner: Arc<Inner>,
    links: HashMap<(u64, bool), Watch>,
    inbound: HashMap<u64, Watch>,
    /// Used again at every tick.
    peers: Vec<Arc<Peer>>,
    conns: Vec<(u64, Arc<Conn>)>,
    /// When to look for certificates that have expired.
    #[cfg(feature = "tls")]
    expiry_ms: u64,
}

impl Ticker {
    fn tick(&mut self, now_ms: u64) {
        #[cfg(feature = "tls")]
        if self.inner.config.expiry_ends_connections && now_ms >= self.expiry_ms {
            self.expiry_ms = now_ms + 1000;
            self.inner.end_expired();
        }
        for watch in self.links.values_mut().chain(self.inbound.values_mut()) {
            watch.seen = false;
        }
        let mut peers = std::mem::take(&mut self.peers);
        self.inner.peers_into(&mut peers);
        for peer in peers.drain(..) {
            for link in peer.links() {
                self.tick_link(&peer, link, now_ms);
            }
        }
        self.peers = peers;
        let mut conns = std::mem::take(&mut self.conns);
        self.inner.inbound_into(&mut conns);
        for (number, conn) in conns.drain(..) {
            let watch = watch(&mut self.inbound, number, 0, now_ms, &self.inner);
            look(watch, &conn, now_ms);
            conn.running.stop_late(now_ms);
            self.inner.counts.transferred(&conn);
        }
        self.conns = conns;
        self.links.retain(|_, watch| watch.seen);
        self.inbound.retain(|_, watch| watch.seen);
    }

    fn tick_link(&mut self, peer: &Arc<Peer>, link: &Link, now_ms: u64) {
        let conn = &link.conn;
        let ended = conn.channel.expire(now_ms);
        if ended > 0 {
            conn.notify(false);
            self.inner.counts.timeouts(ended);
        }
        let state = link.dialer.lock().state();
        match state {
            DialState::Up | DialState::Draining => {}
            DialState::Backoff { until_ms } if until_ms <= now_ms => {
                // What was queued while the last attempt was failing.
                if conn.channel.queues.queued().1 > 0 {
                    let _ = link.admit(peer, &self.inner);
                }
                return;
            }
            _ => return,
        }
        let connects = link.connects.load(Ordering::Relaxed);
        let key = (peer.id, link.class as usize == 0);
        let watch = watch(&mut self.links, key, connects, now_ms, &self.inner);
        look(watch, conn, now_ms);
        if is_newly_busy(watch, conn, now_ms, &self.inner) {
            let (peer, class) = (peer.id, link.class);
            self.inner
                .events
                .report(PeerEvent::PeerBusy { peer, class });
        }
        self.inner.counts.transferred(conn);
        let is_quiet = link.is_quiet();
        if state == DialState::Draining && is_quiet {
            conn.close(CloseReason::PeerDrained);
            return;
        }
        let messages = conn.channel.queues.messages();
        if messages != watch.messages || !is_quiet {
            watch.messages = messages;
            watch.messages_ms = now_ms;
        } else if now_ms - watch.messages_ms >= millis(self.inner.config.idle_timeout) {
            link.end_if_idle();
        }
    }
}

fn watch<'a, K: std::hash::Hash + Eq>(
    watches: &'a mut HashMap<K, Watch>,
    key: K,
    connects: u64,
    now_ms: u64,
    inner: &Inner,
) -> &'a mut Watch {
    let new = || Watch {
        liveness: Liveness::new(inner.config.liveness(), now_ms),
        messages: 0,
        messages_ms: now_ms,
        connects,
        seen: true,
        busy: 0,
        busy_ms: 0,
    };
    let watch = watches.entry(key).or_insert_with(new);
    if watch.connects != connects {
        *watch = new();
    }
    watch.seen = true;
    watch
}

/// Whether the peer has begun to say that it is busy.
fn is_newly_busy(watch: &mut Watch, conn: &Conn, now_ms: u64, inner: &Inner) -> bool {
    let busy = conn.peer_busy.load(Ordering::Relaxed);
    let was_busy = watch.busy_ms > 0;
    if busy != watch.busy {
        watch.busy = busy;
        watch.busy_ms = now_ms;
        return !was_busy && busy > 0;
    }
    // It says so once per interval.
    if now_ms - watch.busy_ms > millis(inner.config.heartbeat_interval).saturating_mul(3) {
        watch.busy_ms = 0;
    }
    false
}

/// Pings a connection, or cuts it.
fn look(watch: &mut Watch, conn: &Conn, now_ms: u64) {
    let progress = Progress {
        frames: conn.frames_received.load(Ordering::Relaxed),
        bytes: conn.bytes_received.load(Ordering::Relaxed),
        busy: conn.peer_busy.load(Ordering::Relaxed),
        written: conn.bytes_written.load(Ordering::Relaxed),
        unwritten: conn.unwritten.load(Ordering::Relaxed) > 0,
        paused: conn.paused.load(Ordering::Relaxed),
    };
    match watch.liveness.check(now_ms, progress) {
        Verdict::Alive => {}
        Verdict::Ping => say(conn, Header::new(Kind::Ping, 0, now_ms)),
        Verdict::Busy => say(conn, Header::new(Kind::Busy, 0, now_ms)),
        Verdict::Silent => conn.close(CloseReason::Silent),
        Verdict::Stalled => conn.close(CloseReason::Stalled),
    }
}

fn say(conn: &Conn, header: Header) {
    conn.channel.queues.push_sign_of_life(header);
    conn.notify(true);
}
