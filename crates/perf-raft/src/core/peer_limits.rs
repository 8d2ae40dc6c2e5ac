//! Peers that take only shorter frames than this node may send.

/// The longest frames that some peers take, as the transport said.
#[derive(Debug, Default)]
pub(super) struct PeerLimits {
    peers: Vec<Limit>,
}

#[derive(Debug)]
struct Limit {
    peer: u64,
    /// The peer's start that it holds for: the next one may take more.
    session: u64,
    frame_bytes: usize,
    /// The last entry that is too long for it: its index, and the bytes of a frame with it alone.
    stuck: Option<(u64, usize)>,
}

impl PeerLimits {
    /// The peer takes no frame above `frame_bytes`.
    pub(super) fn lower(&mut self, peer: u64, session: u64, frame_bytes: usize) {
        self.peers.retain(|limit| limit.peer != peer);
        self.peers.push(Limit {
            peer,
            session,
            frame_bytes,
            stuck: None,
        });
    }

    /// The longest frame that this start of the peer takes, if that is known to be short.
    pub(super) fn of(&mut self, peer: u64, session: u64) -> Option<usize> {
        if self.peers.is_empty() {
            return None;
        }
        self.peers
            .retain(|limit| limit.peer != peer || limit.session == session);
        let limit = self.peers.iter().find(|limit| limit.peer == peer);
        limit.map(|limit| limit.frame_bytes)
    }

    /// The shortest of all limits.
    pub(super) fn least(&self) -> Option<usize> {
        self.peers.iter().map(|limit| limit.frame_bytes).min()
    }

    /// A frame with one entry alone is too long for the peer.
    pub(super) fn stuck(&mut self, peer: u64, index: u64, bytes: usize) {
        for limit in self.peers.iter_mut().filter(|limit| limit.peer == peer) {
            limit.stuck = Some((index, bytes));
        }
    }

    /// Peers that need a longer frame than they take: with the entry's index, the frame's bytes and the limit.
    pub(super) fn all_stuck(&self) -> impl Iterator<Item = (u64, u64, usize, usize)> {
        let stuck = |limit: &Limit| {
            let (index, bytes) = limit.stuck?;
            Some((limit.peer, index, bytes, limit.frame_bytes))
        };
        self.peers.iter().filter_map(stuck)
    }
}
