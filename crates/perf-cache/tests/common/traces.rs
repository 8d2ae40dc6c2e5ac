//! Generated traces of accesses, and caches to run them through. Shared by the tests and the benchmarks.

use perf_cache::{Policy, TtlCache};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;

/// The same seed in every run and for every cache: which keys share a counter of a frequency sketch moves hit ratios by a point.
type FixedState = BuildHasherDefault<DefaultHasher>;

/// The capacity for which the traces are made.
pub(crate) const CAPACITY: u64 = 2000;

/// A trace by name.
pub(crate) type Trace = (&'static str, fn(usize) -> Vec<u64>);

/// All traces.
pub(crate) const TRACES: [Trace; 6] = [
    ("zipf_0_9", |len| zipf(len, 0.9, 1)),
    ("zipf_1_0", |len| zipf(len, 1.0, 2)),
    ("loop", looping),
    ("recency", recency),
    ("scan_and_hot", scan_and_hot),
    ("shifting", shifting),
];

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The sums of Zipf's weights.
fn zipf_sums(keys: usize, exponent: f64) -> Vec<f64> {
    let mut sum = 0.0;
    (1..=keys)
        .map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        })
        .collect()
}

fn draw(sums: &[f64], random: &mut Random) -> u64 {
    let total = sums.last().copied().unwrap_or_default();
    let at = random.share() * total;
    sums.partition_point(|sum| *sum <= at) as u64
}

/// Keys by popularity, independent of each other.
fn zipf(len: usize, exponent: f64, seed: u64) -> Vec<u64> {
    let sums = zipf_sums(50_000, exponent);
    let mut random = Random(seed);
    (0..len).map(|_| draw(&sums, &mut random)).collect()
}

/// The same keys in the same order, half as many again as fit.
fn looping(len: usize) -> Vec<u64> {
    (0..len as u64)
        .map(|step| step % (CAPACITY * 3 / 2))
        .collect()
}

/// What was used lately is used again: stack distances are drawn from a geometric-like distribution, and a fifth of the accesses is new.
fn recency(len: usize) -> Vec<u64> {
    let mut random = Random(3);
    let mut history: Vec<u64> = Vec::with_capacity(len);
    let mut fresh = 0;
    for step in 0..len {
        let distance = (-(1.0 - random.share()).ln() * CAPACITY as f64 * 0.6) as usize;
        if random.share() < 0.2 || distance >= step {
            history.push(1_000_000 + fresh);
            fresh += 1;
        } else {
            history.push(history[step - 1 - distance]);
        }
    }
    history
}

/// Three quarters of what fits is hot; a third of the accesses walks over keys that never come again.
fn scan_and_hot(len: usize) -> Vec<u64> {
    let mut random = Random(4);
    let mut next = 1_000_000;
    (0..len)
        .map(|_| {
            if random.below(3) == 0 {
                next += 1;
                next
            } else {
                random.below(CAPACITY * 3 / 4)
            }
        })
        .collect()
}

/// Popularity as Zipf has it, and every so often other keys are the popular ones.
fn shifting(len: usize) -> Vec<u64> {
    let sums = zipf_sums(10_000, 0.9);
    let mut random = Random(5);
    (0..len)
        .map(|step| {
            let epoch = (step * 8 / len) as u64;
            draw(&sums, &mut random) + epoch * 5_000
        })
        .collect()
}

/// Hits of a plain list of the least recently used.
pub(crate) fn lru_hits(trace: &[u64], capacity: u64) -> u64 {
    let (mut used, mut order) = (HashMap::new(), BTreeMap::new());
    let mut hits = 0;
    for (now, key) in trace.iter().enumerate() {
        if let Some(before) = used.insert(*key, now) {
            hits += 1;
            order.remove(&before);
        } else if used.len() as u64 > capacity
            && let Some((_, oldest)) = order.pop_first()
        {
            used.remove(&oldest);
        }
        order.insert(now, *key);
    }
    hits
}

/// Hits of moka's TinyLFU.
pub(crate) fn tiny_lfu_hits(trace: &[u64], capacity: u64) -> u64 {
    let cache = moka::sync::Cache::builder()
        .max_capacity(capacity)
        .build_with_hasher(FixedState::default());
    let mut hits = 0;
    for key in trace {
        if cache.get(key).is_some() {
            hits += 1;
        } else {
            cache.insert(*key, *key);
        }
    }
    hits
}

/// How a cache of ours is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Every access goes to the shared table.
    Shared,
    /// By way of the thread's front.
    Front,
    /// By way of a reader with 256 places.
    Reader,
}

/// Hits of ours, and how often the policy changed.
pub(crate) fn our_hits(trace: &[u64], capacity: u64, policy: Policy, way: Way) -> (u64, u64) {
    // What lies in the table needs no front.
    if way == Way::Front {
        hits_of::<Box<u64>>(trace, capacity, policy, way)
    } else {
        hits_of::<u64>(trace, capacity, policy, way)
    }
}

fn hits_of<V>(trace: &[u64], capacity: u64, policy: Policy, way: Way) -> (u64, u64)
where
    V: From<u64> + Clone + Send + Sync + 'static,
{
    let cache: TtlCache<u64, V, FixedState> = TtlCache::builder(capacity)
        .hasher(FixedState::default())
        .policy(policy)
        .front(way == Way::Front)
        .build()
        .expect("the settings are within their limits");
    let mut reader = cache.reader_of::<256>();
    let mut hits = 0;
    for key in trace {
        let hit = match way {
            Way::Reader => reader.get(key).is_some(),
            Way::Shared | Way::Front => cache.get(key).is_some(),
        };
        if hit {
            hits += 1;
        } else {
            cache.insert(*key, V::from(*key));
        }
    }
    (hits, cache.stats().policy_switches)
}
