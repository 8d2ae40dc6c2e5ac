//! Cases of `perf-cache`: what a node reads instead of computing it, and where it places a VM.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use perf_cache::{
    CachedValue, NodeCapacity, PlacementIndex, Policy, Requirements, Strategy, TtlCache,
};

use super::shared;
use crate::case::{Case, Run, summed};
use crate::experiment::{Bound, Depth, Experiment, Figure, Unit};
use crate::team::pair;

#[cfg(feature = "peers")]
mod peers;
#[path = "../../../crates/perf-cache/tests/common/traces.rs"]
mod traces;

no_peers!(value hot wide_1k wide_1k_2k wide_64k wide_1m wide_1k_pair trace_mixed insert_64k invalidate_64k);

const TTL: Duration = Duration::from_secs(3600);

/// Keys that every path can be asked for.
const HOT: u64 = 16;
const WIDE_1K: u64 = 1 << 10;
const WIDE_64K: u64 = 1 << 16;
const WIDE_1M: u64 = 1 << 20;
/// Room for the widest case twice over.
const CAPACITY: u64 = 2 * WIDE_64K;

/// The cases of `perf-cache`.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        super::case(
            ("cache/value", 1),
            "one summary is read that was computed a while ago",
            || {
                let value = RwLock::new(Some((Instant::now(), 42_u64)));
                summed(move || match &*value.read().expect("nobody panics") {
                    Some((stored, value)) if stored.elapsed() < TTL => *value,
                    _ => 0,
                })
            },
            || {
                let value = CachedValue::<u64>::new(TTL).expect(LIMITS);
                value.set(42);
                let mut reader = value.reader();
                summed(move || reader.get().copied().unwrap_or(0))
            },
            peers::value(),
            &[("moka", 80.0)],
        ),
        super::case(
            ("cache/hot", 1),
            "one of 16 hot keys is read by a task that keeps a reader",
            || naive(HOT),
            || {
                let mut reader = ours(HOT).reader();
                keys(HOT, move |key| reader.get(&key).copied())
            },
            peers::hot(),
            &[("moka", 50.0)],
        ),
        super::case(
            ("cache/hot_get", 1),
            "one of 16 hot keys is read through the shared cache",
            || naive(HOT),
            || {
                let cache = ours(HOT);
                keys(HOT, move |key| cache.get(&key))
            },
            peers::hot(),
            &[("moka", 1.0), ("quick_cache", 1.0)],
        ),
        super::case(
            ("cache/wide_1k", 1),
            "one of 1024 keys is read, more than a small front holds",
            || naive(WIDE_1K),
            || {
                let cache = ours(WIDE_1K);
                keys(WIDE_1K, move |key| cache.get(&key))
            },
            peers::wide_1k(),
            &[("moka", 1.0), ("quick_cache", 1.0)],
        ),
        super::case(
            ("cache/wide_1k_x2", 2),
            "the same by two threads",
            || {
                let cache = shared(Mutex::new(filled_map(WIDE_1K)));
                pair(|| {
                    let mut turn = 0;
                    move || naive_get(cache, next(&mut turn, WIDE_1K)).unwrap_or(0)
                })
            },
            || {
                let cache = ours(WIDE_1K);
                pair(|| {
                    let mut turn = 0;
                    move || cache.get(&next(&mut turn, WIDE_1K)).unwrap_or(0)
                })
            },
            peers::wide_1k_pair(),
            &[("moka", 1.0)],
        ),
        super::case(
            ("cache/wide_64k", 1),
            "one of 65 536 keys is read, more than the processor's caches hold",
            || naive(WIDE_64K),
            || {
                let cache = ours(WIDE_64K);
                keys(WIDE_64K, move |key| cache.get(&key))
            },
            peers::wide_64k(),
            &[("moka", 1.0), ("quick_cache", 1.0)],
        ),
        super::case(
            ("cache/wide_1k_2k", 1),
            "one of 1024 keys is read from a cache of 2048",
            || naive(WIDE_1K),
            || {
                let cache = ours_of(2 * WIDE_1K, WIDE_1K);
                keys(WIDE_1K, move |key| cache.get(&key))
            },
            peers::wide_1k_2k(),
            &[("moka", 1.0), ("quick_cache", 1.0)],
        ),
        super::case(
            ("cache/wide_1m", 1),
            "one of 1 048 576 keys is read",
            || naive(WIDE_1M),
            || {
                let cache = ours_of(2 * WIDE_1M, WIDE_1M);
                keys(WIDE_1M, move |key| cache.get(&key))
            },
            peers::wide_1m(),
            &[("moka", 1.0), ("quick_cache", 1.0)],
        ),
        super::case(
            ("cache/trace_mixed", 1),
            "get or compute along a trace of which a third misses",
            || {
                let map = Mutex::new(Map::new());
                let mut next = trace();
                summed(move || {
                    let key = next();
                    naive_get(&map, key)
                        .unwrap_or_else(|| naive_insert(&map, key, traces::CAPACITY))
                })
            },
            || {
                let cache = ours_of(traces::CAPACITY, 0);
                let mut next = trace();
                summed(move || {
                    let key = next();
                    cache.get_or_compute(&key, || key)
                })
            },
            peers::trace_mixed(),
            &[("moka", 5.0), ("quick_cache", 0.7), ("foyer", 2.0)],
        ),
        super::case(
            ("cache/insert_64k", 1),
            "a value is put into a full cache of 65 536",
            || {
                let map = Mutex::new(Map::new());
                keys(2 * WIDE_64K, move |key| {
                    Some(naive_insert(&map, key, WIDE_64K))
                })
            },
            || {
                let cache = ours_of(WIDE_64K, WIDE_64K);
                keys(2 * WIDE_64K, move |key| {
                    cache.insert(key, key);
                    None
                })
            },
            peers::insert_64k(),
            &[("moka", 5.0), ("quick_cache", 0.7), ("foyer", 2.0)],
        ),
        super::case(
            ("cache/invalidate_64k", 1),
            "one of 65 536 values is taken out and put in anew",
            || {
                let map = Mutex::new(filled_map(WIDE_64K));
                keys(WIDE_64K, move |key| {
                    map.lock().expect("nobody panics").remove(&key);
                    Some(naive_insert(&map, key, WIDE_64K))
                })
            },
            || {
                let cache = ours(WIDE_64K);
                keys(WIDE_64K, move |key| {
                    cache.invalidate(&key);
                    cache.insert(key, key);
                    None
                })
            },
            peers::invalidate_64k(),
            &[("moka", 5.0), ("quick_cache", 0.7), ("foyer", 2.0)],
        ),
        super::case(
            ("placement/scan_10k", 1),
            "the best of 10 000 nodes for a VM",
            placement_naive,
            || placement(PlacementIndex::select),
            Vec::new(),
            &[("before", 8.0)],
        ),
        super::case(
            ("placement/scan_10k_columns", 1),
            "the same by a look at each node, without the blocks' summaries",
            placement_naive,
            || placement(PlacementIndex::scan),
            Vec::new(),
            &[("before", 8.0)],
        ),
    ]
}

