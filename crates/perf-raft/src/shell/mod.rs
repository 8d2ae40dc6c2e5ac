//! What drives the core: tasks, a thread for the log, and queues between them.

mod answer;
mod apply;
mod drive;
mod handle;
mod log_thread;
mod mailbox;
mod node;
pub(crate) mod slot;
mod stats;

pub use handle::RaftHandle;
pub use mailbox::Inbox;
pub use node::{RaftNode, RaftNodeBuilder};
pub use stats::{RaftStats, StageStats};
