//! Snapshots in pieces: the threads that read and write them beside everything else, late at times, and cut at any
//! piece.

use super::{Event, GROUP, MS, World};
use bytes::Bytes;
use perf_raft::core::{SnapshotDone, SnapshotJob};
use perf_raft::log::{SnapshotReader, SnapshotStore, SnapshotWriter, StoredData, StoredSnapshot};
use perf_raft::{LogError, StopReason};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pieces of a snapshot of a node's own state: it takes several.
const PIECE_BYTES: usize = 24;

/// What is open, and what is under way.
pub(super) struct Streams {
    store: Arc<dyn SnapshotStore>,
    readers: BTreeMap<u64, Box<dyn SnapshotReader>>,
    writers: BTreeMap<u64, Box<dyn SnapshotWriter>>,
    jobs: BTreeMap<u64, SnapshotJob>,
    jobs_begun: u64,
    own: Option<Own>,
}

/// A snapshot of the node's own state, of the moment when it was asked for.
struct Own {
    index: u64,
    rest: Bytes,
    writer: Option<Box<dyn SnapshotWriter>>,
    /// The state machine's reader fails then.
    fails: bool,
}

impl Streams {
    pub(super) fn new(store: Arc<dyn SnapshotStore>) -> Self {
        Self {
            store,
            readers: BTreeMap::new(),
            writers: BTreeMap::new(),
            jobs: BTreeMap::new(),
            jobs_begun: 0,
            own: None,
        }
    }

    /// The process is killed: nothing removes what was not finished.
    pub(super) fn kill(self) {
        let own = self.own.and_then(|own| own.writer);
        self.writers
            .into_values()
            .chain(own)
            .for_each(std::mem::forget);
    }

    pub(super) fn load(&self, snapshot: &StoredSnapshot) -> Result<Bytes, LogError> {
        let Some(stored) = snapshot.stored else {
            return Ok(snapshot.data.clone());
        };
        let reader = self.store.open(GROUP, stored)?;
        let mut data = vec![0; stored.bytes as usize + 1];
        let read = reader
            .expect("the snapshot of a durable job is there")
            .read_at(0, &mut data)?;
        data.truncate(read);
        Ok(data.into())
    }

    fn run(&mut self, job: SnapshotJob) -> Result<Option<SnapshotDone>, LogError> {
        match job {
            SnapshotJob::Read {
                transfer,
                data,
                offset,
                bytes,
            } => {
                if !self.readers.contains_key(&transfer)
                    && let Some(reader) = self.store.open(GROUP, data)?
                {
                    self.readers.insert(transfer, reader);
                }
                let piece = match self.readers.get_mut(&transfer) {
                    None => None,
                    Some(reader) => {
                        let mut piece = vec![0; bytes];
                        let read = reader.read_at(offset, &mut piece)?;
                        assert_eq!(read, bytes, "a reader gives what there is");
                        Some(piece.into())
                    }
                };
                Ok(Some(SnapshotDone::Read {
                    transfer,
                    offset,
                    data: piece,
                }))
            }
            SnapshotJob::Write {
                number,
                pieces,
                is_last,
            } => {
                let mut writer = match self.writers.remove(&number) {
                    Some(writer) => writer,
                    None => self.store.create(GROUP)?,
                };
                for piece in pieces {
                    writer.write(&piece)?;
                }
                let mut stored = None;
                match is_last {
                    true => stored = Some(writer.finish()?),
                    false => drop(self.writers.insert(number, writer)),
                }
                Ok(Some(SnapshotDone::Written { number, stored }))
            }
            SnapshotJob::EndRead { transfer } => {
                self.readers.remove(&transfer);
                Ok(None)
            }
            SnapshotJob::EndWrite { number } => {
                self.writers.remove(&number);
                Ok(None)
            }
            SnapshotJob::Discard(data) => {
                self.store.discard(GROUP, data);
                Ok(None)
            }
        }
    }

    /// Writes the next piece; the data once it is durable.
    fn write_own(&mut self, store: &Arc<dyn SnapshotStore>) -> OwnOutcome {
        let Some(own) = &mut self.own else {
            return OwnOutcome::Going;
        };
        let written = (|| {
            let writer = match &mut own.writer {
                Some(writer) => writer,
                empty => empty.insert(store.create(GROUP)?),
            };
            writer.write(&own.rest.split_to(PIECE_BYTES.min(own.rest.len())))
        })();
        if let Err(error) = written {
            return OwnOutcome::Failed(error);
        }
        if !own.rest.is_empty() {
            return OwnOutcome::Going;
        }
        if own.fails {
            return OwnOutcome::Reader;
        }
        match own.writer.take().map(SnapshotWriter::finish) {
            Some(Ok(stored)) => OwnOutcome::Stored(stored),
            Some(Err(error)) => OwnOutcome::Failed(error),
            None => OwnOutcome::Going,
        }
    }
}

