//! Whose log this is, and how a new group begins.

use crate::GroupId;
use crate::error::StartError;
use crate::log::{
    LogError, LogJob, LogOutline, LogReader, LogState, LogStore, StoredSnapshot, run_jobs,
};
use crate::members::{Identity, Members};
use crate::primitive::mutant;
use bytes::Bytes;
use raft::eraftpb::{HardState, SnapshotMetadata};

/// The state of a group's first members, before anything happened: entry 1 counts as applied and holds the membership.
///
/// All first members must start from the same voters and the same snapshot of the empty state machine.
#[must_use]
pub fn bootstrap_state(voters: &[u64], empty_state_machine: Bytes) -> LogState {
    let mut metadata = SnapshotMetadata {
        index: 1,
        term: 1,
        ..Default::default()
    };
    let mut voters = voters.to_vec();
    voters.sort_unstable();
    voters.dedup();
    metadata.mut_conf_state().voters.clone_from(&voters);
    LogState {
        hard_state: HardState {
            term: 1,
            commit: 1,
            ..Default::default()
        },
        snapshot: Some(StoredSnapshot {
            metadata,
            data: empty_state_machine,
            members: Members::of_founders(voters.as_slice()),
            stored: None,
        }),
        compacted: (1, 1),
        ..Default::default()
    }
}

/// What a node starts from.
#[derive(Clone, Debug)]
pub enum Start {
    /// All of a log that cannot be read beside its writes: [`Core::new`](super::Core::new).
    Entries(LogState),
    /// A log without the contents of its entries, which are fetched when they are needed: [`Core::open`](super::Core::open).
    Outline(LogOutline),
}

impl Start {
    /// Which node this is.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        match self {
            Self::Entries(state) => state.identity,
            Self::Outline(outline) => outline.identity,
        }
    }

    /// The hard state.
    #[must_use]
    pub fn hard_state(&self) -> &HardState {
        match self {
            Self::Entries(state) => &state.hard_state,
            Self::Outline(outline) => &outline.hard_state,
        }
    }

    /// The latest snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Option<&StoredSnapshot> {
        match self {
            Self::Entries(state) => state.snapshot.as_ref(),
            Self::Outline(outline) => outline.snapshot.as_ref(),
        }
    }

    /// Brings log and state machine together at a start. A machine that is durable by itself says where it is; 0 is an
    /// empty one. It must have all commands up to there, and none after. Then
    ///
    /// | the machine is | what happens |
    /// |---|---|
    /// | before the snapshot of the log | it is restored from that; if the log relied on the machine and has no data for it, an error |
    /// | between snapshot and end of the log | it is not restored, and gets what comes after its index only: the caller drops what comes before. What it has is committed |
    /// | beyond the end of the log | an error: the log has lost its end, or is another node's |
    ///
    /// Returns the index, if the machine is not to be restored.
    ///
    /// # Errors
    /// [`StartError::StateMachine`], which says where both are.
    pub fn meet_machine(&mut self, durable: Option<u64>) -> Result<Option<u64>, StartError> {
        let wrong = |reason: String| Err(StartError::StateMachine(reason));
        let snapshot = self.snapshot();
        let place = snapshot.map_or(0, |snapshot| snapshot.metadata.index);
        let has_data = snapshot.is_none_or(|snapshot| !snapshot.is_in_machine());
        let last = match self {
            Self::Entries(state) => state.compacted.0 + state.entries.len() as u64,
            Self::Outline(outline) => outline.last_index(),
        };
        let index = durable.unwrap_or(0);
        if index > last {
            return wrong(format!(
                "it is durable up to {index}, and the log ends at {last}: one of them is another node's, or the log lost its end; remove the \
                 files of both, and the node joins its group again"
            ));
        }
        if index < place || index == 0 {
            return match has_data {
                true => Ok(None),
                false => wrong(format!(
                    "it is durable up to {index}, and it was up to {place} before: the log begins there and has no snapshot; remove the files \
                     of both, and the node joins its group again"
                )),
            };
        }
        let hard_state = match self {
            Self::Entries(state) => &mut state.hard_state,
            Self::Outline(outline) => &mut outline.hard_state,
        };
        // The commit index is not written each time it grows.
        hard_state.commit = hard_state.commit.max(index);
        Ok(Some(index))
    }

    fn set_identity(&mut self, identity: Identity) {
        match self {
            Self::Entries(state) => state.identity = Some(identity),
            Self::Outline(outline) => outline.identity = Some(identity),
        }
    }

    /// Bytes of the longest payload of an entry, 0 if there is none.
    pub(crate) fn longest_payload(&self) -> usize {
        let longest = match self {
            Self::Entries(state) => LogOutline::from(state).longest(),
            Self::Outline(outline) => outline.longest(),
        };
        usize::try_from(longest).unwrap_or(usize::MAX)
    }
}

