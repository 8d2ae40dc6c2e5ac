//! The peers of the cases of `perf-cache`, each with the capacity and the TTL of ours, or without a TTL where it has none.

use std::hint::black_box;

use cached::{Cached, TimedSizedCache};
use parking_lot::Mutex;

use super::{
    CAPACITY, HOT, LIMITS, Policy, TTL, TtlCache, WIDE_1K, WIDE_1M, WIDE_64K, keys, next, shared,
    trace, traces,
};
use crate::case::{Path, Run, path};
use crate::team::pair;

fn moka(count: u64) -> moka::sync::Cache<u64, u64> {
    let cache = moka::sync::Cache::builder()
        .max_capacity(CAPACITY)
        .time_to_live(TTL)
        .build();
    (0..count).for_each(|key| cache.insert(key, key));
    cache.run_pending_tasks();
    cache
}

fn moka_path<const N: u64>() -> Run {
    let cache = moka(N);
    keys(N, move |key| cache.get(&key))
}

/// moka's cache for tasks; its future is ready at once, and is polled on the spot.
fn moka_future_path<const N: u64>() -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime of one thread");
    let cache: moka::future::Cache<u64, u64> = moka::future::Cache::builder()
        .max_capacity(CAPACITY)
        .time_to_live(TTL)
        .build();
    runtime.block_on(async {
        for key in 0..N {
            cache.insert(key, key).await;
        }
        cache.run_pending_tasks().await;
    });
    let mut turn = 0;
    Box::new(move |iters| {
        runtime.block_on(async {
            let start = std::time::Instant::now();
            let mut sum = 0_u64;
            for _ in 0..iters {
                let value = cache.get(&next(&mut turn, N)).await;
                sum = sum.wrapping_add(value.unwrap_or(0));
            }
            black_box(sum);
            start.elapsed()
        })
    })
}

/// It has no TTL.
fn quick_cache_path<const N: u64>() -> Run {
    let cache = quick_cache::sync::Cache::<u64, u64>::new(CAPACITY as usize);
    (0..N).for_each(|key| cache.insert(key, key));
    keys(N, move |key| cache.get(&key))
}

fn mini_moka_path<const N: u64>() -> Run {
    use mini_moka::sync::ConcurrentCacheExt;
    let cache = mini_moka::sync::Cache::builder()
        .max_capacity(CAPACITY)
        .time_to_live(TTL)
        .build();
    (0..N).for_each(|key| cache.insert(key, key));
    cache.sync();
    keys(N, move |key| cache.get(&key))
}

/// The memory part of foyer, with the eviction it has unless told otherwise. It has no TTL.
fn foyer_path<const N: u64>() -> Run {
    let cache: foyer_memory::Cache<u64, u64> =
        foyer_memory::CacheBuilder::new(CAPACITY as usize).build();
    (0..N).for_each(|key| drop(cache.insert(key, key)));
    keys(N, move |key| cache.get(&key).map(|entry| *entry.value()))
}

/// As its macro makes it: behind one lock.
fn cached_path<const N: u64>() -> Run {
    let mut cache = TimedSizedCache::with_size_and_lifespan(CAPACITY as usize, TTL);
    for key in 0..N {
        cache.cache_set(key, key);
    }
    let cache = Mutex::new(cache);
    keys(N, move |key| cache.lock().cache_get(&key).copied())
}

fn all<const N: u64>() -> Vec<Path> {
    vec![
        path("moka", moka_path::<N>),
        path("moka future", moka_future_path::<N>),
        path("quick_cache", quick_cache_path::<N>),
        path("mini-moka", mini_moka_path::<N>),
        path("foyer", foyer_path::<N>),
        path("cached", cached_path::<N>),
    ]
}

pub(super) fn value() -> Vec<Path> {
    vec![path("moka", || {
        let cache = moka(1);
        crate::case::summed(move || cache.get(&black_box(0)).unwrap_or(0))
    })]
}

pub(super) fn hot() -> Vec<Path> {
    all::<HOT>()
}

pub(super) fn wide_1k() -> Vec<Path> {
    all::<WIDE_1K>()
}

pub(super) fn wide_64k() -> Vec<Path> {
    all::<WIDE_64K>()
}

fn moka_of(capacity: u64, count: u64) -> moka::sync::Cache<u64, u64> {
    let cache = moka::sync::Cache::builder()
        .max_capacity(capacity)
        .time_to_live(TTL)
        .build();
    (0..count).for_each(|key| cache.insert(key, key));
    cache.run_pending_tasks();
    cache
}

