//! `cargo xtask profile`: where the instructions and allocations of a path are.
//!
//! Each profile is the difference of two processes, one of which does the work once more: start-up, preparation
//! and warm-up cancel.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use super::build::Binaries;
use super::icount;
use super::listing::{Case, Listing};
use super::worker::Worker;
use crate::cli::ProfileOptions;
use crate::workspace::Workspace;

/// How long the profiled work takes outside of valgrind, about.
const WORK_NS: f64 = 4e6;
/// The same for the flame graph, which samples in time.
const SAMPLED_NS: f64 = 2e9;
/// Rows of a table.
const ROWS: usize = 20;
/// Allocations per operation that are worth a row.
const ALLOCATIONS_MIN: f64 = 0.005;
/// Frames of an allocation's call chain that are shown.
const FRAMES: usize = 3;

pub(crate) fn run(options: &ProfileOptions) -> Result<()> {
    icount::require()?;
    let peers = !["before", "after"].contains(&options.path.as_str());
    let binaries = Binaries::build(peers)?;
    let mut worker = Worker::of(&binaries.system)?;
    let listing = worker.list()?;
    let case = find(&listing, options)?;
    worker.prepare(&case.id, &options.path)?;
    let ns = worker.run(&case.id, &options.path, 1)?.wall_ns;
    let mut iters = ((WORK_NS / ns) as u64).max(1);
    // The first call may be slow; the second estimate is from many.
    let sample = worker.run(&case.id, &options.path, iters)?;
    let per_operation_ns = (sample.wall_ns / iters as f64).max(1.0);
    iters = ((WORK_NS / per_operation_ns) as u64).max(1);
    worker.end()?;
    let directory = Workspace::load()?.target.join("xtask").join("profile");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let profiler = Profiler {
        worker: &binaries.system,
        case: &case.id,
        path: &options.path,
        directory,
    };
    println!("`{}` of `{}`, per operation", options.path, case.id);
    profiler.instructions(iters)?;
    profiler.allocations(iters)?;
    profiler.flame_graph(((SAMPLED_NS / per_operation_ns) as u64).max(1))
}

fn find<'a>(listing: &'a Listing, options: &ProfileOptions) -> Result<&'a Case> {
    let case = listing.cases.iter().find(|case| case.id == options.case);
    let Some(case) = case else {
        let ids: Vec<&str> = listing.cases.iter().map(|case| case.id.as_str()).collect();
        bail!(
            "there is no case `{}`; the cases are:\n  {}",
            options.case,
            ids.join("\n  ")
        );
    };
    if !case.paths.iter().any(|path| path.name == options.path) {
        let names: Vec<&str> = case.paths.iter().map(|path| path.name.as_str()).collect();
        bail!(
            "`{}` has no path `{}`; it has: {}",
            case.id,
            options.path,
            names.join(", ")
        );
    }
    Ok(case)
}

/// One path of a case, to be looked at by several tools.
struct Profiler<'a> {
    worker: &'a Path,
    case: &'a str,
    path: &'a str,
    directory: PathBuf,
}

