//! The tables of the READMEs, made from a saved run.
//!
//! A README has a place `<!-- bench:<group> -->` ... `<!-- /bench:<group> -->`, where `all` stands for every
//! group without its peers. What is between the two is written by `cargo xtask bench --write-readme`, and
//! `cargo xtask lint` compares it with the saved run.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::baseline::{self, Name};
use super::report::Report;
use super::table;
use crate::workspace::{self, Workspace};

/// The saved run that the tables are made from.
const NAME: &str = "main";
/// The group that stands for all.
const ALL: &str = "all";

/// Writes the tables of all READMEs.
pub(crate) fn write() -> Result<()> {
    let report = saved()?;
    for path in readmes()? {
        let old = read(&path)?;
        let new = rewritten(&old, &report).with_context(|| format!("in {}", path.display()))?;
        if new != old {
            fs::write(&path, new).with_context(|| format!("cannot write {}", path.display()))?;
            println!("written: {}", path.display());
        }
    }
    Ok(())
}

/// Returns a line per README whose table is not the saved run's.
pub(crate) fn problems() -> Result<Vec<String>> {
    let report = saved()?;
    let mut problems = Vec::new();
    for path in readmes()? {
        let text = read(&path)?;
        match rewritten(&text, &report) {
            Ok(expected) if expected == text => {}
            Ok(_) => problems.push(format!(
                "{}: a table is not the one of the saved run `{NAME}`; `cargo xtask bench --write-readme` writes it",
                path.display()
            )),
            Err(error) => problems.push(format!("{}: {error:#}", path.display())),
        }
    }
    Ok(problems)
}

fn saved() -> Result<Report> {
    let name: Name = NAME.parse()?;
    baseline::read_report(&baseline::report_path(&name)).with_context(|| {
        format!("the READMEs' tables need it; `cargo xtask bench --peers --icount --save {NAME}` makes it")
    })
}

/// The root's README and those of the published crates.
fn readmes() -> Result<Vec<PathBuf>> {
    let workspace = Workspace::load()?;
    let mut paths = vec![workspace::root().join("README.md")];
    paths.extend(
        workspace
            .published()
            .map(|package| package.directory().join("README.md")),
    );
    Ok(paths)
}

fn read(path: &PathBuf) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The text with every table made anew.
fn rewritten(text: &str, report: &Report) -> Result<String> {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, opened)) = rest.split_once("<!-- bench:") {
        let Some((group, inside)) = opened.split_once(" -->\n") else {
            bail!("`<!-- bench:` without its ` -->`");
        };
        let end = format!("<!-- /bench:{group} -->");
        let Some((_, after)) = inside.split_once(&end) else {
            bail!("`<!-- bench:{group} -->` without `{end}`");
        };
        result += before;
        result += &format!("<!-- bench:{group} -->\n{}{end}", table_of(group, report));
        rest = after;
    }
    result += rest;
    Ok(result)
}

/// A group's part of the report, as the command prints it, without the goals.
fn table_of(group: &str, report: &Report) -> String {
    let mut part = report.clone();
    part.against = None;
    if group == ALL {
        for case in &mut part.cases {
            case.peers.clear();
        }
    } else {
        let prefix = format!("{group}/");
        part.cases.retain(|case| case.id.starts_with(&prefix));
        part.experiments
            .retain(|experiment| experiment.id.starts_with(&prefix));
        part.headline.clear();
    }
    if part.cases.is_empty() && part.experiments.is_empty() {
        return String::new();
    }
    for case in &mut part.cases {
        case.goals.clear();
    }
    format!(
        "From the saved run `{NAME}` of `cargo xtask bench` on one machine; `before` is what nodes do today:\n\n\
         ```text\n{}```\n",
        table::render(&part, table::Colours::new(false))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample;

    #[test]
    fn every_place_gets_its_groups_table() -> Result<()> {
        let text = "a\n<!-- bench:pool -->\nold\n<!-- /bench:pool -->\nb\n<!-- bench:raft -->\nold\n<!-- /bench:raft -->\nc\n";
        let new = rewritten(text, &sample())?;
        assert!(new.starts_with("a\n<!-- bench:pool -->\nFrom the saved run"));
        assert!(new.contains("glibc malloc") && !new.contains("old"));
        assert!(!new.contains("Goals") && !new.contains("hit_ratio"));
        // What was not measured has no table.
        assert!(new.ends_with("b\n<!-- bench:raft -->\n<!-- /bench:raft -->\nc\n"));
        assert_eq!(rewritten(&new, &sample())?, new);
        Ok(())
    }

    #[test]
    fn the_roots_table_has_no_peers() -> Result<()> {
        let new = rewritten("<!-- bench:all -->\n<!-- /bench:all -->", &sample())?;
        assert!(new.contains("pool/1k") && new.contains("hit_ratio") && new.contains("Headline"));
        assert!(!new.contains("glibc malloc"));
        Ok(())
    }

    #[test]
    fn half_a_place_is_an_error() {
        let error = rewritten("<!-- bench:pool -->\n", &sample()).expect_err("it has no end");
        assert!(error.to_string().contains("/bench:pool"), "{error}");
    }
}
