//! The least a durable group must do: the same batch appended to three files by three threads, and two of them synced.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::ours::Map;
use super::{Proposer, clients, command, runtime};
use crate::case::Run;

/// Three files, a thread for each.
struct Files {
    queues: Vec<Sender<Arc<[u8]>>>,
    done: Receiver<()>,
    /// Whether the third of the batch before may still come.
    behind: bool,
    _folder: TempDir,
}

impl Files {
    fn create() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let (synced, done) = channel();
        let queues = (0..3).map(|number| {
            let (queue, batches) = channel::<Arc<[u8]>>();
            let path = folder.path().join(number.to_string());
            let mut file = File::create(path).expect("a fresh folder");
            let synced = synced.clone();
            thread::spawn(move || {
                while let Ok(batch) = batches.recv() {
                    file.write_all(&batch).expect("the disk has room");
                    file.sync_data().expect("the disk is sound");
                    if synced.send(()).is_err() {
                        return;
                    }
                }
            });
            queue
        });
        Self {
            queues: queues.collect(),
            done,
            behind: false,
            _folder: folder,
        }
    }

    /// Appends a batch to all three and waits until it is durable in two.
    fn append(&mut self, batch: &Arc<[u8]>) {
        for queue in &self.queues {
            queue.send(Arc::clone(batch)).expect("its thread runs");
        }
        // Two new ones are a quorum; the third of the batch before may still come, and does not count.
        for _ in 0..2 + u32::from(self.behind) {
            self.done.recv().expect("the threads run");
        }
        self.behind = true;
    }

    fn settle(&mut self) {
        if std::mem::take(&mut self.behind) {
            self.done.recv().expect("the threads run");
        }
    }
}

/// Nobody proposes: one batch after the other, as large as if all clients' proposals were in it.
pub(super) fn durable<const CLIENTS: u64>() -> Run {
    let batch: Arc<[u8]> = (0..CLIENTS).flat_map(|client| command(client, 1)).collect();
    let mut files = Files::create();
    Box::new(move |iters| {
        let begin = Instant::now();
        for _ in 0..iters {
            files.append(&batch);
        }
        let elapsed = begin.elapsed();
        files.settle();
        elapsed
    })
}

/// A command and where the response goes.
type Proposal = (Bytes, oneshot::Sender<u64>);

#[derive(Clone)]
struct Wal(Sender<Proposal>);

impl Proposer for Wal {
    async fn propose(&self, command: Bytes) {
        let (reply, response) = oneshot::channel();
        self.0.send((command, reply)).expect("the thread runs");
        std::hint::black_box(response.await.expect("it answers"));
    }
}

/// The same clients as ours has, and one map: a thread gathers what waits, appends it to the files, and answers.
pub(super) fn with_clients<const CLIENTS: u64>() -> Run {
    let (queue, proposals) = channel::<Proposal>();
    thread::spawn(move || {
        let mut files = Files::create();
        let mut map = <Map>::default();
        while let Ok(first) = proposals.recv() {
            let gathered: Vec<Proposal> =
                std::iter::once(first).chain(proposals.try_iter()).collect();
            let bytes = gathered.iter().flat_map(|(command, _)| command.iter());
            files.append(&bytes.copied().collect());
            for (command, reply) in gathered {
                // A client that is gone wants no response.
                let _ = reply.send(map.put(command));
            }
        }
    });
    clients(runtime(), CLIENTS, &Wal(queue))
}
