//! Building the workers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use super::listing::Allocator;
use crate::step;
use crate::workspace;

/// The names of the binaries.
const SYSTEM: &str = "perf-bench-system";
const COUNTING: &str = "perf-bench-counting";
const MIMALLOC: &str = "perf-bench-mimalloc";

/// The worker binaries.
#[derive(Debug)]
pub(crate) struct Binaries {
    pub(crate) system: PathBuf,
    pub(crate) counting: PathBuf,
    /// Built with peers only.
    pub(crate) mimalloc: Option<PathBuf>,
}

/// The part of cargo's messages that says where a binary is.
#[derive(Debug, Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

impl Binaries {
    /// Builds them as a user's release build would be.
    pub(crate) fn build(peers: bool) -> Result<Self> {
        let mut build = workspace::cargo();
        build.args([
            "build",
            "--package",
            "perf-benches",
            "--bins",
            "--profile",
            "bench",
        ]);
        if peers {
            build.args(["--features", "peers"]);
        }
        let line = step::command_line(&build);
        build
            .arg("--message-format=json-render-diagnostics")
            .stderr(Stdio::inherit());
        let output = build.output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!("the build of the cases failed; to see it again:\n\n    {line}\n");
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let found = |name: &str| executable(&text, name);
        let absent = |name: &str| anyhow!("cargo built no {name}");
        Ok(Self {
            system: found(SYSTEM).ok_or_else(|| absent(SYSTEM))?,
            counting: found(COUNTING).ok_or_else(|| absent(COUNTING))?,
            mimalloc: found(MIMALLOC),
        })
    }

    /// The binaries that [`keep_in`](Self::keep_in) put there; `None` unless the ones that every run needs are.
    pub(crate) fn kept_in(directory: &Path) -> Option<Self> {
        let found = |name: &str| Some(directory.join(name)).filter(|path| path.is_file());
        Some(Self {
            system: found(SYSTEM)?,
            counting: found(COUNTING)?,
            mimalloc: found(MIMALLOC),
        })
    }

    /// Copies the binaries, and takes away what an earlier copy had more.
    pub(crate) fn keep_in(&self, directory: &Path) -> Result<()> {
        let all = [
            (SYSTEM, Some(&self.system)),
            (COUNTING, Some(&self.counting)),
            (MIMALLOC, self.mimalloc.as_ref()),
        ];
        for (name, binary) in all {
            let kept = directory.join(name);
            let done = match binary {
                Some(binary) => fs::copy(binary, &kept).map(drop),
                None if kept.exists() => fs::remove_file(&kept),
                None => Ok(()),
            };
            done.with_context(|| format!("cannot keep {}", kept.display()))?;
        }
        Ok(())
    }

    /// The binary whose global allocator is the given one.
    pub(crate) fn with(&self, allocator: Allocator) -> Result<&PathBuf> {
        match allocator {
            Allocator::System => Ok(&self.system),
            Allocator::Mimalloc => self
                .mimalloc
                .as_ref()
                .ok_or_else(|| anyhow!("there is no worker with mimalloc")),
        }
    }
}

fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok());
    let mut named = messages.filter(|message| {
        message
            .target
            .as_ref()
            .is_some_and(|target| target.name == name)
    });
    named.find_map(|message| message.executable)
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
        assert_eq!(executable(messages, "worker"), Some("/t/worker".into()));
        assert_eq!(executable(messages, "absent"), None);
    }
}
