//! Where a node's messages come in.

use super::mailbox::Incoming;
use super::shared::NodeShared;
use super::sleepers::Sleepers;
use crate::GroupId;
use crate::codec::{BEAT_TAG, Body, Frame, FrameHeader, for_each_frame};
use crate::inbound::MessageClass;
use crate::options::RaftOptions;
use crate::transport::DeliverError;
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Takes messages from a transport, for a node of one group or for all groups of a host. A clone is a reference.
#[derive(Clone, Debug)]
pub struct Inbox {
    id: u64,
    to: Receiver,
}

#[derive(Clone, Debug)]
enum Receiver {
    Group(Arc<NodeShared>),
    Groups(Arc<Groups>),
}

/// The groups of a host, by their ids.
#[derive(Debug)]
pub(crate) struct Groups {
    open: RwLock<BTreeMap<GroupId, Arc<NodeShared>>>,
    pub(crate) sleepers: Arc<Sleepers>,
}

impl Groups {
    /// Of node `id` in this run of its host.
    pub(crate) fn new(id: u64, run: u64, options: &RaftOptions) -> Arc<Self> {
        Arc::new_cyclic(|groups| Self {
            open: RwLock::default(),
            sleepers: Arc::new(Sleepers::new(id, run, options, groups)),
        })
    }

    pub(crate) fn insert(&self, group: Arc<NodeShared>) {
        self.open.write().insert(group.mailbox.group, group);
    }

    pub(crate) fn remove(&self, group: GroupId) {
        self.open.write().remove(&group);
    }

    fn get(&self, group: GroupId) -> Option<Arc<NodeShared>> {
        self.open.read().get(&group).cloned()
    }

    /// Ends a group's sleep.
    pub(crate) fn wake(&self, group: GroupId) {
        if let Some(shared) = self.get(group) {
            shared.mailbox.report(|reports| reports.wake = true);
        }
    }
}

impl Inbox {
    pub(crate) fn of_group(shared: &Arc<NodeShared>) -> Self {
        Self {
            id: shared.mailbox.id,
            to: Receiver::Group(Arc::clone(shared)),
        }
    }

    pub(crate) fn of_groups(id: u64, groups: &Arc<Groups>) -> Self {
        Self {
            id,
            to: Receiver::Groups(Arc::clone(groups)),
        }
    }

    /// Finds whom a message is for.
    fn with_group<R>(
        &self,
        to: u64,
        group: GroupId,
        put: impl FnOnce(&NodeShared) -> R,
    ) -> Result<R, DeliverError> {
        let misdirected = DeliverError::Misdirected { to, group: group.0 };
        if to != 0 && to != self.id {
            return Err(misdirected);
        }
        match &self.to {
            Receiver::Group(shared) if shared.mailbox.group == group => Ok(put(shared)),
            Receiver::Group(_) => Err(misdirected),
            Receiver::Groups(groups) => {
                let shared = groups.get(group).ok_or(misdirected)?;
                Ok(put(&shared))
            }
        }
    }

    /// Takes a frame as a peer's [`Transport`](crate::Transport) got it: decodes it here, in the caller's task, and queues it by its
    /// urgency. Never blocks. A frame of a host may hold those of several groups.
    ///
    /// # Errors
    /// [`DeliverError`], the first if there are several; drop the frame then, Raft sends again what matters.
    pub fn deliver(&self, frame: Bytes) -> Result<(), DeliverError> {
        self.deliver_each(frame, |frame| {
            let bytes = frame.len();
            self.take(bytes, Frame::decode_detached(frame)?)
        })
    }

    fn deliver_each(
        &self,
        frame: Bytes,
        deliver: impl Fn(Bytes) -> Result<(), DeliverError>,
    ) -> Result<(), DeliverError> {
        let mut outcome = Ok(());
        for_each_frame(frame, |frame| {
            let delivered = deliver(frame);
            if outcome.is_ok() {
                outcome = delivered;
            }
        })?;
        outcome
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
        self.deliver_each(frame, |frame| {
            if let Receiver::Group(shared) = &self.to {
                return put_encoded(shared, class, frame);
            }
            let (header, tag) = FrameHeader::peek_with_tag(&frame)?;
            if tag == BEAT_TAG {
                return self.deliver(frame);
            }
            self.with_group(header.to, header.group, |shared| {
                put_encoded(shared, class, frame)
            })?
        })
    }

    fn take(&self, bytes: usize, frame: Frame) -> Result<(), DeliverError> {
        let header = frame.header;
        if let Body::Beat(beat) = &frame.body {
            // A node of one group has no use for it.
            if let Receiver::Groups(groups) = &self.to
                && header.to == self.id
            {
                groups.sleepers.heard(&header, beat);
            }
            return Ok(());
        }
        let class = frame.body.class();
        let incoming = Incoming::Frame(Box::new(frame));
        self.with_group(header.to, header.group, |shared| {
            if shared.mailbox.deliver(class, bytes, incoming)? {
                shared.mailbox.notify();
            }
            Ok(())
        })?
    }

    /// The node's id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The group that it is for; `None` if it is for all groups of a host.
    #[must_use]
    pub fn group(&self) -> Option<GroupId> {
        match &self.to {
            Receiver::Group(shared) => Some(shared.mailbox.group),
            Receiver::Groups(_) => None,
        }
    }
}

fn put_encoded(shared: &NodeShared, class: MessageClass, frame: Bytes) -> Result<(), DeliverError> {
    let (bytes, incoming) = (frame.len(), Incoming::Encoded(frame));
    if shared.mailbox.deliver(class, bytes, incoming)? {
        shared.drive_or_notify();
    }
    Ok(())
}
