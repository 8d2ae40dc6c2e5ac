//! The log on disk, of segments that all groups of a process share.

mod folder;
mod format;
mod heal;
mod index;
#[cfg(feature = "cli")]
mod inspect;
mod job;
mod reader;
mod reclaim;
#[cfg(feature = "cli")]
mod repair;
mod snapshot_files;
mod survey;
mod window;
mod writer;

pub use heal::{Healed, OnDamage};
#[cfg(feature = "cli")]
pub use inspect::{GroupInfo, LogInfo, SegmentInfo};
#[cfg(feature = "cli")]
pub use repair::Repair;

use super::disk::{self, Access, Disk, RealDisk};
use super::{
    LogError, LogJob, LogOutline, LogReader, LogState, LogStore, SnapshotStore, StoredSnapshot,
};
use crate::GroupId;
use crate::primitive::mutant;
use folder::Names;
use index::Run;
use job::{Change, SnapshotRecord};
use parking_lot::Mutex;
use raft::eraftpb::Entry;
use reader::{Reader, SegmentReader, Shared};
use snapshot_files::{SnapshotFiles, load_snapshot, scan_snapshot};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use survey::Survey;
use writer::Tail;

/// Purged segments that are kept to be used again.
const SPARES_MAX: usize = 2;

/// What the log may take beside twice what counts, in segments. With the spare files, segments that wait to be purged and the one that is
/// being made it is at most nine segments.
const SLACK_SEGMENTS: u64 = 4;

/// The smallest segment.
const SEGMENT_BYTES_MIN: u64 = 1024;

/// How a [`SegmentLog`] is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentLogOptions {
    /// Size of a segment in bytes, 32 MiB by default, at least 1 KiB. A write that is larger gets a segment of its own size.
    ///
    /// The log takes at most twice the bytes that count and nine segments.
    pub segment_bytes: u64,
    /// What happens if the log is damaged: [`OnDamage::Refuse`] by default.
    pub on_damage: OnDamage,
}

impl Default for SegmentLogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 32 * 1024 * 1024,
            on_damage: OnDamage::Refuse,
        }
    }
}

/// A log on disk for any number of groups: numbered segments in one folder, with the data of snapshots beside them.
///
/// - A write of any number of jobs of any groups is one record: one write and one `fdatasync`.
/// - When it is opened, a torn write at the end is cut off. Damage before the end, a missing segment and a damaged snapshot are refused, with
///   file and offset ([`LogError::is_damage`]). Damaged files are left as they are. (Damage in the very last record cannot be told
///   from a torn write.)
/// - Disk use is bounded, however slow one group is: see [`SegmentLogOptions::segment_bytes`]. What an old segment still holds is written again
///   at the end of the log.
/// - A failed write or fsync is reported and never repeated; the log refuses all writes after it.
/// - The format has a version, and a log of a newer version is refused ([`LogError::Version`]).
///
/// The index in memory takes some 100 bytes for each job with live entries. Entries are read from disk when they are needed, by as many readers
/// as there are groups; all of them together keep one record in memory.
///
/// ```no_run
/// let log = perf_raft::log::SegmentLog::open("/var/lib/node/raft")?;
/// # Ok::<(), perf_raft::LogError>(())
/// ```
pub struct SegmentLog {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    options: SegmentLogOptions,
    /// The log's id, 0 before there is a segment.
    log: u64,
    has_id: bool,
    /// What readers share with the log.
    shared: Arc<Shared>,
    /// Lengths of the segments by number.
    segments: BTreeMap<u64, u64>,
    tail: Option<Tail>,
    /// A segment after the tail that was made and not used.
    next: Option<Tail>,
    spares: Vec<u64>,
    /// The number of the next record.
    batch: u64,
    /// The record that is being written.
    buffer: Vec<u8>,
    /// What the record changes.
    changes: Vec<Change>,
    /// Holds the record's place while a seal is written.
    sealing: Vec<u8>,
    reader: Reader,
    snapshots: Arc<SnapshotFiles>,
    /// Files of snapshots that do not count once all is durable.
    obsolete: Vec<(GroupId, u64)>,
    poison: Option<LogError>,
    healed: Option<Healed>,
}

