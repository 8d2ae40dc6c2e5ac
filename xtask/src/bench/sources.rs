//! The ids of cases, read from their sources: a filter that matches none is refused before anything is built.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Fails if no case's id contains the filter.
pub(crate) fn check(filter: &str) -> Result<()> {
    let mut ids = Vec::new();
    collect(&workspace::root().join("benches/src"), &mut ids)?;
    ids.sort_unstable();
    ids.dedup();
    if ids.iter().any(|id| id.contains(filter)) {
        return Ok(());
    }
    bail!(
        "no case matches `{filter}`; the cases are:\n  {}",
        ids.join("\n  ")
    );
}

/// Adds the ids that are literals in a folder's files.
fn collect(folder: &Path, ids: &mut Vec<String>) -> Result<()> {
    let listed =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in listed {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, ids)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            ids.extend(
                text.split('"')
                    .filter(|part| is_id(part))
                    .map(str::to_owned),
            );
        }
    }
    Ok(())
}

/// `group/name`, in small letters, digits and underscores.
fn is_id(text: &str) -> bool {
    let is_word = |word: &str| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        !word.is_empty() && word.bytes().all(allowed)
    };
    text.split_once('/')
        .is_some_and(|(group, name)| is_word(group) && is_word(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::baseline::Baseline;
    use crate::workspace::Workspace;

    #[test]
    fn all_ids_of_the_saved_run_are_found() -> Result<()> {
        let saved = Baseline::load(&"main".parse()?, &Workspace::load()?.target)?;
        for case in &saved.report.cases {
            check(&case.id)?;
        }
        Ok(())
    }

    #[test]
    fn a_filter_of_nothing_is_refused_with_what_there_is() {
        let error = check("no-such-case")
            .expect_err("there is none")
            .to_string();
        assert!(error.contains("no case matches `no-such-case`"), "{error}");
        assert!(error.contains("\n  atomics/membership_get\n"), "{error}");
    }
}
