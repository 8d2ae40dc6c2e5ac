//! What others offer for the same work, each in its usual configuration.

use std::cell::Cell;
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use crossbeam_utils::atomic::AtomicCell;
use dashmap::DashMap;
use parking_lot::RwLock;
use perf_atomics::{DefaultHasher, RaftStatus};

use super::{found, ids, members, shared, status, use_status};
use crate::case::{Path, path, summed};
use crate::team::pair;

pub(super) fn flag_read() -> Vec<Path> {
    vec![
        path("parking_lot", || {
            let flag = shared(RwLock::new(true));
            summed(move || u64::from(*flag.read()))
        }),
        path("AtomicBool", || {
            let flag = shared(AtomicBool::new(true));
            summed(move || u64::from(flag.load(Ordering::Acquire)))
        }),
        path("AtomicCell", || {
            let flag = shared(AtomicCell::new(true));
            summed(move || u64::from(flag.load()))
        }),
        path("arc-swap", || {
            let flag = shared(ArcSwap::from_pointee(true));
            summed(move || u64::from(**flag.load()))
        }),
    ]
}

/// The same operations for one thread ([`summed`]) and for two ([`pair`]).
macro_rules! alone_and_pair {
    ($alone:ident, $pair:ident, [$($name:literal => $make:expr),+ $(,)?]) => {
        pub(super) fn $alone() -> Vec<Path> {
            vec![$(path($name, || summed(($make)()())),)+]
        }

        pub(super) fn $pair() -> Vec<Path> {
            vec![$(path($name, || pair(($make)())),)+]
        }
    };
}

alone_and_pair!(status_alone, status_pair, [
    "parking_lot" => || {
        let status = shared(RwLock::new(status()));
        move || move || use_status(&status.read())
    },
    "arc-swap" => || {
        let status = shared(ArcSwap::from_pointee(status()));
        move || move || use_status(&status.load())
    },
    "AtomicCell" => || {
        let status: &AtomicCell<RaftStatus> = shared(AtomicCell::new(status()));
        move || move || use_status(&status.load())
    },
]);

alone_and_pair!(counter_alone, counter_pair, [
    "fetch_add" => || {
        let counter = shared(AtomicU64::new(0));
        move || move || counter.fetch_add(1, Ordering::Relaxed)
    },
    "parking_lot" => || {
        let counter = shared(parking_lot::Mutex::new(0_u64));
        move || move || {
            *counter.lock() += 1;
            0
        }
    },
    // The floor: what one thread alone pays for a number in memory, without an atomic type.
    "a plain u64" => || {
        || {
            let counter = black_box(Box::new(Cell::new(0_u64)));
            move || {
                counter.set(black_box(&counter).get() + 1);
                0
            }
        }
    },
]);

pub(super) fn counter_state() -> Vec<Path> {
    vec![path("fetch_add and fetch_sub, wrapping", || {
        let used = shared(AtomicU64::new(0));
        summed(move || {
            used.fetch_add(black_box(4), Ordering::AcqRel);
            used.fetch_sub(black_box(4), Ordering::AcqRel)
        })
    })]
}

alone_and_pair!(member_alone, member_pair, [
    "parking_lot" => || {
        let map: &RwLock<HashMap<u64, String>> = shared(RwLock::new(members()));
        move || {
            let mut id = ids();
            move || found(map.read().get(&id()))
        }
    },
    "parking_lot, our hasher" => || {
        let map: &RwLock<HashMap<u64, String, DefaultHasher>> = shared(RwLock::new(members()));
        move || {
            let mut id = ids();
            move || found(map.read().get(&id()))
        }
    },
    "arc-swap" => || {
        let map: &ArcSwap<HashMap<u64, String>> = shared(ArcSwap::from_pointee(members()));
        move || {
            let mut id = ids();
            move || found(map.load().get(&id()))
        }
    },
    "dashmap" => || {
        let map: &DashMap<u64, String> = shared(members());
        move || {
            let mut id = ids();
            move || found(map.get(&id()).as_deref())
        }
    },
    "papaya" => || {
        let map: &papaya::HashMap<u64, String> = shared(members());
        move || {
            let mut id = ids();
            move || found(map.pin().get(&id()))
        }
    },
    "HashMap without a lock" => || {
        let map: &HashMap<u64, String, DefaultHasher> = shared(members());
        move || {
            let mut id = ids();
            move || found(map.get(&id()))
        }
    },
]);
