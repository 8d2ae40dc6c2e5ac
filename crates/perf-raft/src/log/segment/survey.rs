//! Reads all segments once: what there is, where it ends, and whether anything is damaged. Changes nothing.

use super::folder::{self, Names};
use super::format::{HeaderFault, Kind, Place, RECORDS_START, Record, SegmentHeader, VERSION};
use super::index::{At, Index};
use super::job::{self, Stored};
use crate::log::LogError;
use crate::log::disk::{self, Access, Disk};
use crate::primitive::mutant;
use std::collections::BTreeMap;
use std::path::Path;

/// A segment as it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) header: SegmentHeader,
    pub(super) records: u64,
    /// Where the last record ends; a seal begins there.
    pub(super) end: u64,
    pub(super) is_sealed: bool,
    /// No record was ever begun in it.
    pub(super) is_blank: bool,
}

/// The end of the log that may be in the page cache and not on the disk.
#[derive(Clone, Debug)]
pub(super) struct Unconfirmed {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

/// A place from which on a repair takes the log for empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cut {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// What a folder holds. If it is damaged: what was read up to the damage.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Nothing from here on is read.
    pub(super) cut: Option<Cut>,
    pub(super) names: Names,
    /// The id of the log, 0 for a new one.
    pub(super) log: u64,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) index: Index,
    /// The number of the next record.
    pub(super) batch: u64,
    /// The lowest segment that counts.
    pub(super) first: u64,
    pub(super) unconfirmed: Option<Unconfirmed>,
}

/// Sees each record with its jobs.
pub(super) type Visit<'a> = &'a mut dyn FnMut(At, &Record<'_>, &[Stored<'_>]);

impl Survey {
    /// Reads what is there.
    ///
    /// # Errors
    /// [`LogError`], after which the survey holds what is before the damage.
    pub(super) fn read(
        &mut self,
        disk: &dyn Disk,
        folder: &Path,
        visit: Visit<'_>,
    ) -> Result<(), LogError> {
        self.names = Names::list(disk, folder)?;
        self.names.check(folder)?;
        self.batch = 1;
        if let Some(cut) = self.cut {
            self.names.segments.retain(|number| *number <= cut.segment);
        }
        let Some(&last) = self.names.segments.last() else {
            if self.names.has_id {
                return Err(LogError::damaged(
                    folder,
                    0,
                    "all segments are missing, and there were some",
                ));
            }
            return Ok(());
        };
        let newest = read_header(disk, folder, last)?;
        (self.log, self.first) = (newest.log, newest.first);
        if self.cut.is_some() {
            // Purged since the segment was made that is the newest one after the cut.
            self.first = self
                .first
                .max(self.names.segments.first().copied().unwrap_or(0));
        }
        self.check_numbers(folder)?;
        let mut ended = None;
        // One buffer for all segments: new memory for each would cost as much as reading it.
        let mut bytes = Vec::new();
        for number in self.first..=last {
            let path = folder::segment(folder, number);
            disk::read_file_into(disk, &path, &mut bytes)
                .map_err(|error| LogError::io(&path, "reading", &error))?;
            self.read_segment(folder, number, &mut bytes, &mut ended, visit)?;
        }
        match self.segments.get(&last) {
            Some(segment) if segment.is_sealed => Err(missing(folder, last + 1)),
            _ => self.check_groups(folder),
        }
    }

    /// From the first segment that counts on, numbers have no gap.
    fn check_numbers(&self, folder: &Path) -> Result<(), LogError> {
        let mut due = self.first;
        let numbers = self.names.segments.iter();
        for number in numbers.skip_while(|number| **number < self.first) {
            if *number != due {
                return Err(missing(folder, due));
            }
            due += 1;
        }
        match due > self.first {
            true => Ok(()),
            false => Err(missing(folder, due)),
        }
    }

    /// `ended` says where reading ended in an earlier segment that is not sealed.
    fn read_segment(
        &mut self,
        folder: &Path,
        number: u64,
        bytes: &mut [u8],
        ended: &mut Option<LogError>,
        visit: Visit<'_>,
    ) -> Result<(), LogError> {
        let path = folder::segment(folder, number);
        if let Some(cut) = self.cut
            && cut.segment == number
            && let Some(cut_off) = bytes.get_mut(cut.offset as usize..)
        {
            cut_off.fill(0);
        }
        let header = decode_header(&path, bytes)?;
        self.check_header(&path, &header, number, bytes.len() as u64)?;
        let place = place(header.log, number);
        let is_blank = place.find(bytes, RECORDS_START, |_| true).is_none();
        if let Some(damage) = ended.take() {
            // The segment was made after all records before it were durable, and is used after the seal is.
            let is_used = !is_blank;
            let expected = self.batch + 1;
            if is_used || header.batch != expected || self.names.segments.last() != Some(&number) {
                return Err(damage);
            }
            self.segments.insert(number, empty_segment(header, true));
            return Ok(());
        }
        if self.segments.is_empty() {
            self.batch = header.batch;
        } else if self.batch != header.batch {
            return Err(LogError::damaged(
                &path,
                0,
                format!(
                    "it begins with record {}, and the segment before ends with {}",
                    header.batch,
                    self.batch - 1
                ),
            ));
        }
        self.segments
            .insert(number, empty_segment(header, is_blank));
        let reason = self.read_records(&path, bytes, number, place, visit)?;
        let end = self.segments.get(&number).map_or(0, |segment| segment.end);
        let Some(reason) = reason else {
            return Ok(());
        };
        if place
            .find(bytes, end, |header| header.durable > end)
            .is_some()
        {
            let reason = format!("{reason}, and a later record says that it was durable");
            return Err(LogError::damaged(&path, end, reason));
        }
        let reason = format!("{reason}, and the next segment is in use");
        *ended = Some(LogError::damaged(&path, end, reason));
        Ok(())
    }