/// Reads what the log of a node holds, without the contents of its entries if those can be fetched by the reader that is returned. An empty log becomes this node's: its identity is made durable, and with `voters` the beginning of a group.
///
/// `drawn` is the node's id with an incarnation that was drawn just now; a log that has one keeps its own. `empty` is the snapshot of a
/// state machine that has applied nothing; it is asked for only if a group begins.
///
/// # Errors
/// [`StartError::WrongLog`] if the log belongs to another node or another group, [`StartError::Options`] for voters that cannot be, and what the log and `empty`
/// say.
pub fn open_log<L: LogStore + ?Sized>(
    log: &mut L,
    group: GroupId,
    drawn: Identity,
    voters: &[u64],
    empty: impl FnOnce() -> Result<Bytes, String>,
) -> Result<(Start, Option<Box<dyn LogReader>>), StartError> {
    let reader = log.reader()?;
    let found = match &reader {
        Some(_) => log.outline(group)?.map(Start::Outline),
        None => log.load(group)?.map(Start::Entries),
    };
    let start = match found {
        Some(start) => check_identity(log, group, drawn, start)?,
        None => {
            let state = begin(log, group, drawn, voters, empty)?;
            match &reader {
                Some(_) => Start::Outline(LogOutline::from(&state)),
                None => Start::Entries(state),
            }
        }
    };
    Ok((start, reader))
}

/// Whose log it is: this node's, or the node's of an earlier version, which did not say.
fn check_identity<L: LogStore + ?Sized>(
    log: &mut L,
    group: GroupId,
    drawn: Identity,
    mut start: Start,
) -> Result<Start, StartError> {
    let id = drawn.node;
    match start.identity() {
        Some(identity) if identity.node != id && !mutant::is("log_of_another_node") => {
            return Err(StartError::WrongLog {
                theirs: format!("node {} of group {}", identity.node, group.0),
                ours: format!("node {id} of group {}", group.0),
            });
        }
        Some(_) => {}
        None => {
            write_identity(log, group, drawn, None)?;
            start.set_identity(drawn);
        }
    }
    Ok(start)
}

/// A node that was never there, made durable.
fn begin<L: LogStore + ?Sized>(
    log: &mut L,
    group: GroupId,
    drawn: Identity,
    voters: &[u64],
    empty: impl FnOnce() -> Result<Bytes, String>,
) -> Result<LogState, StartError> {
    let id = drawn.node;
    if let Some(other) = log.groups()?.first()
        && !mutant::is("log_of_another_group")
    {
        return Err(StartError::WrongLog {
            theirs: format!("group {}", other.0),
            ours: format!("node {id} of group {}", group.0),
        });
    }
    if voters.is_empty() {
        write_identity(log, group, drawn, None)?;
        return Ok(LogState {
            identity: Some(drawn),
            ..LogState::default()
        });
    }
    if !voters.contains(&id) || voters.contains(&0) {
        return Err(StartError::Options {
            option: "bootstrap",
            reason: format!(
                "the first voters are {voters:?}, and this is node {id}: name all of them on each of them, none of them 0, and none on a node \
                 that joins later"
            ),
        });
    }
    let mut state = bootstrap_state(voters, empty().map_err(StartError::StateMachine)?);
    state.identity = Some(drawn);
    write_identity(log, group, drawn, Some(&state))?;
    Ok(state)
}

/// With the beginning of a group, if there is one.
fn write_identity<L: LogStore + ?Sized>(
    log: &mut L,
    group: GroupId,
    identity: Identity,
    beginning: Option<&LogState>,
) -> Result<(), LogError> {
    let job = LogJob {
        sequence: 0,
        group,
        snapshot: beginning.and_then(|state| state.snapshot.clone()),
        replaces_log: beginning.is_some(),
        hard_state: beginning.map(|state| state.hard_state.clone()),
        identity: Some(identity),
        ..Default::default()
    };
    run_jobs(log, &mut [job])?;
    Ok(())
}
