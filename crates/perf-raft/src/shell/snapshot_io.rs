//! Reads and writes the data of snapshots, on threads of the runtime for work that blocks: beside the log's thread and
//! the state machine's.

use super::mailbox::{Mailbox, Reports};
use crate::GroupId;
use crate::core::{SnapshotDone, SnapshotJob, too_large};
use crate::error::{StopReason, panic_message};
use crate::log::snapshot_store::{PIECE_BYTES, SnapshotStream};
use crate::log::{LogError, SnapshotReader, SnapshotStore, SnapshotWriter, StoredData};
use crate::options::RaftOptions;
use bytes::Bytes;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeMap;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// What all groups of a host share: bounds on transfers at a time and on bytes per second.
pub(crate) struct SnapshotTraffic {
    sending: Arc<Semaphore>,
    bytes_per_second: Option<u64>,
    /// When the bytes that were let through are over at that pace.
    busy_until: Mutex<Option<Instant>>,
}

impl SnapshotTraffic {
    pub(crate) fn new(options: &RaftOptions) -> Self {
        Self {
            sending: Arc::new(Semaphore::new(options.snapshot_transfers_max)),
            bytes_per_second: options.snapshot_bytes_per_second,
            busy_until: Mutex::default(),
        }
    }

    /// When so many bytes may be sent that were asked for at `now`.
    fn admit(&self, bytes: usize, now: Instant) -> Instant {
        let Some(bytes_per_second) = self.bytes_per_second else {
            return now;
        };
        let mut busy_until = self.busy_until.lock();
        let due = busy_until.map_or(now, |until| until.max(now));
        let takes = bytes as f64 / bytes_per_second as f64;
        *busy_until = Some(due + Duration::from_secs_f64(takes));
        due
    }
}

/// A slot of the bound on transfers, until it is dropped.
type Slot = OwnedSemaphorePermit;

async fn slot(slots: &Arc<Semaphore>) -> Option<Slot> {
    // Nothing closes it.
    Arc::clone(slots).acquire_owned().await.ok()
}

struct OpenRead {
    reader: Box<dyn SnapshotReader>,
    _slot: Option<Slot>,
}

type OpenWrite = Box<dyn SnapshotWriter>;

/// A transfer or a snapshot that arrives. It is aborted while it waits for its turn when this is dropped.
struct Running<O> {
    /// While no job is under way.
    open: Option<O>,
    task: Option<AbortHandle>,
}

impl<O> Drop for Running<O> {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl<O> Default for Running<O> {
    fn default() -> Self {
        Self {
            open: None,
            task: None,
        }
    }
}

/// The outcome of a job, for the driver.
pub(crate) struct SnapshotEnd(End);

enum End {
    Read {
        transfer: u64,
        offset: u64,
        data: Result<Option<Bytes>, LogError>,
        open: Option<OpenRead>,
    },
    Written {
        number: u64,
        stored: Result<Option<StoredData>, LogError>,
        open: Option<OpenWrite>,
    },
}

impl std::fmt::Debug for SnapshotEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotEnd").finish_non_exhaustive()
    }
}

/// What all work of one group needs.
#[derive(Clone)]
struct Context {
    store: Arc<dyn SnapshotStore>,
    group: GroupId,
    mailbox: Arc<Mailbox>,
    runtime: Handle,
    traffic: Arc<SnapshotTraffic>,
    snapshot_bytes_max: u64,
    /// The node stops: what takes long ends early.
    is_over: Arc<AtomicBool>,
    /// Dropped last, so that its other end knows when nothing runs any more.
    _busy: mpsc::Sender<()>,
}

/// Does the [`SnapshotJob`]s of a group.
pub(crate) struct SnapshotIo {
    context: Context,
    reads: BTreeMap<u64, Running<OpenRead>>,
    writes: BTreeMap<u64, Running<OpenWrite>>,
    idle: mpsc::Receiver<()>,
    over: Over,
}

