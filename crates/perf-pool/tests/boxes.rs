//! Pooled boxes and aligned buffers: values live exactly once, boxes come back, bounds hold.
#![cfg(not(perf_loom))]

use perf_pool::{AlignedPool, BoxPool, PoolError, Pooled};
use proptest::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

/// Counts how many of its kind live.
struct Counted {
    number: u64,
    live: Arc<AtomicU64>,
}

impl Counted {
    fn new(number: u64, live: &Arc<AtomicU64>) -> Self {
        live.fetch_add(1, Ordering::Relaxed);
        Self {
            number,
            live: Arc::clone(live),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn boxes_that_cross_threads_come_back_and_are_used_again() {
    const IN_FLIGHT: usize = 64;
    let (pool, live) = (BoxPool::new(10_000), Arc::new(AtomicU64::new(0)));
    let (send, receive) = mpsc::sync_channel::<Pooled<Counted>>(IN_FLIGHT);
    let reader = thread::spawn(move || {
        let mut sum = 0;
        for message in receive {
            sum += message.number;
        }
        sum
    });
    for number in 0..100_000 {
        send.send(pool.alloc(Counted::new(number, &live)))
            .expect("the reader lives");
    }
    drop(send);
    assert_eq!(reader.join().expect("no panics"), (0..100_000).sum::<u64>());
    assert_eq!(live.load(Ordering::Relaxed), 0);
    let stats = pool.stats();
    // In flight, idle at each of the two, and what moves between them.
    assert!(
        stats.created <= (IN_FLIGHT + 3 * 128 + 2) as u64,
        "{stats:?}"
    );
    assert_eq!((stats.unpooled, stats.charged_objects), (0, stats.created));
    // The reader's thread has handed over what it kept.
    assert_eq!(pool.trim() as u64, stats.created);
    assert_eq!(pool.stats().charged_objects, 0);
}

#[test]
fn many_threads_exchange_boxes_and_lose_none() {
    let (pool, live) = (
        Arc::new(BoxPool::with_thread_objects_max(300, 8)),
        Arc::new(AtomicU64::new(0)),
    );
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (send, receive) = mpsc::sync_channel::<Pooled<Counted>>(50);
            let (its, live) = (Arc::clone(&pool), Arc::clone(&live));
            let writer = thread::spawn(move || {
                for number in 0..20_000 {
                    let message = its.alloc(Counted::new(number, &live));
                    if number % 7 == 0 {
                        assert_eq!(message.into_inner().number, number);
                    } else {
                        send.send(message).expect("the reader lives");
                    }
                }
            });
            let reader = thread::spawn(move || {
                receive
                    .into_iter()
                    .map(|message| message.number)
                    .sum::<u64>()
            });
            (writer, reader)
        })
        .collect();
    let expected: u64 = (0..20_000).filter(|number| number % 7 != 0).sum();
    for (writer, reader) in threads {
        writer.join().expect("no panics");
        assert_eq!(reader.join().expect("no panics"), expected);
    }
    let stats = pool.stats();
    assert_eq!(live.load(Ordering::Relaxed), 0);
    assert!(stats.charged_objects_peak <= 300, "{stats:?}");
    pool.trim();
    assert_eq!(pool.stats().charged_objects, 0);
}

#[test]
fn boxes_outlive_their_pool() {
    let live = Arc::new(AtomicU64::new(0));
    let pool = BoxPool::new(8);
    let kept = pool.alloc(Counted::new(5, &live));
    drop(pool.alloc(Counted::new(6, &live)));
    drop(pool);
    assert_eq!((kept.number, live.load(Ordering::Relaxed)), (5, 1));
    thread::spawn(move || drop(kept)).join().expect("no panics");
    assert_eq!(live.load(Ordering::Relaxed), 0);
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("the value's own");
    }
}

#[test]
fn a_value_whose_drop_panics_costs_no_box() {
    let pool = BoxPool::new(1);
    for _ in 0..3 {
        let bomb = pool.alloc(Some(Bomb));
        assert!(catch_unwind(AssertUnwindSafe(|| drop(bomb))).is_err());
    }
    drop(pool.alloc(None));
    let stats = pool.stats();
    assert_eq!(
        (stats.created, stats.unpooled, stats.charged_objects),
        (1, 0, 1)
    );
}

