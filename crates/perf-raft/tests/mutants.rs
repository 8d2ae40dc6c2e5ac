//! Deliberate faults of the core and of the way to the log, each of which the simulation must find within 200 seeds, three within 600, and a rare
//! path made common, in which it must find nothing.
//!
//! `RUSTFLAGS="--cfg perf_mutants" cargo test -p perf-raft --all-features --release --test mutants --target-dir target/mutants`
#![cfg(perf_mutants)]

mod hosts;
#[path = "world/random.rs"]
mod random;

#[cfg(feature = "testing")]
mod read_beside;
mod refused_change;
#[cfg(feature = "testing")]
mod segment_life;
#[cfg(feature = "testing")]
mod segment_mutants;
#[cfg(feature = "testing")]
mod segments;
mod sleeping_follower;
mod small_scope;
mod world;

use std::ops::Range;
use std::panic::catch_unwind;
use std::sync::Mutex;

const SEEDS: u64 = 200;
/// For what needs a log that is overwritten while it is read, or an operator who empties more than half of the first disks.
const RARE_SEEDS: u64 = 600;

/// `PERF_MUTANT_SEEDS` takes its place, to see how far a fault is.
fn seeds() -> u64 {
    let chosen = std::env::var("PERF_MUTANT_SEEDS").ok();
    chosen.and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS)
}

/// The switch is the process's: one mutant at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Runs seeds until one shows the fault. A panic of raft-rs over what the fault led to shows it too.
fn is_caught(mutant: &'static str) {
    is_caught_within(seeds(), mutant, world::run);
}

/// Of the world of hosts with many groups.
fn is_caught_among_hosts(mutant: &'static str) {
    is_caught_within(seeds(), mutant, |seed| hosts::run(seed, 60));
}

fn is_caught_within<T>(seeds: u64, mutant: &'static str, run: fn(u64) -> Result<T, String>) {
    is_caught_among(0..seeds, mutant, run);
}

/// A rare one: the seeds before these do not show it, and would take long.
fn is_caught_late(first: u64, mutant: &'static str) {
    is_caught_among(first..RARE_SEEDS, mutant, world::run);
}

fn is_caught_among<T>(
    mut seeds: Range<u64>,
    mutant: &'static str,
    run: fn(u64) -> Result<T, String>,
) {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    perf_raft::__mutants::set(Some(mutant));
    let tried = seeds.clone();
    let found = seeds.find_map(|seed| match catch_unwind(|| run(seed)) {
        Ok(Ok(_)) => None,
        Ok(Err(violation)) => Some((seed, violation)),
        Err(_) => Some((seed, "a panic".to_owned())),
    });
    perf_raft::__mutants::set(None);
    let (seed, violation) =
        found.unwrap_or_else(|| panic!("{mutant}: not found by seeds {tried:?}"));
    let violation: String = violation.chars().take(300).collect();
    println!("{mutant}: seed {seed}: {violation}");
}

#[test]
fn an_answer_before_the_disk_is_found() {
    is_caught("ack_before_persist");
}

#[test]
fn answers_to_other_commands_of_an_entry_are_found() {
    is_caught("pack_out_of_order");
}

#[test]
fn a_skipped_fsync_is_found() {
    is_caught("fsync_skipped");
}

#[test]
fn reordered_log_jobs_are_found() {
    is_caught("log_jobs_reordered");
}

#[test]
fn a_lease_without_a_quorum_is_found() {
    is_caught("lease_without_quorum");
}

#[test]
fn deduplication_by_content_is_found() {
    is_caught("dedup_by_content");
}

#[test]
fn a_snapshot_recorded_before_its_data_is_durable_is_found() {
    is_caught("snapshot_before_data");
}

#[test]
fn a_part_of_a_snapshot_that_is_taken_twice_is_found() {
    is_caught("chunk_taken_twice");
}

#[test]
fn a_snapshot_that_is_restored_before_its_data_is_durable_is_found() {
    is_caught("snapshot_data_not_synced");
}

#[test]
fn a_durable_machine_that_says_too_much_is_found() {
    is_caught("durable_machine_says_more");
}

#[test]
fn a_commit_that_is_not_kept_for_the_next_write_is_found() {
    is_caught("commit_forgotten");
}

#[test]
fn a_log_that_is_cut_above_what_raft_has_applied_is_found() {
    is_caught("compact_above_applied");
}

#[test]
fn a_log_that_is_not_kept_for_a_peer_that_gets_a_snapshot_is_found() {
    is_caught("log_not_kept");
}

#[test]
fn a_fetch_with_entries_of_an_older_term_is_found() {
    is_caught_late(400, "stale_fetch");
}

