//! A log in memory.

use super::outline::portion;
use super::{
    LogError, LogJob, LogReader, LogState, LogStore, SnapshotReader, SnapshotStore, SnapshotWriter,
    StoredData, StoredSnapshot,
};
use crate::GroupId;
use bytes::Bytes;
use parking_lot::Mutex;
use raft::eraftpb::Entry;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A log that is gone with the process: for tests, and for groups whose members never all fail at once.
///
/// A node itself keeps its log in memory, so this one only keeps what another start of the node within the process
/// needs, and nothing at all unless it was made by [`restartable`](Self::restartable).
#[derive(Clone, Debug, Default)]
pub struct MemoryLog {
    kept: Option<Arc<Mutex<Kept>>>,
}

#[derive(Debug, Default)]
struct Kept {
    groups: BTreeMap<GroupId, LogState>,
    /// Data of snapshots that was written in pieces, by group and number, and the number that counts: its data goes
    /// when another snapshot takes its place.
    data: BTreeMap<(GroupId, u64), Bytes>,
    named: BTreeMap<GroupId, u64>,
    /// The number of the last save.
    saved: u64,
}

impl Kept {
    fn write(&mut self, job: &LogJob) -> Result<(), LogError> {
        let group = job.group;
        if (job.removes_group || job.snapshot.is_some())
            && let Some(number) = self.named.remove(&group)
        {
            // A reader that is open shares the memory.
            self.data.remove(&(group, number));
        }
        if job.removes_group {
            self.groups.remove(&group);
            return Ok(());
        }
        let mut job = job.clone();
        if let Some(snapshot) = &mut job.snapshot
            && !snapshot.is_in_machine()
            && let Some(StoredData { number, .. }) = snapshot.stored.take()
        {
            let data = self.data.get(&(group, number));
            snapshot.data = data.cloned().ok_or_else(|| LogError::Unsupported {
                reason: format!(
                    "snapshot {number} of group {} was not finished: finish it before `write`",
                    group.0
                ),
            })?;
            self.named.insert(group, number);
        }
        self.groups.entry(group).or_default().apply(&job);
        Ok(())
    }
}

impl MemoryLog {
    /// A log that keeps nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A log whose clones share what is written, so that a node can be stopped and started again.
    #[must_use]
    pub fn restartable() -> Self {
        Self {
            kept: Some(Arc::default()),
        }
    }
}

impl LogState {
    /// What a [`LogReader`] of this state returns. For stores in memory and for models.
    #[must_use]
    pub fn read(&self, first: u64, end: u64, bytes_max: u64) -> Vec<Entry> {
        let place = |index: u64| {
            let place = index.checked_sub(self.compacted.0 + 1)?;
            usize::try_from(place).ok()
        };
        let Some(from) = place(first) else {
            return Vec::new();
        };
        let until = place(end).unwrap_or(0).min(self.entries.len());
        portion(self.entries.get(from..until).unwrap_or_default(), bytes_max)
    }

    /// Does to this state what a store does to its log. For stores in memory and for models.
    ///
    /// A job that removes the group leaves an empty state: a store then holds none.
    pub fn apply(&mut self, job: &LogJob) {
        if job.removes_group {
            *self = Self::default();
            return;
        }
        if let Some(snapshot) = &job.snapshot {
            if job.replaces_log {
                self.entries.clear();
                self.compacted = (snapshot.metadata.index, snapshot.metadata.term);
            }
            self.snapshot = Some(snapshot.clone());
        }
        if let Some((index, term)) = job.compacted
            && index > self.compacted.0
        {
            let gone = index - self.compacted.0;
            let gone = usize::try_from(gone).unwrap_or(usize::MAX);
            self.entries.drain(..gone.min(self.entries.len()));
            self.compacted = (index, term);
        }
        if let Some(first) = job.entries.first() {
            let kept = first.index.saturating_sub(self.compacted.0 + 1);
            self.entries
                .truncate(usize::try_from(kept).unwrap_or(usize::MAX));
            self.entries.extend(job.entries.iter().cloned());
        }
        if let Some(hard_state) = &job.hard_state {
            self.hard_state = hard_state.clone();
        }
        if job.identity.is_some() {
            self.identity = job.identity;
        }
    }
}

impl LogStore for MemoryLog {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        let kept = self.kept.as_ref();
        Ok(kept.and_then(|kept| kept.lock().groups.get(&group).cloned()))
    }

    fn save_snapshot(&mut self, _: GroupId, _: &StoredSnapshot) -> Result<(), LogError> {
        Ok(())
    }

    fn write(&mut self, jobs: &[LogJob], _sync: bool) -> Result<(), LogError> {
        if let Some(kept) = &self.kept {
            let mut kept = kept.lock();
            jobs.iter().try_for_each(|job| kept.write(job))?;
        }
        Ok(())
    }

    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        let kept = self.kept.as_ref();
        Ok(kept.map_or_else(Vec::new, |kept| {
            kept.lock().groups.keys().copied().collect()
        }))
    }

    /// None for a log that keeps nothing.
    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, LogError> {
        let kept = self.kept.clone();
        Ok(kept.map(|kept| Arc::new(KeptData(kept)) as Arc<dyn SnapshotStore>))
    }

    /// None for a log that keeps nothing.
    fn reader(&mut self) -> Result<Option<Box<dyn LogReader>>, LogError> {
        let kept = self.kept.clone();
        Ok(kept.map(|kept| Box::new(KeptEntries(kept)) as Box<dyn LogReader>))
    }

    fn is_volatile(&self) -> bool {
        true
    }
}

struct KeptEntries(Arc<Mutex<Kept>>);

impl LogReader for KeptEntries {
    fn read(
        &mut self,
        group: GroupId,
        first: u64,
        end: u64,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, LogError> {
        let kept = self.0.lock();
        let state = kept.groups.get(&group);
        Ok(state.map_or_else(Vec::new, |state| state.read(first, end, bytes_max)))
    }
}

struct KeptData(Arc<Mutex<Kept>>);

impl SnapshotStore for KeptData {
    fn create(&self, group: GroupId) -> Result<Box<dyn SnapshotWriter>, LogError> {
        let mut kept = self.0.lock();
        kept.saved += 1;
        Ok(Box::new(DataWriter {
            kept: Arc::clone(&self.0),
            place: (group, kept.saved),
            data: Vec::new(),
        }))
    }

    fn open(
        &self,
        group: GroupId,
        data: StoredData,
    ) -> Result<Option<Box<dyn SnapshotReader>>, LogError> {
        let kept = self.0.lock();
        let data = kept.data.get(&(group, data.number)).cloned();
        Ok(data.map(|data| Box::new(DataReader(data)) as Box<dyn SnapshotReader>))
    }

    fn discard(&self, group: GroupId, data: StoredData) {
        self.0.lock().data.remove(&(group, data.number));
    }
}

struct DataWriter {
    kept: Arc<Mutex<Kept>>,
    place: (GroupId, u64),
    data: Vec<u8>,
}

impl SnapshotWriter for DataWriter {
    fn write(&mut self, piece: &[u8]) -> Result<(), LogError> {
        self.data.extend_from_slice(piece);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StoredData, LogError> {
        let stored = StoredData {
            number: self.place.1,
            bytes: self.data.len() as u64,
            crc: crc32fast::hash(&self.data),
        };
        self.kept.lock().data.insert(self.place, self.data.into());
        Ok(stored)
    }
}

struct DataReader(Bytes);

impl SnapshotReader for DataReader {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, LogError> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.0.get(start..).unwrap_or_default();
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }
}
