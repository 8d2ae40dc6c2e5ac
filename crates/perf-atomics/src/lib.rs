#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod cache_line;
pub mod clock;
mod counters;
mod flags;
mod member_map;
mod membership;
mod node_state;
mod owned_counter;
mod primitive;
mod raft_status;
pub mod slab;
mod snapshot;
mod turn;
mod words;

pub use counters::{AtomicCounters, CounterUnderflow, StateCounter};
pub use flags::{AtomicFlags, FlagsSnapshot};
pub use member_map::MemberMap;
pub use membership::{DefaultHasher, Membership, MembershipReader, MembershipView};
pub use node_state::NodeState;
pub use owned_counter::OwnedCounter;
pub use raft_status::{RaftStatus, Role};
pub use snapshot::Snapshot;
pub use words::{Word, WordArray, Words};

/// What the macros of this crate expand to. Not a public interface.
#[doc(hidden)]
pub mod __private {
    pub use std::sync::atomic::{AtomicU64, Ordering};
}

/// Lets the loom tests choose a deliberate fault. Not a public interface.
#[cfg(perf_loom)]
#[doc(hidden)]
pub mod __loom {
    /// Switches one fault on, or all off, for the whole process.
    pub fn set_mutant(name: Option<&'static str>) {
        crate::primitive::mutant::set(name);
    }

    /// Whether this fault is switched on, for crates that build on this one.
    #[must_use]
    pub fn is_mutant(name: &str) -> bool {
        crate::primitive::mutant::is(name)
    }
}
