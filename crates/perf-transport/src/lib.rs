#![doc = include_str!("../README.md")]
#![cfg_attr(
    feature = "document-features",
    doc = "## Feature flags of this version"
)]
#![cfg_attr(feature = "document-features", doc = document_features::document_features!())]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod accept;
mod batch;
mod body;
mod call;
mod config;
mod connect;
mod envelope;
mod error;
mod event;
mod items;
mod lookup;
mod message;
#[cfg(feature = "metrics")]
mod methods;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "tower")]
mod middleware;
mod names;
mod payload;
mod primitive;
mod priority;
#[doc(hidden)]
pub mod proto;
mod refused;
mod remote;
mod route;
mod router;
mod security;
mod shell;
mod spans;
mod stats;
#[cfg(feature = "tls")]
mod tls;
mod trace;
mod transport;
mod typed;

pub use accept::Arrival;
pub use batch::Batch;
pub use body::{Body, BodySender};
pub use call::Call;
pub use config::Config;
pub use connect::{
    BoxFuture, BoxRead, BoxWrite, ByteStream, Connector, Listener, StreamOptions, TcpConnector,
};
pub use envelope::Envelope;
pub use error::{Rejection, RejectionCode, TransportError, Undelivered};
pub use event::{CloseReason, PeerEvent};
pub use items::{Answer, ItemSender};
pub use message::{Message, MessageRef, Origin, Reply};
#[cfg(feature = "metrics")]
pub use methods::MethodMetrics;
#[cfg(feature = "tower")]
pub use middleware::{HandlerService, Request};
pub use payload::Payload;
pub use priority::Priority;
#[doc(inline)]
pub use proto::{CertificateFault, ConnectionClass, FrameError, HandshakeError, Kind as FrameKind};
pub use remote::RemoteMethod;
pub use router::Router;
pub use security::Security;
pub use stats::{ConnectionStatus, LinkStats, PeerState, PeerStats, PeerStatus, QueueDepth, Stats};
#[cfg(feature = "tls")]
pub use tls::{TlsIdentity, node_name};
pub use trace::{InvalidTraceparent, TraceContext};
pub use transport::{Broadcast, Builder, Transport};
#[doc(hidden)]
pub use typed::__server;
pub use typed::{MethodOptions, ServiceClient, TypedAnswer, TypedBody, TypedSender};

/// Lets the tests choose a deliberate fault. Not a public interface.
#[cfg(any(perf_loom, perf_mutants))]
#[doc(hidden)]
pub mod __mutant {
    /// Whether a fault is switched on.
    #[must_use]
    pub fn is(name: &str) -> bool {
        crate::primitive::mutant::is(name)
    }

    /// Switches one fault on, or all off.
    pub fn set(name: Option<&'static str>) {
        crate::primitive::mutant::set(name);
    }
}
