//! What drives the core: a task or callers, a thread for the log, and queues between them.

mod answer;
mod apply;
mod drive;
mod handle;
mod helm;
mod log_thread;
mod mailbox;
mod node;
pub(crate) mod seat;
pub(crate) mod slot;
mod stats;
mod task;

pub use handle::RaftHandle;
pub use mailbox::Inbox;
pub use node::{RaftNode, RaftNodeBuilder};
pub use stats::{RaftStats, StageStats};
