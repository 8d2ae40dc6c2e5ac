//! One step of a command: a heading, a child process, its time, and what to do when it fails.

use std::io::{Write, stderr, stdout};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Announces what follows.
pub(crate) fn heading(text: &str) {
    eprintln!("\n==> {text}");
}

/// Runs a command to its end under a heading.
///
/// # Errors
///
/// Names the command line to run again when it fails.
pub(crate) fn run(text: &str, command: &mut Command) -> Result<()> {
    heading(text);
    let line = command_line(command);
    eprintln!("    {line}");
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    finish(text, &line, status, start.elapsed())
}

/// Runs a command under a heading, and others beside it. Shows what each of these printed when all have ended, in their order.
///
/// # Errors
///
/// Names the command line of the first that failed, after all have ended.
pub(crate) fn run_beside(
    text: &str,
    command: &mut Command,
    others: Vec<(&str, Command)>,
) -> Result<()> {
    let start = Instant::now();
    let run_quietly = |mut command: Command| {
        let line = command_line(&command);
        let output = command.output();
        let output = output.with_context(|| format!("cannot start `{line}`"));
        (line, output, start.elapsed())
    };
    thread::scope(|scope| {
        let mut running = Vec::new();
        for (text, command) in others {
            running.push((text, scope.spawn(move || run_quietly(command))));
        }
        let mut outcome = run(text, command);
        for (text, running) in running {
            let (line, output, time) = running.join().expect("a command's thread does not panic");
            heading(text);
            eprintln!("    {line}");
            let output = output?;
            stderr().write_all(&output.stderr)?;
            stdout().write_all(&output.stdout)?;
            let ended = finish(text, &line, output.status, time);
            outcome = outcome.and(ended);
        }
        outcome
    })
}

/// Reports a step that has ended.
pub(crate) fn finish(text: &str, line: &str, status: ExitStatus, time: Duration) -> Result<()> {
    let seconds = time.as_secs_f64();
    if !status.success() {
        bail!("{text} failed after {seconds:.1} s ({status}); to run it again:\n\n    {line}\n");
    }
    eprintln!("    ok in {seconds:.1} s");
    Ok(())
}

/// The command as one would type it, with the variables it sets.
pub(crate) fn command_line(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let value = quoted(&value.to_string_lossy());
            words.push(format!("{}={value}", name.to_string_lossy()));
        }
    }
    let program = command.get_program().to_string_lossy().into_owned();
    let short = program.rsplit(['/', '\\']).next().unwrap_or(&program);
    words.push(quoted(short));
    words.extend(
        command
            .get_args()
            .map(|word| quoted(&word.to_string_lossy())),
    );
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_pasted() {
        let mut command = Command::new("/opt/bin/cargo");
        command
            .args(["test", "it's"])
            .env("RUSTFLAGS", "--cfg perf_loom")
            .env_remove("HOME");
        assert_eq!(
            command_line(&command),
            "RUSTFLAGS='--cfg perf_loom' cargo test 'it'\\''s'"
        );
    }

    #[test]
    fn a_failure_names_the_command() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        let error = run("trying", &mut command).expect_err("it exits with 3");
        let text = error.to_string();
        assert!(
            text.contains("trying failed") && text.contains("sh -c 'exit 3'"),
            "{text}"
        );
    }

    #[test]
    fn all_commands_end_and_a_failure_names_its_command() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let run = |first: &str, second: &str| {
            run_beside("one", &mut shell(first), vec![("two", shell(second))])
        };
        run("true", "true").expect("both do");
        for (first, second, failed) in [("exit 3", "true", "one"), ("true", "exit 3", "two")] {
            let error = run(first, second).expect_err("one of them exits with 3");
            let text = error.to_string();
            assert!(
                text.contains(&format!("{failed} failed")) && text.contains("sh -c 'exit 3'"),
                "{text}"
            );
        }
    }
}
