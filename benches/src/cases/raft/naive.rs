//! A loop around the `raft` crate as its own example has it: one input, one `Ready`, everything in order, messages encoded and decoded
//! by raft's codec. It blocks on its queue where the example sleeps between looks.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType, Message};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::ours::Map;
use super::{Proposer, clients, runtime};
use crate::case::Run;

const TICK: Duration = Duration::from_millis(100);

enum Input {
    Propose(Bytes, oneshot::Sender<u64>),
    Message(Vec<u8>),
    IsLeader(oneshot::Sender<bool>),
}

struct Node {
    raft: RawNode<MemStorage>,
    peers: HashMap<u64, Sender<Input>>,
    map: Map,
    file: Option<File>,
    waiting: HashMap<u64, oneshot::Sender<u64>>,
    next_id: u64,
}

impl Node {
    fn run(mut self, inputs: &Receiver<Input>) {
        let mut ticked = Instant::now();
        loop {
            match inputs.recv_timeout(TICK.saturating_sub(ticked.elapsed())) {
                Ok(Input::Propose(command, reply)) => {
                    self.next_id += 1;
                    let context = self.next_id.to_le_bytes().to_vec();
                    if self.raft.propose(context, command.to_vec()).is_ok() {
                        self.waiting.insert(self.next_id, reply);
                    }
                }
                Ok(Input::Message(bytes)) => {
                    let message =
                        Message::parse_from_bytes(&bytes).expect("it was encoded by a peer");
                    // As the example does.
                    let _ = self.raft.step(message);
                }
                Ok(Input::IsLeader(reply)) => {
                    let _ = reply.send(self.raft.raft.state == StateRole::Leader);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if ticked.elapsed() >= TICK {
                self.raft.tick();
                ticked = Instant::now();
            }
            self.on_ready();
        }
    }

    fn on_ready(&mut self) {
        if !self.raft.has_ready() {
            return;
        }
        let mut ready = self.raft.ready();
        self.send(ready.take_messages());
        self.apply(ready.take_committed_entries());
        let storage = self.raft.store().clone();
        self.persist(ready.entries());
        storage
            .wl()
            .append(ready.entries())
            .expect("entries follow each other");
        if let Some(state) = ready.hs() {
            storage.wl().set_hardstate(state.clone());
        }
        self.send(ready.take_persisted_messages());
        let mut light = self.raft.advance(ready);
        if let Some(commit) = light.commit_index() {
            storage.wl().mut_hard_state().set_commit(commit);
        }
        self.send(light.take_messages());
        self.apply(light.take_committed_entries());
        self.raft.advance_apply();
    }

    fn persist(&mut self, entries: &[Entry]) {
        let Some(file) = &mut self.file else {
            return;
        };
        if entries.is_empty() {
            return;
        }
        for entry in entries {
            let bytes = entry.write_to_bytes().expect("entries can be encoded");
            file.write_all(&bytes).expect("the disk has room");
        }
        file.sync_data().expect("the disk is sound");
    }

    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            let bytes = message.write_to_bytes().expect("messages can be encoded");
            if let Some(peer) = self.peers.get(&message.to) {
                let _ = peer.send(Input::Message(bytes));
            }
        }
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            if entry.data.is_empty() || entry.entry_type != EntryType::EntryNormal {
                continue;
            }
            let was = self.map.put(entry.data);
            let id = entry
                .context
                .first_chunk::<8>()
                .map(|id| u64::from_le_bytes(*id));
            if self.raft.raft.state == StateRole::Leader
                && let Some(reply) = id.and_then(|id| self.waiting.remove(&id))
            {
                let _ = reply.send(was);
            }
        }
    }
}

#[derive(Clone)]
struct Leader(Sender<Input>);

impl Proposer for Leader {
    async fn propose(&self, command: Bytes) {
        let (reply, response) = oneshot::channel();
        self.0
            .send(Input::Propose(command, reply))
            .expect("its thread runs");
        std::hint::black_box(response.await.expect("the leader stays"));
    }
}

fn prepare(count: u64, mut file: impl FnMut(u64) -> Option<File>) -> Run {
    let queues: HashMap<u64, (Sender<Input>, Receiver<Input>)> =
        (1..=3).map(|id| (id, channel())).collect();
    let senders: HashMap<u64, Sender<Input>> = queues
        .iter()
        .map(|(id, queue)| (*id, queue.0.clone()))
        .collect();
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    for (id, (_, inputs)) in queues {
        let config = Config {
            max_size_per_msg: 1024 * 1024,
            ..Config::new(id)
        };
        let storage = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
        let mut raft = RawNode::new(&config, storage, &logger).expect("a sound configuration");
        if id == 1 {
            // Or the first election is seconds away. What is measured comes after it.
            raft.campaign().expect("it is a voter");
        }
        let node = Node {
            raft,
            peers: senders.clone(),
            map: <Map>::default(),
            file: file(id),
            waiting: HashMap::new(),
            next_id: 0,
        };
        thread::spawn(move || node.run(&inputs));
    }
    let runtime = runtime();
    let leader = runtime.block_on(async {
        loop {
            for sender in senders.values() {
                let (reply, leads) = oneshot::channel();
                sender
                    .send(Input::IsLeader(reply))
                    .expect("its thread runs");
                if leads.await.expect("its thread runs") {
                    return sender.clone();
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    clients(runtime, count, &Leader(leader))
}

pub(super) fn memory<const CLIENTS: u64>() -> Run {
    prepare(CLIENTS, |_| None)
}

pub(super) fn durable<const CLIENTS: u64>() -> Run {
    let folder = TempDir::new().expect("a temporary folder");
    let mut run = prepare(CLIENTS, |id| {
        Some(File::create(folder.path().join(id.to_string())).expect("a fresh folder"))
    });
    Box::new(move |iters| {
        let _ = &folder;
        run(iters)
    })
}
