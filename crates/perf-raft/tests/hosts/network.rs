//! A network between hosts that loses, repeats and delays.

use crate::random::Random;
use bytes::Bytes;
use perf_raft::GroupId;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct Network {
    /// By the tick in which they arrive.
    under_way: BTreeMap<u64, Vec<(u64, Bytes)>>,
    pub(super) cut: BTreeSet<(u64, u64)>,
    pub(super) is_calm: bool,
    /// Frames of groups since the last look, and ticks of groups.
    pub(super) frames: u64,
    pub(super) ticks: u64,
    /// Frames that come after seconds.
    pub(super) late: u64,
}

impl Network {
    pub(super) fn count(&mut self, _group: GroupId) {
        self.frames += 1;
    }

    pub(super) fn send(
        &mut self,
        random: &mut Random,
        tick: u64,
        from: u64,
        to: u64,
        frame: Bytes,
    ) {
        if self.cut.contains(&(from, to)) || (!self.is_calm && random.one_in(20)) {
            return;
        }
        let copies = if !self.is_calm && random.one_in(30) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = if !self.is_calm && random.one_in(50) {
                self.late += 1;
                random.below(150)
            } else {
                random.below(2)
            };
            self.under_way
                .entry(tick + delay)
                .or_default()
                .push((to, frame.clone()));
        }
    }

    /// What arrives by this tick.
    pub(super) fn due(&mut self, tick: u64) -> Vec<(u64, Bytes)> {
        let later = self.under_way.split_off(&(tick + 1));
        let due = std::mem::replace(&mut self.under_way, later);
        due.into_values().flatten().collect()
    }
}