fn quick_of(capacity: u64, count: u64) -> quick_cache::sync::Cache<u64, u64> {
    let cache = quick_cache::sync::Cache::new(capacity as usize);
    (0..count).for_each(|key| cache.insert(key, key));
    cache
}

fn foyer_of(capacity: u64, count: u64) -> foyer_memory::Cache<u64, u64> {
    let cache: foyer_memory::Cache<u64, u64> =
        foyer_memory::CacheBuilder::new(capacity as usize).build();
    (0..count).for_each(|key| drop(cache.insert(key, key)));
    cache
}

fn reads<const N: u64>() -> Vec<Path> {
    vec![
        path("moka", || {
            let cache = moka_of(2 * N, N);
            keys(N, move |key| cache.get(&key))
        }),
        path("quick_cache", || {
            let cache = quick_of(2 * N, N);
            keys(N, move |key| cache.get(&key))
        }),
        path("foyer", || {
            let cache = foyer_of(2 * N, N);
            keys(N, move |key| cache.get(&key).map(|entry| *entry.value()))
        }),
    ]
}

pub(super) fn wide_1k_2k() -> Vec<Path> {
    reads::<WIDE_1K>()
}

pub(super) fn wide_1m() -> Vec<Path> {
    reads::<WIDE_1M>()
}

pub(super) fn trace_mixed() -> Vec<Path> {
    use crate::case::summed;
    vec![
        path("moka", || {
            let (cache, mut next) = (moka_of(traces::CAPACITY, 0), trace());
            summed(move || {
                let key = next();
                cache.get_with(key, || key)
            })
        }),
        path("Policy::Moka", || {
            let builder = TtlCache::builder(traces::CAPACITY).ttl(TTL);
            let cache: TtlCache<u64, u64> = builder.policy(Policy::Moka).build().expect(LIMITS);
            let mut next = trace();
            summed(move || {
                let key = next();
                cache.get_or_compute(&key, || key)
            })
        }),
        path("quick_cache", || {
            let (cache, mut next) = (quick_of(traces::CAPACITY, 0), trace());
            summed(move || {
                let key = next();
                cache
                    .get_or_insert_with(&key, || Ok::<_, std::convert::Infallible>(key))
                    .unwrap_or(0)
            })
        }),
        path("foyer", || {
            let (cache, mut next) = (foyer_of(traces::CAPACITY, 0), trace());
            summed(move || {
                let key = next();
                match cache.get(&key) {
                    Some(entry) => *entry.value(),
                    None => *cache.insert(key, key).value(),
                }
            })
        }),
    ]
}

pub(super) fn insert_64k() -> Vec<Path> {
    vec![
        path("moka", || {
            let cache = moka_of(WIDE_64K, WIDE_64K);
            keys(2 * WIDE_64K, move |key| {
                cache.insert(key, key);
                None
            })
        }),
        path("quick_cache", || {
            let cache = quick_of(WIDE_64K, WIDE_64K);
            keys(2 * WIDE_64K, move |key| {
                cache.insert(key, key);
                None
            })
        }),
        path("foyer", || {
            let cache = foyer_of(WIDE_64K, WIDE_64K);
            keys(2 * WIDE_64K, move |key| {
                drop(cache.insert(key, key));
                None
            })
        }),
    ]
}

pub(super) fn invalidate_64k() -> Vec<Path> {
    vec![
        path("moka", || {
            let cache = moka_of(CAPACITY, WIDE_64K);
            keys(WIDE_64K, move |key| {
                cache.invalidate(&key);
                cache.insert(key, key);
                None
            })
        }),
        path("quick_cache", || {
            let cache = quick_of(CAPACITY, WIDE_64K);
            keys(WIDE_64K, move |key| {
                cache.remove(&key);
                cache.insert(key, key);
                None
            })
        }),
        path("foyer", || {
            let cache = foyer_of(CAPACITY, WIDE_64K);
            keys(WIDE_64K, move |key| {
                drop(cache.remove(&key));
                drop(cache.insert(key, key));
                None
            })
        }),
    ]
}

pub(super) fn wide_1k_pair() -> Vec<Path> {
    vec![
        path("moka", || {
            let cache = shared(moka(WIDE_1K));
            pair(|| {
                let mut turn = 0;
                move || cache.get(&next(&mut turn, WIDE_1K)).unwrap_or(0)
            })
        }),
        path("quick_cache", || {
            let cache = shared(quick_cache::sync::Cache::<u64, u64>::new(CAPACITY as usize));
            (0..WIDE_1K).for_each(|key| cache.insert(key, key));
            pair(|| {
                let mut turn = 0;
                move || cache.get(&next(&mut turn, WIDE_1K)).unwrap_or(0)
            })
        }),
    ]
}
