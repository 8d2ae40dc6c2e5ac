//! Reads single records back, and checks each.

use super::folder;
use super::format::{Place, RECORD_HEADER_BYTES, u32_at};
use super::index::{At, Run};
use super::job::{self, Span};
use crate::GroupId;
use crate::log::LogError;
use crate::log::disk::{self, Access, Disk, DiskFile};
use raft::eraftpb::Entry;
use std::ops::Range;
use std::path::Path;

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
