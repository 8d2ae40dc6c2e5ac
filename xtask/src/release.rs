//! `cargo xtask release`: which versions a change to a crate implies, and its changelogs.
//!
//! A release that cargo counts as compatible concerns one crate. An incompatible one also concerns every crate that
//! depends on it, since its types may be part of theirs: their requirement must change, and so must their version.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail};
use semver::Version;
use toml_edit::DocumentMut;

use crate::package;
use crate::workspace::{Package, Workspace};

/// Which number of a version is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Patch,
    Minor,
    Major,
}

impl std::str::FromStr for Level {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "patch" => Ok(Self::Patch),
            "minor" => Ok(Self::Minor),
            "major" => Ok(Self::Major),
            _ => bail!("no level `{text}`; the levels are patch, minor and major"),
        }
    }
}

/// What to release.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) name: String,
    pub(crate) level: Level,
    pub(crate) dry_run: bool,
}

/// The new version of one crate.
#[derive(Debug, PartialEq, Eq)]
struct Bump {
    name: String,
    from: Version,
    to: Version,
    /// The crates whose incompatible releases ask for it; none for the one that was named.
    because: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::load()?;
    let published: Vec<&Package> = workspace.published().collect();
    let bumps = bumps(&published, &options.name, options.level)?;
    let today = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let today = today.get(..10).unwrap_or(&today);
    let mut changelogs = Vec::new();
    for bump in &bumps {
        let package = find(&published, &bump.name)?;
        let reason = if bump.because.is_empty() {
            String::new()
        } else {
            format!("  (for {})", bump.because.join(", "))
        };
        println!("{} {} -> {}{reason}", bump.name, bump.from, bump.to);
        let path = package.directory().join("CHANGELOG.md");
        let old = read(&path)?;
        let needed = bumps
            .iter()
            .filter(|other| bump.because.contains(&other.name));
        let notes: Vec<String> = needed
            .map(|other| format!("- Needs `{}` {}.", other.name, other.to))
            .collect();
        let new = released(&old, &bump.to, today, &notes.join("\n"))
            .with_context(|| format!("in {}", path.display()))?;
        for line in section(&new, &bump.to).lines() {
            println!("    {line}");
        }
        changelogs.push((path, new));
    }
    let order = package::order(&published)?;
    let order: Vec<&str> = order
        .iter()
        .map(String::as_str)
        .filter(|name| bumps.iter().any(|bump| bump.name == *name))
        .collect();
    if options.dry_run {
        println!(
            "\nDry run: nothing was changed. To publish, in this order: {}",
            order.join(", ")
        );
        return Ok(());
    }
    for (path, text) in changelogs {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for bump in &bumps {
        let package = find(&published, &bump.name)?;
        edit(&package.manifest_path, |manifest| {
            set(manifest, &["package", "version"], &bump.to)
        })?;
        edit(&workspace.root.join("Cargo.toml"), |manifest| {
            let keys = ["workspace", "dependencies", bump.name.as_str(), "version"];
            set(manifest, &keys, &bump.to)
        })?;
    }
    println!("\nChanged. Commit it, then:");
    for name in order {
        println!("    cargo publish --package {name}");
    }
    Ok(())
}

/// The named crate's new version, and those that it asks for, dependencies first.
fn bumps(packages: &[&Package], name: &str, level: Level) -> Result<Vec<Bump>> {
    let named = find(packages, name)?;
    let mut next: BTreeMap<&str, Bump> = BTreeMap::new();
    let to = raised(&named.version, level);
    next.insert(
        &named.name,
        Bump {
            name: named.name.clone(),
            from: named.version.clone(),
            to,
            because: Vec::new(),
        },
    );
    let order = package::order(packages)?;
    for name in &order {
        let package = find(packages, name)?;
        if next.contains_key(package.name.as_str()) {
            continue;
        }
        let mut because: Vec<String> = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
            .filter_map(|dependency| next.get(dependency.name.as_str()))
            .filter(|bump| !compatible(&bump.from, &bump.to))
            .map(|bump| bump.name.clone())
            .collect();
        because.dedup();
        if !because.is_empty() {
            let bump = Bump {
                name: package.name.clone(),
                from: package.version.clone(),
                to: raised(&package.version, incompatible_level(&package.version)),
                because,
            };
            next.insert(&package.name, bump);
        }
    }
    let place = |bump: &Bump| order.iter().position(|name| *name == bump.name);
    let mut bumps: Vec<Bump> = next.into_values().collect();
    bumps.sort_by_key(place);
    Ok(bumps)
}

fn find<'a>(packages: &[&'a Package], name: &str) -> Result<&'a Package> {
    packages
        .iter()
        .find(|package| package.name == name)
        .copied()
        .ok_or_else(|| {
            let names: Vec<&str> = packages
                .iter()
                .map(|package| package.name.as_str())
                .collect();
            anyhow!(
                "no published crate `{name}`; there are: {}",
                names.join(", ")
            )
        })
}

fn raised(version: &Version, level: Level) -> Version {
    let Version {
        major,
        minor,
        patch,
        ..
    } = *version;
    match level {
        Level::Patch => Version::new(major, minor, patch + 1),
        Level::Minor => Version::new(major, minor + 1, 0),
        Level::Major => Version::new(major + 1, 0, 0),
    }
}

/// The number whose change cargo counts as incompatible: the first that is not zero.
fn incompatible_level(version: &Version) -> Level {
    match (version.major, version.minor) {
        (0, 0) => Level::Patch,
        (0, _) => Level::Minor,
        _ => Level::Major,
    }
}

