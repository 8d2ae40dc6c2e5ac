//! The log on disk, by raft-engine.

mod fs;
mod purged;
mod scan;
mod written;

use super::{LogError, LogJob, LogState, LogStore, StoredSnapshot};
use crate::GroupId;
use crate::codec::{convert, wire};
use crate::members::{Identity, Members};
use fs::{CheckedFileSystem, Poison};
use purged::Purged;
use written::{Written, WrittenEntries};

use raft::eraftpb::{Entry, HardState, SnapshotMetadata};
use raft_engine::env::{DefaultFileSystem, FileSystem};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const KEY_HARD_STATE: &[u8] = b"hard_state";
const KEY_COMPACTED: &[u8] = b"compacted";
const KEY_SNAPSHOT: &[u8] = b"snapshot";
const KEY_IDENTITY: &[u8] = b"identity";

/// Compactions between two looks for files that are not needed any more.
const COMPACTIONS_PER_PURGE: u32 = 4;

/// How a log on disk is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineLogOptions {
    /// Size of a file of the log: 32 MiB.
    pub file_bytes: u64,
    /// Size of all files from which on those without live entries are used again: 128 MiB.
    pub purge_bytes: u64,
    /// Batches from this size on are compressed by lz4; 0, the default, for never.
    pub compress_bytes_min: u64,
}

impl Default for EngineLogOptions {
    fn default() -> Self {
        Self {
            file_bytes: 32 * 1024 * 1024,
            purge_bytes: 128 * 1024 * 1024,
            compress_bytes_min: 0,
        }
    }
}

/// As what entries are read.
struct RaftEntry;

impl MessageExt for RaftEntry {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// What is written again when a snapshot takes the place of a log.
#[derive(Clone, Debug, Default)]
struct Kept {
    hard_state: HardState,
    snapshot_file: Option<PathBuf>,
    identity: Option<Identity>,
    /// The index up to which entries are gone. What is gone stays gone.
    compacted: u64,
}

/// A log on disk, kept by [raft-engine](https://docs.rs/raft-engine) in a folder of its own. Snapshots are files beside it.
///
/// - All jobs that wait are one write and one `fdatasync`.
/// - A failed fsync is reported and never repeated.
/// - When it is opened, a torn tail is cut off. Damage that sound records follow, a gap between files and a damaged snapshot are
///   refused, with file and offset. (Bit rot in the very last record cannot be told from a torn write.)
/// - Its own folders are synced too, so that files it made are there after a power failure.
///
/// ```no_run
/// let log = perf_raft::EngineLog::open("/var/lib/node/raft")?;
/// # Ok::<(), perf_raft::LogError>(())
/// ```
pub struct EngineLog<F: FileSystem = DefaultFileSystem> {
    engine: Engine<CheckedFileSystem<F>>,
    folder: PathBuf,
    poison: Arc<Poison>,
    kept: BTreeMap<GroupId, Kept>,
    batch: LogBatch,
    /// Used again for each job.
    written: Vec<Written>,
    compactions: u32,
    /// The highest number of a snapshot's file, of any group.
    snapshots_saved: u64,
    /// Numbers of files that were saved, in order, until a record names them.
    saved: Vec<(GroupId, u64)>,
}

impl<F: FileSystem> std::fmt::Debug for EngineLog<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineLog")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl EngineLog {
    /// Opens the log in `folder`, which is made if there is none. Reads all of it once.
    ///
    /// # Errors
    /// [`LogError`] if it is damaged or in use by another process.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, LogError> {
        Self::open_with(folder, &EngineLogOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        folder: impl AsRef<Path>,
        options: &EngineLogOptions,
    ) -> Result<Self, LogError> {
        EngineLog::open_on(folder, options, Arc::new(DefaultFileSystem))
    }
}

impl<F: FileSystem> EngineLog<F> {
    /// The same on a file system of raft-engine's kind, for tests that make it fail. Snapshots do not go through it.
    ///
    /// # Errors
    /// As [`open`](EngineLog::open).
    pub fn open_on(
        folder: impl AsRef<Path>,
        options: &EngineLogOptions,
        file_system: Arc<F>,
    ) -> Result<Self, LogError> {
        let folder = folder.as_ref().to_owned();
        make_folder(&folder)?;
        let purged = Purged::new(folder.clone(), scan::check_folder(&folder)?);
        let poison = Arc::new(Poison::default());
        let checked = CheckedFileSystem::new(file_system, Arc::clone(&poison), purged);
        let file_system = Arc::new(checked);
        let opened = Engine::open_with_file_system(config(&folder, options)?, file_system);
        let engine = opened.map_err(|error| engine_error(&folder, "opening the log", &error))?;
        poison.check()?;
        sync_folder(&folder)?;
        Ok(Self {
            engine,
            folder,
            poison,
            kept: BTreeMap::new(),
            batch: LogBatch::default(),
            written: Vec::new(),
            // A node that is restarted often shall purge all the same.
            compactions: COMPACTIONS_PER_PURGE - 1,
            snapshots_saved: 0,
            saved: Vec::new(),
        })
    }

