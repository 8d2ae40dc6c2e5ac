//! `cargo xtask package`: what would be published, proven without publishing it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::checks::PUBLISHED_FILES;
use crate::step;
use crate::workspace::{self, Package, Workspace};

/// Files that cargo writes into a package or every crate has; besides these and
/// [`PUBLISHED_FILES`], a package has only what is in [`DIRECTORIES`].
const FILES: [&str; 4] = [
    ".cargo_vcs_info.json",
    "Cargo.lock",
    "Cargo.toml",
    "Cargo.toml.orig",
];

/// Directories whose files belong into a package.
const DIRECTORIES: [&str; 5] = ["src/", "tests/", "examples/", "benches/", "dashboards/"];

pub(crate) fn run(allow_dirty: bool) -> Result<()> {
    let workspace = Workspace::load()?;
    if !allow_dirty && workspace::is_dirty() == Some(true) {
        bail!(
            "there are uncommitted changes, and what is not committed is not what would be published: \
             commit them, or run `cargo xtask package --allow-dirty`"
        );
    }
    step::heading("contents of the packages");
    let mut problems = Vec::new();
    for package in workspace.published() {
        let files = files_of(package, allow_dirty)?;
        println!("{}: {} files", package.name, files.len());
        let found = content_problems(&files);
        problems.extend(
            found
                .into_iter()
                .map(|problem| format!("{}: {problem}", package.name)),
        );
    }
    if !problems.is_empty() {
        bail!("the packages are not right:\n  {}", problems.join("\n  "));
    }

    let published: Vec<&Package> = workspace.published().collect();
    forget_last_run(&published)?;
    let mut publish = workspace::cargo();
    publish.args(["publish", "--workspace", "--dry-run", "--all-features"]);
    if allow_dirty {
        publish.arg("--allow-dirty");
    }
    step::run("dry run: every crate built from its package", &mut publish)?;

    println!("\nPublish in this order: {}", order(&published)?.join(", "));
    Ok(())
}

/// Has cargo unpack and build the packages anew.
///
/// It takes those of the last dry run for them, as a registry's package of one version never changes: a crate would be built with what another
/// one was then.
fn forget_last_run(published: &[&Package]) -> Result<()> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let Some(home) = home.or_else(|| Some(env::home_dir()?.join(".cargo"))) else {
        bail!("cannot tell where cargo keeps its files: set CARGO_HOME");
    };
    let found = unpacked(&home.join("registry/src"), published);
    for directory in &found {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    if !found.is_empty() {
        let mut clean = workspace::cargo();
        clean.arg("clean").arg("--quiet");
        for package in published {
            clean.args(["--package", &package.name]);
        }
        step::run("what the last dry run built is removed", &mut clean)?;
    }
    Ok(())
}

/// Where packages of dry runs were unpacked: below directories that are named after a registry, which has no host there.
fn unpacked(sources: &Path, published: &[&Package]) -> Vec<PathBuf> {
    // Without the directory nothing was unpacked.
    let registries = fs::read_dir(sources).into_iter().flatten().flatten();
    let local = registries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"-"));
    let packages = local.flat_map(|entry| {
        published.iter().map(move |package| {
            let name = format!("{}-{}", package.name, package.version);
            entry.path().join(name)
        })
    });
    packages.filter(|path| path.is_dir()).collect()
}

fn files_of(package: &Package, allow_dirty: bool) -> Result<Vec<String>> {
    let mut list = workspace::cargo();
    list.args(["package", "--list", "--package", &package.name]);
    if allow_dirty {
        list.arg("--allow-dirty");
    }
    let output = list
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`{}` failed: {}", step::command_line(&list), output.status);
    }
    let text = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(text.lines().map(|line| line.replace('\\', "/")).collect())
}

