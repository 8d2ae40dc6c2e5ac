//! `raft::optimized_processing`: Raft messages in batches. Behind it: [`perf_raft::inbound`], [`perf_raft::codec`], [`perf_raft::forward`], [`perf_cache`].
//! A node that runs `RaftNode` needs none of this: its runtime does it.
//!
//! | name | what differs |
//! |---|---|
//! | `queue_message` | the queues are bounded by class: at the bound the message comes back in the error |
//! | `process_next_batch` | takes the most urgent first, and nothing starves |
//! | `MessageBatch::new` | makes a batch; its size is exact and its priority that of its most urgent message |
//! | `ProcessingStats::serialization_reuses` | encoded messages: all go into pooled buffers |
//! | `SerializationBuffer` | holds nothing: each message takes a buffer of the global pool, which comes back with the last clone of its bytes |
//! | `MessageForwarder::new` | takes the transport to forward by; the origin's had none |
//! | `MessageCache` | keyed by content as the origin's, so that it takes a legitimate retransmission for a duplicate. New code: [`perf_raft::dedup::MessageDedup`] |
//!
//! ```
//! # async fn sample() -> Result<(), Box<dyn std::error::Error>> {
//! use perf_kit::compat::raft_processing_optimized::*;
//!
//! let processor = OptimizedRaftProcessor::new();
//! let mut message = Message::default();
//! message.set_msg_type(MessageType::MsgHeartbeat);
//! (message.from, message.to) = (1, 2);
//! processor.queue_message(message).await?;
//! let frames = processor.process_next_batch().await?.expect("one waits");
//! assert_eq!(frames.len(), 1);
//! assert_eq!(processor.get_stats().await.messages_processed, 1);
//! assert!(processor.process_next_batch().await?.is_none());
//!
//! let cache = MessageCache::new(100);
//! assert!(!cache.is_duplicate(&[1; 16]).await);
//! assert!(cache.is_duplicate(&[1; 16]).await);
//! assert_eq!(cache.get_cache_stats(), (1, 1));
//! # Ok(())
//! # }
//! # let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
//! # runtime.block_on(sample()).expect("all is well");
//! ```

use bytes::Bytes;
use perf_raft::codec::{self, CodecError};
use perf_raft::inbound::{InboundLimits, InboundQueues, MessageClass};
use perf_raft::{OutboundMessage, SendError, Transport};
use std::error::Error;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use perf_raft::eraftpb::{Message, MessageType};

/// What a processor did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessingStats {
    /// Messages.
    pub messages_processed: u64,
    /// Bytes that they were encoded to.
    pub bytes_processed: u64,
    /// Batches.
    pub batches_processed: u64,
    /// Messages that went on as they came. A processor forwards none.
    pub zero_copy_forwards: u64,
    /// Messages encoded into a pooled buffer.
    pub serialization_reuses: u64,
}

/// How urgent a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BatchPriority {
    /// Votes and transfers of leadership.
    Election = 0,
    /// What keeps a leader in office.
    Heartbeat = 1,
    /// Entries and their answers.
    Normal = 2,
    /// Snapshots.
    Snapshot = 3,
}

impl BatchPriority {
    /// That of a message.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        match MessageClass::of(message) {
            MessageClass::Election => Self::Election,
            MessageClass::Heartbeat => Self::Heartbeat,
            MessageClass::Append => Self::Normal,
            MessageClass::Snapshot => Self::Snapshot,
        }
    }
}

/// Messages to be encoded together.
#[derive(Clone, Copy, Debug)]
pub struct MessageBatch<'a> {
    /// The messages.
    pub messages: &'a [Message],
    /// The bytes that they take encoded.
    pub total_size: usize,
    /// How urgent the most urgent of them is.
    pub priority: BatchPriority,
    /// When the batch was made.
    pub created_at: Instant,
}

impl<'a> MessageBatch<'a> {
    /// A batch of messages. Linear in their entries.
    #[must_use]
    pub fn new(messages: &'a [Message]) -> Self {
        let priorities = messages.iter().map(BatchPriority::of);
        Self {
            messages,
            total_size: messages.iter().map(codec::encoded_len).sum(),
            priority: priorities.min().unwrap_or(BatchPriority::Normal),
            created_at: Instant::now(),
        }
    }
}

/// Why a message was not processed.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProcessingError {
    /// The queue of its class is full: process a batch, then queue it again.
    QueueFull(Box<Message>),
    /// It cannot be encoded.
    Codec(CodecError),
    /// The transport did not take it.
    Send(SendError),
}

impl fmt::Display for ProcessingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueFull(message) => write!(
                f,
                "the queue for messages like {:?} is full: process a batch, then queue it again",
                message.get_msg_type()
            ),
            Self::Codec(error) => error.fmt(f),
            Self::Send(error) => error.fmt(f),
        }
    }
}

impl Error for ProcessingError {}

impl From<CodecError> for ProcessingError {
    fn from(error: CodecError) -> Self {
        Self::Codec(error)
    }
}

impl From<SendError> for ProcessingError {
    fn from(error: SendError) -> Self {
        Self::Send(error)
    }
}

/// Where messages are encoded: in buffers of the global pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct SerializationBuffer;

impl SerializationBuffer {
    /// Allocates nothing.
    #[must_use]
    pub fn new() -> Self {
        Self
    }

    /// Encodes a message into a pooled buffer of its exact size. Linear in its bytes; allocates nothing in steady state.
    ///
    /// # Errors
    /// [`ProcessingError::Codec`] if it cannot be encoded.
    pub fn serialize(&mut self, message: &Message) -> Result<Bytes, ProcessingError> {
        Ok(codec::encode_pooled(message)?)
    }
}

