//! Every case of the workspace, a file per crate.

use std::hint::black_box;

use crate::case::{Case, path, timed};
use crate::mix;

pub mod atomics;
pub mod metrics;
pub mod pool;

/// All cases in the order in which tables show them.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(atomics::cases());
    cases.extend(pool::cases());
    cases.extend(metrics::cases());
    cases.extend(mix::cases());
    cases
}

/// The id of the case that does nothing: what is left of it is the harness itself.
pub const EMPTY: &str = "internal/empty";

/// Cases for the harness's own use; no table shows them.
#[must_use]
pub fn internal() -> Vec<Case> {
    let prepare = || {
        timed(|| {
            // Without it the loop would be optimised away, and then cost less than around real work.
            black_box(());
        })
    };
    vec![Case {
        id: EMPTY,
        about: "the harness's loop around nothing",
        threads: 1,
        before: path("before", prepare),
        after: path("after", prepare),
        peers: Vec::new(),
        goals: Vec::new(),
    }]
}
