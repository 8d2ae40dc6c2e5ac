//! What a group replicates.

use bytes::Bytes;
use std::error::Error;
use std::fmt;
use std::io::Read;

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

/// A state machine whose state need not fit into memory: its snapshots are streams.
///
/// Where the log store keeps snapshots in pieces ([`LogStore::snapshots`](crate::LogStore::snapshots)), a snapshot is
/// written by a thread of its own, and commands are applied meanwhile; on its way to a peer only the window is in
/// memory. With other stores a snapshot is in memory as a whole. Give it to a node as [`Machine::streamed`].
///
/// ```
/// use bytes::Bytes;
/// use perf_raft::{Command, StateMachineError, StreamedStateMachine};
/// use std::io::{Cursor, Read};
///
/// /// Parts of 4 KiB. A snapshot shares their memory.
/// #[derive(Default)]
/// struct Parts(Vec<Bytes>);
///
/// impl StreamedStateMachine for Parts {
///     fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
///         for command in batch {
///             let mut part = command.data.to_vec();
///             part.resize(4096, 0);
///             self.0.push(part.into());
///             responses.push(Bytes::new());
///         }
///     }
///
///     fn snapshot(&mut self) -> Result<Box<dyn Read + Send>, StateMachineError> {
///         let empty: Box<dyn Read + Send> = Box::new(std::io::empty());
///         let parts = self.0.iter().cloned();
///         Ok(parts.fold(empty, |all, part| Box::new(all.chain(Cursor::new(part)))))
///     }
///
///     fn restore(&mut self, snapshot: &mut dyn Read, _: u64) -> Result<(), StateMachineError> {
///         self.0.clear();
///         loop {
///             let mut part = Vec::new();
///             if snapshot.take(4096).read_to_end(&mut part)? == 0 {
///                 return Ok(());
///             }
///             self.0.push(part.into());
///         }
///     }
/// }
/// ```
pub trait StreamedStateMachine: Send + 'static {
    /// As [`StateMachine::apply`].
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>);

    /// The state as it is now, quickly: commands wait for this call. What is read from it, in a thread of its own, is
    /// the state of this moment, whatever is applied until then. One is read at a time.
    ///
    /// # Errors
    /// Whatever hinders it, now or while it is read. The node goes on and tries again later.
    fn snapshot(&mut self) -> Result<Box<dyn Read + Send>, StateMachineError>;

    /// Puts the state of a snapshot, of this machine or of a peer's, in the place of the present one. `index` is the
    /// place in the log that it has.
    ///
    /// # Errors
    /// Whatever hinders it, an error of the reader too. The node stops, since it cannot go on from here.
    fn restore(&mut self, snapshot: &mut dyn Read, index: u64) -> Result<(), StateMachineError>;

    /// For a machine that keeps its state itself: the index of the last command up to which that is durable, or `index`
    /// of the last [restore](Self::restore) if no command came after it. 0 for an empty one, `None`, the default, for
    /// one that is gone with the process.
    ///
    /// At a start the state must be that of all commands up to this index and of none after it: a command and its index
    /// become durable together. The machine is then neither restored nor given these commands again, and the log is
    /// kept from there only; a peer that needs a snapshot gets one that is made then. A node whose machine is beyond
    /// its log, or before what the log still has, does not start:
    /// [`StartError::StateMachine`](crate::StartError::StateMachine). While it runs, the index may lag behind, and must
    /// never be more than what a crash leaves.
    ///
    /// It is asked for at the start, and when the log is long. A restore need not be durable when it returns, but a
    /// crash in the middle of it must leave the index before.
    ///
    /// # Errors
    /// Whatever hinders it. At the start the node does not start; later it asks again.
    fn applied_index(&mut self) -> Result<Option<u64>, StateMachineError> {
        Ok(None)
    }
}

/// What a node replicates: a [`StateMachine`], which becomes one where it is given, or a [`StreamedStateMachine`].
pub struct Machine(pub(crate) Kind);

pub(crate) enum Kind {
    Whole(Box<dyn StateMachine>),
    Streamed(Box<dyn StreamedStateMachine>),
}

impl Machine {
    /// A machine whose snapshots are streams.
    #[must_use]
    pub fn streamed(machine: impl StreamedStateMachine) -> Self {
        Self(Kind::Streamed(Box::new(machine)))
    }
}

impl<M: StateMachine> From<M> for Machine {
    fn from(machine: M) -> Self {
        Self(Kind::Whole(Box::new(machine)))
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}
