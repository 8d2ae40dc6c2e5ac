//! A `LogStore` on redb: one table each for entries, states and the data of snapshots. A write is one transaction.

#[path = "pieces.rs"]
mod pieces;

use bytes::Bytes;
use parking_lot::Mutex;
use perf_raft::log::disk::{Access, Disk, DiskFile};
use perf_raft::log::{
    LogError, LogJob, LogReader, LogState, LogStore, SnapshotStore, StoredData, StoredSnapshot,
};
use perf_raft::{GroupId, Identity, Members};
use pieces::{Pieces, of_save};
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState, SnapshotMetadata};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// By group and index.
const ENTRIES: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("entries");
/// By group and the name of the value.
const STATES: TableDefinition<'_, (u64, &str), &[u8]> = TableDefinition::new("states");
/// The data of snapshots, by group.
const SNAPSHOTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshots");
/// The data of snapshots that is written in pieces, by group, save and offset.
const PIECES: TableDefinition<'static, (u64, u64, u64), &[u8]> = TableDefinition::new("pieces");

/// A log in a database.
pub(crate) struct RedbLog {
    database: Arc<Database>,
    path: PathBuf,
    /// The number of the last snapshot that was written in pieces.
    saves: Arc<AtomicU64>,
}

impl RedbLog {
    /// Opens or makes the database.
    pub(crate) fn open_on(disk: &dyn Disk, path: &Path) -> Result<Self, LogError> {
        let opened = disk.open(path, Access::Write);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(disk, path),
            opened => opened,
        };
        let file = file.map_err(|error| failed(path, "opening", error))?;
        let database = Database::builder().create_with_backend(Backend(Mutex::new(file)));
        let log = Self {
            database: Arc::new(database.map_err(|error| failed(path, "opening", error))?),
            path: path.to_owned(),
            saves: Arc::default(),
        };
        // The tables exist from the beginning. Pieces that no job names are of a process that was killed.
        let mut last = 0;
        log.transact(true, |tables| {
            for piece in tables.pieces.iter()? {
                last = last.max(piece?.0.value().1);
            }
            let states = &tables.states;
            let mut named = Vec::new();
            for state in states.iter()? {
                let (key, number) = state?;
                if key.value().1 == "pieces" {
                    named.push((key.value().0, pair(number.value()).0));
                }
            }
            tables
                .pieces
                .retain(|(group, number, _), _| named.contains(&(group, number)))?;
            Ok(())
        })?;
        log.saves.store(last, Ordering::Relaxed);
        Ok(log)
    }

    fn transact(
        &self,
        sync: bool,
        act: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::Error>,
    ) -> Result<(), LogError> {
        let run = || -> Result<(), redb::Error> {
            let mut transaction = self.database.begin_write()?;
            let durability = match sync {
                true => Durability::Immediate,
                false => Durability::None,
            };
            transaction.set_durability(durability)?;
            act(&mut Tables {
                entries: transaction.open_table(ENTRIES)?,
                states: transaction.open_table(STATES)?,
                snapshots: transaction.open_table(SNAPSHOTS)?,
                pieces: transaction.open_table(PIECES)?,
            })?;
            transaction.commit()?;
            Ok(())
        };
        run().map_err(|error| failed(&self.path, "writing", error))
    }

    fn read(&self, group: GroupId) -> Result<Option<LogState>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let states = transaction.open_table(STATES)?;
        let value = |name: &str| -> Result<Option<Vec<u8>>, redb::Error> {
            let found = states.get((group.0, name))?;
            Ok(found.map(|found| found.value().to_vec()))
        };
        let mut state = LogState::default();
        let mut is_there = false;
        if let Some(bytes) = value("hard_state")? {
            state.hard_state = HardState::parse_from_bytes(&bytes).map_err(unreadable)?;
            is_there = true;
        }
        if let Some(bytes) = value("identity")? {
            state.identity = Some(Identity::decode(&bytes[..]).map_err(unreadable)?);
            is_there = true;
        }
        if let Some(bytes) = value("compacted")? {
            state.compacted = pair(&bytes);
            is_there = true;
        }
        if let (Some(metadata), Some(members)) = (value("metadata")?, value("members")?) {
            let data = match value("pieces")? {
                Some(number) => {
                    let pieces = transaction.open_table(PIECES)?;
                    let mut data = Vec::new();
                    for piece in pieces.range(of_save(group.0, pair(&number).0))? {
                        data.extend_from_slice(piece?.1.value());
                    }
                    data.into()
                }
                None => {
                    let data = transaction.open_table(SNAPSHOTS)?;
                    let data = data.get(group.0)?;
                    data.map_or(Bytes::new(), |data| Bytes::copy_from_slice(data.value()))
                }
            };
            state.snapshot = Some(StoredSnapshot {
                metadata: SnapshotMetadata::parse_from_bytes(&metadata).map_err(unreadable)?,
                members: Members::decode(&members[..]).map_err(unreadable)?,
                data,
                stored: value("in_machine")?.map(|_| StoredData::IN_MACHINE),
            });
            is_there = true;
        }
        let entries = transaction.open_table(ENTRIES)?;
        for entry in entries.range((group.0, 0)..=(group.0, u64::MAX))? {
            let (_, bytes) = entry?;
            let entry = Entry::parse_from_bytes(bytes.value()).map_err(unreadable)?;
            state.entries.push(entry);
            is_there = true;
        }
        Ok(is_there.then_some(state))
    }
}

