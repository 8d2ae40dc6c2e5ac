//! Cases of `perf-pool`.
//!
//! Every path touches its buffer in the same way: it appends the same 64 bytes (a frame header with the
//! start of a body) and shows the result to the optimiser. Every path keeps three more buffers of the
//! size alive, as a node in work does; without them mimalloc gives its page back at each free and
//! takes 220 ns instead of 8.

use crate::case::{Allocator, Case, Goal, Path, Run, path, timed};
use bytes::{Bytes, BytesMut};
use crossbeam_queue::ArrayQueue;
use perf_pool::{
    Arena, ArenaConfig, ArenaPool, BoxPool, BufferGuard, BytesGuard, ObjectPool, PoolError, Pooled,
};
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
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
            &[ratio("before", 2.0)],
        ),
        freeze::<{ 64 * KIB }>(
            "pool/freeze_64k",
            "a batch of 64 KiB frozen, cloned for a second peer, dropped twice",
            &[],
        ),
        freeze_vec(),
        freeze_cross(),
        vs_peers::<1>(
            "pool/vs_peers",
            "a small message's buffer, other crates' pools, one thread",
            peers_goals(),
        ),
        vs_peers::<2>(
            "pool/vs_peers_x2",
            "the same with a second thread at the same pool",
            Vec::new(),
        ),
        object::<1>(
            "pool/object",
            "an encoder's scratch space: get, write, reset, return",
        ),
        object::<2>(
            "pool/object_x2",
            "the same with a second thread at the same pool",
        ),
        arena_request(),
        pooled_cross_thread(),
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

/// Waits a little: spinning while the other thread runs, yielding once it seems not to (busy machines).
fn pause(waits: &mut u32) {
    *waits += 1;
    if *waits < 2000 {
        spin_loop();
    } else {
        thread::yield_now();
    }
}

const QUEUE_LEN: usize = 256;

/// A thread that takes what comes through a queue until it is told to stop.
struct Consumer<T: Send + 'static> {
    link: Arc<Link<T>>,
    thread: Option<JoinHandle<()>>,
    sent: u64,
}

struct Link<T> {
    queue: ArrayQueue<T>,
    consumed: AtomicU64,
    is_active: AtomicBool,
    is_done: AtomicBool,
}

impl<T: Send + 'static> Consumer<T> {
    fn start(consume: impl Fn(T) + Send + 'static) -> Self {
        let link = Arc::new(Link {
            queue: ArrayQueue::new(QUEUE_LEN),
            consumed: AtomicU64::new(0),
            is_active: AtomicBool::new(false),
            is_done: AtomicBool::new(false),
        });
        let its_link = Arc::clone(&link);
        let thread = thread::spawn(move || {
            let (mut consumed, mut waits) = (0, 0);
            while !its_link.is_done.load(Ordering::Relaxed) {
                // Between measurements the core belongs to the other paths.
                if !its_link.is_active.load(Ordering::Relaxed) {
                    thread::park();
                }
                while let Some(item) = its_link.queue.pop() {
                    consume(item);
                    consumed += 1;
                    its_link.consumed.store(consumed, Ordering::Release);
                    waits = 0;
                }
                pause(&mut waits);
            }
        });
        Self {
            link,
            thread: Some(thread),
            sent: 0,
        }
    }

    /// Sends `count` items and returns when all are consumed.
    fn send(&mut self, count: u64, make: fn() -> T) {
        for _ in 0..count {
            let (mut item, mut waits) = (make(), 0);
            while let Err(back) = self.link.queue.push(item) {
                item = back;
                pause(&mut waits);
            }
        }
        self.sent += count;
        let mut waits = 0;
        while self.link.consumed.load(Ordering::Acquire) < self.sent {
            pause(&mut waits);
        }
    }

    /// Runs `work` with the consumer awake.
    fn awake<R>(&mut self, work: impl FnOnce(&mut Self) -> R) -> R {
        self.link.is_active.store(true, Ordering::Relaxed);
        self.unpark();
        let result = work(self);
        self.link.is_active.store(false, Ordering::Relaxed);
        result
    }

    fn unpark(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl<T: Send + 'static> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.link.is_done.store(true, Ordering::Relaxed);
        self.unpark();
        if let Some(thread) = self.thread.take() {
            // A panic over there has been printed already.
            let _ = thread.join();
        }
    }
}

