//! Building the workers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::listing::Allocator;
use crate::built::Built;
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
        let built = Built::by(&mut build)?;
        Ok(Self {
            system: built.executable(SYSTEM)?,
            counting: built.executable(COUNTING)?,
            mimalloc: peers.then(|| built.executable(MIMALLOC)).transpose()?,
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
