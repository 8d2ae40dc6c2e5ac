//! The thread that writes the log of all groups of a host. While one write and its fsync are under way, jobs gather for the next: group commit.

use super::mailbox::Mailbox;
use super::stats::StageStats;
use crate::GroupId;
use crate::error::{StopReason, panic_message};
use crate::log::{
    LogError, LogJob, LogOutline, LogReader, LogState, LogStore, SnapshotStore, StoredSnapshot,
    run_jobs,
};
use crate::primitive::threads::{Condvar, Mutex, thread};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{oneshot, watch};

/// Work on the store that is no job; it gets the error if the log has failed.
type Call = Box<dyn FnOnce(Result<&mut HostedLog, LogError>) + Send>;

#[derive(Default)]
struct Queue {
    jobs: Vec<LogJob>,
    /// Whose jobs these are, in their order, with the sequence of the last one of each push.
    owners: Vec<(Arc<Mailbox>, u64)>,
    /// Done after the jobs that were there before them.
    calls: Vec<Call>,
    closed: bool,
    /// Nothing is written any more.
    failed: Option<LogError>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wakeup: Condvar,
    stats: Mutex<StageStats>,
}

/// The thread's handle. Dropping it lets the thread write what it has and end.
pub(crate) struct LogThread {
    shared: Arc<Shared>,
    /// Closed when the thread has ended, and the store is dropped.
    ended: watch::Receiver<()>,
}

impl LogThread {
    /// Starts the thread of node `id`. A store that is not shared is for one group, and refuses another one's beginning.
    pub(crate) fn start(
        store: Box<dyn LogStore>,
        is_shared: bool,
        id: u64,
    ) -> std::io::Result<Self> {
        let mut log = HostedLog {
            store,
            is_shared,
            failed: None,
        };
        let shared = Arc::new(Shared::default());
        let (end, ended) = watch::channel(());
        let its = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("raft-log-{id}"))
            .spawn(move || {
                its.run(&mut log);
                drop(log);
                drop(end);
            })?;
        Ok(Self { shared, ended })
    }

    /// Takes jobs of one group, to be written once the thread is [woken](Self::wake); `owner` is told when they are durable, or that the log
    /// has failed.
    ///
    /// Jobs on their way are bounded by what Raft has in flight: one for each batch of proposals or append message.
    pub(crate) fn push(&self, jobs: &mut Vec<LogJob>, owner: &Arc<Mailbox>) {
        let last = jobs.iter().map(|job| job.sequence).max().unwrap_or(0);
        let mut queue = self.shared.queue.lock();
        if let Some(error) = &queue.failed {
            let error = error.clone();
            drop(queue);
            jobs.clear();
            fail(owner, error);
            return;
        }
        queue.jobs.append(jobs);
        queue.owners.push((Arc::clone(owner), last));
    }

    /// Lets the thread write what was pushed.
    pub(crate) fn wake(&self) {
        self.shared.wakeup.notify_one();
    }

    /// Does something with the store on its thread, after the jobs that were pushed before.
    ///
    /// # Errors
    /// That of the log, if it has failed.
    pub(crate) async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut HostedLog) -> R + Send + 'static,
    ) -> Result<R, LogError> {
        let (give, taken) = oneshot::channel();
        self.submit(Box::new(move |store| {
            let outcome = store.and_then(|store| {
                catch_unwind(AssertUnwindSafe(|| work(store)))
                    .map_err(|panic| panicked("using the log", &*panic))
            });
            // Its caller may have given up.
            let _ = give.send(outcome);
        }))?;
        // The thread does all calls before it ends.
        let gone = || panicked("using the log", &"its thread has ended");
        taken.await.unwrap_or_else(|_| Err(gone()))
    }

    fn submit(&self, call: Call) -> Result<(), LogError> {
        let mut queue = self.shared.queue.lock();
        if let Some(error) = &queue.failed {
            return Err(error.clone());
        }
        queue.calls.push(call);
        drop(queue);
        self.shared.wakeup.notify_one();
        Ok(())
    }

    pub(crate) fn stats(&self) -> StageStats {
        let waiting = self.shared.queue.lock().jobs.len() as u64;
        StageStats {
            waiting,
            ..*self.shared.stats.lock()
        }
    }

    /// Waits until what was pushed before is written; the last handle waits for the end of the thread too, and for that of the store.
    pub(crate) async fn close(self: Arc<Self>) {
        match Arc::try_unwrap(self) {
            Ok(last) => last.end().await,
            // Nothing is to be known of a log that has failed.
            Err(shared) => drop(shared.call(|_| ()).await),
        }
    }

    /// Lets the thread write what it has, and waits for its end and for that of the store. What comes later is refused.
    pub(crate) async fn end(&self) {
        self.shared.close();
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.shared.close();
    }
}

