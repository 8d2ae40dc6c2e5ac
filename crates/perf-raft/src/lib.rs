#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod codec;
pub mod core;
pub mod dedup;
mod error;
pub mod forward;
pub mod inbound;
pub mod log;
mod members;
mod memory;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "transport")]
mod network;
mod options;
mod primitive;
mod shell;
mod state_machine;
mod transport;

pub use crate::core::{MembershipChange, Peer, RaftReport, Trouble};
pub use error::{HostError, LeaderHint, ProposeError, ReadError, StartError, StopReason};
pub use log::{LogError, LogReader, LogStore, MemoryLog, SharedLog};
#[cfg(feature = "durable")]
pub use log::{OnDamage, SegmentLog, SegmentLogOptions};
/// The former name of the log on disk.
#[cfg(feature = "durable")]
#[doc(hidden)]
pub use log::{SegmentLog as EngineLog, SegmentLogOptions as EngineLogOptions};
pub use members::{Identity, Member, MemberRole, Members};
pub use memory::EntryMemory;
#[cfg(feature = "metrics")]
pub use metrics::{RaftMetrics, Stage};
#[cfg(feature = "transport")]
pub use network::{NetworkTransport, RaftService};
pub use options::{ApplyMode, RaftOptions};
pub use shell::{
    Inbox, RaftHandle, RaftHost, RaftHostBuilder, RaftNode, RaftNodeBuilder, RaftStats, StageStats,
};
pub use state_machine::{Command, Machine, StateMachine, StateMachineError, StreamedStateMachine};
pub use transport::{
    ChannelNetwork, ChannelTransport, DeliverError, OutboundMessage, SendError, Transport,
};

/// The types of raft-rs that this interface uses: entries, hard states, memberships, messages. No crate needs raft-rs or `protobuf` itself for them.
pub use raft::eraftpb;

/// The state of a node, published without locks: of `perf-atomics`.
pub use perf_atomics::{RaftStatus, Role};

/// Lets tests choose a deliberate fault. Not a public interface.
#[cfg(any(perf_mutants, perf_loom))]
#[doc(hidden)]
pub mod __mutants {
    /// Switches one fault on, or all off, for the whole process.
    pub fn set(name: Option<&'static str>) {
        crate::primitive::mutant::set(name);
    }
}

/// What `tests/shuttle.rs` needs. Exists under `--cfg perf_mutants` only.
#[cfg(perf_mutants)]
#[doc(hidden)]
pub mod __shuttle {
    /// Drops the tasks of all nodes, as a runtime does that ends.
    pub fn end_runtime() {
        crate::primitive::threads::end_runtime();
    }
}

/// What `tests/loom.rs` models. Exists under `--cfg perf_loom` only.
#[cfg(perf_loom)]
#[doc(hidden)]
pub mod __loom {
    pub use crate::shell::combining_lock::{CombiningLock, DriveOutcome};
    pub use crate::shell::slot::Slot;
}

/// Names a Raft group. Part of every message and every key of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);
