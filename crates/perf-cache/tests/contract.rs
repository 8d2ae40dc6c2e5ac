//! What the public interface promises, one thread.

use perf_cache::{
    CacheError, CachedValue, FRONT_PLACES, ManualTime, Policy, PreciseTime, RefreshTask, Removal,
    TtlCache, WIDE_FRONT_PLACES,
};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const CENTURIES: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 500);

fn plain(capacity: u64) -> TtlCache<u64, u64> {
    TtlCache::builder(capacity).build().unwrap()
}

type Timed = TtlCache<u64, u64, perf_cache::DefaultHasher, ManualTime>;

#[test]
fn settings_out_of_their_limits_are_refused_by_name() {
    let refused = |builder: perf_cache::CacheBuilder<u64, u64>| builder.build().unwrap_err();
    assert!(matches!(
        refused(TtlCache::builder(0)),
        CacheError::ZeroCapacity
    ));
    for (setting, error) in [
        ("ttl", refused(TtlCache::builder(1).ttl(Duration::ZERO))),
        ("idle", refused(TtlCache::builder(1).idle(Duration::ZERO))),
        (
            "stale_while_revalidate",
            refused(TtlCache::builder(1).stale_while_revalidate(Duration::ZERO)),
        ),
        (
            "negative_ttl",
            refused(TtlCache::builder(1).negative_ttl(Duration::ZERO)),
        ),
    ] {
        assert!(error.to_string().contains(setting), "{error}");
    }
    for share in [-0.1, 0.91, f64::NAN] {
        let error = refused(TtlCache::builder(1).jitter(share));
        assert!(error.to_string().contains("0.0 to 0.9"), "{error}");
    }
}

#[test]
fn a_value_lives_exactly_as_long_as_its_ttl_with_any_lag_of_the_clock() {
    for lag in [Duration::ZERO, Duration::from_millis(50), 10 * SECOND] {
        let time = ManualTime::with_lag(lag);
        time.advance(100 * SECOND);
        let cache: Timed = TtlCache::builder(10)
            .ttl(40 * SECOND)
            .time(time.clone())
            .build()
            .unwrap();
        let mut reader = cache.reader();
        cache.insert(1, 10);
        let last = 40 * SECOND - Duration::from_nanos(1);
        for step in [SECOND, 29 * SECOND, last - 30 * SECOND] {
            time.advance(step);
            assert_eq!((cache.get(&1), reader.get(&1)), (Some(10), Some(&10)));
        }
        time.advance(Duration::from_nanos(1));
        assert_eq!(reader.get(&1), None, "lag {lag:?}");
        assert_eq!(cache.get(&1), None, "lag {lag:?}");
    }
}

#[test]
fn a_ttl_of_a_thousand_lags_ends_at_most_a_lag_early_and_never_late() {
    let lag = Duration::from_millis(50);
    let ttl = 1000 * lag;
    let time = ManualTime::with_lag(lag);
    time.advance(100 * SECOND);
    let cache: Timed = TtlCache::builder(10)
        .ttl(ttl)
        .time(time.clone())
        .build()
        .unwrap();
    let mut reader = cache.reader();
    cache.insert(1, 10);
    cache.get_or_compute(&2, || 20);
    time.advance(ttl - lag - Duration::from_nanos(1));
    assert_eq!((cache.get(&1), reader.get(&1)), (Some(10), Some(&10)));
    assert_eq!(cache.get(&2), Some(20));
    time.advance(lag + Duration::from_nanos(1));
    assert_eq!((cache.get(&1), reader.get(&1)), (None, None));
    assert_eq!(cache.get(&2), None);
}

#[test]
fn a_ttl_of_centuries_and_none_at_all_do_not_end() {
    for builder in [
        TtlCache::builder(2),
        TtlCache::builder(2).ttl(Duration::MAX),
    ] {
        let time = ManualTime::new();
        let cache: Timed = builder
            .stale_while_revalidate(Duration::MAX)
            .idle(Duration::MAX)
            .time(time.clone())
            .build()
            .unwrap();
        cache.insert(1, 1);
        cache.insert_with_ttl(2, 2, CENTURIES);
        time.advance(CENTURIES - SECOND);
        assert_eq!((cache.get(&1), cache.get(&2)), (Some(1), Some(2)));
    }
}

#[test]
fn a_ttl_of_its_own_and_one_of_zero() {
    let time = ManualTime::new();
    let cache: Timed = TtlCache::builder(10)
        .ttl(10 * SECOND)
        .time(time.clone())
        .build()
        .unwrap();
    cache.insert_with_ttl(1, 1, 20 * SECOND);
    time.advance(15 * SECOND);
    assert_eq!(cache.get(&1), Some(1));
    cache.insert_with_ttl(1, 2, Duration::ZERO);
    assert_eq!(cache.get(&1), None);
}

#[test]
fn jitter_only_shortens_and_spreads() {
    let time = ManualTime::new();
    let cache: Timed = TtlCache::builder(1000)
        .ttl(100 * SECOND)
        .jitter(0.5)
        .time(time.clone())
        .build()
        .unwrap();
    (0..1000).for_each(|key| cache.insert(key, key));
    let alive = || (0..1000).filter(|key| cache.contains(key)).count();
    time.advance(49 * SECOND);
    assert_eq!(alive(), 1000);
    time.advance(26 * SECOND);
    let half = alive();
    assert!(
        (400..600).contains(&half),
        "{half} of 1000 outlived half of the jitter"
    );
    time.advance(25 * SECOND);
    assert_eq!(alive(), 0);
}

#[test]
fn what_nobody_reads_ends_and_what_is_read_stays() {
    let time = ManualTime::new();
    let cache: Timed = TtlCache::builder(10)
        .idle(8 * SECOND)
        .time(time.clone())
        .build()
        .unwrap();
    let mut reader = cache.reader();
    cache.insert(1, 1);
    cache.insert(2, 2);
    cache.insert(3, 3);
    for _ in 0..20 {
        time.advance(SECOND);
        assert_eq!((cache.get(&1), reader.get(&2)), (Some(1), Some(&2)));
    }
    assert_eq!(cache.get(&3), None);
    time.advance(8 * SECOND);
    assert_eq!((cache.get(&1), reader.get(&2)), (None, None));
}

