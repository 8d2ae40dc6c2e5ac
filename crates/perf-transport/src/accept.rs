//! Who asks to be let in, for those who want to decide.

use crate::connect::BoxFuture;
use crate::proto::ConnectionClass;
use std::sync::Arc;

/// A peer that has proven who it is, as far as [`Security`](crate::Security) asks for it, and is about to be let in:
/// see [`Builder::on_accept`](crate::Builder::on_accept).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Arrival {
    /// Its node id.
    pub node: u64,
    /// The number that its process chose when it started.
    pub incarnation: u64,
    /// Which of its connections.
    pub class: ConnectionClass,
    /// Where the connection comes from, as the listener put it.
    pub from: String,
    /// Whether it has been made known with `add_peer`.
    pub is_known: bool,
    /// Whether another process with the same node id is connected now.
    pub is_duplicate: bool,
    /// Its certificate (DER), where there is TLS.
    pub certificate: Option<Vec<u8>>,
}

/// Decides about an arrival.
pub(crate) type Hook = dyn Fn(Arrival) -> BoxFuture<'static, Result<(), String>> + Send + Sync;

/// A hook, if there is one.
pub(crate) type MaybeHook = Option<Arc<Hook>>;
