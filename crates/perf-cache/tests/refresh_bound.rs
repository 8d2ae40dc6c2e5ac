//! What becomes of a refresh when too many wait. A process of its own: threads and tasks that refresh are counted over
//! all caches.

use perf_cache::{ManualTime, TtlCache};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Threads, and refreshes that wait for one.
const TAKEN: u64 = 4 + 1024;

#[test]
fn a_refresh_that_was_refused_is_asked_for_again_by_the_next_reader() {
    let time = ManualTime::new();
    let (sender, computed) = channel();
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let held = Arc::clone(&gate);
    let cache: TtlCache<u64, u64, perf_cache::DefaultHasher, ManualTime> = TtlCache::builder(8192)
        .ttl(Duration::from_secs(1))
        .stale_while_revalidate(Duration::from_secs(100))
        .negative_ttl(Duration::from_secs(50))
        .refresh_with(move |key| {
            drop(held.lock().unwrap());
            sender.send(*key).unwrap();
            Some(*key)
        })
        .time(time.clone())
        .build()
        .unwrap();
    // More than are taken even while the threads have not begun yet.
    let keys = 0..TAKEN + 8;
    keys.clone().for_each(|key| cache.insert(key, key));
    time.advance(Duration::from_secs(1));
    let ask = |key: &u64| assert_eq!(cache.get_or_compute(key, || unreachable!()), *key);
    keys.clone().for_each(|key| ask(&key));
    drop(closed);
    let next = || computed.recv_timeout(Duration::from_secs(60));
    let mut refreshed = vec![false; keys.clone().count()];
    // Those that were taken, at least as many as may wait.
    for _ in 0..1024 {
        refreshed[next().unwrap() as usize] = true;
    }
    // Whoever is left is asked for again, and comes.
    while let Some(left) = refreshed.iter().position(|is_done| !is_done) {
        ask(&(left as u64));
        refreshed[next().expect("a refresh of those left") as usize] = true;
    }
}

#[test]
fn refresh_tasks_are_bounded() {
    let time = ManualTime::new();
    let held = Arc::new(Mutex::new(Vec::new()));
    let tasks = Arc::clone(&held);
    let cache: TtlCache<u64, u64, _, ManualTime> = TtlCache::builder(5000)
        .ttl(Duration::from_secs(10))
        .stale_while_revalidate(Duration::from_secs(100))
        .refresh_with_async(
            move |task| tasks.lock().unwrap().push(task),
            |_| std::future::ready(Some(2)),
        )
        .time(time.clone())
        .build()
        .unwrap();
    (0..3000).for_each(|key| cache.insert(key, 1));
    time.advance(Duration::from_secs(10));
    let ask = || (0..3000).for_each(|key| assert_eq!(cache.get_or_compute(&key, || 3), 1));
    ask();
    let count = held.lock().unwrap().len();
    assert_eq!(count, 1024);
    // What was refused is asked for again as soon as there is room.
    let dropped = std::mem::take(&mut *held.lock().unwrap());
    drop(dropped);
    ask();
    assert!(!held.lock().unwrap().is_empty());
}
