//! Many callers of one key: threads and tasks.

use perf_cache::{PeerConnectionCache, TtlCache};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

const CALLERS: usize = 1000;

fn cache() -> TtlCache<u64, u64> {
    TtlCache::builder(100).build().unwrap()
}

/// Runs `call` in as many threads, released at once.
fn herd<R: Send>(callers: usize, call: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let barrier = Barrier::new(callers);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..callers)
            .map(|caller| {
                let (barrier, call) = (&barrier, &call);
                thread::Builder::new()
                    .stack_size(128 * 1024)
                    .spawn_scoped(scope, move || {
                        barrier.wait();
                        call(caller)
                    })
                    .unwrap()
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

#[test]
fn a_herd_of_threads_computes_once() {
    let cache = cache();
    let computations = AtomicUsize::new(0);
    let values = herd(CALLERS, |_| {
        cache.get_or_compute(&1, || {
            thread::sleep(Duration::from_millis(20));
            computations.fetch_add(1, Ordering::SeqCst) as u64 + 7
        })
    });
    assert_eq!(computations.load(Ordering::SeqCst), 1);
    assert!(values.iter().all(|value| *value == 7));
}

#[test]
fn a_herd_of_threads_shares_one_error() {
    let cache: TtlCache<u64, u64> = TtlCache::builder(100)
        .negative_ttl(Duration::from_secs(3600))
        .build()
        .unwrap();
    let computations = AtomicUsize::new(0);
    let errors = herd(200, |_| {
        cache
            .try_get_or_compute(&1, || {
                thread::sleep(Duration::from_millis(20));
                Err::<u64, _>(computations.fetch_add(1, Ordering::SeqCst))
            })
            .unwrap_err()
    });
    assert_eq!(computations.load(Ordering::SeqCst), 1);
    assert!(errors.iter().all(|error| Arc::ptr_eq(error, &errors[0])));
}

#[test]
fn a_panic_elects_one_successor_and_goes_on_in_its_own_caller() {
    let cache = cache();
    let (at_work, most, calls) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let outcomes = herd(200, |_| {
        catch_unwind(AssertUnwindSafe(|| {
            cache.get_or_compute(&1, || {
                most.fetch_max(at_work.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(5));
                at_work.fetch_sub(1, Ordering::SeqCst);
                // The first three fail.
                assert!(calls.fetch_add(1, Ordering::SeqCst) >= 3, "out of luck");
                7
            })
        }))
    });
    let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert_eq!(failed, 3);
    assert_eq!(calls.load(Ordering::SeqCst), 4);
    assert_eq!(
        most.load(Ordering::SeqCst),
        1,
        "more than one computed at once"
    );
    assert!(outcomes.into_iter().flatten().all(|value| value == 7));
    assert_eq!(cache.stats().abandoned, 3);
}

#[test]
fn a_computation_that_never_ends_holds_up_no_other_key() {
    let cache = cache();
    let (release, held) = std::sync::mpsc::channel::<()>();
    thread::scope(|scope| {
        let stuck = cache.clone();
        scope.spawn(move || {
            stuck.get_or_compute(&1, || {
                let _ = held.recv();
                1
            })
        });
        while cache.stats().computations == 0 {
            thread::yield_now();
        }
        for key in 2..500 {
            assert_eq!(cache.get_or_compute(&key, || key), key);
            cache.invalidate(&key);
        }
        // Nor does it hold up its own key once that is invalidated or set.
        cache.invalidate(&1);
        assert_eq!(cache.get_or_compute(&1, || 5), 5);
        drop(release);
    });
    // What began before the invalidation was not kept.
    assert_eq!(cache.get(&1), Some(5));
}

#[test]
fn two_computations_that_need_each_other_end() {
    let cache = cache();
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        for (own, other) in [(1, 2), (2, 1)] {
            let (cache, barrier) = (&cache, &barrier);
            scope.spawn(move || {
                let sum = cache.get_or_compute(&own, || {
                    barrier.wait();
                    cache.get_or_compute(&other, || 10) + own
                });
                assert!(sum >= own);
            });
        }
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap()
}

/// Runs `call` in as many tasks.
fn tasks<F>(callers: usize, call: impl Fn(usize) -> F) -> Vec<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    runtime().block_on(async {
        let tasks: Vec<_> = (0..callers)
            .map(|caller| tokio::spawn(call(caller)))
            .collect();
        let mut outputs = Vec::new();
        for task in tasks {
            outputs.push(task.await.unwrap());
        }
        outputs
    })
}

#[test]
fn a_herd_of_tasks_computes_once() {
    let cache = cache();
    let computations = Arc::new(AtomicUsize::new(0));
    let values = tasks(CALLERS, |_| {
        let (cache, computations) = (cache.clone(), Arc::clone(&computations));
        async move {
            let compute = || async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                computations.fetch_add(1, Ordering::SeqCst) as u64 + 7
            };
            cache.get_or_compute_async(&1, compute).await
        }
    });
    assert_eq!(computations.load(Ordering::SeqCst), 1);
    assert!(values.iter().all(|value| *value == 7));
}

