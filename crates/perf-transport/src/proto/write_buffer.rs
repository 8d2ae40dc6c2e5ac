//! Write buffers: frames back to back, with large payloads referred to and not copied.

use super::decoder::{Decoder, Frame};
use super::frame::{CHECKSUM_BYTES, HEADER_BYTES, Header, Kind};
use super::takes::Takes;
use crate::payload::Payload;
use crate::primitive::{Buffer, pooled};
use crate::trace::TRACE_BYTES;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Shared payloads up to this size are copied between their header and the next one: the copy of 1 KiB takes some 30
/// ns, about what an entry of a vectored write costs.
const SHARED_COPY_BYTES_MAX: usize = 1024;
/// Borrowed payloads have to be copied. Up to this size they go between the headers, larger ones into a pooled buffer
/// of their own, so that a buffer's memory keeps the size that the pool recycles.
const BORROWED_COPY_BYTES_MAX: usize = 4 * 1024;
/// A buffer takes no further frame from here on. Large enough that a write's fixed cost (some 2 µs on loopback) is
/// small beside its copy, small enough that buffers of two classes alternate often.
const BUFFER_BYTES: usize = 32 * 1024;
/// The most slices of one vectored write: enough for 32 frames with payloads of their own.
pub const SLICES_MAX: usize = 64;

/// A large payload, written from its own memory.
#[derive(Debug)]
struct Part {
    /// How many bytes of `small` are written before it.
    at: usize,
    payload: Bytes,
}

/// Large payloads in their order. The first is stored inline, so a buffer of one large frame allocates no list.
#[derive(Debug, Default)]
struct Parts {
    first: Option<Part>,
    others: Vec<Part>,
}

impl Parts {
    #[inline]
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }

    #[inline]
    fn get(&self, place: usize) -> Option<&Part> {
        match place.checked_sub(1) {
            None => self.first.as_ref(),
            Some(place) => self.others.get(place),
        }
    }

    fn push(&mut self, part: Part) {
        if self.first.is_none() {
            self.first = Some(part);
        } else {
            self.others.push(part);
        }
    }

    fn clear(&mut self) {
        self.first = None;
        self.others.clear();
    }
}

/// A write buffer: frames in the order in which they are written.
#[derive(Debug)]
pub struct WriteBuffer {
    /// Headers, small payloads and checksums.
    pub(super) small: Buffer,
    parts: Parts,
    pub(super) bytes: usize,
    /// How many frames; of a frame of several messages, each message counts.
    pub(super) frames: usize,
}

impl Default for WriteBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl WriteBuffer {
    /// An empty buffer, its memory from the pool.
    #[must_use]
    pub fn new() -> Self {
        // Room for the frame that fills it.
        Self::with_memory(BUFFER_BYTES + 2 * BORROWED_COPY_BYTES_MAX)
    }

    fn with_memory(bytes: usize) -> Self {
        Self {
            small: Buffer::new(bytes),
            parts: Parts::default(),
            bytes: 0,
            frames: 0,
        }
    }

    /// How many bytes it has.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many frames it has; of a frame of several messages, each counts.
    #[inline]
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Whether it has no frame.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// An empty buffer whose memory suits its first frame: a buffer that begins with a large payload gets little memory
    /// for small ones.
    #[must_use]
    pub fn beginning_with(payload: &Payload<'_>) -> Self {
        if payload.len() <= BORROWED_COPY_BYTES_MAX {
            return Self::new();
        }
        Self::with_memory(copied(payload))
    }

    /// Whether its memory is for many small frames.
    pub(crate) fn is_roomy(&self) -> bool {
        self.small.get().capacity() >= BUFFER_BYTES
    }

    /// Whether the next frame belongs in another buffer: this one is full, or has no memory for what would be copied.
    #[inline]
    #[must_use]
    pub fn is_full_for(&self, payload: &Payload<'_>) -> bool {
        self.is_full() || self.small.len() + copied(payload) > self.small.get().capacity()
    }

