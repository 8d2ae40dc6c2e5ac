//! A log in memory.

use super::outline::portion;
use super::{LogError, LogJob, LogReader, LogState, LogStore, StoredSnapshot};
use crate::GroupId;
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
    kept: Option<Arc<Mutex<BTreeMap<GroupId, LogState>>>>,
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
        Ok(kept.and_then(|kept| kept.lock().get(&group).cloned()))
    }

    fn save_snapshot(&mut self, _: GroupId, _: &StoredSnapshot) -> Result<(), LogError> {
        Ok(())
    }

    fn write(&mut self, jobs: &[LogJob], _sync: bool) -> Result<(), LogError> {
        if let Some(kept) = &self.kept {
            let mut kept = kept.lock();
            for job in jobs {
                if job.removes_group {
                    kept.remove(&job.group);
                } else {
                    kept.entry(job.group).or_default().apply(job);
                }
            }
        }
        Ok(())
    }

    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        let kept = self.kept.as_ref();
        Ok(kept.map_or_else(Vec::new, |kept| kept.lock().keys().copied().collect()))
    }

    /// None for a log that keeps nothing.
    fn reader(&mut self) -> Result<Option<Box<dyn LogReader>>, LogError> {
        let kept = self.kept.clone();
        Ok(kept.map(|kept| Box::new(Kept(kept)) as Box<dyn LogReader>))
    }

    fn is_volatile(&self) -> bool {
        true
    }
}

struct Kept(Arc<Mutex<BTreeMap<GroupId, LogState>>>);

impl LogReader for Kept {
    fn read(
        &mut self,
        group: GroupId,
        first: u64,
        end: u64,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, LogError> {
        let kept = self.0.lock();
        let state = kept.get(&group);
        Ok(state.map_or_else(Vec::new, |state| state.read(first, end, bytes_max)))
    }
}