const LIMITS: &str = "the settings are within their limits";

/// The next key: spread, and the same ones for every path.
fn next(turn: &mut u64, keys: u64) -> u64 {
    // Weyl's sequence: one addition, which every path has.
    *turn = turn.wrapping_add(0x9e37_79b9_7f4a_7c15);
    *turn >> (64 - keys.ilog2())
}

/// A path that reads one key after the other.
fn keys(keys: u64, mut get: impl FnMut(u64) -> Option<u64> + 'static) -> Run {
    let mut turn = 0;
    summed(move || get(next(&mut turn, keys)).unwrap_or(0))
}

/// The keys of a trace, again and again.
fn trace() -> impl FnMut() -> u64 {
    let [_, (_, zipf), ..] = traces::TRACES;
    let trace = zipf(200_000);
    let mut at = 0;
    move || {
        at = (at + 1) % trace.len();
        trace[at]
    }
}

fn ours(keys: u64) -> &'static TtlCache<u64, u64> {
    ours_of(CAPACITY, keys)
}

fn ours_of(capacity: u64, keys: u64) -> &'static TtlCache<u64, u64> {
    let cache = TtlCache::builder(capacity).ttl(TTL).build().expect(LIMITS);
    (0..keys).for_each(|key| cache.insert(key, key));
    shared(cache)
}

