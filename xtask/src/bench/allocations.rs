//! Counting a path's allocations per operation.

use anyhow::{Result, bail};

use super::stats;
use super::worker::{Sample, Worker};

/// How long a counted run takes at least: long enough for what happens once in many operations
/// to show at its true rate.
const COUNTED_NS_MIN: f64 = 5e6;
/// Most iterations of a counted run, for paths that leave their time out.
const ITERS_MAX: u64 = 1 << 24;
/// Counted runs; the median is taken, so that one late start-up allocation does not count.
const RUNS: usize = 3;

/// What one operation allocates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct PerOperation {
    /// Requests to the allocator, reallocations included.
    pub(crate) count: f64,
    pub(crate) bytes: f64,
}

/// Counts a path that the counting worker has prepared.
pub(crate) fn count(worker: &mut Worker, case: &str, path: &str) -> Result<PerOperation> {
    count_with(|iters| worker.run(case, path, iters))
}

/// Warms up by runs of growing length, then counts.
fn count_with(mut run: impl FnMut(u64) -> Result<Sample>) -> Result<PerOperation> {
    let mut iters = 1;
    while run(iters)?.wall_ns < COUNTED_NS_MIN && iters < ITERS_MAX {
        iters *= 4;
    }
    let (mut counts, mut bytes) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let sample = run(iters)?;
        if sample.operations <= 0.0 {
            bail!("a run of {iters} iterations reported no operation");
        }
        counts.push(sample.allocations / sample.operations);
        bytes.push(sample.allocated_bytes / sample.operations);
    }
    Ok(PerOperation {
        count: stats::median(&counts).unwrap_or_default(),
        bytes: stats::median(&bytes).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_up_does_not_count_and_threads_share() -> Result<()> {
        let mut calls = 0;
        let per_operation = count_with(|iters| {
            calls += 1;
            let operations = iters as f64 * 2.0;
            // The first call builds tables, and a lazy one comes with the first counted run.
            let once = if calls == 1 || iters >= 4_096 && calls == 8 {
                1_000.0
            } else {
                0.0
            };
            Ok(Sample {
                time_ns: operations * 1_000.0,
                wall_ns: operations * 1_000.0,
                operations,
                allocations: operations * 3.0 + once,
                allocated_bytes: operations * 96.0,
            })
        })?;
        let expected = PerOperation {
            count: 3.0,
            bytes: 96.0,
        };
        assert_eq!((per_operation, calls), (expected, 10));
        Ok(())
    }
}