#[test]
fn a_campaign_before_entries_are_in_memory_is_found() {
    is_caught("replay_ignored");
}

#[test]
fn a_late_word_to_campaign_that_is_obeyed_is_found() {
    is_caught("late_word_counts");
}

#[test]
fn an_answer_to_an_earlier_round_that_gives_a_lease_back_is_found() {
    is_caught("early_answer_counts");
}

#[test]
fn a_heartbeat_of_a_former_leader_that_counts_is_found() {
    is_caught("former_heartbeat_counts");
}

#[test]
fn frames_of_a_group_with_other_founders_that_count_are_found() {
    is_caught("foreign_counts");
}

#[test]
fn a_read_before_the_group_is_formed_is_found() {
    is_caught("read_before_formed");
}

#[test]
fn an_entry_that_is_too_long_for_a_peer_and_never_arrives_is_found() {
    is_caught("parts_lost");
}

#[test]
fn a_full_log_that_takes_nothing_is_found() {
    is_caught_late(200, "full_log_takes_nothing");
}

#[test]
fn a_node_with_committed_entries_of_its_own_that_stays_so_is_found() {
    is_caught_late(300, "forked_stays_forked");
}

#[test]
fn an_empty_snapshot_that_is_refused_for_ever_is_found() {
    is_caught("empty_stream_is_damaged");
}

#[test]
fn a_learner_that_never_learns_that_it_was_removed_is_found() {
    is_caught("removed_learner_is_not_told");
}

#[test]
fn a_removed_node_that_knows_none_of_those_that_lead_is_found() {
    let run = |_| sleeping_follower::a_removed_node_is_told();
    is_caught_within(1, "leader_alone_tells", run);
}

#[test]
fn a_start_on_the_log_of_another_node_is_found() {
    is_caught("log_of_another_node");
}

#[test]
fn a_start_on_the_log_of_another_group_is_found() {
    is_caught("log_of_another_group");
}

#[test]
fn a_late_rejection_that_takes_a_peer_back_is_found() {
    is_caught("late_rejection");
}

#[test]
fn a_session_that_two_starts_share_is_found() {
    is_caught("session_of_seed");
}

#[test]
fn a_lease_that_held_before_the_read_was_asked_for_is_found() {
    is_caught("lease_of_an_earlier_time");
}

#[test]
fn votes_of_a_node_that_lost_its_disk_are_found() {
    is_caught("old_incarnation_counts");
}

#[test]
fn a_group_that_is_formed_by_a_quorum_alone_is_found() {
    is_caught("formed_by_a_quorum");
}

#[test]
fn a_sleeper_that_misses_the_death_of_a_host_is_found() {
    is_caught_among_hosts("sleeper_misses_a_death");
}

#[test]
fn a_sleeper_that_misses_a_message_is_found() {
    is_caught_among_hosts("sleeper_misses_a_message");
}

#[test]
fn a_sleeper_that_relies_on_a_run_that_is_over_is_found() {
    let run = |_| sleeping_follower::an_outdated_note_is_refused();
    is_caught_within(1, "sleep_relies_on_the_past", run);
}

#[test]
fn a_sleeper_that_relies_on_a_group_that_has_stopped_is_found() {
    is_caught_among_hosts("stopped_group_is_relied_on");
}

#[test]
fn a_refused_change_that_counts_as_pending_is_found() {
    let run = |_| refused_change::is_made_later();
    is_caught_within(1, "refused_change_is_pending", run);
}

#[test]
fn a_lease_that_ends_with_the_sleep_of_a_follower_is_found() {
    is_caught_within(1, "lease_ends_with_the_sleep", |_| {
        sleeping_follower::promise_holds()
    });
}

/// The search of all short histories has to find something, too.
#[test]
fn an_answer_before_the_disk_is_found_by_the_search_of_all_short_histories() {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    perf_raft::__mutants::set(Some("ack_before_persist"));
    let outcome = small_scope::search(small_scope::Scope {
        nodes: 3,
        commands: 1,
        crashes: 1,
        elections: 1,
        snapshots: 0,
        changes: 0,
        depth: 9,
        states_max: 100_000,
    });
    perf_raft::__mutants::set(None);
    let violation = outcome.expect_err("a write is lost");
    println!("ack_before_persist: {violation}");
}

/// No fault: appends of more than two entries are sent as several, as long ones are in production. The group must not notice.
#[test]
fn appends_in_parts_are_as_good_as_whole_ones() {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    perf_raft::__mutants::set(Some("short_appends"));
    let run = |seed| world::run_at_pace(seed, true).err();
    let violation = (0..SEEDS).find_map(|seed| run(seed).map(|error| (seed, error)));
    perf_raft::__mutants::set(None);
    assert_eq!(violation, None);
}
