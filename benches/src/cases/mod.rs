//! Every case of the workspace, a file per crate.

use crate::case::Case;

pub mod atomics;
pub mod pool;

/// All cases in the order in which tables show them.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(atomics::cases());
    cases.extend(pool::cases());
    cases
}
