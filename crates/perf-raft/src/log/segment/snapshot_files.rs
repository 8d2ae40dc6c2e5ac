//! The data of snapshots: a file for each save, made under another name and renamed once it is durable.

use super::folder;
use super::job::SnapshotRecord;
use crate::GroupId;
use crate::log::disk::{self, Access, Disk, DiskFile};
use crate::log::snapshot_store::PIECE_BYTES;
use crate::log::{
    LogError, SnapshotReader, SnapshotStore, SnapshotWriter, StoredData, StoredSnapshot,
};
use crate::primitive::mutant;
use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// After so many bytes a file that is written is synced: one `fdatasync` of gigabytes would hold up those of the log.
const SYNC_BYTES: u64 = 8 * 1024 * 1024;

/// What a log shares with those who write and read snapshots.
pub(super) struct SnapshotFiles {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    saves: Mutex<Saves>,
    /// The folder is locked as long as a file may be written to it.
    _lock: Mutex<Box<dyn Send>>,
}

#[derive(Default)]
struct Saves {
    /// The number of the last save.
    last: u64,
    /// Snapshots whose data is durable, until a job names them. Those that were written in pieces have no metadata yet.
    waiting: Vec<(GroupId, SnapshotRecord)>,
}

impl SnapshotFiles {
    pub(super) fn new(disk: Arc<dyn Disk>, folder: PathBuf, lock: Box<dyn Send>) -> Self {
        Self {
            disk,
            folder,
            saves: Mutex::default(),
            _lock: Mutex::new(lock),
        }
    }

    /// Numbers up to this one are not used again.
    pub(super) fn skip_number(&self, number: u64) {
        let mut saves = self.saves.lock();
        saves.last = saves.last.max(number);
    }

    fn next_number(&self) -> u64 {
        let mut saves = self.saves.lock();
        saves.last += 1;
        saves.last
    }

    pub(super) fn save(&self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        let number = self.next_number();
        let path = folder::snapshot(&self.folder, group, number);
        disk::write_file(&*self.disk, &path, &snapshot.data)?;
        let record = SnapshotRecord::new(snapshot, number);
        self.saves.lock().waiting.push((group, record));
        Ok(())
    }

    /// The record of the saved snapshot that a job names, and the numbers of those that do not count any more: saves of
    /// whole snapshots before it that no job named. What was written in pieces may still be named.
    pub(super) fn take(
        &self,
        group: GroupId,
        snapshot: &StoredSnapshot,
    ) -> Option<(SnapshotRecord, Vec<u64>)> {
        if snapshot.is_in_machine() {
            let record = SnapshotRecord::default();
            return Some((record.with_metadata(snapshot), Vec::new()));
        }
        let mut saves = self.saves.lock();
        let waiting = &mut saves.waiting;
        if let Some(stored) = &snapshot.stored {
            let is_named = |(of, record): &(GroupId, SnapshotRecord)| {
                *of == group && record.number == stored.number
            };
            let place = waiting.iter().position(is_named)?;
            let (_, record) = waiting.remove(place);
            return Some((record.with_metadata(snapshot), Vec::new()));
        }
        let wanted = SnapshotRecord::new(snapshot, 0);
        let place = waiting.iter().position(|(of, record)| {
            let number = record.number;
            *of == group
                && *record
                    == SnapshotRecord {
                        number,
                        ..wanted.clone()
                    }
        })?;
        let (_, record) = waiting.remove(place);
        let is_older = |(of, saved): &mut (GroupId, SnapshotRecord)| {
            *of == group && saved.metadata.is_some() && saved.number < record.number
        };
        let older = waiting.extract_if(.., is_older);
        let older = older.map(|(_, saved)| saved.number).collect();
        Some((record, older))
    }
}

