//! Where the workspace is and what it consists of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The part of `cargo metadata` that these commands use.
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
    #[serde(rename = "workspace_root")]
    pub(crate) root: PathBuf,
    #[serde(rename = "target_directory")]
    pub(crate) target: PathBuf,
}

/// A member of the workspace.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: semver::Version,
    pub(crate) description: Option<String>,
    pub(crate) manifest_path: PathBuf,
    pub(crate) features: BTreeMap<String, Vec<String>>,
    pub(crate) dependencies: Vec<Dependency>,
    /// `Some` of an empty list: published nowhere.
    pub(crate) publish: Option<Vec<String>>,
}

/// A dependency of a member.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `None` for a normal dependency, else `dev` or `build`.
    pub(crate) kind: Option<String>,
    /// Set when it is a directory of this workspace.
    pub(crate) path: Option<PathBuf>,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn load() -> Result<Self> {
        let output = cargo()
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo")?;
        if !output.status.success() {
            bail!("`cargo metadata` failed: {}", output.status);
        }
        serde_json::from_slice(&output.stdout).context("cannot read what `cargo metadata` printed")
    }

    /// The members that go to a registry.
    pub(crate) fn published(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| package.is_published())
    }
}

impl Package {
    pub(crate) fn is_published(&self) -> bool {
        self.publish
            .as_ref()
            .is_none_or(|registries| !registries.is_empty())
    }

    /// The directory of its manifest.
    pub(crate) fn directory(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new("."))
    }
}

/// The root of the workspace this program is run from.
///
/// Cargo says where that is when it runs the program. Where the program was compiled is the second
/// choice: work trees that share a target directory, and moved ones, find each other's program.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let run_from = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let own = run_from.filter(|own| own.ends_with("xtask") && own.join("Cargo.toml").is_file());
        let own = own.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        own.parent().map_or_else(|| own.clone(), Path::to_path_buf)
    })
}

/// The cargo that runs this program, in the workspace's root.
///
/// What cargo told this program about its own package is taken out of the environment: build
/// scripts that look at it would be run again for nothing.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let about_package = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        if about_package {
            command.env_remove(name);
        }
    }
    command
}

/// `Some(true)` with uncommitted changes, `None` outside a git work tree or without git.
pub(crate) fn is_dirty() -> Option<bool> {
    git(&["status", "--porcelain"]).map(|changes| !changes.is_empty())
}

/// The commit that is checked out.
pub(crate) fn commit() -> Option<String> {
    git(&["rev-parse", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(root())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_knows_itself() -> Result<()> {
        let workspace = Workspace::load()?;
        let named = |name: &str| {
            workspace
                .packages
                .iter()
                .find(|package| package.name == name)
        };
        assert!(named("xtask").is_some_and(|package| !package.is_published()));
        assert!(named("perf-kit").is_some_and(Package::is_published));
        assert!(
            named("perf-benches").is_some_and(|package| package.features.contains_key("peers"))
        );
        assert_eq!(workspace.root, root());
        Ok(())
    }
}
