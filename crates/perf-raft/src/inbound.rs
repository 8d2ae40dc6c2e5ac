//! Messages from peers that wait for Raft, most urgent first.

use raft::eraftpb::{Message, MessageType};
use std::collections::VecDeque;

/// How urgent a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageClass {
    /// Votes and transfers of leadership.
    Election,
    /// Heartbeats, their answers and confirmations of reads: what keeps a leader in office.
    Heartbeat,
    /// Entries and their answers.
    Append,
    /// Snapshots.
    Snapshot,
}

/// All classes, most urgent first.
pub const CLASSES: [MessageClass; 4] = [
    MessageClass::Election,
    MessageClass::Heartbeat,
    MessageClass::Append,
    MessageClass::Snapshot,
];

impl MessageClass {
    /// The class of a message.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        use MessageType as T;
        match message.get_msg_type() {
            T::MsgRequestVote
            | T::MsgRequestVoteResponse
            | T::MsgRequestPreVote
            | T::MsgRequestPreVoteResponse
            | T::MsgTimeoutNow
            | T::MsgTransferLeader => Self::Election,
            T::MsgHeartbeat | T::MsgHeartbeatResponse | T::MsgReadIndex | T::MsgReadIndexResp => {
                Self::Heartbeat
            }
            T::MsgSnapshot => Self::Snapshot,
            _ => Self::Append,
        }
    }
}

/// Bounds of [`InboundQueues`], for each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundLimits {
    /// Messages.
    pub messages_max: usize,
    /// Bytes, as given to [`push`](InboundQueues::push). One message is always taken.
    pub bytes_max: usize,
    /// After how many more urgent messages the first of a class has its turn all the same.
    pub passed_over_max: u32,
}

impl Default for InboundLimits {
    fn default() -> Self {
        Self {
            messages_max: 4096,
            bytes_max: 64 * 1024 * 1024,
            passed_over_max: 64,
        }
    }
}

/// What the queues hold must show the message within, if there is one to merge.
pub trait Queued {
    /// The message, unless this is something else.
    fn raft_message_mut(&mut self) -> Option<&mut Message>;
}

impl Queued for Message {
    fn raft_message_mut(&mut self) -> Option<&mut Message> {
        Some(self)
    }
}

/// Queues in front of a Raft node: election before heartbeat before append before snapshot.
///
/// - A class is first in, first out, so a peer's appends are never reordered.
/// - An append without entries that only tells a newer commit index is merged into the append before it, if that is
///   from the same peer and term and ends where it starts.
/// - Nothing starves: after [`passed_over_max`](InboundLimits::passed_over_max) messages of other classes a waiting class has a turn.
/// - Each class has bounds of its own, so a flood of appends cannot keep a heartbeat out. What does not fit is given back; Raft
///   sends again what matters.
///
/// Push and pop cost a few nanoseconds and allocate only to grow.
///
/// ```
/// use perf_raft::inbound::{InboundLimits, InboundQueues, MessageClass};
/// use raft::eraftpb::{Message, MessageType};
///
/// let mut queues = InboundQueues::new(InboundLimits::default());
/// for kind in [MessageType::MsgAppend, MessageType::MsgHeartbeat] {
///     let mut message = Message::default();
///     message.set_msg_type(kind);
///     queues.push(MessageClass::of(&message), 0, message).expect("far from the bound");
/// }
/// let first = queues.pop().expect("there are two");
/// assert_eq!(first.get_msg_type(), MessageType::MsgHeartbeat);
/// ```
#[derive(Debug)]
pub struct InboundQueues<M> {
    classes: [Class<M>; 4],
    limits: InboundLimits,
    merged: u64,
}

#[derive(Debug)]
struct Class<M> {
    waiting: VecDeque<(usize, M)>,
    bytes: usize,
    passed_over: u32,
}

impl<M> Default for Class<M> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            passed_over: 0,
        }
    }
}

impl<M: Queued> InboundQueues<M> {
    /// Empty queues.
    #[must_use]
    pub fn new(limits: InboundLimits) -> Self {
        Self {
            classes: Default::default(),
            limits,
            merged: 0,
        }
    }

    /// Puts a message of `bytes` bytes into the queue of its class.
    ///
    /// # Errors
    /// Gives the message back if its class is full.
    pub fn push(&mut self, class: MessageClass, bytes: usize, mut message: M) -> Result<(), M> {
        let queue = &mut self.classes[class as usize];
        let full = queue.waiting.len() >= self.limits.messages_max
            || (queue.bytes.saturating_add(bytes) > self.limits.bytes_max
                && !queue.waiting.is_empty());
        if class == MessageClass::Append
            && let Some(newer) = message.raft_message_mut()
            && merge(&mut queue.waiting, newer)
        {
            self.merged += 1;
            return Ok(());
        }
        if full {
            return Err(message);
        }
        queue.bytes += bytes;
        queue.waiting.push_back((bytes, message));
        Ok(())
    }

    /// The next message.
    pub fn pop(&mut self) -> Option<M> {
        let waiting = |class: &Class<M>| !class.waiting.is_empty();
        let aged = self
            .classes
            .iter()
            .position(|class| waiting(class) && class.passed_over >= self.limits.passed_over_max);
        let place = aged.or_else(|| self.classes.iter().position(waiting))?;
        for (other, class) in self.classes.iter_mut().enumerate() {
            if other == place || class.waiting.is_empty() {
                class.passed_over = 0;
            } else {
                class.passed_over = class.passed_over.saturating_add(1);
            }
        }
        let class = &mut self.classes[place];
        let (bytes, message) = class.waiting.pop_front()?;
        class.bytes -= bytes;
        Some(message)
    }

