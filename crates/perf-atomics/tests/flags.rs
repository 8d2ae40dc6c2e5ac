//! Flag sets against a plain set of booleans.

use perf_atomics::{AtomicFlags, flag_set};
use proptest::prelude::*;

flag_set! {
    struct Sixteen: SixteenSnapshot {
        f0, set0; f1, set1; f2, set2; f3, set3; f4, set4; f5, set5; f6, set6; f7, set7;
        f8, set8; f9, set9; f10, set10; f11, set11; f12, set12; f13, set13; f14, set14; f15, set15;
    }
}

type Get = fn(&Sixteen) -> bool;
type Set = fn(&Sixteen, bool) -> bool;

const ACCESSORS: [(Get, Set); 16] = [
    (Sixteen::f0, Sixteen::set0),
    (Sixteen::f1, Sixteen::set1),
    (Sixteen::f2, Sixteen::set2),
    (Sixteen::f3, Sixteen::set3),
    (Sixteen::f4, Sixteen::set4),
    (Sixteen::f5, Sixteen::set5),
    (Sixteen::f6, Sixteen::set6),
    (Sixteen::f7, Sixteen::set7),
    (Sixteen::f8, Sixteen::set8),
    (Sixteen::f9, Sixteen::set9),
    (Sixteen::f10, Sixteen::set10),
    (Sixteen::f11, Sixteen::set11),
    (Sixteen::f12, Sixteen::set12),
    (Sixteen::f13, Sixteen::set13),
    (Sixteen::f14, Sixteen::set14),
    (Sixteen::f15, Sixteen::set15),
];

proptest! {
    #[test]
    fn a_set_agrees_with_an_array_of_booleans(steps in proptest::collection::vec((0usize..16, any::<bool>()), 0..200)) {
        let flags = Sixteen::new();
        let mut model = [false; 16];
        for (which, value) in steps {
            let before = ACCESSORS[which].1(&flags, value);
            prop_assert_eq!(before, std::mem::replace(&mut model[which], value));
            for (flag, (get, _)) in model.iter().zip(ACCESSORS) {
                prop_assert_eq!(get(&flags), *flag);
            }
        }
    }
}

#[test]
fn concurrent_setters_of_different_flags_do_not_undo_each_other() {
    let flags = AtomicFlags::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..10_000 {
                flags.set_leader(i % 2 == 0);
            }
        });
        scope.spawn(|| {
            for i in 0..10_000 {
                flags.set_connected(i % 2 == 0);
                assert_eq!(flags.is_connected(), i % 2 == 0);
            }
        });
    });
    assert!(!flags.is_leader() && !flags.is_connected() && !flags.is_initialized());
}

#[test]
fn compare_and_set_gives_back_what_is_there() {
    let flags = AtomicFlags::new();
    let empty = flags.snapshot();
    flags.set_leader(true);
    let mut wanted = empty;
    wanted.set_connected(true);
    let seen = flags.compare_and_set(empty, wanted).unwrap_err();
    assert!(seen.is_leader() && !flags.is_connected());
    assert_eq!(flags.compare_and_set(seen, wanted), Ok(()));
    assert_eq!(flags.replace(empty), wanted);
    assert_eq!(flags.snapshot(), empty);
}

#[test]
fn debug_names_every_flag() {
    let flags = AtomicFlags::new();
    flags.set_initialized(true);
    let text = format!("{flags:?}");
    assert_eq!(
        text,
        "AtomicFlags { is_leader: false, is_initialized: true, is_connected: false }"
    );
    assert!(format!("{:?}", flags.snapshot()).starts_with("FlagsSnapshot {"));
}
