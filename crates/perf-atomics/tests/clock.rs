//! The clock with its threads. No test here asserts how long anything took.

use perf_atomics::clock::{ClockError, CoarseClock, CoarseInstant, LAG_MAX, RESOLUTION, Updater};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn without_an_updater_the_clock_asks_instant() {
    let clock = CoarseClock::new();
    let before = CoarseInstant::precise();
    let now = clock.now();
    assert!(before <= now && now <= CoarseInstant::precise());
    assert!(!clock.is_coarse());
}

#[test]
fn an_updater_keeps_the_clock_going_and_leaves_it_correct_when_it_stops() {
    let clock = Arc::new(CoarseClock::new());
    let updater = Updater::start(Arc::clone(&clock), RESOLUTION, LAG_MAX).unwrap();
    let begin = clock.now();
    // Ends when the updater runs; if it never did, the test would hang and not pass.
    while clock.now() == begin || !clock.is_coarse() {
        std::thread::yield_now();
    }
    assert!(clock.now() <= CoarseInstant::precise());
    drop(updater);
    assert!(!clock.is_coarse());
    let before = CoarseInstant::precise();
    assert!(clock.now() >= before);
    // And it can be kept again.
    drop(Updater::start(Arc::clone(&clock), RESOLUTION, LAG_MAX).unwrap());
}

#[test]
fn bad_settings_and_a_second_updater_are_refused_with_the_limits() {
    let clock = Arc::new(CoarseClock::new());
    let refused = |resolution, lag_max| {
        Updater::start(Arc::clone(&clock), resolution, lag_max)
            .map(drop)
            .unwrap_err()
    };
    for resolution in [
        Duration::ZERO,
        Duration::from_micros(99),
        Duration::from_secs(2),
    ] {
        let error = refused(resolution, Duration::MAX);
        assert!(matches!(error, ClockError::Resolution { requested } if requested == resolution));
        assert!(error.to_string().contains("100µs to 1s"), "{error}");
    }
    let error = refused(RESOLUTION, RESOLUTION);
    assert!(error.to_string().contains("must be 2ms or more"), "{error}");

    let updater = Updater::start(Arc::clone(&clock), RESOLUTION, LAG_MAX).unwrap();
    assert!(matches!(
        refused(RESOLUTION, LAG_MAX),
        ClockError::AlreadyKept
    ));
    drop(updater);
}

#[test]
fn instants_saturate_instead_of_wrapping() {
    let (early, late) = (CoarseInstant::from_nanos(5), CoarseInstant::from_nanos(9));
    assert_eq!(late.duration_since(early), Duration::from_nanos(4));
    assert_eq!(early.duration_since(late), Duration::ZERO);
    assert_eq!((late + Duration::MAX).as_nanos(), u64::MAX);
}
