//! `cargo xtask test`: every test there is.

use std::env;
use std::ffi::OsString;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::step;
use crate::workspace::{self, Package, Workspace};

/// A test target that needs the whole tree built under a cfg of its own, where a crate has it.
struct Special {
    /// The file `tests/<name>.rs`, and the name of its target directory.
    name: &'static str,
    cfg: &'static str,
    what: &'static str,
}

const SPECIAL: [Special; 2] = [
    // Makes the crates' `primitive` modules use loom in place of std.
    Special {
        name: "loom",
        cfg: "perf_loom",
        what: "loom tests",
    },
    // Compiles the seeded faults in, which the simulations have to find.
    Special {
        name: "mutants",
        cfg: "perf_mutants",
        what: "mutants",
    },
];

pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    let workspace = Workspace::load()?;
    let mut tests = workspace::cargo();
    tests.args(["test", "--workspace", "--features"]);
    tests.arg(features(&workspace.packages));
    step::run("unit, integration and doc tests", &mut tests)?;
    for special in &SPECIAL {
        let file = format!("tests/{}.rs", special.name);
        let has_it = |package: &&Package| package.directory().join(&file).is_file();
        let packages: Vec<&Package> = workspace.packages.iter().filter(has_it).collect();
        if !packages.is_empty() {
            let mut test = special_test(special, &workspace, &packages);
            step::run(special.what, &mut test)?;
        }
    }
    eprintln!(
        "\nAll tests passed in {:.1} s.",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Every feature that reaches a user. The benches' peers are left out: they are large, and no test is about them.
fn features(packages: &[Package]) -> String {
    let of = |package: &Package| {
        let name = package.name.clone();
        let features: Vec<&String> = package.features.keys().collect();
        let features = features
            .into_iter()
            .map(|feature| format!("{name}/{feature}"));
        features.collect::<Vec<_>>()
    };
    let published = packages.iter().filter(|package| package.is_published());
    published.flat_map(of).collect::<Vec<_>>().join(",")
}

/// An optimised build, since these walk through many thousand runs; in a directory of its own,
/// since other flags would make every other build start over.
fn special_test(special: &Special, workspace: &Workspace, packages: &[&Package]) -> Command {
    let mut command = workspace::cargo();
    let (name, flags) = with_cfg(special.cfg, |name| env::var_os(name));
    command.args(["test", "--release", "--test", special.name]);
    for package in packages {
        command.args(["--package", &package.name]);
    }
    command
        .arg("--target-dir")
        .arg(workspace.target.join(special.name))
        .env(name, flags);
    command
}

/// Appends to the flags that are in force, wherever they come from.
fn with_cfg(cfg: &str, variable: impl Fn(&str) -> Option<OsString>) -> (&'static str, OsString) {
    // Cargo looks at the encoded form first and then ignores the other.
    for (name, separator) in [("CARGO_ENCODED_RUSTFLAGS", "\x1f"), ("RUSTFLAGS", " ")] {
        if let Some(mut flags) = variable(name).filter(|flags| !flags.is_empty()) {
            for flag in ["--cfg", cfg] {
                flags.push(separator);
                flags.push(flag);
            }
            return (name, flags);
        }
    }
    ("RUSTFLAGS", format!("--cfg {cfg}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_in_force_are_kept() {
        let with_loom =
            |variable: &dyn Fn(&str) -> Option<OsString>| with_cfg("perf_loom", variable);
        let none = with_loom(&|_| None);
        assert_eq!(none, ("RUSTFLAGS", "--cfg perf_loom".into()));
        let plain = with_loom(&|name| (name == "RUSTFLAGS").then(|| "-Cdebuginfo=1".into()));
        assert_eq!(plain, ("RUSTFLAGS", "-Cdebuginfo=1 --cfg perf_loom".into()));
        let encoded = with_loom(&|_| Some("-C\x1fdebuginfo=1".into()));
        let expected = "-C\x1fdebuginfo=1\x1f--cfg\x1fperf_loom".into();
        assert_eq!(encoded, ("CARGO_ENCODED_RUSTFLAGS", expected));
    }
}