    fn get<M: prost::Message + Default>(
        &self,
        group: GroupId,
        key: &'static [u8],
    ) -> Result<Option<M>, LogError> {
        let value = self.engine.get(group.0, key);
        let read = value.map(|value| M::decode(value.as_slice())).transpose();
        read.map_err(|error| LogError::Corrupted {
            file: self.folder.clone(),
            offset: 0,
            reason: format!(
                "the value of `{}` cannot be read: {error}",
                String::from_utf8_lossy(key)
            ),
        })
    }

    fn put(
        &mut self,
        group: GroupId,
        key: &'static [u8],
        value: &impl prost::Message,
    ) -> Result<(), LogError> {
        let put = self.batch.put(group.0, key.to_vec(), value.encode_to_vec());
        put.map_err(|error| engine_error(&self.folder, "adding to a batch", &error))
    }

    /// Each save has a number of its own, since two snapshots at the same index may differ in their bytes, and the file that the durable
    /// record names must stay until another record does. Number 0 is that of files of earlier versions.
    fn snapshot_path(&self, group: GroupId, metadata: &SnapshotMetadata, number: u64) -> PathBuf {
        let (index, term) = (metadata.index, metadata.term);
        let number = match number {
            0 => String::new(),
            number => format!("-{number:016x}"),
        };
        self.folder.join(format!(
            "{:016x}-{term:016x}-{index:016x}{number}.snapshot",
            group.0
        ))
    }

    fn load_snapshot(
        &mut self,
        group: GroupId,
    ) -> Result<Option<(StoredSnapshot, PathBuf)>, LogError> {
        let Some(record) = self.get::<SnapshotRecord>(group, KEY_SNAPSHOT)? else {
            return Ok(None);
        };
        let metadata = convert::snapshot_metadata(record.metadata.unwrap_or_default());
        let path = self.snapshot_path(group, &metadata, record.number);
        self.snapshots_saved = self.snapshots_saved.max(record.number);
        let data = std::fs::read(&path)
            .map_err(|error| io_error(&path, "reading the snapshot", &error))?;
        let (bytes, crc) = (data.len() as u64, crc32fast::hash(&data));
        if (bytes, crc) != (record.bytes, record.crc) {
            return Err(LogError::Corrupted {
                file: path,
                offset: 0,
                reason: format!(
                    "the snapshot has {bytes} bytes with checksum {crc:08x} instead of {} with {:08x}",
                    record.bytes, record.crc
                ),
            });
        }
        let snapshot = StoredSnapshot {
            metadata,
            data: data.into(),
            members: record.members.unwrap_or_default(),
        };
        Ok(Some((snapshot, path)))
    }

