//! What is thrown out at capacity, on generated traces.
//!
//! `cargo test -p perf-cache --release --test hit_ratio -- --nocapture` prints the ratios.

#[path = "common/traces.rs"]
mod traces;

use perf_cache::{Policy, WIDE_FRONT_PLACES};
use traces::{CAPACITY, TRACES, Way, lru_hits, our_hits, tiny_lfu_hits};

const ACCESSES: usize = 150_000;

/// Hits of all in percent of the accesses.
fn percent(hits: u64) -> f64 {
    hits as f64 * 100.0 / ACCESSES as f64
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes unless optimised: --release")]
fn the_adaptive_policy_is_within_a_point_of_the_better_one_whatever_the_front() {
    let mut missed = Vec::new();
    for (name, make) in TRACES {
        let trace = make(ACCESSES);
        let lru = percent(lru_hits(&trace, CAPACITY));
        let tiny_lfu = percent(tiny_lfu_hits(&trace, CAPACITY));
        for way in [Way::Shared, Way::Front, Way::Reader] {
            let (hits, switches) = our_hits(&trace, CAPACITY, Policy::Adaptive, way);
            let ours = percent(hits);
            println!(
                "{name:14} LRU {lru:6.2} TinyLFU {tiny_lfu:6.2} ours {ours:6.2} ({way:?}, {switches} switches)"
            );
            if ours < lru.max(tiny_lfu) - 1.0 {
                missed.push((name, way, ours));
            }
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes unless optimised: --release")]
fn the_fixed_policies_are_within_a_point_of_what_they_are_named_after() {
    let mut missed = Vec::new();
    for (name, make) in TRACES {
        let trace = make(ACCESSES);
        for (policy, expected) in [
            (Policy::Lru, lru_hits(&trace, CAPACITY)),
            (Policy::TinyLfu, tiny_lfu_hits(&trace, CAPACITY)),
        ] {
            let (hits, _) = our_hits(&trace, CAPACITY, policy, Way::Shared);
            let (ours, expected) = (percent(hits), percent(expected));
            println!("{name:14} {policy:?} expected {expected:6.2} ours {ours:6.2}");
            if ours < expected - 1.0 {
                missed.push((name, policy, ours));
            }
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}

/// Each access of a trace is made by so many tenants in turn, so that the cache is large enough for wide fronts.
const TENANTS: u64 = 17;

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes unless optimised: --release")]
fn a_wide_front_costs_no_hits() {
    let capacity = TENANTS * CAPACITY;
    assert!(capacity >= 16 * WIDE_FRONT_PLACES as u64);
    let mut missed = Vec::new();
    for (name, make) in TRACES {
        let trace: Vec<u64> = make(ACCESSES / 6)
            .into_iter()
            .flat_map(|key| (0..TENANTS).map(move |tenant| key * TENANTS + tenant))
            .collect();
        let percent = |way| {
            let (hits, _) = our_hits(&trace, capacity, Policy::Adaptive, way);
            hits as f64 * 100.0 / trace.len() as f64
        };
        let (shared, front) = (percent(Way::Shared), percent(Way::Front));
        println!("{name:14} shared {shared:6.2} by wide fronts {front:6.2}");
        if front < shared - 1.0 {
            missed.push((name, shared, front));
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}

/// Up and down over more keys than fit: LRU leads at each turn and TinyLFU in between, and to follow both costs more than either.
#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes unless optimised: --release")]
fn a_load_that_turns_does_not_drive_the_policy_to_and_fro() {
    for (keys, capacity) in [(1000, 400), (3000, 400), (3000, 1000)] {
        let step = |step: u64| (step % (2 * keys)).min(2 * keys - 1 - step % (2 * keys));
        let trace: Vec<u64> = (0..ACCESSES as u64).map(step).collect();
        let lru = percent(lru_hits(&trace, capacity));
        let (hits, switches) = our_hits(&trace, capacity, Policy::Adaptive, Way::Shared);
        let ours = percent(hits);
        println!("{keys} keys LRU {lru:6.2} ours {ours:6.2} ({switches} switches)");
        assert!(ours >= lru - 4.0, "{keys} keys: {ours} beside {lru}");
        assert!(switches < ACCESSES as u64 / capacity / 10, "{switches}");
    }
}

/// A small cache has few counters of how often keys came, and must not forget them too soon.
#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes unless optimised: --release")]
fn a_small_cache_knows_frequencies_as_well_as_a_large_one() {
    let trace = TRACES[0].1(ACCESSES);
    for capacity in [100, 150, 400, 2000] {
        let moka = percent(tiny_lfu_hits(&trace, capacity));
        let ours = percent(our_hits(&trace, capacity, Policy::Adaptive, Way::Shared).0);
        println!("{capacity} entries TinyLFU {moka:6.2} ours {ours:6.2}");
        assert!(
            ours >= moka + 0.5,
            "{capacity} entries: {ours} beside {moka}"
        );
    }
}

/// It is told of an entry's reads once per tick.
#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes unless optimised: --release")]
fn moka_decides_almost_as_well_from_what_it_is_told() {
    let mut missed = Vec::new();
    for (name, make) in TRACES {
        let trace = make(ACCESSES);
        let expected = percent(tiny_lfu_hits(&trace, CAPACITY));
        let (hits, _) = our_hits(&trace, CAPACITY, Policy::Moka, Way::Shared);
        let ours = percent(hits);
        println!("{name:14} Moka expected {expected:6.2} ours {ours:6.2}");
        if ours < expected - 4.0 {
            missed.push((name, ours));
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}