/// What one writes first: a lock around a map, and the time asked for at each read.
type Map = HashMap<u64, (Instant, u64)>;

fn filled_map(keys: u64) -> Map {
    (0..keys).map(|key| (key, (Instant::now(), key))).collect()
}

fn naive_get(cache: &Mutex<Map>, key: u64) -> Option<u64> {
    let map = cache.lock().expect("nobody panics");
    map.get(&key)
        .filter(|(stored, _)| stored.elapsed() < TTL)
        .map(|(_, value)| *value)
}

/// Bounded as one does it first: all goes when the map is full.
fn naive_insert(cache: &Mutex<Map>, key: u64, capacity: u64) -> u64 {
    let mut map = cache.lock().expect("nobody panics");
    if map.len() as u64 >= capacity {
        map.clear();
    }
    map.insert(key, (Instant::now(), key));
    key
}

fn naive(count: u64) -> Run {
    let cache = Mutex::new(filled_map(count));
    keys(count, move |key| naive_get(&cache, key))
}

/// A node as one writes it first.
struct Node {
    id: u64,
    vcpus: u32,
    memory_mib: u32,
    disk_gib: u32,
    is_available: bool,
}

fn nodes() -> impl Iterator<Item = NodeCapacity> {
    let mut turn = 0_u64;
    (0..10_000).map(move |id| {
        turn = turn.wrapping_add(0x9e37_79b9_7f4a_7c15);
        NodeCapacity {
            id,
            vcpus: (turn >> 58) as u32,
            memory_mib: (turn >> 40) as u32 & 0x3_ffff,
            disk_gib: (turn >> 20) as u32 & 0xfff,
        }
    })
}

/// VMs of several sizes, so that the answer is not always the same.
fn vm(turn: &mut u64) -> Requirements {
    let size = next(turn, 16) as u32;
    Requirements::new(1 + size, 2048 * (1 + size), 20 * size)
}

fn placement(find: fn(&PlacementIndex, &Requirements, Strategy) -> Option<u64>) -> Run {
    let mut index = PlacementIndex::new();
    for node in nodes() {
        index
            .update(node)
            .expect("10 000 nodes are within its limits");
    }
    let mut turn = 0;
    summed(move || find(&index, &vm(&mut turn), Strategy::MostAvailable).unwrap_or(0))
}

fn placement_naive() -> Run {
    let nodes: Vec<Node> = nodes()
        .map(|node| Node {
            id: node.id,
            vcpus: node.vcpus,
            memory_mib: node.memory_mib,
            disk_gib: node.disk_gib,
            is_available: true,
        })
        .collect();
    let mut turn = 0;
    summed(move || {
        let vm = vm(&mut turn);
        let points = |node: &Node| {
            u64::from(node.vcpus) * 64 + u64::from(node.memory_mib) / 64 + u64::from(node.disk_gib)
        };
        nodes
            .iter()
            .filter(|node| {
                node.is_available
                    && node.vcpus >= vm.vcpus
                    && node.memory_mib >= vm.memory_mib
                    && node.disk_gib >= vm.disk_gib
            })
            .max_by_key(|node| points(node))
            .map_or(0, |node| node.id)
    })
}

/// The experiments of `perf-cache`.
#[must_use]
pub fn experiments() -> Vec<Experiment> {
    vec![
        Experiment {
            id: "cache/herd",
            about: "1000 callers of one missing key: computations, and the time to a successor after a panic",
            measure: herd,
        },
        Experiment {
            id: "cache/memory",
            about: "resident memory of a cache, empty and per entry of 65 536, u64 to u64",
            measure: memory,
        },
        Experiment {
            id: "cache/pause",
            about: "the longest get or compute of a cache of 1 048 576 entries while the load changes",
            measure: pause,
        },
        Experiment {
            id: "cache/hit_ratio",
            about: "hit ratios on generated traces, a cache of 2000 entries",
            measure: hit_ratio,
        },
    ]
}

