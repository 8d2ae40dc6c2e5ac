//! The state machine's side: batches of commands, answers given together.

use super::answer::{Token, wake_all};
use super::stats::StageStats;
use crate::core::ApplyJob;
use crate::error::{StopReason, panic_message};
use crate::state_machine::{Command, StateMachine};
use bytes::Bytes;
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
