//! Reads single records back, and checks each: for the log itself, and for readers in other threads.

use super::folder;
use super::format::{Place, RECORD_HEADER_BYTES, u32_at};
use super::index::{At, Index, Run};
use super::job::{self, Span};
use super::survey;
use crate::GroupId;
use crate::log::disk::{self, Access, Disk, DiskFile};
use crate::log::outline::portion;
use crate::log::{LogError, LogReader};
use crate::primitive::mutant;
use parking_lot::Mutex;
use raft::eraftpb::Entry;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Keeps the file and the record that were read last: the next ones are mostly there.
#[derive(Debug, Default)]
pub(super) struct Reader {
    file: Option<(u64, Box<dyn DiskFile>)>,
    record: Option<Loaded>,
}

/// A record that was read and checked.
#[derive(Debug)]
struct Loaded {
    at: At,
    bytes: Vec<u8>,
    /// Which entries it has, and where.
    parts: Vec<(GroupId, Span, Range<usize>)>,
}

impl Reader {
    /// The entries of a run, from its first index on.
    pub(super) fn entries(
        &mut self,
        disk: &dyn Disk,
        folder: &Path,
        place: Place,
        (group, first, run): (GroupId, u64, Run),
    ) -> Result<Vec<Entry>, LogError> {
        let path = folder::segment(folder, run.at.segment);
        let damaged = |reason: &str| LogError::damaged(&path, run.at.offset, reason);
        let record = match self.record.take().filter(|record| record.at == run.at) {
            Some(record) => record,
            None => self.load(disk, &path, place, run.at)?,
        };
        let record = self.record.insert(record);
        // A later job of the record takes the place of what an earlier one appended.
        let part = record
            .parts
            .iter()
            .rev()
            .find(|(of, span, _)| *of == group && span.first <= first && first < span.end());
        let entries = part.and_then(|(_, span, range)| {
            job::read_entries(*span, record.bytes.get(range.clone())?)
        });
        let entries = entries.ok_or_else(|| damaged("a record has not the entries that it had"))?;
        let skipped = first - entries.first().map_or(first, |entry| entry.index);
        let wanted: Vec<Entry> = entries
            .into_iter()
            .skip(usize::try_from(skipped).unwrap_or(usize::MAX))
            .take(usize::try_from(run.count).unwrap_or(usize::MAX))
            .collect();
        if wanted.len() as u64 != run.count {
            return Err(damaged("a record has fewer entries than it had"));
        }
        Ok(wanted)
    }

    /// Files of segments before `first` are gone or have become others.
    pub(super) fn forget_before(&mut self, first: u64) {
        self.file = self.file.take().filter(|(number, _)| *number >= first);
        self.record = self
            .record
            .take()
            .filter(|record| record.at.segment >= first);
    }

    fn load(
        &mut self,
        disk: &dyn Disk,
        path: &Path,
        place: Place,
        at: At,
    ) -> Result<Loaded, LogError> {
        let failed = |error| LogError::io(path, "reading", &error);
        let damaged = |reason: &str| LogError::damaged(path, at.offset, reason);
        let file = match self.file.take() {
            Some((number, file)) if number == at.segment => file,
            _ => disk.open(path, Access::Read).map_err(failed)?,
        };
        let header = disk::read_up_to(&*file, at.offset, RECORD_HEADER_BYTES).map_err(failed)?;
        // The length is checked with the record; until then it may be anything, but not more than the file has.
        let payload_bytes = u32_at(&header, 4).unwrap_or(0);
        let left = file.len().map_err(failed)?.saturating_sub(at.offset);
        let record_bytes = (RECORD_HEADER_BYTES as u64 + u64::from(payload_bytes)).min(left);
        let bytes = disk::read_up_to(&*file, at.offset, record_bytes as usize).map_err(failed)?;
        self.file = Some((at.segment, file));
        let record = place.read(&bytes, at.offset).map_err(damaged)?;
        let jobs = job::decode(record.payload)
            .ok_or_else(|| damaged("a sound record holds what is no list of jobs"))?;
        let mut parts = Vec::new();
        for job in &jobs {
            if let Some(span) = job.change.span {
                let start = job.entries.as_ptr().addr() - bytes.as_ptr().addr();
                parts.push((job.change.group, span, start..start + job.entries.len()));
            }
        }
        Ok(Loaded { at, bytes, parts })
    }
}

/// What a log shares with its readers.
#[derive(Debug)]
pub(super) struct Shared {
    /// Locked for moments, never while a file is read or written.
    pub(super) index: Mutex<Index>,
    /// The log's id.
    pub(super) log: AtomicU64,
    /// For all readers, so that they keep one record in memory together.
    pub(super) reader: Mutex<Reader>,
}

/// Reads entries while the log is written to.
///
/// A record may be moved and its segment purged, or become another one, while it is read. Then its checksum is wrong or its file is missing; the
/// index, which is changed before, says so. An error counts only if the index still names the record.
pub(super) struct SegmentReader {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) folder: PathBuf,
    pub(super) shared: Arc<Shared>,
}

impl LogReader for SegmentReader {
    fn read(
        &mut self,
        group: GroupId,
        first: u64,
        end: u64,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, LogError> {
        loop {
            let runs = {
                let index = self.shared.index.lock();
                let group = index.group(group);
                group.map_or_else(Vec::new, |group| group.runs_from(first, end, bytes_max))
            };
            let mut entries = Vec::new();
            let mut failed = None;
            for (first, run) in runs {
                match self.entries(group, first, run) {
                    Ok(read) => entries.extend(read),
                    Err(error) => {
                        failed = Some((first, run.at, error));
                        break;
                    }
                }
            }
            let Some((index, at, error)) = failed else {
                return Ok(portion(&entries, bytes_max));
            };
            if self.is_at(group, index, at) || mutant::is("segment_purge_is_damage") {
                return Err(error);
            }
            if !entries.is_empty() {
                return Ok(portion(&entries, bytes_max));
            }
        }
    }
}

impl SegmentReader {
    fn entries(&self, group: GroupId, first: u64, run: Run) -> Result<Vec<Entry>, LogError> {
        let log = self.shared.log.load(Ordering::Acquire);
        let place = survey::place(log, run.at.segment);
        let mut reader = self.shared.reader.lock();
        reader.entries(&*self.disk, &self.folder, place, (group, first, run))
    }

    /// Whether the index names this place for an entry.
    fn is_at(&self, group: GroupId, index: u64, at: At) -> bool {
        let shared = self.shared.index.lock();
        let now = shared.group(group).and_then(|group| group.at(index));
        now == Some(at)
    }
}
