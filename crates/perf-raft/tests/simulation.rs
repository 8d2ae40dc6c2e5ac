//! Groups of three and five nodes in a simulated world, one history for each seed.
//!
//! `cargo xtask sim raft --seeds N` runs any number of them.

mod small_scope;
mod world;

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
fn groups_stay_sound_in_a_bad_world() {
    let start = number("PERF_SIM_START", 0);
    // A debug build takes ten times as long for each.
    let seeds = number(
        "PERF_SIM_SEEDS",
        if cfg!(debug_assertions) { 20 } else { 300 },
    );
    let mut sum = world::Coverage::default();
    for seed in start..start + seeds {
        match world::run(seed) {
            Ok(coverage) => sum += coverage,
            Err(violation) => panic!(
                "seed {seed}: {violation}\nagain: cargo xtask sim raft --start {seed} --seeds 1"
            ),
        }
    }
    println!("{seeds} seeds from {start}: {sum:?}");
    if seeds >= 60 {
        // A simulation that meets nothing proves nothing.
        for (what, count) in [
            ("writes", sum.writes_acked),
            ("reads", sum.reads),
            ("lease reads", sum.lease_reads),
            ("unknown outcomes", sum.unknown),
            ("refusals", sum.refused),
            ("crashes", sum.crashes),
            ("fsync errors", sum.fsync_errors),
            ("lost writes of the log", 2 * sum.jobs_lost),
            ("partitions", sum.partitions),
            ("installed snapshots", sum.snapshots_installed),
            (
                "installed snapshots of an empty state",
                4 * sum.empty_installed,
            ),
            ("membership changes", 2 * sum.memberships),
            ("transfers", sum.transfers),
            ("leaders", sum.leaders),
            ("proposals in batches", sum.batched),
            ("refused sends", sum.sends_refused),
            ("failed snapshots", sum.snapshots_failed),
            ("late reports of the state machine", sum.late_reports),
            ("appends refused", sum.appends_refused),
            ("answers at a bound", sum.busy),
            ("replaced disks", 2 * sum.disks_replaced),
            ("nodes taken in again", 2 * sum.taken_in),
            ("answers of strangers", sum.strangers),
            ("snapshots over a slow link", 2 * sum.slow_snapshots),
            ("late words to campaign", 2 * sum.late_words),
            ("frames that are too long for a peer", 2 * sum.too_long),
            ("bursts that are more than a log takes", sum.bursts),
            ("fetched entries", sum.fetched),
            ("failed reads of the log", 4 * sum.failed_reads),
            ("pieces of snapshots that were read", sum.pieces_read),
            ("pieces of snapshots that were written", sum.pieces_written),
            ("starts of machines that are durable", sum.durable_starts),
            (
                "logs that are cut at a machine's index",
                sum.durable_indexes,
            ),
            ("failed pieces of snapshots", 8 * sum.streams_failed),
            ("different lists of first voters", 8 * sum.mixed),
            ("nodes that name both lists", 4 * sum.mixed_named),
            ("starts on the log of another", sum.wrong_logs),
            ("frames of long ago", sum.late_frames),
            ("heartbeats of former leaders", 8 * sum.late_heartbeats),
            ("sleeps", sum.sleeps),
            ("wakes", sum.wakes),
            ("wakes by hosts", sum.lost_hosts),
            ("beats that are lost alone", sum.lost_beats),
        ] {
            assert!(count >= seeds / 4, "{what}: only {count} in {seeds} seeds");
        }
    }
}

/// `PERF_SCOPE_STATES` takes the place of the number of states, for a night's search.
#[test]
fn all_short_histories_of_a_small_group_are_sound() {
    let default = if cfg!(debug_assertions) { 40 } else { 6000 };
    let states_max = usize::try_from(number("PERF_SCOPE_STATES", default)).expect("it fits");
    let scope = small_scope::Scope {
        nodes: 3,
        commands: 3,
        crashes: 1,
        elections: 1,
        snapshots: 1,
        changes: 1,
        depth: 40,
        states_max,
    };
    for nodes in [2, 3] {
        let scope = small_scope::Scope { nodes, ..scope };
        match small_scope::search(scope) {
            Ok(seen) => {
                println!("{nodes} nodes: {seen:?}");
                assert!(seen.depth > 0, "{seen:?}");
            }
            Err(violation) => panic!("{nodes} nodes: {violation}"),
        }
    }
}

#[test]
fn the_same_seed_is_the_same_history() {
    for seed in [3, 4] {
        assert_eq!(world::run(seed), world::run(seed));
    }
}
