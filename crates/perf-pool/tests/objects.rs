//! What may be expected of object pools.
#![cfg(not(perf_loom))]

use perf_pool::ObjectPool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

#[test]
fn objects_are_reset_and_lent_again() {
    let pool = ObjectPool::builder(Vec::<u8>::new)
        .reset(Vec::clear)
        .build();
    let address = {
        let mut object = pool.get();
        object.extend_from_slice(&[1; 100]);
        object.as_ptr()
    };
    let object = pool.get();
    assert!(object.is_empty() && object.as_ptr() == address);
    assert_eq!(object.detach().capacity(), 100);
    let stats = pool.stats();
    assert_eq!(
        (stats.created, stats.discarded, stats.charged_objects),
        (1, 1, 0)
    );
}

#[test]
fn the_bound_holds_and_further_objects_are_counted() {
    let pool = ObjectPool::builder(|| 5)
        .objects_max(3)
        .thread_objects_max(2)
        .build();
    let held: Vec<_> = (0..5).map(|_| pool.get()).collect();
    drop(held);
    let stats = pool.stats();
    assert_eq!((stats.created, stats.unpooled), (3, 2));
    assert_eq!((stats.charged_objects, stats.charged_objects_peak), (3, 3));
    assert_eq!(pool.trim(), 3);
    assert_eq!(pool.stats().charged_objects, 0);
}

#[test]
fn a_panic_in_a_hook_costs_at_most_its_object() {
    let fails = Arc::new(AtomicBool::new(true));
    let (in_create, in_reset) = (Arc::clone(&fails), Arc::new(AtomicBool::new(false)));
    let reset_fails = Arc::clone(&in_reset);
    let pool = ObjectPool::builder(move || {
        assert!(!in_create.load(Ordering::Relaxed), "create");
        1
    })
    .reset(move |_: &mut i32| assert!(!reset_fails.load(Ordering::Relaxed), "reset"))
    .objects_max(1)
    .build();
    assert!(catch_unwind(AssertUnwindSafe(|| pool.get())).is_err());
    assert_eq!(pool.stats().charged_objects, 0);
    fails.store(false, Ordering::Relaxed);
    in_reset.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(pool.get()))).is_err());
    // During another panic the hook's own one is swallowed: two would abort.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let _object = pool.get();
        panic!("the user's");
    }));
    assert!(outcome.is_err());
    assert_eq!(
        (pool.stats().discarded, pool.stats().charged_objects),
        (2, 0)
    );
    in_reset.store(false, Ordering::Relaxed);
    drop(pool.get());
    drop(pool.get());
    assert_eq!((pool.stats().created, pool.stats().unpooled), (3, 0));
}

#[test]
fn hooks_may_use_the_pool_themselves() {
    static DEPTH: AtomicUsize = AtomicUsize::new(0);
    let inner = Arc::new(ObjectPool::builder(|| 1).build());
    let its = Arc::clone(&inner);
    let outer = ObjectPool::builder(|| 0)
        .reset(move |object: &mut i32| {
            *object += *its.get();
            DEPTH.fetch_add(1, Ordering::Relaxed);
        })
        .build();
    drop(outer.get());
    assert_eq!(*outer.get(), 1);
    assert_eq!(DEPTH.load(Ordering::Relaxed), 2);
}

/// Counts the living.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(living: &Arc<AtomicUsize>) -> Self {
        living.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(living))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn a_threads_objects_survive_it_and_die_with_the_pool() {
    let living = Arc::new(AtomicUsize::new(0));
    let its = Arc::clone(&living);
    let pool = ObjectPool::builder(move || Counted::new(&its)).build();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| drop((0..20).map(|_| pool.get()).collect::<Vec<_>>()));
        }
    });
    // `scope` does not wait for the destructors of thread-locals; `trim` sees what has arrived.
    while pool.trim() > 0 || pool.stats().charged_objects > 0 {
        thread::yield_now();
    }
    assert_eq!(living.load(Ordering::Relaxed), 0);
    drop(pool.get());
    drop(pool.get());
    assert_eq!(living.load(Ordering::Relaxed), 1);
    drop(pool);
    assert_eq!(living.load(Ordering::Relaxed), 0);
}

#[test]
fn many_pools_of_many_types_keep_apart() {
    let numbers: Vec<_> = (0..12_u64)
        .map(|n| ObjectPool::builder(move || n).build())
        .collect();
    let words: Vec<_> = (0..12)
        .map(|n| ObjectPool::builder(move || n.to_string()).build())
        .collect();
    for round in 0..3000_usize {
        let n = round * 5 % 12;
        assert_eq!(*numbers[n].get(), n as u64);
        assert_eq!(*words[n].get(), n.to_string());
    }
    assert!(numbers.iter().all(|pool| pool.stats().created <= 2));
}