impl SnapshotStore for Arc<SnapshotFiles> {
    fn create(&self, group: GroupId) -> Result<Box<dyn SnapshotWriter>, LogError> {
        let number = self.next_number();
        let path = folder::snapshot(&self.folder, group, number);
        let part = path.with_extension("tmp");
        let made = self.disk.open(&part, Access::Create);
        let file = made.map_err(|error| LogError::io(&part, "making a file", &error))?;
        Ok(Box::new(Writer {
            files: Arc::clone(self),
            group,
            file,
            path,
            part: Some(part),
            record: SnapshotRecord {
                number,
                ..SnapshotRecord::default()
            },
            crc: crc32fast::Hasher::new(),
            synced: 0,
        }))
    }

    fn open(
        &self,
        group: GroupId,
        data: StoredData,
    ) -> Result<Option<Box<dyn SnapshotReader>>, LogError> {
        let path = folder::snapshot(&self.folder, group, data.number);
        match self.disk.open(&path, Access::Read) {
            Ok(file) => Ok(Some(Box::new(Reader {
                file,
                path,
                data,
                crc: crc32fast::Hasher::new(),
                checked: 0,
            }))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LogError::io(&path, "opening", &error)),
        }
    }

    fn discard(&self, group: GroupId, data: StoredData) {
        let is_it = |(of, record): &mut (GroupId, SnapshotRecord)| {
            *of == group && record.number == data.number
        };
        let found = self.saves.lock().waiting.extract_if(.., is_it).next();
        if found.is_some() {
            let path = folder::snapshot(&self.folder, group, data.number);
            // A file that stays is removed when the log is opened.
            let _ = self.disk.remove(&path);
        }
    }
}

struct Writer {
    files: Arc<SnapshotFiles>,
    group: GroupId,
    file: Box<dyn DiskFile>,
    path: PathBuf,
    /// The name under which it is made; `None` once it has its own.
    part: Option<PathBuf>,
    record: SnapshotRecord,
    crc: crc32fast::Hasher,
    synced: u64,
}

impl Writer {
    fn part(&self) -> &Path {
        self.part.as_ref().unwrap_or(&self.path)
    }

    fn sync(&mut self) -> Result<(), LogError> {
        if self.synced < self.record.bytes || self.record.bytes == 0 {
            let synced = self.file.sync();
            synced.map_err(|error| LogError::sync(self.part(), &error))?;
            self.synced = self.record.bytes;
        }
        Ok(())
    }
}

