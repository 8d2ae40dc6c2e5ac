//! How long to wait before the next attempt.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// First pause; it doubles each time.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause, also where the receiver asks for more.
const LONGEST: Duration = Duration::from_secs(30);

/// The pause after so many failures in a row: between half of it and all of it, so that nodes whose receiver comes back do
/// not all come at once.
pub(super) fn pause(failures: u32, asked_for: Option<Duration>, jitter: &RandomState) -> Duration {
    let full = FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(5))
        .min(LONGEST);
    // A hash of the attempt with random keys is all the randomness that is needed.
    let share = jitter.hash_one(failures) as f64 / u64::MAX as f64;
    full.mul_f64(0.5 + share / 2.0)
        .max(asked_for.unwrap_or_default())
        .min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_their_bound_and_heed_the_receiver() {
        let jitter = RandomState::new();
        for (failures, full) in [(1, 1), (2, 2), (3, 4), (5, 16), (6, 30), (4_000_000, 30)] {
            let pause = pause(failures, None, &jitter).as_secs_f64();
            assert!(
                f64::from(full) / 2.0 <= pause && pause <= f64::from(full),
                "{failures}: {pause}"
            );
        }
        assert!(pause(1, Some(Duration::from_secs(7)), &jitter) >= Duration::from_secs(7));
        assert_eq!(pause(1, Some(Duration::from_secs(7000)), &jitter), LONGEST);
    }
}
