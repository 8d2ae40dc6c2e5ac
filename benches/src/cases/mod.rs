//! Every case of the workspace, a file per crate.

use std::hint::black_box;

use crate::case::{Case, Goal, Path, Prepare, path, timed};
use crate::experiment::Experiment;
use crate::mix;

/// Without the feature `peers`, a module `peers` whose functions return none.
macro_rules! no_peers {
    ($($case:ident)+) => {
        #[cfg(not(feature = "peers"))]
        mod peers {
            $(
                pub(super) fn $case() -> Vec<crate::case::Path> {
                    Vec::new()
                }
            )+
        }
    };
}

pub mod atomics;
pub mod cache;
pub mod metrics;
pub mod pool;
pub mod raft;
pub mod transport;

/// All cases in the order in which tables show them.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(atomics::cases());
    cases.extend(pool::cases());
    cases.extend(metrics::cases());
    cases.extend(cache::cases());
    cases.extend(transport::cases());
    cases.extend(raft::cases());
    cases.extend(mix::cases());
    cases
}

/// All experiments, in the order in which a report shows them.
#[must_use]
pub fn experiments() -> Vec<Experiment> {
    let mut experiments = Vec::new();
    experiments.extend(metrics::experiments());
    experiments.extend(cache::experiments());
    experiments.extend(transport::experiments());
    experiments.extend(raft::experiments());
    experiments
}

/// A case whose goals are ratios, and no allocation.
fn case(
    (id, threads): (&'static str, u32),
    about: &'static str,
    before: Prepare,
    after: Prepare,
    peers: Vec<Path>,
    ratios: &[(&'static str, f64)],
) -> Case {
    let ratio = |&(against, at_least): &_| Goal::Ratio { against, at_least };
    let mut goals: Vec<Goal> = ratios.iter().map(ratio).collect();
    goals.push(Goal::Allocations(0.0));
    Case {
        id,
        about,
        threads,
        before: path("before", before),
        after: path("after", after),
        peers,
        goals,
    }
}

/// What the threads of a path share. Never freed: a path lives as long as its process, and a plain reference
/// keeps reference counts out of what is measured.
fn shared<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// The id of the case that does nothing: what is left of it is the harness itself.
pub const EMPTY: &str = "internal/empty";

/// The id of the case of fixed work: how far it is from itself is the noise of the machine.
pub const FIXED: &str = "internal/fixed";

/// Cases for the harness's own use; no table shows them.
#[must_use]
pub fn internal() -> Vec<Case> {
    let prepare = || {
        timed(|| {
            // Without it the loop would be optimised away, and then cost less than around real work.
            black_box(());
        })
    };
    let internal = |id, about, prepare| Case {
        id,
        about,
        threads: 1,
        before: path("before", prepare),
        after: path("after", prepare),
        peers: Vec::new(),
        goals: Vec::new(),
    };
    vec![
        internal(EMPTY, "the harness's loop around nothing", prepare),
        internal(FIXED, "arithmetic in registers", fixed),
    ]
}

/// A hundred dependent steps of a linear congruential generator (Knuth's MMIX): about a hundred nanoseconds
/// that depend on neither memory nor branches.
fn fixed() -> crate::case::Run {
    let mut state = 1_u64;
    timed(move || {
        for _ in 0..100 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
        }
        black_box(state);
    })
}
