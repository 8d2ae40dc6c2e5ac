//! State counters against a plain number, and under concurrent change.

use perf_atomics::{AtomicCounters, StateCounter};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Set(u64),
    Add(u64),
    Remove(u64),
}

fn amounts() -> impl Strategy<Value = u64> {
    prop_oneof![0..5u64, any::<u64>(), Just(u64::MAX)]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        amounts().prop_map(Step::Set),
        amounts().prop_map(Step::Add),
        amounts().prop_map(Step::Remove),
    ];
    proptest::collection::vec(step, 0..100)
}

proptest! {
    #[test]
    fn a_counter_agrees_with_saturating_arithmetic(steps in steps()) {
        let counter = StateCounter::new();
        let mut model = 0u64;
        for step in steps {
            match step {
                Step::Set(value) => {
                    counter.set(value);
                    model = value;
                }
                Step::Add(amount) => {
                    prop_assert_eq!(counter.add(amount), model);
                    model = model.saturating_add(amount);
                }
                Step::Remove(amount) => {
                    match counter.remove(amount) {
                        Ok(before) => {
                            prop_assert!(amount <= model);
                            prop_assert_eq!(before, model);
                        }
                        Err(error) => {
                            prop_assert!(amount > model);
                            prop_assert_eq!((error.requested, error.available), (amount, model));
                        }
                    }
                    model = model.saturating_sub(amount);
                }
            }
            prop_assert_eq!(counter.get(), model);
        }
    }
}

#[test]
fn a_decrement_at_zero_stays_there_and_says_so() {
    let counters = AtomicCounters::new();
    let error = counters.decrement_vm_count().unwrap_err();
    assert_eq!(counters.vm_count(), 0);
    let text = error.to_string();
    assert!(
        text.contains("cannot remove 1") && text.contains("holds 0"),
        "{text}"
    );

    counters.add_used_vcpus(3);
    let error = counters.remove_used_vcpus(5).unwrap_err();
    assert_eq!(
        (error.requested, error.available, counters.used_vcpus()),
        (5, 3, 0)
    );
}

#[test]
fn an_addition_stays_at_the_maximum() {
    let counter = StateCounter::new();
    counter.set(u64::MAX - 1);
    assert_eq!(counter.increment(), u64::MAX - 1);
    assert_eq!(counter.increment(), u64::MAX);
    assert_eq!(counter.get(), u64::MAX);
}

#[test]
fn threads_that_add_and_remove_in_pairs_end_where_they_began() {
    let counters = AtomicCounters::new();
    std::thread::scope(|scope| {
        for amount in [1, 2, 3] {
            let counters = &counters;
            scope.spawn(move || {
                for _ in 0..20_000 {
                    counters.add_used_vcpus(amount);
                    // Whatever the others do, what this thread added is there.
                    assert!(counters.remove_used_vcpus(amount).is_ok());
                }
            });
        }
    });
    assert_eq!(counters.used_vcpus(), 0);
}

#[test]
fn every_named_change_goes_to_its_own_counter() {
    let counters = AtomicCounters::new();
    counters.set_vm_count(1);
    counters.set_running_vms(2);
    counters.set_cluster_nodes(3);
    counters.set_total_vcpus(4);
    counters.set_used_vcpus(5);
    counters.set_healthy_nodes(6);
    counters.set_total_memory_mb(7);
    counters.set_used_memory_mb(8);
    counters.set_total_disk_gb(9);
    counters.set_used_disk_gb(10);
    let names = [
        "vm_count",
        "running_vms",
        "cluster_nodes",
        "total_vcpus",
        "used_vcpus",
        "healthy_nodes",
        "total_memory_mb",
        "used_memory_mb",
        "total_disk_gb",
        "used_disk_gb",
    ];
    let expected: Vec<_> = names.into_iter().zip(1..).collect();
    assert_eq!(counters.values().to_vec(), expected);
}
