//! Raft's messages over the transport.

use std::sync::{Arc, OnceLock};

use perf_kit::raft::inbound::MessageClass;
use perf_kit::raft::{Inbox, OutboundMessage, SendError, Transport as RaftTransport};
use perf_kit::transport::{Envelope, Priority, Router, Transport};

const SERVICE: &str = "raft";
const CLASSES: [(MessageClass, &str, Priority); 4] = [
    (MessageClass::Election, "election", Priority::Critical),
    (MessageClass::Heartbeat, "heartbeat", Priority::Critical),
    (MessageClass::Append, "append", Priority::High),
    (MessageClass::Snapshot, "snapshot", Priority::Low),
];

#[derive(Clone, Default)]
pub(crate) struct TransportNetwork {
    inbox: Arc<OnceLock<Inbox>>,
}

impl TransportNetwork {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn routes(&self, mut router: Router) -> Router {
        for (_, method, priority) in CLASSES {
            let inbox = Arc::clone(&self.inbox);
            router = router.with_priority(SERVICE, method, priority).one_way(
                SERVICE,
                method,
                move |message| {
                    if let Some(inbox) = inbox.get() {
                        let _ = inbox.deliver(message.into_payload());
                    }
                },
            );
        }
        router
    }

    pub(crate) fn transport(&self, transport: Transport) -> Network {
        Network {
            inbox: Arc::clone(&self.inbox),
            transport,
        }
    }
}

pub(crate) struct Network {
    inbox: Arc<OnceLock<Inbox>>,
    transport: Transport,
}

impl RaftTransport for Network {
    fn start(&self, inbox: Inbox) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let _ = self.inbox.set(inbox);
        Ok(())
    }

    fn send(&self, message: OutboundMessage) -> Result<(), SendError> {
        let (_, method, _) = CLASSES
            .iter()
            .find(|(class, ..)| *class == message.class)
            .ok_or(SendError::Unreachable)?;
        self.transport
            .send(Envelope::new(message.to, SERVICE, method, message.frame))
            .map_err(|_| SendError::Unreachable)
    }
}
