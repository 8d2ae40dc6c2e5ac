//! Who has a copy of the cells, and who shares one. Alone in its process, as it counts chunks.

use perf_atomics::slab;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const THREADS: usize = 300;

#[test]
fn threads_that_record_seldom_share_and_those_that_record_often_do_not() {
    let (cells, wide) = (
        slab::reserve(10).unwrap(),
        slab::reserve_wide(1000).unwrap(),
    );
    let record = |times: u64| {
        for _ in 0..times {
            cells.add(9, 1);
            wide.record(|own| {
                own.add(999, 1);
                own.add_f64(1, 0.5);
            });
        }
    };
    let owns = || {
        let owns = cells.handle().record_own(10, |_| ()).is_some();
        let owns_wide = wide.handle().record_own(1000, |_| ()).is_some();
        (owns, owns_wide)
    };
    let recorded = |times: u64| {
        let expected = THREADS as u64 * times;
        assert_eq!((cells.sum(9), wide.sum(999)), (expected, expected));
        assert_eq!(wide.sum_f64(1), expected as f64 / 2.0);
    };
    // All threads live at once; this one looks at what they do between the steps.
    let step = Barrier::new(THREADS + 1);
    let (owners, wide_owners) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                record(100);
                assert_eq!(owns(), (false, false), "a hundred records are few");
                step.wait();
                step.wait();
                record(5000);
                let (owns, owns_wide) = owns();
                owners.fetch_add(usize::from(owns), Ordering::Relaxed);
                wide_owners.fetch_add(usize::from(owns_wide), Ordering::Relaxed);
                step.wait();
            });
        }
        step.wait();
        recorded(100);
        assert_eq!((slab::chunk_count(), slab::wide_chunk_count()), (1, 1));
        step.wait();
        step.wait();
        recorded(5100);
    });
    let (owners, wide_owners) = (owners.into_inner(), wide_owners.into_inner());
    assert!((32..=256).contains(&owners), "{owners}");
    assert!((4..=64).contains(&wide_owners), "{wide_owners}");
    let chunks = (slab::chunk_count(), slab::wide_chunk_count());
    assert_eq!(chunks, (1 + owners, 1 + wide_owners));
    // What they left is there for who comes, at once.
    thread::scope(|scope| {
        scope.spawn(|| {
            record(1);
            assert_eq!(owns(), (true, true));
        });
    });
    assert_eq!((slab::chunk_count(), slab::wide_chunk_count()), chunks);
    assert_eq!(cells.sum(9), THREADS as u64 * 5100 + 1);
}
