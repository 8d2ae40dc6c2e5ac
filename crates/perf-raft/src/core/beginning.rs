//! Whose log this is, and how a new group begins.

use crate::GroupId;
use crate::error::StartError;
use crate::log::{LogError, LogJob, LogState, LogStore, StoredSnapshot, run_jobs};
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
        }),
        compacted: (1, 1),
        ..Default::default()
    }
}

/// Reads what the log of a node holds. An empty log becomes this node's: its identity is made durable, and with `voters` the beginning of a group.
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
) -> Result<LogState, StartError> {
    let id = drawn.node;
    let ours = || format!("node {id} of group {}", group.0);
    if let Some(mut state) = log.load(group)? {
        match state.identity {
            Some(identity) if identity.node != id && !mutant::is("log_of_another_node") => {
                return Err(StartError::WrongLog {
                    theirs: format!("node {} of group {}", identity.node, group.0),
                    ours: ours(),
                });
            }
            Some(_) => {}
            // Of an earlier version.
            None => {
                write_identity(log, group, drawn, None)?;
                state.identity = Some(drawn);
            }
        }
        return Ok(state);
    }
    if let Some(other) = log.groups()?.first()
        && !mutant::is("log_of_another_group")
    {
        return Err(StartError::WrongLog {
            theirs: format!("group {}", other.0),
            ours: ours(),
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
