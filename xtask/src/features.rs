//! `cargo xtask features`: every crate with no feature, each feature alone, and all together; every two crates of
//! the facade; and what each costs a user.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::step;
use crate::workspace::{self, Package, Workspace};

/// The crate whose features are also combined.
const FACADE: &str = "perf-kit";

/// Most crates that a feature of the facade may bring, the facade and its own crate included.
const CRATES_MAX: [(&str, usize); 2] = [("atomics", 13), ("pool", 16)];

const NO_PANIC: &str = "no worker panics";

/// Where the table of costs is.
const TABLE: &str = "docs/FEATURES.md";

/// A selection of features as the table and cargo name it.
#[derive(Debug, PartialEq, Eq)]
struct Selection {
    name: String,
    arguments: Vec<String>,
}

pub(crate) fn run(measure: bool) -> Result<()> {
    let workspace = Workspace::load()?;
    check_all(&workspace)?;
    check_crates(&workspace)?;
    if measure {
        let table = measured(&workspace)?;
        let path = workspace.root.join(TABLE);
        fs::write(&path, table).with_context(|| format!("cannot write {}", path.display()))?;
        println!("written: {TABLE}");
    }
    Ok(())
}

fn check_all(workspace: &Workspace) -> Result<()> {
    let names = workspace.packages.iter().map(|package| package.name.len());
    let width = names.max().unwrap_or(0);
    let start = Instant::now();
    step::heading("feature matrix");
    let mut waiting = VecDeque::new();
    let mut packages: Vec<&Package> = workspace.packages.iter().collect();
    // Those that are not published have the most dependencies, which lint has checked in the first worker's directory.
    packages.sort_by_key(|package| package.is_published());
    for package in packages {
        let mut selections = selections(package);
        if package.name == FACADE {
            selections.extend(pairs(package));
        }
        waiting.extend(selections.into_iter().map(|selection| (package, selection)));
    }
    let count = waiting.len();
    let waiting = Mutex::new(waiting);
    let check_some = |target: &Path, from_front: bool| -> Result<Vec<String>> {
        let mut failed = Vec::new();
        loop {
            let taken = {
                let mut waiting = waiting.lock().expect(NO_PANIC);
                if from_front {
                    waiting.pop_front()
                } else {
                    waiting.pop_back()
                }
            };
            let Some((package, selection)) = taken else {
                return Ok(failed);
            };
            let failure = check(package, &selection, target)?;
            let verdict = if failure.is_some() { "FAILED" } else { "ok" };
            println!("{:width$}  {:40}  {verdict}", package.name, selection.name);
            if let Some((line, diagnostics)) = failure {
                eprintln!("{diagnostics}");
                failed.push(line);
            }
        }
    };
    // Each selection has little to do at once, and holds the lock of its target directory meanwhile: a worker for each of two directories,
    // from both ends of the list.
    let other = workspace.target.join("xtask").join("features");
    let (first, second) = thread::scope(|scope| {
        let second = scope.spawn(|| check_some(&other, false));
        let first = check_some(&workspace.target, true);
        (first, second.join().expect(NO_PANIC))
    });
    let mut failed = first?;
    failed.extend(second?);
    let seconds = start.elapsed().as_secs_f64();
    if !failed.is_empty() {
        bail!(
            "{} of {count} selections failed; to run them again:\n\n    {}\n",
            failed.len(),
            failed.join("\n    ")
        );
    }
    println!("{count} selections ok in {seconds:.1} s");
    Ok(())
}

/// Returns the command and what it printed when it fails.
fn check(
    package: &Package,
    selection: &Selection,
    target: &Path,
) -> Result<Option<(String, String)>> {
    let mut command = workspace::cargo();
    command
        .args(["check", "--quiet", "--package", &package.name])
        .args(&selection.arguments)
        .stdin(Stdio::null());
    let line = step::command_line(&command);
    command.arg("--target-dir").arg(target);
    let output = command.output().context("cannot start cargo")?;
    let diagnostics = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((!output.status.success()).then_some((line, diagnostics)))
}

fn selections(package: &Package) -> Vec<Selection> {
    let mut selections = vec![Selection {
        name: "(none)".to_owned(),
        arguments: vec!["--no-default-features".to_owned()],
    }];
    selections.extend(package.features.keys().map(|feature| selection(&[feature])));
    if !package.features.is_empty() {
        selections.push(Selection {
            name: "(all)".to_owned(),
            arguments: vec!["--all-features".to_owned()],
        });
    }
    selections
}

/// The given features and no others.
fn selection(features: &[&str]) -> Selection {
    let bare = ["--no-default-features", "--features"].map(str::to_owned);
    let mut arguments = bare.to_vec();
    arguments.push(features.join(","));
    Selection {
        name: features.join(" + "),
        arguments,
    }
}

