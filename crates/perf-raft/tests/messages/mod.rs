//! Random messages of every type, with every field that raft has.

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use rand::Rng;
use rand::rngs::StdRng;

const TYPES: [MessageType; 19] = [
    MessageType::MsgHup,
    MessageType::MsgBeat,
    MessageType::MsgPropose,
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgUnreachable,
    MessageType::MsgSnapStatus,
    MessageType::MsgCheckQuorum,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// Small, middling and huge numbers, and 0, which protobuf leaves out.
fn number(random: &mut StdRng) -> u64 {
    match random.random_range(0..4) {
        0 => 0,
        1 => random.random_range(0..200),
        2 => u64::from(random.random::<u32>()),
        _ => random.random(),
    }
}

fn bytes(random: &mut StdRng) -> Bytes {
    let len = match random.random_range(0..5) {
        0 => 0,
        1..=3 => random.random_range(0..40),
        _ => random.random_range(0..400),
    };
    (0..len).map(|_| random.random::<u8>()).collect()
}

fn ids(random: &mut StdRng) -> Vec<u64> {
    let count = random.random_range(0..4);
    (0..count).map(|_| number(random)).collect()
}

pub(crate) fn message(random: &mut StdRng) -> Message {
    let mut message = Message {
        to: number(random),
        from: number(random),
        term: number(random),
        log_term: number(random),
        index: number(random),
        commit: number(random),
        commit_term: number(random),
        request_snapshot: number(random),
        reject: random.random(),
        reject_hint: number(random),
        context: bytes(random),
        deprecated_priority: number(random),
        priority: number(random).cast_signed(),
        ..Default::default()
    };
    message.set_msg_type(TYPES[random.random_range(0..TYPES.len())]);
    let count = random.random_range(0..5);
    let entries: Vec<Entry> = (0..count)
        .map(|_| Entry {
            entry_type: [
                EntryType::EntryNormal,
                EntryType::EntryConfChange,
                EntryType::EntryConfChangeV2,
            ][random.random_range(0..3)],
            term: number(random),
            index: number(random),
            data: bytes(random),
            context: bytes(random),
            sync_log: random.random(),
            ..Default::default()
        })
        .collect();
    message.set_entries(entries.into());
    if random.random_range(0..4) == 0 {
        message.set_snapshot(snapshot(random));
    }
    message
}

fn snapshot(random: &mut StdRng) -> Snapshot {
    let mut snapshot = Snapshot {
        data: bytes(random),
        ..Default::default()
    };
    if random.random() {
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (number(random), number(random));
        if random.random() {
            metadata.set_conf_state(ConfState {
                voters: ids(random),
                learners: ids(random),
                voters_outgoing: ids(random),
                learners_next: ids(random),
                auto_leave: random.random(),
                ..Default::default()
            });
        }
    }
    snapshot
}
