//! How messages get from node to node.

use crate::codec::{CodecError, Frame};
use crate::inbound::MessageClass;
use crate::shell::Inbox;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// An encoded message for a peer.
#[derive(Clone, Debug)]
pub struct OutboundMessage {
    /// The receiver's id.
    pub to: u64,
    /// How urgent it is: election and heartbeat messages must not wait behind the others.
    pub class: MessageClass,
    /// The frame. Give it to the receiver's [`Inbox`] as it is. A host's may hold those of several groups: see
    /// [`for_each_frame`](crate::codec::for_each_frame).
    pub frame: Bytes,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The peer's queue is full. Raft sends again what matters.
    #[error("the peer's queue is full")]
    Full,
    /// There is no way to the peer now.
    #[error("the peer is not reachable")]
    Unreachable,
    /// The peer takes no frame of this length, for as long as it runs. Raft sends less at once, and what is too long in parts. Below some 600 bytes
    /// it cannot ([`Trouble::FrameTooLong`](crate::Trouble::FrameTooLong)).
    #[error("the peer takes frames of {limit} bytes at most")]
    TooLarge {
        /// The longest frame that it takes, in bytes.
        limit: usize,
    },
}

/// Why a message that came in was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeliverError {
    /// Too many messages of its class wait. Drop it: Raft sends again what matters.
    #[error("too many messages wait: this one is dropped")]
    Full,
    /// It is no frame. Drop it and the connection.
    #[error(transparent)]
    Malformed(#[from] CodecError),
    /// It is for another node or group.
    #[error("the message is for node {to} of group {group}")]
    Misdirected {
        /// The node it is for.
        to: u64,
        /// The group it is for.
        group: u64,
    },
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

/// How a node's messages get to its peers. Losing, repeating and reordering messages is allowed, inventing them is not.
///
/// Messages of the same class to the same peer should keep their order: Raft stays correct without, and slows down.
///
/// A node uses it on the runtime on which it was started, in its own task or in that of a caller that is alone, never in two at a time. A
/// [`RaftHost`](crate::RaftHost) uses it for all its groups, from several tasks at a time.
pub trait Transport: Send + Sync + 'static {
    /// Called once when the node or the host starts, with the place for messages that come in.
    ///
    /// # Errors
    /// Whatever hinders the transport; the node does not start then.
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// Takes a message, or refuses it at once. Never blocks.
    ///
    /// # Errors
    /// [`SendError`], which tells Raft to slow down for this peer.
    fn send(&self, message: OutboundMessage) -> Result<(), SendError>;

    /// The longest frame it takes. A node whose options lead to longer ones does not start.
    fn frame_bytes_max(&self) -> usize {
        usize::MAX
    }

    /// Whether a frame may leave out its receiver, so that equal appends for several peers are encoded once. A transport
    /// whose frames are relayed by [`Forwarder`](crate::forward::Forwarder) says no.
    fn shares_frames(&self) -> bool {
        true
    }

    /// Called once when the node stops, or the host with its last group, or their runtime ends.
    fn stop(&self) {}
}

/// Connects the nodes of one process: for tests, and for groups that live in one process.
///
/// Messages are encoded and decoded as on a real network. They are handed to the receiver's queue by the sender's
/// task, so there is no task, thread or queue in between.
///
/// ```
/// let network = perf_raft::ChannelNetwork::new();
/// let transport = network.transport(1); // for the builder of node 1
/// # let _ = transport;
/// ```
#[derive(Clone, Default)]
pub struct ChannelNetwork {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    inboxes: Mutex<Routes>,
}

/// Copied at each change, so that senders hold the lock for a reference count only.
type Routes = Arc<BTreeMap<u64, Inbox>>;

impl ChannelNetwork {
    /// A network without nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The transport of node `id`. The node is reachable from its start to its stop.
    #[must_use]
    pub fn transport(&self, id: u64) -> ChannelTransport {
        ChannelTransport {
            id,
            network: self.clone(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<u64, Inbox>)) {
        let mut routes = self.shared.inboxes.lock();
        change(Arc::make_mut(&mut routes));
    }
}

impl fmt::Debug for ChannelNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<u64> = self.shared.inboxes.lock().keys().copied().collect();
        f.debug_struct("ChannelNetwork")
            .field("nodes", &nodes)
            .finish()
    }
}

/// One node's end of a [`ChannelNetwork`].
#[derive(Clone, Debug)]
pub struct ChannelTransport {
    id: u64,
    network: ChannelNetwork,
}

impl Transport for ChannelTransport {
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.network.change(|routes| {
            routes.insert(self.id, inbox);
        });
        Ok(())
    }

    fn send(&self, message: OutboundMessage) -> Result<(), SendError> {
        let routes = Arc::clone(&self.network.shared.inboxes.lock());
        let inbox = routes.get(&message.to).ok_or(SendError::Unreachable)?;
        match inbox.deliver_encoded(message.class, message.frame) {
            Ok(()) => Ok(()),
            Err(DeliverError::Full) => Err(SendError::Full),
            Err(_) => Err(SendError::Unreachable),
        }
    }

    fn stop(&self) {
        self.network.change(|routes| {
            routes.remove(&self.id);
        });
    }
}

/// Encodes frames in the order in which they were made, and empties the list. Equal appends to several peers are encoded once if
/// `share` says so; they then name no receiver.
///
/// `send` gets the receiver, the class and the bytes. What it does not take is given to `refused`, with the receiver.
pub fn encode_frames(
    frames: &mut Vec<Frame>,
    share: bool,
    mut send: impl FnMut(OutboundMessage) -> Result<(), SendError>,
    mut refused: impl FnMut(u64, SendError),
) {
    use crate::codec::Body;
    let mut shared: Option<(Bytes, usize)> = None;
    for place in 0..frames.len() {
        let (before, rest) = frames.split_at_mut(place);
        let Some(frame) = rest.first_mut() else {
            break;
        };
        let to = frame.header.to;
        let class = frame.body.class();
        let same = shared
            .as_ref()
            .filter(|(_, other)| {
                before
                    .get(*other)
                    .is_some_and(|other| is_same_append(other, frame))
            })
            .map(|(bytes, _)| bytes.clone());
        let bytes = match same {
            Some(bytes) => Some(bytes),
            None => {
                let shareable = share
                    && matches!(&frame.body, Body::Raft(message) if !message.entries.is_empty());
                if shareable {
                    frame.header.to = 0;
                }
                let bytes = frame.encode_pooled().ok();
                if shareable {
                    shared = bytes.clone().map(|bytes| (bytes, place));
                }
                bytes
            }
        };
        let sent = match bytes {
            Some(frame) => send(OutboundMessage { to, class, frame }),
            None => Err(SendError::Unreachable),
        };
        if let Err(error) = sent {
            refused(to, error);
        }
    }
    frames.clear();
}

/// Whether two appends of one leader differ in their receiver only. Entries of one log are the same if their places are.
fn is_same_append(one: &Frame, other: &Frame) -> bool {
    use crate::codec::Body;
    let (Body::Raft(one), Body::Raft(other)) = (&one.body, &other.body) else {
        return false;
    };
    one.msg_type == other.msg_type
        && one.get_msg_type() == raft::eraftpb::MessageType::MsgAppend
        && one.term == other.term
        && one.index == other.index
        && one.log_term == other.log_term
        && one.commit == other.commit
        && one.entries.len() == other.entries.len()
}
