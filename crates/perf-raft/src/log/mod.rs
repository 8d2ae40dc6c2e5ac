//! Where a node keeps its log.

#[cfg(feature = "durable")]
pub mod disk;
mod memory;
mod outline;
mod runner;
#[cfg(feature = "durable")]
mod segment;
mod shared;
pub(crate) mod snapshot_store;
#[cfg(feature = "testing")]
pub mod testing;

pub use memory::MemoryLog;
pub use outline::{LogOutline, Stretch};
pub use runner::run_jobs;
#[cfg(feature = "durable")]
pub use segment::{DiskUse, Healed, OnDamage, SegmentLog, SegmentLogOptions};
#[cfg(feature = "cli")]
pub use segment::{GroupInfo, LogInfo, Repair, SegmentInfo};
pub use shared::SharedLog;
pub use snapshot_store::{SnapshotReader, SnapshotStore, SnapshotWriter, StoredData};

use crate::GroupId;
use crate::members::{Identity, Members};
use bytes::Bytes;
use raft::eraftpb::{Entry, HardState, SnapshotMetadata};
#[cfg(feature = "durable")]
use std::io;
#[cfg(feature = "durable")]
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

/// A snapshot of the state machine with its place in the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredSnapshot {
    /// Index, term and membership.
    pub metadata: SnapshotMetadata,
    /// What the state machine made; empty if it is [stored](Self::stored).
    pub data: Bytes,
    /// The table of members.
    pub members: Members,
    /// Where the log keeps the data, if it was written in pieces or is not to be in memory.
    pub stored: Option<StoredData>,
}

impl StoredSnapshot {
    /// Whether it is no more than a place in the log, up to which the state machine is durable by itself.
    pub(crate) fn is_in_machine(&self) -> bool {
        self.stored == Some(StoredData::IN_MACHINE)
    }
}

/// What a node has to do to its log, in the order of `sequence`.
///
/// The parts of one job take effect in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogJob {
    /// Counts the jobs of a run from 1.
    pub sequence: u64,
    /// Whose log.
    pub group: GroupId,
    /// A snapshot that was saved before by [`LogStore::save_snapshot`] or, if it is [`stored`](StoredSnapshot::stored),
    /// finished by a [`SnapshotWriter`], to be recorded as the latest.
    pub snapshot: Option<StoredSnapshot>,
    /// The snapshot came from the leader and takes the place of the whole log: all entries go.
    pub replaces_log: bool,
    /// Entries up to this index go; the index and the term of its entry are kept.
    pub compacted: Option<(u64, u64)>,
    /// Entries to append. They take the place of all entries from the first one's index on.
    pub entries: Arc<Vec<Entry>>,
    /// The new hard state.
    pub hard_state: Option<HardState>,
    /// Who the node is: once, when its log is made. Stays, whatever takes the place of the log.
    pub identity: Option<Identity>,
    /// Everything of the group goes, as if nothing had ever been written for it. Such a job has nothing else.
    pub removes_group: bool,
}

/// What a log holds when a node starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogState {
    /// The latest hard state.
    pub hard_state: HardState,
    /// The latest snapshot, none before a node that joins gets its first.
    pub snapshot: Option<StoredSnapshot>,
    /// Index and term of the last entry that is gone.
    pub compacted: (u64, u64),
    /// All entries after it.
    pub entries: Vec<Entry>,
    /// Who the node is, `None` for a log that was never written or is of an earlier version.
    pub identity: Option<Identity>,
}

/// Where the logs of one or several groups are kept.
///
/// # Contract
/// What a log holds is what [`LogState::apply`] makes of all jobs that were written, in their order; [`load`](Self::load) returns that.
///
/// | | |
/// |---|---|
/// | threads | One thread calls it. A [`reader`](Self::reader) is called by another one, at any time. |
/// | order | Jobs take effect in the order in which they are given, in one write and from write to write. The parts of one job take effect in the order of its fields. |
/// | appends | A job's entries are consecutive. They begin at the latest after the last entry, and after what is compacted; entries from the first one's index on go. |
/// | compaction | Entries up to an index go; index and term of the last one stay, for good. |
/// | snapshots | The data is saved first, as a whole or in pieces ([`SnapshotStore`]), and counts once a job names it. The snapshot of a job that was durable stays readable until another job is. One of [`StoredData::IN_MACHINE`] has no data, and is kept as such. A snapshot that replaces the log takes all entries away; hard state and identity stay. |
/// | groups | A write may have jobs of several groups. They do not see each other. |
/// | removal | A job may take away all that is there of a group: [`load`](Self::load) returns nothing then, and the group may begin anew. |
/// | durability | When [`write`](Self::write) with `sync` returns, all writes up to this one are durable. After a crash the log holds those, and the beginning, job by job, of what followed. |
/// | errors | Errors of [`save_snapshot`](Self::save_snapshot) and [`write`](Self::write) end the node; neither is called again after one. A failed fsync is an error, and is never repeated: a second one may confirm what the kernel has dropped. |
/// | reading | A reader sees what is durable, and maybe what was written after it. What it returns are entries that the log held at one moment of the call: it returns none of another term, and no error, for what is compacted or overwritten meanwhile. |
/// | torn writes | A write that a crash cut short is cut off, and no error. Damage before it is [`LogError::Corrupted`], and the store changes nothing then. |
///
/// `log::testing::conformance` (feature `testing`) holds a store to this, on a simulated disk too. `examples/redb_log` is a
/// store on a database.
pub trait LogStore: Send + 'static {
    /// Reads what is there, `None` if nothing was ever written for the group.
    ///
    /// # Errors
    /// [`LogError`] if it cannot be read or is not sound. A torn tail is no error: it is cut off.
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError>;

    /// Makes the data of a snapshot durable. It counts only once a job refers to it.
    ///
    /// # Errors
    /// [`LogError`], after which nothing of it may count.
    fn save_snapshot(&mut self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError>;

    /// Writes the jobs in their order, at once; with `sync` they are durable when it returns.
    ///
    /// # Errors
    /// [`LogError`]; it is unknown then what is durable.
    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError>;

    /// The groups that the store holds anything of. A node does not begin a new group in the place of another one. None, the default, for a
    /// store that several groups share.
    ///
    /// # Errors
    /// [`LogError`] if that cannot be read.
    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        Ok(Vec::new())
    }

    /// What is there without the contents of entries, `None` if nothing was ever written for the group. A node that can fetch entries by a
    /// [`reader`](Self::reader) starts from this. The default reads all entries by [`load`](Self::load).
    ///
    /// # Errors
    /// As [`load`](Self::load).
    fn outline(&mut self, group: GroupId) -> Result<Option<LogOutline>, LogError> {
        let state = self.load(group)?;
        Ok(state.as_ref().map(LogOutline::from))
    }

    /// Writes and reads the data of snapshots in pieces, beside the store's other work. None, the default, if the store
    /// cannot: then snapshots are in memory as a whole.
    ///
    /// A store that can returns data by [`load`](Self::load) all the same, and names it by [`StoredSnapshot::stored`]
    /// in an [`outline`](Self::outline).
    ///
    /// # Errors
    /// [`LogError`] if that is not possible now.
    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, LogError> {
        Ok(None)
    }

    /// Reads entries beside the store's other work, which goes on meanwhile. None, the default, if the store cannot: then a node keeps the
    /// entries of its log in memory.
    ///
    /// # Errors
    /// [`LogError`] if it cannot be made now.
    fn reader(&mut self) -> Result<Option<Box<dyn LogReader>>, LogError> {
        Ok(None)
    }

    /// Whether the log is gone with the process. Then writes take no thread of their own.
    fn is_volatile(&self) -> bool {
        false
    }

    /// Damage for which the store began anew, in words: a node on it joins its group again, and says why in its report.
    fn damage(&self) -> Option<String> {
        None
    }
}