/// Messages of a batch at most.
const BATCH_MESSAGES_MAX: usize = 64;

/// Queues messages by class and encodes them in batches.
#[derive(Debug)]
pub struct OptimizedRaftProcessor {
    queues: Mutex<InboundQueues<Message>>,
    stats: Mutex<ProcessingStats>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OptimizedRaftProcessor {
    /// Empty queues with the limits of [`InboundLimits::default`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            queues: Mutex::new(InboundQueues::new(InboundLimits::default())),
            stats: Mutex::default(),
        }
    }

    /// Encodes a batch, each message into a pooled buffer of its exact size. Never waits.
    ///
    /// # Errors
    /// [`ProcessingError::Codec`] for the first message that cannot be encoded; none of the batch counts then.
    pub async fn process_message_batch_ref(
        &self,
        batch: &MessageBatch<'_>,
    ) -> Result<Vec<Bytes>, ProcessingError> {
        self.encode(batch.messages)
    }

    fn encode(&self, messages: &[Message]) -> Result<Vec<Bytes>, ProcessingError> {
        let frames = messages.iter().map(codec::encode_pooled);
        let frames = frames.collect::<Result<Vec<Bytes>, _>>()?;
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        let mut stats = lock(&self.stats);
        stats.messages_processed += frames.len() as u64;
        stats.serialization_reuses += frames.len() as u64;
        stats.bytes_processed += bytes as u64;
        stats.batches_processed += 1;
        Ok(frames)
    }

    /// Queues a message. Never waits.
    ///
    /// # Errors
    /// [`ProcessingError::QueueFull`] with the message.
    pub async fn queue_message(&self, message: Message) -> Result<(), ProcessingError> {
        let (class, bytes) = (MessageClass::of(&message), codec::encoded_len(&message));
        let queued = lock(&self.queues).push(class, bytes, message);
        queued.map_err(|message| ProcessingError::QueueFull(Box::new(message)))
    }

    /// Encodes up to 64 queued messages, most urgent first; `None` if none waits.
    ///
    /// # Errors
    /// As [`process_message_batch_ref`](Self::process_message_batch_ref). The messages of the batch are gone: Raft sends again what matters.
    pub async fn process_next_batch(&self) -> Result<Option<Vec<Bytes>>, ProcessingError> {
        let messages: Vec<Message> = {
            let mut queues = lock(&self.queues);
            std::iter::from_fn(|| queues.pop())
                .take(BATCH_MESSAGES_MAX)
                .collect()
        };
        if messages.is_empty() {
            return Ok(None);
        }
        self.encode(&messages).map(Some)
    }

    /// What was done since the start or the last reset.
    pub async fn get_stats(&self) -> ProcessingStats {
        *lock(&self.stats)
    }

    /// Sets all numbers to zero.
    pub async fn reset_stats(&self) {
        *lock(&self.stats) = ProcessingStats::default();
    }
}

impl Default for OptimizedRaftProcessor {
    fn default() -> Self {
        Self::new()
    }
}

/// Sends encoded messages on as they are.
#[derive(Debug)]
pub struct MessageForwarder<T> {
    transport: T,
}

impl<T: Transport> MessageForwarder<T> {
    /// A forwarder by this transport.
    #[must_use]
    pub fn new(transport: T) -> Self {
        Self { transport }
    }

    /// Sends a message to several nodes, in the class of entries. It is copied once into a pooled buffer, which all targets share. Never waits.
    ///
    /// # Errors
    /// [`ProcessingError::Send`] of the first target that the transport refused; the others were tried all the same.
    pub async fn forward_message_zero_copy(
        &self,
        serialized_message: &[u8],
        target_nodes: &[u64],
    ) -> Result<(), ProcessingError> {
        let frame = perf_pool::buffer_pool().copy_bytes(serialized_message);
        let mut first_error = Ok(());
        for &to in target_nodes {
            let sent = self.transport.send(OutboundMessage {
                to,
                class: MessageClass::Append,
                frame: frame.clone(),
            });
            first_error = first_error.and(sent);
        }
        Ok(first_error?)
    }

    /// Whether a message of this type may go from node to node as it is: all but those that a node sends itself.
    #[must_use]
    pub fn can_forward_directly(message_type: MessageType) -> bool {
        !matches!(
            message_type,
            MessageType::MsgHup
                | MessageType::MsgBeat
                | MessageType::MsgUnreachable
                | MessageType::MsgSnapStatus
                | MessageType::MsgCheckQuorum
        )
    }
}

/// Remembers what was seen, by a hash of the content.
pub struct MessageCache {
    seen: perf_cache::TtlCache<[u8; 16], ()>,
}

/// How long a message is remembered.
const REMEMBERED: Duration = Duration::from_secs(300);

impl MessageCache {
    /// Remembers up to `capacity` messages, each for five minutes. Zero counts as one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let builder = perf_cache::TtlCache::builder(capacity.max(1) as u64).ttl(REMEMBERED);
        let seen = builder
            .build()
            .expect("capacity and time to live are above zero");
        Self { seen }
    }

    /// Whether a message was seen before. Of those who ask at the same time, one hears `false`. Never waits.
    pub async fn is_duplicate(&self, message_hash: &[u8; 16]) -> bool {
        let mut is_new = false;
        self.seen.get_or_compute(message_hash, || is_new = true);
        !is_new
    }

    /// Duplicates, and messages that were new.
    #[must_use]
    pub fn get_cache_stats(&self) -> (u64, u64) {
        let stats = self.seen.stats();
        (stats.hits, stats.misses)
    }
}

impl fmt::Debug for MessageCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageCache")
            .field("stats", &self.get_cache_stats())
            .finish_non_exhaustive()
    }
}
