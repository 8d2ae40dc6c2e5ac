//! Every interleaving of small models, and mutants that the models must catch.
//!
//! Run by `cargo xtask test`, or by hand:
//! `RUSTFLAGS="--cfg perf_loom" cargo test -p perf-atomics --release --test loom --target-dir target/loom`
#![cfg(perf_loom)]

use loom::sync::Arc;
use loom::thread;
use perf_atomics::{__loom, Membership, MembershipReader, Snapshot, slab};
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Mutants are chosen for the whole process, so models run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All interleavings of a model.
const ALL: Option<usize> = None;
/// Those with at most three forced switches between threads, for a model too large to exhaust. Few
/// switches find most faults: "Iterative Context Bounding", Musuvathi and Qadeer, PLDI 2007.
const THREE_SWITCHES: Option<usize> = Some(3);

fn check(switches_max: Option<usize>, model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = switches_max;
    builder.check(model);
}

fn assert_holds(switches_max: Option<usize>, model: fn()) {
    let _alone = alone();
    __loom::set_mutant(None);
    check(switches_max, model);
}

fn assert_caught(mutant: &'static str, model: fn()) {
    let _alone = alone();
    __loom::set_mutant(Some(mutant));
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| check(THREE_SWITCHES, model)));
    __loom::set_mutant(None);
    assert!(
        outcome.is_err(),
        "no interleaving shows what the mutant {mutant} breaks"
    );
}

/// A reader meets a writer that overtakes it.
fn snapshot_is_whole() {
    let snapshot = Arc::new(Snapshot::new([0u64, 0]));
    let writer = {
        let snapshot = Arc::clone(&snapshot);
        thread::spawn(move || {
            snapshot.publish([1, 1]);
            snapshot.publish([2, 2]);
        })
    };
    let (version, [a, b]) = snapshot.read_versioned();
    assert_eq!(a, b, "half of one value and half of another");
    assert_eq!(a, version);
    let later = snapshot.read()[0];
    assert!(later >= a, "an older value after a newer one");
    writer.join().unwrap();
    assert_eq!(snapshot.read(), [2, 2]);
}

#[test]
fn a_snapshot_is_read_whole_and_in_order() {
    assert_holds(THREE_SWITCHES, snapshot_is_whole);
}

#[test]
fn a_snapshot_without_the_release_fence_is_caught() {
    assert_caught("snapshot_no_release_fence", snapshot_is_whole);
}

#[test]
fn a_snapshot_without_the_acquire_fence_is_caught() {
    assert_caught("snapshot_no_acquire_fence", snapshot_is_whole);
}

#[test]
fn a_snapshot_whose_back_is_ahead_of_a_front_that_looks_whole_is_caught() {
    assert_caught("snapshot_front_begun_late", snapshot_is_whole);
}

#[test]
fn concurrent_updates_of_a_snapshot_are_all_kept() {
    assert_holds(THREE_SWITCHES, || {
        let snapshot = Arc::new(Snapshot::new([0u64]));
        let other = {
            let snapshot = Arc::clone(&snapshot);
            thread::spawn(move || snapshot.update(|[n]| *n += 1))
        };
        snapshot.update(|[n]| *n += 1);
        other.join().unwrap();
        assert_eq!(snapshot.read(), [2]);
        assert_eq!(snapshot.version(), 2);
    });
}

/// Two threads record at once, after a third one has left its chunk behind, while a reader sums.
fn slab_is_exact() {
    let cells = Arc::new(slab::reserve(1).unwrap());
    let record = |times: u64| {
        let cells = Arc::clone(&cells);
        thread::spawn(move || (0..times).for_each(|_| cells.add(0, 1)))
    };
    record(1).join().unwrap();
    assert_eq!(cells.sum(0), 1);
    let (left, right) = (record(1), record(1));
    let (early, late) = (cells.sum(0), cells.sum(0));
    assert!(
        1 <= early && early <= late && late <= 3,
        "{early} then {late}"
    );
    left.join().unwrap();
    right.join().unwrap();
    assert_eq!(cells.sum(0), 3);
}

#[test]
fn slab_sums_are_exact_and_never_go_back() {
    assert_holds(THREE_SWITCHES, slab_is_exact);
}