fn make(disk: &dyn Disk, path: &Path) -> io::Result<Box<dyn DiskFile>> {
    let file = disk.open(path, Access::Create)?;
    disk.sync_folder(path.parent().unwrap_or(Path::new(".")))?;
    Ok(file)
}

struct Tables<'a> {
    entries: redb::Table<'a, (u64, u64), &'static [u8]>,
    states: redb::Table<'a, (u64, &'static str), &'static [u8]>,
    snapshots: redb::Table<'a, u64, &'static [u8]>,
    pieces: redb::Table<'a, (u64, u64, u64), &'static [u8]>,
}

impl Tables<'_> {
    /// The parts of a job take effect in the order of its fields.
    fn apply(&mut self, job: &LogJob) -> Result<(), redb::Error> {
        let group = job.group.0;
        if job.removes_group {
            self.remove(group, 0, u64::MAX)?;
            self.snapshots.remove(group)?;
            self.remove_pieces(group)?;
            // Names of values have few letters.
            self.states
                .retain_in((group, "")..(group, "~"), |_, _| false)?;
            return Ok(());
        }
        let mut compacted = match self.states.get((group, "compacted"))? {
            Some(bytes) => pair(bytes.value()),
            None => (0, 0),
        };
        if let Some(snapshot) = &job.snapshot {
            let metadata = &snapshot.metadata;
            if job.replaces_log {
                self.remove(group, 0, u64::MAX)?;
                compacted = (metadata.index, metadata.term);
            }
            let bytes = metadata.write_to_bytes().map_err(unreadable)?;
            self.states.insert((group, "metadata"), &bytes[..])?;
            let members = snapshot.members.encode_to_vec();
            self.states.insert((group, "members"), &members[..])?;
            self.remove_pieces(group)?;
            self.states.remove((group, "in_machine"))?;
            if snapshot.stored == Some(StoredData::IN_MACHINE) {
                self.states.insert((group, "in_machine"), &[][..])?;
            } else if let Some(stored) = snapshot.stored {
                if self
                    .pieces
                    .range(of_save(group, stored.number))?
                    .next()
                    .is_none()
                {
                    return Err(unreadable("the snapshot that a job names was not finished"));
                }
                let number = stored.number.to_le_bytes();
                self.states.insert((group, "pieces"), &number[..])?;
            }
            self.snapshots.insert(group, &snapshot.data[..])?;
        }
        if let Some(wanted) = job.compacted
            && wanted.0 > compacted.0
        {
            self.remove(group, 0, wanted.0)?;
            compacted = wanted;
        }
        if compacted.0 > 0 {
            let bytes = [compacted.0.to_le_bytes(), compacted.1.to_le_bytes()].concat();
            self.states.insert((group, "compacted"), &bytes[..])?;
        }
        if let Some(first) = job.entries.first() {
            self.remove(group, first.index, u64::MAX)?;
        }
        for entry in job.entries.iter() {
            let bytes = entry.write_to_bytes().map_err(unreadable)?;
            self.entries.insert((group, entry.index), &bytes[..])?;
        }
        if let Some(hard_state) = &job.hard_state {
            let bytes = hard_state.write_to_bytes().map_err(unreadable)?;
            self.states.insert((group, "hard_state"), &bytes[..])?;
        }
        if let Some(identity) = &job.identity {
            let bytes = identity.encode_to_vec();
            self.states.insert((group, "identity"), &bytes[..])?;
        }
        Ok(())
    }

    /// The pieces of the snapshot that counted go. Others may be of one that is being written.
    fn remove_pieces(&mut self, group: u64) -> Result<(), redb::Error> {
        let before = self.states.remove((group, "pieces"))?;
        let before = before.map(|number| pair(number.value()).0);
        if let Some(number) = before {
            self.pieces
                .retain_in(of_save(group, number), |_, _| false)?;
        }
        Ok(())
    }

    /// Entries from `first` to `last` go.
    fn remove(&mut self, group: u64, first: u64, last: u64) -> Result<(), redb::Error> {
        let range = (group, first)..=(group, last);
        self.entries.retain_in(range, |_, _| false)?;
        Ok(())
    }
}

