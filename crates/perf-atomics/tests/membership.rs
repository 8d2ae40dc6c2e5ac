//! Membership against a `HashMap`, and under concurrent change.

use perf_atomics::{Membership, MembershipReader};
use proptest::prelude::*;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(u8, u32),
    Remove(u8),
    Clear,
}

proptest! {
    #[test]
    fn agrees_with_a_hash_map(steps in proptest::collection::vec(
        prop_oneof![
            4 => (0u8..20, any::<u32>()).prop_map(|(k, v)| Step::Insert(k, v)),
            3 => (0u8..20).prop_map(Step::Remove),
            1 => Just(Step::Clear),
        ], 0..100))
    {
        let members = Membership::<u8, u32>::new();
        let mut reader = members.reader();
        let mut model = HashMap::new();
        let mut generation = 0;
        for step in steps {
            match step {
                Step::Insert(k, v) => {
                    prop_assert_eq!(members.insert(k, v), model.insert(k, v));
                    generation += 1;
                }
                Step::Remove(k) => {
                    let removed = model.remove(&k);
                    prop_assert_eq!(members.remove(&k), removed);
                    generation += u64::from(removed.is_some());
                }
                Step::Clear => {
                    members.update(|members| members.clear());
                    model.clear();
                    generation += 1;
                }
            }
            prop_assert_eq!(members.len(), model.len());
            prop_assert_eq!(members.is_empty(), model.is_empty());
            prop_assert_eq!(members.generation(), generation);
            prop_assert_eq!(reader.view().generation(), generation);
            for k in 0..20 {
                prop_assert_eq!(members.get(&k), model.get(&k).copied());
                prop_assert_eq!(members.contains(&k), model.contains_key(&k));
                prop_assert_eq!(reader.get(&k), model.get(&k));
                prop_assert_eq!(reader.contains(&k), model.contains_key(&k));
            }
        }
    }
}

#[test]
fn concurrent_changes_are_all_kept_and_readers_see_whole_views() {
    const EACH: u64 = 300;
    let members: Arc<Membership<u64, u64>> = Arc::default();
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let members = Arc::clone(&members);
            thread::spawn(move || {
                for i in 0..EACH {
                    let key = writer * EACH + i;
                    assert_eq!(members.insert(key, key), None);
                    assert_eq!(
                        members.get(&key),
                        Some(key),
                        "own change, after its call returned"
                    );
                }
            })
        })
        .collect();
    let mut reader = MembershipReader::new(Arc::clone(&members));
    let mut last = 0;
    while last < 3 * EACH {
        let view = reader.view();
        // Nothing is ever removed here, so length and generation are the same number.
        assert_eq!(view.len() as u64, view.generation());
        assert!(view.generation() >= last);
        last = view.generation();
        assert!(members.generation() <= 3 * EACH);
    }
    writers
        .into_iter()
        .for_each(|writer| writer.join().unwrap());
    assert_eq!(
        (members.len() as u64, members.generation()),
        (3 * EACH, 3 * EACH)
    );
}

#[test]
fn a_change_that_panics_changes_nothing() {
    let members: Membership<u64, u64> = Membership::new();
    members.insert(1, 1);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        members.update(|members| {
            members.clear();
            panic!("planned");
        })
    }));
    assert!(outcome.is_err());
    assert_eq!((members.get(&1), members.generation()), (Some(1), 1));
    members.insert(2, 2);
    assert_eq!(members.len(), 2);
}

#[test]
fn keys_are_looked_up_by_what_they_lend() {
    let members: Membership<String, u8> = Membership::new();
    members.insert("a".to_owned(), 1);
    assert_eq!(members.reader().get("a"), Some(&1));
    assert_eq!((members.get("a"), members.contains("b")), (Some(1), false));
    assert_eq!(members.try_update(|_| None::<()>), None);
    assert_eq!(members.generation(), 1);
}

#[test]
fn a_long_change_ends_beside_quick_ones() {
    let members: Membership<u64, u64> = Membership::new();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !is_over.load(Ordering::Relaxed) {
                members.insert(0, round);
                round += 1;
            }
        });
        // It takes until it has lost, or less than others wait for it.
        let mut runs = 0;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            members.update(|changed| {
                runs += 1;
                assert!(runs < 1000, "the others do not wait");
                let (before, begin) = (members.view().generation(), Instant::now());
                while members.view().generation() == before
                    && begin.elapsed() < Duration::from_millis(40)
                {
                    thread::yield_now();
                }
                changed.insert(1, 1);
            })
        }));
        is_over.store(true, Ordering::Relaxed);
        assert!(outcome.is_ok(), "{runs} runs");
    });
    assert_eq!(members.get(&1), Some(1));
}

#[test]
fn a_change_may_wait_for_the_change_of_another_thread() {
    let members: Membership<u64, u64> = Membership::new();
    let mut runs = 0;
    thread::scope(|scope| {
        members.update(|changed| {
            runs += 1;
            // Loses ten times to a change that another thread makes meanwhile, with and without the turn.
            if runs <= 10 {
                let members = &members;
                let other = scope.spawn(move || members.insert(2, 2));
                other.join().expect("no panics");
            }
            changed.insert(1, runs);
        });
    });
    assert_eq!(
        (runs, members.get(&1), members.get(&2)),
        (11, Some(11), Some(2))
    );
}

#[test]
fn no_members_equal_keys_and_a_hundred_thousand() {
    let none = Membership::<u64, u64>::from_map([]);
    assert!(none.is_empty() && none.reader().get(&1).is_none());
    assert_eq!((none.remove(&1), none.generation()), (None, 0));

    let twice = Membership::<u64, u64>::from_map([(1, 1), (2, 2), (1, 3)]);
    assert_eq!((twice.len(), twice.get(&1)), (2, Some(3)));

    const MANY: u64 = 100_000;
    let many = Membership::<u64, u64>::from_map((0..MANY).map(|key| (key, key)));
    let mut reader = many.reader();
    for key in 0..1000 {
        assert_eq!(many.insert(MANY + key, key), None);
        assert_eq!(many.remove(&(key * 100)), Some(key * 100));
        assert_eq!((reader.get(&(key * 100)), many.len() as u64), (None, MANY));
    }
    assert_eq!(many.generation(), 2000);
    let view = many.view();
    assert_eq!(view.keys().count() as u64, MANY);
    assert!((0..MANY + 1000).all(|key| view.contains_key(&key) == (key >= MANY || key % 100 != 0)));
}

#[test]
fn many_changes_at_once_are_one_generation() {
    let members: Membership<u64, u64> = Membership::from_map((0..1000).map(|key| (key, key)));
    let before = members.view();
    let replaced = members.update(|members| {
        members.extend((500..1500).map(|key| (key, 0)));
        members.retain(|key, _| key % 2 == 0);
        members.len()
    });
    assert_eq!(
        (replaced, members.len(), members.generation()),
        (750, 750, 1)
    );
    assert_eq!((members.get(&600), members.get(&601)), (Some(0), None));
    assert_eq!((before.len(), before.get(&601)), (1000, Some(&601)));
}
