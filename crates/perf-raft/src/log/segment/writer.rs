//! The end of the log: records are appended to the newest segment, and a new segment is begun when it is full.

use super::folder;
use super::format::{self, Kind, RECORDS_START, SEAL_BYTES, SegmentHeader, record_len};
use super::index::At;
use super::job::Change;
use super::survey::place;
use super::{SPARES_MAX, SegmentLog};
use crate::log::LogError;
use crate::log::disk::{self, Access, DiskFile};
use crate::primitive::mutant;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// The segment that records are appended to.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) file: Box<dyn DiskFile>,
    pub(super) path: PathBuf,
    pub(super) header: SegmentHeader,
    /// Where the next record begins.
    pub(super) end: u64,
    /// Up to where the segment is durable.
    pub(super) durable: u64,
    /// An earlier process wrote here: what is behind `end` is unknown, so the segment takes no more than its seal.
    pub(super) is_old: bool,
}

impl Tail {
    fn has_room(&self, record_bytes: u64) -> bool {
        let is_old = self.is_old && !mutant::is("segment_old_tail_used_again");
        !is_old && self.end + record_bytes + SEAL_BYTES <= self.header.capacity
    }
}

impl SegmentLog {
    /// Writes the record whose payload is in the buffer and does to the index what it says.
    pub(super) fn append(&mut self, changes: &[Change]) -> Result<(), LogError> {
        let payload_bytes = self.buffer.len() - format::RECORD_HEADER_BYTES;
        if payload_bytes > u32::MAX as usize {
            return Err(LogError::Unsupported {
                reason: format!(
                    "a write has {payload_bytes} bytes, and 4 GiB are possible: split it"
                ),
            });
        }
        let record_bytes = record_len(payload_bytes) as u64;
        while !self
            .tail
            .as_ref()
            .is_some_and(|tail| tail.has_room(record_bytes))
        {
            self.rotate(record_bytes)?;
        }
        let Some(tail) = &self.tail else {
            return Err(no_tail());
        };
        let at = At {
            segment: tail.header.number,
            offset: tail.end,
        };
        let checked = self.shared.index.lock().check(changes);
        checked.map_err(|reason| LogError::Unsupported { reason })?;
        let is_early = mutant::is("segment_index_before_record");
        if is_early {
            self.apply(changes, at);
        }
        self.put_record(Kind::Jobs)?;
        // Readers look for records that the index names: not before they are written.
        if !is_early {
            self.apply(changes, at);
        }
        if mutant::is("snapshot_removed_before_sync") {
            self.remove_obsolete()?;
        }
        Ok(())
    }

    fn apply(&mut self, changes: &[Change], at: At) {
        let mut index = self.shared.index.lock();
        for change in changes {
            let replaced = index.apply(change, at);
            let replaced = replaced.filter(|record| record.number > 0);
            self.obsolete
                .extend(replaced.map(|record| (change.group, record.number)));
        }
    }

    /// Writes the record in the buffer at the end of the tail.
    fn put_record(&mut self, kind: Kind) -> Result<(), LogError> {
        let Some(tail) = &mut self.tail else {
            return Err(no_tail());
        };
        let place = place(tail.header.log, tail.header.number);
        place.finish(&mut self.buffer, tail.end, tail.durable, self.batch, kind);
        disk::write_all(&*tail.file, &self.buffer, tail.end)
            .map_err(|error| LogError::io(&tail.path, "writing", &error))?;
        tail.end += self.buffer.len() as u64;
        self.batch += 1;
        Ok(())
    }

    /// Makes all that was written durable. Then files go that nothing durable names any more.
    pub(super) fn sync(&mut self) -> Result<(), LogError> {
        if let Some(tail) = &mut self.tail
            && tail.durable < tail.end
        {
            if !mutant::is("segment_sync_skipped") {
                tail.file
                    .sync()
                    .map_err(|error| LogError::sync(&tail.path, &error))?;
            }
            tail.durable = tail.end;
        }
        self.remove_obsolete()
    }

    fn remove_obsolete(&mut self) -> Result<(), LogError> {
        for (group, number) in std::mem::take(&mut self.obsolete) {
            let path = folder::snapshot(&self.folder, group, number);
            self.disk
                .remove(&path)
                .map_err(|error| LogError::io(&path, "removing", &error))?;
        }
        Ok(())
    }

