//! Many seeds of a simulated world: the protocol under partitions, half-open links, crashes, cancelled calls and full
//! queues.
//!
//! `PERF_SIM_SEEDS` says how many, `PERF_SIM_START` where to begin.
#![cfg(not(perf_loom))]

mod sim;

use std::env;

/// Seeds of a run that nobody asked more of: some 20 s in a debug build.
const SEEDS: u64 = 300;

fn number(variable: &str, otherwise: u64) -> u64 {
    let value = env::var(variable);
    value.map_or(otherwise, |value| value.parse().expect("a number"))
}

#[test]
fn nothing_is_lost_doubled_mixed_up_or_stuck() {
    let (start, seeds) = (number("PERF_SIM_START", 0), number("PERF_SIM_SEEDS", SEEDS));
    let mut all = sim::Summary::default();
    for seed in start..start + seeds {
        match sim::run(seed) {
            Ok(summary) => {
                all.replies += summary.replies;
                all.faults += summary.faults;
                all.cancelled += summary.cancelled;
                all.stopped += summary.stopped;
                all.connects += summary.connects;
                all.idle += summary.idle;
                all.lost += summary.lost;
                all.messages += summary.messages;
                all.batched += summary.batched;
                all.bodies += summary.bodies;
                all.watches += summary.watches;
                all.deaf += summary.deaf;
                all.paused += summary.paused;
                all.patient += summary.patient;
            }
            Err(error) => panic!(
                "seed {seed}: {error}\nto run it again: cargo xtask sim transport --start {seed} --seeds 1"
            ),
        }
    }
    println!("{seeds} seeds: {all:?}");
    // A world in which nothing breaks proves nothing.
    if seeds >= 100 {
        assert!(
            all.lost > seeds && all.faults > seeds && all.cancelled > seeds,
            "{all:?}"
        );
        assert!(
            all.batched > seeds && all.stopped > seeds && all.idle > seeds,
            "{all:?}"
        );
        assert!(all.replies > seeds * 10 && all.bodies > seeds, "{all:?}");
        assert!(all.deaf > seeds && all.patient > seeds, "{all:?}");
        assert!(all.paused > seeds, "{all:?}");
        assert!(all.watches > seeds, "{all:?}");
    }
}
