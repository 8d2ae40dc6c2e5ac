//! The slab's promises: exact totals through any coming and going of threads and counters.

use perf_atomics::{OwnedCounter, slab};
use proptest::prelude::*;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

#[test]
fn totals_are_exact_over_ten_thousand_short_threads_with_a_concurrent_reader() {
    const WAVES: u64 = 2_500;
    const THREADS: u64 = 4;
    const ADDS: u64 = 7;

    let counter = OwnedCounter::new();
    let done = AtomicBool::new(false);
    let chunks_before = slab::chunk_count();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            while !done.load(Ordering::Acquire) {
                let now = counter.get();
                assert!(now >= last, "the total went back from {last} to {now}");
                assert!(now <= WAVES * THREADS * ADDS);
                last = now;
            }
        });
        for wave in 1..=WAVES {
            thread::scope(|wave| {
                for _ in 0..THREADS {
                    wave.spawn(|| (0..ADDS).for_each(|_| counter.increment()));
                }
            });
            assert_eq!(counter.get(), wave * THREADS * ADDS);
        }
        done.store(true, Ordering::Release);
    });
    // Chunks are reused: their number follows the threads that live at once, here and in the tests
    // beside this one, not those that ever lived.
    assert!(
        slab::chunk_count() - chunks_before < 500,
        "{} chunks",
        slab::chunk_count()
    );
}

#[test]
fn counters_far_beyond_one_chunk_keep_to_themselves() {
    // More than the largest first chunk a test beside this one could have led to.
    let counters: Vec<OwnedCounter> = (0..3_000).map(|_| OwnedCounter::new()).collect();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for (i, counter) in counters.iter().enumerate() {
                    counter.add(i as u64);
                }
                // Again, now that this thread's chunk reaches to the last.
                for (i, counter) in counters.iter().enumerate().rev() {
                    counter.add(i as u64);
                }
            });
        }
    });
    for (i, counter) in counters.iter().enumerate() {
        assert_eq!(counter.get(), 6 * i as u64);
    }
}

#[test]
fn a_new_counter_in_a_used_cell_starts_at_zero() {
    for _ in 0..100 {
        let counters: Vec<OwnedCounter> = (0..50).map(|_| OwnedCounter::new()).collect();
        thread::scope(|scope| {
            scope.spawn(|| counters.iter().for_each(|counter| counter.add(3)));
            counters.iter().for_each(|counter| counter.add(4));
        });
        assert!(counters.iter().all(|counter| counter.get() == 7));
    }
}

static EARLY: OwnedCounter = OwnedCounter::new();
static LATE: OwnedCounter = OwnedCounter::new();

