//! `cargo xtask cluster`: the node of `perf-kit` as a cluster of processes under load.
//!
//! The work is done by the example itself, `crates/perf-kit/examples/vm-node/cluster`; here it is built and run.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::built::Built;
use crate::step;
use crate::test;
use crate::workspace::{self, Workspace};

/// What to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The debug build of the tests, which is there already after them, instead of a user's release build.
    pub(crate) debug: bool,
    /// For the example.
    pub(crate) arguments: Vec<OsString>,
}

/// Builds the example and gives it the arguments.
pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::load()?;
    step::heading("building the node");
    let built = Built::by(&mut build(options.debug, &workspace))?;
    let program = built.executable("vm-node")?;
    let mut cluster = Command::new(program);
    cluster
        .current_dir(workspace::root())
        .arg("cluster")
        .args(&options.arguments);
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

fn build(debug: bool, workspace: &Workspace) -> Command {
    let mut command = workspace::cargo();
    command.args(["build", "--example", "vm-node"]);
    if debug {
        command.args(test::all_features(workspace));
    } else {
        command.args(["--release", "--package", "perf-kit", "--features", "full"]);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_gets_a_release_build_and_the_tests_their_own() {
        let workspace = Workspace::load().expect("this is one");
        let line = step::command_line(&build(false, &workspace));
        assert!(
            line.ends_with("--release --package perf-kit --features full"),
            "{line}"
        );
        let line = step::command_line(&build(true, &workspace));
        assert!(
            line.contains("--workspace") && !line.contains("--release"),
            "{line}"
        );
    }
}