const CALLERS: u64 = 1000;

/// Lets all callers ask at once and returns what they got.
fn ask(
    cache: &TtlCache<u64, u64>,
    compute: impl Fn() -> Result<u64, ()> + Sync,
) -> Result<(), String> {
    let start = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let call = || {
            while !start.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let ask = || cache.try_get_or_compute(&1, &compute).is_ok();
            // A caller whose computation panics on purpose catches it.
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask)).is_ok()
        };
        let spawn = |_| {
            std::thread::Builder::new()
                .stack_size(64 * 1024)
                .spawn_scoped(scope, call)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        let spawned: Result<(), String> = (0..CALLERS).try_for_each(spawn);
        start.store(true, Ordering::Release);
        spawned
    })
}

fn herd(_: Depth) -> Result<Vec<Figure>, String> {
    let computations = AtomicU64::new(0);
    let negative = || {
        TtlCache::<u64, u64>::builder(10)
            .negative_ttl(TTL)
            .build()
            .map_err(|error| error.to_string())
    };
    let slow = |answer: Result<u64, ()>| {
        std::thread::sleep(Duration::from_millis(50));
        computations.fetch_add(1, Ordering::SeqCst);
        answer
    };
    ask(&negative()?, || slow(Ok(1)))?;
    let on_success = computations.swap(0, Ordering::SeqCst);
    ask(&negative()?, || slow(Err(())))?;
    let on_error = computations.swap(0, Ordering::SeqCst);

    let panicked_at = Mutex::new(None);
    let took = AtomicU64::new(0);
    // The panic is part of the experiment: its message is not.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let outcome = ask(&negative()?, || {
        let mut at = panicked_at
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match *at {
            None => {
                std::thread::sleep(Duration::from_millis(50));
                *at = Some(Instant::now());
                panic!("on purpose");
            }
            Some(at) => {
                let nanos = u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX);
                took.store(nanos, Ordering::SeqCst);
                slow(Ok(1))
            }
        }
    });
    std::panic::set_hook(hook);
    outcome?;
    let successors = computations.swap(0, Ordering::SeqCst);
    let one = Bound::AtMost(1.0);
    Ok(vec![
        Figure::new("computations on success", on_success as f64, Unit::Count).expected(one),
        Figure::new("computations on error", on_error as f64, Unit::Count).expected(one),
        Figure::new("successors after a panic", successors as f64, Unit::Count).expected(one),
        Figure::new(
            "panic to successor",
            took.into_inner() as f64,
            Unit::Nanoseconds,
        )
        .expected(Bound::AtMost(30e6)),
    ])
}

/// Resident bytes of this process.
fn resident() -> Result<f64, String> {
    let text = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    number
        .map(|kib| kib * 1024.0)
        .ok_or_else(|| "no VmRSS".to_owned())
}

fn memory(_: Depth) -> Result<Vec<Figure>, String> {
    const CACHES: usize = 8;
    const EMPTY: usize = 1000;
    let before = resident()?;
    let full: Vec<_> = (0..CACHES).map(|_| ours_of(WIDE_64K, WIDE_64K)).collect();
    let per_entry = (resident()? - before) / (full.len() as f64 * WIDE_64K as f64);
    let before = resident()?;
    let empty: Vec<_> = (0..EMPTY).map(|_| ours_of(10_000, 0)).collect();
    let of_empty = (resident()? - before) / empty.len() as f64;
    let before = resident()?;
    let values =
        (0..EMPTY).map(|_| CachedValue::<u64>::new(TTL).map_err(|error| error.to_string()));
    let values = values.collect::<Result<Vec<_>, _>>()?;
    let of_value = (resident()? - before) / values.len() as f64;
    Ok(vec![
        Figure::new("bytes per entry", per_entry, Unit::Count).expected(Bound::AtMost(96.0)),
        Figure::new("bytes of an empty cache", of_empty, Unit::Count)
            .expected(Bound::AtMost(4096.0)),
        Figure::new("bytes of a CachedValue", of_value, Unit::Count).expected(Bound::AtMost(256.0)),
    ])
}