#[test]
fn weights_fill_the_capacity_and_what_is_too_heavy_is_not_kept() {
    let cache: TtlCache<u64, u32> = TtlCache::builder(1000)
        .weigher(|_, weight: &u32| *weight)
        .policy(Policy::Lru)
        .build()
        .unwrap();
    cache.insert(1, 0);
    assert_eq!(cache.weight(), 1);
    cache.insert(1, 400);
    assert_eq!(cache.weight(), 400);
    // The former value is outdated, even though the new one is not kept.
    cache.insert(1, 1001);
    assert_eq!((cache.get(&1), cache.weight()), (None, 0));
    assert_eq!(cache.get_or_compute(&2, || u32::MAX), u32::MAX);
    assert_eq!(cache.get(&2), None);
    assert_eq!(cache.stats().rejected, 2);
    for key in 10..500 {
        cache.insert(key, 90);
        assert!(cache.weight() <= 1000, "{}", cache.weight());
    }
    cache.cleanup_expired();
    assert!(cache.weight() <= 1000);
    assert!(cache.stats().evictions > 400);
}

#[test]
fn a_cache_of_one_place_works() {
    for policy in [Policy::Adaptive, Policy::Lru, Policy::TinyLfu] {
        let cache: TtlCache<u64, u64> = TtlCache::builder(1).policy(policy).build().unwrap();
        for key in 0..1000 {
            assert_eq!(cache.get_or_compute(&key, || key + 1), key + 1);
            assert_eq!(cache.len(), 1);
            assert_eq!(
                cache.get(&key),
                Some(key + 1),
                "what was just put in is there"
            );
        }
    }
}

/// Moka decides, and knows of insertions, reads, removals and another capacity.
#[test]
fn moka_says_what_goes() {
    let evicted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&evicted);
    let cache: TtlCache<u64, u64> = TtlCache::builder(100)
        .policy(Policy::Moka)
        .weigher(|_, weight: &u64| *weight as u32)
        .on_removal(move |_, _, why| {
            count.fetch_add(usize::from(why == Removal::Evicted), Ordering::Relaxed);
        })
        .build()
        .unwrap();
    assert_eq!(cache.policy(), Policy::Moka);
    // Ten that are read all the time, and twice as many that come once: LRU has none of the ten when they come again.
    for round in 0..20 {
        for key in 0..10 {
            assert_eq!(cache.get_or_compute(&key, || 10), 10);
        }
        for key in 0..20 {
            cache.insert(1000 + round * 20 + key, 10);
            assert!(cache.weight() <= 100, "{}", cache.weight());
        }
    }
    assert!((0..10).all(|key| cache.peek(&key) == Some(10)));
    let stats = cache.stats();
    assert_eq!(stats.evictions, evicted.load(Ordering::Relaxed) as u64);
    assert!(
        stats.evictions > 300 && stats.computations < 100,
        "{stats:?}"
    );
    // What was taken out leaves room, which moka knows.
    (0..5).for_each(|key| assert!(cache.invalidate(&key)));
    (20..25).for_each(|key| cache.insert(key, 10));
    assert!(
        (5..10)
            .chain(20..25)
            .all(|key| cache.peek(&key) == Some(10))
    );
    cache.clear();
    (0..10).for_each(|key| cache.insert(key, 10));
    assert_eq!(cache.weight(), 100);
    for capacity in [200, 30, 150] {
        cache.set_capacity(capacity).unwrap();
        assert!(cache.weight() <= capacity);
        (0..100).for_each(|key| cache.insert(key, 10));
        assert_eq!(cache.weight(), capacity);
    }
}

#[test]
fn the_capacity_is_exact_and_may_change() {
    let cache = plain(1000);
    (0..1000).for_each(|key| cache.insert(key, key));
    assert_eq!((cache.len(), cache.stats().evictions), (1000, 0));
    for capacity in [1500, 700, 3, 1, 2000] {
        cache.set_capacity(capacity).unwrap();
        assert!(cache.len() <= capacity);
        for key in 5000..8000 {
            cache.insert(key, key);
            assert!(cache.len() <= capacity, "{} of {capacity}", cache.len());
            assert_eq!(cache.get(&key), Some(key), "an insertion evicted itself");
        }
        assert_eq!((cache.len(), cache.weight()), (capacity, capacity));
    }
    assert!(matches!(
        cache.set_capacity(0),
        Err(CacheError::ZeroCapacity)
    ));
}

#[test]
fn changes_are_seen_at_once_through_every_way_of_reading() {
    // Values that lie in the table, and values that fronts refer to.
    see_changes::<u64>();
    see_changes::<Box<u64>>();
}

fn see_changes<V>()
where
    V: From<u64> + std::borrow::Borrow<u64> + Clone + Send + Sync + 'static,
{
    let cache: TtlCache<u64, V> = TtlCache::builder(1000).build().unwrap();
    let mut reader = cache.reader();
    let mut read = |key: u64| {
        let got = cache.get(&key).map(|value| *value.borrow());
        assert_eq!(got, reader.get(&key).map(|value| *value.borrow()));
        got
    };
    for key in 0..200 {
        cache.insert(key, key.into());
        assert_eq!(read(key), Some(key));
        cache.insert(key, (key + 1).into());
        assert_eq!(read(key), Some(key + 1));
    }
    assert!(cache.invalidate(&7));
    assert!(!cache.invalidate(&7));
    assert_eq!(read(7), None);
    assert!(!cache.invalidate_if(&8, |value| *value.borrow() == 0));
    assert!(cache.invalidate_if(&8, |value| *value.borrow() == 9));
    assert_eq!(read(8), None);
    assert_eq!(cache.invalidate_where(|key, _| key % 2 == 0), 99);
    for key in 0..200 {
        let expected = (key % 2 == 1 && key != 7).then_some(key + 1);
        assert_eq!(read(key), expected);
    }
    cache.clear();
    assert!(cache.is_empty());
    assert_eq!(read(11), None);
    assert_eq!(cache.weight(), 0);
}

