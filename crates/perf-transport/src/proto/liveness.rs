//! Whether the other side lives.

/// How long silence may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivenessLimits {
    /// After so long without anything received, a ping is sent.
    pub interval_ms: u64,
    /// After so long without anything received, or without progress in writing, the connection is cut.
    pub timeout_ms: u64,
}

/// What [`Liveness::check`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is well.
    Alive,
    /// Send a ping.
    Ping,
    /// Nothing was received for the whole timeout.
    Silent,
    /// What waits to be written made no progress for the whole timeout.
    Stalled,
}

/// Progress that counts although no frame is complete: a large frame on a slow line. A peer that sends a byte a second never gets
/// there within a timeout.
const PROGRESS_BYTES: u64 = 16 * 1024;

/// Judges a connection by what was received and written, with the time as an input.
///
/// Only whole frames, or every 16 KiB of a large one, count as received.
#[derive(Clone, Debug)]
pub struct Liveness {
    limits: LivenessLimits,
    received: u64,
    received_ms: u64,
    written: u64,
    written_ms: u64,
    pinged_ms: u64,
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
            written_ms: now_ms,
            pinged_ms: now_ms,
        }
    }

    /// To be called at every tick.
    ///
    /// `frames` and `bytes` are what was received and `written` what was written since the connection began; `unwritten` says that something
    /// waits to be written, `reading` that this side reads at all (backpressure may keep it from it).
    pub fn check(
        &mut self,
        now_ms: u64,
        (frames, bytes): (u64, u64),
        written: u64,
        unwritten: bool,
        reading: bool,
    ) -> Verdict {
        // Monotonic in both, so a change of either by enough changes the sum.
        let received = frames.wrapping_add(bytes / PROGRESS_BYTES);
        if received != self.received || !reading {
            self.received = received;
            self.received_ms = now_ms;
        }
        if written != self.written || !unwritten {
            self.written = written;
            self.written_ms = now_ms;
        }
        if now_ms.saturating_sub(self.written_ms) >= self.limits.timeout_ms {
            return Verdict::Stalled;
        }
        let silent_ms = now_ms.saturating_sub(self.received_ms);
        if silent_ms >= self.limits.timeout_ms {
            return Verdict::Silent;
        }
        let last = self.received_ms.max(self.pinged_ms);
        if now_ms.saturating_sub(last) >= self.limits.interval_ms {
            self.pinged_ms = now_ms;
            return Verdict::Ping;
        }
        Verdict::Alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LivenessLimits = LivenessLimits {
        interval_ms: 100,
        timeout_ms: 300,
    };

    #[test]
    fn silence_pings_and_then_cuts() {
        let mut liveness = Liveness::new(LIMITS, 0);
        let verdicts: Vec<Verdict> = [50, 100, 150, 200, 299, 300]
            .map(|now| liveness.check(now, (0, 0), 0, false, true))
            .to_vec();
        use Verdict::{Alive, Ping, Silent};
        assert_eq!(verdicts, [Alive, Ping, Alive, Ping, Alive, Silent]);
    }

    #[test]
    fn a_byte_a_second_is_silence_and_frames_or_bulk_are_not() {
        let mut slow = Liveness::new(LIMITS, 0);
        let cut = (1..100).find(|&n| slow.check(n * 10, (0, n), 0, false, true) == Verdict::Silent);
        assert_eq!(cut, Some(30));
        let mut bulk = Liveness::new(LIMITS, 0);
        let mut frames = Liveness::new(LIMITS, 0);
        for n in 1..100 {
            let now = n * 50;
            assert_eq!(
                bulk.check(now, (0, n * 20_000), 0, false, true),
                Verdict::Alive
            );
            assert_eq!(frames.check(now, (n, 0), 0, false, true), Verdict::Alive);
        }
    }

    #[test]
    fn a_stalled_write_cuts_and_not_reading_does_not() {
        let mut liveness = Liveness::new(LIMITS, 0);
        for now in [100, 200, 299] {
            assert_ne!(
                liveness.check(now, (0, 0), 5, true, false),
                Verdict::Stalled
            );
        }
        assert_eq!(
            liveness.check(400, (0, 0), 5, true, false),
            Verdict::Stalled
        );
    }
}
