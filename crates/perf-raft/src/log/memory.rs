//! A log in memory.

use super::{LogError, LogJob, LogState, LogStore, StoredSnapshot};
use crate::GroupId;
use parking_lot::Mutex;
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
    /// Does to this state what a store does to its log. For stores in memory and for models.
    pub fn apply(&mut self, job: &LogJob) {
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
                kept.entry(job.group).or_default().apply(job);
            }
        }
        Ok(())
    }

    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        let kept = self.kept.as_ref();
        Ok(kept.map_or_else(Vec::new, |kept| kept.lock().keys().copied().collect()))
    }

    fn is_volatile(&self) -> bool {
        true
    }
}