#[test]
fn keys_are_looked_up_by_what_they_borrow_as() {
    let cache: TtlCache<String, usize> = TtlCache::builder(10).build().unwrap();
    assert_eq!(cache.get_or_compute("node", || 4), 4);
    assert_eq!(cache.with("node", |value| value + 1), Some(5));
    assert_eq!(cache.reader().get("node"), Some(&4));
    assert!(cache.contains("node"));
    assert!(cache.invalidate("node"));
}

/// A hasher by which all keys are one.
#[derive(Clone, Copy, Default)]
struct Same;

impl std::hash::Hasher for Same {
    fn finish(&self) -> u64 {
        7
    }

    fn write(&mut self, _: &[u8]) {}
}

impl std::hash::BuildHasher for Same {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

#[test]
fn keys_of_one_hash_are_never_mistaken_for_each_other() {
    let cache: TtlCache<u64, u64, Same> = TtlCache::builder(100).hasher(Same).build().unwrap();
    let mut reader = cache.reader();
    for key in 0..100 {
        assert_eq!(cache.get_or_compute(&key, || key), key);
        assert_eq!((cache.get(&key), reader.get(&key)), (Some(key), Some(&key)));
        assert_eq!(
            (cache.get(&(key + 1)), reader.get(&(key + 1))),
            (None, None)
        );
        assert!(!cache.invalidate_if(&(key + 1), |_| true));
        assert_eq!(cache.get(&key), Some(key));
        // They have one place, which is empty then.
        assert!(!cache.invalidate(&(key + 1)));
        assert_eq!(cache.get(&key), None);
        cache.insert(key, key);
    }
    assert_eq!(cache.len(), 1);
    // A computation of one key while another one of the hash is computed.
    assert_eq!(
        cache.get_or_compute(&500, || cache.get_or_compute(&501, || 1) + 1),
        2
    );
}

/// What is computed for one key of a hash is never given to a caller of another one who waited for it.
#[test]
fn who_waits_for_another_key_of_the_hash_computes_next() {
    let cache: TtlCache<u64, u64, Same> = TtlCache::builder(100).hasher(Same).build().unwrap();
    for outcome in [Ok(1), Err(1)] {
        let (begun, begins) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                let compute = || {
                    begun.send(()).unwrap();
                    // Long enough that the other one waits, most likely.
                    std::thread::sleep(Duration::from_millis(50));
                    outcome
                };
                cache.try_get_or_compute(&1, compute)
            });
            begins.recv().unwrap();
            let second = cache.try_get_or_compute(&2, || Ok::<u64, u64>(2));
            assert_eq!(second.unwrap(), 2);
            let first = first.join().unwrap();
            assert_eq!(first.map_err(|error| *error), outcome);
        });
        cache.clear();
    }
}

#[test]
fn errors_are_shared_and_remembered_for_their_time() {
    let time = ManualTime::new();
    let cache: Timed = TtlCache::builder(10)
        .negative_ttl(SECOND)
        .time(time.clone())
        .build()
        .unwrap();
    let attempts = Cell::new(0);
    let attempt = || {
        cache.try_get_or_compute(&1, || {
            attempts.set(attempts.get() + 1);
            if attempts.get() < 3 {
                Err(attempts.get())
            } else {
                Ok(9)
            }
        })
    };
    assert_eq!(*attempt().unwrap_err(), 1);
    assert_eq!(*attempt().unwrap_err(), 1);
    assert_eq!(cache.get(&1), None);
    assert!(!cache.contains(&1));
    // Another type of error, and a computation that cannot fail, are not held up.
    assert_eq!(
        cache.try_get_or_compute(&1, || Ok::<_, String>(5)).unwrap(),
        5
    );
    assert!(cache.invalidate(&1));
    assert_eq!(*attempt().unwrap_err(), 2);
    time.advance(SECOND);
    assert_eq!(attempt().unwrap(), 9);
    let stats = cache.stats();
    assert_eq!(
        (stats.failures, stats.computations, stats.negative_hits),
        (2, 4, 2)
    );
}

#[test]
fn without_a_negative_ttl_each_call_computes() {
    let cache = plain(10);
    for attempt in 0..3 {
        assert_eq!(
            *cache
                .try_get_or_compute(&1, || Err::<u64, _>(attempt))
                .unwrap_err(),
            attempt
        );
    }
    assert_eq!(cache.get_or_compute(&1, || 4), 4);
}

#[test]
fn stale_values_are_served_while_one_caller_computes() {
    let time = ManualTime::new();
    let cache: Timed = TtlCache::builder(10)
        .ttl(10 * SECOND)
        .stale_while_revalidate(10 * SECOND)
        .time(time.clone())
        .build()
        .unwrap();
    cache.insert(1, 1);
    time.advance(10 * SECOND);
    assert_eq!(cache.get(&1), Some(1));
    let mut reader = cache.reader();
    assert_eq!(reader.get(&1), Some(&1));
    // The one who computes sees what others see meanwhile.
    let computed = cache.get_or_compute(&1, || {
        assert_eq!(cache.get(&1), Some(1));
        assert_eq!(
            cache.get_or_compute(&1, || unreachable!("it is being computed")),
            1
        );
        2
    });
    assert_eq!(
        (computed, cache.get(&1), reader.get(&1)),
        (2, Some(2), Some(&2))
    );
    // An error falls back to the stale value, and is not tried again at once.
    time.advance(15 * SECOND);
    assert_eq!(cache.try_get_or_compute(&1, || Err("down")).unwrap(), 2);
    assert_eq!(
        cache.get_or_compute(&1, || unreachable!("it has failed just now")),
        2
    );
    time.advance(SECOND);
    assert_eq!(cache.get_or_compute(&1, || 3), 3);
    time.advance(20 * SECOND);
    assert_eq!((cache.get(&1), reader.get(&1)), (None, None));
    assert!(cache.stats().stale_hits >= 5);
}