/// Every two features that bring a crate of the workspace each. What else the facade has passes a feature on to one of these crates, which is checked with it
/// alone and with all.
fn pairs(package: &Package) -> Vec<Selection> {
    let brings_crate =
        |listed: &Vec<String>| listed.iter().any(|name| name.starts_with("dep:perf-"));
    let crates = package.features.iter();
    let crates = crates.filter(|(_, listed)| brings_crate(listed));
    let names: Vec<&str> = crates.map(|(name, _)| name.as_str()).collect();
    let mut pairs = Vec::new();
    for (place, one) in names.iter().enumerate() {
        pairs.extend(
            names[place + 1..]
                .iter()
                .map(|other| selection(&[one, other])),
        );
    }
    pairs
}

/// Fails when a feature brings more crates than promised.
fn check_crates(workspace: &Workspace) -> Result<()> {
    step::heading("crates per feature");
    let Some(facade) = facade(workspace) else {
        return Ok(());
    };
    for (feature, most) in CRATES_MAX {
        if !facade.features.contains_key(feature) {
            continue;
        }
        let count = crates(feature)?.len();
        println!("{FACADE} with {feature}: {count} crates, at most {most}");
        if count > most {
            bail!("`{feature}` alone brings {count} crates, and {most} are promised");
        }
    }
    Ok(())
}

fn facade(workspace: &Workspace) -> Option<&Package> {
    workspace
        .packages
        .iter()
        .find(|package| package.name == FACADE)
}

/// The crates that end up in a build of the facade with one feature.
fn crates(feature: &str) -> Result<BTreeSet<String>> {
    let mut tree = workspace::cargo();
    tree.args(["tree", "--package", FACADE, "--edges", "normal,build"])
        .args(["--no-default-features", "--features", feature])
        .args(["--prefix", "none", "--format", "{p}"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = tree.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`{}` failed: {}", step::command_line(&tree), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // A crate that stands in the tree again has a mark behind its version.
    let name = |line: &str| {
        let mut words = line.split_whitespace();
        Some(format!("{} {}", words.next()?, words.next()?))
    };
    Ok(text.lines().filter_map(name).collect())
}

/// Builds the facade with each feature from nothing and returns the page with the table.
fn measured(workspace: &Workspace) -> Result<String> {
    step::heading("cost of each feature, built from nothing");
    let facade = facade(workspace).context("there is no facade")?;
    let target = workspace.target.join("xtask").join("features-measured");
    let mut rows = String::new();
    for feature in facade.features.keys() {
        if ["document-features", "default"].contains(&feature.as_str()) {
            continue;
        }
        if target.exists() {
            fs::remove_dir_all(&target)
                .with_context(|| format!("cannot remove {}", target.display()))?;
        }
        let mut build = workspace::cargo();
        build
            .args(["build", "--quiet", "--release", "--package", FACADE])
            .args(["--no-default-features", "--features", feature])
            .arg("--target-dir")
            .arg(&target);
        let start = Instant::now();
        step::run(feature, &mut build)?;
        let seconds = start.elapsed().as_secs_f64();
        let count = crates(feature)?.len();
        writeln!(rows, "| `{feature}` | {count} | {seconds:.0} |")
            .expect("a String takes every line");
    }
    // What is left of the last build is of no use to anybody.
    let _ = fs::remove_dir_all(&target);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(format!(
        "# What each feature costs\n\n\
         Written by `cargo xtask features --measure`, not by hand. Crates are all that the build compiles, `{FACADE}` included;\n\
         seconds are those of a release build of `{FACADE}` with that feature alone, from an empty target directory, on a machine\n\
         with {cores} cores. What two features share is built once.\n\n\
         | feature | crates | seconds |\n|---|---|---|\n{rows}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(features: &[(&str, &[&str])]) -> Package {
        let feature = |&(name, brings): &(&str, &[&str])| {
            let brings = brings.iter().map(|name| (*name).to_owned()).collect();
            (name.to_owned(), brings)
        };
        Package {
            name: "x".to_owned(),
            version: semver::Version::new(0, 1, 0),
            description: None,
            manifest_path: "x/Cargo.toml".into(),
            features: features.iter().map(feature).collect(),
            dependencies: Vec::new(),
            publish: None,
        }
    }

    #[test]
    fn none_each_and_all_are_selected() {
        let package = package(&[("a", &[]), ("default", &["a"])]);
        let lines: Vec<String> = selections(&package)
            .iter()
            .map(|selection| selection.arguments.join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "--no-default-features",
                "--no-default-features --features a",
                "--no-default-features --features default",
                "--all-features"
            ]
        );
        assert_eq!(selections(&self::package(&[])).len(), 1);
    }

    #[test]
    fn every_two_crates_are_paired() {
        let package = package(&[
            ("a", &["dep:perf-a"]),
            ("a-more", &["a", "perf-a/more"]),
            ("b", &["dep:perf-b"]),
            ("c", &["dep:perf-c"]),
            ("full", &["a", "a-more", "b", "c"]),
        ]);
        let names: Vec<String> = pairs(&package)
            .into_iter()
            .map(|selection| selection.name)
            .collect();
        assert_eq!(names, ["a + b", "a + c", "b + c"]);
    }
}
