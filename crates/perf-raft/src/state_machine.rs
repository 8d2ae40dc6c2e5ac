//! What a group replicates.

use bytes::Bytes;
use std::error::Error;

/// A committed proposal on its way to the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The entry of the log that holds it. Never falls, and has gaps: Raft has entries of its own.
    pub index: u64,
    /// Its place in that entry, from 0: commands that were proposed together share one. `(index, place)` grows from command to command and names
    /// each for ever.
    pub place: u32,
    /// The term it was proposed in.
    pub term: u64,
    /// What was proposed. Shares its memory with other commands: copy what is kept for long.
    pub data: Bytes,
}

/// What a group replicates: the same commands in the same order on every node.
///
/// It is driven from one place and may block for as long as
/// [`RaftOptions::unapplied_entries_max`](crate::RaftOptions::unapplied_entries_max) allows. It need not be durable: at the
/// start of a node it is restored from the last snapshot and gets what the log has after it.
///
/// ```
/// use bytes::Bytes;
/// use perf_raft::{Command, StateMachine, StateMachineError};
///
/// /// Counts bytes.
/// #[derive(Default)]
/// struct Count(u64);
///
/// impl StateMachine for Count {
///     fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
///         for command in batch {
///             self.0 += command.data.len() as u64;
///             responses.push(Bytes::copy_from_slice(&self.0.to_le_bytes()));
///         }
///     }
///
///     fn snapshot(&mut self) -> Result<Bytes, StateMachineError> {
///         Ok(Bytes::copy_from_slice(&self.0.to_le_bytes()))
///     }
///
///     fn restore(&mut self, snapshot: Bytes) -> Result<(), StateMachineError> {
///         self.0 = u64::from_le_bytes(snapshot.as_ref().try_into()?);
///         Ok(())
///     }
/// }
/// ```
pub trait StateMachine: Send + 'static {
    /// Applies commands in their order and pushes one response for each. Must be a function of the state and the
    /// commands alone: no clock, no chance.
    ///
    /// A wrong number of responses stops the node.
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>);

    /// The whole state as bytes, at most [`RaftOptions::snapshot_bytes_max`](crate::RaftOptions::snapshot_bytes_max).
    ///
    /// # Errors
    /// Whatever hinders it. The node goes on and tries again later.
    fn snapshot(&mut self) -> Result<Bytes, StateMachineError>;

    /// Puts the state of a snapshot in the place of the present one.
    ///
    /// # Errors
    /// Whatever hinders it. The node stops, since it cannot go on from here.
    fn restore(&mut self, snapshot: Bytes) -> Result<(), StateMachineError>;
}

/// What a state machine says when it fails.
pub type StateMachineError = Box<dyn Error + Send + Sync>;
