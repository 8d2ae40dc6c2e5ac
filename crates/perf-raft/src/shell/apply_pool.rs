//! The threads of the state machines of a host: each group's jobs one after the other, those of several groups side by side.

use super::answer::Token;
use super::apply::{Applier, Outcome};
use super::mailbox::Mailbox;
use super::stats::StageStats;
use crate::core::ApplyJob;
use crate::primitive::threads::{AtomicBool, Condvar, Mutex, thread};
use crate::primitive::{Ordering, mutant};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// After so much time in the state machine the node is told how far that is, though more jobs wait: reads and the bound on entries that are
/// not applied depend on it.
const REPORT_AFTER: Duration = Duration::from_millis(1);

/// After so much time in one group's state machine the next group has its turn.
const TURN: Duration = Duration::from_millis(2);

/// Threads that run state machines. Dropping the pool lets them do what is queued and end.
pub(crate) struct ApplyPool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Ready>,
    wakeup: Condvar,
}

#[derive(Default)]
struct Ready {
    groups: VecDeque<Arc<ApplyQueue>>,
    closed: bool,
}

impl ApplyPool {
    /// Starts the threads of node `id`.
    pub(crate) fn start(threads: usize, id: u64) -> std::io::Result<Self> {
        let pool = Self {
            shared: Arc::default(),
        };
        for _ in 0..threads {
            let shared = Arc::clone(&pool.shared);
            thread::Builder::new()
                .name(format!("raft-apply-{id}"))
                .spawn(move || shared.run())?;
        }
        Ok(pool)
    }
}

impl Drop for ApplyPool {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.wakeup.notify_all();
    }
}

impl Shared {
    fn push(&self, group: Arc<ApplyQueue>) {
        self.queue.lock().groups.push_back(group);
        self.wakeup.notify_one();
    }

    fn pop(&self) -> Option<Arc<ApplyQueue>> {
        let mut queue = self.queue.lock();
        loop {
            let group = queue.groups.pop_front();
            if group.is_some() || queue.closed {
                return group;
            }
            self.wakeup.wait(&mut queue);
        }
    }

    fn run(&self) {
        while let Some(group) = self.pop() {
            if group.run() == Turn::More {
                self.push(group);
            }
        }
    }
}

/// Jobs of one group on their way to its state machine. As many as the core hands over: it bounds them by `unapplied_entries_max`.
pub(crate) struct ApplyQueue {
    mailbox: Arc<Mailbox>,
    state: Mutex<State>,
    /// The same as in the state, without the lock.
    is_closed: AtomicBool,
    pub(crate) stats: Mutex<StageStats>,
}

struct State {
    jobs: VecDeque<ApplyJob<Token>>,
    /// None while a thread has it, and once the queue was closed.
    applier: Option<Box<Applier>>,
    /// In the pool's queue, or with one of its threads.
    is_scheduled: bool,
    /// Told once the state machine is dropped.
    ended: Option<oneshot::Sender<()>>,
}

/// What a thread of the pool does with a group next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Done,
    More,
}

/// A group's state machine in a pool. Dropping it closes its queue.
pub(crate) struct ApplyClient {
    pub(crate) queue: Arc<ApplyQueue>,
    pool: Arc<ApplyPool>,
    ended: Option<oneshot::Receiver<()>>,
}

