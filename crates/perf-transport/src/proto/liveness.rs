//! Whether the other side lives.

use crate::primitive::mutant;
use std::mem;

/// How long silence may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivenessLimits {
    /// After so long without anything received, a ping is sent.
    pub interval_ms: u64,
    /// After so long without anything received, or without progress in writing, the connection is cut.
    pub timeout_ms: u64,
    /// How long the other side may say that it is busy while it takes nothing that waits to be written.
    pub busy_timeout_ms: u64,
    /// How often this is looked at.
    pub tick_ms: u64,
}

/// What [`Liveness::check`] judges by. Counts are since the connection began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Frames received.
    pub frames: u64,
    /// Bytes received.
    pub bytes: u64,
    /// How often the other side said that it is busy.
    pub busy: u64,
    /// Bytes written.
    pub written: u64,
    /// Whether something waits to be written.
    pub unwritten: bool,
    /// Whether this side does not read: backpressure keeps it from it.
    pub paused: bool,
}

/// What [`Liveness::check`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is well.
    Alive,
    /// Send a ping.
    Ping,
    /// Say that this side lives but does not read, and so cannot answer pings.
    Busy,
    /// Nothing was received for the whole timeout.
    Silent,
    /// What waits to be written made no progress for the whole timeout.
    Stalled,
}

/// Progress that counts although no frame is complete: a large frame on a slow line. A peer that sends a byte a second
/// never gets there within a timeout.
const PROGRESS_BYTES: u64 = 16 * 1024;

/// Judges a connection by what was received and written, with the time as an input.
///
/// Only whole frames, or every 16 KiB of a large one, count as received. A check that comes late says that this node
/// did not run meanwhile: what the other side sent waits to be read, and it has one more interval.
#[derive(Clone, Debug)]
pub struct Liveness {
    limits: LivenessLimits,
    received: u64,
    received_ms: u64,
    written: u64,
    busy: u64,
    written_ms: u64,
    /// When something was last written, or there was nothing to write.
    moved_ms: u64,
    /// The last ping, or word that this side is busy.
    said_ms: u64,
    /// The last check.
    checked_ms: u64,
}

impl Liveness {
    /// A connection that is alive at `now_ms`.
    #[must_use]
    pub fn new(limits: LivenessLimits, now_ms: u64) -> Self {
        Self {
            limits,
            received: 0,
            received_ms: now_ms,
            written: 0,
            busy: 0,
            written_ms: now_ms,
            moved_ms: now_ms,
            said_ms: now_ms,
            checked_ms: now_ms,
        }
    }

    /// To be called at every tick.
    pub fn check(&mut self, now_ms: u64, progress: Progress) -> Verdict {
        self.forgive_late_check(now_ms);
        // Monotonic in both, so a change of either by enough changes the sum.
        let received = progress
            .frames
            .wrapping_add(progress.bytes / PROGRESS_BYTES);
        if received != self.received || progress.paused {
            self.received = received;
            self.received_ms = now_ms;
        }
        let Progress { written, busy, .. } = progress;
        // Who is busy will read on. To connect anew would give it more to do, not less.
        if written != self.written || !progress.unwritten {
            self.moved_ms = now_ms;
        }
        if written != self.written || busy != self.busy || !progress.unwritten {
            self.written = written;
            self.busy = busy;
            self.written_ms = now_ms;
        }
        let stuck_ms = now_ms.saturating_sub(self.moved_ms);
        if now_ms.saturating_sub(self.written_ms) >= self.limits.timeout_ms
            || (stuck_ms >= self.limits.busy_timeout_ms && !mutant::is("busy_for_ever"))
        {
            return Verdict::Stalled;
        }
        let silent_ms = now_ms.saturating_sub(self.received_ms);
        if silent_ms >= self.limits.timeout_ms {
            return Verdict::Silent;
        }
        let last_ms = if progress.paused {
            self.said_ms
        } else {
            self.received_ms.max(self.said_ms)
        };
        if now_ms.saturating_sub(last_ms) < self.limits.interval_ms {
            return Verdict::Alive;
        }
        self.said_ms = now_ms;
        if progress.paused {
            Verdict::Busy
        } else {
            Verdict::Ping
        }
    }

