//! Several threads at once: invalidation, capacity, the manager and the metrics.

use perf_cache::{CacheError, CacheManager, CacheMetrics, CachedValue, Policy, TtlCache};
use perf_metrics::{KeyValue, Registry, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn no_thread_reads_what_was_replaced_before_it_asked() {
    // Values that lie in the table, and values that fronts refer to.
    read_while_writing::<u64>();
    read_while_writing::<Box<u64>>();
}

fn read_while_writing<V>()
where
    V: From<u64> + std::borrow::Borrow<u64> + Clone + Send + Sync + 'static,
{
    let cache: TtlCache<u64, V> = TtlCache::builder(1000).ttl(HOUR).build().unwrap();
    let written: [AtomicU64; 8] = Default::default();
    (0..8).for_each(|key| cache.insert(key, 0.into()));
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        for use_reader in [false, true, false] {
            let (cache, written, is_done) = (&cache, &written, &is_done);
            scope.spawn(move || {
                let mut reader = cache.reader();
                while !is_done.load(Ordering::Acquire) {
                    for key in 0..8 {
                        let least = written[key as usize].load(Ordering::Acquire);
                        let seen = if use_reader {
                            reader.get(&key).map(|value| *value.borrow())
                        } else {
                            cache.with(&key, |value| *value.borrow())
                        };
                        // Nothing is a fair answer: it was just taken out.
                        assert!(
                            seen.is_none_or(|seen| seen >= least),
                            "{seen:?} after {least}"
                        );
                    }
                }
            });
        }
        for value in 1..20_000 {
            let key = value % 8;
            if value % 3 == 0 {
                cache.invalidate(&key);
            }
            cache.insert(key, value.into());
            written[key as usize].store(value, Ordering::Release);
        }
        is_done.store(true, Ordering::Release);
    });
}

#[test]
fn the_capacity_holds_under_writers_and_nothing_leaks() {
    for policy in [Policy::Adaptive, Policy::Lru, Policy::TinyLfu, Policy::Moka] {
        let value = Arc::new(());
        let cache: TtlCache<u64, Arc<()>> = TtlCache::builder(500)
            .policy(policy)
            .front(false)
            .build()
            .unwrap();
        thread::scope(|scope| {
            for writer in 0..4u64 {
                let (cache, value) = (&cache, &value);
                scope.spawn(move || {
                    for step in 0..20_000u64 {
                        let key = step.wrapping_mul(writer * 2 + 1) % 3000;
                        cache.get_or_compute(&key, || Arc::clone(value));
                        if step % 7 == 0 {
                            cache.invalidate(&(key / 2));
                        }
                        // Beyond the capacity is only what four writers are inserting just now.
                        assert!(cache.len() <= 500 + 4, "{}", cache.len());
                    }
                });
            }
        });
        cache.cleanup_expired();
        assert!(cache.len() <= 500);
        assert_eq!(Arc::strong_count(&value) as u64, cache.len() + 1);
        // The policy knows all of them: filled anew, every entry of before can go.
        (10_000..12_000).for_each(|key| {
            cache.get(&key);
            cache.insert(key, Arc::clone(&value));
        });
        cache.cleanup_expired();
        assert!(cache.len() <= 500);
        cache.clear();
        assert_eq!(Arc::strong_count(&value), 1);
    }
}

#[test]
fn a_manager_cleans_up_in_the_background() {
    let manager = CacheManager::new();
    let cache: Arc<TtlCache<u64, u64>> = Arc::new(
        TtlCache::builder(100)
            .ttl(Duration::from_millis(1))
            .build()
            .unwrap(),
    );
    manager.register("short", &cache).unwrap();
    assert!(matches!(
        manager.start(Duration::ZERO),
        Err(CacheError::ZeroDuration {
            setting: "interval"
        })
    ));
    let task = manager.start(Duration::from_millis(1)).unwrap();
    assert!(matches!(
        manager.start(HOUR),
        Err(CacheError::AlreadyStarted)
    ));
    cache.insert(1, 1);
    // Ends when the background has cleaned up; if it never did, the test would hang and not pass.
    while !cache.is_empty() {
        thread::yield_now();
    }
    drop(task);
    drop(manager.start(HOUR).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let task = manager
            .start_on(runtime.handle(), Duration::from_millis(1))
            .unwrap();
        cache.insert(1, 1);
        while !cache.is_empty() {
            tokio::task::yield_now().await;
        }
        drop(task);
    });
    drop(cache);
    assert!(manager.stats().is_empty());
}