fn hand_over<T: Send + 'static>(make: fn() -> T, consume: fn(T)) -> Run {
    let mut consumer = Consumer::start(consume);
    Box::new(move |iters| {
        consumer.awake(|consumer| {
            // Awake once it has consumed something.
            consumer.send(256, make);
            let start = Instant::now();
            consumer.send(iters, make);
            start.elapsed()
        })
    })
}

/// The 99th percentile of a thousand batches, as time per operation. Above it lie the scheduler's own
/// interruptions, which every path has.
fn slowest<T: Send + 'static>(make: fn() -> T, consume: fn(T)) -> Run {
    let mut consumer = Consumer::start(consume);
    Box::new(move |iters| {
        let mut times_ns = consumer.awake(|consumer| {
            consumer.send(OUTLIER_BATCH, make);
            let sample = |_| {
                let start = Instant::now();
                consumer.send(OUTLIER_BATCH, make);
                start.elapsed().as_nanos() as f64
            };
            (0..OUTLIER_SAMPLES).map(sample).collect::<Vec<f64>>()
        });
        times_ns.sort_unstable_by(f64::total_cmp);
        let slow_ns = times_ns[OUTLIER_SAMPLES * 99 / 100];
        Duration::from_secs_f64(slow_ns * 1e-9 * iters as f64 / OUTLIER_BATCH as f64)
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

/// The queue alone: a word goes over, no memory is touched on either side.
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

fn freeze<const N: usize>(id: &'static str, about: &'static str, goals: &[Goal]) -> Case {
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
        goals: [goals, &[Goal::Allocations(0.0)]].concat(),
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

fn make_shared_fresh() -> Bytes {
    let mut buffer = Vec::with_capacity(black_box(KIB));
    touch(&mut buffer);
    Bytes::from(buffer)
}

fn make_shared_pooled() -> Bytes {
    BytesGuard::try_new(black_box(KIB))
        .and_then(|mut buffer| {
            buffer.put_slice(black_box(&MESSAGE))?;
            Ok(buffer.freeze())
        })
        .unwrap_or_default()
}

/// With as many buffers in existence as can be in flight, so that a late first time does not count as steady state: a
/// full queue, one message on either side of it, and one more to find free.
fn freeze_cross_pooled() -> Run {
    let in_flight: Vec<Bytes> = (0..QUEUE_LEN + 3).map(|_| make_shared_pooled()).collect();
    drop(in_flight);
    hand_over(make_shared_pooled, share)
}

fn freeze_cross() -> Case {
    Case {
        id: "pool/freeze_x2",
        about: "a message frozen by one thread, cloned and dropped by the writer's thread",
        threads: 2,
        before: path("before", || hand_over(make_shared_fresh, share)),
        after: path("after", freeze_cross_pooled),
        peers: vec![mimalloc(|| hand_over(make_shared_fresh, share))],
        goals: vec![Goal::Allocations(0.0)],
    }
}

// Other pools, of `Vec<u8>` with 1 KiB, alone and with a second thread at the same pool.

/// A second thread that does the same work while this one is measured.
struct Rival {
    is_active: Arc<AtomicBool>,
    is_done: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Rival {
    fn start(operation: impl Fn() + Send + 'static) -> Self {
        let is_active = Arc::new(AtomicBool::new(false));
        let is_done = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (active, done) = (Arc::clone(&is_active), Arc::clone(&is_done));
        let its_rounds = Arc::clone(&rounds);
        let thread = thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if !active.load(Ordering::Relaxed) {
                    thread::park();
                }
                for _ in 0..64 {
                    operation();
                }
                its_rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            is_active,
            is_done,
            rounds,
            thread: Some(thread),
        }
    }

    fn set_active(&self, is_active: bool) {
        self.is_active.store(is_active, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Relaxed);
        self.set_active(true);
        if let Some(thread) = self.thread.take() {
            // A panic over there has been printed already.
            let _ = thread.join();
        }
    }
}

fn contended(operation: impl Fn() + Clone + Send + 'static) -> Run {
    let rival = Rival::start(operation.clone());
    Box::new(move |iters| {
        rival.set_active(true);
        let (before, mut waits) = (rival.rounds.load(Ordering::Relaxed), 0);
        while rival.rounds.load(Ordering::Relaxed) == before {
            pause(&mut waits);
        }
        let start = Instant::now();
        for _ in 0..iters {
            operation();
        }
        let elapsed = start.elapsed();
        rival.set_active(false);
        elapsed
    })
}

/// Alone if `THREADS` is 1, else with a rival.
fn shared<const THREADS: u32>(operation: impl Fn() + Clone + Send + 'static) -> Run {
    if THREADS == 1 {
        timed(operation)
    } else {
        contended(operation)
    }
}

fn shared_fresh<const THREADS: u32>() -> Run {
    shared::<THREADS>(|| touch(&mut Vec::with_capacity(black_box(KIB))))
}

fn shared_pooled<const THREADS: u32>() -> Run {
    shared::<THREADS>(|| touch(BufferGuard::new(black_box(KIB)).get_mut()))
}

#[cfg(feature = "peers")]
mod others {
    use super::{KIB, shared, touch};
    use crate::case::{Path, Run, path};
    use std::sync::Arc;

    fn object_pool<const THREADS: u32>() -> Run {
        let pool = Arc::new(object_pool::Pool::new(64, || Vec::with_capacity(KIB)));
        shared::<THREADS>(move || {
            let mut buffer = pool.pull(|| Vec::with_capacity(KIB));
            buffer.clear();
            touch(&mut buffer);
        })
    }

    fn lockfree_object_pool<const THREADS: u32>() -> Run {
        let pool = Arc::new(lockfree_object_pool::LinearObjectPool::new(
            || Vec::with_capacity(KIB),
            Vec::clear,
        ));
        shared::<THREADS>(move || touch(&mut pool.pull()))
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

    fn opool<const THREADS: u32>() -> Run {
        let pool = Arc::new(opool::Pool::new_prefilled(64, Buffers));
        shared::<THREADS>(move || touch(&mut pool.get()))
    }

    pub(super) fn paths<const THREADS: u32>() -> Vec<Path> {
        vec![
            path("object-pool", object_pool::<THREADS>),
            path("lockfree-object-pool", lockfree_object_pool::<THREADS>),
            path("opool", opool::<THREADS>),
        ]
    }
}

#[cfg(not(feature = "peers"))]
mod others {
    pub(super) fn paths<const THREADS: u32>() -> Vec<crate::case::Path> {
        Vec::new()
    }
}

fn peers_goals() -> Vec<Goal> {
    ["object-pool", "lockfree-object-pool", "opool"]
        .map(|peer| ratio(peer, 3.0))
        .to_vec()
}

fn vs_peers<const THREADS: u32>(id: &'static str, about: &'static str, goals: Vec<Goal>) -> Case {
    Case {
        id,
        about,
        threads: THREADS,
        before: path("before", shared_fresh::<THREADS>),
        after: path("after", shared_pooled::<THREADS>),
        peers: others::paths::<THREADS>(),
        goals,
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

/// Takes an object, or puts one back.
fn exchange(pool: &Mutex<Vec<Scratch>>, put: Option<Scratch>) -> Option<Scratch> {
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
}

fn object_locked<const THREADS: u32>() -> Run {
    let pool = Arc::new(Mutex::new(Vec::new()));
    shared::<THREADS>(move || {
        let mut scratch = exchange(&pool, None).unwrap_or_else(Scratch::new);
        scratch.touch();
        scratch.entries.clear();
        exchange(&pool, Some(scratch));
    })
}

fn object_pooled<const THREADS: u32>() -> Run {
    let pool = Arc::new(
        ObjectPool::builder(Scratch::new)
            .reset(|scratch: &mut Scratch| scratch.entries.clear())
            .build(),
    );
    shared::<THREADS>(move || pool.get().touch())
}

fn object<const THREADS: u32>(id: &'static str, about: &'static str) -> Case {
    Case {
        id,
        about,
        threads: THREADS,
        before: path("before", object_locked::<THREADS>),
        after: path("after", object_pooled::<THREADS>),
        peers: Vec::new(),
        goals: vec![Goal::Allocations(0.0)],
    }
}

// A request's small objects: ten records, ten names, ten lists, all gone at its end.

const REQUEST_OBJECTS: usize = 10;

#[derive(Clone, Copy)]
struct Record {
    _fields: [u64; 4],
}

static NAME: &str = "vm-0123456789/network";
static PORTS: [u32; 6] = [80, 443, 8080, 9090, 7000, 7001];

fn request_allocated() -> Run {
    timed(|| {
        let mut records = Vec::with_capacity(REQUEST_OBJECTS);
        let mut names = Vec::with_capacity(REQUEST_OBJECTS);
        let mut lists = Vec::with_capacity(REQUEST_OBJECTS);
        for number in 0..REQUEST_OBJECTS as u64 {
            let record = Record {
                _fields: [number; 4],
            };
            records.push(Box::new(black_box(record)));
            names.push(black_box(NAME).to_owned());
            lists.push(black_box(PORTS.as_slice()).to_vec());
        }
        black_box((&records, &names, &lists));
    })
}

fn fill_request(arena: &Arena) -> Result<(), PoolError> {
    let mut records = [None; REQUEST_OBJECTS];
    let mut names = [""; REQUEST_OBJECTS];
    let mut lists = [&[][..]; REQUEST_OBJECTS];
    for number in 0..REQUEST_OBJECTS {
        let record = Record {
            _fields: [number as u64; 4],
        };
        records[number] = Some(&*arena.try_alloc(black_box(record))?);
        names[number] = arena.try_alloc_str(black_box(NAME))?;
        lists[number] = arena.try_alloc_slice(black_box(PORTS.as_slice()))?;
    }
    black_box((&records, &names, &lists));
    Ok(())
}

fn request_in_arena() -> Run {
    let pool = ArenaPool::new(ArenaConfig::new());
    timed(move || {
        let arena = pool.get();
        // Fits: a request takes 2 KiB.
        let _ = black_box(fill_request(&arena));
    })
}

fn arena_request() -> Case {
    Case {
        id: "pool/arena_request",
        about: "30 small objects of a request, made and dropped with it",
        threads: 1,
        before: path("before", request_allocated),
        after: path("after", request_in_arena),
        peers: vec![path(GLIBC, request_allocated), mimalloc(request_allocated)],
        goals: vec![
            ratio(GLIBC, 5.0),
            ratio(MIMALLOC, 2.5),
            Goal::Allocations(0.0),
        ],
    }
}

// Values that one thread makes and another drops.

/// A proposal on its way to the Raft thread: 200 bytes.
struct Message {
    words: [u64; 25],
}

fn message() -> Message {
    Message {
        words: [black_box(7); 25],
    }
}

static MESSAGES: LazyLock<BoxPool<Message>> = LazyLock::new(|| BoxPool::new(4096));

fn boxed_cross() -> Run {
    hand_over(
        || Box::new(message()),
        |message| {
            black_box(message.words[3]);
        },
    )
}

fn pooled_cross() -> Run {
    hand_over(
        || MESSAGES.alloc(message()),
        |message: Pooled<Message>| {
            black_box(message.words[3]);
        },
    )
}

fn pooled_cross_thread() -> Case {
    Case {
        id: "pool/pooled_cross_thread",
        about: "a message of 200 bytes made by one thread, read and dropped by another",
        threads: 2,
        before: path("before", boxed_cross),
        after: path("after", pooled_cross),
        peers: vec![
            path("bare queue", bare),
            path(GLIBC, boxed_cross),
            mimalloc(boxed_cross),
        ],
        goals: vec![ratio(GLIBC, 4.0), ratio(MIMALLOC, 2.0)],
    }
}