    /// Removes what a crash left behind: snapshots that no record refers to.
    fn remove_strays(&self, group: GroupId, current: Option<&Path>) -> Result<(), LogError> {
        let failed = |error| io_error(&self.folder, "listing", &error);
        let prefix = format!("{:016x}-", group.0);
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let is_snapshot = name.starts_with(&prefix)
                && (name.ends_with(".snapshot") || name.ends_with(".tmp"));
            if is_snapshot && Some(path.as_path()) != current {
                std::fs::remove_file(&path).map_err(|error| io_error(&path, "removing", &error))?;
            }
        }
        Ok(())
    }

    fn write_jobs(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        let mut obsolete = Vec::new();
        for job in jobs {
            self.add(job, &mut obsolete)?;
        }
        let written = self.engine.write(&mut self.batch, sync);
        self.poison.check()?;
        written.map_err(|error| engine_error(&self.folder, "writing", &error))?;
        for path in obsolete {
            std::fs::remove_file(&path).map_err(|error| io_error(&path, "removing", &error))?;
        }
        if self.compactions >= COMPACTIONS_PER_PURGE {
            self.compactions = 0;
            // Entries that are still needed are read and written again.
            let purged = self.on_a_fresh_thread(|engine| engine.purge_expired_files())?;
            self.poison.check()?;
            purged.map_err(|error| engine_error(&self.folder, "purging", &error))?;
        }
        Ok(())
    }

    /// Does something that reads entries. raft-engine keeps the block that was read last, for each thread, and knows it by the number of its file and its place alone:
    /// on a thread that has read another log, or this one before its tail was cut off and written anew, it would take that block for this one's.
    fn on_a_fresh_thread<R: Send>(
        &self,
        read: impl FnOnce(&Engine<CheckedFileSystem<F>>) -> R + Send,
    ) -> Result<R, LogError> {
        let engine = &self.engine;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("raft-log-read".to_owned());
            let reading = thread
                .spawn_scoped(scope, || read(engine))
                .map_err(|error| io_error(&self.folder, "starting a thread that reads", &error))?;
            Ok(reading.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })
    }

    fn add(&mut self, job: &LogJob, obsolete: &mut Vec<PathBuf>) -> Result<(), LogError> {
        let group = job.group;
        let known = self.kept.entry(group).or_default().compacted;
        let mut compacted = job.compacted.filter(|(index, _)| *index > known);
        if let Some(snapshot) = &job.snapshot {
            let metadata = &snapshot.metadata;
            if job.replaces_log {
                // All keys go with the entries, and those that stay are written again.
                self.batch.add_command(group.0, Command::Clean);
                compacted = Some((metadata.index, metadata.term));
                let kept = self.kept.entry(group).or_default().clone();
                self.put(group, KEY_HARD_STATE, &wire_hard_state(&kept.hard_state))?;
                if let Some(identity) = &kept.identity {
                    self.put(group, KEY_IDENTITY, identity)?;
                }
            }
            let saved = self.saved.iter().position(|(of, _)| *of == group);
            let Some((_, number)) = saved.map(|place| self.saved.remove(place)) else {
                return Err(LogError::Unsupported {
                    reason: format!(
                        "the snapshot at {} was not saved: call `save_snapshot` before `write`",
                        metadata.index
                    ),
                });
            };
            let record = SnapshotRecord {
                metadata: Some(convert::wire_snapshot_metadata(metadata)),
                bytes: snapshot.data.len() as u64,
                crc: crc32fast::hash(&snapshot.data),
                number,
                members: Some(snapshot.members.clone()),
            };
            self.put(group, KEY_SNAPSHOT, &record)?;
            let path = self.snapshot_path(group, metadata, number);
            let before = self
                .kept
                .entry(group)
                .or_default()
                .snapshot_file
                .replace(path.clone());
            obsolete.extend(before.filter(|before| *before != path));
        }
        if let Some((index, term)) = compacted {
            self.kept.entry(group).or_default().compacted = index;
            self.put(group, KEY_COMPACTED, &Compacted { index, term })?;
            if !job.replaces_log {
                self.batch
                    .add_command(group.0, Command::Compact { index: index + 1 });
                self.compactions += 1;
            }
        }
        self.written.extend(Written::all(&job.entries));
        let added = self
            .batch
            .add_entries::<WrittenEntries>(group.0, &self.written);
        self.written.clear();
        added.map_err(|error| engine_error(&self.folder, "adding to a batch", &error))?;
        if let Some(identity) = &job.identity {
            self.kept.entry(group).or_default().identity = Some(*identity);
            self.put(group, KEY_IDENTITY, identity)?;
        }
        if let Some(hard_state) = &job.hard_state {
            self.kept.entry(group).or_default().hard_state = hard_state.clone();
            self.put(group, KEY_HARD_STATE, &wire_hard_state(hard_state))?;
        }
        Ok(())
    }
}