    /// Appends a frame, unless it belongs in another buffer: see [`is_full_for`](Self::is_full_for). `false` if it
    /// does.
    #[inline]
    pub fn try_push(&mut self, header: Header, payload: &Payload<'_>, sum: Option<u32>) -> bool {
        // The most frequent kind of frame has a short way of its own.
        if let (Payload::Borrowed(bytes), None) = (payload, sum)
            && bytes.len() <= BORROWED_COPY_BYTES_MAX
        {
            return self.try_push_small(header, bytes);
        }
        if self.is_full_for(payload) {
            return false;
        }
        self.push_summed(header, payload, sum);
        true
    }

    #[inline]
    fn try_push_small(&mut self, mut header: Header, bytes: &[u8]) -> bool {
        let length = self.small.len();
        let needed = HEADER_BYTES + bytes.len();
        if self.is_full() || length + needed + CHECKSUM_BYTES > self.small.get().capacity() {
            return false;
        }
        header.length = length_of(bytes.len());
        let small = self.small.get_mut();
        small.extend_from_slice(&header.encode());
        small.extend_from_slice(bytes);
        self.bytes += needed;
        self.frames += 1;
        true
    }

    /// Whether it takes no further frame: the next one belongs in a new buffer.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes >= BUFFER_BYTES || self.parts.len() >= SLICES_MAX / 2
    }

    /// Bytes on the wire of a frame with a payload of this length.
    #[inline]
    #[must_use]
    pub const fn frame_bytes(length: usize, checksum: bool) -> usize {
        HEADER_BYTES + length + if checksum { CHECKSUM_BYTES } else { 0 }
    }

    /// Appends a frame. Small and borrowed pieces are copied, large shared ones only referred to. Allocates only while
    /// the list of references grows for the first time, and not for the first of them.
    #[inline]
    pub fn push(&mut self, header: Header, payload: &Payload<'_>, checksum: bool) {
        let sum = checksum.then(|| Self::checksum(header, payload));
        self.push_summed(header, payload, sum);
    }

    /// The checksum of a frame: a pass over its bytes. Call it outside of locks.
    #[must_use]
    pub fn checksum(mut header: Header, payload: &Payload<'_>) -> u32 {
        header.length = length_of(payload.len());
        let mut sum = crc32fast::Hasher::new();
        sum.update(&header.encode());
        match payload {
            Payload::Borrowed(bytes) => sum.update(bytes),
            Payload::Shared(bytes) => sum.update(bytes),
            Payload::Parts { head, parts } => {
                sum.update(head);
                for part in *parts {
                    sum.update(part);
                }
            }
        }
        sum.finalize()
    }

    /// [`push`](Self::push) with the checksum made before, if there is one.
    #[inline]
    pub fn push_summed(&mut self, mut header: Header, payload: &Payload<'_>, sum: Option<u32>) {
        header.length = length_of(payload.len());
        self.small.get_mut().extend_from_slice(&header.encode());
        match payload {
            Payload::Borrowed(bytes) => self.copy(bytes),
            Payload::Shared(bytes) => self.share(bytes),
            Payload::Parts { head, parts } => {
                self.copy(head);
                for part in *parts {
                    self.share(part);
                }
            }
        }
        if let Some(sum) = sum {
            self.small.get_mut().extend_from_slice(&sum.to_le_bytes());
        }
        self.bytes += Self::frame_bytes(payload.len(), sum.is_some());
        self.frames += 1;
    }

    #[inline]
    fn copy(&mut self, bytes: &[u8]) {
        if bytes.len() <= BORROWED_COPY_BYTES_MAX {
            self.small.get_mut().extend_from_slice(bytes);
        } else {
            self.refer(pooled(bytes));
        }
    }

    #[inline]
    fn share(&mut self, bytes: &Bytes) {
        if bytes.len() <= SHARED_COPY_BYTES_MAX && self.small.len() < BUFFER_BYTES {
            self.small.get_mut().extend_from_slice(bytes);
        } else {
            self.refer(bytes.clone());
        }
    }

    /// Fits the buffer to what the peer takes, see [`SendQueues::fit_to`](super::queues::SendQueues::fit_to). Appends
    /// the headers of removed frames to `removed`. No byte of the buffer may have been written.
    pub(crate) fn fit_to(&mut self, takes: Takes, checksum: bool, removed: &mut Vec<Header>) {
        let bytes_max = takes.frame_bytes_max;
        if takes.traces && takes.watches && self.bytes <= bytes_max as usize {
            return;
        }
        let mut wire = BytesMut::with_capacity(self.bytes);
        for piece in (0..).map_while(|number| self.piece(number)) {
            wire.extend_from_slice(piece);
        }
        let decoder = Decoder::new(u32::MAX, checksum);
        let mut next = Self::new();
        let mut frames = self.frames;
        // This node has encoded the frames, so decoding cannot fail.
        while let Ok(Some(Frame {
            mut header,
            mut payload,
        })) = decoder.next(&mut wire)
        {
            if let Some(kind) = header.kind.untraced().filter(|_| !takes.traces) {
                header.kind = kind;
                payload.advance(TRACE_BYTES.min(payload.len()));
                // The length is reported if the message is removed.
                header.length = length_of(payload.len());
            }
            let is_known = takes.watches || !header.kind.is_watch();
            if header.length <= bytes_max && is_known {
                next.push(header, &Payload::Shared(payload), checksum);
                continue;
            }
            if header.kind != Kind::StreamChunk {
                removed.push(header);
                frames -= 1;
                continue;
            }
            let mut rest = payload;
            frames -= 1;
            while !rest.is_empty() {
                let chunk = rest.split_to(rest.len().min(bytes_max as usize));
                next.push(header, &Payload::Shared(chunk), checksum);
                frames += 1;
            }
        }
        // A frame of several messages counts as several, and is never longer than any peer's bound.
        next.frames = frames;
        *self = next;
    }

    /// Moves the frames of a small buffer to the end of this one. Returns `false`, with nothing moved, if the other
    /// buffer is not small or there is no room. A buffer's memory is much larger than a small frame: a queue of many
    /// small buffers would take much more memory than its bytes.
    pub(crate) fn absorb(&mut self, other: &mut Self) -> bool {
        let bytes = other.small.len();
        let fits = self.small.len() + bytes <= self.small.get().capacity();
        if other.parts.len() > 0 || bytes > BORROWED_COPY_BYTES_MAX || !fits || self.is_full() {
            return false;
        }
        self.small.get_mut().extend_from_slice(&other.small);
        self.bytes += other.bytes;
        self.frames += other.frames;
        other.clear();
        true
    }

    fn refer(&mut self, payload: Bytes) {
        let at = self.small.len();
        self.parts.push(Part { at, payload });
    }

    /// Forgets its frames, and keeps its memory.
    pub fn clear(&mut self) {
        self.small.get_mut().clear();
        self.parts.clear();
        self.bytes = 0;
        self.frames = 0;
    }

    /// The contiguous piece with this number: even ones are ranges of `small`, odd ones payloads of their own.
    #[inline]
    fn piece(&self, number: usize) -> Option<&[u8]> {
        let part = number / 2;
        if number % 2 == 1 {
            return self.parts.get(part).map(|part| &part.payload[..]);
        }
        if part > self.parts.len() {
            return None;
        }
        let before = part
            .checked_sub(1)
            .and_then(|before| self.parts.get(before));
        let from = before.map_or(0, |before| before.at);
        let to = self
            .parts
            .get(part)
            .map_or(self.small.len(), |part| part.at);
        Some(&self.small[from..to])
    }
}

