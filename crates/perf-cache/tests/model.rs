//! A million random steps against a plain map, with a time that is stepped.

use perf_cache::{CacheReader, DefaultHasher, ManualTime, TtlCache};
use std::collections::HashMap;
use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % bound
    }
}

const TTL: u64 = 1_000;
/// Nanoseconds in which a stale value is served and an error remembered; none of either where entries lie in the table.
const WINDOWS: (u64, u64) = (500, 200);
const KEYS: u64 = 200;

/// What a plain map knows of a key.
#[derive(Clone, Copy)]
struct Known {
    value: Result<u64, u64>,
    fresh_until: u64,
    ends: u64,
    retry_at: u64,
}

/// The cache and the map, in the same state.
struct Pair {
    cache: TtlCache<u64, u64, DefaultHasher, ManualTime>,
    reader: CacheReader<u64, u64, DefaultHasher, ManualTime>,
    time: ManualTime,
    now: u64,
    map: HashMap<u64, Known>,
    next_value: u64,
    stale: u64,
    negative: u64,
}

impl Pair {
    fn new(lag: u64, (stale, negative): (u64, u64)) -> Self {
        let time = ManualTime::with_lag(Duration::from_nanos(lag));
        // The lag of the clock is there from the start.
        time.advance(Duration::from_nanos(lag));
        let mut builder = TtlCache::builder(10 * KEYS).ttl(Duration::from_nanos(TTL));
        if stale > 0 {
            builder = builder
                .stale_while_revalidate(Duration::from_nanos(stale))
                .negative_ttl(Duration::from_nanos(negative));
        }
        let cache: TtlCache<u64, u64, _, _> = builder.time(time.clone()).build().unwrap();
        Self {
            reader: cache.reader(),
            cache,
            time,
            now: lag,
            map: HashMap::new(),
            next_value: 0,
            stale,
            negative,
        }
    }

    fn known(&self, key: u64) -> Option<Known> {
        let known = self.map.get(&key).copied();
        known.filter(|known| self.now < known.ends)
    }

    fn expected(&self, key: u64) -> Option<u64> {
        self.known(key).and_then(|known| known.value.ok())
    }

    fn learn(&mut self, key: u64, value: u64, ttl: u64) {
        let fresh_until = self.now + ttl;
        let known = Known {
            value: Ok(value),
            fresh_until,
            ends: fresh_until + self.stale,
            retry_at: 0,
        };
        self.map.insert(key, known);
    }

    fn compute(&mut self, key: u64, fails: bool) {
        self.next_value += 1;
        let value = self.next_value;
        let answer = if fails { Err(value) } else { Ok(value) };
        let found = self
            .cache
            .try_get_or_compute(&key, || answer)
            .map_err(|error| *error);
        let known = self.known(key);
        let expected = match known {
            Some(known) if self.now < known.fresh_until || self.now < known.retry_at => known.value,
            Some(stale) if fails => {
                // The attempt failed: the stale value, and no other attempt for a while.
                let retry_at = self.now + self.negative;
                self.map.insert(key, Known { retry_at, ..stale });
                stale.value
            }
            _ if fails => {
                let ends = self.now + self.negative;
                let known = Known {
                    value: Err(value),
                    fresh_until: ends,
                    ends,
                    retry_at: 0,
                };
                self.map.insert(key, known);
                Err(value)
            }
            _ => {
                self.learn(key, value, TTL);
                Ok(value)
            }
        };
        assert_eq!(found, expected, "key {key} at {}", self.now);
    }

    fn step(&mut self, random: &mut Random) {
        let key = random.below(KEYS);
        match random.below(100) {
            0..30 => assert_eq!(self.cache.get(&key), self.expected(key), "at {}", self.now),
            30..60 => {
                let expected = self.expected(key);
                assert_eq!(self.reader.get(&key).copied(), expected, "at {}", self.now);
            }
            60..75 => self.compute(key, random.below(5) == 0),
            75..85 => {
                self.next_value += 1;
                let (value, ttl) = (self.next_value, random.below(2 * TTL));
                self.cache
                    .insert_with_ttl(key, value, Duration::from_nanos(ttl));
                if ttl == 0 {
                    self.map.remove(&key);
                } else {
                    self.learn(key, value, ttl);
                }
            }
            85..88 => {
                // What has ended may or may not have been met already; whatever is alive is reported.
                let is_alive = self.known(key).is_some();
                let was_there = self.cache.invalidate(&key);
                assert!(was_there || !is_alive);
                self.map.remove(&key);
            }
            88..98 => {
                let by = random.below(20);
                self.time.advance(Duration::from_nanos(by));
                self.now += by;
            }
            98 => {
                self.cache.cleanup_expired();
                let now = self.now;
                self.map.retain(|_, known| now < known.ends);
                assert_eq!(self.cache.len(), self.map.len() as u64);
            }
            _ if random.below(50) == 0 => {
                let parity = random.below(2);
                self.cache
                    .invalidate_where(|key, value| (key ^ value) % 2 == parity);
                self.map.retain(|key, known| {
                    known.value.is_err()
                        || known.value.is_ok_and(|value| (key ^ value) % 2 != parity)
                });
            }
            _ if random.below(50) == 0 => {
                self.cache.clear();
                self.map.clear();
            }
            _ => assert_eq!(self.cache.contains(&key), self.expected(key).is_some()),
        }
    }
}

#[test]
fn a_million_steps_agree_with_a_plain_map() {
    let none = (0, 0);
    for (seed, lag, windows) in [
        (1, 0, WINDOWS),
        (2, 30, WINDOWS),
        (3, 5_000, WINDOWS),
        (4, 0, none),
        (5, 30, none),
        (6, 5_000, none),
    ] {
        let (mut random, mut pair) = (Random(seed), Pair::new(lag, windows));
        for _ in 0..250_000 {
            pair.step(&mut random);
        }
        assert!(pair.cache.stats().hits > 50_000);
    }
}