#[test]
fn a_herd_of_tasks_shares_one_error() {
    let cache = cache();
    let computations = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let errors = tasks(CALLERS, |caller| {
        let (cache, computations) = (cache.clone(), Arc::clone(&computations));
        let gate = Arc::clone(&gate);
        async move {
            // The last to come opens the gate, so that all are there before the computation ends.
            if caller == CALLERS - 1 {
                gate.add_permits(1);
            }
            let compute = || async {
                let _open = gate.acquire().await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                computations.fetch_add(1, Ordering::SeqCst);
                Err::<u64, _>("down")
            };
            *cache
                .try_get_or_compute_async(&1, compute)
                .await
                .unwrap_err()
        }
    });
    assert_eq!(computations.load(Ordering::SeqCst), 1);
    assert!(errors.iter().all(|error| *error == "down"));
}

#[test]
fn a_cancelled_computation_elects_one_successor() {
    let cache = cache();
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    runtime().block_on(async {
        let spawn = |is_stuck: bool| {
            let (cache, begun, ended) = (cache.clone(), Arc::clone(&begun), Arc::clone(&ended));
            tokio::spawn(async move {
                let compute = || async {
                    begun.fetch_add(1, Ordering::SeqCst);
                    if is_stuck {
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    ended.fetch_add(1, Ordering::SeqCst);
                    7
                };
                cache.get_or_compute_async(&1, compute).await
            })
        };
        let stuck = spawn(true);
        while begun.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..100).map(|_| spawn(false)).collect();
        // A thread waits for the task's computation too.
        let thread = {
            let cache = cache.clone();
            thread::spawn(move || cache.get_or_compute(&1, || 7))
        };
        tokio::time::sleep(Duration::from_millis(10)).await;
        stuck.abort();
        for other in others {
            assert_eq!(other.await.unwrap(), 7);
        }
        assert_eq!(thread.join().unwrap(), 7);
    });
    // Either a task or the thread computed, and nobody else.
    assert!(begun.load(Ordering::SeqCst) <= 2);
    assert_eq!(cache.stats().computations, 2);
    assert_eq!(cache.stats().abandoned, 1);
}

#[test]
fn one_who_stops_waiting_harms_nobody() {
    let cache = cache();
    runtime().block_on(async {
        let (release, held) = tokio::sync::oneshot::channel::<u64>();
        let of_leader = cache.clone();
        let leader = tokio::spawn(async move {
            let compute = || async { held.await.unwrap() };
            of_leader.get_or_compute_async(&1, compute).await
        });
        while cache.stats().computations == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..1000 {
            let wait = cache.get_or_compute_async(&1, || async { 0 });
            let timed_out = tokio::time::timeout(Duration::ZERO, wait).await;
            assert!(timed_out.is_err());
        }
        let of_follower = cache.clone();
        let follower =
            tokio::spawn(async move { of_follower.get_or_compute_async(&1, || async { 0 }).await });
        release.send(9).unwrap();
        assert_eq!((leader.await.unwrap(), follower.await.unwrap()), (9, 9));
    });
}

#[test]
fn tasks_may_compute_within_computations() {
    let cache = cache();
    runtime().block_on(async {
        let inner = || async { cache.get_or_compute_async(&2, || async { 2 }).await };
        let sum = cache
            .get_or_compute_async(&1, || async { inner().await + 1 })
            .await;
        assert_eq!((sum, cache.get(&2)), (3, Some(2)));
        let same = cache
            .get_or_compute_async(&3, || async {
                cache.get_or_compute_async(&3, || async { 4 }).await + 1
            })
            .await;
        assert_eq!(same, 5);
    });
}

#[test]
fn a_peer_is_dialled_once_and_again_after_it_failed() {
    let peers: PeerConnectionCache<u64> =
        PeerConnectionCache::with_retry_after(10, Duration::from_secs(60), Duration::from_secs(60))
            .unwrap();
    let dials = Arc::new(AtomicUsize::new(0));
    let connections = tasks(100, |_| {
        let (peers, dials) = (peers.clone(), Arc::clone(&dials));
        async move {
            let dial = || async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok::<_, String>(dials.fetch_add(1, Ordering::SeqCst) as u64)
            };
            peers.get_or_connect_async(1, dial).await.unwrap()
        }
    });
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    assert!(
        connections
            .iter()
            .all(|connection| Arc::ptr_eq(connection, &connections[0]))
    );
    assert!(peers.forget(1, &connections[0]));
    assert!(!peers.forget(1, &connections[0]));
    let next = peers.get_or_connect(1, || Ok::<_, String>(5)).unwrap();
    assert!(
        !peers.forget(1, &connections[0]),
        "another one is in its place"
    );
    assert_eq!(*peers.get(1).unwrap(), *next);
    let refused = peers
        .get_or_connect(2, || Err::<u64, _>("refused".to_owned()))
        .unwrap_err();
    let again = peers.get_or_connect(2, || Ok::<_, String>(6)).unwrap_err();
    assert!(Arc::ptr_eq(&refused, &again));
    assert!(peers.remove(2));
    assert_eq!(*peers.get_or_connect(2, || Ok::<_, String>(6)).unwrap(), 6);
    peers.insert(3, Arc::new(8));
    assert_eq!((peers.cleanup_expired(), peers.stats().len), (0, 3));
}
