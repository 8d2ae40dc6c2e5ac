//! Writes messages of the `raft` crate without building anything in between, after measuring them exactly.
//!
//! The order of fields is that of raft's own codec, so the bytes are the same.

use super::writer::Writer;
use bytes::BufMut;
use prost::encoding::encoded_len_varint;
use raft::eraftpb::{ConfState, Entry, Message, Snapshot, SnapshotMetadata};

#[inline]
pub(super) fn len_uint(tag: u64, value: u64) -> usize {
    if value == 0 {
        0
    } else {
        len_uint_always(tag, value)
    }
}

#[inline]
fn len_uint_always(tag: u64, value: u64) -> usize {
    encoded_len_varint(tag << 3) + encoded_len_varint(value)
}

#[inline]
fn len_bool(tag: u64, value: bool) -> usize {
    if value {
        encoded_len_varint(tag << 3) + 1
    } else {
        0
    }
}

#[inline]
pub(super) fn len_delimited(tag: u64, len: usize) -> usize {
    encoded_len_varint(tag << 3) + encoded_len_varint(len as u64) + len
}

#[inline]
pub(super) fn len_bytes(tag: u64, bytes: &[u8]) -> usize {
    if bytes.is_empty() {
        0
    } else {
        len_delimited(tag, bytes.len())
    }
}

pub(super) fn entry_len(entry: &Entry) -> usize {
    len_uint(1, entry.entry_type as u64)
        + len_uint(2, entry.term)
        + len_uint(3, entry.index)
        + len_bytes(4, &entry.data)
        + len_bytes(6, &entry.context)
        + len_bool(5, entry.sync_log)
}

pub(super) fn put_entry(writer: &mut Writer<impl BufMut>, entry: &Entry) {
    writer.uint(1, entry.entry_type as u64);
    writer.uint(2, entry.term);
    writer.uint(3, entry.index);
    writer.bytes(4, &entry.data);
    writer.bytes(6, &entry.context);
    writer.bool(5, entry.sync_log);
}

fn lists(state: &ConfState) -> [(u64, &[u64]); 4] {
    [
        (1, &state.voters),
        (2, &state.learners),
        (3, &state.voters_outgoing),
        (4, &state.learners_next),
    ]
}

fn conf_state_len(state: &ConfState) -> usize {
    let list = |(tag, ids): (u64, &[u64])| -> usize {
        ids.iter().map(|&id| len_uint_always(tag, id)).sum()
    };
    lists(state).into_iter().map(list).sum::<usize>() + len_bool(5, state.auto_leave)
}

fn put_conf_state(writer: &mut Writer<impl BufMut>, state: &ConfState) {
    for (tag, ids) in lists(state) {
        for &id in ids {
            writer.uint_always(tag, id);
        }
    }
    writer.bool(5, state.auto_leave);
}

fn metadata_len(metadata: &SnapshotMetadata) -> usize {
    let state = metadata.conf_state.as_ref();
    state.map_or(0, |state| len_delimited(1, conf_state_len(state)))
        + len_uint(2, metadata.index)
        + len_uint(3, metadata.term)
}

fn put_metadata(writer: &mut Writer<impl BufMut>, metadata: &SnapshotMetadata) {
    if let Some(state) = metadata.conf_state.as_ref() {
        writer.header(1, conf_state_len(state));
        put_conf_state(writer, state);
    }
    writer.uint(2, metadata.index);
    writer.uint(3, metadata.term);
}

fn snapshot_len(snapshot: &Snapshot) -> usize {
    let metadata = snapshot.metadata.as_ref();
    len_bytes(1, &snapshot.data)
        + metadata.map_or(0, |metadata| len_delimited(2, metadata_len(metadata)))
}

fn put_snapshot(writer: &mut Writer<impl BufMut>, snapshot: &Snapshot) {
    writer.bytes(1, &snapshot.data);
    if let Some(metadata) = snapshot.metadata.as_ref() {
        writer.header(2, metadata_len(metadata));
        put_metadata(writer, metadata);
    }
}

/// How many bytes [`put_message`] writes with `to` in the place of the receiver.
pub(super) fn message_len(message: &Message, to: u64) -> usize {
    let entries = message.entries.iter();
    let snapshot = message.snapshot.as_ref();
    len_uint(1, message.msg_type as u64)
        + len_uint(2, to)
        + len_uint(3, message.from)
        + len_uint(4, message.term)
        + len_uint(5, message.log_term)
        + len_uint(6, message.index)
        + entries
            .map(|entry| len_delimited(7, entry_len(entry)))
            .sum::<usize>()
        + len_uint(8, message.commit)
        + len_uint(15, message.commit_term)
        + snapshot.map_or(0, |snapshot| len_delimited(9, snapshot_len(snapshot)))
        + len_uint(13, message.request_snapshot)
        + len_bool(10, message.reject)
        + len_uint(11, message.reject_hint)
        + len_bytes(12, &message.context)
        + len_uint(14, message.deprecated_priority)
        + len_uint(16, message.priority.cast_unsigned())
}

pub(super) fn put_message(writer: &mut Writer<impl BufMut>, message: &Message, to: u64) {
    writer.uint(1, message.msg_type as u64);
    writer.uint(2, to);
    writer.uint(3, message.from);
    writer.uint(4, message.term);
    writer.uint(5, message.log_term);
    writer.uint(6, message.index);
    for entry in message.entries.iter() {
        writer.header(7, entry_len(entry));
        put_entry(writer, entry);
    }
    writer.uint(8, message.commit);
    writer.uint(15, message.commit_term);
    if let Some(snapshot) = message.snapshot.as_ref() {
        writer.header(9, snapshot_len(snapshot));
        put_snapshot(writer, snapshot);
    }
    writer.uint(13, message.request_snapshot);
    writer.bool(10, message.reject);
    writer.uint(11, message.reject_hint);
    writer.bytes(12, &message.context);
    writer.uint(14, message.deprecated_priority);
    writer.uint(16, message.priority.cast_unsigned());
}
