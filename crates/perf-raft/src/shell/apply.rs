//! The state machine's side: batches of commands, answers given together.

use super::answer::{Token, wake_all};
use super::snapshot_io::{OwnSnapshot, SnapshotData, Source};
use super::stats::StageStats;
use crate::core::{ApplyJob, too_large};
use crate::error::{StopReason, panic_message};
use crate::log::{LogError, StoredSnapshot};
use crate::state_machine::{Command, Kind, Machine, StateMachineError};
use bytes::Bytes;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

/// The state machine with what it needs from batch to batch.
pub(crate) struct Applier {
    machine: Kind,
    /// Where the log keeps data of snapshots in pieces.
    snapshots: Option<SnapshotData>,
    snapshot_bytes_max: u64,
    /// Up to where a durable machine came along: it has these commands.
    durable: u64,
    is_restored: bool,
    responses: Vec<Bytes>,
    wakers: Vec<Waker>,
    applied: u64,
    pub(crate) stats: StageStats,
}

/// What a job led to.
pub(crate) enum Outcome {
    Applied(u64),
    Snapshot(u64, Result<OwnSnapshot, String>),
    /// Up to where the machine is durable.
    Durable(u64, Result<u64, String>),
}

impl Applier {
    pub(crate) fn new(machine: Machine, snapshot_bytes_max: usize) -> Self {
        Self {
            machine: machine.0,
            snapshots: None,
            snapshot_bytes_max: snapshot_bytes_max as u64,
            durable: 0,
            is_restored: false,
            responses: Vec::new(),
            wakers: Vec::new(),
            applied: 0,
            stats: StageStats::default(),
        }
    }

    /// Writes snapshots to the log, in pieces, and reads them there.
    pub(crate) fn set_snapshots(&mut self, snapshots: SnapshotData) {
        self.snapshots = Some(snapshots);
    }

    /// Up to where the machine is durable by itself.
    pub(crate) fn durable_index(&mut self) -> Result<Option<u64>, String> {
        match &mut self.machine {
            Kind::Whole(_) => Ok(None),
            Kind::Streamed(machine) => machine.applied_index().map_err(|error| error.to_string()),
        }
    }

    /// The machine has what comes up to this index: it is not restored, and does not get that.
    pub(crate) fn begin_at(&mut self, durable: u64) {
        self.durable = durable;
    }

    /// The state of a machine that has applied nothing.
    pub(crate) fn snapshot_at_start(&mut self) -> Result<Bytes, String> {
        let source = self.snapshot()?;
        self.in_memory(source)
    }

    fn snapshot(&mut self) -> Result<Source, String> {
        if self.applied < self.durable {
            let durable = self.durable;
            return Err(format!(
                "the state machine is at {durable}, and the replay of its log is not there yet: try again after a moment"
            ));
        }
        let source = match &mut self.machine {
            Kind::Whole(machine) => machine.snapshot().map(Source::Whole),
            Kind::Streamed(machine) => machine.snapshot().map(Source::Stream),
        };
        source.map_err(|error| error.to_string())
    }

    fn in_memory(&self, source: Source) -> Result<Bytes, String> {
        match source {
            Source::Whole(data) => Ok(data),
            Source::Stream(stream) => {
                let bytes_max = self.snapshot_bytes_max;
                let mut data = Vec::new();
                let read = stream.take(bytes_max + 1).read_to_end(&mut data);
                match read.map_err(|error| error.to_string())? as u64 {
                    bytes if bytes > bytes_max => Err(too_large(bytes, bytes_max)),
                    _ => Ok(data.into()),
                }
            }
        }
    }

    /// Does a job. Callers that wait for its responses have them afterwards.
    pub(crate) fn run(&mut self, job: ApplyJob<Token>) -> Result<Outcome, StopReason> {
        let ran = catch_unwind(AssertUnwindSafe(|| self.run_unguarded(job)));
        ran.unwrap_or_else(|panic| Err(failed(panic_message(&*panic))))
    }

    fn run_unguarded(&mut self, job: ApplyJob<Token>) -> Result<Outcome, StopReason> {
        match job {
            ApplyJob::Apply {
                mut commands,
                waiting,
                index,
            } => {
                if self.applied < self.durable {
                    // They were proposed before the start: no caller waits for their responses.
                    commands.retain(|command| command.index > self.durable);
                }
                self.apply(&commands, waiting).map_err(failed)?;
                self.applied = index;
            }
            ApplyJob::Restore(snapshot) => {
                let index = snapshot.metadata.index;
                let is_there =
                    !std::mem::replace(&mut self.is_restored, true) && index <= self.durable;
                if !is_there {
                    self.restore(snapshot)?;
                }
                self.applied = index;
            }
            ApplyJob::Snapshot => match (self.snapshot(), &self.snapshots) {
                (Ok(source), Some(snapshots)) => snapshots.begin(self.applied, source),
                (source, _) => {
                    let data = source.and_then(|source| self.in_memory(source));
                    let data = data.map(OwnSnapshot::Memory);
                    return Ok(Outcome::Snapshot(self.applied, data));
                }
            },
            ApplyJob::DurableIndex => {
                let index = self.durable_index();
                let index = index.map(|index| index.unwrap_or(0));
                return Ok(Outcome::Durable(self.applied, index));
            }
        }
        Ok(Outcome::Applied(self.applied))
    }

    fn restore(&mut self, snapshot: StoredSnapshot) -> Result<(), StopReason> {
        let index = snapshot.metadata.index;
        let restoring = |error: StateMachineError| {
            failed(format!("restoring the snapshot at {index}: {error}"))
        };
        let log_failed = |error: LogError| StopReason::Log(Arc::new(error));
        let Some(stored) = snapshot.stored else {
            let restored = match &mut self.machine {
                Kind::Whole(machine) => machine.restore(snapshot.data),
                Kind::Streamed(machine) => machine.restore(&mut &snapshot.data[..], index),
            };
            return restored.map_err(restoring);
        };
        let snapshots = self.snapshots.as_ref();
        let stream = snapshots.map(|snapshots| snapshots.open(stored));
        let mut stream = stream
            .unwrap_or_else(|| Err(no_pieces()))
            .map_err(log_failed)?;
        let restored = match &mut self.machine {
            Kind::Whole(machine) => {
                let mut data = Vec::with_capacity(usize::try_from(stored.bytes).unwrap_or(0));
                let read = stream.read_to_end(&mut data).map_err(Into::into);
                read.and_then(|_| machine.restore(data.into()))
            }
            Kind::Streamed(machine) => machine.restore(&mut stream, index),
        };
        match (stream.failed.take(), restored) {
            (Some(error), _) => Err(log_failed(error)),
            (None, Err(error)) => Err(restoring(error)),
            // A state of damaged data must not be used.
            (None, Ok(())) => stream.finish().map_err(log_failed),
        }
    }

    fn apply(&mut self, commands: &[Command], waiting: Vec<(usize, Token)>) -> Result<(), String> {
        if commands.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        self.responses.clear();
        match &mut self.machine {
            Kind::Whole(machine) => machine.apply(commands, &mut self.responses),
            Kind::Streamed(machine) => machine.apply(commands, &mut self.responses),
        }
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

fn failed(reason: String) -> StopReason {
    StopReason::StateMachine(reason.into())
}

/// The log names data of a snapshot, and does not give it out.
pub(crate) fn no_pieces() -> LogError {
    LogError::Unsupported {
        reason: "the log store names a snapshot in pieces and has no `snapshots`: implement that too, or pass it on".to_owned(),
    }
}