fn compatible(from: &Version, to: &Version) -> bool {
    semver::Comparator {
        op: semver::Op::Caret,
        major: from.major,
        minor: Some(from.minor),
        patch: Some(from.patch),
        pre: from.pre.clone(),
    }
    .matches(to)
}

/// The changelog with what is under `Unreleased` under the new version, and nothing under `Unreleased`.
fn released(changelog: &str, version: &Version, date: &str, notes: &str) -> Result<String> {
    const HEADING: &str = "## Unreleased\n";
    let Some((before, after)) = changelog.split_once(HEADING) else {
        bail!("there is no `## Unreleased`");
    };
    let end = after.find("\n## ").map_or(after.len(), |at| at + 1);
    let (unreleased, earlier) = after.split_at(end);
    let mut body = unreleased.trim().to_owned();
    if !notes.is_empty() {
        if !body.is_empty() {
            body += "\n\n";
        }
        body += "### Dependencies\n\n";
        body += notes;
    }
    if body.is_empty() {
        bail!("nothing is noted under `## Unreleased`: say what changed first");
    }
    let earlier = if earlier.is_empty() {
        String::new()
    } else {
        format!("\n{earlier}")
    };
    Ok(format!(
        "{before}{HEADING}\n## {version} - {date}\n\n{body}\n{earlier}"
    ))
}

/// The section of a version.
fn section<'a>(changelog: &'a str, version: &Version) -> &'a str {
    let heading = format!("## {version} - ");
    let Some(start) = changelog.find(&heading) else {
        return "";
    };
    let rest = &changelog[start..];
    rest.find("\n## ")
        .map_or(rest, |end| &rest[..end])
        .trim_end()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn edit(path: &Path, change: impl FnOnce(&mut DocumentMut) -> Result<()>) -> Result<()> {
    let mut manifest: DocumentMut = read(path)?
        .parse()
        .with_context(|| format!("{} is no TOML", path.display()))?;
    change(&mut manifest).with_context(|| format!("in {}", path.display()))?;
    fs::write(path, manifest.to_string())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Sets a version that is there, and keeps the rest of the file as it is.
fn set(manifest: &mut DocumentMut, keys: &[&str], version: &Version) -> Result<()> {
    let mut item = manifest.as_item_mut();
    for key in keys {
        item = item
            .as_table_like_mut()
            .and_then(|table| table.get_mut(key))
            .ok_or_else(|| anyhow!("there is no `{}`", keys.join(".")))?;
    }
    *item = toml_edit::value(version.to_string());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn package(name: &str, version: &str, needs: &[&str]) -> Package {
        Package {
            name: name.to_owned(),
            version: version.parse().expect("it is a version"),
            description: None,
            manifest_path: "Cargo.toml".into(),
            features: [].into(),
            dependencies: needs
                .iter()
                .map(|name| Dependency {
                    name: (*name).to_owned(),
                    kind: None,
                    path: Some((*name).into()),
                })
                .collect(),
            publish: None,
        }
    }

    fn names(level: Level) -> Vec<String> {
        let atomics = package("atomics", "0.1.2", &[]);
        let pool = package("pool", "0.3.0", &[]);
        let metrics = package("metrics", "1.2.0", &["atomics"]);
        let kit = package("kit", "0.2.0", &["metrics", "pool"]);
        let bumps = bumps(&[&kit, &metrics, &atomics, &pool], "atomics", level);
        let bumps = bumps.expect("there is such a crate");
        bumps
            .iter()
            .map(|bump| format!("{} {}", bump.name, bump.to))
            .collect()
    }

    #[test]
    fn an_incompatible_release_asks_for_others_all_the_way_up() {
        assert_eq!(names(Level::Patch), ["atomics 0.1.3"]);
        let all = ["atomics 0.2.0", "metrics 2.0.0", "kit 0.3.0"];
        assert_eq!(names(Level::Minor), all);
        let unknown = bumps(&[], "atomics", Level::Patch).expect_err("there is none");
        assert!(unknown.to_string().contains("atomics"), "{unknown}");
    }

    #[test]
    fn what_was_unreleased_gets_the_version() -> Result<()> {
        let version = Version::new(0, 2, 0);
        let old = "# Changelog\n\n## Unreleased\n\n### Added\n\n- A thing.\n\n## 0.1.0 - 2026-01-01\n\n- First.\n";
        let new = released(old, &version, "2026-02-03", "- Needs `x` 0.2.0.")?;
        assert_eq!(
            new,
            "# Changelog\n\n## Unreleased\n\n## 0.2.0 - 2026-02-03\n\n### Added\n\n- A thing.\n\n\
             ### Dependencies\n\n- Needs `x` 0.2.0.\n\n## 0.1.0 - 2026-01-01\n\n- First.\n"
        );
        assert!(section(&new, &version).ends_with("0.2.0."));
        let error = released(&new, &version, "2026-02-03", "").expect_err("nothing is new");
        assert!(error.to_string().contains("say what changed"), "{error}");
        assert!(released("# Changelog\n", &version, "2026-02-03", "").is_err());
        Ok(())
    }

    #[test]
    fn a_manifest_keeps_all_but_the_version() -> Result<()> {
        let text = "[package] # ours\nname = \"x\"\nversion = \"0.1.0\"\n";
        let mut manifest: DocumentMut = text.parse()?;
        set(
            &mut manifest,
            &["package", "version"],
            &Version::new(0, 1, 1),
        )?;
        assert_eq!(manifest.to_string(), text.replace("0.1.0", "0.1.1"));
        let error = set(
            &mut manifest,
            &["package", "edition"],
            &Version::new(1, 0, 0),
        );
        assert!(error.is_err_and(|error| error.to_string().contains("package.edition")));
        Ok(())
    }
}