    fn check_header(
        &self,
        path: &Path,
        header: &SegmentHeader,
        number: u64,
        len: u64,
    ) -> Result<(), LogError> {
        let reason = if header.number != number {
            format!("it is segment {} by its header", header.number)
        } else if header.log != self.log {
            format!(
                "it is of log {:016x}, and the newest segment is of {:016x}",
                header.log, self.log
            )
        } else if header.capacity != len {
            format!("it has {len} bytes instead of {}", header.capacity)
        } else {
            return Ok(());
        };
        Err(LogError::damaged(path, 0, reason))
    }

    /// Reads the records of one segment, and returns why it ended before a seal.
    fn read_records(
        &mut self,
        path: &Path,
        bytes: &[u8],
        number: u64,
        place: Place,
        visit: Visit<'_>,
    ) -> Result<Option<&'static str>, LogError> {
        let (mut offset, mut durable) = (RECORDS_START, RECORDS_START);
        let ended = loop {
            let rest = bytes.get(offset as usize..).unwrap_or_default();
            let record = match place.read(rest, offset) {
                Ok(record) if record.header.batch == self.batch => record,
                Ok(_) => break Some("a record has the number of another"),
                Err(reason) => break Some(reason),
            };
            let at = At {
                segment: number,
                offset,
            };
            let jobs = job::decode(record.payload).ok_or_else(|| {
                LogError::damaged(path, offset, "a sound record holds what is no list of jobs")
            })?;
            visit(at, &record, &jobs);
            for job in &jobs {
                self.index.apply(&job.change, at);
            }
            self.batch += 1;
            offset += record.len();
            durable = record.header.durable;
            let is_sealed = record.header.kind == Kind::Seal;
            if let Some(segment) = self.segments.get_mut(&number) {
                segment.records += 1;
                segment.is_sealed = is_sealed;
                segment.end = if is_sealed { at.offset } else { offset };
            }
            if is_sealed {
                break None;
            }
        };
        if offset > RECORDS_START {
            let end = bytes.get(durable as usize..offset as usize);
            self.unconfirmed = Some(Unconfirmed {
                segment: number,
                offset: durable,
                bytes: end.unwrap_or_default().to_vec(),
            });
        }
        Ok(ended)
    }

    /// Each group's entries follow each other. What lacks is a defect of this code or of the repair.
    fn check_groups(&self, folder: &Path) -> Result<(), LogError> {
        for (group, index) in self.index.groups() {
            if let Some(gap) = index.gap() {
                return Err(LogError::damaged(
                    folder,
                    0,
                    format!("group {} has no entry {gap}, and later ones", group.0),
                ));
            }
        }
        Ok(())
    }
}

fn empty_segment(header: SegmentHeader, is_blank: bool) -> Segment {
    Segment {
        header,
        records: 0,
        end: RECORDS_START,
        is_sealed: false,
        is_blank,
    }
}

/// What the checksums of a segment's records cover beside their bytes.
pub(super) fn place(log: u64, number: u64) -> Place {
    let is_old = mutant::is("segment_number_not_in_checksum");
    let number = if is_old { 0 } else { number };
    Place { log, number }
}

fn missing(folder: &Path, number: u64) -> LogError {
    LogError::damaged(
        &folder::segment(folder, number),
        0,
        "the segment is missing",
    )
}

fn read_header(disk: &dyn Disk, folder: &Path, number: u64) -> Result<SegmentHeader, LogError> {
    let path = folder::segment(folder, number);
    let read = disk
        .open(&path, Access::Read)
        .and_then(|file| disk::read_up_to(&*file, 0, RECORDS_START as usize));
    let bytes = read.map_err(|error| LogError::io(&path, "reading", &error))?;
    decode_header(&path, &bytes)
}

fn decode_header(path: &Path, bytes: &[u8]) -> Result<SegmentHeader, LogError> {
    SegmentHeader::decode(bytes).map_err(|fault| match fault {
        HeaderFault::Unsound => LogError::damaged(path, 0, "the segment's header is not sound"),
        HeaderFault::Version(version) => LogError::Version {
            file: path.to_owned(),
            version,
            known: VERSION,
        },
    })
}