#[test]
fn stale_values_are_replaced_by_tasks() {
    let time = ManualTime::new();
    let (sender, tasks) = std::sync::mpsc::channel();
    let cache: Timed = TtlCache::builder(10)
        .ttl(10 * SECOND)
        .stale_while_revalidate(100 * SECOND)
        .refresh_with_async(
            move |task| sender.send(task).unwrap(),
            |key| {
                let value = *key + 1;
                async move {
                    tokio::task::yield_now().await;
                    Some(value)
                }
            },
        )
        .time(time.clone())
        .build()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let never = || unreachable!("nobody waits while there is a stale value");
    cache.insert(1, 1);
    time.advance(10 * SECOND);
    // One task, however many ask.
    (0..3).for_each(|_| assert_eq!(cache.get_or_compute(&1, never), 1));
    let task: RefreshTask = tasks.try_recv().unwrap();
    // Dropped: the stale value stays, and a second later another task tries.
    drop(task);
    assert_eq!(cache.stats().abandoned, 1);
    assert_eq!(cache.get_or_compute(&1, never), 1);
    assert!(tasks.try_recv().is_err());
    time.advance(SECOND);
    assert_eq!(cache.get_or_compute(&1, never), 1);
    runtime.block_on(tasks.try_recv().unwrap());
    assert_eq!(cache.get_or_compute(&1, never), 2);
    // What is invalidated meanwhile is not put back by a task.
    time.advance(10 * SECOND);
    assert_eq!(cache.get_or_compute(&1, never), 2);
    cache.invalidate(&1);
    runtime.block_on(tasks.try_recv().unwrap());
    assert_eq!(cache.get(&1), None);
}

#[test]
fn stale_values_are_replaced_in_the_background() {
    let time = ManualTime::new();
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&loads);
    let cache: Timed = TtlCache::builder(10)
        .ttl(10 * SECOND)
        .stale_while_revalidate(10 * SECOND)
        .refresh_with(move |key| {
            assert_eq!(*key, 1);
            match counted.fetch_add(1, Ordering::SeqCst) {
                0 => None,
                1 => panic!("a load that panics is one that failed"),
                _ => Some(2),
            }
        })
        .time(time.clone())
        .build()
        .unwrap();
    cache.insert(1, 1);
    time.advance(10 * SECOND);
    let never = || unreachable!("nobody waits while there is a stale value");
    let mut seen = cache.get_or_compute(&1, never);
    let mut attempts = 0;
    while seen == 1 {
        // A failed attempt is followed by another a second later. Ends when the third has come; if it never did, the value would end.
        let done = loads.load(Ordering::SeqCst);
        let is_under_way = cache.stats().computations > (done as u64);
        if !is_under_way && done > attempts {
            attempts = done;
            time.advance(SECOND);
        }
        std::thread::yield_now();
        seen = cache.get_or_compute(&1, never);
    }
    assert_eq!(seen, 2);
    assert_eq!(loads.load(Ordering::SeqCst), 3);
}

#[test]
fn computations_that_use_the_same_cache_work() {
    let cache = plain(100);
    // Another key, the same key, and the key through a chain of others.
    let sum = cache.get_or_compute(&1, || cache.get_or_compute(&2, || 2) + 1);
    assert_eq!((sum, cache.get(&2)), (3, Some(2)));
    let nested = cache.get_or_compute(&3, || cache.get_or_compute(&3, || 7) + 1);
    assert_eq!((nested, cache.get(&3)), (8, Some(8)));
    cache.get_or_compute(&4, || {
        cache.insert(5, 5);
        cache.invalidate(&4);
        cache.clear();
        cache.cleanup_expired();
        0
    });
    // Invalidated meanwhile: not kept.
    assert_eq!(cache.get(&4), None);
    assert_eq!(
        cache.get_or_compute(&6, || {
            cache.insert(6, 1);
            2
        }),
        2
    );
    assert_eq!(cache.get(&6), Some(1));
}

/// A key and value whose every operation uses the cache.
struct Nosy(u64, Option<TtlCache<Nosy, Nosy>>);

impl Nosy {
    fn look(&self) {
        thread_local! {
            static DEPTH: Cell<u32> = const { Cell::new(0) };
        }
        // What it looks at looks again: twice is enough.
        if let Some(cache) = &self.1
            && DEPTH.get() < 2
        {
            DEPTH.set(DEPTH.get() + 1);
            cache.with(&Nosy(1_000_000, None), |_| ());
            cache.contains(&Nosy(self.0, None));
            cache.with(&Nosy(self.0, None), |_| ());
            DEPTH.set(DEPTH.get() - 1);
        }
    }
}

impl PartialEq for Nosy {
    fn eq(&self, other: &Self) -> bool {
        self.look();
        self.0 == other.0
    }
}

impl Eq for Nosy {}

impl std::hash::Hash for Nosy {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.look();
        self.0.hash(state);
    }
}

impl Clone for Nosy {
    fn clone(&self) -> Self {
        self.look();
        Nosy(self.0, self.1.clone())
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        self.look();
    }
}

#[test]
fn code_of_the_user_may_use_the_cache_from_anywhere() {
    let cache: TtlCache<Nosy, Nosy> = TtlCache::builder(20)
        .policy(Policy::Lru)
        .weigher(|key: &Nosy, _: &Nosy| {
            key.look();
            1
        })
        .build()
        .unwrap();
    let nosy = |key| Nosy(key, Some(cache.clone()));
    let mut reader = cache.reader();
    for round in 0..200 {
        cache.insert(nosy(round), nosy(round));
        cache.insert(nosy(round), nosy(round + 1));
        let value = cache.get_or_compute(&nosy(round / 2), || nosy(3));
        drop(value);
        cache.with(&nosy(round), |value| value.look());
        assert_eq!(
            reader.get(&nosy(round)).map(|value| value.0),
            Some(round + 1)
        );
        cache.invalidate(&nosy(round / 3));
    }
    cache.invalidate_where(|key, _| {
        key.look();
        key.0 % 2 == 0
    });
    cache.cleanup_expired();
    drop(reader);
    cache.clear();
    assert!(cache.is_empty());
}