    /// Begins the next segment, with room for a record. The one before is sealed once the new one is durable, and before anything is
    /// written to it; then segments go that the new one's header does not name any more.
    pub(super) fn rotate(&mut self, record_bytes: u64) -> Result<(), LogError> {
        // What makes old segments needless must be durable before they go.
        if !mutant::is("segment_purged_before_sync") {
            self.sync()?;
        }
        let next = match self.next.take() {
            Some(next) => next,
            None => self.new_segment(record_bytes)?,
        };
        if self.tail.is_some() {
            format::begin_record(&mut self.sealing);
            std::mem::swap(&mut self.sealing, &mut self.buffer);
            let sealed = self.put_record(Kind::Seal);
            std::mem::swap(&mut self.sealing, &mut self.buffer);
            sealed?;
            if !mutant::is("segment_seal_not_synced") {
                self.sync()?;
            }
        }
        let first = next.header.first;
        self.tail = Some(next);
        self.purge(first)
    }

    fn new_segment(&mut self, record_bytes: u64) -> Result<Tail, LogError> {
        let tail = self.tail.as_ref();
        let number = tail.map_or(1, |tail| tail.header.number + 1);
        let mut first = self.first_segment().unwrap_or(number);
        if mutant::is("segment_purged_past_a_slow_group") {
            first = tail.map_or(1, |tail| tail.header.number);
        }
        if self.log == 0 {
            self.log = self.disk.unique_number();
            self.shared.log.store(self.log, Ordering::Release);
        }
        let needed = RECORDS_START + record_bytes + SEAL_BYTES;
        let header = SegmentHeader {
            log: self.log,
            number,
            first,
            capacity: self.options.segment_bytes.max(needed),
            // The seal has a number too.
            batch: self.batch + u64::from(tail.is_some()),
        };
        let made = self.make_segment(header)?;
        self.segments.insert(number, header.capacity);
        if !self.has_id {
            let id = self.log.to_le_bytes();
            disk::write_file(&*self.disk, &self.folder.join(folder::LOG_ID), &id)?;
            self.has_id = true;
        }
        Ok(made)
    }

    /// Makes a segment of a spare file, or of a new one. It gets its name when its header is durable.
    fn make_segment(&mut self, header: SegmentHeader) -> Result<Tail, LogError> {
        let is_usual = header.capacity == self.options.segment_bytes;
        let spare = if is_usual { self.spares.pop() } else { None };
        let (made_as, access) = match spare {
            Some(number) => (folder::spare(&self.folder, number), Access::Write),
            None => (folder::new_segment(&self.folder), Access::Create),
        };
        let failed = |action| {
            let path = &made_as;
            move |error| LogError::io(path, action, &error)
        };
        let file = self
            .disk
            .open(&made_as, access)
            .map_err(failed("making a segment"))?;
        if access == Access::Create {
            file.allocate(header.capacity)
                .map_err(failed("reserving room for a segment"))?;
        }
        disk::write_all(&*file, &header.encode(), 0).map_err(failed("writing"))?;
        if !mutant::is("segment_header_not_synced") {
            file.sync()
                .map_err(|error| LogError::sync(&made_as, &error))?;
        }
        let path = folder::segment(&self.folder, header.number);
        self.disk
            .rename(&made_as, &path)
            .map_err(failed("renaming"))?;
        if !mutant::is("segment_folder_not_synced") {
            self.disk
                .sync_folder(&self.folder)
                .map_err(|error| LogError::sync(&self.folder, &error))?;
        }
        Ok(Tail {
            file,
            path,
            header,
            end: RECORDS_START,
            durable: RECORDS_START,
            is_old: false,
        })
    }

    /// Segments before `first` go; some of them become spare files.
    fn purge(&mut self, first: u64) -> Result<(), LogError> {
        let needed = self.segments.split_off(&first);
        for (number, capacity) in std::mem::replace(&mut self.segments, needed) {
            let path = folder::segment(&self.folder, number);
            if capacity == self.options.segment_bytes && self.spares.len() < SPARES_MAX {
                let spare = folder::spare(&self.folder, number);
                self.disk
                    .rename(&path, &spare)
                    .map_err(|error| LogError::io(&path, "renaming", &error))?;
                self.spares.push(number);
            } else {
                self.disk
                    .remove(&path)
                    .map_err(|error| LogError::io(&path, "removing", &error))?;
            }
        }
        self.reader.forget_before(first);
        Ok(())
    }
}

fn no_tail() -> LogError {
    LogError::Unsupported {
        reason: "the log has no segment to write to".to_owned(),
    }
}
