//! The real program: what it refuses, and how.

use std::process::{Command, Output};

fn xtask(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .args(arguments)
        .output()
        .expect("cargo has built it")
}

fn assert_refused(output: &Output, status: i32, part: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(stderr.contains(part), "{stderr}");
    assert!(output.stdout.is_empty(), "it reported something");
}

#[test]
fn unknown_options_are_a_usage_error() {
    assert_refused(&xtask(&["bench", "--slow"]), 2, "--slow");
    assert_refused(&xtask(&["frobnicate"]), 2, "frobnicate");
    assert_refused(&xtask(&[]), 2, "no command");
}

#[test]
fn help_goes_to_standard_output() {
    for command in [
        "bench",
        "profile",
        "gate-test",
        "test",
        "sim",
        "release",
        "lint",
        "features",
        "package",
        "ci",
    ] {
        let output = xtask(&[command, "--help"]);
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.starts_with(&format!("Usage: cargo xtask {command}")),
            "{text}"
        );
    }
}

#[test]
fn an_unwritable_report_is_refused_before_anything_is_built() {
    let path = std::env::temp_dir()
        .join("xtask-no-such-directory")
        .join("report.json");
    let path = path.to_string_lossy();
    let output = xtask(&["bench", "--json", &path]);
    assert_refused(&output, 1, &format!("cannot write the report to {path}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("Compiling"), "{stderr}");
}

#[test]
fn an_absent_tool_is_refused_before_anything_is_built() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["bench", "--icount"]).env("PATH", "");
    let output = command.output().expect("cargo has built it");
    assert_refused(&output, 1, "--icount needs valgrind");
}

#[test]
fn an_unknown_filter_is_refused() {
    let output = xtask(&["bench", "no-such-case", "--quick"]);
    assert_refused(&output, 1, "no case matches `no-such-case`");
}
