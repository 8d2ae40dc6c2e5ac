//! The send queues of one connection: one for each class, each with its budget.

mod counts;
mod ends;
mod turns;

use super::frame::{Header, Kind};
use super::queue::{NotQueued, QueueLimits, QueueState, SendQueue};
use super::takes::Takes;
use super::write_buffer::WriteBuffer;
use crate::payload::Payload;
use crate::primitive::{Mutex, mutant};
use bytes::Bytes;
use std::mem;
use std::task::Waker;

/// Bytes that a class of weight 1 writes in its turn before the other class has its turn.
const QUANTUM_BYTES: i64 = 16 * 1024;
/// System frames that may wait before no further pings, pongs and busy frames are queued.
const SIGNS_OF_LIFE_MAX: usize = 64;
/// Written buffers that are kept for the next frames: while one is written the next one is filled. Others go back to
/// the pool, whose memory is bounded for the process, and not for each connection.
const SPARES_MAX: usize = 1;

#[derive(Debug)]
struct State {
    queues: [QueueState; 3],
    spares: Vec<WriteBuffer>,
    /// What the peer takes, as far as is known.
    takes: Takes,
    /// Messages queued since the beginning.
    messages: u64,
    /// Frames dropped since the beginning.
    dropped: u64,
    /// New messages are refused.
    is_closed: bool,
}

/// The three queues of a connection under one lock, which is held for a copy of a small frame, or for moving buffers.
///
/// Frames are put together when they are queued, so that draining moves whole buffers. Memory: at most the two budgets,
/// what is in the system queue, and a few spare buffers.
#[derive(Debug)]
pub struct SendQueues {
    state: Mutex<State>,
    checksum: bool,
}

impl State {
    #[inline]
    fn put(&mut self, queue: usize, header: Header, payload: &Payload<'_>, sum: Option<u32>) {
        let Self { queues, spares, .. } = self;
        let queue = &mut queues[queue];
        queue.bytes += WriteBuffer::frame_bytes(payload.len(), sum.is_some());
        queue.frames += 1;
        if let Some(buffer) = queue.buffers.back_mut()
            && buffer.try_push(header, payload, sum)
        {
            return;
        }
        let spare = spares.pop_if(|buffer| !buffer.is_full_for(payload));
        let mut next = spare.unwrap_or_else(|| WriteBuffer::beginning_with(payload));
        next.push_summed(header, payload, sum);
        queue.buffers.push_back(next);
    }

    /// Queues frames that were put together elsewhere, and leaves an empty buffer in their place.
    #[inline]
    fn append(&mut self, queue: SendQueue, buffer: &mut WriteBuffer) {
        let waiting = &mut self.queues[queue as usize];
        let (bytes, frames) = (buffer.bytes(), buffer.frames());
        if let Some(last) = waiting.buffers.back_mut()
            && last.absorb(buffer)
        {
            waiting.bytes += bytes;
            waiting.frames += frames;
            return;
        }
        let empty = self
            .spares
            .pop_if(|buffer| buffer.is_roomy())
            .unwrap_or_default();
        let full = mem::replace(buffer, empty);
        let queue = &mut self.queues[queue as usize];
        queue.bytes += full.bytes();
        queue.frames += full.frames();
        queue.buffers.push_back(full);
    }
}

impl SendQueues {
    /// Empty queues.
    #[must_use]
    pub fn new(first: QueueLimits, second: QueueLimits, checksum: bool) -> Self {
        let system = QueueLimits {
            bytes_max: usize::MAX,
            frames_max: usize::MAX,
            weight: 1,
        };
        Self {
            state: Mutex::new(State {
                queues: [system, first, second].map(QueueState::new),
                spares: Vec::new(),
                takes: Takes::all(u32::MAX),
                messages: 0,
                dropped: 0,
                is_closed: false,
            }),
            checksum,
        }
    }

    /// The checksum of a frame, computed before the lock is taken.
    #[inline]
    fn sum(&self, header: Header, payload: &Payload<'_>) -> Option<u32> {
        self.checksum
            .then(|| WriteBuffer::checksum(header, payload))
    }

