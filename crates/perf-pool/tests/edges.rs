//! Bounds of 0, 1 and the largest number; threads that come and go; contention; pools that are gone.
#![cfg(not(perf_loom))]

use perf_pool::{AlignedPool, BoxPool, BufferPool, Config, ObjectPool, PoolError, Pooled};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

#[test]
fn the_bound_on_a_request_holds_below_the_largest_class() {
    let pool = BufferPool::new(Config::new().request_bytes_max(1000));
    let refused = PoolError::RequestTooLarge {
        requested_bytes: 1001,
        request_bytes_max: 1000,
    };
    assert_eq!(pool.try_get(1001).expect_err("above the cap"), refused);
    assert_eq!(pool.try_get_bytes(1001).expect_err("likewise"), refused);
    assert_eq!(pool.get(1001).get().capacity(), 0);
    assert_eq!(pool.get(1000).get().capacity(), KIB);
    assert_eq!(pool.stats().refused, 3);

    let pool = BufferPool::new(Config::new().request_bytes_max(0));
    assert!(pool.try_get(1).is_err() && pool.try_get(0).is_ok());
    assert_eq!(pool.get(MIB).get().capacity(), 0);
}

#[test]
fn a_budget_of_almost_nothing_serves_and_counts() {
    for budget_bytes in [0, 1, 1023] {
        let pool = BufferPool::new(Config::new().budget_bytes(budget_bytes));
        assert_eq!(pool.get(KIB).get().capacity(), KIB);
        let mut bytes = pool.try_get_bytes(KIB).expect("unpooled");
        bytes.put_slice(b"all there").expect("fits");
        assert_eq!(&bytes.freeze()[..], b"all there");
        let stats = pool.stats();
        assert_eq!((stats.charged_bytes, stats.classes[0].unpooled), (0, 2));

        let strict = Config::new()
            .budget_bytes(budget_bytes)
            .refuse_beyond_budget(true);
        let pool = BufferPool::new(strict);
        assert!(matches!(
            pool.try_get(0),
            Err(PoolError::BudgetUsedUp { .. })
        ));
        assert_eq!(pool.get(KIB).get().capacity(), 0);
        assert_eq!(pool.stats().refused, 2);
    }
}

#[test]
fn a_budget_without_end_costs_nothing_in_advance() {
    let config = Config::new()
        .budget_bytes(u64::MAX)
        .thread_bytes_max(u64::MAX)
        .refuse_beyond_budget(true);
    let pool = BufferPool::new(config);
    let frozen: Vec<_> = (0..1000)
        .map(|_| {
            let mut message = pool.try_get_bytes(KIB).expect("within the budget");
            message.put_slice(b"x").expect("fits");
            message.freeze()
        })
        .collect();
    assert_eq!(pool.stats().charged_bytes, 1000 * KIB as u64);
    drop(frozen);
    pool.trim();
    assert_eq!(pool.stats().charged_bytes, 0);
}

#[test]
fn a_request_for_all_memory_is_an_error() {
    let pool = BufferPool::new(Config::new().request_bytes_max(usize::MAX));
    for bytes in [usize::MAX, isize::MAX as usize] {
        let expected = PoolError::OutOfMemory {
            requested_bytes: bytes,
        };
        assert_eq!(pool.try_get(bytes).expect_err("too much"), expected);
        assert_eq!(pool.try_get_bytes(bytes).expect_err("too much"), expected);
        assert_eq!(pool.get(bytes).get().capacity(), 0);
    }
    assert_eq!((pool.stats().refused, pool.stats().oversized), (6, 0));
    let mut large = pool.try_get_bytes(MIB + 1).expect("there is memory");
    large.put_slice(&vec![7; MIB + 1]).expect("fits");
    assert_eq!((large.remaining(), pool.stats().oversized), (0, 1));
    assert!(large.put_slice(&[7]).is_err());
    let frozen = large.freeze();
    assert!(frozen.len() == MIB + 1 && frozen.iter().all(|byte| *byte == 7));
}

#[test]
fn what_this_thread_keeps_idle_makes_room_before_a_request_is_refused() {
    let config = Config::new()
        .budget_bytes(MIB as u64)
        .refuse_beyond_budget(true);
    let pool = BufferPool::new(config);
    // The whole budget in the smallest class; the thread keeps a part of it.
    drop((0..1024).map(|_| pool.get(KIB)).collect::<Vec<_>>());
    drop(pool.try_get(MIB).expect("all of it is idle"));
    // The same with frozen bytes.
    let frozen = |_| {
        let mut message = pool.try_get_bytes(64 * KIB).expect("idle");
        message.put_slice(b"x").expect("fits");
        message.freeze()
    };
    drop((0..16).map(frozen).collect::<Vec<_>>());
    drop(pool.try_get(MIB).expect("all of it is idle"));
    assert_eq!(pool.stats().refused, 0);
}