/// Ends what takes long when it is dropped: the runtime may end without a word, and a snapshot that is being written
/// shall not hold it up.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl SnapshotIo {
    pub(crate) fn new(
        store: Arc<dyn SnapshotStore>,
        group: GroupId,
        mailbox: Arc<Mailbox>,
        runtime: Handle,
        traffic: Arc<SnapshotTraffic>,
        options: &RaftOptions,
    ) -> Self {
        let (busy, idle) = mpsc::channel(1);
        let is_over = Arc::<AtomicBool>::default();
        Self {
            context: Context {
                store,
                group,
                mailbox,
                runtime,
                traffic,
                snapshot_bytes_max: options.snapshot_bytes_max as u64,
                is_over: Arc::clone(&is_over),
                _busy: busy,
            },
            reads: BTreeMap::new(),
            writes: BTreeMap::new(),
            idle,
            over: Over(is_over),
        }
    }

    /// What the state machine's thread needs.
    pub(crate) fn data(&self) -> SnapshotData {
        SnapshotData(self.context.clone())
    }

    pub(crate) fn begin(&mut self, job: SnapshotJob) {
        match job {
            SnapshotJob::Read {
                transfer,
                data,
                offset,
                bytes,
            } => self.read(transfer, data, offset, bytes),
            SnapshotJob::EndRead { transfer } => drop(self.reads.remove(&transfer)),
            SnapshotJob::Write {
                number,
                pieces,
                is_last,
            } => self.write(number, pieces, is_last),
            SnapshotJob::EndWrite { number } => {
                let ended = self.writes.remove(&number);
                // What was written is removed.
                self.context.runtime.spawn_blocking(move || drop(ended));
            }
            SnapshotJob::Discard(data) => {
                let context = self.context.clone();
                let work = move || context.store.discard(context.group, data);
                self.context.runtime.spawn_blocking(work);
            }
        }
    }

    fn read(&mut self, transfer: u64, data: StoredData, offset: u64, bytes: usize) {
        let running = self.reads.entry(transfer).or_default();
        let context = self.context.clone();
        let open = running.open.take();
        let task = self.context.runtime.spawn(async move {
            let traffic = &context.traffic;
            let slot = match &open {
                Some(_) => None,
                None => slot(&traffic.sending).await,
            };
            sleep_until(traffic.admit(bytes, Instant::now())).await;
            let runtime = context.runtime.clone();
            runtime.spawn_blocking(move || {
                let mut open = open;
                let read = guarded("reading a snapshot", || {
                    context.read(&mut open, slot, data, (offset, bytes))
                });
                context.report(End::Read {
                    transfer,
                    offset,
                    data: read,
                    open,
                });
            });
        });
        running.task = Some(task.abort_handle());
    }

    fn write(&mut self, number: u64, pieces: Vec<Bytes>, is_last: bool) {
        let running = self.writes.entry(number).or_default();
        let context = self.context.clone();
        let open = running.open.take();
        // No bound on those that arrive: two hosts that wait for each other's slots would hold their own.
        self.context.runtime.spawn_blocking(move || {
            let mut open = open;
            let stored = guarded("writing a snapshot", || {
                context.write(&mut open, &pieces, is_last)
            });
            context.report(End::Written {
                number,
                stored,
                open,
            });
        });
    }

    /// What the core is to be told of an outcome, if it still wants to know.
    pub(crate) fn end(&mut self, end: SnapshotEnd) -> Result<SnapshotDone, LogError> {
        match end.0 {
            End::Read {
                transfer,
                offset,
                data,
                open,
            } => {
                if let Some(running) = self.reads.get_mut(&transfer) {
                    (running.open, running.task) = (open, None);
                }
                let data = data?;
                Ok(SnapshotDone::Read {
                    transfer,
                    offset,
                    data,
                })
            }
            End::Written {
                number,
                stored,
                open,
            } => {
                let is_over = open.is_none();
                match self.writes.get_mut(&number) {
                    Some(running) => (running.open, running.task) = (open, None),
                    // What was written is removed.
                    None => drop(self.context.runtime.spawn_blocking(move || drop(open))),
                }
                if is_over {
                    self.writes.remove(&number);
                }
                let stored = stored?;
                Ok(SnapshotDone::Written { number, stored })
            }
        }
    }

    /// Waits until nothing is read or written any more: the store's files are free then.
    pub(crate) async fn close(self) {
        let Self {
            context,
            reads,
            writes,
            mut idle,
            over,
        } = self;
        let mailbox = Arc::clone(&context.mailbox);
        drop((over, context, reads, writes));
        while idle.recv().await.is_some() {}
        // Outcomes that no driver takes any more hold files, and handles may keep the mailbox for long.
        let mut left = Reports::default();
        mailbox.take_reports(&mut left);
        // Removes what was not finished, which may be long.
        drop(tokio::task::spawn_blocking(move || drop(left)).await);
    }
}

impl Context {
    fn read(
        &self,
        open: &mut Option<OpenRead>,
        slot: Option<Slot>,
        data: StoredData,
        (offset, bytes): (u64, usize),
    ) -> Result<Option<Bytes>, LogError> {
        if open.is_none() {
            let reader = self.store.open(self.group, data)?;
            *open = reader.map(|reader| OpenRead {
                reader,
                _slot: slot,
            });
        }
        let Some(open) = open else {
            return Ok(None);
        };
        let mut piece = vec![0; bytes];
        let read = open.reader.read_at(offset, &mut piece)?;
        if read < bytes {
            return Err(LogError::Corrupted {
                file: PathBuf::from(format!("snapshot {}", data.number)),
                offset: offset + read as u64,
                reason: format!("the snapshot ends before its {} bytes", data.bytes),
            });
        }
        Ok(Some(piece.into()))
    }

    fn write(
        &self,
        open: &mut Option<OpenWrite>,
        pieces: &[Bytes],
        is_last: bool,
    ) -> Result<Option<StoredData>, LogError> {
        let mut writer = match open.take() {
            Some(writer) => writer,
            None => self.store.create(self.group)?,
        };
        for piece in pieces {
            writer.write(piece)?;
        }
        if is_last {
            return writer.finish().map(Some);
        }
        *open = Some(writer);
        Ok(None)
    }