#[test]
fn a_manager_is_bounded_and_keeps_no_cache_alive() {
    let manager = CacheManager::new();
    let cache = || Arc::new(TtlCache::<u64, u64>::builder(1).build().unwrap());
    let first = cache();
    for _ in 0..perf_cache::CACHES_MAX {
        manager.register("one", &first).unwrap();
    }
    assert!(matches!(
        manager.register("more", &first),
        Err(CacheError::TooManyCaches { .. })
    ));
    drop(first);
    let second = cache();
    manager.register("second", &second).unwrap();
    second.insert(1, 1);
    assert_eq!(manager.stats().len(), 1);
    assert_eq!(manager.cleanup_expired(), 0);
    manager.clear_all();
    assert!(second.is_empty());
    assert!(std::ptr::eq(CacheManager::global(), CacheManager::global()));
}

#[test]
fn statistics_become_metrics_once_each() {
    let (registry, manager) = (Registry::new(), CacheManager::new());
    let metrics = CacheMetrics::new(&registry).unwrap();
    // The names may be taken by the same instruments, but by no others.
    assert!(CacheMetrics::new(&registry).is_ok());
    let taken = Registry::new();
    let _other = taken.u64_gauge("cache.reads").build().unwrap();
    assert!(CacheMetrics::new(&taken).is_err());
    let cache: Arc<TtlCache<u64, u64>> = Arc::new(TtlCache::builder(100).build().unwrap());
    manager.register("sessions", &cache).unwrap();
    for _ in 0..3 {
        cache.get(&1);
        cache.get_or_compute(&1, || 1);
        cache.get(&1);
        cache.invalidate(&1);
        metrics.publish(&manager);
        metrics.publish(&manager);
    }
    let snapshot = registry.collect();
    let name = KeyValue::new("cache.name", "sessions");
    let value = |metric: &str, attributes: &[KeyValue]| {
        let metric = snapshot.metric(metric).unwrap();
        metric.find(attributes).and_then(|series| series.value())
    };
    let reads = |result| {
        value(
            "cache.reads",
            &[name.clone(), KeyValue::new("cache.result", result)],
        )
    };
    assert!(matches!(reads("hit"), Some(Value::U64(3))));
    assert!(matches!(reads("miss"), Some(Value::U64(6))));
    let computations = value("cache.computations", std::slice::from_ref(&name));
    assert!(matches!(computations, Some(Value::U64(3))));
}

#[test]
fn a_clone_is_enough_for_a_manager_and_what_it_is_given_may_go() {
    let manager = CacheManager::new();
    let cache: TtlCache<u64, u64> = TtlCache::builder(10).build().unwrap();
    let value = CachedValue::<u64>::new(HOUR).unwrap();
    manager.register("clone", &Arc::new(cache.clone())).unwrap();
    manager.register("value", &value.clone()).unwrap();
    cache.insert(1, 1);
    value.set(1);
    let names = || manager.stats().into_iter().map(|(name, _)| name);
    assert!(names().eq(["clone", "value"]));
    manager.clear_all();
    assert_eq!((cache.len(), value.get()), (0, None));
    drop(cache);
    assert!(names().eq(["value"]));
}

#[test]
fn a_listener_that_panics_ends_no_cleanup() {
    let manager = CacheManager::new();
    let builder = || TtlCache::<u64, u64>::builder(100).ttl(Duration::from_millis(1));
    let panics = builder().on_removal(|key, _, _| panic!("of {key}"));
    let (panics, other) = (panics.build().unwrap(), builder().build().unwrap());
    manager.register("panics", &panics).unwrap();
    manager.register("other", &other).unwrap();
    let (sender, cleanups) = std::sync::mpsc::channel();
    let each = move |_: &CacheManager| {
        let _ = sender.send(());
        panic!("after a cleanup");
    };
    (0..3).for_each(|key| panics.insert(key, key));
    let task = manager.start_with(Duration::from_millis(2), each).unwrap();
    // Hangs or fails if the cleanup has ended.
    while !panics.is_empty() {
        cleanups.recv().unwrap();
    }
    other.insert(1, 1);
    while !other.is_empty() {
        cleanups.recv().unwrap();
    }
    drop(task);
}
