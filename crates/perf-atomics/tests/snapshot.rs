//! Snapshots: whole, in order, and always usable.

use perf_atomics::{RaftStatus, Role, Snapshot, Word, Words, snapshot_value};
use proptest::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

#[test]
fn readers_see_whole_values_in_order_while_writers_race() {
    const PUBLISHED: u64 = 50_000;
    let snapshot = Snapshot::new([0u64; 8]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::Acquire) {
                    let (version, words) = snapshot.read_versioned();
                    assert!(
                        words.iter().all(|word| *word == words[0]),
                        "torn: {words:?}"
                    );
                    assert_eq!(words[0], version);
                    assert!(words[0] >= last, "{} after {last}", words[0]);
                    last = words[0];
                }
            });
        }
        let writers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..PUBLISHED {
                        snapshot.update(|words| *words = [words[0] + 1; 8]);
                    }
                })
            })
            .collect();
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Release);
    });
    assert_eq!(snapshot.read(), [2 * PUBLISHED; 8]);
    assert_eq!(snapshot.version(), 2 * PUBLISHED);
}

#[test]
fn a_change_that_panics_publishes_nothing() {
    let status = Snapshot::new(RaftStatus {
        term: 4,
        ..RaftStatus::default()
    });
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        status.update(|status| {
            status.term = 5;
            panic!("planned");
        })
    }));
    assert!(outcome.is_err());
    assert_eq!((status.read().term, status.version()), (4, 0));
    status.update(|status| status.term = 6);
    assert_eq!(status.read().term, 6);
}

#[test]
fn a_change_may_use_the_snapshot_it_changes() {
    let snapshot = Snapshot::new(1u64);
    let mut runs = 0;
    let result = snapshot.update(|value| {
        runs += 1;
        if runs == 1 {
            snapshot.publish(10);
        }
        *value += snapshot.read();
    });
    // The first run was overtaken by its own publication; the second saw 10.
    assert_eq!((runs, result, snapshot.read()), (2, 20, 20));
}

snapshot_value! {
    #[derive(Debug, PartialEq)]
    struct Mixed {
        a: u8,
        b: i8,
        c: i64,
        d: bool,
        e: f64,
        f: f32,
        g: usize,
        h: i32,
    }
}

fn role() -> impl Strategy<Value = Role> {
    prop::sample::select(vec![
        Role::Follower,
        Role::PreCandidate,
        Role::Candidate,
        Role::Leader,
        Role::Learner,
    ])
}

proptest! {
    #[test]
    fn values_survive_the_way_through_words(
        a: u8, b: i8, c: i64, d: bool, e in -1e300..1e300f64, f in -1e30..1e30f32, g: usize, h: i32
    ) {
        let value = Mixed { a, b, c, d, e, f, g, h };
        prop_assert_eq!(Mixed::from_words(value.to_words()), value);
        prop_assert_eq!(Snapshot::new(value).read(), value);
    }

    #[test]
    fn a_status_survives_the_way_through_words(role in role(), rest: [u64; 5]) {
        let [term, leader_id, node_id, commit_index, applied_index] = rest;
        let status = RaftStatus { role, term, leader_id, node_id, commit_index, applied_index };
        prop_assert_eq!(Role::from_word(role.to_word()), role);
        let snapshot = Snapshot::new(RaftStatus::default());
        snapshot.publish(status);
        prop_assert_eq!(snapshot.read(), status);
        prop_assert_eq!(status.leader(), (leader_id != 0).then_some(leader_id));
        prop_assert_eq!(status.apply_lag(), commit_index.saturating_sub(applied_index));
    }
}
