//! What a build made, and where. Cargo says so, whatever the target directory and platform.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::step;

/// Cargo's messages about a build.
#[derive(Debug)]
pub(crate) struct Built(String);

/// The part of them that says where an executable is.
#[derive(Debug, Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

impl Built {
    /// Runs a `cargo build` to its end, its diagnostics on standard error.
    pub(crate) fn by(build: &mut Command) -> Result<Self> {
        let line = step::command_line(build);
        build
            .arg("--message-format=json-render-diagnostics")
            .stderr(Stdio::inherit());
        let output = build.output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!("the build failed; to see it again:\n\n    {line}\n");
        }
        Ok(Self(String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// Where the executable of a binary or example is.
    pub(crate) fn executable(&self, name: &str) -> Result<PathBuf> {
        let messages = self.0.lines();
        let mut messages = messages.filter_map(|line| serde_json::from_str::<Message>(line).ok());
        let found = messages.find_map(|message| {
            let is_it = message.target.is_some_and(|target| target.name == name);
            message.executable.filter(|_| is_it)
        });
        found.ok_or_else(|| anyhow!("cargo built no {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_of_a_target_is_found() {
        let messages = "\
{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"other\"},\"executable\":\"/t/other\"}
{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"worker\"},\"executable\":null}
not json
{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"worker\"},\"executable\":\"/t/worker\"}
{\"reason\":\"build-finished\",\"success\":true}";
        let built = Built(messages.to_owned());
        assert_eq!(built.executable("worker").ok(), Some("/t/worker".into()));
        let error = built
            .executable("absent")
            .expect_err("it is not among them");
        assert!(error.to_string().contains("built no absent"), "{error}");
    }
}
