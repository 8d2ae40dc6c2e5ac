//! This program in the place of rustc: for the crates of the workspace, and with a cfg of its own.
//!
//! Cargo calls `RUSTC_WORKSPACE_WRAPPER` with rustc's path and arguments, for members of the workspace alone. What they depend on is built as
//! always, and shared with builds without the cfg, which `RUSTFLAGS` would not allow. Cargo tells builds apart by the wrapper's path, and asks it for
//! the cfgs by which dependencies are chosen. So each cfg has a copy of this program, named after it.

use std::env::consts::EXE_SUFFIX;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

/// What the names of the copies begin with, before the cfg.
const PREFIX: &str = "rustc-with-";

/// Makes the copy that passes `--cfg cfg`, and returns where it is.
pub(crate) fn with_cfg(cfg: &str, target: &Path) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let directory = target.join("xtask");
    let path = directory.join(format!("{PREFIX}{cfg}{EXE_SUFFIX}"));
    let copy = || {
        fs::create_dir_all(&directory)?;
        fs::copy(&own, &path)
    };
    copy().with_context(|| format!("cannot copy this program to {}", path.display()))?;
    Ok(path)
}

/// The cfg, if this program was started by the name of such a copy.
pub(crate) fn cfg_of(name: &Path) -> Option<String> {
    let stem = name.file_stem()?.to_str()?;
    stem.strip_prefix(PREFIX).map(str::to_owned)
}

/// Runs rustc as asked, with the cfg.
pub(crate) fn run(cfg: &str, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let Some(rustc) = arguments.next() else {
        eprintln!("error: no rustc to run with --cfg {cfg}: cargo passes its path");
        return ExitCode::FAILURE;
    };
    let mut command = Command::new(&rustc);
    command.args(arguments).args(["--cfg", cfg]);
    match command.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            code.map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Err(error) => {
            eprintln!(
                "error: cannot start {}: {error}",
                Path::new(&rustc).display()
            );
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_copy_tells_its_cfg() {
        let cfg = |name: &str| cfg_of(Path::new(name));
        assert_eq!(cfg("/a/rustc-with-perf_loom"), Some("perf_loom".to_owned()));
        assert_eq!(cfg("/a/xtask"), None);
    }
}
