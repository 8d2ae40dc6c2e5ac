//! Data of snapshots in a table of pieces, by group, save and offset. A piece is a transaction, and so is the end,
//! which makes all of them durable.

use super::{PIECES, failed};
use perf_raft::GroupId;
use perf_raft::log::{LogError, SnapshotReader, SnapshotStore, SnapshotWriter, StoredData};
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// By group, save and offset.
type Key = (u64, u64, u64);

/// What the log shares with those who write and read snapshots.
#[derive(Clone)]
pub(crate) struct Pieces {
    pub(crate) database: Arc<Database>,
    pub(crate) path: PathBuf,
    /// The number of the last save.
    pub(crate) saves: Arc<AtomicU64>,
}

/// All pieces of a save.
pub(crate) fn of_save(group: u64, number: u64) -> std::ops::RangeInclusive<Key> {
    (group, number, 0)..=(group, number, u64::MAX)
}

impl Pieces {
    fn put(&self, key: Key, piece: &[u8]) -> Result<(), LogError> {
        let run = || -> Result<(), redb::Error> {
            let mut transaction = self.database.begin_write()?;
            // Durable with a later one.
            transaction.set_durability(Durability::None)?;
            transaction.open_table(PIECES)?.insert(key, piece)?;
            transaction.commit()?;
            Ok(())
        };
        run().map_err(|error| failed(&self.path, "writing", error))
    }

    fn remove(&self, group: u64, number: u64, durability: Durability) -> Result<(), LogError> {
        let run = || -> Result<(), redb::Error> {
            let mut transaction = self.database.begin_write()?;
            transaction.set_durability(durability)?;
            transaction
                .open_table(PIECES)?
                .retain_in(of_save(group, number), |_, _| false)?;
            transaction.commit()?;
            Ok(())
        };
        run().map_err(|error| failed(&self.path, "removing", error))
    }
}

impl SnapshotStore for Pieces {
    fn create(&self, group: GroupId) -> Result<Box<dyn SnapshotWriter>, LogError> {
        Ok(Box::new(Writer {
            pieces: self.clone(),
            group: group.0,
            stored: StoredData {
                number: self.saves.fetch_add(1, Ordering::Relaxed) + 1,
                ..StoredData::default()
            },
            crc: crc32fast::Hasher::new(),
            is_finished: false,
        }))
    }

    fn open(
        &self,
        group: GroupId,
        data: StoredData,
    ) -> Result<Option<Box<dyn SnapshotReader>>, LogError> {
        let run = || -> Result<Option<Box<dyn SnapshotReader>>, redb::Error> {
            // A transaction sees one moment of the database, whatever is removed later.
            let table = self.database.begin_read()?.open_table(PIECES)?;
            let is_there = table.range(of_save(group.0, data.number))?.next().is_some();
            Ok(is_there.then(|| {
                Box::new(Reader {
                    table,
                    path: self.path.clone(),
                    group: group.0,
                    data,
                }) as Box<dyn SnapshotReader>
            }))
        };
        run().map_err(|error| failed(&self.path, "reading", error))
    }

    fn discard(&self, group: GroupId, data: StoredData) {
        // What stays is removed when the log is opened.
        let _ = self.remove(group.0, data.number, Durability::None);
    }
}

struct Writer {
    pieces: Pieces,
    group: u64,
    stored: StoredData,
    crc: crc32fast::Hasher,
    is_finished: bool,
}

impl SnapshotWriter for Writer {
    fn write(&mut self, piece: &[u8]) -> Result<(), LogError> {
        let key = (self.group, self.stored.number, self.stored.bytes);
        self.pieces.put(key, piece)?;
        self.crc.update(piece);
        self.stored.bytes += piece.len() as u64;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<StoredData, LogError> {
        let StoredData { number, bytes, .. } = self.stored;
        // An empty snapshot has a piece, too.
        self.pieces.put((self.group, number, bytes), &[])?;
        // No piece is there; all that was written before is durable with this transaction.
        self.pieces
            .remove(self.group, u64::MAX, Durability::Immediate)?;
        self.is_finished = true;
        self.stored.crc = self.crc.clone().finalize();
        Ok(self.stored)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_finished {
            let stored = self.stored;
            self.pieces.discard(GroupId(self.group), stored);
        }
    }
}

struct Reader {
    table: ReadOnlyTable<Key, &'static [u8]>,
    path: PathBuf,
    group: u64,
    data: StoredData,
}

impl SnapshotReader for Reader {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, LogError> {
        let mut read = || -> Result<usize, redb::Error> {
            let number = self.data.number;
            let mut filled = 0;
            // The piece that holds the first byte, then those after it.
            let mut before = self
                .table
                .range((self.group, number, 0)..=(self.group, number, offset))?;
            let first = before.next_back().transpose()?;
            let first = first.map_or(0, |(key, _)| key.value().2);
            let pieces = (self.group, number, first)..=(self.group, number, u64::MAX);
            for found in self.table.range(pieces)? {
                let (key, piece) = found?;
                let skipped = (offset + filled as u64).saturating_sub(key.value().2) as usize;
                let rest = piece.value().get(skipped..).unwrap_or_default();
                let taken = rest.len().min(buffer.len() - filled);
                buffer[filled..filled + taken].copy_from_slice(&rest[..taken]);
                filled += taken;
                if filled == buffer.len() {
                    break;
                }
            }
            Ok(filled)
        };
        read().map_err(|error| failed(&self.path, "reading", error))
    }
}