#[test]
fn the_end_of_a_thread_may_use_the_cache() {
    struct Late(TtlCache<u64, Box<u64>>);
    impl Drop for Late {
        fn drop(&mut self) {
            assert_eq!(self.0.get(&1), Some(1.into()));
            assert_eq!(self.0.get_or_compute(&2, || 2.into()), 2.into());
            self.0.insert(3, 3.into());
            self.0.invalidate(&4);
        }
    }
    thread_local! {
        static LATE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) };
    }
    let cache: TtlCache<u64, Box<u64>> = TtlCache::builder(10).build().unwrap();
    cache.insert(1, 1.into());
    let of_thread = cache.clone();
    std::thread::spawn(move || {
        LATE.with(|late| *late.borrow_mut() = Some(Late(of_thread.clone())));
        assert_eq!(of_thread.get(&1), Some(1.into()));
    })
    .join()
    .unwrap();
    assert_eq!(
        (cache.get(&2), cache.get(&3)),
        (Some(2.into()), Some(3.into()))
    );
}

#[test]
fn a_front_pins_no_more_than_its_places() {
    let cache: TtlCache<u64, Arc<()>> = TtlCache::builder(10_000).build().unwrap();
    let mut reader = cache.reader_of::<128>();
    let values: Vec<Arc<()>> = (0..2000).map(|_| Arc::new(())).collect();
    for (key, value) in (0..).zip(&values) {
        cache.insert(key, Arc::clone(value));
        assert!(cache.get(&key).is_some());
        assert!(reader.get(&key).is_some());
    }
    cache.clear();
    let pinned = values
        .iter()
        .filter(|value| Arc::strong_count(value) > 1)
        .count();
    assert!(pinned <= FRONT_PLACES + 128, "{pinned}");
    assert!(pinned > 128, "the front keeps something: {pinned}");
    drop(reader);
    let pinned = values
        .iter()
        .filter(|value| Arc::strong_count(value) > 1)
        .count();
    assert!(pinned <= FRONT_PLACES, "{pinned}");
}

/// How many values this thread still holds after it read them thrice and they were taken out.
fn pinned_by_this_thread(cache: &TtlCache<u64, Arc<()>>, count: u64) -> usize {
    let values: Vec<Arc<()>> = (0..count).map(|_| Arc::new(())).collect();
    for (key, value) in (0..).zip(&values) {
        cache.insert(key, Arc::clone(value));
    }
    for _ in 0..3 {
        (0..count).for_each(|key| assert!(cache.get(&key).is_some()));
    }
    cache.clear();
    (0..count).for_each(|key| assert!(cache.get(&key).is_none(), "served after it was taken out"));
    let is_pinned = |value: &&Arc<()>| Arc::strong_count(value) > 1;
    values.iter().filter(is_pinned).count()
}

#[test]
fn of_a_large_cache_a_thread_keeps_more_and_no_more_than_it_says() {
    let large = TtlCache::builder(16 * WIDE_FRONT_PLACES as u64)
        .build()
        .unwrap();
    let pinned = pinned_by_this_thread(&large, 5000);
    assert!(pinned <= WIDE_FRONT_PLACES, "{pinned}");
    assert!(pinned > WIDE_FRONT_PLACES / 2, "it keeps many: {pinned}");
}

#[test]
fn of_a_smaller_or_weighed_cache_a_thread_keeps_few() {
    let smaller = TtlCache::builder(16 * WIDE_FRONT_PLACES as u64 - 1)
        .build()
        .unwrap();
    let weighed = TtlCache::builder(1 << 30)
        .weigher(|_, _| 9)
        .build()
        .unwrap();
    for cache in [smaller, weighed] {
        let pinned = pinned_by_this_thread(&cache, 5000);
        assert!(pinned <= FRONT_PLACES, "{pinned}");
    }
}

#[test]
fn without_a_front_nothing_is_pinned() {
    let cache: TtlCache<u64, Arc<()>> = TtlCache::builder(100).front(false).build().unwrap();
    let value = Arc::new(());
    cache.insert(1, Arc::clone(&value));
    assert!(cache.get(&1).is_some());
    cache.invalidate(&1);
    assert_eq!(Arc::strong_count(&value), 1);
}

#[test]
fn many_caches_share_the_slots_of_a_thread() {
    let make = |_| TtlCache::builder(10).build().unwrap();
    let caches: Vec<TtlCache<u64, Box<u64>>> = (0..40).map(make).collect();
    for round in 0..3000 {
        for (index, cache) in caches.iter().enumerate() {
            let key = round % 3;
            let expected = Box::new(key + index as u64);
            assert_eq!(cache.get_or_compute(&key, || expected.clone()), expected);
        }
    }
}

#[test]
fn statistics_add_up() {
    let cache = plain(10);
    let mut reader = cache.reader();
    assert_eq!(cache.get(&1), None);
    cache.get_or_compute(&1, || 1);
    for _ in 0..10 {
        cache.get(&1);
        reader.get(&1);
    }
    drop(reader);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.computations), (20, 2, 1));
    assert_eq!((stats.len, stats.weight), (1, 1));
    assert_eq!(stats.hit_ratio(), Some(20.0 / 22.0));
}

#[test]
fn a_peek_and_a_visit_see_what_is_served_and_count_nothing() {
    let time = ManualTime::new();
    let mut cache: Timed = TtlCache::builder(100)
        .ttl(10 * SECOND)
        .stale_while_revalidate(10 * SECOND)
        .idle(15 * SECOND)
        .negative_ttl(100 * SECOND)
        .time(time.clone())
        .build()
        .unwrap();
    cache.extend((0..10).map(|key| (key, key + 1)));
    let _ = cache.try_get_or_compute(&50, || Err::<u64, _>("down"));
    let before = cache.stats();
    let visited = |cache: &Timed| {
        let mut seen = Vec::new();
        cache.for_each(|key, value| seen.push((*key, *value)));
        seen.sort_unstable();
        seen
    };
    let all: Vec<(u64, u64)> = (0..10).map(|key| (key, key + 1)).collect();
    for _ in 0..2 {
        assert_eq!(visited(&cache), all);
        assert_eq!(
            (cache.peek(&3), cache.peek(&50), cache.peek(&60)),
            (Some(4), None, None)
        );
        time.advance(7 * SECOND);
    }
    assert_eq!(cache.stats(), before);
    // A peek is no read: the idle TTL ends all the same.
    time.advance(2 * SECOND);
    assert_eq!((cache.peek(&3), visited(&cache)), (None, Vec::new()));
}

