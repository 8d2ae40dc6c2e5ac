//! The tokio shell: sockets, tasks and the clock around the state machines of `proto`.

pub(crate) mod accept;
pub(crate) mod conn;
pub(crate) mod handshake;
mod handshakes;
pub(crate) mod link;
mod parting;
pub(crate) mod running;
pub(crate) mod serve;
pub(crate) mod session;
pub(crate) mod ticker;
