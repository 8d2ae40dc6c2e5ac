//! Messages of one method that share a frame.

use super::frame::{CHECKSUM_BYTES, FrameError, HEADER_BYTES, Header, Kind};
use super::queue::QueueLimits;
use super::write_buffer::WriteBuffer;
use crate::payload::Payload;

/// Before each message of a frame of several: its length, little endian.
const LENGTH_BYTES: usize = 2;
/// The most bytes of a frame of several messages, its header aside: the shortest frame that a peer may have as its cap.
pub(super) const BATCH_BYTES_MAX: usize = 4096;

/// Messages of one sender to one method, put together before they are queued: small ones share frames, with two bytes
/// each in the place of a header.
#[derive(Debug)]
pub struct BatchBuffer {
    buffer: WriteBuffer,
    method: u16,
    checksum: bool,
    /// What the queue takes at once.
    limits: QueueLimits,
    /// Where the frame begins that the next small message joins.
    open: Option<usize>,
    /// Where in the buffer's memory that frame must end; 0 if there is none.
    end: usize,
    /// The longest payload in it.
    longest: usize,
}

impl BatchBuffer {
    /// Longer messages have a frame of their own: its header is little beside them.
    pub const SMALL_BYTES_MAX: usize = 1024;

    /// An empty batch of messages to the method with this number, for a queue of these limits.
    #[must_use]
    pub fn new(method: u16, limits: QueueLimits, checksum: bool) -> Self {
        Self {
            buffer: WriteBuffer::new(),
            method,
            checksum,
            limits,
            open: None,
            end: 0,
            longest: 0,
        }
    }

    /// How many messages it has.
    #[inline]
    #[must_use]
    pub fn messages(&self) -> usize {
        self.buffer.frames()
    }

