//! The end of a connection, and what the next one finds.

use super::Lanes;
use crate::primitive::mutant;
use crate::proto::frame::Header;
use crate::proto::lane::ANNOUNCED_WORDS;
use crate::proto::takes::Takes;
use std::task::Waker;

impl Lanes {
    /// From now on new messages are refused; frames of what was begun are taken. Returns who waits for room, to be woken: some of them may
    /// have to go another way.
    ///
    /// Whoever finds a connection open and queues a message a moment later would otherwise queue it behind the connection's end.
    pub fn close(&self) -> Vec<Waker> {
        let mut state = self.state.lock();
        state.is_closed = !mutant::is("lanes_stay_open");
        let lanes = state.lanes.iter_mut();
        lanes.flat_map(|lane| lane.line.dismiss()).collect()
    }

    /// The same if they are open and nothing is queued; `false` otherwise, and then nothing has changed. For a connection that ends because
    /// nobody uses it: what is refused from now on belongs to the next one, see [`renew`](Self::renew).
    #[must_use]
    pub fn close_if_empty(&self) -> bool {
        let mut state = self.state.lock();
        let is_free = !state.is_closed && state.lanes.iter().all(|lane| lane.frames == 0);
        state.is_closed |= is_free;
        is_free
    }

    /// Takes new messages again, for the next connection, on which names have to be announced anew. To be called on empty lanes that are closed.
    pub fn renew(&self) {
        let mut state = self.state.lock();
        for lane in &mut state.lanes {
            if !mutant::is("names_outlive_connection") {
                lane.announced = [0; ANNOUNCED_WORDS];
            }
            lane.deficit = 0;
        }
        state.is_closed = false;
    }

    /// What the peer of the coming connection takes: other messages are refused from now on. Takes out the queued frames that are too long or of
    /// kinds that the peer does not know, and returns their headers; takes trace contexts off that the peer would not know. Chunks of bodies are cut instead. Only for lanes that nothing is written from: it costs a copy of
    /// what is queued where a frame is too long, and a look at each block otherwise.
    #[must_use]
    pub fn fit_to(&self, takes: Takes) -> Vec<Header> {
        let mut removed = Vec::new();
        let mut guard = self.state.lock();
        guard.takes = takes;
        for lane in &mut guard.lanes {
            for block in &mut lane.blocks {
                let (bytes, frames) = (block.bytes(), block.frames());
                block.fit_to(takes, self.checksum, &mut removed);
                lane.bytes = lane.bytes - bytes + block.bytes();
                lane.frames = lane.frames - frames + block.frames();
            }
            lane.blocks.retain(|block| !block.is_empty());
        }
        guard.dropped += removed.len() as u64;
        removed
    }

    /// New messages are taken again: for the next connection.
    pub fn open(&self) {
        self.state.lock().is_closed = false;
    }

    /// Forgets all frames and announcements: the connection is gone. Returns who waits for room, to be woken.
    pub fn clear(&self) -> Vec<Waker> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut wakers = Vec::new();
        for lane in &mut state.lanes {
            state.dropped += lane.frames as u64;
            lane.blocks.clear();
            lane.bytes = 0;
            lane.frames = 0;
            lane.deficit = 0;
            lane.announced = [0; ANNOUNCED_WORDS];
            wakers.extend(lane.line.dismiss());
        }
        wakers
    }
}