impl Profiler<'_> {
    fn instructions(&self, iters: u64) -> Result<()> {
        let profile = |times| -> Result<BTreeMap<String, u64>> {
            let text = self.under_valgrind("callgrind", iters, times)?;
            Ok(instructions_by_function(&text))
        };
        let rows = difference(&profile(1)?, &profile(2)?);
        println!("\ninstructions  share  function (callgrind, without what it calls)");
        let total: i64 = rows.iter().map(|(_, count)| count).sum();
        for (function, count) in rows.iter().take(ROWS) {
            println!(
                "{:12.1}  {:4.0} %  {function}",
                *count as f64 / iters as f64,
                100.0 * *count as f64 / total.max(1) as f64
            );
        }
        println!("{:12.1}  in all", total as f64 / iters as f64);
        Ok(())
    }

    fn allocations(&self, iters: u64) -> Result<()> {
        let profile = |times| {
            let text = self.under_valgrind("dhat", iters, times)?;
            blocks_by_place(&text)
        };
        let rows = difference(&profile(1)?, &profile(2)?);
        // A table or two may grow in one run and not in the other.
        let rows: Vec<_> = rows
            .into_iter()
            .filter(|(_, count)| *count as f64 >= iters as f64 * ALLOCATIONS_MIN)
            .collect();
        if rows.is_empty() {
            println!("\nno allocations (dhat)");
            return Ok(());
        }
        println!("\nallocations  from (dhat)");
        for (place, count) in rows.iter().take(ROWS) {
            println!("{:11.2}  {place}", *count as f64 / iters as f64);
        }
        Ok(())
    }

    /// Runs the path under a tool of valgrind and returns what the tool wrote.
    fn under_valgrind(&self, tool: &str, iters: u64, times: u64) -> Result<String> {
        let result = self.directory.join(format!("{tool}.{times}.out"));
        let mut command = Command::new("valgrind");
        command
            .args(["--quiet", &format!("--tool={tool}")])
            .arg(format!("--{tool}-out-file={}", result.display()))
            .arg(self.worker);
        self.work(command, iters, times)?;
        fs::read_to_string(&result).with_context(|| format!("cannot read {}", result.display()))
    }

    /// Warms up and then does the work `times` times.
    fn work(&self, command: Command, iters: u64, times: u64) -> Result<()> {
        let mut worker = Worker::start(command)?;
        worker.prepare(self.case, self.path)?;
        worker.run(self.case, self.path, iters)?;
        worker.run(self.case, self.path, iters * times)?;
        worker.end()
    }

    /// Draws a flame graph where the tools for it are there.
    fn flame_graph(&self, iters: u64) -> Result<()> {
        println!();
        for (tool, how) in [
            (
                "perf",
                "the package `linux-perf` or `linux-tools` of your system",
            ),
            ("inferno-collapse-perf", "`cargo install inferno`"),
            ("inferno-flamegraph", "`cargo install inferno`"),
        ] {
            if !is_there(tool) {
                println!("no flame graph: `{tool}` is not there; it comes with {how}");
                return Ok(());
            }
        }
        let data = self.directory.join("perf.data");
        let mut record = Command::new("perf");
        record
            .args(["record", "--quiet", "--call-graph", "dwarf", "--output"])
            .arg(&data)
            .arg("--")
            .arg(self.worker);
        if let Err(error) = self.work(record, iters, 1) {
            println!("no flame graph: `perf record` does not work here: {error:#}");
            return Ok(());
        }
        let svg = self.directory.join("flame.svg");
        let mut script = Command::new("perf");
        script.args(["script", "--input"]).arg(&data);
        let stacks = piped(&mut script)?;
        let folded = self.directory.join("perf.folded");
        let perf_text = self.directory.join("perf.script");
        fs::write(&perf_text, stacks)
            .with_context(|| format!("cannot write {}", perf_text.display()))?;
        let collapsed = piped(Command::new("inferno-collapse-perf").arg(&perf_text))?;
        fs::write(&folded, collapsed)
            .with_context(|| format!("cannot write {}", folded.display()))?;
        let picture = piped(Command::new("inferno-flamegraph").arg(&folded))?;
        fs::write(&svg, picture).with_context(|| format!("cannot write {}", svg.display()))?;
        println!("flame graph: {}", svg.display());
        Ok(())
    }
}

fn is_there(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// What a program prints.
fn piped(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", output.status);
    }
    Ok(output.stdout)
}

/// What the second has more than the first, most first.
fn difference(once: &BTreeMap<String, u64>, twice: &BTreeMap<String, u64>) -> Vec<(String, i64)> {
    let mut rows: Vec<(String, i64)> = twice
        .iter()
        .map(|(name, &count)| {
            let less = once.get(name).copied().unwrap_or(0);
            (name.clone(), count as i64 - less as i64)
        })
        .filter(|&(_, count)| count != 0)
        .collect();
    rows.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    rows
}

/// Reads callgrind's own costs per function, in the format of the manual's section "Callgrind Format Specification".
///
/// `fn=(id) name` begins a function, and later `fn=(id)` does again; a line of costs is a position and a
/// number; the line behind `calls=` has what the callee cost, which is its own already.
fn instructions_by_function(text: &str) -> BTreeMap<String, u64> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut costs = BTreeMap::new();
    let (mut function, mut is_call) = ("", false);
    for line in text.lines() {
        let named = ["fn=", "cfn="]
            .iter()
            .find_map(|key| line.strip_prefix(key));
        if let Some(name) = named {
            let (id, long) = name.split_once(' ').unwrap_or((name, ""));
            if !long.is_empty() {
                names.insert(id, long);
            }
            if line.starts_with("fn=") {
                function = names.get(id).copied().unwrap_or(name);
            }
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse().ok());
            if !std::mem::take(&mut is_call) {
                *costs.entry(function.to_owned()).or_insert(0) += cost.unwrap_or(0_u64);
            }
        }
    }
    costs
}