#[test]
fn a_slab_that_leases_one_chunk_to_two_threads_is_caught() {
    assert_caught("slab_lease_keeps_chunk_free", slab_is_exact);
}

#[test]
fn a_thread_that_outgrows_its_chunk_loses_nothing() {
    assert_holds(ALL, || {
        let first = Arc::new(slab::reserve(1).unwrap());
        let other = {
            let first = Arc::clone(&first);
            thread::spawn(move || {
                first.add(0, 1);
                let second = slab::reserve(3).unwrap();
                second.add(2, 5);
                first.add(0, 1);
                assert_eq!(second.sum(2), 5);
            })
        };
        let (early, late) = (first.sum(0), first.sum(0));
        assert!(early <= late && late <= 2, "{early} then {late}");
        other.join().unwrap();
        assert_eq!(first.sum(0), 2);
        // The second range was given back: whoever gets its cells finds them empty.
        let again = slab::reserve(3).unwrap();
        assert_eq!([again.sum(0), again.sum(1), again.sum(2)], [0; 3]);
    });
}

/// Two writers at once; each finds its own change when its call returns.
fn membership_keeps_all() {
    let members: Arc<Membership<u64, u64>> = Arc::new(Membership::new());
    let other = {
        let members = Arc::clone(&members);
        thread::spawn(move || {
            members.insert(1, 10);
            assert!(members.contains(&1));
            assert!(members.generation() >= 1);
        })
    };
    let mut reader = MembershipReader::new(&*members);
    members.insert(2, 20);
    assert_eq!(reader.get(&2), Some(&20));
    other.join().unwrap();
    assert_eq!(reader.get(&1), Some(&10));
    assert_eq!((members.len(), members.generation()), (2, 2));
}

#[test]
fn concurrent_changes_of_a_membership_are_all_kept() {
    assert_holds(ALL, membership_keeps_all);
}

#[test]
fn a_membership_that_swaps_blindly_is_caught() {
    assert_caught("membership_blind_swap", membership_keeps_all);
}

#[test]
fn a_membership_whose_stamp_can_go_back_is_caught() {
    assert_caught("membership_stamp_by_store", membership_keeps_all);
}

/// One thread raises a maximum while another takes it away, twice.
fn maximum_is_taken_once() {
    let cells = Arc::new(slab::reserve(1).unwrap());
    let other = {
        let cells = Arc::clone(&cells);
        thread::spawn(move || {
            for value in [3, 5] {
                cells.record(|own| own.raise_until_taken(0, value));
            }
        })
    };
    let first = cells.take_max(0);
    other.join().unwrap();
    let second = cells.take_max(0);
    assert_eq!(first.max(second), 5, "the largest value was lost");
    assert!(first != second, "{first} was taken twice");
    assert_eq!(cells.take_max(0), 0);
}

#[test]
fn a_maximum_is_taken_once_and_never_lost() {
    assert_holds(ALL, maximum_is_taken_once);
}

#[test]
fn a_maximum_that_is_taken_by_load_and_store_is_caught() {
    assert_caught("slab_take_by_store", maximum_is_taken_once);
}

/// Of wide cells one thread has a copy in a model; it and two others record at once, while a reader sums, which has none.
fn wide_cells_are_exact() {
    let cells = Arc::new(slab::reserve_wide(2).unwrap());
    let record = |amount: u64| {
        let cells = Arc::clone(&cells);
        thread::spawn(move || {
            cells.record(|own| {
                own.raise_until_taken(0, amount);
                own.add(1, amount);
            });
        })
    };
    let recorders = [record(1), record(2), record(4)];
    let taken = cells.take_max(0);
    for recorder in recorders {
        recorder.join().unwrap();
    }
    assert_eq!(cells.sum(1), 7, "a shared copy lost something");
    assert_eq!(
        cells.take_max(0).max(taken),
        4,
        "the largest value was lost"
    );
}

#[test]
fn wide_cells_that_threads_share_are_exact() {
    assert_holds(THREE_SWITCHES, wide_cells_are_exact);
}

#[test]
fn shared_cells_that_are_changed_by_load_and_store_are_caught() {
    assert_caught("slab_shared_by_store", wide_cells_are_exact);
}
