//! What clients and three maps take behind a queue: the same clients, and a task that gathers what waits, puts it into three maps and
//! answers. No log, no message, no vote. The queue has no bound of its own: a client waits for its answer.

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::ours::Map;
use super::{Proposer, clients, runtime};
use crate::case::Run;

/// A command and where the response goes.
type Proposal = (Bytes, oneshot::Sender<u64>);

#[derive(Clone)]
struct Maps(UnboundedSender<Proposal>);

impl Proposer for Maps {
    async fn propose(&self, command: Bytes) {
        let (reply, response) = oneshot::channel();
        self.0.send((command, reply)).expect("the task runs");
        std::hint::black_box(response.await.expect("it answers"));
    }
}

pub(super) fn memory<const CLIENTS: u64>() -> Run {
    let runtime = runtime();
    let (queue, mut proposals) = unbounded_channel::<Proposal>();
    runtime.spawn(async move {
        let mut maps: [Map; 3] = Default::default();
        let mut gathered = Vec::new();
        while proposals.recv_many(&mut gathered, usize::MAX).await > 0 {
            for (command, reply) in gathered.drain(..) {
                let was = maps.each_mut().map(|map| map.put(command.clone()));
                // A client that is gone wants no response.
                let _ = reply.send(was[0]);
            }
        }
    });
    clients(runtime, CLIENTS, &Maps(queue))
}
