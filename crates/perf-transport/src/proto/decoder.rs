//! Cuts frames out of received bytes.

use super::frame::{CHECKSUM_BYTES, FrameError, HEADER_BYTES, Header};
use bytes::{Buf, Bytes, BytesMut};

/// A received frame. The payload is a view of the read buffer, not a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Bytes,
}

/// A received frame where it lies in the batch that it arrived with.
#[derive(Clone, Copy, Debug)]
pub struct FrameRef<'a> {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: &'a [u8],
    batch: &'a Bytes,
}

impl<'a> FrameRef<'a> {
    /// One of several messages that lie in `batch`.
    #[inline]
    pub(crate) fn of_message(header: Header, payload: &'a [u8], batch: &'a Bytes) -> Self {
        Self {
            header,
            payload,
            batch,
        }
    }

    /// One of several messages of this frame.
    #[inline]
    pub(crate) fn with_message(&self, header: Header, payload: &'a [u8]) -> Self {
        Self::of_message(header, payload, self.batch)
    }

    /// Its payload, to be kept: a count of the batch's memory, no copy.
    #[inline]
    #[must_use]
    pub fn shared_payload(&self) -> Bytes {
        // `slice_ref` asks four times more whether the one lies in the other.
        let place = |bytes: &[u8]| bytes.as_ptr().addr();
        let start = place(self.payload).wrapping_sub(place(self.batch));
        self.batch.slice(start..start + self.payload.len())
    }

    /// The same for the whole frame.
    #[inline]
    #[must_use]
    pub fn to_frame(&self) -> Frame {
        Frame {
            header: self.header,
            payload: self.shared_payload(),
        }
    }
}

/// Cuts frames out of a buffer, without copying their payloads.
///
/// It keeps nothing between calls: what is not yet a whole frame stays in the buffer. Costs a reference count per
/// frame and, where the connection has checksums, a pass over its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    frame_bytes_max: u32,
    checksum: bool,
}

impl Decoder {
    /// A decoder that refuses payloads longer than `frame_bytes_max`.
    #[must_use]
    pub const fn new(frame_bytes_max: u32, checksum: bool) -> Self {
        Self {
            frame_bytes_max,
            checksum,
        }
    }

    #[inline]
    fn trailer(&self) -> usize {
        if self.checksum { CHECKSUM_BYTES } else { 0 }
    }

    /// Reads the header at the start of `input`, if it is there, and checks its length.
    #[inline]
    fn peek(&self, input: &[u8]) -> Result<Option<Header>, FrameError> {
        let Some(bytes) = input.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = Header::decode(bytes)?;
        let length_max = header.kind.payload_bytes_max().min(self.frame_bytes_max);
        if header.length > length_max {
            return Err(FrameError::TooLong {
                length: header.length,
                length_max,
            });
        }
        Ok(Some(header))
    }

    /// How many bytes the frame at the start of `input` takes in all, or a header's size while that is not known.
    /// What the reader must make room for.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    #[inline]
    pub fn needed(&self, input: &[u8]) -> Result<usize, FrameError> {
        Ok(self.peek(input)?.map_or(HEADER_BYTES, |header| {
            HEADER_BYTES + header.length as usize + self.trailer()
        }))
    }

    /// Takes the next whole frame off the front of `input`; `None` until it has all arrived.
    ///
    /// # Errors
    /// [`FrameError`]. Nothing that follows in `input` has a meaning then.
    #[inline]
    pub fn next(&self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.peek(input)? else {
            return Ok(None);
        };
        let length = header.length as usize;
        let total = HEADER_BYTES + length + self.trailer();
        if input.len() < total {
            return Ok(None);
        }
        if self.checksum {
            Self::check(&input[..total])?;
        }
        if length == 0 {
            input.advance(total);
            return Ok(Some(Frame {
                header,
                payload: Bytes::new(),
            }));
        }
        let mut frame = input.split_to(total);
        frame.advance(HEADER_BYTES);
        frame.truncate(length);
        Ok(Some(Frame {
            header,
            payload: frame.freeze(),
        }))
    }

    /// How many bytes at the start of `input` are whole frames, by their lengths alone. [`view`](Self::view) checks the
    /// rest.
    #[inline]
    #[must_use]
    pub fn whole_bytes(&self, input: &[u8]) -> usize {
        let mut whole = 0;
        while let Some(&[a, b, c, d, ..]) = input[whole..].first_chunk::<HEADER_BYTES>() {
            let length = u32::from_le_bytes([a, b, c, d]);
            let total = HEADER_BYTES + length as usize + self.trailer();
            if length > self.frame_bytes_max || input.len() - whole < total {
                break;
            }
            whole += total;
        }
        whole
    }

    /// The frame that begins at `at` in a batch of whole frames, `None` behind the last one; moves `at` behind it. The
    /// same as [`next`](Self::next), but it takes no reference to the memory until the payload is kept.
    ///
    /// # Errors
    /// [`FrameError`]. Nothing that follows in `batch` has a meaning then.
    #[inline]
    pub fn view<'a>(
        &self,
        batch: &'a Bytes,
        at: &mut usize,
    ) -> Result<Option<FrameRef<'a>>, FrameError> {
        let Some(rest) = batch.get(*at..) else {
            return Ok(None);
        };
        let Some(header) = self.peek(rest)? else {
            return Ok(None);
        };
        let length = header.length as usize;
        let total = HEADER_BYTES + length + self.trailer();
        let Some(frame) = rest.get(..total) else {
            return Ok(None);
        };
        if self.checksum {
            Self::check(frame)?;
        }
        *at += total;
        Ok(Some(FrameRef {
            header,
            payload: &frame[HEADER_BYTES..HEADER_BYTES + length],
            batch,
        }))
    }

    fn check(frame: &[u8]) -> Result<(), FrameError> {
        let Some((covered, trailer)) = frame.split_last_chunk::<CHECKSUM_BYTES>() else {
            return Ok(());
        };
        let received = u32::from_le_bytes(*trailer);
        let computed = crc32fast::hash(covered);
        if received == computed {
            Ok(())
        } else {
            Err(FrameError::Checksum { computed, received })
        }
    }
}
