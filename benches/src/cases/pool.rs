//! Cases of `perf-pool`.
//!
//! Every path touches its buffer in the same way: it appends the same 64 bytes (a frame header with the
//! start of a body) and shows the result to the optimiser. Every path keeps three more buffers of the
//! size alive, as a node in work does; without them mimalloc gives its page back at each free and
//! takes 220 ns instead of 8.

use crate::case::{Allocator, Case, Goal, Path, Run, path, timed};
use bytes::{Bytes, BytesMut};
use crossbeam_queue::ArrayQueue;
use perf_pool::{BufferGuard, BytesGuard, ObjectPool};
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

static MESSAGE: [u8; 64] = [0x5A; 64];

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The cases of `perf-pool`.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        sized::<KIB>(
            "pool/1k",
            "a small message's buffer: get, write 64 bytes, return",
            &[ratio(GLIBC, 1.7), ratio(MIMALLOC, 1.0)],
        ),
        burst::<8>(
            "pool/burst_8_1k",
            "8 small messages held at once, then returned",
        ),
        burst::<64>(
            "pool/burst_64_1k",
            "64 small messages held at once, then returned",
        ),
        sized::<{ 64 * KIB }>(
            "pool/64k",
            "a batch's buffer: get, write 64 bytes, return",
            &[ratio(GLIBC, 9.0), ratio(MIMALLOC, 3.0), ratio(ZEROED, 40.0)],
        ),
        sized::<MIB>(
            "pool/1m",
            "a snapshot chunk's buffer: get, write 64 bytes, return",
            &[ratio(GLIBC, 9.0), ratio(ZEROED, 40.0)],
        ),
        cross_thread(),
        cross_thread_outliers(),
        freeze::<KIB>(
            "pool/freeze",
            "a message of 1 KiB frozen, cloned for a second peer, dropped twice",
        ),
        freeze::<{ 64 * KIB }>(
            "pool/freeze_64k",
            "a batch of 64 KiB frozen, cloned for a second peer, dropped twice",
        ),
        freeze_vec(),
        vs_peers(),
        object(),
    ]
}

const GLIBC: &str = "glibc malloc";
const MIMALLOC: &str = "mimalloc";
const ZEROED: &str = "vec![0; n]";

const fn ratio(against: &'static str, at_least: f64) -> Goal {
    Goal::Ratio { against, at_least }
}

const fn mimalloc(prepare: crate::case::Prepare) -> Path {
    Path {
        name: MIMALLOC,
        allocator: Allocator::Mimalloc,
        prepare,
    }
}

fn touch(buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(black_box(&MESSAGE));
    black_box(buffer.as_slice());
}

/// Others of the same size that are in use meanwhile.
fn alive(size: usize) -> Vec<Vec<u8>> {
    black_box((0..3).map(|_| Vec::with_capacity(size)).collect())
}

// One buffer at a time.

fn fresh<const N: usize>() -> Run {
    let alive = alive(N);
    timed(move || {
        touch(&mut Vec::with_capacity(black_box(N)));
        black_box(&alive);
    })
}

fn zeroed<const N: usize>() -> Run {
    timed(|| {
        let mut buffer = vec![0; black_box(N)];
        buffer[..64].copy_from_slice(black_box(&MESSAGE));
        black_box(buffer.as_slice());
    })
}

fn pooled<const N: usize>() -> Run {
    let alive = alive(N);
    timed(move || {
        touch(BufferGuard::new(black_box(N)).get_mut());
        black_box(&alive);
    })
}

fn sized<const N: usize>(id: &'static str, about: &'static str, goals: &[Goal]) -> Case {
    Case {
        id,
        about,
        threads: 1,
        before: path("before", fresh::<N>),
        after: path("after", pooled::<N>),
        peers: vec![
            path(GLIBC, fresh::<N>),
            mimalloc(fresh::<N>),
            path(ZEROED, zeroed::<N>),
        ],
        goals: [goals, &[Goal::Allocations(0.0)]].concat(),
    }
}

// Several held at once: one operation is the whole burst.