    fn forgive_late_check(&mut self, now_ms: u64) {
        let LivenessLimits {
            interval_ms,
            timeout_ms,
            busy_timeout_ms,
            tick_ms,
        } = self.limits;
        let checked_ms = mem::replace(&mut self.checked_ms, now_ms);
        let is_late = now_ms.saturating_sub(checked_ms) > interval_ms.saturating_add(tick_ms);
        if !is_late || mutant::is("late_check_cuts") {
            return;
        }
        // One interval is left of each time.
        let left = |time_ms: u64| now_ms.saturating_sub(time_ms.saturating_sub(interval_ms));
        self.received_ms = self.received_ms.max(left(timeout_ms));
        self.written_ms = self.written_ms.max(left(timeout_ms));
        self.moved_ms = self.moved_ms.max(left(busy_timeout_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(frames: u64, bytes: u64) -> Progress {
        Progress {
            frames,
            bytes,
            ..Progress::default()
        }
    }

    const PAUSED: Progress = Progress {
        frames: 0,
        bytes: 0,
        busy: 0,
        written: 0,
        unwritten: false,
        paused: true,
    };
    const LIMITS: LivenessLimits = LivenessLimits {
        interval_ms: 100,
        timeout_ms: 300,
        busy_timeout_ms: 5000,
        tick_ms: 200,
    };

    #[test]
    fn silence_pings_and_then_cuts() {
        let mut liveness = Liveness::new(LIMITS, 0);
        let verdicts: Vec<Verdict> = [50, 100, 150, 200, 299, 300]
            .map(|now| liveness.check(now, received(0, 0)))
            .to_vec();
        use Verdict::{Alive, Ping, Silent};
        assert_eq!(verdicts, [Alive, Ping, Alive, Ping, Alive, Silent]);
    }

    #[test]
    fn a_byte_a_second_is_silence_and_frames_or_bulk_are_not() {
        let mut slow = Liveness::new(LIMITS, 0);
        let cut = (1..100).find(|&n| slow.check(n * 10, received(0, n)) == Verdict::Silent);
        assert_eq!(cut, Some(30));
        let mut bulk = Liveness::new(LIMITS, 0);
        let mut frames = Liveness::new(LIMITS, 0);
        for n in 1..100 {
            let now = n * 50;
            assert_eq!(bulk.check(now, received(0, n * 20_000)), Verdict::Alive);
            assert_eq!(frames.check(now, received(n, 0)), Verdict::Alive);
        }
    }

    #[test]
    fn who_does_not_read_says_that_it_lives() {
        use Verdict::{Alive, Busy, Ping};
        let mut liveness = Liveness::new(LIMITS, 0);
        let verdicts: Vec<Verdict> = [50, 100, 150, 200, 500]
            .map(|now| liveness.check(now, PAUSED))
            .to_vec();
        assert_eq!(verdicts, [Alive, Busy, Alive, Busy, Busy]);
        // It reads again, and only from now on the other side may have been silent.
        let verdicts: Vec<Verdict> = [599, 600, 799]
            .map(|now| liveness.check(now, received(0, 0)))
            .to_vec();
        assert_eq!(verdicts, [Alive, Ping, Ping]);
    }

    #[test]
    fn a_stalled_write_cuts_and_not_reading_does_not() {
        let stalled = |busy| Progress {
            busy,
            written: 5,
            unwritten: true,
            ..PAUSED
        };
        let mut liveness = Liveness::new(LIMITS, 0);
        for now in [100, 200, 299] {
            assert_ne!(liveness.check(now, stalled(0)), Verdict::Stalled);
        }
        assert_eq!(liveness.check(400, stalled(0)), Verdict::Stalled);
        // As long as the other side says that it is busy it is not.
        let mut liveness = Liveness::new(LIMITS, 0);
        for busy in 1..10 {
            let now = busy * 200;
            assert_ne!(liveness.check(now, stalled(busy)), Verdict::Stalled);
        }
        assert_eq!(liveness.check(2100, stalled(9)), Verdict::Stalled);
        // But not for ever.
        let mut liveness = Liveness::new(LIMITS, 0);
        let mut verdicts = (1..200).map(|busy| liveness.check(busy * 100, stalled(busy)));
        let cut = verdicts.position(|verdict| verdict == Verdict::Stalled);
        assert_eq!(cut, Some(50), "after `busy_timeout_ms`");
    }

    /// This node did not run: its process or machine was stopped, or its runtime was held up. What the other side sent
    /// meanwhile waits to be read.
    #[test]
    fn time_in_which_this_node_did_not_look_is_no_silence() {
        let stalled = Progress {
            written: 5,
            unwritten: true,
            ..received(1, 10)
        };
        for progress in [received(1, 10), stalled] {
            let mut liveness = Liveness::new(LIMITS, 0);
            for now in (0..250).step_by(10) {
                liveness.check(now, progress);
            }
            assert_eq!(liveness.check(10_000, progress), Verdict::Ping);
            let mut later = (10_010..20_000).step_by(10);
            let is_cut = |now: &u64| {
                let verdict = liveness.check(*now, progress);
                matches!(verdict, Verdict::Silent | Verdict::Stalled)
            };
            // Still silent: it has one more interval.
            assert_eq!(later.find(is_cut), Some(10_100));
        }
    }

    /// A tick that is longer than the interval is no late look.
    #[test]
    fn a_long_tick_cuts_in_time() {
        let limits = LivenessLimits {
            tick_ms: 150,
            ..LIMITS
        };
        let mut liveness = Liveness::new(limits, 0);
        let mut looks = (0..100).map(|n| n * 150);
        let cut = looks.find(|now| liveness.check(*now, received(0, 0)) == Verdict::Silent);
        assert_eq!(cut, Some(300));
    }
}
