//! Lanes between two connections: closed, fitted to the next peer, renewed.

use super::Lanes;
use crate::primitive::mutant;
use crate::proto::frame::Header;
use crate::proto::lane::ANNOUNCED_WORDS;
use crate::proto::takes::Takes;
use std::task::Waker;

impl Lanes {
    /// Refuses new messages from now on. Frames of bodies that were begun are still taken. Returns the wakers of the
    /// callers that wait for room: they have to ask again whether there is a connection.
    ///
    /// Without this a caller that found the connection open could queue a message after the connection's end.
    pub fn close(&self) -> Vec<Waker> {
        let mut state = self.state.lock();
        state.is_closed = !mutant::is("lanes_stay_open");
        let lanes = state.lanes.iter_mut();
        lanes.flat_map(|lane| lane.line.dismiss()).collect()
    }

    /// Closes the lanes if they are open and empty. Returns `false` otherwise, with nothing changed. For a connection
    /// that ends because it is idle: messages refused from now on go to the next connection, see
    /// [`renew`](Self::renew).
    #[must_use]
    pub fn close_if_empty(&self) -> bool {
        let mut state = self.state.lock();
        let is_free = !state.is_closed && state.lanes.iter().all(|lane| lane.frames == 0);
        state.is_closed |= is_free;
        is_free
    }

    /// Takes new messages again, for the next connection, on which names are announced anew. The lanes must be empty
    /// and closed.
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

    /// Fits the lanes to what the peer of the coming connection takes. Later messages that it does not take are
    /// refused. Queued frames that are too long, or of a kind that the peer does not know, are removed, and their
    /// headers are returned. Chunks of bodies are cut instead. Trace contexts are removed if the peer does not know
    /// them.
    ///
    /// Nothing may be written from the lanes meanwhile. Costs a step for each block, and a copy of the block where a
    /// frame is too long.
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
