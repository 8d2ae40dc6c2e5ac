//! The tokio shell: sockets, tasks and the clock around the state machines of `proto`.

pub(crate) mod accept;
pub(crate) mod conn;
pub(crate) mod handshake;
pub(crate) mod link;
pub(crate) mod running;
pub(crate) mod serve;
pub(crate) mod session;
pub(crate) mod ticker;