#[test]
fn a_read_counts_once_even_if_it_looks_twice() {
    let cache = plain(10);
    // While the leader looks a second time, the value is there: it counts as the miss that it was.
    for key in 0..1000 {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| cache.get_or_compute(&key, || key));
            }
        });
    }
    let stats = cache.stats();
    assert_eq!(stats.hits + stats.misses, 2000);
}

#[test]
fn what_is_invalidated_by_a_predicate_is_not_kept_by_a_computation_under_way() {
    let cache = plain(10);
    cache.get_or_compute(&1, || {
        assert_eq!(cache.invalidate_where(|_, _| true), 0);
        7
    });
    assert_eq!(cache.get(&1), None, "computed before the invalidation");
    let members = perf_atomics::Membership::<u64, u64>::new();
    let decisions = perf_cache::PlacementDecisionCache::new(10, SECOND).unwrap();
    let vm = perf_cache::Requirements::new(1, 1, 1);
    let place = |node| {
        let decide = || {
            decisions.forget_node(3);
            Some(node)
        };
        decisions.place(&vm, perf_cache::Strategy::MostAvailable, &members, decide)
    };
    assert_eq!((place(3), place(4)), (Some(3), Some(4)));
}

#[test]
fn the_values_of_a_dropped_cache_go_with_it() {
    let value = Arc::new(());
    let cache: TtlCache<u64, Arc<()>> = TtlCache::builder(10).build().unwrap();
    let other: TtlCache<u64, Arc<()>> = TtlCache::builder(10).build().unwrap();
    cache.insert(1, Arc::clone(&value));
    let (to_thread, of_test) = std::sync::mpsc::channel::<()>();
    let (to_test, of_thread) = std::sync::mpsc::channel::<()>();
    let thread = {
        let (cache, other) = (cache.clone(), other.clone());
        std::thread::spawn(move || {
            assert!(cache.get(&1).is_some() && cache.get(&1).is_some());
            drop(cache);
            to_test.send(()).unwrap();
            of_test.recv().unwrap();
            // Any read past a front.
            assert!(other.get(&1).is_none());
            to_test.send(()).unwrap();
            of_test.recv().unwrap();
        })
    };
    of_thread.recv().unwrap();
    assert!(cache.get(&1).is_some() && cache.get(&1).is_some());
    drop(cache);
    // This thread's went at once; the other one has not read since.
    assert_eq!(Arc::strong_count(&value), 2);
    to_thread.send(()).unwrap();
    of_thread.recv().unwrap();
    assert_eq!(Arc::strong_count(&value), 1);
    to_thread.send(()).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_refresh_that_hangs_holds_nobody_up() {
    let time = ManualTime::new();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let cache: Timed = TtlCache::builder(10)
        .ttl(SECOND)
        .stale_while_revalidate(SECOND)
        .refresh_with(move |_| {
            let _ = held.lock().unwrap().recv();
            Some(99)
        })
        .time(time.clone())
        .build()
        .unwrap();
    cache.insert(1, 1);
    time.advance(SECOND);
    assert_eq!(cache.get_or_compute(&1, || unreachable!("it is stale")), 1);
    while cache.stats().computations == 0 {
        std::thread::yield_now();
    }
    time.advance(SECOND);
    // The window is over. If this waited for the refresh, the test would hang and not pass.
    assert_eq!(cache.get_or_compute(&1, || 2), 2);
    drop(release);
    assert_eq!(cache.get(&1), Some(2), "the refresh has lost its say");
}

#[test]
fn one_value_has_all_of_it() {
    let time = ManualTime::new();
    let value: CachedValue<u64, ManualTime> = CachedValue::<u64>::builder()
        .ttl(10 * SECOND)
        .stale_while_revalidate(10 * SECOND)
        .negative_ttl(SECOND)
        .jitter(0.0)
        .front(true)
        .time(time.clone())
        .build()
        .unwrap();
    let mut reader = value.reader();
    assert_eq!((value.get(), reader.get()), (None, None));
    assert_eq!(
        *value.try_get_or_compute(|| Err("down")).unwrap_err(),
        "down"
    );
    assert_eq!(
        *value.try_get_or_compute(|| Ok::<_, &str>(1)).unwrap_err(),
        "down"
    );
    time.advance(SECOND);
    assert_eq!(value.get_or_compute(|| 1), 1);
    assert_eq!(
        (value.get(), reader.get(), value.with(|value| value + 1)),
        (Some(1), Some(&1), Some(2))
    );
    time.advance(10 * SECOND - Duration::from_nanos(1));
    assert_eq!(reader.get(), Some(&1));
    time.advance(Duration::from_nanos(1));
    assert_eq!(reader.get(), Some(&1), "stale");
    value.set(2);
    assert_eq!(reader.get(), Some(&2));
    time.advance(20 * SECOND);
    assert_eq!(reader.get(), None);
    assert_eq!(value.get(), None);
    value.set(3);
    assert!(value.invalidate());
    assert_eq!(reader.get(), None);
    value.set(4);
    time.advance(20 * SECOND);
    assert!(value.cleanup_expired());
    drop(reader);
    let stats = value.stats();
    assert_eq!(
        (stats.computations, stats.failures, stats.negative_hits),
        (2, 1, 1)
    );
}

#[test]
fn the_precise_time_does_without_threads() {
    let cache: TtlCache<u64, u64, perf_cache::DefaultHasher, PreciseTime> = TtlCache::builder(10)
        .ttl(CENTURIES)
        .time(PreciseTime)
        .build()
        .unwrap();
    cache.insert(1, 1);
    assert_eq!((cache.get(&1), cache.reader().get(&1)), (Some(1), Some(&1)));
}

fn removals_of<V: Clone + Send + Sync + 'static>(value: V) {
    let time = ManualTime::new();
    let (sender, receiver) = std::sync::mpsc::channel();
    let cache = TtlCache::builder(2)
        .ttl(10 * SECOND)
        .policy(Policy::Lru)
        .on_removal(move |key, _: &V, why| sender.send((*key, why)).unwrap())
        .time(time.clone())
        .build()
        .unwrap();
    let told = || receiver.try_iter().collect::<Vec<_>>();
    cache.insert(1, value.clone());
    cache.get_or_compute(&2, || value.clone());
    assert_eq!(told(), []);
    cache.insert(1, value.clone());
    assert_eq!(told(), [(1, Removal::Replaced)]);
    let _ = cache.get(&1);
    cache.get_or_compute(&3, || value.clone());
    assert_eq!(told(), [(2, Removal::Evicted)]);
    time.advance(Duration::from_secs(9));
    cache.insert(3, value.clone());
    assert_eq!(told(), [(3, Removal::Replaced)]);
    time.advance(Duration::from_secs(1));
    assert!(cache.get(&1).is_none());
    assert_eq!(told(), [(1, Removal::Expired)]);
    assert!(cache.invalidate(&3) && !cache.invalidate(&3));
    assert_eq!(told(), [(3, Removal::Invalidated)]);
    cache.insert(4, value.clone());
    assert_eq!(cache.invalidate_where(|key, _| *key == 4), 1);
    assert_eq!(told(), [(4, Removal::Invalidated)]);
    cache.insert(5, value.clone());
    time.advance(Duration::from_secs(10));
    assert_eq!(cache.cleanup_expired(), 1);
    assert_eq!(told(), [(5, Removal::Expired)]);
    cache.insert(6, value.clone());
    cache.clear();
    assert_eq!(told(), [(6, Removal::Invalidated)]);
    (7..9).for_each(|key| cache.insert(key, value.clone()));
    cache.set_capacity(1).unwrap();
    assert_eq!(told(), [(7, Removal::Evicted)]);
}

