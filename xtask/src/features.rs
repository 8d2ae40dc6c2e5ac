//! `cargo xtask features`: every crate with no feature, each feature alone, and all together.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::step;
use crate::workspace::{self, Package, Workspace};

/// A selection of features as the table and cargo name it.
#[derive(Debug, PartialEq, Eq)]
struct Selection {
    name: String,
    arguments: Vec<String>,
}

pub(crate) fn run() -> Result<()> {
    let workspace = Workspace::load()?;
    let width = workspace
        .packages
        .iter()
        .map(|package| package.name.len())
        .max()
        .unwrap_or(0);
    let start = Instant::now();
    let (mut checked, mut failed) = (0, Vec::new());
    step::heading("feature matrix");
    for package in &workspace.packages {
        for selection in selections(package) {
            checked += 1;
            let failure = check(package, &selection)?;
            let verdict = if failure.is_some() { "FAILED" } else { "ok" };
            println!("{:width$}  {:24}  {verdict}", package.name, selection.name);
            if let Some((line, diagnostics)) = failure {
                eprintln!("{diagnostics}");
                failed.push(line);
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    if !failed.is_empty() {
        bail!(
            "{} of {checked} selections failed; to run them again:\n\n    {}\n",
            failed.len(),
            failed.join("\n    ")
        );
    }
    println!("{checked} selections ok in {seconds:.1} s");
    Ok(())
}

/// Returns the command and what it printed when it fails.
fn check(package: &Package, selection: &Selection) -> Result<Option<(String, String)>> {
    let mut command = workspace::cargo();
    command
        .args(["check", "--quiet", "--package", &package.name])
        .args(&selection.arguments)
        .stdin(Stdio::null());
    let output = command.output().context("cannot start cargo")?;
    let diagnostics = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((!output.status.success()).then(|| (step::command_line(&command), diagnostics)))
}

fn selections(package: &Package) -> Vec<Selection> {
    let bare = "--no-default-features".to_owned();
    let mut selections = vec![Selection {
        name: "(none)".to_owned(),
        arguments: vec![bare.clone()],
    }];
    for feature in package.features.keys() {
        selections.push(Selection {
            name: feature.clone(),
            arguments: vec![bare.clone(), "--features".to_owned(), feature.clone()],
        });
    }
    if !package.features.is_empty() {
        selections.push(Selection {
            name: "(all)".to_owned(),
            arguments: vec!["--all-features".to_owned()],
        });
    }
    selections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_each_and_all_are_selected() {
        let package = Package {
            name: "x".to_owned(),
            description: None,
            manifest_path: "x/Cargo.toml".into(),
            features: [
                ("a".to_owned(), vec![]),
                ("default".to_owned(), vec!["a".to_owned()]),
            ]
            .into(),
            dependencies: Vec::new(),
            publish: None,
        };
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
        let plain = Package {
            features: [].into(),
            ..package
        };
        assert_eq!(selections(&plain).len(), 1);
    }
}