/// Reads entries of a [`LogStore`] in a thread of its own, while the store is written to.
pub trait LogReader: Send + 'static {
    /// Consecutive entries of a group from the index `first` on, below `end`: as many as have `bytes_max` bytes of payload together, or fewer,
    /// but one at least if it is there. None if `first` is compacted, or behind the last entry.
    ///
    /// # Errors
    /// [`LogError`] if what the log holds cannot be read or is not sound. [`LogError::is_damage`] says whether the files are the cause.
    fn read(
        &mut self,
        group: GroupId,
        first: u64,
        end: u64,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, LogError>;
}

impl LogStore for Box<dyn LogStore> {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        self.as_mut().load(group)
    }

    fn save_snapshot(&mut self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        self.as_mut().save_snapshot(group, snapshot)
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        self.as_mut().write(jobs, sync)
    }

    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        self.as_mut().groups()
    }

    fn outline(&mut self, group: GroupId) -> Result<Option<LogOutline>, LogError> {
        self.as_mut().outline(group)
    }

    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, LogError> {
        self.as_mut().snapshots()
    }

    fn reader(&mut self) -> Result<Option<Box<dyn LogReader>>, LogError> {
        self.as_mut().reader()
    }

    fn is_volatile(&self) -> bool {
        self.as_ref().is_volatile()
    }

    fn damage(&self) -> Option<String> {
        self.as_ref().damage()
    }
}

/// What is wrong with a log.
///
/// [`is_damage`](Self::is_damage) tells the errors that the folder is the cause of. A node that is one of several may then give up its log and
/// rejoin its group under a new incarnation: see `SegmentLog::set_aside`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Damage that is not a torn tail: sound records follow it, or a file is missing. Nothing was changed.
    #[error(
        "{file} is damaged at offset {offset} ({reason}), and it is no torn tail: restore this node from a snapshot or a healthy node"
    )]
    Corrupted {
        /// The damaged file.
        file: PathBuf,
        /// Where the damage starts.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The disk did not confirm that data is durable. It is never asked again: the kernel may have dropped the data and would
    /// confirm it falsely.
    #[error("{file}: fsync failed ({reason}): check the disk, then restart the node")]
    Sync {
        /// The file.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// Something else went wrong with a file.
    #[error("{file}: {action} failed ({reason})")]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// What was to be done.
        action: &'static str,
        /// What the system says.
        reason: String,
    },
    /// The log is of a newer version than this program knows. Nothing was changed.
    #[error(
        "{file} has format version {version}, and this program knows versions up to {known}: start the newer program"
    )]
    Version {
        /// The file.
        file: PathBuf,
        /// Its version.
        version: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// Another process, or another log of this process, has the folder open.
    #[error("{folder} is in use: stop the other process, or give each process a folder of its own")]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The store is used in a way it does not support.
    #[error("{reason}")]
    Unsupported {
        /// How, and what to do.
        reason: String,
    },
}

impl LogError {
    /// Whether the files are damaged or missing: what was durable is not there any more. The log was left as it is.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupted { .. })
    }
}

#[cfg(feature = "durable")]
impl LogError {
    fn io(file: &Path, action: &'static str, error: &io::Error) -> Self {
        Self::Io {
            file: file.to_owned(),
            action,
            reason: error.to_string(),
        }
    }

    fn sync(file: &Path, error: &io::Error) -> Self {
        Self::Sync {
            file: file.to_owned(),
            reason: error.to_string(),
        }
    }

    fn damaged(file: &Path, offset: u64, reason: impl Into<String>) -> Self {
        Self::Corrupted {
            file: file.to_owned(),
            offset,
            reason: reason.into(),
        }
    }
}