    /// Gives memory back that no message takes.
    pub fn shrink_to_fit(&mut self) {
        for class in &mut self.classes {
            class.waiting.shrink_to_fit();
        }
    }

    /// How many messages of a class wait.
    #[must_use]
    pub fn len(&self, class: MessageClass) -> usize {
        self.classes[class as usize].waiting.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classes.iter().all(|class| class.waiting.is_empty())
    }

    /// How many appends were merged into others.
    #[must_use]
    pub fn merged(&self) -> u64 {
        self.merged
    }
}

/// Merges an append that only tells the commit index into the last one, if both say the same of the log.
fn merge<M: Queued>(waiting: &mut VecDeque<(usize, M)>, newer: &Message) -> bool {
    if newer.get_msg_type() != MessageType::MsgAppend || !newer.entries.is_empty() {
        return false;
    }
    let Some(older) = waiting
        .back_mut()
        .and_then(|(_, last)| last.raft_message_mut())
    else {
        return false;
    };
    let end = older.index.checked_add(older.entries.len() as u64);
    let end_term = older
        .entries
        .last()
        .map_or(older.log_term, |entry| entry.term);
    let same = older.get_msg_type() == MessageType::MsgAppend
        && older.from == newer.from
        && older.to == newer.to
        && older.term == newer.term
        && end == Some(newer.index)
        && end_term == newer.log_term;
    if same {
        older.commit = older.commit.max(newer.commit);
    }
    same
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use raft::eraftpb::Entry;

    fn message(kind: MessageType, from: u64, index: u64) -> Message {
        let mut message = Message {
            from,
            index,
            ..Default::default()
        };
        message.set_msg_type(kind);
        message
    }

    fn append(from: u64, index: u64, entries: u64, commit: u64) -> Message {
        let mut message = message(MessageType::MsgAppend, from, index);
        message.commit = commit;
        let entries: Vec<Entry> = (1..=entries)
            .map(|place| Entry {
                index: index + place,
                ..Default::default()
            })
            .collect();
        message.set_entries(entries.into());
        message
    }

    #[test]
    fn commit_only_appends_are_merged_and_others_are_not() {
        let mut queues = InboundQueues::new(InboundLimits::default());
        let mut push = |message| queues.push(MessageClass::Append, 1, message).expect("room");
        push(append(1, 4, 2, 3));
        push(append(1, 6, 0, 5)); // merged
        push(append(2, 6, 0, 6)); // another peer
        push(append(1, 7, 0, 7)); // a gap
        assert_eq!(queues.merged(), 1);
        assert_eq!(queues.len(MessageClass::Append), 3);
        assert_eq!(queues.pop().expect("first").commit, 5);
    }

    #[test]
    fn a_full_class_keeps_no_other_out() {
        let limits = InboundLimits {
            messages_max: 2,
            ..Default::default()
        };
        let mut queues = InboundQueues::new(limits);
        let results = [1, 2, 3].map(|index| {
            queues
                .push(MessageClass::Append, 0, append(1, 10 * index, 1, 0))
                .is_ok()
        });
        assert_eq!(results, [true, true, false]);
        assert!(
            queues
                .push(
                    MessageClass::Heartbeat,
                    0,
                    message(MessageType::MsgHeartbeat, 1, 0)
                )
                .is_ok()
        );
    }

    #[test]
    fn snapshots_have_a_turn_under_a_flood_of_heartbeats() {
        let mut queues = InboundQueues::new(InboundLimits::default());
        queues
            .push(
                MessageClass::Snapshot,
                0,
                message(MessageType::MsgSnapshot, 1, 0),
            )
            .expect("room");
        let mut before = 0;
        loop {
            queues
                .push(
                    MessageClass::Heartbeat,
                    0,
                    message(MessageType::MsgHeartbeat, 1, 0),
                )
                .expect("room");
            if queues.pop().expect("not empty").get_msg_type() == MessageType::MsgSnapshot {
                break;
            }
            before += 1;
        }
        assert_eq!(before, 64);
    }

    proptest! {
        #[test]
        fn each_peers_stream_keeps_its_order(kinds in prop::collection::vec((0_usize..4, 1_u64..4), 1..200)) {
            let mut queues = InboundQueues::new(InboundLimits { passed_over_max: 3, ..Default::default() });
            let mut popped: Vec<(usize, u64, u64)> = Vec::new();
            for (number, (class, from)) in kinds.iter().enumerate() {
                let mut message = append(*from, number as u64 * 10, 1, 0);
                message.commit = number as u64;
                queues.push(CLASSES[*class], 0, message).expect("room");
                if number % 3 == 2 && let Some(message) = queues.pop() {
                    popped.push((kinds[message.commit as usize].0, message.from, message.commit));
                }
            }
            while let Some(message) = queues.pop() {
                popped.push((kinds[message.commit as usize].0, message.from, message.commit));
            }
            prop_assert_eq!(popped.len(), kinds.len());
            for class in 0..4 {
                for from in 1..4 {
                    let stream: Vec<u64> = popped.iter().filter(|(c, f, _)| (*c, *f) == (class, from)).map(|item| item.2).collect();
                    prop_assert!(stream.is_sorted());
                }
            }
        }
    }
}
