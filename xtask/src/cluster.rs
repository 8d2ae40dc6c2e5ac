//! `cargo xtask cluster`: the node of `perf-kit` as a cluster of processes under load.
//!
//! The work is done by the example itself, `crates/perf-kit/examples/vm-node/cluster`; here it is built and run.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step;
use crate::workspace;

/// The example and how it is built: as a user's release build would be.
const EXAMPLE: [&str; 7] = [
    "--release",
    "--package",
    "perf-kit",
    "--features",
    "full",
    "--example",
    "vm-node",
];

/// Builds the example and gives it the arguments.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    let mut build = workspace::cargo();
    build.arg("build").args(EXAMPLE);
    step::run("building the node", &mut build)?;
    let mut cluster = cluster(arguments);
    let line = step::command_line(&cluster);
    // It listens for Ctrl-C too, and ends what it started.
    let status = cluster
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("the cluster's run failed ({status}); to run it again:\n\n    {line}\n");
    }
    Ok(())
}

fn cluster(arguments: &[OsString]) -> Command {
    let mut command = workspace::cargo();
    command
        .args(["run", "--quiet"])
        .args(EXAMPLE)
        .args(["--", "cluster"])
        .args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_passed_on() {
        let arguments = ["--for", "20", "--chaos"].map(OsString::from);
        let line = step::command_line(&cluster(&arguments));
        assert!(
            line.ends_with("--example vm-node -- cluster --for 20 --chaos"),
            "{line}"
        );
    }
}
