//! The names of the files in a log's folder.
//!
//! | name | what |
//! |---|---|
//! | `LOCK` | held by the process that has the log open |
//! | `log.id` | says that there was a segment once: an empty folder is a new log only without it |
//! | `NUMBER.segment` | a segment; it has a sound header from the moment it has this name |
//! | `NUMBER.spare` | a segment that was purged and will be used again under another number |
//! | `GROUP-NUMBER.snapshot` | the data of one save of a snapshot |
//! | `*.tmp` | a file that is being made |
//! | `damaged-NUMBER` | a folder of files that [`set_aside`](super::SegmentLog::set_aside) or a repair put there |

use crate::GroupId;
use crate::log::LogError;
use crate::log::disk::Disk;
use std::path::{Path, PathBuf};

pub(super) const LOCK: &str = "LOCK";
pub(super) const LOG_ID: &str = "log.id";
const SEGMENT: &str = ".segment";
const SPARE: &str = ".spare";
const SNAPSHOT: &str = ".snapshot";
const PART: &str = ".tmp";
const DAMAGED: &str = "damaged-";

/// What a folder holds, each sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) segments: Vec<u64>,
    pub(super) spares: Vec<u64>,
    /// With the number of the save.
    pub(super) snapshots: Vec<(GroupId, u64)>,
    pub(super) parts: Vec<String>,
    pub(super) has_id: bool,
    /// The highest number of a folder of damaged files.
    pub(super) damaged: u64,
    /// A file of raft-engine's.
    foreign: Option<String>,
}

impl Names {
    pub(super) fn list(disk: &dyn Disk, folder: &Path) -> Result<Self, LogError> {
        let listed = disk.list(folder);
        let listed = listed.map_err(|error| LogError::io(folder, "listing", &error))?;
        let mut names = Self::default();
        for name in listed {
            names.add(name);
        }
        names.segments.sort_unstable();
        names.spares.sort_unstable();
        names.snapshots.sort_unstable();
        Ok(names)
    }

    fn add(&mut self, name: String) {
        if name == LOG_ID {
            self.has_id = true;
        } else if name.ends_with(PART) {
            self.parts.push(name);
        } else if let Some(number) = name.strip_suffix(SEGMENT).and_then(hex) {
            self.segments.push(number);
        } else if let Some(number) = name.strip_suffix(SPARE).and_then(hex) {
            self.spares.push(number);
        } else if let Some((group, number)) = name
            .strip_suffix(SNAPSHOT)
            .and_then(|stem| stem.split_once('-'))
            .and_then(|(group, number)| Some((hex(group)?, hex(number)?)))
        {
            self.snapshots.push((GroupId(group), number));
        } else if let Some(number) = name.strip_prefix(DAMAGED) {
            self.damaged = self.damaged.max(number.parse().unwrap_or(0));
        } else if name.ends_with(".raftlog") {
            self.foreign = Some(name);
        }
    }

    /// Refuses a folder of another kind of log.
    pub(super) fn check(&self, folder: &Path) -> Result<(), LogError> {
        match &self.foreign {
            None => Ok(()),
            Some(name) => Err(LogError::Unsupported {
                reason: format!(
                    "{} holds a log of raft-engine ({name}), which this version does not read: choose another folder, and the node joins its group again",
                    folder.display()
                ),
            }),
        }
    }

    /// All files of the log, `log.id` last.
    pub(super) fn all(&self) -> Vec<String> {
        let segments = self.segments.iter().map(|number| segment_name(*number));
        let spares = self.spares.iter().map(|number| spare_name(*number));
        let snapshots = self.snapshots.iter();
        let snapshots = snapshots.map(|(group, number)| snapshot_name(*group, *number));
        let mut all: Vec<String> = segments.chain(spares).chain(snapshots).collect();
        all.extend(self.parts.iter().cloned());
        all.extend(self.has_id.then(|| LOG_ID.to_owned()));
        all
    }
}

/// Numbers in names have 16 hexadecimal digits.
fn hex(digits: &str) -> Option<u64> {
    let is_number = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_number.then(|| u64::from_str_radix(digits, 16).ok())?
}

fn segment_name(number: u64) -> String {
    format!("{number:016x}{SEGMENT}")
}

fn spare_name(number: u64) -> String {
    format!("{number:016x}{SPARE}")
}

fn snapshot_name(group: GroupId, number: u64) -> String {
    format!("{:016x}-{number:016x}{SNAPSHOT}", group.0)
}

pub(super) fn segment(folder: &Path, number: u64) -> PathBuf {
    folder.join(segment_name(number))
}

pub(super) fn spare(folder: &Path, number: u64) -> PathBuf {
    folder.join(spare_name(number))
}

pub(super) fn snapshot(folder: &Path, group: GroupId, number: u64) -> PathBuf {
    folder.join(snapshot_name(group, number))
}

/// A new folder for damaged files.
pub(super) fn damaged(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{DAMAGED}{number}"))
}

/// Where a segment is made before it gets its name.
pub(super) fn new_segment(folder: &Path) -> PathBuf {
    folder.join("segment.tmp")
}