struct CountsWhenDropped(&'static OwnedCounter);

impl Drop for CountsWhenDropped {
    fn drop(&mut self) {
        self.0.increment();
    }
}

thread_local! {
    static DROPPED_EARLY: RefCell<Option<CountsWhenDropped>> = const { RefCell::new(None) };
    static DROPPED_LATE: RefCell<Option<CountsWhenDropped>> = const { RefCell::new(None) };
}

/// Thread-locals are destroyed in some order; one made before the thread's first record and one made
/// after it have the slab's own on either side, whichever order that is.
#[test]
fn records_made_while_thread_locals_are_destroyed_are_counted() {
    for round in 1..=50 {
        thread::spawn(|| {
            DROPPED_LATE.with(|slot| *slot.borrow_mut() = Some(CountsWhenDropped(&LATE)));
            EARLY.increment();
            DROPPED_EARLY.with(|slot| *slot.borrow_mut() = Some(CountsWhenDropped(&EARLY)));
        })
        .join()
        .unwrap();
        // The join returns after the thread-locals are gone.
        assert_eq!((EARLY.get(), LATE.get()), (2 * round, round));
    }
}

#[test]
fn a_range_records_sums_extremes_and_floats() {
    let cells = slab::reserve(4).unwrap();
    thread::scope(|scope| {
        for value in [3u64, 9, 5] {
            let cells = &cells;
            scope.spawn(move || {
                cells.record(|c| {
                    c.add(0, value);
                    c.raise(1, value);
                    c.raise(2, !value);
                    c.add_f64(3, value as f64 / 2.0);
                });
            });
        }
    });
    assert_eq!((cells.sum(0), cells.max(1), !cells.max(2)), (17, 9, 3));
    assert_eq!(cells.sum_f64(3), 8.5);
    assert_eq!((cells.len(), cells.sum(4)), (4, 0));

    // An offset beyond the last cell means the last one, never a neighbour's.
    let few = slab::reserve(2).unwrap();
    few.add(7, 1);
    let mut sums = [9; 3];
    few.sum_into(&mut sums);
    assert_eq!(sums, [0, 1, 0]);
}

#[test]
fn a_reservation_that_cannot_be_says_what_is_allowed() {
    for len in [0, slab::CELLS_MAX + 1, usize::MAX] {
        let error = slab::reserve(len).unwrap_err();
        assert_eq!(error.requested, len);
        assert!(error.to_string().contains("1 to 1048576"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Counters come, go and count, on this thread and on short ones; each agrees with a plain number.
    #[test]
    fn counters_agree_with_plain_numbers(
        steps in proptest::collection::vec((0u8..4, any::<prop::sample::Index>(), any::<u64>()), 1..60)
    ) {
        let mut counters: Vec<(OwnedCounter, u64)> = Vec::new();
        for (what, which, amount) in steps {
            if what == 0 || counters.is_empty() {
                counters.push((OwnedCounter::new(), 0));
                continue;
            }
            let at = which.index(counters.len());
            if what == 1 {
                counters.swap_remove(at);
                continue;
            }
            let (counter, model) = &mut counters[at];
            if what == 2 {
                counter.add(amount);
            } else {
                thread::scope(|scope| drop(scope.spawn(|| counter.add(amount))));
            }
            *model = model.wrapping_add(amount);
            for (counter, model) in &counters {
                prop_assert_eq!(counter.get(), *model);
            }
        }
    }
}

#[test]
fn a_maximum_is_taken_once_and_a_handle_reaches_the_same_cells() {
    let cells = slab::reserve(3).unwrap();
    let handle = cells.handle();
    thread::scope(|scope| {
        for value in [3, 9, 5] {
            scope.spawn({
                let cells = &cells;
                move || {
                    assert_eq!(
                        handle.record_own(3, |_| ()),
                        None,
                        "this thread has no chunk"
                    );
                    handle.add(1);
                    let raise = |own: slab::Cells<'_>| {
                        own.raise_until_taken(1, value);
                        own.add(2, value);
                    };
                    if handle.record_own(3, raise).is_none() {
                        cells.record(raise);
                    }
                }
            });
        }
    });
    assert_eq!((cells.sum(0), cells.sum(2)), (3, 17));
    assert_eq!((cells.take_max(1), cells.take_max(1)), (9, 0));
    cells.record(|own| own.raise_until_taken(1, 4));
    assert_eq!((cells.take_max(1), cells.take_max(99)), (4, 0));
    handle.add_f64(0.0);
}

/// More threads than have wide cells of their own: the rest share, and nothing is lost.
#[test]
fn wide_cells_are_exact_with_any_number_of_threads_and_few_copies() {
    const THREADS: u64 = 96;
    // So many that some threads get copies on the way.
    const RECORDS: u64 = 5000;
    let cells = slab::reserve_wide(5000).unwrap();
    let all_recorded = std::sync::Barrier::new(THREADS as usize);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (cells, all_recorded) = (&cells, &all_recorded);
            scope.spawn(move || {
                for n in 0..RECORDS {
                    cells.record(|own| {
                        own.add(4999, 1);
                        own.add_f64(1, 0.5);
                        own.raise_until_taken(0, thread * 10_000 + n);
                    });
                }
                // All are alive at once.
                all_recorded.wait();
            });
        }
    });
    assert_eq!(
        (cells.sum(4999), cells.sum_f64(1), cells.sum(4998)),
        (THREADS * RECORDS, (THREADS * RECORDS) as f64 / 2.0, 0)
    );
    assert_eq!(cells.take_max(0), (THREADS - 1) * 10_000 + RECORDS - 1);
    let mut tail = [9; 3];
    cells.sum_from(4998, &mut tail);
    assert_eq!(tail, [0, THREADS * RECORDS, 0]);
    // 64 owners at most and the shared one; other tests of the process reserve no wide cells, so chunks did not grow.
    assert!(
        slab::wide_chunk_count() <= 65,
        "{}",
        slab::wide_chunk_count()
    );
}