fn content_problems(files: &[String]) -> Vec<String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let missing = PUBLISHED_FILES.iter().filter(|name| !has(name));
    let mut problems: Vec<String> = missing.map(|name| format!("{name} is missing")).collect();
    for file in files {
        let known = FILES.contains(&file.as_str())
            || PUBLISHED_FILES.contains(&file.as_str())
            || DIRECTORIES
                .iter()
                .any(|directory| file.starts_with(directory));
        if !known {
            problems.push(format!("{file} is a stray file"));
        }
    }
    problems
}

/// Sorts the crates so that each comes after those it depends on.
///
/// Dependencies for tests are left out, as cargo leaves those without a version out of a package.
pub(crate) fn order(packages: &[&Package]) -> Result<Vec<String>> {
    let mut waiting: Vec<&Package> = packages.to_vec();
    let mut ordered: Vec<String> = Vec::new();
    while !waiting.is_empty() {
        let is_ready = |package: &&Package| {
            let needed = package.dependencies.iter().filter(|dependency| {
                dependency.path.is_some() && dependency.kind.as_deref() != Some("dev")
            });
            needed
                .into_iter()
                .all(|dependency| ordered.contains(&dependency.name))
        };
        let (ready, rest): (Vec<&Package>, Vec<&Package>) = waiting.into_iter().partition(is_ready);
        if ready.is_empty() {
            let names: Vec<&str> = rest.iter().map(|package| package.name.as_str()).collect();
            bail!(
                "no order to publish in: {} need each other or an unpublished crate",
                names.join(", ")
            );
        }
        ordered.extend(ready.iter().map(|package| package.name.clone()));
        waiting = rest;
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn package(name: &str, needs: &[(&str, Option<&str>)]) -> Package {
        let dependency = |&(name, kind): &(&str, Option<&str>)| Dependency {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            path: Some(name.into()),
        };
        Package {
            name: name.to_owned(),
            version: semver::Version::new(0, 1, 0),
            description: None,
            manifest_path: "Cargo.toml".into(),
            features: [].into(),
            dependencies: needs.iter().map(dependency).collect(),
            publish: None,
        }
    }

    #[test]
    fn dependencies_come_first() {
        let top = package("top", &[("middle", None), ("base", None)]);
        let middle = package("middle", &[("base", Some("build")), ("top", Some("dev"))]);
        let base = package("base", &[]);
        let ordered = order(&[&top, &middle, &base]).ok();
        assert_eq!(
            ordered,
            Some(vec![
                "base".to_owned(),
                "middle".to_owned(),
                "top".to_owned()
            ])
        );
        let error = order(&[&top, &middle]).expect_err("base is not among them");
        assert!(error.to_string().contains("top, middle"), "{error}");
    }

    #[test]
    fn only_packages_of_dry_runs_are_forgotten() -> Result<()> {
        let sources = tempfile::tempdir()?;
        for directory in ["-0f3c/ours-0.1.0", "-0f3c/ours-0.2.0", "-0f3c/theirs-0.1.0"] {
            fs::create_dir_all(sources.path().join(directory))?;
        }
        fs::create_dir_all(sources.path().join("index.example-0f3c/ours-0.1.0"))?;
        let ours = package("ours", &[]);
        let other = package("other", &[]);
        let found = unpacked(sources.path(), &[&ours, &other]);
        assert_eq!(found, [sources.path().join("-0f3c/ours-0.1.0")]);
        assert!(unpacked(&sources.path().join("nowhere"), &[&ours]).is_empty());
        Ok(())
    }

    #[test]
    fn missing_and_stray_files_are_found() {
        let files = [
            "Cargo.toml",
            "README.md",
            "LICENSE-MIT",
            "LICENSE-APACHE",
            "src/lib.rs",
            "notes.txt",
        ];
        let files: Vec<String> = files.iter().map(ToString::to_string).collect();
        assert_eq!(
            content_problems(&files),
            ["CHANGELOG.md is missing", "notes.txt is a stray file"]
        );
    }
}
