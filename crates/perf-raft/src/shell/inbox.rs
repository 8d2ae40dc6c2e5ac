//! Where a node's messages come in.

use super::mailbox::{Incoming, Mailbox};
use super::shared::NodeShared;
use crate::GroupId;
use crate::codec::Frame;
use crate::inbound::MessageClass;
use crate::transport::DeliverError;
use bytes::Bytes;
use std::sync::Arc;

/// Takes a node's messages from its transport. A clone is a reference.
#[derive(Clone, Debug)]
pub struct Inbox {
    pub(crate) shared: Arc<NodeShared>,
}

impl Inbox {
    fn mailbox(&self) -> &Mailbox {
        &self.shared.mailbox
    }

    /// Takes a frame as a peer's [`Transport`](crate::Transport) got it: decodes it here, in the caller's task, and queues it by its
    /// urgency. Never blocks.
    ///
    /// # Errors
    /// [`DeliverError`]; drop the frame then, Raft sends again what matters.
    pub fn deliver(&self, frame: Bytes) -> Result<(), DeliverError> {
        let bytes = frame.len();
        self.take(bytes, Frame::decode_detached(frame)?)
    }

    /// Takes a decoded frame.
    ///
    /// # Errors
    /// As [`deliver`](Self::deliver).
    pub fn deliver_frame(&self, mut frame: Frame) -> Result<(), DeliverError> {
        frame.detach_payloads();
        self.take(frame.encoded_len(), frame)
    }

    /// Takes a frame that was encoded in this process for this node. The node's driver decodes it. A caller that drives the sender drives this node
    /// too.
    pub(crate) fn deliver_encoded(
        &self,
        class: MessageClass,
        frame: Bytes,
    ) -> Result<(), DeliverError> {
        let (bytes, incoming) = (frame.len(), Incoming::Encoded(frame));
        if self.mailbox().deliver(class, bytes, incoming)? {
            self.shared.drive_or_notify();
        }
        Ok(())
    }

    fn take(&self, bytes: usize, frame: Frame) -> Result<(), DeliverError> {
        let header = frame.header;
        if (header.to != 0 && header.to != self.mailbox().id)
            || header.group != self.mailbox().group
        {
            return Err(DeliverError::Misdirected {
                to: header.to,
                group: header.group.0,
            });
        }
        let class = frame.body.class();
        let incoming = Incoming::Frame(Box::new(frame));
        if self.mailbox().deliver(class, bytes, incoming)? {
            self.mailbox().notify();
        }
        Ok(())
    }

    /// The node's id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.mailbox().id
    }

    /// The node's group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.mailbox().group
    }
}