#[test]
fn an_error_names_what_other_threads_keep_idle() {
    let config = Config::new()
        .budget_bytes(64 * KIB as u64)
        .refuse_beyond_budget(true);
    let pool = BufferPool::new(config);
    let (kept, is_kept) = mpsc::channel();
    let (end, may_end) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let pool = &pool;
        scope.spawn(move || {
            drop((0..64).map(|_| pool.get(KIB)).collect::<Vec<_>>());
            kept.send(()).expect("the test waits");
            may_end.recv().expect("the test ends the thread");
        });
        is_kept.recv().expect("the thread keeps buffers");
        let error = pool.try_get(64 * KIB).expect_err("idle elsewhere");
        let PoolError::BudgetUsedUp {
            lent_bytes,
            frozen_bytes,
            idle_bytes,
            ..
        } = error
        else {
            panic!("another error: {error}");
        };
        assert_eq!((lent_bytes, frozen_bytes), (0, 0));
        assert_eq!(idle_bytes, 64 * KIB as u64);
        assert!(error.to_string().contains("`Config::thread_bytes_max`"));
        end.send(()).expect("the thread waits");
    });
}

#[test]
fn as_many_threads_as_buffers_are_never_refused() {
    const THREADS: usize = 4;
    let config = Config::new()
        .budget_bytes((THREADS * KIB) as u64)
        .thread_bytes_max(0)
        .refuse_beyond_budget(true);
    let (vecs, bytes) = (BufferPool::new(config.clone()), BufferPool::new(config));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    drop(vecs.try_get(KIB).expect("one for each thread"));
                    drop(bytes.try_get_bytes(KIB).expect("one for each thread"));
                }
            });
        }
    });
    assert_eq!((vecs.stats().refused, bytes.stats().refused), (0, 0));
    assert!(vecs.stats().charged_bytes <= (THREADS * KIB) as u64);
}

#[test]
fn a_pool_is_trimmed_while_it_is_used() {
    let pool = BufferPool::new(Config::new().budget_bytes(256 * KIB as u64));
    let left = AtomicUsize::new(3);
    thread::scope(|scope| {
        for seed in 0..3_usize {
            let (pool, left) = (&pool, &left);
            scope.spawn(move || {
                for round in 0..10_000 {
                    let bytes = (round * 31 + seed * 977) % 9000;
                    let mut buffer = pool.get(bytes);
                    buffer.get_mut().resize(bytes, seed as u8);
                    let frozen = buffer.freeze();
                    assert!(frozen.iter().all(|byte| usize::from(*byte) == seed));
                    let mut message = pool.try_get_bytes(bytes).expect("small");
                    message.put_slice(&frozen).expect("fits");
                    assert_eq!(message.freeze(), frozen);
                }
                left.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while left.load(Ordering::Relaxed) > 0 {
            pool.trim();
        }
    });
    let stats = pool.stats();
    assert!(stats.charged_bytes_peak <= 256 * KIB as u64, "{stats:?}");
    // A thread's tier may outlast the scope by a moment.
    while pool.stats().charged_bytes > 0 {
        pool.trim();
        thread::yield_now();
    }
}

#[test]
fn ten_thousand_short_threads_leave_nothing_behind() {
    let buffers = BufferPool::new(Config::new());
    let objects = ObjectPool::builder(|| [0_u8; 100]).build();
    let boxes = BoxPool::new(1000);
    for _ in 0..2500 {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    drop(buffers.get(KIB));
                    drop(buffers.try_get_bytes(2 * KIB).expect("small"));
                    drop(objects.get());
                    drop(boxes.alloc(1));
                });
            }
        });
    }
    // A thread may still be ending when the next one starts, so a few more than four.
    let classes = buffers.stats().classes;
    for class in &classes[..2] {
        assert!(class.created < 1000, "{class:?}");
    }
    assert!(objects.stats().created < 1000, "{:?}", objects.stats());
    assert!(boxes.stats().created < 1000, "{:?}", boxes.stats());
    assert_eq!(objects.stats().unpooled + boxes.stats().unpooled, 0);
}

#[test]
fn bounds_on_objects_may_be_nothing_or_all() {
    for (objects, of_thread) in [
        (0, 0),
        (0, usize::MAX),
        (1, usize::MAX),
        (usize::MAX, 0),
        (usize::MAX, usize::MAX),
    ] {
        let pool = ObjectPool::builder(|| 5)
            .objects_max(objects)
            .thread_objects_max(of_thread)
            .build();
        let boxes = BoxPool::with_thread_objects_max(objects, of_thread);
        for _ in 0..3 {
            let held = [pool.get(), pool.get()];
            assert!(held.iter().all(|object| **object == 5));
            let held = [boxes.alloc(1), boxes.alloc(2)];
            assert_eq!((*held[0], *held[1]), (1, 2));
        }
        let expected = objects.min(2) as u64;
        assert_eq!(pool.stats().charged_objects, expected);
        assert_eq!(boxes.stats().charged_objects, expected);
        assert_eq!(
            (pool.trim(), boxes.trim()),
            (objects.min(2), objects.min(2))
        );
    }
}

