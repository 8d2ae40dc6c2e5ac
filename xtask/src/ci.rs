//! `cargo xtask ci`: the steps of `.ci/run`, in its order.

use std::env;
use std::io::{BufRead, BufReader, Write, stdout};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::step;

/// The command lines after `cargo xtask`, as `.ci/run` has them too.
const STEPS: [&[&str]; 6] = [
    &["test"],
    &["lint"],
    &["features"],
    &["package"],
    &["bench", "--quick", "--against", "main", "--gate"],
    &["soak", "--minutes", "2", "--debug"],
];

/// How the lines begin that are worth repeating at the end.
const SUMMARY: &str = "test result:";

pub(crate) fn run(allow_dirty: bool) -> Result<()> {
    let own = env::current_exe().context("cannot find this program")?;
    let start = Instant::now();
    let mut summary = Vec::new();
    for arguments in STEPS {
        let mut command = Command::new(&own);
        command.args(arguments);
        if allow_dirty && arguments == ["package"] {
            command.arg("--allow-dirty");
        }
        summary.extend(run_step(&mut command, &mut stdout())?);
    }
    println!("\ncargo test's own summary:");
    for line in &summary {
        println!("{line}");
    }
    println!(
        "All steps passed in {:.0} s.",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Runs one step, passes its output on, and returns the lines of cargo test's summary.
fn run_step(command: &mut Command, out: &mut dyn Write) -> Result<Vec<String>> {
    let line = step::command_line(command).replacen("xtask", "cargo xtask", 1);
    eprintln!("\n##### {line}");
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let mut summary = Vec::new();
    if let Some(output) = child.stdout.take() {
        for text in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&text);
            // Nobody reads any more: the step still has to end by itself.
            let _ = writeln!(out, "{text}");
            if text.starts_with(SUMMARY) {
                summary.push(text.into_owned());
            }
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for `{line}`"))?;
    step::finish(&line, &line, status, start.elapsed())?;
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_has_the_same_steps_in_the_same_order() {
        let script = include_str!("../../.ci/run");
        let mut rest = script;
        for arguments in STEPS {
            let line = format!("\ncargo xtask {}", arguments.join(" "));
            let at = rest
                .find(&line)
                .unwrap_or_else(|| panic!("`{line}` is not there, or too early"));
            rest = &rest[at + line.len()..];
        }
        assert!(
            !rest.contains("\ncargo xtask"),
            "the script has more steps: {rest}"
        );
    }

    #[test]
    fn output_is_passed_on_and_its_summary_kept() {
        let mut out = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo test result: ok; echo other"]);
        assert_eq!(
            run_step(&mut command, &mut out).ok(),
            Some(vec!["test result: ok".to_owned()])
        );
        assert_eq!(out, b"test result: ok\nother\n");
        let mut command = Command::new("sh");
        command.args(["-c", "exit 1"]);
        assert!(run_step(&mut command, &mut out).is_err());
    }
}
