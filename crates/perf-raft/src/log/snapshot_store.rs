//! The data of snapshots, written and read in pieces beside the other work of a store.

use super::LogError;
use crate::GroupId;
use std::io;
use std::path::PathBuf;

/// Bytes that are read or written at once where nothing else says how many: 256 KiB.
pub(crate) const PIECE_BYTES: usize = 256 * 1024;

/// Names the data of a snapshot in a [`SnapshotStore`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredData {
    /// Of the save, from 1: no other one of the group has it. 0 stands for no data: see
    /// [`IN_MACHINE`](Self::IN_MACHINE).
    pub number: u64,
    /// The size.
    pub bytes: u64,
    /// CRC-32 of all bytes ([`crc32fast`](https://docs.rs/crc32fast)), by which the node that receives the snapshot
    /// checks it.
    pub crc: u32,
}

impl StoredData {
    /// The state machine itself is durable at the place of the snapshot: a log names this, keeps no data for it, and
    /// gives out none.
    pub const IN_MACHINE: Self = Self {
        number: 0,
        bytes: 0,
        crc: 0,
    };
}

/// The data of snapshots of a [`LogStore`](super::LogStore), in pieces: see
/// [`LogStore::snapshots`](super::LogStore::snapshots).
///
/// Any thread calls it, at any time, beside the store's other work. It has as many writers and readers at a time as are
/// made.
///
/// # Contract
/// | | |
/// |---|---|
/// | when it counts | Data that is [finished](SnapshotWriter::finish) is durable, and counts once a [`LogJob`](super::LogJob) names it by [`StoredSnapshot::stored`](super::StoredSnapshot::stored). |
/// | how long it stays | Until another snapshot of the group is durable, or [`discard`](Self::discard). A reader that was opened before goes on. |
/// | crashes | What was not finished, and what no durable job names, is gone when the store is opened again. The snapshot of a durable job is there. |
/// | errors | What failed does not count. The store's other work goes on. |
pub trait SnapshotStore: Send + Sync + 'static {
    /// Begins the data of a snapshot.
    ///
    /// # Errors
    /// [`LogError`] if that is not possible now.
    fn create(&self, group: GroupId) -> Result<Box<dyn SnapshotWriter>, LogError>;

    /// Reads the data of a snapshot. `None` if it is gone: another one took its place.
    ///
    /// # Errors
    /// [`LogError`] if it cannot be read.
    fn open(
        &self,
        group: GroupId,
        data: StoredData,
    ) -> Result<Option<Box<dyn SnapshotReader>>, LogError>;

    /// Forgets data that no job named, and none will. What is left of it is gone when the store is opened again.
    fn discard(&self, group: GroupId, data: StoredData);
}

/// Writes the data of one snapshot. What is dropped before [`finish`](Self::finish) never counts, and is removed.
pub trait SnapshotWriter: Send + 'static {
    /// Appends a piece.
    ///
    /// # Errors
    /// [`LogError`], after which the writer is of no use.
    fn write(&mut self, piece: &[u8]) -> Result<(), LogError>;

    /// Makes it durable.
    ///
    /// # Errors
    /// [`LogError`], after which nothing of it counts.
    fn finish(self: Box<Self>) -> Result<StoredData, LogError>;
}

/// Reads the data of one snapshot.
pub trait SnapshotReader: Send + 'static {
    /// Reads from `offset` on as many bytes as there is room for, fewer at the end only. Returns how many.
    ///
    /// # Errors
    /// [`LogError`] if they cannot be read or are damaged. A checksum of the whole may be checked with its last bytes
    /// only.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, LogError>;
}

/// A snapshot from its first byte to its last. Keeps the store's error.
pub(crate) struct SnapshotStream {
    reader: Box<dyn SnapshotReader>,
    offset: u64,
    bytes: u64,
    pub(crate) failed: Option<LogError>,
}

impl SnapshotStream {
    /// Opens data that a durable job names: if it is gone, the store is damaged.
    pub(crate) fn open(
        store: &dyn SnapshotStore,
        group: GroupId,
        data: StoredData,
    ) -> Result<Self, LogError> {
        let reader = store.open(group, data)?;
        let reader = reader.ok_or_else(|| LogError::Corrupted {
            file: PathBuf::from(format!("snapshot {} of group {}", data.number, group.0)),
            offset: 0,
            reason: "the snapshot is missing".to_owned(),
        })?;
        Ok(Self {
            reader,
            offset: 0,
            bytes: data.bytes,
            failed: None,
        })
    }

    /// Reads what is left, so that its checksum is checked.
    pub(crate) fn finish(mut self) -> Result<(), LogError> {
        let read = io::copy(&mut self, &mut io::sink());
        match (self.failed, read) {
            (Some(error), _) => Err(error),
            (None, Ok(_)) => Ok(()),
            (None, Err(error)) => Err(LogError::Io {
                file: PathBuf::new(),
                action: "reading a snapshot",
                reason: error.to_string(),
            }),
        }
    }
}

impl io::Read for SnapshotStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = &self.failed {
            return Err(io::Error::other(error.clone()));
        }
        match self.reader.read_at(self.offset, buffer) {
            Ok(read) => {
                self.offset += read as u64;
                let is_short = read == 0 && !buffer.is_empty() && self.offset < self.bytes;
                if is_short {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(read)
            }
            Err(error) => {
                self.failed = Some(error.clone());
                Err(io::Error::other(error))
            }
        }
    }
}
