//! Cases of `perf-atomics`.

use crate::case::Case;

/// The cases of `perf-atomics`.
#[must_use]
pub fn cases() -> Vec<Case> {
    Vec::new()
}
