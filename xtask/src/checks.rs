//! The rules that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::links;
use crate::manifest;
use crate::workspace::{Package, Workspace};

/// What every published crate ships.
pub(crate) const PUBLISHED_FILES: [&str; 4] =
    ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// Where sources are, under the root.
const SOURCE_DIRECTORIES: [&str; 6] = [".cargo", ".ci", "benches", "crates", "docs", "xtask"];

/// Directories that belong to one machine. A path begins after something that is no part of one.
const MACHINE_PATHS: [&str; 4] = ["/home/", "/root/", "/Users/", "C:\\Users\\"];

/// Marks of unfinished work, in two parts so that this file has none itself.
const UNFINISHED: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

/// Returns a line per broken rule.
pub(crate) fn problems(workspace: &Workspace) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for package in &workspace.packages {
        let manifest = fs::read_to_string(&package.manifest_path)
            .with_context(|| format!("cannot read {}", package.manifest_path.display()))?;
        if !manifest::inherits_lints(&manifest) {
            let path = shown(&package.manifest_path, &workspace.root);
            problems.push(format!("{path} does not say `[lints] workspace = true`"));
        }
    }
    for package in workspace.published() {
        problems.extend(publishing_problems(package));
    }
    for path in sources(&workspace.root)? {
        // What is not text is not a source.
        if let Ok(text) = fs::read_to_string(&path) {
            let name = shown(&path, &workspace.root);
            problems.extend(text_problems(&name, &text));
            if let (true, Some(directory)) = (name.ends_with(".md"), path.parent()) {
                problems.extend(links::problems(&name, &text, directory));
            }
        }
    }
    Ok(problems)
}

fn publishing_problems(package: &Package) -> Vec<String> {
    let mut problems = Vec::new();
    for file in PUBLISHED_FILES {
        if !package.directory().join(file).is_file() {
            problems.push(format!("{} has no {file}", package.name));
        }
    }
    if package.description.as_ref().is_none_or(String::is_empty) {
        problems.push(format!("{} has no description", package.name));
    }
    problems
}

/// Returns a line per finding in one text.
fn text_problems(name: &str, text: &str) -> Vec<String> {
    // This file names the paths it looks for.
    let is_this_file = name.ends_with("xtask/src/checks.rs");
    let is_prose = name.ends_with(".md");
    let mut problems = Vec::new();
    for (line, number) in text.lines().zip(1_u32..) {
        if !is_this_file && has_machine_path(line) {
            problems.push(format!("{name}:{number}: a path of somebody's machine"));
        }
        if !is_prose && has_unfinished(line) {
            problems.push(format!("{name}:{number}: unfinished work"));
        }
    }
    problems
}

fn has_machine_path(line: &str) -> bool {
    MACHINE_PATHS.iter().any(|path| {
        line.match_indices(path).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            before.is_none_or(|c| !c.is_alphanumeric() && !"-_.}/".contains(c))
        })
    })
}

fn has_unfinished(line: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric())
        .any(|word| UNFINISHED.contains(&word))
}

/// All files of the source directories and of the root itself.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories: Vec<PathBuf> = SOURCE_DIRECTORIES
        .iter()
        .map(|name| root.join(name))
        .filter(|path| path.is_dir())
        .collect();
    for entry in entries(root)? {
        if entry.is_file() {
            found.push(entry);
        }
    }
    while let Some(directory) = directories.pop() {
        for entry in entries(&directory)? {
            let is_target = entry.file_name().is_some_and(|name| name == "target");
            if entry.is_dir() && !is_target {
                directories.push(entry);
            } else if entry.is_file() {
                found.push(entry);
            }
        }
    }
    // In a linked work tree `.git` is a file, and names the directory of the repository.
    found.retain(|path| {
        path.file_name()
            .is_some_and(|name| name != "Cargo.lock" && name != ".git")
    });
    found.sort();
    Ok(found)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let listing =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let paths: std::io::Result<Vec<PathBuf>> = listing
        .map(|entry| entry.map(|entry| entry.path()))
        .collect();
    paths.with_context(|| format!("cannot list {}", directory.display()))
}

fn shown(path: &Path, root: &Path) -> String {
    let short = path.strip_prefix(root).unwrap_or(path);
    short.display().to_string().replace('\\', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_paths_are_found_where_a_path_begins() {
        assert!(has_machine_path("see /home/me/notes"));
        assert!(has_machine_path("path = \"/root/x\""));
        assert!(has_machine_path("/Users/me"));
        assert!(!has_machine_path("https://example.org/home/page"));
        assert!(!has_machine_path("src/home/mod.rs"));
        assert!(!has_machine_path("{base}/home/x"));
    }

    #[test]
    fn unfinished_work_is_a_word_of_a_source() {
        let mark = UNFINISHED[0];
        let found = text_problems("a/b.rs", &format!("fine\n// {mark}: later\n"));
        assert_eq!(found, ["a/b.rs:2: unfinished work"]);
        assert!(text_problems("a/b.rs", &format!("let {mark}S = 1;")).is_empty());
        assert!(text_problems("a/b.md", mark).is_empty());
        assert_eq!(text_problems("a/b.md", "in /home/me").len(), 1);
    }

    #[test]
    fn this_workspaces_sources_are_found() -> Result<()> {
        let root = crate::workspace::root();
        let found = sources(root)?;
        assert!(found.contains(&root.join("xtask/src/checks.rs")));
        assert!(found.contains(&root.join("Cargo.toml")));
        assert!(!found.contains(&root.join("Cargo.lock")));
        Ok(())
    }

    #[test]
    fn a_crate_that_lacks_everything_is_told_everything() {
        let package = Package {
            name: "bare".to_owned(),
            version: semver::Version::new(0, 1, 0),
            description: None,
            manifest_path: "no-such-directory/Cargo.toml".into(),
            features: [].into(),
            dependencies: Vec::new(),
            publish: None,
        };
        let problems = publishing_problems(&package);
        assert_eq!(problems.len(), PUBLISHED_FILES.len() + 1);
        assert!(problems.contains(&"bare has no CHANGELOG.md".to_owned()));
    }
}
