//! Remembers which files of raft-engine's are purged, so that a gap that a purge leaves is told from a file that was lost.
//!
//! raft-engine keeps some purged files under their old names, to use them again, and deletes others. So the numbers of its
//! files have gaps while it runs, and after a crash. The mark says from which number on files count. It is durable before the
//! first file below it is deleted or renamed.

use super::{LogError, io_error, sync_error, sync_folder};
use parking_lot::Mutex;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// File names of the two queues of raft-engine.
pub(super) const SUFFIXES: [&str; 2] = [".raftlog", ".rewrite"];

/// Digits of a file's number.
const NUMBER_DIGITS: usize = 16;

/// The mark's own file: two numbers and a CRC-32, little-endian.
const MARK_FILE: &str = "purged";
const MARK_BYTES: usize = 20;

/// For each queue the first number that counts.
pub(super) type Mark = [u64; 2];

/// The queue and the number of a log file, by its name.
pub(super) fn parse(path: &Path) -> Option<(usize, u64)> {
    let name = path.file_name()?.to_str()?;
    SUFFIXES.iter().enumerate().find_map(|(queue, suffix)| {
        let digits = name.strip_suffix(suffix)?;
        let number = (digits.len() == NUMBER_DIGITS).then(|| digits.parse().ok())?;
        number.map(|number| (queue, number))
    })
}

/// The mark of a folder, `None` if none was ever made.
pub(super) fn read(folder: &Path) -> Result<Option<Mark>, LogError> {
    let path = folder.join(MARK_FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path, "reading", &error)),
    };
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 8)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*bytes))
    };
    let crc = bytes.last_chunk::<4>().map(|crc| u32::from_le_bytes(*crc));
    let is_sound = bytes.len() == MARK_BYTES && crc == Some(crc32fast::hash(&bytes[..16]));
    match (number(0), number(8)) {
        (Some(log), Some(rewrite)) if is_sound => Ok(Some([log, rewrite])),
        _ => Err(LogError::Corrupted {
            file: path,
            offset: 0,
            reason: "it is not the mark of a purge".to_owned(),
        }),
    }
}

/// Makes a mark durable: whole in a file beside it, then renamed.
pub(super) fn write(folder: &Path, mark: Mark) -> Result<(), LogError> {
    let path = folder.join(MARK_FILE);
    let part = path.with_extension("tmp");
    let mut bytes = [mark[0].to_le_bytes(), mark[1].to_le_bytes()].concat();
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    let mut file = File::create(&part).map_err(|error| io_error(&part, "making", &error))?;
    file.write_all(&bytes)
        .map_err(|error| io_error(&part, "writing", &error))?;
    file.sync_all().map_err(|error| sync_error(&part, &error))?;
    fs::rename(&part, &path).map_err(|error| io_error(&path, "renaming", &error))?;
    sync_folder(folder)
}

/// The mark while a log is open.
#[derive(Debug)]
pub(super) struct Purged {
    folder: PathBuf,
    mark: Mutex<Mark>,
}

impl Purged {
    pub(super) fn new(folder: PathBuf, mark: Mark) -> Self {
        Self {
            folder,
            mark: Mutex::new(mark),
        }
    }

    /// A file is about to be deleted or renamed: it and those before it do not count any more.
    pub(super) fn note(&self, path: &Path) -> Result<(), LogError> {
        let Some((queue, number)) = parse(path) else {
            return Ok(());
        };
        let mut mark = self.mark.lock();
        let mut next = *mark;
        next[queue] = next[queue].max(number + 1);
        if next != *mark {
            write(&self.folder, next)?;
            *mark = next;
        }
        Ok(())
    }
}
