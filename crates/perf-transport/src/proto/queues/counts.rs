//! Counters of the queues.

use super::SendQueues;

impl SendQueues {
    /// Bytes queued in all queues together, and whether a caller waits for room.
    #[must_use]
    pub fn pressure(&self) -> (usize, bool) {
        let state = self.state.lock();
        let queues = state.queues.iter();
        queues.fold((0, false), |(bytes, waits), queue| {
            (bytes + queue.bytes, waits || !queue.line.is_empty())
        })
    }

    /// Bytes and frames queued in all queues together.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        let state = self.state.lock();
        state.queues.iter().fold((0, 0), |(bytes, frames), queue| {
            (bytes + queue.bytes, frames + queue.frames)
        })
    }

    /// Bytes and frames queued in each queue.
    #[must_use]
    pub fn depths(&self) -> [(usize, usize); 3] {
        let state = self.state.lock();
        [0, 1, 2].map(|place| (state.queues[place].bytes, state.queues[place].frames))
    }

    /// Messages queued since the beginning: frames that have a service and method.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.state.lock().messages
    }

    /// Frames dropped since the beginning because their connection was lost.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }
}
