//! The one question about a manifest that `cargo metadata` does not answer.

/// Whether a manifest inherits the workspace's lints.
///
/// Reads the two ways TOML has to say so, line by line; anything unusual counts as no.
pub(crate) fn inherits_lints(manifest: &str) -> bool {
    let mut section = "";
    for line in manifest.lines() {
        let line = line.split('#').next().unwrap_or("").trim();
        if line.starts_with('[') {
            section = line;
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let (key, value) = (key.trim(), value.trim());
        let inherited = match section {
            "[lints]" => key == "workspace",
            "" => key == "lints.workspace",
            _ => false,
        };
        if inherited && value == "true" {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lints_section_counts() {
        assert!(inherits_lints(
            "[package]\nname = \"x\"\n\n[lints]\nworkspace = true # all\n"
        ));
        assert!(inherits_lints("lints.workspace = true\n[package]\n"));
        assert!(!inherits_lints("[package]\nname = \"x\"\n"));
        assert!(!inherits_lints("[lints]\nworkspace = false\n"));
        assert!(!inherits_lints("[lints]\n# workspace = true\n"));
        assert!(!inherits_lints("[dependencies.serde]\nworkspace = true\n"));
        assert!(!inherits_lints(
            "[lints]\n[dependencies.x]\nworkspace = true\n"
        ));
    }
}
