//! Instructions per operation, by valgrind's callgrind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use super::worker::Worker;

/// The case of `perf_benches` that does nothing: the harness's own loop.
const EMPTY: &str = "internal/empty";
/// How much of the path's natural time is counted. Valgrind runs some fifty times slower, except where
/// the path sleeps.
const COUNTED_NS: f64 = 4e6;
/// Bounds of the iterations that are counted. Start-up differs by some hundred instructions
/// between runs, so a cheap path needs many.
const ITERS_MIN: u64 = 4;
const ITERS_MAX: u64 = 1_000_000;

/// The tool, found to be there.
#[derive(Debug)]
pub(crate) struct Callgrind {
    worker: PathBuf,
    /// Where its result files go.
    directory: PathBuf,
    /// Instructions per iteration of the harness's own loop.
    loop_instructions: f64,
}

/// Fails with a line of advice when valgrind is absent.
pub(crate) fn require() -> Result<()> {
    let version = Command::new("valgrind")
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match version {
        Ok(status) if status.success() => Ok(()),
        _ => bail!(
            "--icount needs valgrind, and `valgrind --version` does not run: install the package \
             `valgrind` of your system (for example `apt install valgrind`), or leave --icount out"
        ),
    }
}

impl Callgrind {
    /// Makes it ready and measures the harness's own loop.
    pub(crate) fn new(worker: &Path, target: &Path) -> Result<Self> {
        let directory = target.join("xtask").join("callgrind");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let mut callgrind = Self {
            worker: worker.to_owned(),
            directory,
            loop_instructions: 0.0,
        };
        callgrind.loop_instructions = callgrind.per_iteration(EMPTY, "after", ITERS_MAX)?;
        Ok(callgrind)
    }

    /// Instructions per operation of a path for whose operation `wall_ns` pass.
    pub(crate) fn count(&self, case: &str, path: &str, wall_ns: f64) -> Result<f64> {
        let iters = ((COUNTED_NS / wall_ns) as u64).clamp(ITERS_MIN, ITERS_MAX);
        let gross = self.per_iteration(case, path, iters)?;
        Ok((gross - self.loop_instructions).max(0.0))
    }

    /// Two processes that differ in nothing but their iterations; start-up, preparation and warm-up
    /// cancel from the difference of their totals.
    fn per_iteration(&self, case: &str, path: &str, iters: u64) -> Result<f64> {
        let (once, twice) = thread::scope(|scope| {
            let once = scope.spawn(|| self.total(case, path, iters, 1));
            let twice = self.total(case, path, iters, 2);
            (once.join(), twice)
        });
        let once = once.map_err(|_| anyhow!("counting `{path}` of `{case}` panicked"))??;
        let difference = twice? as f64 - once as f64;
        Ok(difference / iters as f64)
    }

    /// The instructions of a whole process that warms up with `iters` and then runs `times * iters`.
    fn total(&self, case: &str, path: &str, iters: u64, times: u64) -> Result<u64> {
        let result = self
            .directory
            .join(format!("{}.{times}.out", std::process::id()));
        let mut command = Command::new("valgrind");
        command
            .args(["--quiet", "--tool=callgrind"])
            .arg(format!("--callgrind-out-file={}", result.display()))
            .arg(&self.worker);
        let mut worker = Worker::start(command)?;
        worker.prepare(case, path)?;
        worker.run(case, path, iters)?;
        worker.run(case, path, iters * times)?;
        worker.end()?;
        let text = fs::read_to_string(&result)
            .with_context(|| format!("cannot read {}", result.display()))?;
        // A leftover is harmless, and the next run writes over it.
        let _ = fs::remove_file(&result);
        parse_total(&text)
    }
}

fn parse_total(text: &str) -> Result<u64> {
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let first = totals.and_then(|numbers| numbers.split_whitespace().next());
    first
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| anyhow!("callgrind's result has no line `totals:`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found_in_a_result() {
        let text = "# callgrind format\nevents: Ir\nfn=(1) main\n12 5\n\ntotals: 542228\n";
        assert_eq!(parse_total(text).ok(), Some(542_228));
        assert!(parse_total("events: Ir\n").is_err());
        assert!(parse_total("totals: many\n").is_err());
    }
}