    /// Their bytes on the wire.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buffer.bytes() + self.open.map_or(0, |_| self.trailer())
    }

    /// Forgets the messages.
    pub fn clear(&mut self) {
        self.buffer.clear();
        (self.open, self.end) = (None, 0);
        self.longest = 0;
    }

    /// The longest payload in it that has a frame of its own; 0 if there is none. Every peer takes frames of several
    /// messages.
    #[must_use]
    pub fn longest(&self) -> usize {
        if self.buffer.is_empty() {
            0
        } else {
            self.longest
        }
    }

    /// Appends a message. `false` if there is no room for it beside what is there; an empty batch has room for every
    /// message.
    #[inline]
    pub fn push(&mut self, payload: &Payload<'_>) -> bool {
        match payload {
            Payload::Borrowed(bytes) if bytes.len() <= Self::SMALL_BYTES_MAX => {
                self.push_small(bytes)
            }
            Payload::Shared(bytes) if bytes.len() <= Self::SMALL_BYTES_MAX => {
                self.push_small(bytes)
            }
            _ => self.push_alone(payload),
        }
    }

    #[inline]
    fn push_small(&mut self, bytes: &[u8]) -> bool {
        let needed = LENGTH_BYTES + bytes.len();
        let joins = self.buffer.small.len() + needed <= self.end
            && self.buffer.frames < self.limits.frames_max;
        if !joins && !self.open() {
            return false;
        }
        let small = self.buffer.small.get_mut();
        // At most `SMALL_BYTES_MAX`.
        small.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        small.extend_from_slice(bytes);
        self.buffer.bytes += needed;
        self.buffer.frames += 1;
        true
    }

    /// Begins a frame of several messages. `false` if there is no room for one of full length.
    fn open(&mut self) -> bool {
        self.close();
        let most = HEADER_BYTES + BATCH_BYTES_MAX + CHECKSUM_BYTES;
        if !self.buffer.is_empty() && !self.has_room(most, most) {
            return false;
        }
        let header = Header::new(Kind::Batch, self.method, 0);
        let start = self.buffer.small.len();
        let small = self.buffer.small.get_mut();
        small.extend_from_slice(&header.encode());
        self.buffer.bytes += HEADER_BYTES;
        self.open = Some(start);
        self.end = start + HEADER_BYTES + BATCH_BYTES_MAX;
        true
    }

    /// Whether a frame of so many bytes, `copied` of them in the buffer's memory, may follow what is there.
    fn has_room(&self, bytes: usize, copied: usize) -> bool {
        let QueueLimits {
            bytes_max,
            frames_max,
            ..
        } = self.limits;
        let buffer = &self.buffer;
        buffer.frames < frames_max
            && buffer.bytes + bytes <= bytes_max
            && !buffer.is_full()
            && buffer.small.len() + copied <= buffer.small.get().capacity()
    }

    /// The open frame is complete: its header says how long it is.
    fn close(&mut self) {
        let Some(start) = self.open.take() else {
            return;
        };
        self.end = 0;
        let small = self.buffer.small.get_mut();
        let mut header = Header::new(Kind::Batch, self.method, 0);
        // At most `BATCH_BYTES_MAX`.
        header.length = (small.len() - start - HEADER_BYTES) as u32;
        if let Some(place) = small.get_mut(start..start + HEADER_BYTES) {
            place.copy_from_slice(&header.encode());
        }
        if self.checksum {
            let sum = crc32fast::hash(small.get(start..).unwrap_or_default());
            small.extend_from_slice(&sum.to_le_bytes());
            self.buffer.bytes += CHECKSUM_BYTES;
        }
    }

    fn trailer(&self) -> usize {
        if self.checksum { CHECKSUM_BYTES } else { 0 }
    }

    /// A message in a frame of its own.
    fn push_alone(&mut self, payload: &Payload<'_>) -> bool {
        self.close();
        let buffer = &self.buffer;
        let bytes = WriteBuffer::frame_bytes(payload.len(), self.checksum);
        if !buffer.is_empty() && (buffer.is_full_for(payload) || !self.has_room(bytes, 0)) {
            return false;
        }
        // What was queued of an earlier batch left an empty buffer.
        self.longest = self.longest().max(payload.len());
        let header = Header::new(Kind::OneWay, self.method, 0);
        self.buffer.push(header, payload, self.checksum);
        true
    }

    /// The buffer to be queued. It is complete as it is, and may go on.
    pub fn complete(&mut self) -> &mut WriteBuffer {
        self.close();
        &mut self.buffer
    }
}

/// The messages of a frame of several, in their order.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Looks at all lengths. Returns the messages and how many there are, at least one.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] if the lengths do not add up, or if there is no message.
    #[inline]
    pub fn new(payload: &'a [u8]) -> Result<(Self, u64), FrameError> {
        let messages = Self { rest: payload };
        let mut rest = messages.clone();
        let count = rest.by_ref().count() as u64;
        if count == 0 || !rest.rest.is_empty() {
            return Err(FrameError::Malformed { kind: Kind::Batch });
        }
        Ok((messages, count))
    }

    /// Those that were not taken, as they are in the frame.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Goes on with what another left as its [`rest`](Self::rest).
    #[must_use]
    pub fn of_rest(rest: &'a [u8]) -> Self {
        Self { rest }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.rest.split_first_chunk::<LENGTH_BYTES>()?;
        let (message, rest) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
        self.rest = rest;
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_must_add_up() {
        let all = |payload| {
            let (messages, count) = Messages::new(payload)?;
            let messages: Vec<&[u8]> = messages.collect();
            assert_eq!(messages.len() as u64, count);
            Ok(messages)
        };
        let malformed = Err(FrameError::Malformed { kind: Kind::Batch });
        assert_eq!(all(&[0, 0]), Ok(vec![&b""[..]]));
        let two = [1, 0, b'a', 2, 0, b'b', b'c'];
        assert_eq!(all(&two), Ok(vec![&b"a"[..], b"bc"]));
        for cut in [0, 1, 2, 4, 5, 6] {
            assert_eq!(all(&two[..cut]), malformed, "{cut}");
        }
        assert_eq!(all(&[0, 1, 7]), malformed);
    }
}
