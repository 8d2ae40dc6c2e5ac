//! Cases of `perf-atomics`: what a node asks itself, and counts, all the time.

use std::collections::HashMap;
use std::future::Future;
use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use perf_atomics::clock::{CoarseClock, LAG_MAX, RESOLUTION, Updater};
use perf_atomics::{
    AtomicFlags, Membership, MembershipReader, OwnedCounter, RaftStatus, Role, Snapshot,
    StateCounter,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::RwLock;

use super::{case, shared};
use crate::case::{Case, Goal, Run, summed};
use crate::team::{Apart, Member, Team, pair};

#[cfg(feature = "peers")]
mod peers;
mod stalled;

/// Entries in the table of peers.
const PEERS: u64 = 8;

/// The cases of `perf-atomics`.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = vec![flag_read()];
    cases.extend(status_snapshot());
    cases.push(stalled::status_snapshot());
    cases.extend(counter_owned());
    cases.push(counter_state());
    cases.extend(membership_get());
    cases.extend(membership_insert());
    cases.push(clock_now());
    cases
}

no_peers!(flag_read status_alone status_pair counter_alone counter_pair counter_state member_alone member_pair);

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .build()
        .expect("a runtime without drivers needs nothing from the system")
}

/// An asynchronous read on one thread; the runtime is entered once per batch.
fn summed_async<F: Future<Output = u64>>(mut read: impl FnMut() -> F + 'static) -> Run {
    let runtime = runtime();
    Box::new(move |iters| {
        let start = Instant::now();
        runtime.block_on(sum_of(iters, &mut read));
        start.elapsed()
    })
}

/// An asynchronous read on two threads at once.
fn pair_async<R, F>(make: impl Fn() -> R) -> Run
where
    R: FnMut() -> F + Send + 'static,
    F: Future<Output = u64>,
{
    let member = |_| -> Member {
        let (runtime, mut own) = (runtime(), Apart(make()));
        Box::new(move |iters| {
            let Apart(read) = &mut own;
            runtime.block_on(sum_of(iters, read));
        })
    };
    Team::sharing((0..2).map(member).collect()).into_run()
}

async fn sum_of<F: Future<Output = u64>>(iters: u64, read: &mut impl FnMut() -> F) {
    let mut sum = 0_u64;
    for _ in 0..iters {
        sum = sum.wrapping_add(read().await);
    }
    black_box(sum);
}

fn flag_read() -> Case {
    let mut case = case(
        ("atomics/flag_read", 1),
        "a task asks whether this node leads",
        || {
            let is_leader = shared(RwLock::new(true));
            summed_async(move || async { u64::from(*is_leader.read().await) })
        },
        || {
            let flags = shared(AtomicFlags::new());
            flags.set_leader(true);
            summed(move || u64::from(flags.is_leader()))
        },
        peers::flag_read(),
        &[("before", 100.0), ("parking_lot", 30.0)],
    );
    case.goals.push(Goal::Instructions(6.0));
    case
}

/// The status of a leader in the middle of its term.
fn status() -> RaftStatus {
    RaftStatus {
        role: Role::Leader,
        term: 7,
        leader_id: 1,
        node_id: 1,
        commit_index: 1_000,
        applied_index: 990,
    }
}

/// What a reader does with a status, the same on every path: it looks at every field.
#[inline]
fn use_status(status: &RaftStatus) -> u64 {
    let numbers = [
        status.role as u64,
        status.term,
        status.leader_id,
        status.node_id,
        status.commit_index,
        status.applied_index,
    ];
    numbers.into_iter().fold(0, u64::wrapping_add)
}

fn status_snapshot() -> [Case; 2] {
    let goals = [("parking_lot", 8.0), ("arc-swap", 8.0)];
    [
        case(
            ("atomics/status_snapshot", 1),
            "a status query reads role, term, leader and indices as one whole",
            || {
                let status = shared(RwLock::new(status()));
                summed_async(move || async { use_status(&*status.read().await) })
            },
            || {
                let status = shared(Snapshot::new(status()));
                summed(move || use_status(&status.read()))
            },
            peers::status_alone(),
            &goals,
        ),
        case(
            ("atomics/status_snapshot_2_threads", 2),
            "two threads read the status at the same time",
            || {
                let status = shared(RwLock::new(status()));
                pair_async(|| move || async { use_status(&*status.read().await) })
            },
            || {
                let status = shared(Snapshot::new(status()));
                pair(|| move || use_status(&status.read()))
            },
            peers::status_pair(),
            &goals,
        ),
    ]
}

/// Locks as the rest of a node does, which goes on after another task's panic.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn counter_owned() -> [Case; 2] {
    // An add has no result; these count as operations whose results are added up.
    fn add(counter: &OwnedCounter) -> u64 {
        counter.increment();
        0
    }
    fn add_locked(counter: &Mutex<u64>) -> u64 {
        *lock(counter) += 1;
        0
    }
    [
        case(
            ("atomics/counter_owned", 1),
            "an event is counted",
            || {
                let counter = shared(Mutex::new(0));
                summed(move || add_locked(counter))
            },
            || {
                let counter = shared(OwnedCounter::new());
                summed(move || add(counter))
            },
            peers::counter_alone(),
            &[("fetch_add", 12.0)],
        ),
        case(
            ("atomics/counter_owned_2_threads", 2),
            "two threads count the same event at the same time",
            || {
                let counter = shared(Mutex::new(0));
                pair(|| move || add_locked(counter))
            },
            || {
                let counter = shared(OwnedCounter::new());
                pair(|| move || add(counter))
            },
            peers::counter_pair(),
            &[("fetch_add", 25.0)],
        ),
    ]
}

