//! Writes messages of the `raft` crate without building anything in between, after measuring them exactly.
//!
//! The order of fields is that of raft's own codec, so the bytes are the same.

use bytes::BufMut;
use prost::encoding::{encode_varint, encoded_len_varint};
use raft::eraftpb::{ConfState, Entry, Message, Snapshot, SnapshotMetadata};

/// Wire types of protobuf: <https://protobuf.dev/programming-guides/encoding/#structure>.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;

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

#[inline]
pub(super) fn put_uint(buf: &mut impl BufMut, tag: u64, value: u64) {
    if value != 0 {
        put_uint_always(buf, tag, value);
    }
}

#[inline]
fn put_uint_always(buf: &mut impl BufMut, tag: u64, value: u64) {
    encode_varint((tag << 3) | VARINT, buf);
    encode_varint(value, buf);
}

#[inline]
pub(super) fn put_bool(buf: &mut impl BufMut, tag: u64, value: bool) {
    if value {
        encode_varint((tag << 3) | VARINT, buf);
        buf.put_u8(1);
    }
}

#[inline]
pub(super) fn put_fixed64(buf: &mut impl BufMut, tag: u64, value: u64) {
    if value != 0 {
        encode_varint((tag << 3) | FIXED64, buf);
        buf.put_u64_le(value);
    }
}

#[inline]
pub(super) fn put_header(buf: &mut impl BufMut, tag: u64, len: usize) {
    encode_varint((tag << 3) | LENGTH_DELIMITED, buf);
    encode_varint(len as u64, buf);
}

#[inline]
pub(super) fn put_bytes(buf: &mut impl BufMut, tag: u64, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_header(buf, tag, bytes.len());
        buf.put_slice(bytes);
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

pub(super) fn put_entry(buf: &mut impl BufMut, entry: &Entry) {
    put_uint(buf, 1, entry.entry_type as u64);
    put_uint(buf, 2, entry.term);
    put_uint(buf, 3, entry.index);
    put_bytes(buf, 4, &entry.data);
    put_bytes(buf, 6, &entry.context);
    put_bool(buf, 5, entry.sync_log);
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

fn put_conf_state(buf: &mut impl BufMut, state: &ConfState) {
    for (tag, ids) in lists(state) {
        for &id in ids {
            put_uint_always(buf, tag, id);
        }
    }
    put_bool(buf, 5, state.auto_leave);
}

fn metadata_len(metadata: &SnapshotMetadata) -> usize {
    let state = metadata.conf_state.as_ref();
    state.map_or(0, |state| len_delimited(1, conf_state_len(state)))
        + len_uint(2, metadata.index)
        + len_uint(3, metadata.term)
}

fn put_metadata(buf: &mut impl BufMut, metadata: &SnapshotMetadata) {
    if let Some(state) = metadata.conf_state.as_ref() {
        put_header(buf, 1, conf_state_len(state));
        put_conf_state(buf, state);
    }
    put_uint(buf, 2, metadata.index);
    put_uint(buf, 3, metadata.term);
}

fn snapshot_len(snapshot: &Snapshot) -> usize {
    let metadata = snapshot.metadata.as_ref();
    len_bytes(1, &snapshot.data)
        + metadata.map_or(0, |metadata| len_delimited(2, metadata_len(metadata)))
}

fn put_snapshot(buf: &mut impl BufMut, snapshot: &Snapshot) {
    put_bytes(buf, 1, &snapshot.data);
    if let Some(metadata) = snapshot.metadata.as_ref() {
        put_header(buf, 2, metadata_len(metadata));
        put_metadata(buf, metadata);
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

pub(super) fn put_message(buf: &mut impl BufMut, message: &Message, to: u64) {
    put_uint(buf, 1, message.msg_type as u64);
    put_uint(buf, 2, to);
    put_uint(buf, 3, message.from);
    put_uint(buf, 4, message.term);
    put_uint(buf, 5, message.log_term);
    put_uint(buf, 6, message.index);
    for entry in message.entries.iter() {
        put_header(buf, 7, entry_len(entry));
        put_entry(buf, entry);
    }
    put_uint(buf, 8, message.commit);
    put_uint(buf, 15, message.commit_term);
    if let Some(snapshot) = message.snapshot.as_ref() {
        put_header(buf, 9, snapshot_len(snapshot));
        put_snapshot(buf, snapshot);
    }
    put_uint(buf, 13, message.request_snapshot);
    put_bool(buf, 10, message.reject);
    put_uint(buf, 11, message.reject_hint);
    put_bytes(buf, 12, &message.context);
    put_uint(buf, 14, message.deprecated_priority);
    put_uint(buf, 16, message.priority.cast_unsigned());
}
