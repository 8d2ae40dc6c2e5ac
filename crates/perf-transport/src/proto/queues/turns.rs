//! Callers that wait for room in a queue.

use super::{SendQueues, State};
use crate::payload::Payload;
use crate::primitive::mutant;
use crate::proto::batch::BatchBuffer;
use crate::proto::frame::{Header, Kind};
use crate::proto::line::{Turn, Waiter};
use crate::proto::queue::{NotQueued, SendQueue, Size};
use crate::proto::write_buffer::WriteBuffer;
use bytes::Bytes;
use std::task::{Poll, Waker};

impl SendQueues {
    /// Queues a frame as [`push`](Self::push) does, or puts the caller in line for room. A caller in line calls this
    /// again when it is woken, and [`forget`](Self::forget) when it gives up.
    ///
    /// The caller must wake the waker that is returned: that of the next in line, where there is room left.
    ///
    /// # Errors
    /// [`NotQueued::Full`] puts the caller in line. The other errors do not.
    pub fn push_or_wait(
        &self,
        waiter: &mut Waiter,
        waker: &Waker,
        queue: SendQueue,
        header: Header,
        payload: &Payload<'_>,
        define: Option<&Bytes>,
    ) -> (Result<(), NotQueued>, Option<Waker>) {
        let bytes = WriteBuffer::frame_bytes(payload.len(), self.checksum);
        let sum = self.sum(header, payload);
        let size = Size {
            bytes,
            frames: 1,
            longest: payload.len(),
            is_new: define.is_some(),
            kind: header.kind,
        };
        self.in_turn(waiter, waker, queue, size, |state| {
            self.put(state, queue, header, (payload, sum), define);
        })
    }

    /// Waits in line for room for a message, then leaves the turn to the next caller. Ready, too, when the queues are
    /// [closed](Self::close).
    pub fn poll_room(
        &self,
        waiter: &mut Waiter,
        waker: &Waker,
        queue: SendQueue,
        payload_bytes: usize,
    ) -> Poll<()> {
        let bytes = WriteBuffer::frame_bytes(payload_bytes, self.checksum);
        let size = Size {
            bytes,
            frames: 1,
            longest: payload_bytes,
            is_new: true,
            kind: Kind::Request,
        };
        let (result, next) = self.in_turn(waiter, waker, queue, size, |_| ());
        if let Some(next) = next {
            next.wake();
        }
        match result {
            Err(NotQueued::Full) => Poll::Pending,
            Ok(()) | Err(_) => Poll::Ready(()),
        }
    }

    /// Queues the messages of a batch, all of them or none, as [`push_or_wait`](Self::push_or_wait) does with one.
    /// `define` announces their method. Leaves the batch empty.
    ///
    /// # Errors
    /// As there. The batch keeps its messages.
    pub fn push_batch_or_wait(
        &self,
        waiter: &mut Waiter,
        waker: &Waker,
        queue: SendQueue,
        batch: &mut BatchBuffer,
        (method, define): (u16, &Bytes),
    ) -> (Result<(), NotQueued>, Option<Waker>) {
        let longest = batch.longest();
        let buffer = batch.complete();
        let size = Size {
            bytes: buffer.bytes(),
            frames: buffer.frames(),
            longest,
            is_new: true,
            kind: Kind::Batch,
        };
        self.in_turn(waiter, waker, queue, size, |state| {
            state.messages += size.frames as u64;
            if !mutant::is("batch_without_name") {
                self.announce(state, queue, method, define);
            }
            state.append(queue, buffer);
        })
    }

    /// Calls `put` if there is room and it is the waiter's turn. Puts the waiter in line otherwise.
    #[inline]
    fn in_turn(
        &self,
        waiter: &mut Waiter,
        waker: &Waker,
        queue: SendQueue,
        size: Size,
        put: impl FnOnce(&mut State),
    ) -> (Result<(), NotQueued>, Option<Waker>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let refused = if state.is_closed && size.is_new {
            Err(NotQueued::Closed)
        } else {
            state.takes.check(size.longest, size.kind)
        };
        let mine = &mut state.queues[queue as usize];
        if let Err(refused) = refused {
            return (Err(refused), mine.line.leave(waiter));
        }
        let turn = mine.line.turn(waiter);
        if turn != Turn::Waits && mine.has_room(size.bytes, size.frames) {
            let next = mine.line.served(waiter);
            put(state);
            return (Ok(()), next);
        }
        mine.line.wait(waiter, waker, turn);
        (Err(NotQueued::Full), None)
    }

    /// Removes a waiter that gives up. If it had the turn, the next in line gets it, and its waker is returned.
    pub fn forget(&self, waiter: &mut Waiter, queue: SendQueue) -> Option<Waker> {
        // A caller that never waited needs no lock.
        if !waiter.is_in_line() {
            return None;
        }
        self.state.lock().queues[queue as usize].line.leave(waiter)
    }

    /// How many callers wait for room in a queue.
    #[must_use]
    pub fn waiters(&self, queue: SendQueue) -> usize {
        self.state.lock().queues[queue as usize].line.waiters()
    }
}