/// The length of a payload. Senders refuse payloads above the cap of a frame, which is a `u32`.
#[inline]
fn length_of(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// How many bytes of a frame are copied into `small`, at most.
#[inline]
fn copied(payload: &Payload<'_>) -> usize {
    let up_to = |most: usize, length: usize| if length <= most { length } else { 0 };
    let borrowed = |length| up_to(BORROWED_COPY_BYTES_MAX, length);
    let shared = |length| up_to(SHARED_COPY_BYTES_MAX, length);
    let pieces = match payload {
        Payload::Borrowed(bytes) => borrowed(bytes.len()),
        Payload::Shared(bytes) => shared(bytes.len()),
        Payload::Parts { head, parts } => {
            borrowed(head.len()) + parts.iter().map(|part| shared(part.len())).sum::<usize>()
        }
    };
    HEADER_BYTES + pieces + CHECKSUM_BYTES
}

/// The buffers that a connection is writing, and how much of the first one is written.
#[derive(Debug, Default)]
pub struct Outbox {
    buffers: VecDeque<WriteBuffer>,
    /// The piece of the first buffer that is being written, and how many of its bytes are.
    piece: usize,
    offset: usize,
    bytes: usize,
}

impl Outbox {
    /// Bytes not yet written.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether everything is written.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Takes a buffer to be written after the others.
    #[inline]
    pub fn push(&mut self, buffer: WriteBuffer) {
        self.bytes += buffer.bytes;
        self.buffers.push_back(buffer);
    }

    /// Fills in slices of what is to be written next, and returns how many.
    #[inline]
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let (mut number, mut offset) = (self.piece, self.offset);
        let mut count = 0;
        for buffer in &self.buffers {
            while let Some(piece) = buffer.piece(number) {
                let rest = &piece[offset..];
                if !rest.is_empty() {
                    let Some(slice) = slices.get_mut(count) else {
                        return count;
                    };
                    *slice = IoSlice::new(rest);
                    count += 1;
                }
                number += 1;
                offset = 0;
            }
            number = 0;
        }
        count
    }

    /// Notes that so many bytes were written. Blocks that are done go to `done`.
    #[inline]
    pub fn advance(&mut self, mut written: usize, mut done: impl FnMut(WriteBuffer)) {
        self.bytes = self.bytes.saturating_sub(written);
        while let Some(buffer) = self.buffers.front() {
            match buffer.piece(self.piece) {
                Some(piece) => {
                    let rest = piece.len() - self.offset;
                    if written < rest {
                        self.offset += written;
                        return;
                    }
                    written -= rest;
                    self.piece += 1;
                    self.offset = 0;
                }
                None => {
                    self.piece = 0;
                    if let Some(buffer) = self.buffers.pop_front() {
                        done(buffer);
                    }
                }
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Decoder, Kind};
    use bytes::BytesMut;

    /// All there is to write, `step` bytes at a time.
    fn written(outbox: &mut Outbox, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = outbox.slices(&mut slices);
            let mut left = step;
            for slice in &slices[..count] {
                let now = slice.len().min(left);
                all.extend_from_slice(&slice[..now]);
                left -= now;
            }
            outbox.advance(step - left, |_| ());
        }
        all
    }

    #[test]
    fn every_kind_of_payload_arrives_whole_whatever_a_write_takes() {
        let shared = Bytes::from(vec![3; 5000]);
        let parts = [
            Bytes::from(vec![4; 10]),
            shared.clone(),
            Bytes::from(vec![5; 2000]),
        ];
        let borrowed = vec![6; 9000];
        let payloads = [
            Payload::Borrowed(b"small"),
            Payload::Shared(shared.clone()),
            Payload::Parts {
                head: b"head",
                parts: &parts,
            },
            Payload::Borrowed(&borrowed),
            Payload::default(),
        ];
        for checksum in [false, true] {
            for step in [13, 1000, usize::MAX] {
                let mut outbox = Outbox::default();
                let mut buffer = WriteBuffer::new();
                for (id, payload) in (0_u64..).zip(&payloads) {
                    buffer.push(Header::new(Kind::OneWay, 1, id), payload, checksum);
                }
                let bytes = buffer.bytes();
                outbox.push(buffer);
                let mut wire = BytesMut::from(&written(&mut outbox, step)[..]);
                assert_eq!(wire.len(), bytes);
                let decoder = Decoder::new(1 << 20, checksum);
                for (id, payload) in (0_u64..).zip(&payloads) {
                    let frame = decoder.next(&mut wire).expect("sound").expect("whole");
                    assert_eq!((frame.header.id, frame.payload.len()), (id, payload.len()));
                }
                assert!(wire.is_empty());
            }
        }
    }

    #[test]
    fn a_changed_byte_is_found() {
        let mut buffer = WriteBuffer::new();
        let payload = Payload::Borrowed(b"entries");
        buffer.push(Header::new(Kind::OneWay, 1, 9), &payload, true);
        let mut outbox = Outbox::default();
        outbox.push(buffer);
        let mut wire = written(&mut outbox, usize::MAX);
        wire[HEADER_BYTES + 2] ^= 0x10;
        let found = Decoder::new(1024, true).next(&mut BytesMut::from(&wire[..]));
        assert!(matches!(
            found,
            Err(super::super::FrameError::Checksum { .. })
        ));
    }
}