enum OwnOutcome {
    Going,
    Stored(StoredData),
    Reader,
    Failed(LogError),
}

impl World {
    fn io_delay(&mut self) -> u64 {
        match !self.calm && self.random.one_in(6) {
            true => self.random.below(300 * MS),
            false => 50_000 + self.random.below(2 * MS),
        }
    }

    pub(super) fn begin_snapshot_job(&mut self, id: u64, job: SnapshotJob) {
        let delay = self.io_delay();
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let run = node.run;
        let Some(streams) = &mut node.streams else {
            self.fail(format!(
                "node {id} has snapshots in memory and asks for {job:?}"
            ));
            return;
        };
        streams.jobs_begun += 1;
        let number = streams.jobs_begun;
        streams.jobs.insert(number, job);
        self.at(delay, Event::SnapshotJobDone(id, run, number));
    }

    pub(super) fn snapshot_job_done(&mut self, id: u64, number: u64) {
        let reads = self.read_error_at == Some(id);
        let syncs = self.fsync_error_at == Some(id);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(streams) = &mut node.streams else {
            return;
        };
        let Some(job) = streams.jobs.remove(&number) else {
            return;
        };
        match &job {
            SnapshotJob::Read { .. } if reads => {
                self.read_error_at = None;
                node.has_read_fault = true;
                node.disk.fail_next_read();
            }
            SnapshotJob::Write { is_last: true, .. } if syncs => node.disk.fail_next_sync(),
            _ => {}
        }
        self.coverage.pieces_read += u64::from(matches!(job, SnapshotJob::Read { .. }));
        self.coverage.pieces_written += u64::from(matches!(job, SnapshotJob::Write { .. }));
        match streams.run(job) {
            Ok(None) => {}
            Ok(Some(done)) => {
                self.with_core(id, |core, _| core.snapshot_done(done));
            }
            Err(error) => self.stream_failed(id, error),
        }
    }

    pub(super) fn stream_failed(&mut self, id: u64, error: LogError) {
        if self.fsync_error_at == Some(id) {
            self.fsync_error_at = None;
        } else if !self.nodes[&id].has_read_fault {
            self.fail(format!("node {id} cannot use a snapshot: {error}"));
            return;
        }
        self.coverage.streams_failed += 1;
        self.stop(id, &StopReason::Log(Arc::new(error)));
        let after = 100 * MS + self.random.below(800 * MS);
        self.at(after, Event::Restart(id));
    }

    /// The state machine gave a reader of its state.
    pub(super) fn begin_own_snapshot(&mut self, id: u64, index: u64, rest: Bytes, fails: bool) {
        let delay = self.io_delay();
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let run = node.run;
        if let Some(streams) = &mut node.streams {
            streams.own = Some(Own {
                index,
                rest,
                writer: None,
                fails,
            });
            self.at(delay, Event::OwnPiece(id, run));
        }
    }

    pub(super) fn own_piece(&mut self, id: u64) {
        let fails = self.fsync_error_at == Some(id);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let run = node.run;
        let Some(streams) = &mut node.streams else {
            return;
        };
        let is_last = streams
            .own
            .as_ref()
            .is_some_and(|own| own.rest.len() <= PIECE_BYTES && !own.fails);
        if fails && is_last {
            node.disk.fail_next_sync();
        }
        let store = Arc::clone(&streams.store);
        let outcome = streams.write_own(&store);
        let data = match outcome {
            OwnOutcome::Going => {
                let delay = self.io_delay();
                self.at(delay, Event::OwnPiece(id, run));
                return;
            }
            OwnOutcome::Failed(error) => return self.stream_failed(id, error),
            OwnOutcome::Stored(stored) => Ok(stored),
            OwnOutcome::Reader => Err("simulated".to_owned()),
        };
        if let Some(own) = streams.own.take() {
            self.with_core(id, |core, _| {
                core.applied(own.index);
                core.snapshot_stored(own.index, data);
            });
        }
    }
}