#[test]
fn aligned_buffers_that_any_thread_returned_can_be_lent() {
    let pool = AlignedPool::new(4 * KIB, KIB, 3).expect("valid");
    let held: Vec<_> = (0..3).map(|_| pool.try_get().expect("three")).collect();
    let (returned, is_returned) = mpsc::channel();
    let (end, may_end) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            drop(held);
            returned.send(()).expect("the test waits");
            may_end.recv().expect("the test ends the thread");
        });
        is_returned.recv().expect("the thread returns them");
        let held: Vec<_> = (0..3).map(|_| pool.try_get().expect("three")).collect();
        assert_eq!(
            pool.try_get().expect_err("all are lent"),
            PoolError::BuffersUsedUp { buffers_max: 3 }
        );
        drop(held);
        end.send(()).expect("the thread waits");
    });
    assert_eq!(pool.stats().created, 3);
    assert!(matches!(
        AlignedPool::new(1 << 63, MIB, usize::MAX)
            .expect("a multiple")
            .try_get(),
        Err(PoolError::OutOfMemory { .. })
    ));
    let none = AlignedPool::new(KIB, KIB, 0).expect("valid");
    assert!(matches!(
        none.try_get(),
        Err(PoolError::BuffersUsedUp { buffers_max: 0 })
    ));
}

/// Counts the living, and panics when it is dropped.
struct Bomb(Arc<AtomicUsize>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        panic!("the object's own");
    }
}

#[test]
fn a_thread_may_end_with_objects_whose_drop_panics() {
    let live = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&live);
    let pool = ObjectPool::builder(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Bomb(Arc::clone(&counted))
    })
    .build();
    let pool = Arc::new(pool);
    let (kept, is_kept) = mpsc::channel();
    let (end, may_end) = mpsc::channel::<()>();
    let its = Arc::clone(&pool);
    let thread = thread::spawn(move || {
        drop((0..5).map(|_| its.get()).collect::<Vec<_>>());
        drop(its);
        kept.send(()).expect("the test waits");
        may_end.recv().expect("the test ends the thread");
    });
    is_kept.recv().expect("the thread keeps objects");
    // The first return of a thread goes to the shared tier, and is dropped with the pool.
    let outcome = catch_unwind(AssertUnwindSafe(|| drop(pool)));
    let of_pool = 5 - live.load(Ordering::Relaxed);
    assert_eq!((outcome.is_err(), of_pool <= 1), (of_pool == 1, true));
    end.send(()).expect("the thread waits");
    thread.join().expect("its own code does not panic");
    // `join` does not wait for the destructors of thread-locals on every system.
    while live.load(Ordering::Relaxed) > 0 {
        thread::yield_now();
    }
}

/// Drops a box when its thread's locals are destroyed, and takes another one then.
struct Late {
    boxed: Option<Pooled<u64>>,
    pools: Arc<(BoxPool<u64>, ObjectPool<Vec<u8>>)>,
}

impl Drop for Late {
    fn drop(&mut self) {
        drop(self.boxed.take());
        assert_eq!(*self.pools.0.alloc(8), 8);
        self.pools.1.get().push(1);
    }
}

thread_local! {
    static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
}

#[test]
fn a_box_in_another_thread_locals_destructor_leaks_nothing() {
    for armed_first in [true, false] {
        let objects = ObjectPool::builder(Vec::new).reset(Vec::clear).build();
        let pools = Arc::new((BoxPool::new(100), objects));
        let (its, boxed) = (Arc::clone(&pools), pools.0.alloc(7));
        let thread = thread::spawn(move || {
            let use_pools = || drop((its.0.alloc(1), its.0.alloc(2), its.1.get()));
            // The order of registration decides whose destructor runs first.
            if armed_first {
                use_pools();
            }
            LATE.with(|late| {
                *late.borrow_mut() = Some(Late {
                    boxed: Some(boxed),
                    pools: Arc::clone(&its),
                });
            });
            use_pools();
        });
        thread.join().expect("no panics");
        // A thread's destructors may outlast its join. If a box were lost, this would not end, and the test would not pass.
        let (boxes, objects) = (&pools.0, &pools.1);
        while boxes.stats().charged_objects + objects.stats().charged_objects > 0 {
            boxes.trim();
            objects.trim();
            thread::yield_now();
        }
        assert_eq!(boxes.stats().unpooled + objects.stats().unpooled, 0);
    }
}
