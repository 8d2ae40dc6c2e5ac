//! What the program `raft-log` shows of a log. Reads only.

use super::folder;
use super::format::{Kind, Record};
use super::index::{At, Group};
use super::job::Stored;
use super::survey::Survey;
use super::{SegmentLog, scan_snapshot, survey};
use crate::GroupId;
use crate::log::disk::{Disk, RealDisk};
use crate::log::{LogError, segment::reader::Reader};
use crate::members::Identity;
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// A segment of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentInfo {
    /// The file.
    pub file: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Where its last record ends, in bytes from the start.
    pub end: u64,
    /// Records, with the seal.
    pub records: u64,
    /// Whether the next segment goes on.
    pub is_sealed: bool,
}

/// What a log holds of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupInfo {
    /// The group.
    pub group: GroupId,
    /// The node that the log is of, and which one.
    pub identity: Option<Identity>,
    /// Term, vote and commit index.
    pub hard_state: (u64, u64, u64),
    /// Index and term of the last entry that is gone.
    pub compacted: (u64, u64),
    /// The index of the last entry, or of the last one that is gone.
    pub last_index: u64,
    /// Index, term and bytes of the snapshot.
    pub snapshot: Option<(u64, u64, u64)>,
}

/// What [`SegmentLog::inspect`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogInfo {
    /// All segments that count, in order; up to the damage, if there is any.
    pub segments: Vec<SegmentInfo>,
    /// All groups, in order.
    pub groups: Vec<GroupInfo>,
    /// Bytes of the records that live entries and states take.
    pub live_bytes: u64,
    /// The number of the next record.
    pub next_record: u64,
    /// The first damage.
    pub damage: Option<LogError>,
}

impl SegmentLog {
    /// Reads a log that is not open, and changes nothing. With `with_contents` all entries and snapshots are read too.
    ///
    /// # Errors
    /// [`LogError`] if the folder is in use, holds no log, or cannot be read. Damage is no error here: see [`LogInfo::damage`].
    pub fn inspect(folder: impl AsRef<Path>, with_contents: bool) -> Result<LogInfo, LogError> {
        Self::inspect_on(&RealDisk, folder, with_contents)
    }

    /// The same on another disk, for tests.
    ///
    /// # Errors
    /// As [`inspect`](Self::inspect).
    pub fn inspect_on(
        disk: &dyn Disk,
        folder: impl AsRef<Path>,
        with_contents: bool,
    ) -> Result<LogInfo, LogError> {
        let folder = folder.as_ref();
        let _lock = lock_if_there(disk, folder)?;
        let mut survey = Survey::default();
        let mut damage = damage_of(survey.read(disk, folder, &mut |_, _, _| {}))?;
        if survey.names.segments.is_empty() && damage.is_none() {
            return Err(LogError::Unsupported {
                reason: format!("{} holds no log", folder.display()),
            });
        }
        if with_contents && damage.is_none() {
            damage = damage_of(read_contents(disk, folder, &survey))?;
        }
        Ok(survey.info(folder, damage))
    }

    /// Gives one line of text for each record and each job of a log that is not open, in order, and returns the first damage. Changes
    /// nothing.
    ///
    /// # Errors
    /// As [`inspect`](Self::inspect).
    pub fn dump(
        folder: impl AsRef<Path>,
        group: Option<GroupId>,
        print: &mut dyn FnMut(&str),
    ) -> Result<Option<LogError>, LogError> {
        let folder = folder.as_ref();
        let _lock = lock_if_there(&RealDisk, folder)?;
        let mut survey = Survey::default();
        let read = survey.read(&RealDisk, folder, &mut |at, record, jobs| {
            let chosen = |job: &&Stored<'_>| group.is_none_or(|group| job.change.group == group);
            let lines: Vec<String> = jobs.iter().filter(chosen).map(job_line).collect();
            if group.is_none() || !lines.is_empty() {
                print(&record_line(at, record));
            }
            lines.iter().for_each(|line| print(line));
        });
        damage_of(read)
    }
}

