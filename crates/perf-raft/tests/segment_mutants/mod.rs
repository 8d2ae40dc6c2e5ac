//! Deliberate faults of the segment log, each of which its simulation must find.

use crate::{is_caught_within, read_beside, segment_life};

const SEEDS: u64 = 3000;

fn is_caught(mutant: &'static str) {
    is_caught_within(SEEDS, mutant, segment_life::run);
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
fn a_group_that_is_removed_and_comes_back_is_found() {
    is_caught("segment_removal_forgotten");
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

#[test]
fn a_purge_that_a_reader_takes_for_damage_is_found() {
    is_caught_within(100, "segment_purge_is_damage", read_beside::run);
}

#[test]
fn a_place_that_readers_see_before_its_record_is_written_is_found() {
    is_caught_within(100, "segment_index_before_record", read_beside::run);
}
