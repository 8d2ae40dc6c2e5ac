//! Messages of one sender, put together before they are queued.

use crate::error::TransportError;
use crate::payload::Payload;
use crate::priority::Priority;
use crate::proto::BatchBuffer;
use crate::remote::RemoteMethod;
use std::fmt;

/// What of a batch goes to the queue.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) buffer: BatchBuffer,
    pub(crate) priority: Option<Priority>,
}

/// Messages without a reply to a method of a peer, which one sender has at once: logs, samples, events.
///
/// They are put together in the sender's own memory, some 32 KiB at a time, and queued together: a lock, a look at the
/// peer and a wake for some hundred messages instead of for each. Those of up to 1 KiB share frames, with two bytes
/// each in the place of a header. They arrive as others do, one by one, in the order in which they were pushed, and the
/// receiver's [`Origin`](crate::Origin) counts each.
///
/// What was pushed is not sent before [`flush`](Self::flush), or a later [`feed`](Self::feed) that finds no room: it
/// may stay behind what is sent otherwise. A batch that is dropped sends nothing of what is in it.
///
/// ```no_run
/// # async fn f(transport: &perf_transport::Transport, lines: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
/// let mut batch = transport.method(2, "audit", "log")?.batch();
/// for line in lines {
///     batch.feed(line.as_bytes()).await?;
/// }
/// batch.flush().await?;
/// # Ok(())
/// # }
/// ```
///
/// Memory: 40 KiB, or what a longer message takes; outside the budget of the peer's queue until it is queued.
pub struct Batch {
    method: RemoteMethod,
    outgoing: Outgoing,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("method", &self.method)
            .field("len", &self.len())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

impl Batch {
    pub(crate) fn new(method: RemoteMethod) -> Self {
        let priority = method.priority.unwrap_or(method.route.name.priority);
        let limits = method.transport.queue_limits(priority);
        let checksum = method.transport.has_checksums();
        Self {
            outgoing: Outgoing {
                buffer: BatchBuffer::new(method.route.number, limits, checksum),
                priority: method.priority,
            },
            method,
        }
    }

    /// How many messages are in it, not yet queued.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.outgoing.buffer.messages()
    }

    /// Whether there is none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their bytes as they will be written, headers included.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.outgoing.buffer.bytes()
    }

    /// Drops the messages in it.
    pub fn clear(&mut self) {
        self.outgoing.buffer.clear();
    }

    /// Adds a message. Some 50 instructions for a small one; [`feed`](Self::feed) is the same with a flush where it is
    /// needed.
    ///
    /// # Errors
    /// [`QueueFull`](TransportError::QueueFull) if the batch has no room for it: [`flush`](Self::flush) first.
    /// [`TooLarge`](TransportError::TooLarge) if the peer takes no message of this length.
    #[inline]
    pub fn push<'a>(&mut self, payload: impl Into<Payload<'a>>) -> Result<(), TransportError> {
        let payload = payload.into();
        if self.try_push(&payload)? {
            return Ok(());
        }
        let peer = self.method.peer();
        Err(TransportError::QueueFull { peer })
    }

    /// Adds a message. Where there is no room for it, queues those before it first, and waits while the queue is full.
    ///
    /// Dropping the future before it is ready adds nothing; what was there before is still there, or was queued.
    ///
    /// # Errors
    /// [`TooLarge`](TransportError::TooLarge) of this message, or those of [`flush`](Self::flush). The message was not
    /// added.
    pub async fn feed(&mut self, payload: impl Into<Payload<'_>>) -> Result<(), TransportError> {
        let payload = payload.into();
        while !self.try_push(&payload)? {
            self.flush().await?;
        }
        Ok(())
    }

    /// Queues what is in it: all or none. Waits while the queue is full, in turn with others who wait for the same
    /// queue.
    ///
    /// Dropping the future before it is ready queues nothing; the messages are still there.
    ///
    /// # Errors
    /// As [`send_wait`](crate::Transport::send_wait). The messages are still there, to be tried again or
    /// [dropped](Self::clear).
    pub async fn flush(&mut self) -> Result<(), TransportError> {
        if self.is_empty() {
            return Ok(());
        }
        let RemoteMethod {
            transport, route, ..
        } = &self.method;
        transport.send_batch_along(route, &mut self.outgoing).await
    }

    /// `false` if there is no room for it beside what is there.
    #[inline]
    fn try_push(&mut self, payload: &Payload<'_>) -> Result<bool, TransportError> {
        let bytes = payload.len();
        // Every peer takes small ones.
        if bytes <= BatchBuffer::SMALL_BYTES_MAX {
            return Ok(self.outgoing.buffer.push(payload));
        }
        self.method.check_length(bytes)?;
        Ok(self.outgoing.buffer.push(payload))
    }
}
