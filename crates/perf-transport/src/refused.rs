//! Why a message cannot be queued now, in a form that is cheap to return on the hot path.

use crate::error::TransportError;
use crate::proto::NotQueued;
use std::sync::Arc;

/// Why a message cannot be queued. Two registers wide, where a [`TransportError`] has room for text that is copied at
/// each return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    ShuttingDown,
    /// It was removed.
    UnknownPeer,
    PeerDraining,
    QueueFull,
    TooManyCalls,
    TooLarge {
        bytes_max: u32,
    },
    Unreachable {
        retry_in_ms: u64,
    },
    Unsupported,
    /// The message is to be queued without its trace context. Never an error of a caller's.
    Untraced,
}

/// What is known of a message that was refused.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) peer: u64,
    /// Of the payload.
    pub(crate) bytes: usize,
    /// By configuration.
    pub(crate) calls_max: usize,
    /// Why the peer was not reached, if it was not.
    pub(crate) cause: Option<Arc<TransportError>>,
}

impl Refused {
    #[cold]
    pub(crate) fn into_error(self, attempt: Attempt) -> TransportError {
        let Attempt {
            peer,
            bytes,
            calls_max,
            cause,
        } = attempt;
        match self {
            Self::ShuttingDown => TransportError::ShuttingDown,
            Self::UnknownPeer => TransportError::UnknownPeer { peer },
            Self::Unsupported => TransportError::Unsupported { peer },
            Self::Untraced | Self::PeerDraining => TransportError::PeerDraining { peer },
            Self::QueueFull => TransportError::QueueFull { peer },
            Self::TooManyCalls => TransportError::TooManyCalls { peer, calls_max },
            Self::TooLarge { bytes_max } => TransportError::TooLarge {
                bytes,
                bytes_max: bytes_max as usize,
            },
            Self::Unreachable { retry_in_ms } => TransportError::Unreachable {
                peer,
                retry_in_ms,
                cause,
            },
        }
    }
}

impl From<NotQueued> for Refused {
    #[inline]
    fn from(reason: NotQueued) -> Self {
        match reason {
            NotQueued::Full => Self::QueueFull,
            // The connection is ending, or a dial has failed, and the dialer is about to learn of it.
            NotQueued::Closed => Self::Unreachable { retry_in_ms: 0 },
            NotQueued::TooLong { bytes_max } => Self::TooLarge { bytes_max },
            NotQueued::Untraced => Self::Untraced,
            NotQueued::Unsupported => Self::Unsupported,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_takes_two_registers() {
        assert_eq!(size_of::<Result<(), Refused>>(), 2 * size_of::<u64>());
    }
}
