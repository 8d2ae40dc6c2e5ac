//! The segment log on a disk that loses, tears and reorders what was not synced.
//!
//! `PERF_SIM_SEEDS` sets how many histories, `PERF_SIM_START` the first.
#![cfg(feature = "testing")]

mod segment_life;
mod segments;

use segment_life::Coverage;
use std::env;

fn number(name: &str, default: u64) -> u64 {
    let value = env::var(name).ok();
    value.map_or(default, |value| {
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {value}"))
    })
}

#[test]
fn what_is_durable_stays_and_what_is_there_was_written() {
    let start = number("PERF_SIM_START", 0);
    let default = if cfg!(debug_assertions) {
        1_000
    } else {
        10_000
    };
    let seeds = number("PERF_SIM_SEEDS", default);
    let mut sum = Coverage::default();
    for seed in start..start + seeds {
        match segment_life::run(seed) {
            Ok(coverage) => add(&mut sum, &coverage),
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
    println!("{seeds} seeds from {start}: {sum:?}");
    if seeds >= 1_000 {
        // A simulation that meets nothing proves nothing.
        assert!(sum.rotations > 10 * seeds, "{sum:?}");
        assert!(sum.crashes > seeds && sum.kills > seeds, "{sum:?}");
        assert!(sum.writes_lost > seeds / 2, "{sum:?}");
        assert!(sum.streamed > seeds, "{sum:?}");
        assert!(sum.faults > seeds && sum.refused > seeds / 2, "{sum:?}");
    }
}

/// Disk use and everything else over thousands of segments and a thousand restarts.
#[test]
fn a_long_life_is_as_sound_as_a_short_one() {
    // A debug build takes ten times as long for each.
    let first = if cfg!(debug_assertions) { 2 } else { 0 };
    for seed in first..3 {
        let coverage = segment_life::run_lives(seed, 1_000).unwrap_or_else(|violation| {
            panic!("seed {seed}: {violation}");
        });
        println!("seed {seed}: {coverage:?}");
        assert!(coverage.rotations > 2_000, "{coverage:?}");
    }
}

fn add(sum: &mut Coverage, one: &Coverage) {
    sum.writes += one.writes;
    sum.crashes += one.crashes;
    sum.kills += one.kills;
    sum.writes_lost += one.writes_lost;
    sum.rotations += one.rotations;
    sum.faults += one.faults;
    sum.refused += one.refused;
    sum.streamed += one.streamed;
}
