//! `cargo xtask test`: every test there is.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::rustc;
use crate::step;
use crate::workspace::{self, Package, Workspace};

/// Test targets that want an optimised build under a cfg of their own, of whatever crate has one of them.
struct Special {
    what: &'static str,
    cfg: &'static str,
    /// Crates of others that do the work.
    optimised: &'static [&'static str],
    /// The files `tests/<target>.rs`.
    targets: &'static [&'static str],
}

const SPECIAL: [Special; 2] = [
    // Makes the crates' `primitive` modules use loom in place of std.
    Special {
        what: "loom models",
        cfg: "perf_loom",
        optimised: &["loom", "generator"],
        targets: &["loom"],
    },
    // Compiles the seeded faults in, which the simulations have to find, and puts the shell of a Raft node on shuttle's scheduler. What else takes
    // long runs along, with no fault on.
    Special {
        what: "mutants, simulations, shells on shuttle and hit ratios",
        cfg: "perf_mutants",
        optimised: &[],
        targets: &[
            "mutants",
            "shell_mutants",
            "simulation",
            "host_simulation",
            "segment_simulation",
            "shuttle",
            "hit_ratio",
        ],
    },
];

/// Examples that have unit tests.
const EXAMPLES: [&str; 1] = ["vm-node"];

pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    let workspace = Workspace::load()?;
    // First of all: the tests build this program anew, in the place of the one that runs.
    let mut beside = vec![("unit tests of examples", example_tests(&workspace))];
    for target in &SPECIAL {
        beside.push((target.what, special_test(target, &workspace)?));
    }
    // Plain tests wait for sockets and clocks for much of their time, in which the others compute.
    let what = "unit, integration and doc tests";
    step::run_beside(what, &mut all_tests(&workspace), beside)?;
    eprintln!(
        "\nAll tests passed in {:.1} s.",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn all_tests(workspace: &Workspace) -> Command {
    let mut command = workspace::cargo();
    command.arg("test").args(all_features(workspace));
    command
}

/// `cargo test` builds examples for the integration tests that run them, and runs no test that is in them.
fn example_tests(workspace: &Workspace) -> Command {
    let mut command = all_tests(workspace);
    command.args(EXAMPLES.iter().flat_map(|name| ["--example", name]));
    command
}

/// The packages and features of the tests, as arguments. Whatever is built with the same ones shares all that they depend on.
pub(crate) fn all_features(workspace: &Workspace) -> [String; 3] {
    let features = features(&workspace.packages);
    ["--workspace".to_owned(), "--features".to_owned(), features]
}

/// Every feature that reaches a user. The benches' peers are left out: they are large, and no test is about them.
fn features(packages: &[Package]) -> String {
    let mut all = Vec::new();
    for package in packages.iter().filter(|package| package.is_published()) {
        let features = package.features.keys();
        all.extend(features.map(|feature| format!("{}/{feature}", package.name)));
    }
    all.join(",")
}

/// The crates of the workspace are built anew, optimised, since these walk through many thousand runs, and with the cfg. What they depend on
/// is shared with the plain tests: flags for all of it would build it all over again.
fn special_test(special: &Special, workspace: &Workspace) -> Result<Command> {
    // With the same packages and features, or dependencies would have others, and be built again.
    let mut command = all_tests(workspace);
    for target in special.targets {
        command.args(["--test", target]);
    }
    let published = workspace.published().map(|package| package.name.as_str());
    for name in published.chain(special.optimised.iter().copied()) {
        for setting in ["opt-level=2", "debug-assertions=false"] {
            command.arg("--config");
            command.arg(format!("profile.dev.package.{name}.{setting}"));
        }
    }
    let wrapper = rustc::with_cfg(special.cfg, &workspace.target)?;
    command.env("RUSTC_WORKSPACE_WRAPPER", wrapper);
    Ok(command)
}
