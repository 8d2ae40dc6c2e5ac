//! Reads all segments once: what there is, where it ends, and whether anything is damaged. Changes nothing.

use super::folder::{self, Names};
use super::format::{
    HeaderFault, Kind, Place, RECORD_HEADER_BYTES, RECORDS_START, Record, RecordHeader,
    SegmentHeader, VERSION,
};
use super::index::{At, Index};
use super::job::{self, Stored};
use super::window::Window;
use crate::log::LogError;
use crate::log::disk::{self, Access, Disk};
use crate::primitive::mutant;
use std::collections::BTreeMap;
use std::io;
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
    /// Where the last record ends.
    end: u64,
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
        let mut buffer = Vec::new();
        for number in self.first..=last {
            let path = folder::segment(folder, number);
            let cut = self.cut.filter(|cut| cut.segment == number);
            let cut = cut.map(|cut| cut.offset);
            let window = Window::open(disk, &path, cut, &mut buffer)
                .map_err(|error| LogError::io(&path, "reading", &error))?;
            self.read_segment(&path, number, window, &mut ended, visit)?;
        }
        self.read_unconfirmed(disk, folder)?;
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
        path: &Path,
        number: u64,
        mut window: Window<'_>,
        ended: &mut Option<LogError>,
        visit: Visit<'_>,
    ) -> Result<(), LogError> {
        let failed = |error: io::Error| LogError::io(path, "reading", &error);
        let header = window.get(0, RECORDS_START as usize).map_err(failed)?;
        let header = decode_header(path, header)?;
        self.check_header(path, &header, number, window.len())?;
        let place = place(header.log, number);
        let first = window.find(place, RECORDS_START, |_| true);
        let is_blank = first.map_err(failed)?.is_none();
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
                path,
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
        let reason = self.read_records(path, &mut window, number, place, visit)?;
        let end = self.segments.get(&number).map_or(0, |segment| segment.end);
        let Some(reason) = reason else {
            return Ok(());
        };
        let is_later = |header: &RecordHeader| header.durable > end;
        if !is_blank && window.find(place, end, is_later).map_err(failed)?.is_some() {
            let reason = format!("{reason}, and a later record says that it was durable");
            return Err(LogError::damaged(path, end, reason));
        }
        let reason = format!("{reason}, and the next segment is in use");
        *ended = Some(LogError::damaged(path, end, reason));
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
        window: &mut Window<'_>,
        number: u64,
        place: Place,
        visit: Visit<'_>,
    ) -> Result<Option<&'static str>, LogError> {
        let failed = |error: io::Error| LogError::io(path, "reading", &error);
        let (mut offset, mut durable) = (RECORDS_START, RECORDS_START);
        let ended = loop {
            let header = window.get(offset, RECORD_HEADER_BYTES).map_err(failed)?;
            let len = match place.header(header, offset) {
                Ok(header) => RECORD_HEADER_BYTES.saturating_add(header.payload_bytes),
                Err(reason) => break Some(reason),
            };
            let bytes = window.get(offset, len).map_err(failed)?;
            let record = match place.read(bytes, offset) {
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
            self.unconfirmed = Some(Unconfirmed {
                segment: number,
                offset: durable,
                end: offset,
                bytes: Vec::new(),
            });
        }
        Ok(ended)
    }

    fn read_unconfirmed(&mut self, disk: &dyn Disk, folder: &Path) -> Result<(), LogError> {
        let Some(unconfirmed) = &mut self.unconfirmed else {
            return Ok(());
        };
        let path = folder::segment(folder, unconfirmed.segment);
        let (from, len) = (unconfirmed.offset, unconfirmed.end - unconfirmed.offset);
        let read = disk
            .open(&path, Access::Read)
            .and_then(|file| disk::read_up_to(&*file, from, len as usize));
        unconfirmed.bytes = read.map_err(|error| LogError::io(&path, "reading", &error))?;
        Ok(())
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
