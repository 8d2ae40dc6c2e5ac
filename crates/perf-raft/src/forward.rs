//! Relays messages for nodes that the sender does not reach itself.

use crate::codec::{CodecError, FrameHeader};
use crate::inbound::MessageClass;
use crate::transport::{OutboundMessage, SendError, Transport};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Passes encoded frames on, untouched: only the header is read, nothing is decoded, copied or allocated.
///
/// A node that receives a frame for another one (over a link of its own, such as a gateway between sites) asks the forwarder:
/// it hands frames for known receivers to the transport, and tells which are for this node. A frame is never sent back to
/// where it came from.
///
/// ```
/// use perf_raft::ChannelNetwork;
/// use perf_raft::forward::Forwarder;
///
/// let mut forwarder = Forwarder::new(2, ChannelNetwork::new().transport(2));
/// forwarder.route(7, 3); // node 7 is reached by way of node 3
/// ```
#[derive(Debug)]
pub struct Forwarder<T> {
    id: u64,
    transport: T,
    next_hops: BTreeMap<u64, u64>,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Forwarded {
    /// It is for this node: deliver it.
    Here(Bytes),
    /// It went on.
    On {
        /// To this node.
        next_hop: u64,
    },
}

/// Why a frame went nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// It is no frame.
    #[error(transparent)]
    Malformed(#[from] CodecError),
    /// There is no way to its receiver, or only back to where it came from.
    #[error("no route to node {to}: add one by `route`")]
    NoRoute {
        /// The receiver.
        to: u64,
    },
    /// The transport did not take it.
    #[error(transparent)]
    Send(#[from] SendError),
}

impl<T: Transport> Forwarder<T> {
    /// A forwarder on node `id`, without routes.
    #[must_use]
    pub fn new(id: u64, transport: T) -> Self {
        Self {
            id,
            transport,
            next_hops: BTreeMap::new(),
        }
    }

    /// Frames for node `to` go to `next_hop`, which may be `to` itself.
    pub fn route(&mut self, to: u64, next_hop: u64) {
        self.next_hops.insert(to, next_hop);
    }

    /// Sends a frame that came from the peer `via` on its way.
    ///
    /// # Errors
    /// [`ForwardError`]; drop the frame then, Raft sends again what matters.
    pub fn forward(
        &self,
        via: u64,
        class: MessageClass,
        frame: Bytes,
    ) -> Result<Forwarded, ForwardError> {
        let to = FrameHeader::peek(&frame)?.to;
        if to == self.id || to == 0 {
            return Ok(Forwarded::Here(frame));
        }
        let next_hop = self
            .next_hops
            .get(&to)
            .copied()
            .filter(|&next_hop| next_hop != via);
        let next_hop = next_hop.ok_or(ForwardError::NoRoute { to })?;
        self.transport.send(OutboundMessage {
            to: next_hop,
            class,
            frame,
        })?;
        Ok(Forwarded::On { next_hop })
    }
}
