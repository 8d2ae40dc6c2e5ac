//! The state machine's side: batches of commands, answers given together.

use super::answer::Token;
use super::mailbox::Mailbox;
use super::stats::StageStats;
use crate::core::ApplyJob;
use crate::error::StopReason;
use crate::state_machine::{Command, StateMachine};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;
use std::time::Instant;

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
    Snapshot(u64, Option<Bytes>),
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

    /// Does a job. Whoever waits for a response has it afterwards.
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
                self.machine.snapshot().ok(),
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
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
        Ok(())
    }
}

pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic")
        .to_owned()
}

/// Jobs on their way to the thread of the state machine. As many as the core hands over: it bounds them by
/// `unapplied_entries_max`.
#[derive(Default)]
pub(crate) struct ApplyQueue {
    jobs: Mutex<(VecDeque<ApplyJob<Token>>, bool)>,
    bell: Condvar,
    pub(crate) stats: Mutex<StageStats>,
}

impl ApplyQueue {
    pub(crate) fn push(&self, new: impl Iterator<Item = ApplyJob<Token>>) {
        self.jobs.lock().0.extend(new);
        self.bell.notify_one();
    }

    pub(crate) fn close(&self) {
        self.jobs.lock().1 = true;
        self.bell.notify_one();
    }

    /// Drives the state machine until the queue is closed; what still waits then is dropped, which answers it.
    pub(crate) fn run(&self, mut applier: Applier, mailbox: &Mailbox) {
        let mut jobs = VecDeque::new();
        loop {
            {
                let mut waiting = self.jobs.lock();
                while waiting.0.is_empty() && !waiting.1 {
                    self.bell.wait(&mut waiting);
                }
                std::mem::swap(&mut waiting.0, &mut jobs);
                if waiting.1 {
                    return;
                }
            }
            let mut applied = 0;
            for job in jobs.drain(..) {
                match applier.run(job) {
                    Ok(Outcome::Applied(index)) => applied = index,
                    Ok(Outcome::Snapshot(index, data)) => {
                        mailbox.report(|reports| reports.snapshot = Some((index, data)));
                    }
                    Err(reason) => {
                        mailbox.report(|reports| reports.failure = Some(reason));
                        return;
                    }
                }
            }
            *self.stats.lock() = applier.stats;
            if applied > 0 {
                mailbox.report(|reports| reports.applied = reports.applied.max(applied));
            }
        }
    }
}