fn burst_of<const COUNT: usize, B: 'static>(get: fn() -> B) -> Run {
    let alive = alive(KIB);
    let mut held = Vec::with_capacity(COUNT);
    timed(move || {
        for _ in 0..COUNT {
            held.push(get());
        }
        black_box(&mut held).clear();
        black_box(&alive);
    })
}

fn burst_fresh<const COUNT: usize>() -> Run {
    burst_of::<COUNT, _>(|| {
        let mut buffer = Vec::with_capacity(black_box(KIB));
        touch(&mut buffer);
        buffer
    })
}

fn burst_pooled<const COUNT: usize>() -> Run {
    burst_of::<COUNT, _>(|| {
        let mut buffer = BufferGuard::new(black_box(KIB));
        touch(buffer.get_mut());
        buffer
    })
}

fn burst<const COUNT: usize>(id: &'static str, about: &'static str) -> Case {
    Case {
        id,
        about,
        threads: 1,
        before: path("before", burst_fresh::<COUNT>),
        after: path("after", burst_pooled::<COUNT>),
        peers: vec![
            path(GLIBC, burst_fresh::<COUNT>),
            mimalloc(burst_fresh::<COUNT>),
        ],
        goals: vec![ratio(MIMALLOC, 1.0), Goal::Allocations(0.0)],
    }
}

// One thread gets and fills, another reads and drops.

/// A thread that takes what comes through a queue until it is told to stop.
struct Consumer<T: Send + 'static> {
    link: Arc<Link<T>>,
    thread: Option<JoinHandle<()>>,
}

struct Link<T> {
    queue: ArrayQueue<T>,
    consumed: AtomicU64,
    is_done: AtomicBool,
}

impl<T: Send + 'static> Consumer<T> {
    fn start(consume: impl Fn(T) + Send + 'static) -> Self {
        let link = Arc::new(Link {
            queue: ArrayQueue::new(256),
            consumed: AtomicU64::new(0),
            is_done: AtomicBool::new(false),
        });
        let its_link = Arc::clone(&link);
        let thread = thread::spawn(move || {
            let mut consumed = 0;
            while !its_link.is_done.load(Ordering::Relaxed) {
                while let Some(item) = its_link.queue.pop() {
                    consume(item);
                    consumed += 1;
                    its_link.consumed.store(consumed, Ordering::Release);
                }
                spin_loop();
            }
        });
        Self {
            link,
            thread: Some(thread),
        }
    }

    fn send(&self, mut item: T) {
        while let Err(back) = self.link.queue.push(item) {
            item = back;
            spin_loop();
        }
    }

    fn wait_for(&self, consumed: u64) {
        while self.link.consumed.load(Ordering::Acquire) < consumed {
            spin_loop();
        }
    }
}

impl<T: Send + 'static> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.link.is_done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic over there has been printed already.
            let _ = thread.join();
        }
    }
}

fn hand_over<T: Send + 'static>(make: fn() -> T, consume: fn(T)) -> Run {
    let consumer = Consumer::start(consume);
    let mut sent = 0;
    Box::new(move |iters| {
        let start = Instant::now();
        for _ in 0..iters {
            consumer.send(make());
        }
        sent += iters;
        consumer.wait_for(sent);
        start.elapsed()
    })
}

/// The time of the slowest of a thousand hand-overs, times the number of operations: a path's outliers.
fn slowest<T: Send + 'static>(make: fn() -> T, consume: fn(T)) -> Run {
    let consumer = Consumer::start(consume);
    let mut sent = 0;
    Box::new(move |iters| {
        let mut times: Vec<Duration> = Vec::with_capacity(OUTLIER_SAMPLES);
        for _ in 0..OUTLIER_SAMPLES {
            let start = Instant::now();
            for _ in 0..OUTLIER_BATCH {
                consumer.send(make());
            }
            sent += OUTLIER_BATCH;
            consumer.wait_for(sent);
            times.push(start.elapsed());
        }
        times.sort_unstable();
        // The 99th percentile: above it lie the scheduler's own interruptions, which every path has.
        let slow = times[OUTLIER_SAMPLES * 99 / 100].as_nanos() as u64;
        Duration::from_nanos(slow * iters / OUTLIER_BATCH)
    })
}