/// How long each call took, in nanoseconds.
struct Pauses(Vec<u32>);

impl Pauses {
    fn of(&mut self, call: impl FnOnce()) {
        let begin = Instant::now();
        call();
        let nanos = begin.elapsed().as_nanos();
        self.0.push(u32::try_from(nanos).unwrap_or(u32::MAX));
    }

    /// So many calls in a million take longer; none of all is the longest.
    fn beyond(&mut self, in_a_million: usize) -> f64 {
        self.0.sort_unstable();
        let at = self.0.len() - 1 - self.0.len() * in_a_million / 1_000_000;
        f64::from(self.0[at])
    }
}

fn pause(_: Depth) -> Result<Vec<Figure>, String> {
    let cache = ours_of(WIDE_1M, 0);
    let mut turn = 0;
    let mut pauses = Pauses(Vec::with_capacity(5 * WIDE_1M as usize));
    let mut ask = |key: u64| {
        pauses.of(|| {
            cache.get_or_compute(&key, || key);
        });
    };
    // It fills, then keys of a few times its size are asked for, then only what came lately, then a loop.
    (0..WIDE_1M).for_each(&mut ask);
    (0..WIDE_1M).for_each(|_| ask(next(&mut turn, 4 * WIDE_1M)));
    (0..2 * WIDE_1M)
        .for_each(|step| ask((1 << 40) + step - next(&mut turn, WIDE_1M / 2).min(step)));
    (0..WIDE_1M).for_each(|step| ask(step % (WIDE_1M / 2 * 3)));
    // What the machine takes from calls that do nothing.
    let mut idle = Pauses(Vec::with_capacity(pauses.0.len()));
    (0..pauses.0.len()).for_each(|_| idle.of(|| ()));
    let switches = cache.stats().policy_switches as f64;
    let nanos = |name, nanos| Figure::new(name, nanos, Unit::Nanoseconds);
    Ok(vec![
        Figure::new("changes of policy", switches, Unit::Count),
        nanos("99.9 % of the calls", pauses.beyond(1000)),
        nanos("99.999 % of the calls", pauses.beyond(10)),
        nanos("longest", pauses.beyond(0)).expected(Bound::AtMost(1e6)),
        nanos("longest of calls that do nothing", idle.beyond(0)),
    ])
}

fn hit_ratio(depth: Depth) -> Result<Vec<Figure>, String> {
    let accesses = match depth {
        Depth::Quick => 100_000,
        Depth::Full => 1_000_000,
    };
    let mut figures = Vec::new();
    for (name, make) in traces::TRACES {
        let trace = make(accesses);
        let share = |hits: u64| hits as f64 / accesses as f64;
        let lru = share(traces::lru_hits(&trace, traces::CAPACITY));
        let tiny_lfu = share(traces::tiny_lfu_hits(&trace, traces::CAPACITY));
        let goal = Bound::AtLeast(lru.max(tiny_lfu) - 0.01);
        figures.push(Figure::new(format!("{name}, LRU"), lru, Unit::Share));
        figures.push(Figure::new(
            format!("{name}, moka TinyLFU"),
            tiny_lfu,
            Unit::Share,
        ));
        for (way, label) in [
            (traces::Way::Shared, "ours"),
            (traces::Way::Reader, "ours, by a reader"),
        ] {
            let (hits, _) = traces::our_hits(&trace, traces::CAPACITY, Policy::Adaptive, way);
            figures.push(
                Figure::new(format!("{name}, {label}"), share(hits), Unit::Share).expected(goal),
            );
        }
    }
    Ok(figures)
}