    fn report(self, end: End) {
        if self.is_over.load(Ordering::Relaxed) {
            // What it holds is closed, and what was not finished removed.
            return;
        }
        let Self { mailbox, .. } = &self;
        mailbox.report(|reports| reports.snapshot_ends.push(SnapshotEnd(end)));
    }
}

fn guarded<R>(
    action: &'static str,
    work: impl FnOnce() -> Result<R, LogError>,
) -> Result<R, LogError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(action, &*panic)))
}

fn panicked(action: &'static str, panic: &(dyn Any + Send)) -> LogError {
    LogError::Io {
        file: PathBuf::new(),
        action,
        reason: panic_message(panic),
    }
}

/// What a snapshot of the node's own state consists of.
#[derive(Debug)]
pub(crate) enum OwnSnapshot {
    Memory(Bytes),
    Stored(StoredData),
}

/// What is to become a snapshot in the log.
pub(crate) enum Source {
    Whole(Bytes),
    Stream(Box<dyn Read + Send>),
}

/// Why no snapshot comes of it.
enum NotMade {
    /// It is tried again later.
    Reason(String),
    /// The log must not be used any more.
    Log(LogError),
}

impl From<LogError> for NotMade {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Sync { .. } => Self::Log(error),
            // No room, say: without its data the snapshot does not count, and the node goes on.
            error => Self::Reason(error.to_string()),
        }
    }
}

/// The data of a group's snapshots, for the state machine's thread.
#[derive(Clone)]
pub(crate) struct SnapshotData(Context);

impl SnapshotData {
    /// Opens the data of a snapshot that counts.
    pub(crate) fn open(&self, data: StoredData) -> Result<SnapshotStream, LogError> {
        SnapshotStream::open(&*self.0.store, self.0.group, data)
    }

    /// Writes a snapshot of the state at `index` on another thread, and reports it.
    pub(crate) fn begin(&self, index: u64, source: Source) {
        let context = self.0.clone();
        let work = move || {
            let made = catch_unwind(AssertUnwindSafe(|| context.make(source)));
            let made = made.unwrap_or_else(|panic| Err(NotMade::Reason(panic_message(&*panic))));
            context.mailbox.report(|reports| {
                // First how far the machine is: Raft must know that before the log is cut there.
                reports.applied = reports.applied.max(index);
                match made {
                    Ok(stored) => reports.snapshot = Some((index, Ok(OwnSnapshot::Stored(stored)))),
                    Err(NotMade::Reason(reason)) => reports.snapshot = Some((index, Err(reason))),
                    Err(NotMade::Log(error)) => {
                        reports.failure = Some(StopReason::Log(Arc::new(error)));
                    }
                }
            });
        };
        self.0.runtime.spawn_blocking(work);
    }
}

impl Context {
    fn make(&self, source: Source) -> Result<StoredData, NotMade> {
        let mut writer = self.store.create(self.group)?;
        match source {
            Source::Whole(data) => {
                self.check(data.len() as u64)?;
                for piece in data.chunks(PIECE_BYTES) {
                    self.check(0)?;
                    writer.write(piece)?;
                }
            }
            Source::Stream(mut stream) => {
                let (mut piece, mut bytes) = (vec![0; PIECE_BYTES], 0);
                loop {
                    let read = stream.read(&mut piece);
                    let read = read.map_err(|error| NotMade::Reason(error.to_string()))?;
                    if read == 0 {
                        break;
                    }
                    bytes += read as u64;
                    self.check(bytes)?;
                    writer.write(&piece[..read])?;
                }
            }
        }
        Ok(writer.finish()?)
    }

    /// Whether it pays to go on after so many bytes.
    fn check(&self, bytes: u64) -> Result<(), NotMade> {
        if self.is_over.load(Ordering::Relaxed) {
            return Err(NotMade::Reason("the node stops".to_owned()));
        }
        if bytes > self.snapshot_bytes_max {
            let reason = too_large(bytes, self.snapshot_bytes_max);
            return Err(NotMade::Reason(reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_let_through_at_their_pace() {
        let mut options = RaftOptions {
            snapshot_bytes_per_second: Some(1_000_000),
            ..RaftOptions::default()
        };
        let traffic = SnapshotTraffic::new(&options);
        let start = Instant::now();
        let after = |due: Instant| due.duration_since(start).as_millis();
        let ms = |ms| start + Duration::from_millis(ms);
        assert_eq!(after(traffic.admit(500_000, start)), 0);
        assert_eq!(after(traffic.admit(250_000, start)), 500);
        assert_eq!(after(traffic.admit(250_000, ms(100))), 750);
        assert_eq!(
            after(traffic.admit(250_000, ms(3000))),
            3000,
            "no credit for idle time"
        );
        options.snapshot_bytes_per_second = None;
        let traffic = SnapshotTraffic::new(&options);
        assert_eq!(traffic.admit(1 << 40, start), start);
        assert_eq!(traffic.admit(1 << 40, start), start);
    }
}
