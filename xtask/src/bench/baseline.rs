//! Runs that are kept under a name: the report, and the programs that made it.
//!
//! The report is `benches/baselines/<name>.json`, a text that can be committed. The programs stay in the
//! target directory: with them a later build is timed against this one in one run, which is the only way to
//! tell a few per cent. Without them only counts can be compared.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::build::Binaries;
use super::json_file::JsonFile;
use super::report::{Report, SCHEMA};
use crate::workspace;

/// Where the reports are, under the root.
const REPORTS: &str = "benches/baselines";
/// Where the programs are, under the target directory.
const PROGRAMS: &str = "xtask/baselines";

/// A name that is fit for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(String);

impl std::str::FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if text.is_empty() || text.starts_with('.') || !text.chars().all(allowed) {
            bail!(
                "`{text}` is no name for a baseline: letters, digits, `-`, `_` and `.` are, and no `.` in front"
            );
        }
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A kept run.
#[derive(Debug)]
pub(crate) struct Baseline {
    pub(crate) name: Name,
    pub(crate) report: Report,
    /// Where they are still there and belong to the report.
    pub(crate) binaries: Option<Binaries>,
}

/// Where a report of that name is kept.
pub(crate) fn report_path(name: &Name) -> PathBuf {
    workspace::root().join(REPORTS).join(format!("{name}.json"))
}

/// Reads a report.
pub(crate) fn read_report(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the report {}", path.display()))?;
    let report: Report = serde_json::from_str(&text)
        .with_context(|| format!("{} is no report of `cargo xtask bench`", path.display()))?;
    if report.schema != SCHEMA {
        bail!(
            "{} has schema {}, and this is schema {SCHEMA}: save it anew",
            path.display(),
            report.schema
        );
    }
    Ok(report)
}

impl Baseline {
    /// Finds the run of that name.
    pub(crate) fn load(name: &Name, target: &Path) -> Result<Self> {
        let path = report_path(name);
        if !path.is_file() {
            let names = names();
            let there = if names.is_empty() {
                "there is none yet".to_owned()
            } else {
                format!("there are: {}", names.join(", "))
            };
            bail!("no baseline `{name}`; {there}. `cargo xtask bench --save {name}` makes one");
        }
        Ok(Self {
            name: name.clone(),
            report: read_report(&path)?,
            binaries: Binaries::kept_in(&programs(name, target))
                .filter(|_| same(&path, &programs(name, target).join("report.json"))),
        })
    }
}

/// Keeps a run.
pub(crate) fn save(name: &Name, report: &Report, binaries: &Binaries, target: &Path) -> Result<()> {
    let path = report_path(name);
    let directory = programs(name, target);
    for needed in [path.parent(), Some(directory.as_path())]
        .into_iter()
        .flatten()
    {
        fs::create_dir_all(needed)
            .with_context(|| format!("cannot create {}", needed.display()))?;
    }
    binaries.keep_in(&directory)?;
    JsonFile::claim(&path)?.write(report)?;
    JsonFile::claim(&directory.join("report.json"))?.write(report)
}

fn programs(name: &Name, target: &Path) -> PathBuf {
    target.join(PROGRAMS).join(&name.0)
}

fn same(one: &Path, other: &Path) -> bool {
    match (fs::read(one), fs::read(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// The names of all baselines.
fn names() -> Vec<String> {
    let listing = fs::read_dir(workspace::root().join(REPORTS));
    let mut names: Vec<String> = listing
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| file.strip_suffix(".json").map(str::to_owned))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_plain_file_name() {
        for name in ["main", "v0.1.0", "a-b_c"] {
            assert_eq!(
                name.parse::<Name>()
                    .ok()
                    .map(|name| name.to_string())
                    .as_deref(),
                Some(name)
            );
        }
        for name in ["", ".hidden", "../up", "a/b", "a b"] {
            let error = name.parse::<Name>().expect_err("it is none");
            assert!(
                error.to_string().contains("no name for a baseline"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_baseline_that_is_not_there_is_named() {
        let name: Name = "no-such-baseline".parse().expect("it is a name");
        let error = Baseline::load(&name, Path::new("target")).expect_err("it is not there");
        let text = error.to_string();
        assert!(
            text.contains("no baseline `no-such-baseline`") && text.contains("--save"),
            "{text}"
        );
    }
}
