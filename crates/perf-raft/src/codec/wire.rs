//! The messages of `eraftpb.proto` as prost types. Only these ever parse bytes that come from a network.
//!
//! Fields of type `Bytes` are slices of the frame they were decoded from.

use bytes::Bytes;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Entry {
    #[prost(int32, tag = "1")]
    pub(crate) entry_type: i32,
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) data: Bytes,
    #[prost(bytes = "bytes", tag = "6")]
    pub(crate) context: Bytes,
    #[prost(bool, tag = "5")]
    pub(crate) sync_log: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ConfState {
    #[prost(uint64, repeated, packed = "false", tag = "1")]
    pub(crate) voters: Vec<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "2")]
    pub(crate) learners: Vec<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "3")]
    pub(crate) voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    pub(crate) learners_next: Vec<u64>,
    #[prost(bool, tag = "5")]
    pub(crate) auto_leave: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SnapshotMetadata {
    #[prost(message, optional, tag = "1")]
    pub(crate) conf_state: Option<ConfState>,
    #[prost(uint64, tag = "2")]
    pub(crate) index: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) term: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Snapshot {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) data: Bytes,
    #[prost(message, optional, tag = "2")]
    pub(crate) metadata: Option<SnapshotMetadata>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Message {
    #[prost(int32, tag = "1")]
    pub(crate) msg_type: i32,
    #[prost(uint64, tag = "2")]
    pub(crate) to: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) from: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) log_term: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) index: u64,
    #[prost(message, repeated, tag = "7")]
    pub(crate) entries: Vec<Entry>,
    #[prost(uint64, tag = "8")]
    pub(crate) commit: u64,
    #[prost(uint64, tag = "15")]
    pub(crate) commit_term: u64,
    #[prost(message, optional, tag = "9")]
    pub(crate) snapshot: Option<Snapshot>,
    #[prost(uint64, tag = "13")]
    pub(crate) request_snapshot: u64,
    #[prost(bool, tag = "10")]
    pub(crate) reject: bool,
    #[prost(uint64, tag = "11")]
    pub(crate) reject_hint: u64,
    #[prost(bytes = "bytes", tag = "12")]
    pub(crate) context: Bytes,
    #[prost(uint64, tag = "14")]
    pub(crate) deprecated_priority: u64,
    #[prost(int64, tag = "16")]
    pub(crate) priority: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ConfChangeSingle {
    #[prost(int32, tag = "1")]
    pub(crate) change_type: i32,
    #[prost(uint64, tag = "2")]
    pub(crate) node_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ConfChangeV2 {
    #[prost(int32, tag = "1")]
    pub(crate) transition: i32,
    #[prost(message, repeated, tag = "2")]
    pub(crate) changes: Vec<ConfChangeSingle>,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) context: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ConfChange {
    #[prost(int32, tag = "2")]
    pub(crate) change_type: i32,
    #[prost(uint64, tag = "3")]
    pub(crate) node_id: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) context: Bytes,
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
}

/// A part of a snapshot on its way to a peer.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SnapshotChunk {
    /// The `MsgSnapshot` without its data.
    #[prost(message, optional, tag = "1")]
    pub(crate) message: Option<Message>,
    /// Tells transfers of one snapshot apart.
    #[prost(uint64, tag = "2")]
    pub(crate) transfer: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) total_bytes: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) offset: u64,
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) data: Bytes,
    /// Of the whole snapshot.
    #[prost(fixed32, tag = "6")]
    pub(crate) crc: u32,
    /// The table of members at the snapshot.
    #[prost(bytes = "bytes", tag = "7")]
    pub(crate) members: Bytes,
}

/// How much of a snapshot has arrived without a gap.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct ChunkAck {
    #[prost(uint64, tag = "1")]
    pub(crate) transfer: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) received: u64,
    /// The receiver will not take this snapshot.
    #[prost(bool, tag = "3")]
    pub(crate) refused: bool,
}

/// What goes from node to node.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Frame {
    /// 0 stands for the receiver: the same bytes go to several peers.
    #[prost(uint64, tag = "1")]
    pub(crate) to: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) from: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) group: u64,
    /// The sender's run, chosen when it starts.
    #[prost(fixed64, tag = "4")]
    pub(crate) session: u64,
    /// Counts the frames of the session.
    #[prost(uint64, tag = "5")]
    pub(crate) sequence: u64,
    /// Which group's nodes these are, by its founders, and whether the sender has the table of members.
    #[prost(fixed64, tag = "9")]
    pub(crate) cluster: u64,
    /// Which node the sender's id stands for.
    #[prost(fixed64, tag = "10")]
    pub(crate) incarnation: u64,
    #[prost(oneof = "Body", tags = "6, 7, 8, 11, 12, 13, 14")]
    pub(crate) body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Body {
    #[prost(message, tag = "6")]
    Raft(Message),
    #[prost(message, tag = "7")]
    Chunk(SnapshotChunk),
    #[prost(message, tag = "8")]
    Ack(ChunkAck),
    #[prost(message, tag = "11")]
    Notice(Notice),
    #[prost(message, tag = "12")]
    Part(MessagePart),
    #[prost(message, tag = "13")]
    Sleep(SleepNote),
    #[prost(message, tag = "14")]
    Beat(Beat),
}

/// What a member of a group says of its sleep.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct SleepNote {
    /// 0 asks a member to sleep, 1 says that it does, 2 that it was woken.
    #[prost(uint32, tag = "1")]
    pub(crate) kind: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) index: u64,
    /// The run of the sender's host.
    #[prost(fixed64, tag = "4")]
    pub(crate) host: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) stops: u64,
}

/// A host's sign of life.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Beat {
    #[prost(uint64, tag = "1")]
    pub(crate) stops: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) seen_stops: u64,
    #[prost(uint64, repeated, tag = "3")]
    pub(crate) stopped: Vec<u64>,
}

/// A part of a message that is too long for one frame.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MessagePart {
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) total_bytes: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) offset: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) data: Bytes,
}

/// What a node says of itself.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Notice {
    /// The sender's founders.
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) founders: Vec<u64>,
    /// The receiver is no member any more.
    #[prost(bool, tag = "2")]
    pub(crate) removed: bool,
    /// Where the sender is.
    #[prost(string, tag = "3")]
    pub(crate) address: String,
}