fn panicked(action: &'static str, panic: &(dyn std::any::Any + Send)) -> LogError {
    LogError::Io {
        file: PathBuf::new(),
        action,
        reason: panic_message(panic),
    }
}

fn fail(owner: &Mailbox, error: LogError) {
    let reason = StopReason::Log(Arc::new(error));
    owner.report(|reports| reports.failure = Some(reason));
}

impl Shared {
    fn close(&self) {
        self.queue.lock().closed = true;
        self.wakeup.notify_one();
    }

    fn run(&self, log: &mut HostedLog) {
        let (mut jobs, mut owners) = (Vec::new(), Vec::new());
        loop {
            let calls;
            {
                let mut queue = self.queue.lock();
                while queue.jobs.is_empty() && queue.calls.is_empty() && !queue.closed {
                    self.wakeup.wait(&mut queue);
                }
                if queue.jobs.is_empty() && queue.calls.is_empty() {
                    queue.failed = Some(LogError::Unsupported {
                        reason: "the log is closed".to_owned(),
                    });
                    return;
                }
                std::mem::swap(&mut queue.jobs, &mut jobs);
                std::mem::swap(&mut queue.owners, &mut owners);
                calls = std::mem::take(&mut queue.calls);
            }
            if let Err(error) = self.write(log, &mut jobs) {
                self.fail(&owners, calls, &error);
                return;
            }
            for (owner, sequence) in owners.drain(..) {
                owner.report(|reports| reports.persisted = reports.persisted.max(sequence));
            }
            let mut calls = calls.into_iter();
            while let Some(call) = calls.next() {
                call(Ok(log));
                if let Some(error) = log.failed.take() {
                    self.fail(&owners, calls.collect(), &error);
                    return;
                }
            }
        }
    }

    fn write(&self, log: &mut HostedLog, jobs: &mut Vec<LogJob>) -> Result<(), LogError> {
        if jobs.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let written = catch_unwind(AssertUnwindSafe(|| run_jobs(log, jobs)));
        written.unwrap_or_else(|panic| Err(panicked("writing the log", &*panic)))?;
        self.stats.lock().add(jobs.len() as u64, start.elapsed());
        jobs.clear();
        Ok(())
    }

    /// Tells the error to all groups and callers that wait, and to all that come from now on.
    fn fail(&self, owners: &[(Arc<Mailbox>, u64)], mut calls: Vec<Call>, error: &LogError) {
        let mut queue = self.queue.lock();
        queue.failed = Some(error.clone());
        queue.jobs.clear();
        let later = std::mem::take(&mut queue.owners);
        calls.append(&mut queue.calls);
        drop(queue);
        for (owner, _) in owners.iter().chain(&later) {
            fail(owner, error.clone());
        }
        for call in calls {
            call(Err(error.clone()));
        }
    }
}

/// The store of a host: remembers a write that failed, after which the store must not be used.
pub(crate) struct HostedLog {
    store: Box<dyn LogStore>,
    /// Several groups may be in it: none begins in the place of another.
    is_shared: bool,
    failed: Option<LogError>,
}

impl HostedLog {
    /// All groups of which the store holds anything.
    pub(crate) fn all_groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        self.store.groups()
    }

    fn note<R>(&mut self, outcome: Result<R, LogError>) -> Result<R, LogError> {
        if let Err(error) = &outcome {
            self.failed.get_or_insert_with(|| error.clone());
        }
        outcome
    }
}

impl LogStore for HostedLog {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        self.store.load(group)
    }

    fn save_snapshot(&mut self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        let saved = self.store.save_snapshot(group, snapshot);
        self.note(saved)
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        let written = self.store.write(jobs, sync);
        self.note(written)
    }

    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        if self.is_shared {
            return Ok(Vec::new());
        }
        self.store.groups()
    }

    fn outline(&mut self, group: GroupId) -> Result<Option<LogOutline>, LogError> {
        self.store.outline(group)
    }

    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, LogError> {
        self.store.snapshots()
    }

    fn reader(&mut self) -> Result<Option<Box<dyn LogReader>>, LogError> {
        self.store.reader()
    }

    fn damage(&self) -> Option<String> {
        self.store.damage()
    }
}