fn counter_state() -> Case {
    case(
        ("atomics/counter_state", 1),
        "virtual CPUs are taken for a VM and given back, never below zero",
        || {
            let used = shared(Mutex::new(0_u64));
            summed(move || {
                *lock(used) += black_box(4);
                let mut used = lock(used);
                let before = *used;
                *used = before.saturating_sub(black_box(4));
                before
            })
        },
        || {
            let used = shared(StateCounter::new());
            summed(move || {
                used.add(black_box(4));
                used.remove(black_box(4)).unwrap_or(0)
            })
        },
        peers::counter_state(),
        &[],
    )
}

/// The peers' addresses, in whatever map a path uses.
fn members<M: FromIterator<(u64, String)>>() -> M {
    (1..=PEERS)
        .map(|id| (id, format!("10.0.0.{id}:7001")))
        .collect()
}

/// The ids that are looked up, one after the other, in an order that the branch predictor cannot make use of and
/// that is the same on every path.
fn ids() -> impl FnMut() -> u64 + Send + 'static {
    let mut next = 0_u64;
    move || {
        next = next.wrapping_add(3);
        black_box(next % PEERS + 1)
    }
}

fn found(address: Option<&String>) -> u64 {
    address.map_or(0, |address| address.len() as u64)
}

/// A peer joins and another one leaves, in a map of so many. Before: readers hold a reference to a map that is copied at each change.
fn membership_insert() -> [Case; 3] {
    type Naive = std::sync::RwLock<Arc<HashMap<u64, String>>>;
    type Ours = Membership<u64, String>;

    fn table<M: FromIterator<(u64, String)>>(len: u64) -> M {
        let ids = 0..len;
        ids.map(|id| (id, format!("10.0.{}.{}:7001", id / 256, id % 256)))
            .collect()
    }

    fn one<const LEN: u64>(id: &'static str) -> Case {
        case(
            (id, 1),
            "a peer joins a group that others read, and leaves it",
            || {
                let map: &Naive = shared(Naive::new(Arc::new(table(LEN))));
                summed(move || {
                    let change = |change: &dyn Fn(&mut HashMap<u64, String>)| {
                        let mut map = map.write().unwrap_or_else(PoisonError::into_inner);
                        let mut copy = (**map).clone();
                        change(&mut copy);
                        *map = Arc::new(copy);
                    };
                    change(&|map| drop(map.insert(LEN, "10.1.0.1:7001".to_owned())));
                    change(&|map| drop(map.remove(&LEN)));
                    LEN
                })
            },
            || {
                let members = shared(Ours::from_map(table::<Vec<_>>(LEN)));
                summed(move || {
                    members.insert(LEN, "10.1.0.1:7001".to_owned());
                    members.remove(&LEN);
                    LEN
                })
            },
            Vec::new(),
            &[],
        )
    }
    [
        one::<100>("atomics/membership_insert_100"),
        one::<10_000>("atomics/membership_insert_10k"),
        one::<100_000>("atomics/membership_insert_100k"),
    ]
}

fn membership_get() -> [Case; 2] {
    type Naive = RwLock<HashMap<u64, String>>;
    type Ours = Membership<u64, String>;

    async fn naive_look_up(map: &'static Naive, id: u64) -> u64 {
        found(map.read().await.get(&id))
    }

    fn our_get(members: &'static Ours) -> impl FnMut() -> u64 + Send + 'static {
        let (mut id, mut reader) = (ids(), MembershipReader::new(members));
        move || found(reader.get(&id()))
    }
    [
        case(
            ("atomics/membership_get", 1),
            "the address of a peer is looked up",
            || {
                let (map, mut id) = (shared(RwLock::new(members())), ids());
                summed_async(move || naive_look_up(map, id()))
            },
            || summed(our_get(shared(Ours::from_map(members::<Vec<_>>())))),
            peers::member_alone(),
            &[("parking_lot", 6.0), ("HashMap without a lock", 0.5)],
        ),
        case(
            ("atomics/membership_get_2_threads", 2),
            "two threads look peers up at the same time",
            || {
                let map = shared(RwLock::new(members()));
                pair_async(|| {
                    let mut id = ids();
                    move || naive_look_up(map, id())
                })
            },
            || {
                let members = shared(Ours::from_map(members::<Vec<_>>()));
                pair(|| our_get(members))
            },
            peers::member_pair(),
            &[("parking_lot", 40.0)],
        ),
    ]
}

fn clock_now() -> Case {
    case(
        ("atomics/clock_now", 1),
        "the time is read to decide whether something has expired",
        || {
            let anchor = Instant::now();
            summed(move || anchor.elapsed().as_nanos() as u64)
        },
        || {
            static CLOCK: CoarseClock = CoarseClock::new();
            let updater = Updater::start(&CLOCK, RESOLUTION, LAG_MAX);
            summed(move || {
                // Held so that the clock is kept for as long as this path lives. An earlier preparation of this
                // path may keep it already: that serves as well.
                let _ = &updater;
                CLOCK.now().as_nanos()
            })
        },
        Vec::new(),
        &[],
    )
}