fn pair(bytes: &[u8]) -> (u64, u64) {
    let number = |place: usize| {
        let bytes = bytes.get(place..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    (number(0), number(8))
}

impl LogStore for RedbLog {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        let read = self.read(group);
        read.map_err(|error| failed(&self.path, "reading", error))
    }

    /// The data is written with the job that names it, in one transaction.
    fn save_snapshot(&mut self, _: GroupId, _: &StoredSnapshot) -> Result<(), LogError> {
        Ok(())
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        self.transact(sync, |tables| {
            jobs.iter().try_for_each(|job| tables.apply(job))
        })
    }

    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        let list = || -> Result<Vec<GroupId>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let mut groups = Vec::new();
            for state in transaction.open_table(STATES)?.iter()? {
                groups.push(GroupId(state?.0.value().0));
            }
            for entry in transaction.open_table(ENTRIES)?.iter()? {
                groups.push(GroupId(entry?.0.value().0));
            }
            groups.sort_unstable();
            groups.dedup();
            Ok(groups)
        };
        list().map_err(|error| failed(&self.path, "reading", error))
    }

    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, LogError> {
        Ok(Some(Arc::new(Pieces {
            database: Arc::clone(&self.database),
            path: self.path.clone(),
            saves: Arc::clone(&self.saves),
        })))
    }

    /// A read transaction sees one moment of the database and waits for no write.
    fn reader(&mut self) -> Result<Option<Box<dyn LogReader>>, LogError> {
        Ok(Some(Box::new(RedbReader {
            database: Arc::clone(&self.database),
            path: self.path.clone(),
        })))
    }
}

struct RedbReader {
    database: Arc<Database>,
    path: PathBuf,
}

impl LogReader for RedbReader {
    fn read(
        &mut self,
        group: GroupId,
        first: u64,
        end: u64,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, LogError> {
        let read = || -> Result<Vec<Entry>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(ENTRIES)?;
            let (mut entries, mut bytes) = (Vec::new(), 0);
            if first >= end {
                return Ok(entries);
            }
            let range = table.range((group.0, first)..(group.0, end))?;
            for (due, found) in (first..).zip(range) {
                let entry = Entry::parse_from_bytes(found?.1.value()).map_err(unreadable)?;
                bytes += (entry.data.len() + entry.context.len()) as u64;
                // `first` may be compacted.
                if entry.index != due || (bytes > bytes_max && !entries.is_empty()) {
                    break;
                }
                entries.push(entry);
            }
            Ok(entries)
        };
        read().map_err(|error| failed(&self.path, "reading", error))
    }
}

fn failed(path: &Path, action: &'static str, error: impl fmt::Display) -> LogError {
    LogError::Io {
        file: path.to_owned(),
        action,
        reason: error.to_string(),
    }
}

fn unreadable(error: impl fmt::Display) -> redb::Error {
    redb::Error::Corrupted(error.to_string())
}

/// A file of a [`Disk`] under redb. With a real file, `Database::create` does the same.
struct Backend(Mutex<Box<dyn DiskFile>>);

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.lock().len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = self.0.lock();
        let mut filled = 0;
        while filled < out.len() {
            match file.read_at(&mut out[filled..], offset + filled as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().allocate(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.lock().sync()
    }

    fn write(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        let file = self.0.lock();
        while !data.is_empty() {
            let written = file.write_at(data, offset)?;
            data = &data[written..];
            offset += written as u64;
        }
        Ok(())
    }
}
