//! One send queue: that of one class, with its budget.

use super::frame::Kind;
use super::line::Line;
use super::write_buffer::WriteBuffer;
use crate::primitive::mutant;
use std::collections::VecDeque;

/// The most services and methods that a connection gives numbers to.
pub const METHODS_MAX: usize = 2048;
pub(super) const ANNOUNCED_WORDS: usize = METHODS_MAX / 64;

/// Bounds and weight of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Bytes that may wait, headers included.
    pub bytes_max: usize,
    /// Frames that may wait.
    pub frames_max: usize,
    /// Its share of the connection while both queues have something to write.
    pub weight: u32,
}

/// Which queue of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum SendQueue {
    /// The connection's own frames. Written before the others; each kind of frame in it has a bound of its own.
    System = 0,
    /// The more urgent of the connection's two classes.
    First = 1,
    /// The other one.
    Second = 2,
}

/// Why a frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotQueued {
    /// The budget is used up.
    Full,
    /// The queues take no new messages: they are [closed](super::SendQueues::close).
    Closed,
    /// The peer takes no payload of this length.
    TooLong {
        /// The longest payload that it takes.
        bytes_max: u32,
    },
    /// The peer does not know trace contexts: queue the message without its own.
    Untraced,
    /// The peer does not know requests whose answers come in chunks.
    Unsupported,
}

/// The size of what a caller wants to queue.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) bytes: usize,
    pub(super) frames: usize,
    /// The longest payload among the frames.
    pub(super) longest: usize,
    /// Whether the frames are new messages. Frames of a body that was begun before are not.
    pub(super) is_new: bool,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) struct QueueState {
    pub(super) buffers: VecDeque<WriteBuffer>,
    pub(super) bytes: usize,
    pub(super) frames: usize,
    pub(super) limits: QueueLimits,
    pub(super) deficit: i64,
    /// A bit for each method number whose `Define` frame is in this queue or was written.
    pub(super) announced: [u64; ANNOUNCED_WORDS],
    pub(super) line: Line,
}

impl QueueState {
    pub(super) fn new(limits: QueueLimits) -> Self {
        Self {
            buffers: VecDeque::new(),
            bytes: 0,
            frames: 0,
            limits,
            deficit: 0,
            announced: [0; ANNOUNCED_WORDS],
            line: Line::default(),
        }
    }

    /// Whether there is room that no caller in line waits for: others would overtake those in line for ever.
    #[inline]
    pub(super) fn has_free_room(&self, bytes: usize, frames: usize) -> bool {
        self.has_room(bytes, frames) && (self.line.is_empty() || mutant::is("room_taken_from_line"))
    }

    #[inline]
    pub(super) fn has_room(&self, bytes: usize, frames: usize) -> bool {
        let QueueLimits {
            bytes_max,
            frames_max,
            ..
        } = self.limits;
        self.bytes + bytes <= bytes_max && self.frames + frames <= frames_max
    }
}
