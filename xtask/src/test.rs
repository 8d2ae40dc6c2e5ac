//! `cargo xtask test`: every test there is.

use std::env;
use std::ffi::OsString;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::step;
use crate::workspace::{self, Workspace};

/// What makes the crates' `primitive` modules use loom in place of std.
const LOOM_FLAGS: [&str; 2] = ["--cfg", "perf_loom"];

pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    let workspace = Workspace::load()?;
    let mut tests = workspace::cargo();
    tests.args(["test", "--workspace", "--all-features"]);
    step::run("unit, integration and doc tests", &mut tests)?;
    for package in &workspace.packages {
        if package.directory().join("tests/loom.rs").is_file() {
            let mut loom = loom_test(&workspace, &package.name);
            step::run(&format!("loom tests of {}", package.name), &mut loom)?;
        }
    }
    eprintln!(
        "\nAll tests passed in {:.1} s.",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// A release build, since loom walks through many thousand interleavings; in a directory of its own,
/// since other flags would make every other build start over.
fn loom_test(workspace: &Workspace, package: &str) -> Command {
    let mut command = workspace::cargo();
    let (name, flags) = with_loom(|name| env::var_os(name));
    command
        .args(["test", "--release", "--package", package, "--test", "loom"])
        .arg("--target-dir")
        .arg(workspace.target.join("loom"))
        .env(name, flags);
    command
}

/// Appends to the flags that are in force, wherever they come from.
fn with_loom(variable: impl Fn(&str) -> Option<OsString>) -> (&'static str, OsString) {
    // Cargo looks at the encoded form first and then ignores the other.
    for (name, separator) in [("CARGO_ENCODED_RUSTFLAGS", "\x1f"), ("RUSTFLAGS", " ")] {
        if let Some(mut flags) = variable(name).filter(|flags| !flags.is_empty()) {
            for flag in LOOM_FLAGS {
                flags.push(separator);
                flags.push(flag);
            }
            return (name, flags);
        }
    }
    ("RUSTFLAGS", LOOM_FLAGS.join(" ").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_in_force_are_kept() {
        let none = with_loom(|_| None);
        assert_eq!(none, ("RUSTFLAGS", "--cfg perf_loom".into()));
        let plain = with_loom(|name| (name == "RUSTFLAGS").then(|| "-Cdebuginfo=1".into()));
        assert_eq!(plain, ("RUSTFLAGS", "-Cdebuginfo=1 --cfg perf_loom".into()));
        let encoded = with_loom(|_| Some("-C\x1fdebuginfo=1".into()));
        let expected = "-C\x1fdebuginfo=1\x1f--cfg\x1fperf_loom".into();
        assert_eq!(encoded, ("CARGO_ENCODED_RUSTFLAGS", expected));
    }
}
