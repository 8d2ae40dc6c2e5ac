//! What the peer of a connection takes, as far as is known.

use super::frame::Kind;
use super::queue::NotQueued;
use crate::primitive::mutant;

/// What the peer of a connection takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    /// The longest payload.
    pub frame_bytes_max: u32,
    /// Whether messages may have trace contexts.
    pub traces: bool,
    /// Whether answers may come in chunks.
    pub watches: bool,
}

impl Takes {
    /// Everything but longer payloads.
    #[must_use]
    pub const fn all(frame_bytes_max: u32) -> Self {
        Self {
            frame_bytes_max,
            traces: true,
            watches: true,
        }
    }

    /// Whether the peer takes a frame of this kind with a payload of this length.
    #[inline]
    pub(super) fn check(self, bytes: usize, kind: Kind) -> Result<(), NotQueued> {
        let Takes {
            frame_bytes_max,
            traces,
            watches,
        } = self;
        if bytes > frame_bytes_max as usize && !mutant::is("cap_unknown_to_queues") {
            return Err(NotQueued::TooLong {
                bytes_max: frame_bytes_max,
            });
        }
        // Every peer of this version takes all kinds.
        if !traces && kind.untraced().is_some() {
            return Err(NotQueued::Untraced);
        }
        if !watches && kind.is_watch() {
            return Err(NotQueued::Unsupported);
        }
        Ok(())
    }
}
