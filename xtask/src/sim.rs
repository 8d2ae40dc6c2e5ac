//! `cargo xtask sim`: a crate's simulation over as many seeds as one wants.

use std::process::Command;

use anyhow::{Result, bail};

use crate::step;
use crate::workspace::{self, Package, Workspace};

/// The name of a crate's simulation, and how those of its parts end.
const TARGET: &str = "simulation";
/// How many seeds the simulation runs, and which is the first.
const SEEDS: &str = "PERF_SIM_SEEDS";
const START: &str = "PERF_SIM_START";
/// How many groups the hosts of perf-raft's simulation have at most.
const GROUPS: &str = "PERF_SIM_GROUPS";
/// The part of perf-raft whose simulation has several groups.
const PART_OF_GROUPS: &str = "host";

/// What to simulate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The crate's name, or the part of it behind `perf-`. After a slash, the part of the crate whose simulation it is.
    pub(crate) name: String,
    pub(crate) seeds: u64,
    pub(crate) start: u64,
    pub(crate) groups: Option<u64>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::load()?;
    let (name, part) = split(&options.name);
    let target = target(part.or(options.groups.map(|_| PART_OF_GROUPS)));
    let package = find(&workspace, name, &target)?;
    let mut test = command(package, &target, options);
    step::run(
        &format!("{} seeds of {}, {target}", options.seeds, package.name),
        &mut test,
    )
}

/// The crate, and the part of it.
fn split(name: &str) -> (&str, Option<&str>) {
    name.split_once('/')
        .map_or((name, None), |(name, part)| (name, Some(part)))
}

/// The test target of a part.
fn target(part: Option<&str>) -> String {
    part.map_or_else(|| TARGET.to_owned(), |part| format!("{part}_{TARGET}"))
}

fn find<'a>(workspace: &'a Workspace, name: &str, target: &str) -> Result<&'a Package> {
    let file = format!("tests/{target}.rs");
    let full = format!("perf-{name}");
    let mut simulated = workspace
        .packages
        .iter()
        .filter(|package| package.directory().join(&file).is_file());
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
        bail!("no crate has a simulation `{file}`");
    }
    bail!("no simulation `{name}`; there are: {}", names.join(", "))
}

/// A release build: each seed is thousands of steps.
fn command(package: &Package, target: &str, options: &Options) -> Command {
    let mut command = workspace::cargo();
    command
        .args(["test", "--release", "--all-features"])
        .args(["--package", &package.name, "--test", target])
        .args(["--", "--nocapture"])
        .env(SEEDS, options.seeds.to_string())
        .env(START, options.start.to_string())
        .envs(options.groups.map(|groups| (GROUPS, groups.to_string())));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulation_that_is_not_there_is_named() {
        let workspace = Workspace::load().expect("this is one");
        let error = find(&workspace, "atomics", TARGET).expect_err("it has none");
        assert!(error.to_string().contains("simulation"), "{error}");
    }

    #[test]
    fn a_part_of_a_crate_has_a_simulation_of_its_own() {
        let workspace = Workspace::load().expect("this is one");
        let (name, part) = split("raft/segment");
        let package = find(&workspace, name, &target(part)).expect("it is there");
        assert_eq!(package.name, "perf-raft");
        let error = find(&workspace, "transport", &target(part)).expect_err("it has none");
        assert!(error.to_string().contains("perf-raft"), "{error}");
        let error = find(&workspace, "raft", &target(Some("none"))).expect_err("it has none");
        assert!(error.to_string().contains("none_simulation"), "{error}");
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
            groups: Some(200),
        };
        assert_eq!(
            step::command_line(&command(&package, TARGET, &options)),
            "PERF_SIM_GROUPS=200 PERF_SIM_SEEDS=7 PERF_SIM_START=40 cargo test --release --all-features \
             --package perf-raft --test simulation -- --nocapture"
        );
    }
}
