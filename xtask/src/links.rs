//! Links of the Markdown pages: what they point at inside the workspace has to be there.
//!
//! Pages elsewhere are not asked for: a check must not depend on somebody's server.

use std::fs;
use std::path::Path;

/// Returns a line per link of a page that leads nowhere.
pub(crate) fn problems(name: &str, text: &str, directory: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for (line, target) in targets(text) {
        if target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let (file, anchor) = target
            .split_once('#')
            .map_or((target, None), |(file, anchor)| (file, Some(anchor)));
        let path = if file.is_empty() {
            None
        } else {
            let path = directory.join(file);
            if !path.exists() {
                problems.push(format!("{name}:{line}: `{target}` is not there"));
                continue;
            }
            Some(path)
        };
        let Some(anchor) = anchor else { continue };
        let other = match path {
            None => Some(text.to_owned()),
            Some(path) => fs::read_to_string(path).ok(),
        };
        let found = other.is_some_and(|text| headings(&text).any(|heading| heading == anchor));
        if !found {
            problems.push(format!("{name}:{line}: `{target}` has no such heading"));
        }
    }
    problems
}

/// The targets of `[text](target)` with their lines, outside of code.
fn targets(text: &str) -> Vec<(usize, &str)> {
    let mut targets = Vec::new();
    for (number, line) in prose(text) {
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("](") {
            let Some((target, more)) = after.split_once(')') else {
                break;
            };
            // An even number of back quotes before it: it is not inside of code.
            if before.matches('`').count().is_multiple_of(2) {
                targets.push((number, target.split_whitespace().next().unwrap_or_default()));
            }
            rest = more;
        }
    }
    targets
}

/// The lines that are in no block of code, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().zip(1..).filter_map(move |(line, number)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence).then_some((number, line))
    })
}

/// The anchors of the headings, as the usual hosts make them: lower case, spaces as dashes, no punctuation.
fn headings(text: &str) -> impl Iterator<Item = String> {
    prose(text).filter_map(|(_, line)| {
        let title = line.trim_start_matches('#');
        (title.len() < line.len()).then(|| {
            title
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let root = crate::workspace::root();
        let text = "[a](Cargo.toml) [b](no/such.md)\n[c](https://example.org/x)\n# The `x` thing\n\
                    [d](#the-x-thing) [e](#other)\n`[f](in/code)`\n```\n[g](in/block)\n```\n";
        let found = problems("page.md", text, root);
        assert_eq!(
            found,
            [
                "page.md:1: `no/such.md` is not there",
                "page.md:4: `#other` has no such heading"
            ]
        );
    }
}
