//! How long to wait before the next attempt.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

/// First pause; it doubles each time.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause where the receiver does not ask for one.
const LONGEST: Duration = Duration::from_secs(30);
/// Longest pause that a receiver can ask for: an hour. One that asks for more is asked again after that.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// The pause after so many failures in a row: as long as the receiver asks for, up to [`RETRY_AFTER_MAX`]; otherwise between half of
/// the step and all of it, so that nodes whose receiver comes back do not all come at once.
pub(super) fn pause(failures: u32, asked_for: Option<Duration>, jitter: &RandomState) -> Duration {
    let full = FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(5))
        .min(LONGEST);
    // A hash of the attempt with random keys is all the randomness that is needed.
    let share = jitter.hash_one(failures) as f64 / u64::MAX as f64;
    full.mul_f64(0.5 + share / 2.0)
        .max(asked_for.unwrap_or_default().min(RETRY_AFTER_MAX))
}

/// What a header `retry-after` asks for: seconds, or the time until a date, which is zero for one in the past.
pub(super) fn after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has are more seconds than there will be.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
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
        for (asked, expected) in [(40, 40), (600, 600), (3600, 3600), (u64::MAX, 3600)] {
            let asked = Duration::from_secs(asked);
            assert_eq!(
                pause(1, Some(asked), &jitter),
                Duration::from_secs(expected)
            );
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sat, 28 Nov 2026 12:00:00 GMT").unwrap();
        for (value, expected) in [
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sat, 28 Nov 2026 12:01:30 GMT", Some(90)),
            ("Saturday, 28-Nov-26 12:00:10 GMT", Some(10)),
            ("Sat, 28 Nov 2026 11:00:00 GMT", Some(0)),
            ("-1", None),
            ("", None),
            ("soon", None),
        ] {
            assert_eq!(
                after(value, now),
                expected.map(Duration::from_secs),
                "{value}"
            );
        }
    }
}