#[test]
fn beyond_the_bound_boxes_are_made_and_freed() {
    let pool = BoxPool::new(2);
    let boxes: Vec<_> = (0..5).map(|number| pool.alloc(number)).collect();
    assert!(boxes.iter().map(|boxed| **boxed).eq(0..5));
    assert_eq!(
        (pool.stats().unpooled, pool.stats().charged_objects),
        (3, 2)
    );
    drop(boxes);
    assert_eq!(pool.trim(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Boxes of a pool hold what was put into them and no other, for any order of operations and any bounds.
    #[test]
    fn boxes_hold_their_values(
        steps in prop::collection::vec((0..4_u8, any::<usize>()), 1..200),
        objects_max in 0..20_usize,
        thread_objects_max in 0..6_usize,
    ) {
        let live = Arc::new(AtomicU64::new(0));
        let pool = BoxPool::with_thread_objects_max(objects_max, thread_objects_max);
        let mut model: Vec<(u64, Pooled<Counted>)> = Vec::new();
        for (number, (kind, at)) in (0..).zip(steps) {
            match kind {
                0 | 1 => model.push((number, pool.alloc(Counted::new(number, &live)))),
                2 if !model.is_empty() => {
                    let (number, boxed) = model.swap_remove(at % model.len());
                    prop_assert_eq!(boxed.into_inner().number, number);
                }
                3 if !model.is_empty() => drop(model.swap_remove(at % model.len())),
                _ => {
                    pool.trim();
                }
            }
            prop_assert!(model.iter().all(|(number, boxed)| boxed.number == *number));
            prop_assert_eq!(live.load(Ordering::Relaxed), model.len() as u64);
            let stats = pool.stats();
            prop_assert!(stats.charged_objects_peak <= objects_max as u64);
            prop_assert!(stats.charged_objects <= stats.created);
        }
        drop(model);
        pool.trim();
        prop_assert_eq!((live.load(Ordering::Relaxed), pool.stats().charged_objects), (0, 0));
    }

    #[test]
    fn aligned_buffers_are_aligned(shift in 0..14_u32, blocks in 1..9_usize) {
        let align = 1_usize << shift;
        let pool = AlignedPool::new(blocks * align, align, 5).expect("a power of two");
        let mut buffers: Vec<_> = (0..5).map(|_| pool.try_get().expect("five")).collect();
        for (number, buffer) in buffers.iter_mut().enumerate() {
            prop_assert_eq!((buffer.as_ptr() as usize % align, buffer.len()), (0, blocks * align));
            prop_assert!(buffer.iter().all(|&byte| byte == 0));
            buffer.fill(number as u8 + 1);
        }
        for (number, buffer) in buffers.iter().enumerate() {
            prop_assert!(buffer.iter().all(|&byte| byte == number as u8 + 1));
        }
    }
}

#[test]
fn an_aligned_pool_is_bounded_and_says_so() {
    let pool = AlignedPool::new(8192, 4096, 2).expect("valid");
    let first = pool.try_get().expect("the first");
    let address = first.as_ptr();
    let second = pool.try_get().expect("the second");
    let error = pool.try_get().expect_err("both are lent");
    assert_eq!(error, PoolError::BuffersUsedUp { buffers_max: 2 });
    assert!(error.to_string().contains("all 2 buffers"));
    std::mem::forget(second);
    thread::spawn(move || drop(first))
        .join()
        .expect("no panics");
    assert_eq!(pool.try_get().expect("it came back").as_ptr(), address);
    assert_eq!(pool.trim(), 1);
    // The leaked one.
    assert_eq!(pool.stats().charged_objects, 1);
}

#[test]
fn an_aligned_pool_clears_if_told_to() {
    for clear in [false, true] {
        let pool = AlignedPool::new(512, 512, 1)
            .expect("valid")
            .clear_on_return(clear);
        pool.try_get().expect("one").fill(9);
        let expected = if clear { 0 } else { 9 };
        assert!(
            pool.try_get()
                .expect("one")
                .iter()
                .all(|&byte| byte == expected)
        );
    }
}

#[test]
fn impossible_alignments_are_refused() {
    for (bytes, align) in [
        (0, 512),
        (512, 0),
        (512, 3),
        (1000, 512),
        (1 << 21, 1 << 21),
    ] {
        let error = AlignedPool::new(bytes, align, 1).expect_err("not possible");
        assert_eq!(error, PoolError::BadAlignment { bytes, align });
    }
    let huge = AlignedPool::new(usize::MAX - 511, 512, 1).expect("valid");
    let error = huge.try_get().expect_err("no such memory");
    assert_eq!(
        error,
        PoolError::OutOfMemory {
            requested_bytes: usize::MAX - 511
        }
    );
    assert_eq!(huge.stats().charged_objects, 0);
}