const OUTLIER_SAMPLES: usize = 1000;
const OUTLIER_BATCH: u64 = 256;

fn make_word() -> u64 {
    black_box(1)
}

fn make_fresh() -> Vec<u8> {
    let mut buffer = Vec::with_capacity(black_box(KIB));
    touch(&mut buffer);
    buffer
}

fn make_pooled() -> BufferGuard {
    let mut buffer = BufferGuard::new(black_box(KIB));
    touch(buffer.get_mut());
    buffer
}

/// Bare hand-over of memory: a written line goes over, and nothing comes back.
fn bare() -> Run {
    hand_over(make_word, |word| {
        black_box(word);
    })
}

fn cross_fresh() -> Run {
    hand_over(make_fresh, |buffer| {
        black_box(buffer.len());
    })
}

fn cross_pooled() -> Run {
    hand_over(make_pooled, |buffer| {
        black_box(buffer.len());
    })
}

fn cross_thread() -> Case {
    Case {
        id: "pool/cross_thread_1k",
        about: "a reader thread gets and fills buffers, a worker thread drops them",
        threads: 2,
        before: path("before", cross_fresh),
        after: path("after", cross_pooled),
        peers: vec![
            path("bare queue", bare),
            path(GLIBC, cross_fresh),
            mimalloc(cross_fresh),
        ],
        // At most 1.5 times the bare hand-over.
        goals: vec![ratio("bare queue", 1.0 / 1.5)],
    }
}

fn slowest_fresh() -> Run {
    slowest(make_fresh, drop)
}

fn slowest_pooled() -> Run {
    slowest(make_pooled, drop)
}

fn cross_thread_outliers() -> Case {
    Case {
        id: "pool/cross_thread_1k_p99",
        about: "the same, the 99th percentile of batches of 256 (outliers)",
        threads: 2,
        before: path("before", slowest_fresh),
        after: path("after", slowest_pooled),
        peers: vec![path("after, median", cross_pooled)],
        // No outliers beyond 10 times the median.
        goals: vec![ratio("after, median", 0.1)],
    }
}

// Shared bytes.

fn share(frozen: Bytes) {
    let clone = black_box(frozen.clone());
    drop(black_box(frozen));
    drop(clone);
}

fn freeze_fresh<const N: usize>() -> Run {
    let alive = alive(N);
    timed(move || {
        let mut buffer = Vec::with_capacity(black_box(N));
        touch(&mut buffer);
        share(Bytes::from(buffer));
        black_box(&alive);
    })
}

fn freeze_bytes_mut<const N: usize>() -> Run {
    let alive = alive(N);
    timed(move || {
        let mut buffer = BytesMut::with_capacity(black_box(N));
        buffer.extend_from_slice(black_box(&MESSAGE));
        share(buffer.freeze());
        black_box(&alive);
    })
}

fn freeze_pooled<const N: usize>() -> Run {
    let alive = alive(N);
    timed(move || {
        if let Ok(mut buffer) = BytesGuard::try_new(black_box(N)) {
            // Fits: the buffer has room for `N` bytes.
            let _ = buffer.put_slice(black_box(&MESSAGE));
            share(buffer.freeze());
        }
        black_box(&alive);
    })
}

fn freeze_pooled_vec() -> Run {
    timed(|| {
        let mut buffer = BufferGuard::new(black_box(KIB));
        touch(buffer.get_mut());
        share(buffer.freeze());
    })
}

fn freeze<const N: usize>(id: &'static str, about: &'static str) -> Case {
    Case {
        id,
        about,
        threads: 1,
        before: path("before", freeze_fresh::<N>),
        after: path("after", freeze_pooled::<N>),
        peers: vec![
            path("BytesMut", freeze_bytes_mut::<N>),
            mimalloc(freeze_fresh::<N>),
        ],
        goals: vec![ratio("before", 2.0), Goal::Allocations(0.0)],
    }
}