/// The part of dhat's result that says who allocated.
#[derive(Debug, Deserialize)]
struct Dhat {
    /// Places: the total of blocks, and the frames as places in `ftbl`.
    pps: Vec<DhatPlace>,
    ftbl: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct DhatPlace {
    tbk: u64,
    fs: Vec<usize>,
}

/// Reads dhat's blocks per place, named by the innermost frames that are no allocator's.
fn blocks_by_place(text: &str) -> Result<BTreeMap<String, u64>> {
    let dhat: Dhat = serde_json::from_str(text).context("cannot read dhat's result")?;
    let mut blocks = BTreeMap::new();
    for place in &dhat.pps {
        let frames: Result<Vec<&str>> = place
            .fs
            .iter()
            .map(|&frame| {
                let frame = dhat.ftbl.get(frame);
                frame
                    .map(String::as_str)
                    .ok_or_else(|| anyhow!("dhat's result names a frame that is not there"))
            })
            .collect();
        let frames = frames?;
        let names: Vec<&str> = frames
            .iter()
            .map(|frame| frame.split_once(": ").map_or(*frame, |(_, name)| name))
            .collect();
        let own: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| !is_allocator(name))
            .take(FRAMES)
            .collect();
        let key = if own.is_empty() { names } else { own }.join(" < ");
        *blocks.entry(key).or_insert(0) += place.tbk;
    }
    Ok(blocks)
}

/// Frames between the allocating code and the allocator.
fn is_allocator(frame: &str) -> bool {
    let parts = [
        "malloc",
        "calloc",
        "realloc",
        "memalign",
        "__rust_alloc",
        "__rdl_",
        "alloc.rs:",
        "boxed.rs:",
        "raw_vec",
        "library/alloc/",
        "library/core/",
    ];
    parts.iter().any(|part| frame.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_functions_cost_is_without_its_callees() {
        let text = "events: Ir\nfl=(1) a.rs\nfn=(1) main\n10 5\n+1 2\ncfn=(2) work\ncalls=3 40\n12 900\n13 1\n\
                    fn=(2)\n40 300\n* 600\nfn=(1)\n14 2\ntotals: 910\n";
        let costs = instructions_by_function(text);
        assert_eq!(costs.get("main"), Some(&10));
        assert_eq!(costs.get("work"), Some(&900));
    }

    #[test]
    fn a_place_is_named_by_who_asked() -> Result<()> {
        let text = r#"{"pps":[{"tb":64,"tbk":2,"fs":[1,2,3]},{"tb":8,"tbk":1,"fs":[1]}],
            "ftbl":["[root]","0x1: malloc (vg_replace_malloc.c:1)","0x2: alloc::raw_vec::RawVec<T>::grow (raw_vec.rs:1)","0x3: node::encode (node.rs:7)"]}"#;
        let blocks = blocks_by_place(text)?;
        assert_eq!(blocks.get("node::encode (node.rs:7)"), Some(&2));
        assert_eq!(blocks.get("malloc (vg_replace_malloc.c:1)"), Some(&1));
        assert!(blocks_by_place(r#"{"pps":[{"tbk":2,"fs":[9]}],"ftbl":[]}"#).is_err());
        Ok(())
    }

    #[test]
    fn what_both_runs_have_cancels() {
        let map = |rows: &[(&str, u64)]| {
            rows.iter()
                .map(|&(name, count)| (name.to_owned(), count))
                .collect::<BTreeMap<_, _>>()
        };
        let rows = difference(
            &map(&[("start", 50), ("work", 10)]),
            &map(&[("start", 50), ("work", 30), ("late", 1)]),
        );
        assert_eq!(rows, [("work".to_owned(), 20), ("late".to_owned(), 1)]);
    }
}
