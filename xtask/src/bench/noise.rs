//! How quiet the machine is.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::build::Binaries;
use super::crew::{Crew, Place};
use super::pair::{self, Budget, Sampler};
use super::report::NoiseReport;
use super::stats::SAMPLES_MIN;

/// A fixed computation of `perf_benches`.
const FIXED: &str = "internal/fixed";
/// How long other work is watched.
const WATCH: Duration = Duration::from_millis(300);
/// A third of a second in all.
const BUDGET: Budget = Budget {
    total_ns: 3.5e8,
    sample_ns: 1e6,
    trials_max: SAMPLES_MIN,
};

/// Watches the processors, then runs the fixed computation against itself.
pub(crate) fn measure(binaries: &Binaries) -> Result<NoiseReport> {
    let busy = busy();
    let place = Place {
        binary: &binaries.system,
        path: "after",
    };
    let mut crew = |trial| -> Result<Box<dyn Sampler>> {
        Ok(Box::new(Crew::start(FIXED, place, place, trial)?))
    };
    let ratio = pair::compare(&mut crew, BUDGET)
        .context("cannot measure the machine's noise")?
        .ratio;
    Ok(NoiseReport {
        busy,
        ratio: ratio.median,
        ratio_low: ratio.low,
        ratio_high: ratio.high,
    })
}

/// The share of the processors' time that other work takes while this program sleeps.
fn busy() -> Option<f64> {
    let first = ticks(&fs::read_to_string("/proc/stat").ok()?)?;
    thread::sleep(WATCH);
    let last = ticks(&fs::read_to_string("/proc/stat").ok()?)?;
    let all = last.0.checked_sub(first.0).filter(|&all| all > 0)?;
    let idle = last.1.saturating_sub(first.1).min(all);
    Some(1.0 - idle as f64 / all as f64)
}

/// All ticks of all processors, and the idle ones: proc_stat(5), the line `cpu`.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest time is in user already.
    let (&idle, &iowait) = (fields.get(3)?, fields.get(4)?);
    Some((fields.iter().take(8).sum(), idle + iowait))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_those_of_all_processors() {
        let stat = "cpu  10 1 5 100 4 0 1 2 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 5\n";
        assert_eq!(ticks(stat), Some((123, 104)));
        assert_eq!(ticks("intr 5\n"), None);
        assert_eq!(ticks("cpu  10 1\n"), None);
    }
}
