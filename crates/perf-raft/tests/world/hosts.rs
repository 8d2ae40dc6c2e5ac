//! The hosts of the nodes: beats in the place of heartbeats while the group sleeps.

use super::random::Random;
use super::{Event, GROUP, MS, TICK_NS, World};
use bytes::Bytes;
use perf_raft::codec::{Body, Frame};
use perf_raft::core::Liveness;

/// How the group of a seed sleeps.
pub(super) struct Sleepiness {
    /// 0 for never.
    pub(super) after_ticks: u64,
    /// Clients pause for up to so long.
    pub(super) pause: u64,
}

impl Sleepiness {
    /// Of its own generator: histories without sleep are what they were before there was any.
    pub(super) fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5EE9);
        let after_ticks = match random.below(4) {
            0 => 1,
            1 => 4,
            2 => 20,
            _ => 0,
        };
        let pause = match random.below(4) {
            0 | 1 => 60 * MS,
            2 => 600 * MS,
            _ => 6_000 * MS,
        };
        Self {
            after_ticks,
            pause: if after_ticks == 0 { 60 * MS } else { pause },
        }
    }
}

impl World {
    /// A host starts with the first start of its node, and after each crash.
    pub(super) fn start_host(&mut self, id: u64) {
        let run = self.sleep_random.next();
        let (silence, beat) = (self.options.election_ticks, self.options.heartbeat_ticks);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.host.is_some() || self.sleepiness.after_ticks == 0 {
            return;
        }
        node.host = Some(Liveness::new(id, run, silence, beat));
        node.host_run += 1;
        let run = node.host_run;
        self.at(TICK_NS / 2, Event::HostTick(id, run));
    }

    pub(super) fn host_tick(&mut self, id: u64, run: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(host) = node.host.as_mut().filter(|_| node.host_run == run) else {
            return;
        };
        let (mut beats, mut wake) = (Vec::new(), Vec::new());
        host.tick(&mut beats, &mut wake);
        let period = TICK_NS * 1000 / node.clock_permille + 1;
        if !self.calm && self.sleep_random.one_in(300) {
            // Other frames arrive: what relies on beats must not believe that nothing did.
            self.no_beats_until = self.now + self.sleep_random.below(600 * MS);
        }
        for beat in beats {
            if self.now < self.no_beats_until && !self.calm {
                self.coverage.lost_beats += 1;
                continue;
            }
            let bytes = beat.encode_pooled().expect("it is short");
            self.send(id, beat.header.to, bytes);
        }
        for group in wake {
            assert_eq!(group, GROUP, "another group");
            self.coverage.lost_hosts += 1;
            self.with_core(id, |core, _| core.wake());
        }
        self.at(period, Event::HostTick(id, run));
    }

    /// Takes a frame if it is for the host.
    pub(super) fn deliver_to_host(&mut self, id: u64, bytes: &Bytes) -> bool {
        let Ok(Frame {
            header,
            body: Body::Beat(beat),
        }) = Frame::decode(bytes.clone())
        else {
            return false;
        };
        if let Some(host) = self.nodes.get_mut(&id).and_then(|node| node.host.as_mut()) {
            host.heard(&header, &beat);
        }
        true
    }

    /// Tells a core what changed at its host.
    pub(super) fn tell_core(&mut self, id: u64) {
        let after_ticks = self.sleepiness.after_ticks;
        if let Some(node) = self.nodes.get_mut(&id)
            && let (Some(core), Some(host)) = (node.core.as_mut(), node.host.as_ref())
        {
            core.allow_sleep(after_ticks, host.view().clone());
        }
    }

    /// Notes whether the group sleeps at a node, and wakes it if it may not.
    pub(super) fn note_sleep(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let (Some(core), Some(host)) = (node.core.as_mut(), node.host.as_mut()) else {
            return;
        };
        host.expect(core.take_expected().unwrap_or_default());
        let is_asleep = core.is_asleep();
        if is_asleep == node.is_asleep {
            return;
        }
        if !is_asleep {
            node.is_asleep = false;
            self.coverage.wakes += 1;
            host.woke(GROUP);
        } else if host.fell_asleep(GROUP, core.reliance()) {
            node.is_asleep = true;
            self.coverage.sleeps += 1;
        } else {
            self.with_core(id, |core, _| core.wake());
        }
    }

    /// The group ends at a node whose host lives on.
    pub(super) fn group_stopped(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.is_asleep = false;
            if let Some(host) = &mut node.host {
                host.stopped(GROUP);
            }
        }
    }
}