impl SnapshotWriter for Writer {
    fn write(&mut self, piece: &[u8]) -> Result<(), LogError> {
        for piece in piece.chunks(SYNC_BYTES as usize) {
            let written = disk::write_all(&*self.file, piece, self.record.bytes);
            written.map_err(|error| LogError::io(self.part(), "writing", &error))?;
            self.record.crc = crc32c::crc32c_append(self.record.crc, piece);
            self.crc.update(piece);
            self.record.bytes += piece.len() as u64;
            if self.record.bytes - self.synced >= SYNC_BYTES {
                self.sync()?;
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<StoredData, LogError> {
        if !mutant::is("snapshot_data_not_synced") {
            self.sync()?;
        }
        let files = Arc::clone(&self.files);
        let renamed = files.disk.rename(self.part(), &self.path);
        renamed.map_err(|error| LogError::io(self.part(), "renaming", &error))?;
        self.part = None;
        if !mutant::is("snapshot_folder_not_synced") {
            let synced = files.disk.sync_folder(&files.folder);
            synced.map_err(|error| LogError::sync(&files.folder, &error))?;
        }
        let record = self.record.clone();
        let data = StoredData {
            number: record.number,
            bytes: record.bytes,
            crc: self.crc.clone().finalize(),
        };
        files.saves.lock().waiting.push((self.group, record));
        Ok(data)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            // A file that stays is removed when the log is opened.
            let _ = self.files.disk.remove(part);
        }
    }
}

/// Checks the whole with its last bytes. Whoever begins in the middle has what comes before read for that.
struct Reader {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    data: StoredData,
    crc: crc32fast::Hasher,
    /// Bytes that the checksum has.
    checked: u64,
}

impl Reader {
    fn fill(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, LogError> {
        let left = self.data.bytes.saturating_sub(offset);
        let room = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let filled = disk::fill(&*self.file, offset, &mut buffer[..room]);
        let filled = filled.map_err(|error| LogError::io(&self.path, "reading", &error))?;
        if filled < room {
            let reason = format!("the snapshot ends before its {} bytes", self.data.bytes);
            return Err(LogError::damaged(&self.path, offset, reason));
        }
        Ok(filled)
    }

    fn check(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        self.crc.update(bytes);
        self.checked += bytes.len() as u64;
        let is_whole = self.checked == self.data.bytes;
        if is_whole && self.crc.clone().finalize() != self.data.crc {
            let reason = "the snapshot has another checksum than when it was written";
            return Err(LogError::damaged(&self.path, 0, reason));
        }
        Ok(())
    }
}

impl SnapshotReader for Reader {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, LogError> {
        while self.checked < offset.min(self.data.bytes) {
            let mut skipped = vec![0; PIECE_BYTES.min((offset - self.checked) as usize)];
            let filled = self.fill(self.checked, &mut skipped)?;
            self.check(&skipped[..filled])?;
        }
        let filled = self.fill(offset, buffer)?;
        let fresh = (self.checked.saturating_sub(offset) as usize).min(filled);
        self.check(&buffer[fresh..filled])?;
        Ok(filled)
    }
}

/// Reads the data of a snapshot in pieces and checks it. Returns its name.
pub(super) fn scan_snapshot(
    disk: &dyn Disk,
    folder: &Path,
    group: GroupId,
    record: &SnapshotRecord,
    mut each: impl FnMut(&[u8]),
) -> Result<StoredData, LogError> {
    if record.number == StoredData::IN_MACHINE.number {
        return Ok(StoredData::IN_MACHINE);
    }
    let path = folder::snapshot(folder, group, record.number);
    let failed = |error| LogError::io(&path, "reading the snapshot", &error);
    let file = match disk.open(&path, Access::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(LogError::damaged(&path, 0, "the snapshot is missing"));
        }
        Err(error) => return Err(failed(error)),
    };
    let len = file.len().map_err(failed)?;
    let mut piece = vec![0; (PIECE_BYTES as u64).min(len) as usize];
    let (mut bytes, mut crc) = (0, 0);
    let mut crc32 = crc32fast::Hasher::new();
    while bytes < len {
        let filled = disk::fill(&*file, bytes, &mut piece).map_err(failed)?;
        if filled == 0 {
            break;
        }
        crc = crc32c::crc32c_append(crc, &piece[..filled]);
        crc32.update(&piece[..filled]);
        each(&piece[..filled]);
        bytes += filled as u64;
    }
    if (bytes, crc) != (record.bytes, record.crc) {
        let reason = format!(
            "the snapshot has {bytes} bytes with checksum {crc:08x} instead of {} with {:08x}",
            record.bytes, record.crc
        );
        return Err(LogError::damaged(&path, 0, reason));
    }
    Ok(StoredData {
        number: record.number,
        bytes,
        crc: crc32.finalize(),
    })
}

/// Reads the data of a snapshot, and checks it.
pub(super) fn load_snapshot(
    disk: &dyn Disk,
    folder: &Path,
    group: GroupId,
    record: &SnapshotRecord,
) -> Result<StoredSnapshot, LogError> {
    let mut data = Vec::with_capacity(usize::try_from(record.bytes).unwrap_or(0).min(PIECE_BYTES));
    let found = scan_snapshot(disk, folder, group, record, |piece| {
        data.extend_from_slice(piece);
    })?;
    let mut snapshot = record.without_data();
    snapshot.data = data.into();
    snapshot.stored = (found == StoredData::IN_MACHINE).then_some(found);
    Ok(snapshot)
}
