//! Membership against a `HashMap`, and under concurrent change.

use perf_atomics::{Membership, MembershipReader};
use proptest::prelude::*;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

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