#[test]
fn what_leaves_is_told_once_with_its_reason() {
    removals_of(7_u64);
    removals_of("seven".to_owned());
}

#[test]
fn the_listener_may_use_the_cache() {
    let slot: Arc<std::sync::OnceLock<TtlCache<u64, u64>>> = Arc::default();
    let inner = Arc::clone(&slot);
    let cache = TtlCache::builder(10)
        .on_removal(move |key, value, why| {
            if why == Removal::Invalidated
                && let Some(cache) = inner.get()
            {
                cache.insert(key + 100, *value);
            }
        })
        .build()
        .unwrap();
    slot.set(cache.clone()).unwrap();
    cache.insert(1, 10);
    assert!(cache.invalidate(&1));
    assert_eq!((cache.get(&1), cache.get(&101)), (None, Some(10)));
}

#[test]
fn a_value_may_choose_its_ttl() {
    fn check<V: Clone + Send + Sync + 'static>(value: V) {
        let time = ManualTime::new();
        let cache = TtlCache::builder(10)
            .ttl(Duration::from_secs(1))
            .ttl_with(|key, _: &V| Duration::from_secs(*key))
            .time(time.clone())
            .build()
            .unwrap();
        cache.get_or_compute(&5, || value.clone());
        cache.insert(3, value.clone());
        cache.insert(0, value.clone());
        cache.insert_with_ttl(9, value.clone(), Duration::from_secs(1));
        let held = |keys: [u64; 4]| keys.map(|key| cache.get(&key).is_some());
        assert_eq!(held([5, 3, 0, 9]), [true, true, false, true]);
        time.advance(Duration::from_secs(3));
        assert_eq!(held([5, 3, 0, 9]), [true, false, false, false]);
        time.advance(Duration::from_secs(2));
        assert_eq!(held([5, 3, 0, 9]), [false; 4]);
    }
    check(7_u64);
    check("seven".to_owned());
}

#[test]
fn a_cache_is_collected_from_pairs() {
    let cache: TtlCache<u64, u64> = (0..500).map(|key| (key, key * 2)).collect();
    assert_eq!((cache.len(), cache.capacity()), (500, 500));
    assert!((0..500).all(|key| cache.get(&key) == Some(key * 2)));
    let none: TtlCache<u64, u64> = std::iter::empty().collect();
    assert_eq!((none.len(), none.capacity()), (0, 1));
}

#[test]
fn an_update_loses_no_write_of_another_thread() {
    fn check<V>()
    where
        V: From<u64> + std::borrow::Borrow<u64> + Clone + Send + Sync + 'static,
    {
        let cache: TtlCache<u64, V> = TtlCache::builder(10).build().unwrap();
        assert!(!cache.update(&1, |_| unreachable!("there is nothing to change")));
        cache.insert(1, 0.into());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        assert!(cache.update(&1, |value| Some((value.borrow() + 1).into())));
                    }
                });
            }
        });
        assert_eq!(cache.with(&1, |value| *value.borrow()), Some(4000));
        // A change of what was replaced meanwhile is made again.
        let mut calls = 0;
        assert!(cache.update(&1, |value| {
            calls += 1;
            if calls == 1 {
                cache.insert(1, 7.into());
            }
            Some((value.borrow() * 10).into())
        }));
        assert_eq!(cache.with(&1, |value| *value.borrow()), Some(70));
        assert!(cache.update(&1, |_| None));
        assert!(cache.is_empty());
    }
    check::<u64>();
    check::<Box<u64>>();
}

#[test]
fn a_front_is_kept_of_values_in_the_table_only_where_it_is_asked_for() {
    for (is_asked, pinned) in [(false, 0), (true, 1)] {
        let mut builder = TtlCache::builder(10);
        if is_asked {
            builder = builder.front(true);
        }
        let cache: TtlCache<u64, Arc<str>> = builder.build().unwrap();
        let value: Arc<str> = Arc::from("seven");
        cache.insert(7, Arc::clone(&value));
        (0..3).for_each(|_| assert!(cache.get(&7).is_some()));
        assert!(cache.invalidate(&7));
        assert_eq!(cache.get(&7), None);
        assert_eq!(Arc::strong_count(&value), 1 + pinned);
    }
}

