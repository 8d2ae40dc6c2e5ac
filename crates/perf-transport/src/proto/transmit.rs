//! The write side of one connection.

use super::queues::SendQueues;
use super::write_buffer::{Outbox, WriteBuffer};
use std::io::IoSlice;
use std::task::Waker;

/// The write side of one connection: takes from the queues as much as a write wants, and knows what is still to be
/// written.
///
/// Its memory is bounded: nothing is taken while more than `outbox_bytes_max` wait, and a taken buffer is bounded by
/// the cap of a frame.
#[derive(Debug)]
pub struct Transmit {
    outbox: Outbox,
    done: Vec<WriteBuffer>,
    outbox_bytes_max: usize,
    written: u64,
}

impl Transmit {
    /// Nothing to write.
    #[must_use]
    pub fn new(outbox_bytes_max: usize) -> Self {
        Self {
            outbox: Outbox::default(),
            done: Vec::new(),
            outbox_bytes_max: outbox_bytes_max.max(1),
            written: 0,
        }
    }

    /// Takes buffers from the queues, up to the bound. Returns who is to be woken because their queue has room now.
    #[inline]
    pub fn fill(&mut self, queues: &SendQueues) -> [Option<Waker>; 2] {
        let room = self.outbox_bytes_max.saturating_sub(self.outbox.bytes());
        if room == 0 {
            return [None, None];
        }
        let Self { outbox, done, .. } = self;
        queues.drain(room, done, |buffer| outbox.push(buffer)).0
    }

    /// Whether nothing waits to be written.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Bytes that wait to be written.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// Bytes written since the connection began.
    #[inline]
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Fills in what to write next, and returns how many slices there are.
    #[inline]
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.outbox.slices(slices)
    }

    /// Notes that so many bytes were written. Blocks that are done are kept for the next frames.
    #[inline]
    pub fn advance(&mut self, written: usize) {
        self.written += written as u64;
        let Self { outbox, done, .. } = self;
        outbox.advance(written, |mut buffer| {
            buffer.clear();
            // The queues keep one. Others go back to the pool.
            if done.is_empty() {
                done.push(buffer);
            }
        });
    }
}