impl fmt::Debug for SegmentLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentLog")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl SegmentLog {
    /// Opens the log in `folder`, which is made if it is missing. Reads all segments once.
    ///
    /// # Errors
    /// [`LogError::Corrupted`] if it is damaged, [`LogError::InUse`] if it is open elsewhere, [`LogError::Version`] if it is of a newer
    /// program, and others if it cannot be read or written.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, LogError> {
        Self::open_with(folder, &SegmentLogOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        folder: impl AsRef<Path>,
        options: &SegmentLogOptions,
    ) -> Result<Self, LogError> {
        Self::open_on(Arc::new(RealDisk), folder, options)
    }

    /// The same on another disk, for tests.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(
        disk: Arc<dyn Disk>,
        folder: impl AsRef<Path>,
        options: &SegmentLogOptions,
    ) -> Result<Self, LogError> {
        if options.segment_bytes < SEGMENT_BYTES_MIN {
            return Err(LogError::Unsupported {
                reason: format!(
                    "`segment_bytes` is {}, and at least {SEGMENT_BYTES_MIN} are possible",
                    options.segment_bytes
                ),
            });
        }
        let folder = folder.as_ref().to_owned();
        let lock = lock(&*disk, &folder)?;
        let mut survey = Survey::default();
        let mut read = survey.read(&*disk, &folder, &mut |_, _, _| {});
        if options.on_damage == OnDamage::Rejoin {
            read = read.and_then(|()| Self::check_snapshots(&*disk, &folder, &survey));
        }
        if let Err(damage) = read {
            drop(lock);
            return Self::begin_anew(disk, &folder, options, damage, &survey);
        }
        let snapshots = SnapshotFiles::new(Arc::clone(&disk), folder.clone(), lock);
        let mut log = Self {
            disk,
            folder,
            options: options.clone(),
            log: survey.log,
            has_id: survey.names.has_id,
            shared: Arc::new(Shared {
                index: Mutex::new(survey.index),
                log: AtomicU64::new(survey.log),
                reader: Mutex::default(),
            }),
            segments: BTreeMap::new(),
            tail: None,
            next: None,
            spares: Vec::new(),
            batch: survey.batch,
            buffer: Vec::new(),
            changes: Vec::new(),
            sealing: Vec::new(),
            reader: Reader::default(),
            snapshots: Arc::new(snapshots),
            obsolete: Vec::new(),
            poison: None,
            healed: None,
        };
        if let Some(unconfirmed) = &survey.unconfirmed {
            log.confirm(unconfirmed)?;
        }
        log.take_segments(&survey.segments)?;
        log.remove_strays(&survey.names, survey.first)?;
        log.disk
            .sync_folder(&log.folder)
            .map_err(|error| LogError::sync(&log.folder, &error))?;
        Ok(log)
    }

    /// Moves all files of a log that cannot be opened into a folder `damaged-N` within its own, and returns that folder. The log is a new one
    /// then.
    ///
    /// A node may do so only if it rejoins its group under a new incarnation, since it forgets its votes and what it acknowledged. A group whose
    /// quorum does so loses what it acknowledged.
    ///
    /// # Errors
    /// [`LogError`] if the folder is in use, or files cannot be moved. It can be called again.
    pub fn set_aside(folder: impl AsRef<Path>) -> Result<PathBuf, LogError> {
        Self::set_aside_on(&RealDisk, folder)
    }

    /// The same on another disk, for tests.
    ///
    /// # Errors
    /// As [`set_aside`](Self::set_aside).
    pub fn set_aside_on(disk: &dyn Disk, folder: impl AsRef<Path>) -> Result<PathBuf, LogError> {
        let folder = folder.as_ref();
        let _lock = lock(disk, folder)?;
        let names = Names::list(disk, folder)?;
        let aside = folder::damaged(folder, names.damaged + 1);
        disk.make_folder(&aside)
            .map_err(|error| LogError::io(&aside, "making the folder", &error))?;
        for name in names.all() {
            let path = folder.join(&name);
            disk.rename(&path, &aside.join(&name))
                .map_err(|error| LogError::io(&path, "renaming", &error))?;
        }
        for folder in [&aside, folder] {
            disk.sync_folder(folder)
                .map_err(|error| LogError::sync(folder, &error))?;
        }
        Ok(aside)
    }

    /// Bytes of all segments, of files that are kept to be used again and of live entries. Snapshots do not count.
    #[must_use]
    pub fn disk_use(&self) -> DiskUse {
        let segments: u64 = self.segments.values().sum();
        let spares = self.spares.len() as u64 * self.options.segment_bytes;
        DiskUse {
            bytes: segments + spares,
            live_bytes: self.shared.index.lock().live_bytes(),
        }
    }

    /// Makes the end of the log durable, which an earlier process wrote and perhaps never confirmed. It is written again: a page whose
    /// fsync failed once counts as clean although the disk does not have it.
    fn confirm(&self, end: &survey::Unconfirmed) -> Result<(), LogError> {
        let path = folder::segment(&self.folder, end.segment);
        let failed = |action| {
            let path = &path;
            move |error| LogError::io(path, action, &error)
        };
        let file = self
            .disk
            .open(&path, Access::Write)
            .map_err(failed("opening for writing"))?;
        if mutant::is("segment_end_not_confirmed") {
            return Ok(());
        }
        disk::write_all(&*file, &end.bytes, end.offset).map_err(failed("writing"))?;
        file.sync().map_err(|error| LogError::sync(&path, &error))
    }

    /// Goes on where the log ended: at the first segment without a seal. There may be one after it that was made and not used.
    fn take_segments(&mut self, segments: &BTreeMap<u64, survey::Segment>) -> Result<(), LogError> {
        for (&number, segment) in segments {
            self.segments.insert(number, segment.header.capacity);
            if segment.is_sealed {
                continue;
            }
            let path = folder::segment(&self.folder, number);
            let opened = self.disk.open(&path, Access::Write);
            let file =
                opened.map_err(|error| LogError::io(&path, "opening for writing", &error))?;
            let tail = Tail {
                file,
                path,
                header: segment.header,
                end: segment.end,
                durable: segment.end,
                is_old: !segment.is_blank,
            };
            match &mut self.tail {
                None => self.tail = Some(tail),
                // The next segment's first record has the number after that of this one's seal.
                Some(before) => {
                    before.is_old = true;
                    self.next = Some(tail);
                }
            }
        }
        Ok(())
    }

    /// Removes what a crash left: purged segments, files that were being made, snapshots that no record names.
    fn remove_strays(&mut self, names: &Names, first: u64) -> Result<(), LogError> {
        let mut strays: Vec<PathBuf> = Vec::new();
        let purged = names.segments.iter().filter(|number| **number < first);
        strays.extend(purged.map(|number| folder::segment(&self.folder, *number)));
        strays.extend(names.parts.iter().map(|name| self.folder.join(name)));
        for &number in &names.spares {
            let path = folder::spare(&self.folder, number);
            let file = self.disk.open(&path, Access::Read);
            let len = file.and_then(|file| file.len());
            let len = len.map_err(|error| LogError::io(&path, "reading", &error))?;
            if len == self.options.segment_bytes && self.spares.len() < SPARES_MAX {
                self.spares.push(number);
            } else {
                strays.push(path);
            }
        }
        for &(group, number) in &names.snapshots {
            self.snapshots.skip_number(number);
            let index = self.shared.index.lock();
            let record = index.group(group).and_then(|group| group.snapshot());
            if record.is_none_or(|record| record.number != number) {
                strays.push(folder::snapshot(&self.folder, group, number));
            }
        }
        for path in strays {
            self.disk
                .remove(&path)
                .map_err(|error| LogError::io(&path, "removing", &error))?;
        }
        Ok(())
    }

    /// The record of the saved snapshot that a job names.
    fn take_saved(
        &mut self,
        group: GroupId,
        snapshot: &StoredSnapshot,
    ) -> Result<SnapshotRecord, LogError> {
        let Some((record, older)) = self.snapshots.take(group, snapshot) else {
            return Err(LogError::Unsupported {
                reason: format!(
                    "the snapshot of group {} at {} was not saved: call `save_snapshot`, or finish it, before `write`",
                    group.0, snapshot.metadata.index
                ),
            });
        };
        let older = older.into_iter().map(|number| (group, number));
        self.obsolete.extend(older);
        Ok(record)
    }

    fn write_jobs(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        if !jobs.is_empty() {
            format::begin_record(&mut self.buffer);
            // Used again for each write.
            let mut changes = std::mem::take(&mut self.changes);
            changes.clear();
            for job in jobs {
                let snapshot = job.snapshot.as_ref();
                let record = snapshot.map(|snapshot| self.take_saved(job.group, snapshot));
                let mut change = Change::of(job, record.transpose()?);
                change
                    .encode(&job.entries, &mut self.buffer)
                    .map_err(|reason| LogError::Unsupported { reason })?;
                changes.push(change);
            }
            self.append(&changes)?;
            self.changes = changes;
        }
        if sync {
            self.sync()?;
            self.reclaim()?;
        }
        Ok(())
    }

    /// What there is of a group but for its entries and the data of its snapshot, with the record of that.
    fn beginning(&self, group: GroupId) -> Option<(LogOutline, Option<SnapshotRecord>)> {
        let index = self.shared.index.lock();
        let index = index.group(group)?;
        let record = index.snapshot().cloned();
        let outline = LogOutline {
            hard_state: index.hard_state().cloned().unwrap_or_default(),
            snapshot: record.as_ref().map(SnapshotRecord::without_data),
            compacted: index.compacted(),
            identity: index.identity(),
            ..LogOutline::default()
        };
        Some((outline, record))
    }

    fn runs(&self, group: GroupId) -> Vec<(u64, Run)> {
        let index = self.shared.index.lock();
        let runs = index.group(group).map(|group| group.runs());
        let runs = runs.into_iter().flatten();
        runs.map(|(first, run)| (*first, *run)).collect()
    }

    /// The entries of a run.
    fn entries(&mut self, group: GroupId, first: u64, run: Run) -> Result<Vec<Entry>, LogError> {
        let place = survey::place(self.log, run.at.segment);
        let wanted = (group, first, run);
        self.reader
            .entries(&*self.disk, &self.folder, place, wanted)
    }

    /// Remembers an error: what is durable after it is unknown, so that nothing may be built on it.
    fn poisoned<T>(&mut self, result: Result<T, LogError>) -> Result<T, LogError> {
        if let Err(error) = &result
            && !mutant::is("segment_error_forgotten")
        {
            self.poison.get_or_insert_with(|| error.clone());
        }
        result
    }

    fn check(&self) -> Result<(), LogError> {
        self.poison.clone().map_or(Ok(()), Err)
    }
}

