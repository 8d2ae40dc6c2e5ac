//! Counters of the lanes.

use super::Lanes;

impl Lanes {
    /// Bytes queued in all lanes together, and whether a caller waits for room.
    #[must_use]
    pub fn pressure(&self) -> (usize, bool) {
        let state = self.state.lock();
        let lanes = state.lanes.iter();
        lanes.fold((0, false), |(bytes, waits), lane| {
            (bytes + lane.bytes, waits || !lane.line.is_empty())
        })
    }

    /// Bytes and frames queued in all lanes together.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        let state = self.state.lock();
        state.lanes.iter().fold((0, 0), |(bytes, frames), lane| {
            (bytes + lane.bytes, frames + lane.frames)
        })
    }

    /// Bytes and frames queued in each lane.
    #[must_use]
    pub fn depths(&self) -> [(usize, usize); 3] {
        let state = self.state.lock();
        [0, 1, 2].map(|place| (state.lanes[place].bytes, state.lanes[place].frames))
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
