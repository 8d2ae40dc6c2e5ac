//! Faults of the shell that its tests must find. Each test runs in a process of its own, with one fault on; the tests
//! themselves run here, too, with none, but for those that measure memory.
#![cfg(perf_mutants)]
#![allow(
    clippy::duplicate_mod,
    dead_code,
    unused_imports,
    reason = "each module has what it needs, and some of its tests are asked for"
)]

/// Rooms of the crate whose rules no message shows: their own tests are asked.
#[path = "../src/shell/handshakes.rs"]
mod handshakes;
#[path = "../src/lookup.rs"]
mod lookup;
mod primitive {
    pub(crate) use perf_transport::__mutant as mutant;
}

#[path = "fairness.rs"]
mod fairness;
#[path = "hostile.rs"]
mod hostile;
#[path = "memory.rs"]
mod memory;
#[path = "peers.rs"]
mod peers;
#[path = "security.rs"]
mod security;
#[path = "strangers.rs"]
mod strangers;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A test that hangs for so long has found its fault. Those of one process end by themselves before that.
const PATIENCE: Duration = Duration::from_secs(120);
/// Processes at once.
const PROCESSES_MAX: usize = 8;

/// Each fault, and the test that must find it.
const FAULTS: &[(&str, &str)] = &[
    (
        "sources_uncounted",
        "handshakes::tests::the_oldest_silent_one_of_the_busiest_source_makes_room",
    ),
    (
        "known_sources_have_no_claim",
        "handshakes::tests::those_that_speak_stay_until_they_have_taken_too_long",
    ),
    (
        "known_sources_forgotten",
        "strangers::a_flood_of_strangers_that_begin_to_speak_keeps_no_known_node_out",
    ),
    (
        "strangers_wait_as_known_ones",
        "handshakes::tests::few_strangers_wait_and_all_known_ones",
    ),
    ("hook_not_asked", "strangers::a_hook_decides_who_gets_in"),
    (
        "hook_holds_place",
        "strangers::a_slow_hook_lets_many_nodes_in",
    ),
    (
        "node_without_bound",
        "strangers::one_node_cannot_have_all_connections",
    ),
    (
        "removed_peer_stays",
        "strangers::a_peer_that_is_removed_during_its_handshake_does_not_stay",
    ),
    (
        "handlers_outlive_task",
        "strangers::no_handler_outlives_a_connection_whose_task_panics",
    ),
    (
        "method_without_limit",
        "fairness::calls_of_one_method_that_hang_leave_room_for_the_others",
    ),
    (
        "limit_of_each_number",
        "hostile::a_method_has_its_limit_once_whatever_numbers_a_peer_gives_it",
    ),
    (
        "streams_without_bound",
        "hostile::streams_beyond_the_bound_are_refused_and_the_connection_goes_on",
    ),
    (
        "id_used_twice_runs_on",
        "hostile::an_id_that_is_used_twice_leaves_no_handler_behind",
    ),
    (
        "credit_without_bound",
        "hostile::a_peer_that_sends_answers_and_reads_no_credit_is_cut_off",
    ),
    (
        "backlog_seen_between_reads",
        "memory::many_calls_with_large_inline_replies_stay_within_the_backlog",
    ),
    (
        "complete_bodies_uncounted",
        "memory::complete_bodies_that_nobody_reads_stay_within_the_budget",
    ),
    (
        "idle_keeps_buffers",
        "memory::connections_that_were_busy_and_are_idle_hold_little",
    ),
    (
        "expiry_ends_nothing",
        "security::a_connection_ends_with_its_certificate_if_that_is_wanted",
    ),
    (
        "replaced_identity_unseen",
        "security::a_handshake_under_way_is_held_against_a_new_identity",
    ),
    (
        "look_up_for_each_dial",
        "lookup::tests::names_that_are_not_found_block_few_threads",
    ),
    (
        "dial_outlives_want",
        "peers::a_dial_that_is_not_wanted_any_more_is_given_up",
    ),
];

struct Asked {
    fault: &'static str,
    test: &'static str,
    child: Child,
    began: Instant,
}

impl Asked {
    fn new(&(fault, test): &(&'static str, &'static str)) -> Self {
        let program = std::env::current_exe().expect("this test");
        let child = Command::new(program)
            .args(["--exact", test, "--include-ignored"])
            .env("PERF_MUTANT", fault)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self {
            fault,
            test,
            child: child.expect("this test starts"),
            began: Instant::now(),
        }
    }

    /// Whether the fault was found; `None` while the test runs.
    fn outcome(&mut self) -> Option<bool> {
        if let Some(status) = self.child.try_wait().expect("a child") {
            // 101: a test has failed. Anything else says nothing of the fault.
            return Some(status.code() == Some(101));
        }
        if self.began.elapsed() < PATIENCE {
            return None;
        }
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
        Some(true)
    }
}

/// Tests of one process do not wait for each other, and most of a test that finds a fault is waiting.
#[test]
fn each_fault_of_the_shell_is_found() {
    if std::env::var_os("PERF_MUTANT").is_some() {
        return;
    }
    let mut rest = FAULTS.iter();
    let mut asked: Vec<Asked> = Vec::new();
    let mut survivors = Vec::new();
    loop {
        while asked.len() < PROCESSES_MAX
            && let Some(fault) = rest.next()
        {
            asked.push(Asked::new(fault));
        }
        if asked.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        asked.retain_mut(|asked| {
            let outcome = asked.outcome();
            if let Some(is_found) = outcome {
                let Asked { fault, test, .. } = asked;
                println!(
                    "{fault}: {} by {test}",
                    if is_found { "found" } else { "NOT found" }
                );
                if !is_found {
                    survivors.push(format!("{fault} survives {test}"));
                }
            }
            outcome.is_none()
        });
    }
    assert!(survivors.is_empty(), "{survivors:?}");
}
