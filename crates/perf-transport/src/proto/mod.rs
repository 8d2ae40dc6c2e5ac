//! The protocol without input or output: state machines that take bytes, calls and the time, and give back bytes,
//! messages and results. The tokio shell drives them in production, a seeded simulator in `tests/simulation.rs`.
//!
//! Nothing here reads a clock, owns a socket or starts a task. It has locks and wakers, though: senders on many threads
//! queue into one connection, and wait for room there. What threads share ([`SendQueue`], [`WriteOwnership`],
//! [`Pending`]) is checked by loom besides.
//!
//! This module is no part of the public interface: tests, loom and fuzz targets need it, and it changes at any time.

mod backoff;
mod batch;
mod channel;
mod client;
mod decoder;
mod dialer;
mod frame;
mod handshake;
mod line;
mod liveness;
mod pending;
mod queue;
mod queues;
mod read_buffer;
mod server;
mod slots;
mod stream;
mod takes;
mod time_limit;
mod transmit;
mod write_buffer;
mod write_ownership;

pub use backoff::Backoff;
pub use batch::{BatchBuffer, Messages};
pub use channel::{Channel, ChannelLimits};
pub use client::Client;
pub use decoder::{Decoder, Frame, FrameRef};
pub use dialer::{Admission, DialState, Dialer};
pub use frame::{CHECKSUM_BYTES, FrameError, HEADER_BYTES, Header, Kind};
pub use handshake::{
    Accepted, CertificateFault, ConnectionClass, Define, FEATURE_CHECKSUM, FEATURE_GOODBYE,
    FEATURE_TRACE, FEATURE_WATCH, HANDSHAKE_BYTES_MAX, HandshakeError, Hello, Local, Refuse,
    VERSION_MAX, VERSION_MIN, Welcome, accept, check_welcome, refusal,
};
pub use line::Waiter;
pub use liveness::{Liveness, LivenessLimits, Progress, Verdict};
pub use pending::{CALLS_MAX, CallKey, Fault, Outcome, Pending};
pub use queue::{METHODS_MAX, NotQueued, QueueLimits, SendQueue};
pub use queues::SendQueues;
pub use read_buffer::ReadBuffer;
pub(crate) use server::split_trace;
pub use server::{ArrivedMessage, Incoming, MethodName, NAME_BYTES_MAX, Server, ServerLimits};
pub use stream::{BodyState, BodyStep, SendWindow};
pub use takes::Takes;
pub use time_limit::TimeLimit;
pub use transmit::Transmit;
pub use write_buffer::{Outbox, SLICES_MAX, WriteBuffer};
pub use write_ownership::{Notified, WriteOwnership};