/// A closure that uses the cache once, as soon as there is one.
type Later<K, V> = Arc<std::sync::OnceLock<TtlCache<K, V>>>;

#[test]
fn who_is_asked_about_a_computed_value_may_compute_the_same_key() {
    let slot: Later<u64, u64> = Arc::default();
    let ask = {
        let slot = Arc::clone(&slot);
        move |key| {
            slot.get()
                .map_or(0, |cache| cache.get_or_compute(&key, || 7))
        }
    };
    let (weigh, choose, remember) = (ask.clone(), ask.clone(), ask);
    let cache = TtlCache::builder(1000)
        .weigher(move |key: &u64, _: &u64| weigh(*key).max(1) as u32)
        .ttl_with(move |key, _| SECOND * choose(*key).max(1) as u32)
        .negative_ttl(SECOND)
        .negative_if(move |key: &u64| remember(*key) == 7)
        .build()
        .unwrap();
    slot.set(cache.clone()).unwrap();
    assert_eq!(cache.get_or_compute(&1, || 10), 10);
    assert_eq!((cache.get(&1), cache.weight()), (Some(10), 7));
    assert_eq!(*cache.try_get_or_compute(&2, || Err(2_u64)).unwrap_err(), 2);
    assert_eq!(cache.len(), 2, "the error is remembered");
}

#[test]
fn cached_errors_do_not_fill_a_weighed_cache_without_bound() {
    for (capacity, weight) in [(100, 1), (1 << 20, 16), (u64::MAX, u64::from(u32::MAX))] {
        let cache: TtlCache<u64, u64> = TtlCache::builder(capacity)
            .weigher(|_, _| 1)
            .negative_ttl(SECOND)
            .build()
            .unwrap();
        assert!(cache.try_get_or_compute(&1, || Err::<u64, _>(())).is_err());
        assert_eq!((cache.len(), cache.weight()), (1, weight));
    }
}

#[test]
fn a_value_that_is_not_kept_takes_the_one_before_it_away() {
    let time = ManualTime::new();
    let (sender, receiver) = std::sync::mpsc::channel();
    let cache: Timed = TtlCache::builder(10)
        .stale_while_revalidate(100 * SECOND)
        .ttl_with(|_, value| SECOND * (*value == 1).into())
        .on_removal(move |key, value, why| sender.send((*key, *value, why)).unwrap())
        .time(time.clone())
        .build()
        .unwrap();
    cache.insert(1, 1);
    time.advance(SECOND);
    assert_eq!(cache.get(&1), Some(1), "stale");
    assert_eq!(cache.get_or_compute(&1, || 2), 2);
    assert_eq!(cache.get(&1), None, "older than what was given out");
    let told: Vec<_> = receiver.try_iter().collect();
    assert_eq!(told, [(1, 1, Removal::Replaced)]);
    cache.insert(3, 1);
    assert!(cache.update(&3, |_| Some(2)));
    let told: Vec<_> = receiver.try_iter().collect();
    assert_eq!(told, [(3, 1, Removal::Replaced)]);
}

#[test]
fn a_smaller_capacity_throws_out_what_is_not_read_whatever_its_shard() {
    const HELD: u64 = 8192;
    for policy in [Policy::Lru, Policy::TinyLfu] {
        let cache: TtlCache<u64, u64> = TtlCache::builder(HELD).policy(policy).build().unwrap();
        (0..HELD).for_each(|key| cache.insert(key, key));
        let hot = || (0..HELD).step_by(8);
        for _ in 0..3 {
            // What is inserted lets the policy's time go on, so that each round of reads counts.
            (0..HELD / 8).for_each(|key| cache.insert(HELD + key, key));
            assert!(hot().filter_map(|key| cache.get(&key)).count() > 0);
        }
        let before = hot().filter(|key| cache.contains(key)).count();
        cache.set_capacity(HELD / 2).unwrap();
        assert_eq!(cache.len(), HELD / 2);
        let after = hot().filter(|key| cache.contains(key)).count();
        assert!(after * 10 >= before * 8, "{policy:?}: {after} of {before}");
    }
}

#[test]
fn an_insertion_does_not_do_the_work_of_a_smaller_capacity() {
    const HELD: u64 = 4096;
    let slot: Later<u64, u64> = Arc::default();
    let told = Arc::new(AtomicUsize::new(0));
    let inner = (Arc::clone(&slot), Arc::clone(&told));
    let cache = TtlCache::builder(HELD)
        .on_removal(move |_, _, _| {
            let before = inner.1.fetch_add(1, Ordering::Relaxed);
            // In the middle of the work.
            if before == 100 {
                inner.0.get().unwrap().insert(HELD, 0);
                let within = inner.1.load(Ordering::Relaxed) - before - 1;
                assert!((1..=80).contains(&within), "{within} by one insertion");
            }
        })
        .build()
        .unwrap();
    slot.set(cache.clone()).unwrap();
    (0..HELD).for_each(|key| cache.insert(key, key));
    cache.set_capacity(1).unwrap();
    assert_eq!(cache.len(), 1);
    assert_eq!(told.load(Ordering::Relaxed) as u64, HELD);
}

#[test]
fn a_visit_of_many_entries_meets_each_once_while_others_come_and_go() {
    const HELD: u64 = 5000;
    let cache: TtlCache<u64, Box<u64>> = TtlCache::builder(4 * HELD)
        .weigher(|_, _| 1)
        .build()
        .unwrap();
    (0..HELD).for_each(|key| cache.insert(key, key.into()));
    let mut met = vec![0; HELD as usize];
    let mut turn = HELD;
    cache.for_each(|key, _| {
        if let Some(met) = met.get_mut(*key as usize) {
            *met += 1;
        }
        cache.insert(turn, turn.into());
        cache.invalidate(&(turn - 1).max(HELD));
        turn += 1;
        assert!(turn < 4 * HELD, "it does not go on for ever");
    });
    assert!(met.iter().all(|met| *met == 1));
    assert_eq!(cache.invalidate_where(|key, _| *key < HELD), HELD as usize);
}