impl LogStore for SegmentLog {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        let Some((outline, record)) = self.beginning(group) else {
            return Ok(None);
        };
        let load = |record| load_snapshot(&*self.disk, &self.folder, group, record);
        let snapshot = record.as_ref().map(load).transpose()?;
        let runs = self.runs(group);
        let mut entries = Vec::new();
        for (first, run) in runs {
            entries.extend(self.entries(group, first, run)?);
        }
        Ok(Some(LogState {
            hard_state: outline.hard_state,
            snapshot,
            compacted: outline.compacted,
            entries,
            identity: outline.identity,
        }))
    }

    /// From the index in memory: a record is read only where a job has entries of several terms. The snapshot is read
    /// and checked.
    fn outline(&mut self, group: GroupId) -> Result<Option<LogOutline>, LogError> {
        let Some((mut outline, record)) = self.beginning(group) else {
            return Ok(None);
        };
        if let (Some(record), Some(snapshot)) = (&record, &mut outline.snapshot) {
            let data = scan_snapshot(&*self.disk, &self.folder, group, record, |_| ())?;
            snapshot.stored = Some(data);
        }
        for (first, run) in self.runs(group) {
            match run.term {
                Some(term) => {
                    outline.push(run.count, term, run.payload_bytes(), u64::from(run.longest))
                }
                None => outline.push_entries(&self.entries(group, first, run)?),
            }
        }
        Ok(Some(outline))
    }

    fn reader(&mut self) -> Result<Option<Box<dyn LogReader>>, LogError> {
        let reader = SegmentReader {
            disk: Arc::clone(&self.disk),
            folder: self.folder.clone(),
            shared: Arc::clone(&self.shared),
        };
        Ok(Some(Box::new(reader)))
    }

    fn save_snapshot(&mut self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        self.check()?;
        let saved = self.snapshots.save(group, snapshot);
        self.poisoned(saved)
    }

    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, LogError> {
        Ok(Some(Arc::new(Arc::clone(&self.snapshots))))
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        self.check()?;
        let written = self.write_jobs(jobs, sync);
        self.poisoned(written)
    }

    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        Ok(self.shared.index.lock().groups().keys().copied().collect())
    }

    fn damage(&self) -> Option<String> {
        let healed = self.healed.as_ref()?;
        Some(format!(
            "{} (its files are in {})",
            healed.damage,
            healed.aside.display()
        ))
    }
}

/// What a log takes on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskUse {
    /// Bytes of all segments and of files that are kept to be used again.
    pub bytes: u64,
    /// Bytes of the records that live entries and the groups' states take.
    pub live_bytes: u64,
}

/// Makes the folder and takes its lock.
fn lock(disk: &dyn Disk, folder: &Path) -> Result<Box<dyn Send>, LogError> {
    disk.make_folder(folder)
        .map_err(|error| LogError::io(folder, "making the folder", &error))?;
    let path = folder.join(folder::LOCK);
    disk.lock(&path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => LogError::InUse {
            folder: folder.to_owned(),
        },
        _ => LogError::io(&path, "locking", &error),
    })
}
