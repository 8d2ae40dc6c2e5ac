//! The end of a transport.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Transport;
use super::shared::LAST_WORDS;
use super::shared::goodbye;

impl Transport {
    /// Shuts down in good order: takes no new messages and no new connections, tells the peers to send nothing new,
    /// waits until what is queued is written, calls in flight have ended, peers have had the replies to what they sent
    /// and closed their connections, and handlers have ended, and closes. After `time_max` it closes whatever is left.
    ///
    /// Returns whether everything was done in time. A peer that is gone without a word is waited for until its
    /// heartbeats are missed.
    pub async fn drain(&self, time_max: Duration) -> bool {
        let inner = &self.inner;
        inner.draining.store(true, Ordering::SeqCst);
        for (_, conn) in inner.inbound() {
            goodbye(&conn);
        }
        let quiet = async {
            while !self.is_quiet() {
                tokio::time::sleep(inner.config.tick).await;
            }
        };
        let in_time = tokio::time::timeout(time_max, quiet).await.is_ok();
        self.shutdown();
        // Peers hear the end of their connections, and the address can be listened on again.
        let gone = async {
            while inner.tasks.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // A task that does not end is not worth waiting for.
        let _ = tokio::time::timeout(LAST_WORDS, gone).await;
        in_time
    }

    pub(super) fn is_quiet(&self) -> bool {
        let peers = self.inner.peers();
        let mut links = peers.iter().flat_map(|peer| peer.links());
        let links_are = links.all(|link| {
            let channel = &link.conn.channel;
            // What is queued for a peer that cannot be reached will not be written.
            let is_written = link.conn.backlog() == 0 || !link.is_up();
            channel.pending.in_flight() == 0 && is_written
        });
        // A peer closes when it has all its replies. What it sent without waiting for one is handled until then, or
        // soon after.
        let inbound = self.inner.inbound.lock();
        let is_alone =
            inbound.handshakes == 0 && inbound.open.is_empty() && inbound.ended.is_empty();
        links_are && is_alone
    }

    /// Closes everything at once: calls in flight end with `Disconnected`, what is queued is dropped. Also done when
    /// the last clone is dropped.
    pub fn shutdown(&self) {
        self.inner.stop();
    }
}