    /// Whether frames carry checksums.
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        self.checksum
    }

    /// Queues a frame. `define` announces the header's method where this is its first frame in the queue; a frame that
    /// has one is a new message.
    ///
    /// # Errors
    /// [`NotQueued`]: the queue's budget has no room or callers in line wait for it, the payload is longer than the
    /// peer takes, or the frame is a new message and the queues are [closed](Self::close).
    #[inline]
    pub fn push(
        &self,
        queue: SendQueue,
        header: Header,
        payload: &Payload<'_>,
        define: Option<&Bytes>,
    ) -> Result<(), NotQueued> {
        let bytes = WriteBuffer::frame_bytes(payload.len(), self.checksum);
        let sum = self.sum(header, payload);
        let mut state = self.state.lock();
        if state.is_closed && define.is_some() {
            return Err(NotQueued::Closed);
        }
        state.takes.check(payload.len(), header.kind)?;
        if !state.queues[queue as usize].has_free_room(bytes, 1) {
            return Err(NotQueued::Full);
        }
        self.put(&mut state, queue, header, (payload, sum), define);
        Ok(())
    }

    /// Queues a frame whether there is room or not. For the end of something that had room when it began, such as a
    /// body that is broken off, so there are at most as many of these frames as of the others.
    pub fn push_past_limit(&self, queue: SendQueue, header: Header, payload: &Payload<'_>) {
        let sum = self.sum(header, payload);
        let mut state = self.state.lock();
        self.put(&mut state, queue, header, (payload, sum), None);
    }

    #[inline]
    fn put(
        &self,
        state: &mut State,
        queue: SendQueue,
        header: Header,
        (payload, sum): (&Payload<'_>, Option<u32>),
        define: Option<&Bytes>,
    ) {
        if let Some(define) = define {
            state.messages += 1;
            self.announce(state, queue, header.method, define);
        }
        state.put(queue as usize, header, payload, sum);
    }

    /// Queues a method's name, unless it is in this queue or was written.
    #[inline]
    fn announce(&self, state: &mut State, queue: SendQueue, method: u16, define: &Bytes) {
        let (word, bit) = (usize::from(method) / 64, method % 64);
        let announced = &mut state.queues[queue as usize].announced;
        if let Some(word) = announced
            .get_mut(word)
            .filter(|word| **word >> bit & 1 == 0)
        {
            *word |= 1 << bit;
            let first = Header::new(Kind::Define, method, 0);
            let define = Payload::Shared(define.clone());
            let sum = self.sum(first, &define);
            state.put(queue as usize, first, &define, sum);
        }
    }

    /// Queues a ping, a pong or a busy frame, unless many system frames wait already: a peer that pings and reads
    /// nothing would fill this node's memory otherwise. All of these frames say the same.
    pub fn push_sign_of_life(&self, header: Header) {
        let payload = Payload::default();
        let sum = self.sum(header, &payload);
        let mut state = self.state.lock();
        let many = state.queues[SendQueue::System as usize].frames >= SIGNS_OF_LIFE_MAX;
        if !many || mutant::is("pong_without_bound") {
            self.put(&mut state, SendQueue::System, header, (&payload, sum), None);
        }
    }

    /// Queues credit for a body that this side reads. Returns `false` if `frames_max` system frames wait already.
    ///
    /// An honest peer cannot use credit that it has not read, so at most two grants for each body wait for it. A peer
    /// that sends without reading would fill this node's memory with grants.
    #[must_use]
    pub fn push_credit(&self, header: Header, bytes: u32, frames_max: usize) -> bool {
        let bytes = bytes.to_le_bytes();
        let payload = Payload::Borrowed(&bytes);
        let sum = self.sum(header, &payload);
        let mut state = self.state.lock();
        let has_room = state.queues[SendQueue::System as usize].frames < frames_max
            || mutant::is("credit_without_bound");
        if has_room {
            self.put(&mut state, SendQueue::System, header, (&payload, sum), None);
        }
        has_room
    }

    /// Queues frames that were put together elsewhere, and leaves an empty buffer for the next ones.
    #[inline]
    pub fn exchange_buffer(&self, queue: SendQueue, buffer: &mut WriteBuffer) {
        self.state.lock().append(queue, buffer);
    }

    /// Moves buffers to `sink` until `bytes_max` bytes are there, by deficit round robin between the two classes, the
    /// system queue first. Returns the wakers of callers for which there is room now, and whether the queues are empty.
    #[inline]
    pub fn drain(
        &self,
        bytes_max: usize,
        done: &mut Vec<WriteBuffer>,
        mut sink: impl FnMut(WriteBuffer),
    ) -> ([Option<Waker>; 2], bool) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        while state.spares.len() < SPARES_MAX {
            let Some(buffer) = done.pop() else { break };
            state.spares.push(buffer);
        }
        let mut bytes = 0;
        let [system, first, second] = &mut state.queues;
        while let Some(buffer) = system.buffers.pop_front() {
            bytes += buffer.bytes();
            system.bytes -= buffer.bytes();
            system.frames -= buffer.frames();
            sink(buffer);
        }
        let mut wakers = [None, None];
        while bytes < bytes_max {
            if first.buffers.is_empty() && second.buffers.is_empty() {
                break;
            }
            for (queue, waker) in [&mut *first, &mut *second].into_iter().zip(&mut wakers) {
                if queue.buffers.is_empty() {
                    // An idle class saves up nothing.
                    queue.deficit = 0;
                    continue;
                }
                if queue.deficit <= 0 {
                    queue.deficit += QUANTUM_BYTES * i64::from(queue.limits.weight.max(1));
                }
                while queue.deficit > 0 && bytes < bytes_max {
                    let Some(buffer) = queue.buffers.pop_front() else {
                        break;
                    };
                    queue.deficit -= i64::try_from(buffer.bytes()).unwrap_or(i64::MAX);
                    bytes += buffer.bytes();
                    queue.bytes -= buffer.bytes();
                    queue.frames -= buffer.frames();
                    sink(buffer);
                    if waker.is_none() {
                        *waker = queue.line.wake_next();
                    }
                }
            }
        }
        (
            wakers,
            first.buffers.is_empty() && second.buffers.is_empty(),
        )
    }
}