/// Damage is what is asked for; other errors are errors.
fn damage_of(read: Result<(), LogError>) -> Result<Option<LogError>, LogError> {
    match read {
        Ok(()) => Ok(None),
        Err(error) if error.is_damage() => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

/// A log that was never opened has no lock, and nothing is made for it here. A disk that cannot be written has no other process that writes.
pub(super) fn lock_if_there(
    disk: &dyn Disk,
    folder: &Path,
) -> Result<Option<Box<dyn Send>>, LogError> {
    let listed = disk.list(folder);
    let names = listed.map_err(|error| LogError::io(folder, "listing", &error))?;
    if !names.iter().any(|name| name == folder::LOCK) {
        return Ok(None);
    }
    match disk.lock(&folder.join(folder::LOCK)) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(LogError::InUse {
            folder: folder.to_owned(),
        }),
        Err(_) => Ok(None),
    }
}

/// Reads every entry and every snapshot that counts.
pub(super) fn read_contents(
    disk: &dyn Disk,
    folder: &Path,
    survey: &Survey,
) -> Result<(), LogError> {
    let mut reader = Reader::default();
    for (&group, index) in survey.index.groups() {
        if let Some(record) = index.snapshot() {
            scan_snapshot(disk, folder, group, record, |_| ())?;
        }
        for (&first, &run) in index.runs() {
            let place = survey::place(survey.log, run.at.segment);
            reader.entries(disk, folder, place, (group, first, run))?;
        }
    }
    Ok(())
}

impl Survey {
    pub(super) fn info(&self, folder: &Path, damage: Option<LogError>) -> LogInfo {
        let segments = self.segments.iter().map(|(&number, segment)| SegmentInfo {
            file: folder::segment(folder, number),
            bytes: segment.header.capacity,
            end: segment.end,
            records: segment.records,
            is_sealed: segment.is_sealed,
        });
        let groups = self.index.groups().iter();
        LogInfo {
            segments: segments.collect(),
            groups: groups.map(|(group, index)| index.info(*group)).collect(),
            live_bytes: self.index.live_bytes(),
            next_record: self.batch,
            damage,
        }
    }
}

impl Group {
    fn info(&self, group: GroupId) -> GroupInfo {
        let state = self.hard_state();
        let snapshot = self.snapshot();
        GroupInfo {
            group,
            identity: self.identity(),
            hard_state: state.map_or((0, 0, 0), |state| (state.term, state.vote, state.commit)),
            compacted: self.compacted(),
            last_index: self.next_index() - 1,
            snapshot: snapshot.map(|record| {
                let (index, term) = record.position();
                (index, term, record.bytes)
            }),
        }
    }
}

fn record_line(at: At, record: &Record<'_>) -> String {
    let what = match record.header.kind {
        Kind::Jobs => "jobs",
        Kind::Seal => "seal",
    };
    format!(
        "segment {:x} offset {}: record {}, {what}, {} bytes, durable before up to {}",
        at.segment,
        at.offset,
        record.header.batch,
        record.len(),
        record.header.durable
    )
}

fn job_line(job: &Stored<'_>) -> String {
    let change = &job.change;
    let mut line = format!("  group {}:", change.group.0);
    let mut add = |text: fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = line.write_fmt(text);
    };
    if let Some(snapshot) = &change.snapshot {
        let (index, term) = snapshot.position();
        let bytes = snapshot.bytes;
        add(format_args!(
            " snapshot at {index} of term {term}, {bytes} bytes;"
        ));
    }
    if change.replaces_log {
        add(format_args!(" it replaces the log;"));
    }
    if let Some((index, term)) = change.compacted {
        add(format_args!(" compacted to {index} of term {term};"));
    }
    if let Some(span) = &change.span {
        let (first, last, bytes) = (span.first, span.end() - 1, span.bytes);
        let moved = if change.moved { " moved" } else { "" };
        add(format_args!(
            " entries {first} to {last}{moved}, {bytes} bytes;"
        ));
    }
    if let Some(state) = &change.hard_state {
        let (term, vote, commit) = (state.term, state.vote, state.commit);
        add(format_args!(" term {term}, vote {vote}, commit {commit};"));
    }
    if let Some(identity) = &change.identity {
        let (node, incarnation) = (identity.node, identity.incarnation);
        add(format_args!(
            " node {node}, incarnation {incarnation:016x};"
        ));
    }
    line
}
