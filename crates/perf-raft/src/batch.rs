//! Many proposals in one step of Raft.

use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{RawNode, Storage};
use std::ops::RangeInclusive;

/// Gathers proposals and hands them to Raft as one `MsgPropose`.
///
/// Raft then makes one append message per peer and one write of the log for all of them, where
/// [`RawNode::propose`](raft::RawNode::propose) makes one of each per proposal. Payloads are shared, not copied.
///
/// ```
/// use bytes::Bytes;
/// use perf_raft::batch::ProposalBatch;
///
/// let mut batch = ProposalBatch::new(1024 * 1024);
/// batch.push(Bytes::from_static(b"one")).expect("far from the bound");
/// batch.push(Bytes::from_static(b"two")).expect("far from the bound");
/// assert_eq!((batch.len(), batch.bytes()), (2, 6));
/// // let indexes = batch.propose(&mut raw_node)?;
/// ```
#[derive(Debug)]
pub struct ProposalBatch {
    entries: Vec<Entry>,
    bytes: usize,
    bytes_max: usize,
}

impl ProposalBatch {
    /// An empty batch of up to `bytes_max` bytes of payload; one proposal of any size always fits.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            entries: Vec::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Makes room for so many proposals more, where their number is known beforehand.
    pub fn reserve(&mut self, proposals: usize) {
        self.entries.reserve(proposals);
    }

    /// Adds a proposal.
    ///
    /// # Errors
    /// Gives it back if the batch is full: propose the batch first.
    pub fn push(&mut self, data: Bytes) -> Result<(), Bytes> {
        if !self.entries.is_empty() && self.bytes.saturating_add(data.len()) > self.bytes_max {
            return Err(data);
        }
        self.bytes += data.len();
        self.entries.push(Entry {
            data,
            ..Default::default()
        });
        Ok(())
    }

    /// How many proposals there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of payload.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The message for [`RawNode::step`](raft::RawNode::step), `None` if there is no proposal. The batch is empty afterwards.
    pub fn take_message(&mut self, from: u64) -> Option<Message> {
        if self.entries.is_empty() {
            return None;
        }
        self.bytes = 0;
        let mut message = Message {
            from,
            ..Default::default()
        };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(std::mem::take(&mut self.entries).into());
        Some(message)
    }

    /// Proposes all of it on a leader and returns the indexes the entries got, in the order of [`push`](Self::push);
    /// `None` if there was nothing to propose. The batch is empty afterwards.
    ///
    /// # Errors
    /// [`raft::Error::ProposalDropped`] if the node does not lead, hands its leadership over or is full: no entry was
    /// appended. A follower never forwards a batch: the indexes would be unknown.
    pub fn propose<S: Storage>(
        &mut self,
        node: &mut RawNode<S>,
    ) -> raft::Result<Option<RangeInclusive<u64>>> {
        let count = self.entries.len() as u64;
        let Some(message) = self.take_message(node.raft.id) else {
            return Ok(None);
        };
        if node.raft.state != raft::StateRole::Leader {
            return Err(raft::Error::ProposalDropped);
        }
        let first = node.raft.raft_log.last_index() + 1;
        node.step(message)?;
        Ok(Some(first..=first + count - 1))
    }
}
