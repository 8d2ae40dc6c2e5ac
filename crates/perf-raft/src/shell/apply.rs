//! The state machine's side: batches of commands, answers given together.

use super::answer::{Token, wake_all};
use super::mailbox::Mailbox;
use super::stats::StageStats;
use crate::core::ApplyJob;
use crate::error::{StopReason, panic_message};
use crate::primitive::Ordering;
use crate::primitive::threads::{AtomicBool, Condvar, Mutex, thread};
use crate::state_machine::{Command, StateMachine};
use bytes::Bytes;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The thread of the state machine.
pub(crate) struct ApplyThread {
    pub(crate) queue: Arc<ApplyQueue>,
    ended: Option<oneshot::Receiver<()>>,
}

impl ApplyThread {
    pub(crate) fn start(applier: Applier, mailbox: Arc<Mailbox>) -> std::io::Result<Self> {
        let queue = Arc::new(ApplyQueue::default());
        let (end, ended) = oneshot::channel();
        let its = Arc::clone(&queue);
        thread::Builder::new()
            .name(format!("raft-apply-{}", mailbox.id))
            .spawn(move || {
                its.run(applier, &mailbox);
                // The node may be gone.
                let _ = end.send(());
            })?;
        Ok(Self {
            queue,
            ended: Some(ended),
        })
    }

    /// Waits until the batch that is being applied is done and the state machine is dropped.
    pub(crate) async fn close(mut self) {
        self.queue.close();
        if let Some(ended) = self.ended.take() {
            // An error means that the state machine's destructor panicked.
            let _ = ended.await;
        }
    }
}

impl Drop for ApplyThread {
    /// The runtime may end without a word; the thread shall not outlive the node.
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// The state machine with what it needs from batch to batch.
pub(crate) struct Applier {
    machine: Box<dyn StateMachine>,
    responses: Vec<Bytes>,
    wakers: Vec<Waker>,
    applied: u64,
    pub(crate) stats: StageStats,
}

/// What a job led to.
pub(crate) enum Outcome {
    Applied(u64),
    Snapshot(u64, Result<Bytes, String>),
}

impl Applier {
    pub(crate) fn new(machine: Box<dyn StateMachine>) -> Self {
        Self {
            machine,
            responses: Vec::new(),
            wakers: Vec::new(),
            applied: 0,
            stats: StageStats::default(),
        }
    }

    /// The state of a machine that has applied nothing.
    pub(crate) fn snapshot_at_start(&mut self) -> Result<Bytes, String> {
        self.machine.snapshot().map_err(|error| error.to_string())
    }

    /// Does a job. Callers that wait for its responses have them afterwards.
    pub(crate) fn run(&mut self, job: ApplyJob<Token>) -> Result<Outcome, StopReason> {
        let machine = |reason: String| StopReason::StateMachine(reason.into());
        let ran = catch_unwind(AssertUnwindSafe(|| self.run_unguarded(job)));
        match ran {
            Ok(outcome) => outcome.map_err(machine),
            Err(panic) => Err(machine(panic_message(&*panic))),
        }
    }

    fn run_unguarded(&mut self, job: ApplyJob<Token>) -> Result<Outcome, String> {
        match job {
            ApplyJob::Apply {
                commands,
                waiting,
                index,
            } => {
                self.apply(&commands, waiting)?;
                self.applied = index;
                Ok(Outcome::Applied(index))
            }
            ApplyJob::Restore(snapshot) => {
                let index = snapshot.metadata.index;
                self.machine
                    .restore(snapshot.data)
                    .map_err(|error| format!("restoring the snapshot at {index}: {error}"))?;
                self.applied = index;
                Ok(Outcome::Applied(index))
            }
            ApplyJob::Snapshot => Ok(Outcome::Snapshot(
                self.applied,
                self.machine.snapshot().map_err(|error| error.to_string()),
            )),
        }
    }

    fn apply(&mut self, commands: &[Command], waiting: Vec<(usize, Token)>) -> Result<(), String> {
        if commands.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        self.responses.clear();
        self.machine.apply(commands, &mut self.responses);
        if self.responses.len() != commands.len() {
            return Err(format!(
                "{} responses to {} commands",
                self.responses.len(),
                commands.len()
            ));
        }
        for (place, token) in waiting {
            let response = self
                .responses
                .get_mut(place)
                .map(std::mem::take)
                .unwrap_or_default();
            self.wakers.extend(token.respond(response));
        }
        self.stats.add(commands.len() as u64, start.elapsed());
        wake_all(&mut self.wakers);
        Ok(())
    }
}

/// After so much time in the state machine the node is told how far that is, though more jobs wait: reads and the bound on entries that are
/// not applied depend on it.
const REPORT_AFTER: Duration = Duration::from_millis(1);

/// Jobs on their way to the thread of the state machine. As many as the core hands over: it bounds them by
/// `unapplied_entries_max`.
#[derive(Default)]
pub(crate) struct ApplyQueue {
    jobs: Mutex<(VecDeque<ApplyJob<Token>>, bool)>,
    wakeup: Condvar,
    /// The same as in `jobs`, without the lock.
    is_closed: AtomicBool,
    pub(crate) stats: Mutex<StageStats>,
}

impl ApplyQueue {
    pub(crate) fn push(&self, new: impl Iterator<Item = ApplyJob<Token>>) {
        self.jobs.lock().0.extend(new);
        self.wakeup.notify_one();
    }

    pub(crate) fn close(&self) {
        self.jobs.lock().1 = true;
        self.is_closed.store(true, Ordering::Relaxed);
        self.wakeup.notify_one();
    }

    /// Drives the state machine until the queue is closed; what still waits then is dropped, which answers it. The batch that is being
    /// applied when it is closed is the last.
    pub(crate) fn run(&self, mut applier: Applier, mailbox: &Mailbox) {
        let mut jobs = VecDeque::new();
        loop {
            {
                let mut waiting = self.jobs.lock();
                while waiting.0.is_empty() && !waiting.1 {
                    self.wakeup.wait(&mut waiting);
                }
                std::mem::swap(&mut waiting.0, &mut jobs);
                if waiting.1 {
                    return;
                }
            }
            let mut reported = applier.stats.busy;
            let report = |applied: u64| {
                mailbox.report(|reports| reports.applied = reports.applied.max(applied));
            };
            let mut applied = 0;
            for job in jobs.drain(..) {
                if self.is_closed.load(Ordering::Relaxed) {
                    return;
                }
                match applier.run(job) {
                    Ok(Outcome::Applied(index)) => {
                        applied = index;
                        if applier.stats.busy - reported >= REPORT_AFTER {
                            reported = applier.stats.busy;
                            *self.stats.lock() = applier.stats;
                            report(applied);
                        }
                    }
                    Ok(Outcome::Snapshot(index, data)) => {
                        // First how far the machine is: Raft must know that before the log is cut there.
                        mailbox.report(|reports| {
                            reports.applied = reports.applied.max(index);
                            reports.snapshot = Some((index, data));
                        });
                    }
                    Err(reason) => {
                        mailbox.report(|reports| reports.failure = Some(reason));
                        return;
                    }
                }
            }
            *self.stats.lock() = applier.stats;
            if applied > 0 {
                report(applied);
            }
        }
    }
}