fn freeze_vec() -> Case {
    Case {
        id: "pool/freeze_vec",
        about: "the same from a lent `Vec`: copied into a retained buffer",
        threads: 1,
        before: path("before", freeze_fresh::<KIB>),
        after: path("after", freeze_pooled_vec),
        peers: vec![
            path("BytesMut", freeze_bytes_mut::<KIB>),
            mimalloc(freeze_fresh::<KIB>),
        ],
        goals: vec![Goal::Allocations(0.0)],
    }
}

// Other pools, of `Vec<u8>` with 1 KiB.

#[cfg(feature = "peers")]
mod others {
    use super::{KIB, touch};
    use crate::case::{Path, Run, path, timed};
    use std::hint::black_box;

    fn object_pool() -> Run {
        let pool = object_pool::Pool::new(64, || Vec::with_capacity(KIB));
        timed(move || {
            let mut buffer = black_box(&pool).pull(|| Vec::with_capacity(KIB));
            buffer.clear();
            touch(&mut buffer);
        })
    }

    fn lockfree_object_pool() -> Run {
        let pool =
            lockfree_object_pool::LinearObjectPool::new(|| Vec::with_capacity(KIB), Vec::clear);
        timed(move || touch(&mut black_box(&pool).pull()))
    }

    struct Buffers;

    impl opool::PoolAllocator<Vec<u8>> for Buffers {
        fn allocate(&self) -> Vec<u8> {
            Vec::with_capacity(KIB)
        }

        fn reset(&self, buffer: &mut Vec<u8>) {
            buffer.clear();
        }
    }

    fn opool() -> Run {
        let pool = opool::Pool::new_prefilled(64, Buffers);
        timed(move || touch(&mut black_box(&pool).get()))
    }

    pub(super) fn paths() -> Vec<Path> {
        vec![
            path("object-pool", object_pool),
            path("lockfree-object-pool", lockfree_object_pool),
            path("opool", opool),
        ]
    }
}

#[cfg(not(feature = "peers"))]
mod others {
    pub(super) fn paths() -> Vec<crate::case::Path> {
        Vec::new()
    }
}

fn vs_peers() -> Case {
    Case {
        id: "pool/vs_peers",
        about: "a small message's buffer from other crates' pools",
        threads: 1,
        before: path("before", fresh::<KIB>),
        after: path("after", pooled::<KIB>),
        peers: others::paths(),
        goals: vec![
            ratio("object-pool", 3.0),
            ratio("lockfree-object-pool", 3.0),
            ratio("opool", 3.0),
        ],
    }
}

// Objects: scratch space for an encoder, costly to make.

struct Scratch {
    entries: Vec<u64>,
}

impl Scratch {
    fn new() -> Self {
        Self {
            entries: Vec::with_capacity(512),
        }
    }

    fn touch(&mut self) {
        self.entries.push(black_box(7));
        black_box(self.entries.as_slice());
    }
}

fn object_locked() -> Run {
    let pool: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());
    let lock = |pool: &Mutex<Vec<Scratch>>, put: Option<Scratch>| {
        let mut idle = pool
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match put {
            Some(scratch) => {
                idle.push(scratch);
                None
            }
            None => idle.pop(),
        }
    };
    timed(move || {
        let mut scratch = lock(black_box(&pool), None).unwrap_or_else(Scratch::new);
        scratch.touch();
        scratch.entries.clear();
        lock(&pool, Some(scratch));
    })
}

fn object_pooled() -> Run {
    let pool = ObjectPool::builder(Scratch::new)
        .reset(|scratch: &mut Scratch| scratch.entries.clear())
        .build();
    timed(move || black_box(&pool).get().touch())
}

fn object() -> Case {
    Case {
        id: "pool/object",
        about: "an encoder's scratch space: get, write, reset, return",
        threads: 1,
        before: path("before", object_locked),
        after: path("after", object_pooled),
        peers: Vec::new(),
        goals: vec![ratio("before", 1.0), Goal::Allocations(0.0)],
    }
}
