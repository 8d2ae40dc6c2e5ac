//! The file a report goes to: known to be writable before the run, complete or absent after it.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::report::Report;

/// A place for a report.
#[derive(Debug)]
pub(crate) struct JsonFile {
    target: PathBuf,
    /// What is written first and then renamed; `None` for what is not a regular file.
    temporary: Option<PathBuf>,
}

impl JsonFile {
    /// Checks that a report can be written there, and leaves the place as it was.
    pub(crate) fn claim(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot write the report to {}", path.display());
        // Behind a link it is the file that must be replaced, not the link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if target.is_dir() {
            return Err(anyhow::anyhow!("it is a directory")).with_context(cannot);
        }
        let exists = target.exists();
        if exists {
            OpenOptions::new()
                .append(true)
                .open(&target)
                .with_context(cannot)?;
            if !target.is_file() {
                return Ok(Self {
                    target,
                    temporary: None,
                });
            }
        }
        let Some(name) = target.file_name() else {
            bail!("{}: it names no file", cannot());
        };
        let hidden = format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id());
        let temporary = target.with_file_name(hidden);
        fs::write(&temporary, "").with_context(cannot)?;
        fs::remove_file(&temporary).with_context(cannot)?;
        Ok(Self {
            target,
            temporary: Some(temporary),
        })
    }

    /// Writes the report, replacing what was there.
    pub(crate) fn write(&self, report: &Report) -> Result<()> {
        let mut text = serde_json::to_string_pretty(report).context("cannot encode the report")?;
        text.push('\n');
        let cannot = || format!("cannot write the report to {}", self.target.display());
        match &self.temporary {
            None => fs::write(&self.target, text).with_context(cannot),
            Some(temporary) => fs::write(temporary, text)
                .and_then(|()| fs::rename(temporary, &self.target))
                .with_context(cannot),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample;

    /// A directory of its own for a test, gone with the value.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Result<Self> {
            let path = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
            fs::create_dir_all(&path)?;
            Ok(Self(path))
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_report_replaces_the_old_one_and_leaves_nothing_else() -> Result<()> {
        let directory = Directory::new("json-write")?;
        let path = directory.0.join("report.json");
        fs::write(&path, "old")?;
        let file = JsonFile::claim(&path)?;
        assert_eq!(fs::read_to_string(&path)?, "old");
        file.write(&sample())?;
        let read: Report = serde_json::from_str(&fs::read_to_string(&path)?)?;
        assert_eq!(read, sample());
        assert_eq!(fs::read_dir(&directory.0)?.count(), 1);
        Ok(())
    }

    #[test]
    fn what_cannot_be_written_is_refused_at_once() -> Result<()> {
        let directory = Directory::new("json-refuse")?;
        let plain = directory.0.join("plain");
        fs::write(&plain, "")?;
        for path in [
            directory.0.join("absent/report.json"),
            plain.join("report.json"),
            directory.0.clone(),
        ] {
            let error = JsonFile::claim(&path).expect_err("it cannot be written");
            assert!(
                error.to_string().contains("cannot write the report to"),
                "{error}"
            );
        }
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_followed() -> Result<()> {
        let directory = Directory::new("json-link")?;
        let (file, link) = (directory.0.join("file.json"), directory.0.join("link.json"));
        fs::write(&file, "old")?;
        std::os::unix::fs::symlink(&file, &link)?;
        JsonFile::claim(&link)?.write(&sample())?;
        assert!(fs::read_to_string(&file)?.contains("pool/1k"));
        assert!(fs::symlink_metadata(&link)?.is_symlink());
        Ok(())
    }
}