#[cfg(all(test, not(perf_loom)))]
mod tests {
    use super::*;
    use crate::proto::batch::BatchBuffer;
    use crate::proto::line::Waiter;

    /// A caller that checked its payload before the bound was known, and queues it afterwards, is refused.
    #[test]
    fn what_the_peer_does_not_take_is_not_queued_once_that_is_known() {
        let limits = QueueLimits {
            bytes_max: 1 << 20,
            frames_max: 100,
            weight: 1,
        };
        let queues = SendQueues::new(limits, limits, false);
        let header = Header::new(Kind::OneWay, 0, 0);
        let push = |bytes: usize| {
            let payload = vec![7; bytes];
            queues.push(SendQueue::First, header, &Payload::Borrowed(&payload), None)
        };
        let takes = Takes::all;
        assert_eq!(push(5000), Ok(()));
        assert_eq!(queues.fit_to(takes(4096)).len(), 1);
        let bytes_max = 4096;
        assert_eq!(push(5000), Err(NotQueued::TooLong { bytes_max }));
        assert_eq!(push(4096), Ok(()));
        let mut waiter = Waiter::default();
        let long = vec![7; 5000];
        let long = Payload::Borrowed(&long);
        let (waited, next) = queues.push_or_wait(
            &mut waiter,
            Waker::noop(),
            SendQueue::First,
            header,
            &long,
            None,
        );
        assert_eq!(waited, Err(NotQueued::TooLong { bytes_max }));
        assert!(next.is_none() && queues.waiters(SendQueue::First) == 0);
        let mut batch = BatchBuffer::new(0, limits, false);
        assert!(batch.push(&Payload::Borrowed(b"short")) && batch.push(&long));
        let name = Bytes::new();
        let (queued, _) = queues.push_batch_or_wait(
            &mut waiter,
            Waker::noop(),
            SendQueue::First,
            &mut batch,
            (0, &name),
        );
        assert_eq!(queued, Err(NotQueued::TooLong { bytes_max }));
        assert_eq!((batch.messages(), batch.longest()), (2, 5000));
        // Another connection may take more.
        assert!(queues.fit_to(takes(1 << 20)).is_empty());
        assert_eq!(push(5000), Ok(()));
    }

    /// Room belongs to the callers in line: one that never waits is refused meanwhile, or it would overtake them for
    /// ever.
    #[test]
    fn room_that_is_waited_for_is_not_taken_by_others() {
        let limits = QueueLimits {
            bytes_max: 1 << 20,
            frames_max: 1,
            weight: 1,
        };
        let queues = SendQueues::new(limits, limits, false);
        let header = Header::new(Kind::OneWay, 0, 0);
        let payload = Payload::Borrowed(b"x");
        let push = || queues.push(SendQueue::First, header, &payload, None);
        let mut waiter = Waiter::default();
        let wait = |waiter: &mut Waiter| {
            queues.push_or_wait(
                waiter,
                Waker::noop(),
                SendQueue::First,
                header,
                &payload,
                None,
            )
        };
        assert_eq!(push(), Ok(()));
        assert_eq!(wait(&mut waiter).0, Err(NotQueued::Full));
        let (woken, _) = queues.drain(1 << 20, &mut Vec::new(), drop);
        assert!(woken[0].is_some());
        assert_eq!(push(), Err(NotQueued::Full));
        // Other queues have their own lines.
        assert_eq!(
            queues.push(SendQueue::Second, header, &payload, None),
            Ok(())
        );
        assert_eq!(wait(&mut waiter).0, Ok(()));
        let (woken, _) = queues.drain(1 << 20, &mut Vec::new(), drop);
        assert!(woken[0].is_none());
        assert_eq!(push(), Ok(()));
        // One that gives up, and lines that are dismissed, leave the room to all.
        assert_eq!(wait(&mut waiter).0, Err(NotQueued::Full));
        queues.drain(1 << 20, &mut Vec::new(), drop);
        assert!(queues.forget(&mut waiter, SendQueue::First).is_none());
        assert_eq!(push(), Ok(()));
        assert_eq!(wait(&mut waiter).0, Err(NotQueued::Full));
        assert_eq!(queues.close().len(), 1);
        queues.drain(1 << 20, &mut Vec::new(), drop);
        queues.open();
        assert_eq!(push(), Ok(()));
    }
}
