//! SendQueues between two connections: closed, fitted to the next peer, renewed.

use super::SendQueues;
use crate::primitive::mutant;
use crate::proto::frame::Header;
use crate::proto::queue::ANNOUNCED_WORDS;
use crate::proto::takes::Takes;
use std::task::Waker;

impl SendQueues {
    /// Refuses new messages from now on. Frames of bodies that were begun are still taken. Returns the wakers of the
    /// callers that wait for room: they have to ask again whether there is a connection.
    ///
    /// Without this a caller that found the connection open could queue a message after the connection's end.
    pub fn close(&self) -> Vec<Waker> {
        let mut state = self.state.lock();
        state.is_closed = !mutant::is("queues_stay_open");
        let queues = state.queues.iter_mut();
        queues.flat_map(|queue| queue.line.dismiss()).collect()
    }

    /// Closes the queues if they are open and empty. Returns `false` otherwise, with nothing changed. For a connection
    /// that ends because it is idle: messages refused from now on go to the next connection, see
    /// [`renew`](Self::renew).
    #[must_use]
    pub fn close_if_empty(&self) -> bool {
        let mut state = self.state.lock();
        let is_free = !state.is_closed && state.queues.iter().all(|queue| queue.frames == 0);
        state.is_closed |= is_free;
        is_free
    }

    /// Takes new messages again, for the next connection, on which names are announced anew. The queues must be empty
    /// and closed.
    pub fn renew(&self) {
        let mut state = self.state.lock();
        for queue in &mut state.queues {
            if !mutant::is("names_outlive_connection") {
                queue.announced = [0; ANNOUNCED_WORDS];
            }
            queue.deficit = 0;
        }
        state.is_closed = false;
    }

    /// Fits the queues to what the peer of the coming connection takes. Later messages that it does not take are
    /// refused. Queued frames that are too long, or of a kind that the peer does not know, are removed, and their
    /// headers are returned. Chunks of bodies are cut instead. Trace contexts are removed if the peer does not know
    /// them.
    ///
    /// Nothing may be written from the queues meanwhile. Costs a step for each buffer, and a copy of the buffer where a
    /// frame is too long.
    #[must_use]
    pub fn fit_to(&self, takes: Takes) -> Vec<Header> {
        let mut removed = Vec::new();
        let mut guard = self.state.lock();
        guard.takes = takes;
        for queue in &mut guard.queues {
            for buffer in &mut queue.buffers {
                let (bytes, frames) = (buffer.bytes(), buffer.frames());
                buffer.fit_to(takes, self.checksum, &mut removed);
                queue.bytes = queue.bytes - bytes + buffer.bytes();
                queue.frames = queue.frames - frames + buffer.frames();
            }
            queue.buffers.retain(|buffer| !buffer.is_empty());
        }
        guard.dropped += removed.len() as u64;
        removed
    }

    /// Takes new messages again, for the next connection.
    pub fn open(&self) {
        self.state.lock().is_closed = false;
    }

    /// Drops all frames and announcements: the connection is lost. Returns the wakers of the callers that wait for
    /// room.
    pub fn clear(&self) -> Vec<Waker> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut wakers = Vec::new();
        for queue in &mut state.queues {
            state.dropped += queue.frames as u64;
            queue.buffers.clear();
            queue.bytes = 0;
            queue.frames = 0;
            queue.deficit = 0;
            queue.announced = [0; ANNOUNCED_WORDS];
            wakers.extend(queue.line.dismiss());
        }
        wakers
    }
}
