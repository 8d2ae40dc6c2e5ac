//! The thread that writes the log. While one write and its fsync are under way, jobs gather for the next: group commit.

use super::mailbox::Mailbox;
use super::stats::StageStats;
use crate::error::StopReason;
use crate::log::{LogError, LogJob, LogStore, run_jobs};
use crate::primitive::threads::{Condvar, Mutex, thread};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

#[derive(Default)]
struct Queue {
    jobs: Vec<LogJob>,
    closed: bool,
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
    ended: Option<oneshot::Receiver<()>>,
}

impl LogThread {
    pub(crate) fn start(
        mut log: Box<dyn LogStore>,
        mailbox: Arc<Mailbox>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (end, ended) = oneshot::channel();
        let its = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("raft-log-{}", mailbox.id))
            .spawn(move || {
                its.run(log.as_mut(), &mailbox);
                drop(log);
                // No caller may be left waiting for it.
                let _ = end.send(());
            })?;
        Ok(Self {
            shared,
            ended: Some(ended),
        })
    }

    /// Jobs on their way are bounded by what Raft has in flight: one for each batch of proposals or append message.
    pub(crate) fn push(&self, jobs: &mut Vec<LogJob>) {
        self.shared.queue.lock().jobs.append(jobs);
        self.shared.wakeup.notify_one();
    }

    pub(crate) fn stats(&self) -> StageStats {
        let waiting = self.shared.queue.lock().jobs.len() as u64;
        StageStats {
            waiting,
            ..*self.shared.stats.lock()
        }
    }

    /// Lets it write what it has, and waits for its end.
    pub(crate) async fn close(mut self) {
        self.shared.close();
        if let Some(ended) = self.ended.take() {
            // An error means that it ended without a word: by a panic of the store's destructor.
            let _ = ended.await;
        }
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    fn close(&self) {
        self.queue.lock().closed = true;
        self.wakeup.notify_one();
    }

    fn run(&self, log: &mut dyn LogStore, mailbox: &Mailbox) {
        let mut jobs = Vec::new();
        loop {
            {
                let mut queue = self.queue.lock();
                while queue.jobs.is_empty() && !queue.closed {
                    self.wakeup.wait(&mut queue);
                }
                if queue.jobs.is_empty() {
                    return;
                }
                std::mem::swap(&mut queue.jobs, &mut jobs);
            }
            let start = Instant::now();
            let written = catch_unwind(AssertUnwindSafe(|| run_jobs(log, &mut jobs)));
            let written = written.unwrap_or_else(|panic| {
                Err(LogError::Io {
                    file: PathBuf::new(),
                    action: "writing the log",
                    reason: crate::error::panic_message(&*panic),
                })
            });
            match written {
                Ok(sequence) => {
                    self.stats.lock().add(jobs.len() as u64, start.elapsed());
                    mailbox.report(|reports| reports.persisted = reports.persisted.max(sequence));
                }
                Err(error) => {
                    let reason = StopReason::Log(Arc::new(error));
                    mailbox.report(|reports| reports.failure = Some(reason));
                    return;
                }
            }
            jobs.clear();
        }
    }
}
