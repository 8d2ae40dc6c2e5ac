//! `cargo xtask lint`: formatting, clippy, docs, and the workspace's own rules.

use std::env;

use anyhow::{Result, bail};

use crate::bench;
use crate::checks;
use crate::step;
use crate::workspace::{self, Workspace};

pub(crate) fn run() -> Result<()> {
    let workspace = Workspace::load()?;
    let mut fmt = workspace::cargo();
    fmt.args(["fmt", "--all", "--check"]);
    step::run("formatting", &mut fmt)?;

    let mut clippy = workspace::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--all-features"]);
    clippy.args(["--", "--deny", "warnings"]);
    step::run("clippy", &mut clippy)?;

    let mut docs = workspace::cargo();
    docs.args(["doc", "--workspace", "--all-features", "--no-deps"]);
    let mut flags = env::var_os("RUSTDOCFLAGS").unwrap_or_default();
    flags.push(" -D warnings");
    docs.env("RUSTDOCFLAGS", flags.to_string_lossy().trim());
    step::run("docs", &mut docs)?;

    step::heading("rules of the workspace");
    let mut problems = checks::problems(&workspace)?;
    problems.extend(bench::readme_problems()?);
    if !problems.is_empty() {
        bail!(
            "{} rules broken:\n  {}",
            problems.len(),
            problems.join("\n  ")
        );
    }
    eprintln!("    ok");
    Ok(())
}
