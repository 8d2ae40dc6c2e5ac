//! What drives the core: a task or callers, a thread for the log, and queues between them.

mod answer;
mod apply;
mod apply_pool;
pub(crate) mod combining_lock;
mod drive;
mod fetcher;
mod handle;
mod host;
mod inbox;
mod log_thread;
mod mailbox;
mod node;
mod open;
mod pass;
mod run_queue;
mod shared;
mod sleepers;
pub(crate) mod slot;
mod snapshot_io;
mod stats;
mod task;

pub use handle::RaftHandle;
pub use host::{RaftHost, RaftHostBuilder};
pub use inbox::Inbox;
pub use node::{RaftNode, RaftNodeBuilder};
pub use stats::{RaftStats, StageStats};
