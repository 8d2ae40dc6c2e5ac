//! The least a durable group must do: the same batch appended to three files by three threads, and two of them synced.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Instant;

use tempfile::TempDir;

use super::command;
use crate::case::Run;

pub(super) fn durable<const CLIENTS: u64>() -> Run {
    let folder = TempDir::new().expect("a temporary folder");
    let batch: Arc<[u8]> = (0..CLIENTS).flat_map(|client| command(client, 1)).collect();
    let (synced, done) = channel();
    let files: Vec<Sender<Arc<[u8]>>> = (0..3)
        .map(|number| {
            let (queue, batches) = channel::<Arc<[u8]>>();
            let mut file =
                File::create(folder.path().join(number.to_string())).expect("a fresh folder");
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
        })
        .collect();
    let mut behind = 0_u64;
    Box::new(move |iters| {
        let _ = &folder;
        let begin = Instant::now();
        for _ in 0..iters {
            for file in &files {
                file.send(Arc::clone(&batch)).expect("its thread runs");
            }
            // Two new ones are a quorum; the third of the round before may still come, and does not count.
            for _ in 0..2 + behind {
                done.recv().expect("the threads run");
            }
            behind = 1;
        }
        let elapsed = begin.elapsed();
        if behind == 1 {
            done.recv().expect("the threads run");
            behind = 0;
        }
        elapsed
    })
}
