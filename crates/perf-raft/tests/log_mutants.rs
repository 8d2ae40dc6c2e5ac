//! Deliberate faults of the segment log, each of which its simulation must find.
//!
//! `RUSTFLAGS="--cfg perf_mutants" cargo test -p perf-raft --all-features --release --test log_mutants --target-dir target/mutants`
#![cfg(all(perf_mutants, feature = "testing"))]

mod segment_life;
mod segments;

use std::panic::catch_unwind;
use std::sync::Mutex;

const SEEDS: u64 = 3000;

/// The switch is the process's: one mutant at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Runs seeds until one shows the fault.
fn is_caught(mutant: &'static str) {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    perf_raft::__mutants::set(Some(mutant));
    let found = (0..SEEDS).find_map(|seed| match catch_unwind(|| segment_life::run(seed)) {
        Ok(Ok(_)) => None,
        Ok(Err(violation)) => Some((seed, violation)),
        Err(_) => Some((seed, "a panic".to_owned())),
    });
    perf_raft::__mutants::set(None);
    let (seed, violation) =
        found.unwrap_or_else(|| panic!("{mutant}: not found within {SEEDS} seeds"));
    let violation: String = violation.chars().take(200).collect();
    println!("{mutant}: seed {seed}: {violation}");
}

#[test]
fn a_skipped_fsync_is_found() {
    is_caught("segment_sync_skipped");
}

#[test]
fn a_folder_that_is_not_synced_is_found() {
    is_caught("segment_folder_not_synced");
}

#[test]
fn a_snapshot_whose_name_is_not_synced_is_found() {
    is_caught("snapshot_folder_not_synced");
}

#[test]
fn a_snapshot_that_is_not_synced_is_found() {
    is_caught("snapshot_data_not_synced");
}

#[test]
fn a_header_that_is_not_synced_is_found() {
    is_caught("segment_header_not_synced");
}

#[test]
fn records_of_a_recycled_segment_that_pass_are_found() {
    is_caught("segment_number_not_in_checksum");
}

#[test]
fn a_seal_that_is_not_synced_is_found() {
    is_caught("segment_seal_not_synced");
}

#[test]
fn a_purge_before_the_sync_is_found() {
    is_caught("segment_purged_before_sync");
}

#[test]
fn a_purge_past_a_slow_group_is_found() {
    is_caught("segment_purged_past_a_slow_group");
}

#[test]
fn a_slow_group_that_keeps_everything_is_found() {
    is_caught("segment_nothing_moved");
}

#[test]
fn entries_that_are_moved_over_later_ones_are_found() {
    is_caught("segment_moved_as_appended");
}

#[test]
fn states_that_are_not_moved_are_found() {
    is_caught("segment_state_not_moved");
}

#[test]
fn a_tail_that_is_used_again_is_found() {
    is_caught("segment_old_tail_used_again");
}

#[test]
fn an_end_that_is_not_confirmed_is_found() {
    is_caught("segment_end_not_confirmed");
}

#[test]
fn snapshots_that_go_before_the_sync_are_found() {
    is_caught("snapshot_removed_before_sync");
}

#[test]
fn a_failed_write_that_is_forgotten_is_found() {
    is_caught("segment_error_forgotten");
}