impl ApplyClient {
    pub(crate) fn new(pool: &Arc<ApplyPool>, applier: Applier, mailbox: Arc<Mailbox>) -> Self {
        let (end, ended) = oneshot::channel();
        let queue = Arc::new(ApplyQueue {
            mailbox,
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                applier: Some(Box::new(applier)),
                is_scheduled: false,
                ended: Some(end),
            }),
            is_closed: AtomicBool::new(false),
            stats: Mutex::default(),
        });
        Self {
            queue,
            pool: Arc::clone(pool),
            ended: Some(ended),
        }
    }

    pub(crate) fn push(&self, new: impl Iterator<Item = ApplyJob<Token>>) {
        self.schedule(|state| state.jobs.extend(new));
    }

    /// Gives memory back that no job takes.
    pub(crate) fn shrink_to_fit(&self) {
        self.queue.state.lock().jobs.shrink_to_fit();
    }

    /// Waits until the batch that is being applied is done and the state machine is dropped.
    pub(crate) async fn close(mut self) {
        self.close_queue();
        if let Some(ended) = self.ended.take() {
            // An error means that the state machine's destructor panicked.
            let _ = ended.await;
        }
    }

    /// What still waits then is dropped, which answers it. The batch that is being applied is the last.
    fn close_queue(&self) {
        self.queue.is_closed.store(true, Ordering::Relaxed);
        // The state machine is the user's code: its end has its place in the pool, as its work has.
        self.schedule(|_| ());
    }

    /// Changes the state, and gives the group to the pool if that does not have it.
    fn schedule(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.queue.state.lock();
        change(&mut state);
        let was_scheduled = std::mem::replace(&mut state.is_scheduled, true);
        drop(state);
        if !was_scheduled {
            self.pool.shared.push(Arc::clone(&self.queue));
        }
    }
}

impl Drop for ApplyClient {
    /// The runtime may end without a word; the state machine shall not outlive the node.
    fn drop(&mut self) {
        self.close_queue();
    }
}

impl ApplyQueue {
    /// Does jobs of the group until none is left or its turn is over.
    fn run(&self) -> Turn {
        let Some(mut applier) = self.state.lock().applier.take() else {
            // It has failed, or ended.
            self.end(None);
            return Turn::Done;
        };
        let begin = applier.stats.busy;
        let (mut reported, mut applied) = (begin, 0);
        loop {
            let next = {
                let mut state = self.state.lock();
                if self.is_closed.load(Ordering::Relaxed) {
                    break;
                }
                match state.jobs.pop_front() {
                    // What was done is reported first.
                    None if applied == 0 => {
                        if mutant::is("apply_queue_forgets_jobs") {
                            drop(state);
                            state = self.state.lock();
                        }
                        state.applier = Some(applier);
                        state.is_scheduled = false;
                        return Turn::Done;
                    }
                    next => next,
                }
            };
            let Some(job) = next else {
                self.report(&applier, std::mem::take(&mut applied));
                continue;
            };
            match applier.run(job) {
                Ok(Outcome::Applied(index)) => {
                    applied = index;
                    if applier.stats.busy - reported >= REPORT_AFTER {
                        reported = applier.stats.busy;
                        self.report(&applier, std::mem::take(&mut applied));
                    }
                }
                Ok(Outcome::Snapshot(index, data)) => {
                    applied = 0;
                    // First how far the machine is: Raft must know that before the log is cut there.
                    self.mailbox.report(|reports| {
                        reports.applied = reports.applied.max(index);
                        reports.snapshot = Some((index, data));
                    });
                }
                Ok(Outcome::Durable(index, durable)) => {
                    applied = 0;
                    self.mailbox.report(|reports| {
                        reports.applied = reports.applied.max(index);
                        reports.durable = Some(durable);
                    });
                }
                Err(reason) => {
                    self.mailbox
                        .report(|reports| reports.failure = Some(reason));
                    break;
                }
            }
            if applier.stats.busy - begin >= TURN {
                self.report(&applier, applied);
                self.state.lock().applier = Some(applier);
                return Turn::More;
            }
        }
        self.end(Some(applier));
        Turn::Done
    }

    fn report(&self, applier: &Applier, applied: u64) {
        *self.stats.lock() = applier.stats;
        self.mailbox
            .report(|reports| reports.applied = reports.applied.max(applied));
    }

    /// Drops the state machine and its queued jobs, which answers the callers that wait for them.
    fn end(&self, applier: Option<Box<Applier>>) {
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(applier)));
        let mut state = self.state.lock();
        state.is_scheduled = false;
        let jobs = std::mem::take(&mut state.jobs);
        let ended = state.ended.take();
        drop(state);
        drop(jobs);
        if let (Ok(()), Some(ended)) = (dropped, ended) {
            // The node may be gone.
            let _ = ended.send(());
        }
    }
}
