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
    /// The longest frame that could not be made shorter, 0 if there was none.
    stuck_bytes: usize,
}

impl PeerLimits {
    /// The peer takes no frame above `frame_bytes`.
    pub(super) fn lower(&mut self, peer: u64, session: u64, frame_bytes: usize) {
        self.peers.retain(|limit| limit.peer != peer);
        self.peers.push(Limit {
            peer,
            session,
            frame_bytes,
            stuck_bytes: 0,
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

    /// A frame of `bytes` for the peer cannot be made shorter.
    pub(super) fn stuck(&mut self, peer: u64, bytes: usize) {
        for limit in self.peers.iter_mut().filter(|limit| limit.peer == peer) {
            limit.stuck_bytes = limit.stuck_bytes.max(bytes);
        }
    }

    /// Peers that need a longer frame than they take, with the frame's and their limit's bytes.
    pub(super) fn all_stuck(&self) -> impl Iterator<Item = (u64, usize, usize)> {
        let stuck = self.peers.iter().filter(|limit| limit.stuck_bytes > 0);
        stuck.map(|limit| (limit.peer, limit.stuck_bytes, limit.frame_bytes))
    }
}
