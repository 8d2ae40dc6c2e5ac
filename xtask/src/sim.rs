//! `cargo xtask sim`: a crate's simulation over as many seeds as one wants.

use std::process::Command;

use anyhow::{Result, bail};

use crate::step;
use crate::workspace::{self, Package, Workspace};

/// Where a crate has its simulation.
const FILE: &str = "tests/simulation.rs";
/// How many seeds the simulation runs, and which is the first.
const SEEDS: &str = "PERF_SIM_SEEDS";
const START: &str = "PERF_SIM_START";

/// What to simulate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The crate's name, or the part of it behind `perf-`.
    pub(crate) name: String,
    pub(crate) seeds: u64,
    pub(crate) start: u64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::load()?;
    let package = find(&workspace, &options.name)?;
    let mut test = command(package, options);
    step::run(
        &format!("{} seeds of {}", options.seeds, package.name),
        &mut test,
    )
}

fn find<'a>(workspace: &'a Workspace, name: &str) -> Result<&'a Package> {
    let full = format!("perf-{name}");
    let mut simulated = workspace
        .packages
        .iter()
        .filter(|package| package.directory().join(FILE).is_file());
    if let Some(package) = simulated
        .clone()
        .find(|package| package.name == name || package.name == full)
    {
        return Ok(package);
    }
    let names: Vec<&str> = simulated
        .by_ref()
        .map(|other| other.name.as_str())
        .collect();
    if names.is_empty() {
        bail!("no crate has a simulation ({FILE})");
    }
    bail!("no simulation `{name}`; there are: {}", names.join(", "))
}

/// A release build: each seed is thousands of steps.
fn command(package: &Package, options: &Options) -> Command {
    let mut command = workspace::cargo();
    command
        .args(["test", "--release", "--all-features"])
        .args(["--package", &package.name, "--test", "simulation"])
        .args(["--", "--nocapture"])
        .env(SEEDS, options.seeds.to_string())
        .env(START, options.start.to_string());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulation_that_is_not_there_is_named() {
        let workspace = Workspace::load().expect("this is one");
        let error = find(&workspace, "atomics").expect_err("it has none");
        assert!(error.to_string().contains("simulation"), "{error}");
    }

    #[test]
    fn the_seeds_go_into_the_environment() {
        let package = Package {
            name: "perf-raft".to_owned(),
            version: semver::Version::new(0, 1, 0),
            description: None,
            manifest_path: "x/Cargo.toml".into(),
            features: [].into(),
            dependencies: Vec::new(),
            publish: None,
        };
        let options = Options {
            name: "raft".to_owned(),
            seeds: 7,
            start: 40,
        };
        assert_eq!(
            step::command_line(&command(&package, &options)),
            "PERF_SIM_SEEDS=7 PERF_SIM_START=40 cargo test --release --all-features \
             --package perf-raft --test simulation -- --nocapture"
        );
    }
}
