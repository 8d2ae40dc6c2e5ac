//! `transport::optimized_routing`: messages by reference over pooled connections. Behind it: [`perf_transport::Transport`].
//!
//! | name | what differs |
//! |---|---|
//! | `Endpoint` | is a [`Transport`], made by its builder with security and a router |
//! | `NodeAddr` | is text, `host:port` |
//! | `BlixardResult` | is a `Result` with [`TransportError`] |
//! | `send_message_optimized`, `send_message_ref` | await the reply; the origin's did not always |
//! | `route_message` | `Ok` says that the message is queued, and never that it arrived |
//! | `request_id` | the last eight bytes are sent as its number |
//! | `MessageBufferPool::return_buffer` | nothing to do: a buffer's memory is kept by its allocator. New code takes [`perf_pool::BytesGuard`]s |
//! | `cleanup_stale_connections` | is not here: the transport closes idle connections by itself after `Config::idle_timeout` |
//!
//! ```
//! use perf_kit::compat::transport_routing_optimized::{MessageEnvelope, MessageEnvelopeOwned, MessagePriority};
//!
//! let request_id = [7; 16];
//! let envelope = MessageEnvelope {
//!     target: 2,
//!     service: "raft",
//!     method: "append",
//!     payload: b"entries",
//!     priority: MessagePriority::from_service_method("raft", "append"),
//!     request_id: &request_id,
//! };
//! assert_eq!(envelope.priority, MessagePriority::Critical);
//! let owned = MessageEnvelopeOwned::from(&envelope);
//! assert_eq!((owned.target, &owned.payload[..]), (2, &b"entries"[..]));
//! ```

use bytes::{Bytes, BytesMut};
use perf_transport::{Envelope, Transport, TransportError};
use std::sync::Arc;

pub use perf_transport::Priority as MessagePriority;

/// A message that borrows everything.
#[derive(Clone, Copy, Debug)]
pub struct MessageEnvelope<'a> {
    /// The node it is for.
    pub target: u64,
    /// The service there, at most 128 bytes.
    pub service: &'a str,
    /// Its method, at most 128 bytes.
    pub method: &'a str,
    /// The bytes.
    pub payload: &'a [u8],
    /// How urgent it is.
    pub priority: MessagePriority,
    /// The sender's own number.
    pub request_id: &'a [u8; 16],
}

impl<'a> From<&MessageEnvelope<'a>> for Envelope<'a> {
    fn from(envelope: &MessageEnvelope<'a>) -> Self {
        let [.., a, b, c, d, e, f, g, h] = *envelope.request_id;
        Envelope::new(
            envelope.target,
            envelope.service,
            envelope.method,
            envelope.payload,
        )
        .with_priority(envelope.priority)
        .with_request_id(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// A message that owns everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageEnvelopeOwned {
    /// The node it is for.
    pub target: u64,
    /// The service there.
    pub service: String,
    /// Its method.
    pub method: String,
    /// The bytes.
    pub payload: Bytes,
    /// How urgent it is.
    pub priority: MessagePriority,
    /// The sender's own number.
    pub request_id: [u8; 16],
}

impl From<&MessageEnvelope<'_>> for MessageEnvelopeOwned {
    fn from(envelope: &MessageEnvelope<'_>) -> Self {
        Self {
            target: envelope.target,
            service: envelope.service.to_owned(),
            method: envelope.method.to_owned(),
            payload: perf_pool::buffer_pool().copy_bytes(envelope.payload),
            priority: envelope.priority,
            request_id: *envelope.request_id,
        }
    }
}

/// Buffers for messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageBufferPool;

impl MessageBufferPool {
    /// A pool.
    #[must_use]
    pub fn new() -> Self {
        Self
    }

    /// An empty buffer with room for `size_hint` bytes. Never waits.
    pub async fn get_buffer(&self, size_hint: usize) -> BytesMut {
        BytesMut::with_capacity(size_hint)
    }

    /// Frees a buffer.
    pub fn return_buffer(&self, buffer: BytesMut) {
        drop(buffer);
    }
}

/// The connections of a node.
#[derive(Clone)]
pub struct OptimizedConnectionPool {
    transport: Transport,
}

/// The connections to one peer.
#[derive(Clone)]
pub struct IrohConnection {
    transport: Transport,
    target: u64,
}

impl IrohConnection {
    /// Sends a request to this peer, whatever the envelope's target is, and awaits its reply.
    ///
    /// # Errors
    /// [`TransportError`], which knows whether the request was sent.
    pub async fn send_message_ref(
        &self,
        envelope: &MessageEnvelope<'_>,
    ) -> Result<Bytes, TransportError> {
        let mut envelope = Envelope::from(envelope);
        envelope.target = self.target;
        self.transport.call_wait(envelope).await
    }
}

impl OptimizedConnectionPool {
    /// The connections of `endpoint`.
    #[must_use]
    pub fn new(endpoint: Transport) -> Self {
        Self {
            transport: endpoint,
        }
    }

    /// The connections to a peer, which is made known by its address. The first message dials.
    ///
    /// # Errors
    /// None today.
    pub async fn get_connection(
        &self,
        target: u64,
        node_addr: impl Into<String>,
    ) -> Result<Arc<IrohConnection>, TransportError> {
        self.transport.add_peer(target, node_addr);
        Ok(Arc::new(IrohConnection {
            transport: self.transport.clone(),
            target,
        }))
    }

    /// Sends a request and awaits its reply.
    ///
    /// # Errors
    /// [`TransportError`], which knows whether the request was sent.
    pub async fn send_message_optimized(
        &self,
        envelope: &MessageEnvelope<'_>,
        node_addr: impl Into<String>,
    ) -> Result<Bytes, TransportError> {
        let connection = self.get_connection(envelope.target, node_addr).await?;
        connection.send_message_ref(envelope).await
    }
}

/// Messages without replies.
#[derive(Clone)]
pub struct OptimizedMessageRouter {
    connections: OptimizedConnectionPool,
}

impl OptimizedMessageRouter {
    /// A router over the connections of `endpoint`.
    #[must_use]
    pub fn new(endpoint: Transport) -> Self {
        Self {
            connections: OptimizedConnectionPool::new(endpoint),
        }
    }

    /// Queues a message; waits for room if the queue is full.
    ///
    /// # Errors
    /// [`TransportError`] if it could not be queued.
    pub async fn route_message(
        &self,
        envelope: &MessageEnvelope<'_>,
        node_addr: impl Into<String>,
    ) -> Result<(), TransportError> {
        let transport = &self.connections.transport;
        transport.add_peer(envelope.target, node_addr);
        transport.send_wait(envelope.into()).await
    }
}

macro_rules! opaque {
    ($($Type:ident)+) => {
        $(
            impl std::fmt::Debug for $Type {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.debug_struct(stringify!($Type)).finish_non_exhaustive()
                }
            }
        )+
    };
}

opaque!(OptimizedConnectionPool IrohConnection OptimizedMessageRouter);
