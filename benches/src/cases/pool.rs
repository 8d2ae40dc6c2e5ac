//! Cases of `perf-pool`.

use crate::case::Case;

/// The cases of `perf-pool`.
#[must_use]
pub fn cases() -> Vec<Case> {
    Vec::new()
}
