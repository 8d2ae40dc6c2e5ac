//! The network of a `raft-rs` group: three nodes in one process, each a `RawNode` with a loop of its own.
//!
//! ```text
//! cargo run -p perf-transport --example raft_rs
//! ```
//!
//! What to take from it:
//!
//! - Messages are one-way. `raft-rs` repeats what is lost, so a message that cannot be sent is dropped, and the node is
//!   told (`report_unreachable`).
//! - Each kind of message has a method of its own, so that a heartbeat and a vote need not wait behind appended
//!   entries: priorities are by service and method.
//! - A snapshot goes with Low priority; one that is longer than a frame goes by `Transport::stream`.
//! - The origin is proven by the certificate, where there is TLS: a message that says it is of another node is dropped.
//!
//! `perf-raft` does all of this, and parses without `protobuf`, whose old versions do not bound nested messages.

use perf_transport::{Envelope, Message, Priority, Router, Security, Transport, TransportError};
use protobuf::Message as _;
use raft::eraftpb::{EntryType, MessageType};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};
use std::error::Error;
use std::time::Duration;
use tokio::sync::mpsc;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const NODES: [u64; 3] = [1, 2, 3];
const TICK: Duration = Duration::from_millis(20);
const PROPOSALS: usize = 10;

/// Where a message goes at the other end: its method says how urgent it is.
fn method(kind: MessageType) -> &'static str {
    match kind {
        MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse => "heartbeat",
        MessageType::MsgAppend | MessageType::MsgAppendResponse => "append",
        MessageType::MsgSnapshot => "snapshot",
        _ => "vote",
    }
}

/// Handlers that hand what arrives to the node's loop. They run in the connection's task, so they only queue.
fn router(inbox: mpsc::Sender<raft::eraftpb::Message>) -> Router {
    let receive = move |message: Message| {
        let Ok(parsed) = raft::eraftpb::Message::parse_from_bytes(message.payload()) else {
            return;
        };
        // Who says that it is another node is not believed. A full inbox drops the message: raft repeats it.
        if parsed.from == message.from() {
            let _ = inbox.try_send(parsed);
        }
    };
    Router::new()
        .one_way("raft", "*", receive)
        .with_priority("raft", "append", Priority::High)
        .with_priority("raft", "snapshot", Priority::Low)
}

/// Sends messages, and tells the node which of its peers cannot be reached.
fn send(
    transport: &Transport,
    node: &mut RawNode<MemStorage>,
    messages: Vec<raft::eraftpb::Message>,
) -> Outcome<()> {
    for message in messages {
        let bytes = message.write_to_bytes()?;
        let envelope = Envelope::new(message.to, "raft", method(message.msg_type), &bytes[..]);
        match transport.send(envelope) {
            Ok(()) => {}
            Err(undelivered) => {
                if let TransportError::Unreachable { peer, .. } = undelivered.error {
                    node.report_unreachable(peer);
                }
            }
        }
    }
    Ok(())
}

/// A node's loop: messages and ticks in, messages and committed entries out. Ends when all proposals are committed
/// here.
async fn run(
    id: u64,
    transport: Transport,
    mut inbox: mpsc::Receiver<raft::eraftpb::Message>,
    done: mpsc::Sender<u64>,
) -> Outcome<()> {
    let storage = MemStorage::new_with_conf_state((NODES.to_vec(), Vec::new()));
    let config = Config {
        id,
        election_tick: 10,
        heartbeat_tick: 2,
        ..Config::default()
    };
    let logger = raft::default_logger();
    let mut node = RawNode::new(&config, storage, &logger)?;
    let mut ticks = tokio::time::interval(TICK);
    let (mut proposed, mut committed) = (false, 0);
    loop {
        tokio::select! {
            message = inbox.recv() => match message {
                // A message of a former term is no fault of this loop.
                Some(message) => drop(node.step(message)),
                None => return Ok(()),
            },
            _ = ticks.tick() => {
                node.tick();
                if node.raft.state == StateRole::Leader && !proposed {
                    proposed = true;
                    for number in 0..PROPOSALS {
                        node.propose(Vec::new(), number.to_string().into_bytes())?;
                    }
                }
            }
        }
        if !node.has_ready() {
            continue;
        }
        let mut ready = node.ready();
        send(&transport, &mut node, ready.take_messages())?;
        let mut applied = ready.take_committed_entries();
        if !ready.snapshot().is_empty() {
            node.mut_store()
                .wl()
                .apply_snapshot(ready.snapshot().clone())?;
        }
        node.mut_store().wl().append(ready.entries())?;
        if let Some(state) = ready.hs() {
            node.mut_store().wl().set_hardstate(state.clone());
        }
        // What must not leave before it is on disk.
        send(&transport, &mut node, ready.take_persisted_messages())?;
        let mut light = node.advance(ready);
        if let Some(commit) = light.commit_index() {
            node.mut_store().wl().mut_hard_state().set_commit(commit);
        }
        send(&transport, &mut node, light.take_messages())?;
        applied.extend(light.take_committed_entries());
        node.advance_apply();
        let is_proposal = |entry: &&raft::eraftpb::Entry| {
            entry.entry_type == EntryType::EntryNormal && !entry.data.is_empty()
        };
        committed += applied.iter().filter(is_proposal).count();
        if committed >= PROPOSALS {
            let _ = done.try_send(id);
        }
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut nodes = Vec::new();
    for id in NODES {
        let (sender, inbox) = mpsc::channel(1024);
        // `MutualTls` outside of examples: a certificate for each node says which one it is.
        let transport = Transport::builder(id, "group", Security::InsecurePlaintext)
            .router(router(sender))
            .listen("127.0.0.1:0")
            .start()
            .await?;
        nodes.push((id, transport, inbox));
    }
    for (id, transport, _) in &nodes {
        for (other, peer, _) in &nodes {
            if id != other {
                transport.add_peer(*other, peer.address().unwrap_or_default());
            }
        }
    }
    let (done, mut all_done) = mpsc::channel(16);
    for (id, transport, inbox) in nodes {
        tokio::spawn(run(id, transport, inbox, done.clone()));
    }
    let mut left = NODES.to_vec();
    while !left.is_empty() {
        let ended = all_done.recv().await.ok_or("all nodes have stopped")?;
        if left.contains(&ended) {
            println!("node {ended} has committed {PROPOSALS} proposals");
            left.retain(|id| *id != ended);
        }
    }
    Ok(())
}