impl<F: FileSystem + 'static> LogStore for EngineLog<F> {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        let hard_state = self.get::<wire::HardState>(group, KEY_HARD_STATE)?;
        let compacted = self
            .get::<Compacted>(group, KEY_COMPACTED)?
            .unwrap_or_default();
        let snapshot = self.load_snapshot(group)?;
        let mut entries = Vec::new();
        if let (Some(first), Some(last)) = (
            self.engine.first_index(group.0),
            self.engine.last_index(group.0),
        ) {
            let first = first.max(compacted.index + 1);
            if first <= last {
                let fetched = self.on_a_fresh_thread(|engine| {
                    let (end, limit) = (last + 1, None);
                    engine.fetch_entries_to::<RaftEntry>(group.0, first, end, limit, &mut entries)
                })?;
                fetched.map_err(|error| engine_error(&self.folder, "reading entries", &error))?;
            }
        }
        let path = snapshot.as_ref().map(|(_, path)| path.clone());
        self.remove_strays(group, path.as_deref())?;
        let identity = self.get::<Identity>(group, KEY_IDENTITY)?;
        let is_empty = hard_state.is_none() && snapshot.is_none() && entries.is_empty();
        if is_empty && identity.is_none() {
            return Ok(None);
        }
        let hard_state = hard_state.unwrap_or_default();
        let state = LogState {
            hard_state: HardState {
                term: hard_state.term,
                vote: hard_state.vote,
                commit: hard_state.commit,
                ..Default::default()
            },
            snapshot: snapshot.map(|(snapshot, _)| snapshot),
            compacted: (compacted.index, compacted.term),
            entries,
            identity,
        };
        self.kept.insert(
            group,
            Kept {
                hard_state: state.hard_state.clone(),
                snapshot_file: path,
                identity,
                compacted: compacted.index,
            },
        );
        Ok(Some(state))
    }

    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        Ok(self.engine.raft_groups().into_iter().map(GroupId).collect())
    }

    fn save_snapshot(&mut self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        let number = self.snapshots_saved + 1;
        let path = self.snapshot_path(group, &snapshot.metadata, number);
        let part = path.with_extension("tmp");
        let mut file = File::create(&part).map_err(|error| io_error(&part, "making", &error))?;
        file.write_all(&snapshot.data)
            .map_err(|error| io_error(&part, "writing", &error))?;
        file.sync_all().map_err(|error| sync_error(&part, &error))?;
        std::fs::rename(&part, &path).map_err(|error| io_error(&path, "renaming", &error))?;
        sync_folder(&self.folder)?;
        self.snapshots_saved = number;
        self.saved.push((group, number));
        Ok(())
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        self.poison.check()?;
        let written = self.write_jobs(jobs, sync);
        if let Err(error) = &written {
            // What of it is durable is unknown: nothing may be built on it.
            self.poison.set(error.clone());
        }
        written
    }
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct Compacted {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
}

/// What the log knows of the snapshot beside it.
#[derive(Clone, PartialEq, prost::Message)]
struct SnapshotRecord {
    #[prost(message, optional, tag = "1")]
    metadata: Option<wire::SnapshotMetadata>,
    #[prost(uint64, tag = "2")]
    bytes: u64,
    #[prost(fixed32, tag = "3")]
    crc: u32,
    /// Of the save: a part of the file's name.
    #[prost(uint64, tag = "4")]
    number: u64,
    #[prost(message, optional, tag = "5")]
    members: Option<Members>,
}

fn wire_hard_state(state: &HardState) -> wire::HardState {
    wire::HardState {
        term: state.term,
        vote: state.vote,
        commit: state.commit,
    }
}

fn config(folder: &Path, options: &EngineLogOptions) -> Result<Config, LogError> {
    let dir = folder.to_str().ok_or_else(|| LogError::Unsupported {
        reason: format!(
            "the path {} is not UTF-8, which raft-engine needs",
            folder.display()
        ),
    })?;
    Ok(Config {
        dir: dir.to_owned(),
        recovery_mode: RecoveryMode::TolerateTailCorruption,
        batch_compression_threshold: ReadableSize(options.compress_bytes_min),
        target_file_size: ReadableSize(options.file_bytes),
        purge_threshold: ReadableSize(options.purge_bytes.max(options.file_bytes)),
        ..Config::default()
    })
}

/// Makes a folder with its parents. Each is durable in the one it was made in.
fn make_folder(folder: &Path) -> Result<(), LogError> {
    let failed = |error| io_error(folder, "making the folder", &error);
    let absolute = std::path::absolute(folder).map_err(failed)?;
    let parents = absolute.ancestors().skip(1);
    let mut made_in: Vec<&Path> = parents.take_while(|parent| !parent.exists()).collect();
    // The deepest that was there. Synced too if nothing had to be made: the folder itself may be new, and of a start that was cut short.
    made_in.extend(absolute.ancestors().nth(made_in.len() + 1));
    std::fs::create_dir_all(&absolute).map_err(failed)?;
    made_in.into_iter().try_for_each(sync_folder)
}

fn sync_folder(folder: &Path) -> Result<(), LogError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| sync_error(folder, &error))
}

fn sync_error(file: &Path, error: &io::Error) -> LogError {
    LogError::Sync {
        file: file.to_owned(),
        reason: error.to_string(),
    }
}

fn io_error(file: &Path, action: &'static str, error: &io::Error) -> LogError {
    LogError::Io {
        file: file.to_owned(),
        action,
        reason: error.to_string(),
    }
}

fn engine_error(folder: &Path, action: &'static str, error: &raft_engine::Error) -> LogError {
    LogError::Io {
        file: folder.to_owned(),
        action,
        reason: error.to_string(),
    }
}
