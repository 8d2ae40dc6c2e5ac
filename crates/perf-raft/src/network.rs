//! `perf-transport` under a node.

use crate::GroupId;
use crate::codec::{BEAT_TAG, FrameHeader, for_each_frame};
use crate::inbound::MessageClass;
use crate::shell::Inbox;
use crate::transport::{OutboundMessage, SendError, Transport};
use bytes::Bytes;
use perf_transport::{Envelope, Message, Payload, Priority, Router, TransportError};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SERVICE: &str = "raft";

/// The methods of the service, by class.
const METHODS: [(MessageClass, &str, Priority); 4] = [
    (MessageClass::Election, "election", Priority::Critical),
    (MessageClass::Heartbeat, "heartbeat", Priority::Critical),
    (MessageClass::Append, "append", Priority::Normal),
    (MessageClass::Snapshot, "snapshot", Priority::Low),
];

/// The `raft` service of a node, for all its groups: takes messages off a [`perf_transport::Transport`] and puts them on it.
///
/// Elections and heartbeats go over the control connection, entries and snapshots over the bulk connection, so a full pipe never
/// delays a heartbeat. Frames are handed over as they are, without a copy. A frame whose sender is not the node it came from is dropped.
///
/// ```no_run
/// use perf_raft::RaftService;
/// use perf_transport::{Router, Security, Transport};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let service = RaftService::new();
/// let transport = Transport::builder(1, "cluster", Security::InsecurePlaintext)
///     .router(service.register(Router::new()))
///     .listen("10.0.0.1:7000")
///     .peer(2, "10.0.0.2:7000")
///     .start()
///     .await?;
/// let for_the_node = service.transport(transport); // to `RaftNodeBuilder::transport`
/// # let _ = for_the_node;
/// # Ok(())
/// # }
/// ```
///
/// The transport's `frame_bytes_max` must leave room for a frame around [`RaftOptions::message_bytes_max`](crate::RaftOptions::message_bytes_max),
/// [`RaftOptions::proposal_bytes_max`](crate::RaftOptions::proposal_bytes_max) and a part of a snapshot, or the node does not start. The defaults do.
#[derive(Clone, Debug, Default)]
pub struct RaftService {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Read by every message, changed when a node starts or stops.
    inboxes: parking_lot::RwLock<Inboxes>,
    dropped: AtomicU64,
}

/// Of nodes by their group, and of a host, which is asked for all other groups.
#[derive(Debug, Default)]
struct Inboxes {
    of_groups: BTreeMap<GroupId, Inbox>,
    of_host: Option<Inbox>,
}

impl Inboxes {
    fn find(&self, group: GroupId) -> Option<&Inbox> {
        self.of_groups.get(&group).or(self.of_host.as_ref())
    }

    /// Puts an inbox in the place of a group, or of the host.
    fn put(&mut self, group: Option<GroupId>, inbox: Option<Inbox>) {
        match (group, inbox) {
            (None, inbox) => self.of_host = inbox,
            (Some(group), Some(inbox)) => drop(self.of_groups.insert(group, inbox)),
            (Some(group), None) => drop(self.of_groups.remove(&group)),
        }
    }
}

impl RaftService {
    /// A service without nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the service's handlers and priorities to a router.
    #[must_use]
    pub fn register(&self, router: Router) -> Router {
        METHODS
            .into_iter()
            .fold(router, |router, (_, method, priority)| {
                let shared = Arc::clone(&self.shared);
                router
                    .one_way(SERVICE, method, move |message| shared.take(message))
                    .with_priority(SERVICE, method, priority)
            })
    }

    /// The transport of a node, over one whose router this service is registered with: one for each node of a group, or one for a
    /// [`RaftHost`](crate::RaftHost).
    #[must_use]
    pub fn transport(&self, transport: perf_transport::Transport) -> NetworkTransport {
        NetworkTransport {
            shared: Arc::clone(&self.shared),
            transport,
            started: parking_lot::Mutex::new(None),
        }
    }

    /// Messages that came in and were dropped: for no group here, damaged, from a node that is not the sender they name, or beyond a bound.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn take(&self, message: Message) {
        let from = message.from();
        let mut dropped = 0;
        let split = for_each_frame(message.into_payload(), |frame| {
            dropped += u64::from(!self.take_frame(from, frame));
        });
        dropped += u64::from(split.is_err());
        if dropped > 0 {
            self.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }

    /// Whether it is for a node here, which takes it.
    fn take_frame(&self, from: u64, frame: Bytes) -> bool {
        FrameHeader::peek_with_tag(&frame).is_ok_and(|(header, tag)| {
            let inboxes = self.inboxes.read();
            let inbox = match tag {
                // Of a host, for a host.
                BEAT_TAG => inboxes.of_host.clone(),
                _ => inboxes.find(header.group).cloned(),
            };
            drop(inboxes);
            header.from == from && inbox.is_some_and(|inbox| inbox.deliver(frame).is_ok())
        })
    }
}

/// A node's end of a [`perf_transport::Transport`]; see [`RaftService`].
pub struct NetworkTransport {
    shared: Arc<Shared>,
    transport: perf_transport::Transport,
    /// The group of the node that started it, `None` within for a host.
    started: parking_lot::Mutex<Option<Option<GroupId>>>,
}

impl fmt::Debug for NetworkTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetworkTransport")
            .field("started", &self.started)
            .finish_non_exhaustive()
    }
}

impl Transport for NetworkTransport {
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let group = inbox.group();
        if inbox.id() != self.transport.node() {
            return Err(format!(
                "node {} over the transport of node {}",
                inbox.id(),
                self.transport.node()
            )
            .into());
        }
        *self.started.lock() = Some(group);
        self.shared.inboxes.write().put(group, Some(inbox));
        Ok(())
    }

    fn send(&self, message: OutboundMessage) -> Result<(), SendError> {
        let (_, method, _) = METHODS[message.class as usize];
        let envelope = Envelope::new(message.to, SERVICE, method, Payload::Shared(message.frame));
        self.transport
            .send(envelope)
            .map_err(|undelivered| match undelivered.error {
                TransportError::QueueFull { .. } => SendError::Full,
                TransportError::TooLarge { bytes_max, .. } => {
                    SendError::TooLarge { limit: bytes_max }
                }
                _ => SendError::Unreachable,
            })
    }

    fn frame_bytes_max(&self) -> usize {
        self.transport.payload_bytes_max()
    }

    fn stop(&self) {
        if let Some(group) = self.started.lock().take() {
            self.shared.inboxes.write().put(group, None);
        }
    }
}
