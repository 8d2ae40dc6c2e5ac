//! Hosts with many groups in a simulated world, one history for each seed.
//!
//! `cargo xtask sim raft --groups 200 --seeds N` runs any number of them.

mod hosts;
#[path = "world/random.rs"]
mod random;

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
fn groups_of_hosts_sleep_and_wake_in_a_bad_world() {
    let start = number("PERF_SIM_START", 0);
    let groups = number("PERF_SIM_GROUPS", 30);
    let seeds = number(
        "PERF_SIM_SEEDS",
        if cfg!(debug_assertions) { 10 } else { 200 },
    );
    let mut sum = hosts::Coverage::default();
    for seed in start..start + seeds {
        match hosts::run(seed, groups) {
            Ok(coverage) => sum += coverage,
            Err(violation) => panic!(
                "seed {seed}: {violation}\nagain: cargo xtask sim raft --groups {groups} --start {seed} --seeds 1"
            ),
        }
    }
    println!("{seeds} seeds from {start}: {sum:?}");
    if seeds >= 60 {
        for (what, count) in [
            ("writes", sum.acked),
            ("sleeps", sum.sleeps),
            ("wakes", sum.wakes),
            ("wakes by hosts", sum.woken_by_hosts),
            ("refused sleeps", sum.refused_sleeps),
            ("crashes", sum.crashes),
            ("groups that stop alone", sum.stopped_groups),
            ("groups that are made", sum.made_groups),
            ("groups that are removed", sum.removed_groups),
            ("late frames", sum.late_frames),
            ("elections after a death", sum.elections_after_death),
        ] {
            assert!(count >= seeds / 4, "{what}: only {count} in {seeds} seeds");
        }
    }
}

#[test]
fn the_same_seed_is_the_same_history() {
    for seed in [3, 4] {
        assert_eq!(hosts::run(seed, 20), hosts::run(seed, 20));
    }
}
