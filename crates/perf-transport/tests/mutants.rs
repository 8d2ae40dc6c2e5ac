//! Faults that the simulation must find.
#![cfg(perf_mutants)]

mod sim;

use perf_transport::__mutant::set;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Every fault is found within so many seeds.
const SEEDS: u64 = 400;

/// One test, since the switch is the process's.
#[test]
fn each_fault_is_found() {
    for mutant in [
        "ownership_forgets_notification",
        "reply_without_generation",
        "reply_wakes_nobody",
        "cancel_keeps_slot",
        "turn_lost_on_cancel",
        "batch_without_name",
        "queues_stay_open",
        "cancel_overtakes",
        "expiry_untold",
        "names_outlive_connection",
        "pong_without_bound",
        "busy_for_ever",
        "cap_unknown_to_queues",
        "chunk_finds_any_answer",
        "answer_credit_ignored",
        "late_check_cuts",
        "room_taken_from_line",
        "slot_taken_from_line",
        "body_outlives_call",
    ] {
        set(Some(mutant));
        let found = (0..SEEDS).find_map(|seed| {
            let outcome = catch_unwind(AssertUnwindSafe(|| sim::run(seed)));
            match outcome {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some((seed, error)),
                Err(_) => Some((seed, "a panic".to_owned())),
            }
        });
        set(None);
        let (seed, error) = found.unwrap_or_else(|| panic!("{mutant} survives {SEEDS} seeds"));
        println!("{mutant}: seed {seed}: {error}");
    }
    for seed in 0..SEEDS {
        if let Err(error) = sim::run(seed) {
            panic!("without a fault, seed {seed}: {error}");
        }
    }
}
