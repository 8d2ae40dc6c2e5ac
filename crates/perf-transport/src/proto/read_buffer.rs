//! The memory that a connection reads into.

use crate::primitive::mutant;
use bytes::BytesMut;
use std::collections::VecDeque;

/// How many buffers are kept while parts of them are in use elsewhere. Further ones are freed with
/// their last part.
const RETAINED_MAX: usize = 8;
/// A read that brings no more than this part of a buffer brings little.
const SPARSE_PART: usize = 16;
/// After so many of them buffers become small again: 16 s of pings alone.
const SPARSE_READS: u32 = 32;

/// A buffer that frames are cut out of without copying, and that is used again once no part of it is held.
///
/// Reading appends to [`buffer`](Self::buffer); the decoder takes frames off its front. [`prepare`](Self::prepare)
/// makes room for the next read: in place where nothing of the memory is in use any more (the usual case: no
/// allocation, no copy but of the begun frame), in another retained buffer otherwise. Only the bytes of a frame that
/// has begun to arrive are ever moved.
#[derive(Debug)]
pub struct ReadBuffer {
    buffer: BytesMut,
    /// Buffers of `capacity` whose frames are in use elsewhere.
    lent: VecDeque<BytesMut>,
    capacity: usize,
    capacity_first: usize,
    capacity_max: usize,
    /// Reads in a row that brought little.
    sparse: u32,
}

impl ReadBuffer {
    /// Starts with buffers of `capacity` bytes, and goes up to `capacity_max` where reads fill them.
    #[must_use]
    pub fn new(capacity: usize, capacity_max: usize) -> Self {
        Self {
            buffer: BytesMut::with_capacity(capacity),
            lent: VecDeque::new(),
            capacity,
            capacity_first: capacity,
            capacity_max: capacity_max.max(capacity),
            sparse: 0,
        }
    }

    /// What was read and not yet taken.
    #[inline]
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// How many bytes a buffer has at present.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room to read: at least for the rest of a frame of `frame_bytes`, and for some more where that costs no
    /// copy.
    #[inline]
    pub fn prepare(&mut self, frame_bytes: usize) {
        let missing = frame_bytes.saturating_sub(self.buffer.len()).max(1);
        let room = self.buffer.capacity() - self.buffer.len();
        if self.buffer.is_empty() && room < self.capacity {
            // All taken. If all of it was also let go, the whole buffer is there again.
            if self.buffer.try_reclaim(self.capacity) {
                return;
            }
        }
        // Half a buffer is worth a read; the rest of it would be left unused otherwise.
        if room >= missing && room >= self.capacity / 4 {
            return;
        }
        self.replace(frame_bytes.max(self.capacity));
    }

    /// A read filled the buffer: the next one is twice as large, up to the bound.
    #[inline]
    pub fn filled(&mut self) {
        if self.capacity < self.capacity_max {
            self.capacity = (self.capacity * 2).min(self.capacity_max);
            // Smaller ones are of no use now.
            self.lent.clear();
        }
    }

    /// A read brought so many bytes and did not fill the buffer. After many such reads that brought little, buffers are
    /// as small as at first: a connection that has moved bulk and is idle now holds little.
    #[inline]
    pub fn not_filled(&mut self, bytes: usize) {
        if self.capacity > self.capacity_first {
            self.note_sparse(bytes);
        }
    }

    fn note_sparse(&mut self, bytes: usize) {
        if bytes > self.capacity / SPARSE_PART {
            self.sparse = 0;
            return;
        }
        self.sparse += 1;
        let is_sparse = self.sparse >= SPARSE_READS && !mutant::is("idle_keeps_buffers");
        if is_sparse && self.buffer.is_empty() {
            self.sparse = 0;
            self.capacity = self.capacity_first;
            self.lent.clear();
            self.buffer = BytesMut::with_capacity(self.capacity);
        }
    }

    #[cold]
    fn replace(&mut self, capacity: usize) {
        let missing = capacity - self.buffer.len().min(capacity);
        if self.buffer.try_reclaim(missing) {
            return;
        }
        let mut next = self.reusable(capacity);
        next.extend_from_slice(&self.buffer);
        self.buffer.clear();
        let old = std::mem::replace(&mut self.buffer, next);
        if self.lent.len() < RETAINED_MAX && capacity == self.capacity {
            self.lent.push_back(old);
        }
    }

    /// A retained buffer of which no part is held, or a new one.
    fn reusable(&mut self, capacity: usize) -> BytesMut {
        for place in 0..self.lent.len() {
            if self.lent[place].try_reclaim(capacity)
                && let Some(found) = self.lent.remove(place)
            {
                return found;
            }
        }
        BytesMut::with_capacity(capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_memory_is_read_into_again_when_nothing_of_it_is_in_use() {
        let mut read = ReadBuffer::new(1024, 1024);
        read.prepare(16);
        let address = read.buffer().as_ptr();
        for _ in 0..10 {
            read.buffer().extend_from_slice(&[7; 1000]);
            let frame = read.buffer().split_to(1000).freeze();
            drop(frame);
            read.prepare(16);
            assert_eq!(read.buffer().as_ptr(), address);
        }
    }

    #[test]
    fn frames_that_are_kept_stay_as_they_are_and_a_begun_frame_moves() {
        let mut read = ReadBuffer::new(1024, 1024);
        let mut kept = Vec::new();
        for round in 0..20_u8 {
            read.prepare(16);
            read.buffer().extend_from_slice(&[round; 700]);
            kept.push(read.buffer().split_to(690).freeze());
            read.prepare(900);
            assert_eq!(&read.buffer()[..], &[round; 10]);
            assert!(read.buffer().capacity() >= 900);
            read.buffer().clear();
        }
        assert!(read.lent.len() <= RETAINED_MAX);
        for (round, frame) in (0_u8..).zip(&kept) {
            assert!(frame.iter().all(|&byte| byte == round));
        }
    }

    #[test]
    fn buffers_become_small_again_when_reads_bring_little() {
        let mut read = ReadBuffer::new(1024, 8192);
        let mut kept = Vec::new();
        for _ in 0..3 {
            read.filled();
        }
        for _ in 0..4 {
            read.prepare(16);
            read.buffer().extend_from_slice(&[7; 8000]);
            kept.push(read.buffer().split().freeze());
        }
        read.prepare(16);
        assert!(read.capacity() == 8192 && !read.lent.is_empty());
        let sparse = |read: &mut ReadBuffer, reads| (0..reads).for_each(|_| read.not_filled(16));
        sparse(&mut read, SPARSE_READS - 1);
        read.not_filled(4000);
        sparse(&mut read, SPARSE_READS - 1);
        assert_eq!(read.capacity(), 8192);
        // A frame that has begun to arrive stays where it is.
        read.buffer().extend_from_slice(b"begun");
        sparse(&mut read, 1);
        assert_eq!((read.capacity(), &read.buffer()[..]), (8192, &b"begun"[..]));
        read.buffer().clear();
        sparse(&mut read, 1);
        assert_eq!((read.capacity(), read.lent.len()), (1024, 0));
        assert!(read.buffer().capacity() <= 1024);
        assert!(kept.iter().all(|frame| frame[..] == [7; 8000]));
    }

    #[test]
    fn a_frame_larger_than_a_buffer_gets_room() {
        let mut read = ReadBuffer::new(1024, 4096);
        read.buffer().extend_from_slice(&[1; 1024]);
        read.filled();
        assert_eq!(read.capacity(), 2048);
        read.prepare(100_000);
        assert!(read.buffer().capacity() >= 100_000);
        assert_eq!(read.buffer().len(), 1024);
    }
}
