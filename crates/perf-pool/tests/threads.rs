//! Several threads, and their ends.
#![cfg(not(perf_loom))]

use perf_pool::{BufferGuard, BufferPool, Config, buffer_pool};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

#[test]
fn the_budget_holds_while_some_only_get_and_others_only_drop() {
    const BUDGET: u64 = 300 * 1024;
    let pool = Arc::new(BufferPool::new(
        Config::new()
            .budget_bytes(BUDGET)
            .thread_bytes_max(64 * 1024),
    ));
    let (sender, receiver) = mpsc::sync_channel::<BufferGuard>(500);
    let receiver = Arc::new(std::sync::Mutex::new(receiver));
    let getters: Vec<_> = (0..3)
        .map(|seed: usize| {
            let (pool, sender) = (Arc::clone(&pool), sender.clone());
            thread::spawn(move || {
                for round in 0..20_000_usize {
                    let mut buffer = pool.get((round * 31 + seed * 977) % 9000);
                    buffer.get_mut().push(1);
                    if round % 97 == 0 {
                        buffer.get_mut().resize(10_000, 0);
                    }
                    sender.send(buffer).expect("droppers outlive getters");
                }
            })
        })
        .collect();
    drop(sender);
    let droppers: Vec<_> = (0..2)
        .map(|_| {
            let receiver = Arc::clone(&receiver);
            thread::spawn(move || {
                loop {
                    let next = receiver.lock().expect("no panics").recv();
                    match next {
                        Ok(buffer) => drop(buffer),
                        Err(_) => return,
                    }
                }
            })
        })
        .collect();
    for thread in getters.into_iter().chain(droppers) {
        thread.join().expect("no panics");
    }
    let stats = pool.stats();
    assert!(stats.charged_bytes_peak <= BUDGET, "{stats:?}");
    assert_eq!(stats.lent_total(), 60_000);
    // All threads have ended: what is charged is parked, and can be freed to the last byte.
    assert_eq!(pool.trim(), stats.charged_bytes);
    assert_eq!(pool.stats().charged_bytes, 0);
    // The channel alone holds more than the budget, so some were unpooled; but not all.
    let count = |of: fn(&perf_pool::ClassStats) -> u64| stats.classes.iter().map(of).sum::<u64>();
    assert!(count(|class| class.unpooled) > 0);
    assert!(count(|class| class.shared_hits) > 1000, "{stats:?}");
}

#[test]
fn buffers_dropped_elsewhere_come_back_in_chains() {
    let pool = Arc::new(BufferPool::new(Config::new()));
    let (sender, receiver) = mpsc::sync_channel::<BufferGuard>(64);
    let dropper = thread::spawn(move || receiver.into_iter().for_each(drop));
    for _ in 0..50_000 {
        sender.send(pool.get(1024)).expect("the dropper listens");
    }
    drop(sender);
    dropper.join().expect("no panics");
    let class = pool.stats().classes[0];
    // In flight: the channel, and at most two chains of 64 on each side.
    assert!(class.created <= 64 + 4 * 64 + 64, "{class:?}");
    assert_eq!((class.unpooled, class.freed), (0, 0));
}

#[test]
fn a_threads_buffers_survive_it() {
    let pool = Arc::new(BufferPool::new(Config::new()));
    let its = Arc::clone(&pool);
    thread::spawn(move || {
        drop((0..10).map(|_| its.get(1024)).collect::<Vec<_>>());
        drop(its.try_get_bytes(1024).expect("small").freeze());
        let mut fixed = its.try_get_bytes(2048).expect("small");
        fixed.put_slice(&[1; 2048]).expect("fits");
        drop(fixed.freeze());
    })
    .join()
    .expect("no panics");
    let held: Vec<BufferGuard> = (0..10).map(|_| pool.get(1024)).collect();
    let stats = pool.stats();
    assert_eq!(stats.classes[0].created, 11, "10 guards, 1 fixed");
    assert_eq!(stats.classes[0].shared_hits, 1, "one chain");
    assert_eq!(stats.classes[0].thread_hits, 9);
    drop(held);
    drop(pool.try_get_bytes(2048).expect("small"));
    assert_eq!(pool.stats().classes[1].created, 1);
}

/// Drops a guard when its thread's locals are destroyed, and gets another one then.
struct Late {
    guard: Option<BufferGuard>,
    pool: Arc<BufferPool>,
}

impl Drop for Late {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut another = self.pool.get(1024);
        another.get_mut().push(1);
        drop(another);
        drop(BufferGuard::new(1024));
        drop(self.pool.try_get_bytes(10).expect("small").freeze());
    }
}

thread_local! {
    static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
}

#[test]
fn a_guard_in_another_thread_locals_destructor_leaks_nothing() {
    for armed_first in [true, false] {
        let pool = Arc::new(BufferPool::new(Config::new()));
        let its = Arc::clone(&pool);
        let lent = pool.get(1024);
        thread::spawn(move || {
            let put = |guard| {
                LATE.with(|late| {
                    *late.borrow_mut() = Some(Late {
                        guard: Some(guard),
                        pool: Arc::clone(&its),
                    });
                });
            };
            // The order of registration decides whose destructor runs first.
            if armed_first {
                drop(its.get(1024));
                put(lent);
            } else {
                put(lent);
                drop(its.get(1024));
            }
        })
        .join()
        .expect("no panics");
        let charged = pool.stats().charged_bytes;
        assert_eq!(pool.trim(), charged, "armed first: {armed_first}");
        assert_eq!(pool.stats().charged_bytes, 0);
    }
    assert!(buffer_pool().stats().lent_total() >= 2);
}

#[test]
fn guards_outlive_their_pool_on_any_thread() {
    let pool = BufferPool::new(Config::new());
    let held: Vec<BufferGuard> = (0..100).map(|_| pool.get(1024)).collect();
    let (to_thread, from_main) = mpsc::channel::<Vec<BufferGuard>>();
    let thread = thread::spawn(move || {
        for held in from_main {
            drop(held);
        }
    });
    drop(pool);
    to_thread.send(held).expect("listens");
    drop(to_thread);
    thread.join().expect("no panics");
}
