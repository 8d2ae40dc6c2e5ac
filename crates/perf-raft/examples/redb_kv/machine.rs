//! A key-value machine in a database: durable by itself, with snapshots as streams.

use bytes::Bytes;
use perf_raft::{Command, StateMachineError, StreamedStateMachine};
use redb::{
    Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};
use std::io::{self, Read};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

const PAIRS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("pairs");
/// The index of the last command, in the same transaction as what it did.
const APPLIED: TableDefinition<'static, (), u64> = TableDefinition::new("applied");

/// Bytes of a key; the rest of a command is the value.
const KEY_BYTES: usize = 8;

/// Commands after which the database is synced, if nobody asks before.
const SYNC_COMMANDS: usize = 10_000;

/// Pairs that a snapshot reads at once.
const PAIRS_AT_ONCE: usize = 256;

/// A map from keys of 8 bytes to values.
#[derive(Clone)]
pub(crate) struct RedbKv {
    database: Arc<Database>,
    /// Commands since the last sync.
    unsynced: usize,
}

impl RedbKv {
    /// Opens or makes the database.
    pub(crate) fn open(path: &Path) -> Result<Self, redb::Error> {
        let database = Database::builder().set_cache_size(8 << 20).create(path)?;
        let machine = Self {
            database: Arc::new(database),
            unsynced: 0,
        };
        // The tables exist from the beginning.
        machine.transact(Durability::Immediate, |_| Ok(()))?;
        Ok(machine)
    }

    /// The value of a key. Ask `read_index` of the node before.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
        let pairs = self.database.begin_read()?.open_table(PAIRS)?;
        Ok(pairs.get(key)?.map(|value| value.value().to_vec()))
    }

    fn transact<R>(
        &self,
        durability: Durability,
        act: impl FnOnce(&WriteTransaction) -> Result<R, redb::Error>,
    ) -> Result<R, redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(durability)?;
        transaction.open_table(PAIRS)?;
        transaction.open_table(APPLIED)?;
        let outcome = act(&transaction)?;
        transaction.commit()?;
        Ok(outcome)
    }

    fn put(&self, batch: &[Command], responses: &mut Vec<Bytes>) -> Result<(), redb::Error> {
        self.transact(Durability::None, |transaction| {
            let mut pairs = transaction.open_table(PAIRS)?;
            for command in batch {
                let (key, value) = command.data.split_at(KEY_BYTES.min(command.data.len()));
                let before = pairs.insert(key, value)?;
                let before = before.map(|value| Bytes::copy_from_slice(value.value()));
                responses.push(before.unwrap_or_default());
            }
            if let Some(last) = batch.last() {
                transaction.open_table(APPLIED)?.insert((), last.index)?;
            }
            Ok(())
        })
    }

    /// All that was applied is durable then. Returns the index of the last command.
    fn sync(&mut self) -> Result<u64, redb::Error> {
        self.unsynced = 0;
        self.transact(Durability::Immediate, |transaction| {
            let applied = transaction.open_table(APPLIED)?;
            let index = applied.get(())?.map(|index| index.value());
            Ok(index.unwrap_or(0))
        })
    }
}

impl StreamedStateMachine for RedbKv {
    fn apply(&mut self, batch: &[Command], responses: &mut Vec<Bytes>) {
        // A machine that cannot apply has no way to go on: the node stops, and says why.
        self.put(batch, responses)
            .unwrap_or_else(|error| panic!("the database: {error}"));
        self.unsynced += batch.len();
        if self.unsynced >= SYNC_COMMANDS {
            self.sync()
                .unwrap_or_else(|error| panic!("the database: {error}"));
        }
    }

    /// A read transaction sees one moment of the database, whatever is written later.
    fn snapshot(&mut self) -> Result<Box<dyn Read + Send>, StateMachineError> {
        let pairs = self.database.begin_read()?.open_table(PAIRS)?;
        Ok(Box::new(Pairs {
            pairs,
            last: None,
            bytes: Vec::new(),
            place: 0,
        }))
    }

    /// One transaction: a crash leaves the state before it.
    fn restore(&mut self, snapshot: &mut dyn Read, index: u64) -> Result<(), StateMachineError> {
        self.transact(Durability::Immediate, |transaction| {
            let mut pairs = transaction.open_table(PAIRS)?;
            pairs.retain(|_, _| false)?;
            let (mut key, mut value) = (Vec::new(), Vec::new());
            while read_part(snapshot, &mut key)? {
                if !read_part(snapshot, &mut value)? {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                pairs.insert(&key[..], &value[..])?;
            }
            transaction.open_table(APPLIED)?.insert((), index)?;
            Ok(())
        })?;
        Ok(())
    }

    fn applied_index(&mut self) -> Result<Option<u64>, StateMachineError> {
        Ok(Some(self.sync()?))
    }
}

/// Reads a key or a value behind its length. False at the end.
fn read_part(from: &mut dyn Read, part: &mut Vec<u8>) -> io::Result<bool> {
    part.clear();
    let mut length = Vec::new();
    from.take(4).read_to_end(&mut length)?;
    let Some(length) = length.first_chunk() else {
        return match length.is_empty() {
            true => Ok(false),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        };
    };
    let length = u64::from(u32::from_le_bytes(*length));
    match from.take(length).read_to_end(part)? as u64 {
        read if read < length => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(true),
    }
}

/// All pairs, as they are read: each key and each value behind its length in four bytes.
struct Pairs {
    pairs: ReadOnlyTable<&'static [u8], &'static [u8]>,
    last: Option<Vec<u8>>,
    bytes: Vec<u8>,
    place: usize,
}

impl Pairs {
    fn fill(&mut self) -> Result<(), redb::Error> {
        (self.place, self.bytes) = (0, Vec::new());
        let after = match &self.last {
            None => Bound::Unbounded,
            Some(last) => Bound::Excluded(&last[..]),
        };
        let mut last = None;
        for pair in self
            .pairs
            .range::<&[u8]>((after, Bound::Unbounded))?
            .take(PAIRS_AT_ONCE)
        {
            let (key, value) = pair?;
            for part in [key.value(), value.value()] {
                self.bytes.extend((part.len() as u32).to_le_bytes());
                self.bytes.extend_from_slice(part);
            }
            last = Some(key.value().to_vec());
        }
        self.last = last.or(self.last.take());
        Ok(())
    }
}

impl Read for Pairs {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.place == self.bytes.len() {
            self.fill().map_err(io::Error::other)?;
        }
        let read = buffer.len().min(self.bytes.len() - self.place);
        buffer[..read].copy_from_slice(&self.bytes[self.place..self.place + read]);
        self.place += read;
        Ok(read)
    }
}
