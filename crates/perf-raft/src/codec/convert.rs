//! From the prost types to those of the `raft` crate, without copying payloads.

use super::{CodecError, wire};
use raft::eraftpb;

pub(crate) fn message_type(number: i32) -> Result<eraftpb::MessageType, CodecError> {
    use eraftpb::MessageType as T;
    const ALL: [T; 19] = [
        T::MsgHup,
        T::MsgBeat,
        T::MsgPropose,
        T::MsgAppend,
        T::MsgAppendResponse,
        T::MsgRequestVote,
        T::MsgRequestVoteResponse,
        T::MsgSnapshot,
        T::MsgHeartbeat,
        T::MsgHeartbeatResponse,
        T::MsgUnreachable,
        T::MsgSnapStatus,
        T::MsgCheckQuorum,
        T::MsgTransferLeader,
        T::MsgTimeoutNow,
        T::MsgReadIndex,
        T::MsgReadIndexResp,
        T::MsgRequestPreVote,
        T::MsgRequestPreVoteResponse,
    ];
    let index = usize::try_from(number).ok();
    let found = index.and_then(|index| ALL.get(index)).copied();
    found.ok_or(CodecError::UnknownMessageType { number })
}

pub(crate) fn entry_type(number: i32) -> Result<eraftpb::EntryType, CodecError> {
    match number {
        0 => Ok(eraftpb::EntryType::EntryNormal),
        1 => Ok(eraftpb::EntryType::EntryConfChange),
        2 => Ok(eraftpb::EntryType::EntryConfChangeV2),
        _ => Err(CodecError::UnknownEntryType { number }),
    }
}

pub(crate) fn entry(from: wire::Entry) -> Result<eraftpb::Entry, CodecError> {
    Ok(eraftpb::Entry {
        entry_type: entry_type(from.entry_type)?,
        term: from.term,
        index: from.index,
        data: from.data,
        context: from.context,
        sync_log: from.sync_log,
        ..Default::default()
    })
}

pub(crate) fn conf_state(from: wire::ConfState) -> eraftpb::ConfState {
    eraftpb::ConfState {
        voters: from.voters,
        learners: from.learners,
        voters_outgoing: from.voters_outgoing,
        learners_next: from.learners_next,
        auto_leave: from.auto_leave,
        ..Default::default()
    }
}

pub(crate) fn snapshot_metadata(from: wire::SnapshotMetadata) -> eraftpb::SnapshotMetadata {
    let mut to = eraftpb::SnapshotMetadata {
        index: from.index,
        term: from.term,
        ..Default::default()
    };
    if let Some(state) = from.conf_state {
        to.set_conf_state(conf_state(state));
    }
    to
}

fn snapshot(from: wire::Snapshot) -> eraftpb::Snapshot {
    let mut to = eraftpb::Snapshot {
        data: from.data,
        ..Default::default()
    };
    if let Some(metadata) = from.metadata {
        to.set_metadata(snapshot_metadata(metadata));
    }
    to
}

pub(crate) fn message(from: wire::Message) -> Result<eraftpb::Message, CodecError> {
    let mut to = eraftpb::Message {
        msg_type: message_type(from.msg_type)?,
        to: from.to,
        from: from.from,
        term: from.term,
        log_term: from.log_term,
        index: from.index,
        commit: from.commit,
        commit_term: from.commit_term,
        request_snapshot: from.request_snapshot,
        reject: from.reject,
        reject_hint: from.reject_hint,
        context: from.context,
        deprecated_priority: from.deprecated_priority,
        priority: from.priority,
        ..Default::default()
    };
    if !from.entries.is_empty() {
        let mut entries = Vec::with_capacity(from.entries.len());
        for item in from.entries {
            entries.push(entry(item)?);
        }
        to.set_entries(entries.into());
    }
    if let Some(from) = from.snapshot {
        to.set_snapshot(snapshot(from));
    }
    Ok(to)
}

/// A change of the membership as a committed entry holds it.
pub(crate) fn conf_change(from: wire::ConfChangeV2) -> Result<eraftpb::ConfChangeV2, CodecError> {
    let transition = match from.transition {
        0 => eraftpb::ConfChangeTransition::Auto,
        1 => eraftpb::ConfChangeTransition::Implicit,
        2 => eraftpb::ConfChangeTransition::Explicit,
        number => return Err(CodecError::UnknownConfChange { number }),
    };
    let mut changes = Vec::with_capacity(from.changes.len());
    for change in from.changes {
        changes.push(conf_change_single(change.change_type, change.node_id)?);
    }
    Ok(eraftpb::ConfChangeV2 {
        transition,
        changes: changes.into(),
        context: from.context,
        ..Default::default()
    })
}

pub(crate) fn conf_change_single(
    number: i32,
    node_id: u64,
) -> Result<eraftpb::ConfChangeSingle, CodecError> {
    let change_type = match number {
        0 => eraftpb::ConfChangeType::AddNode,
        1 => eraftpb::ConfChangeType::RemoveNode,
        2 => eraftpb::ConfChangeType::AddLearnerNode,
        number => return Err(CodecError::UnknownConfChange { number }),
    };
    Ok(eraftpb::ConfChangeSingle {
        change_type,
        node_id,
        ..Default::default()
    })
}

/// The way back, for what the log keeps.
#[cfg(feature = "durable")]
pub(crate) fn wire_conf_state(from: &eraftpb::ConfState) -> wire::ConfState {
    wire::ConfState {
        voters: from.voters.clone(),
        learners: from.learners.clone(),
        voters_outgoing: from.voters_outgoing.clone(),
        learners_next: from.learners_next.clone(),
        auto_leave: from.auto_leave,
    }
}

#[cfg(feature = "durable")]
pub(crate) fn wire_snapshot_metadata(from: &eraftpb::SnapshotMetadata) -> wire::SnapshotMetadata {
    wire::SnapshotMetadata {
        conf_state: Some(wire_conf_state(from.get_conf_state())),
        index: from.index,
        term: from.term,
    }
}
