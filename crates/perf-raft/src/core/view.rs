//! The log as Raft sees it: all of it in memory, from the last compaction on.

use super::log_segments::LogSegments;
use crate::GroupId;
use crate::error::StartError;
use crate::log::{LogState, StoredSnapshot};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, NO_LIMIT, RaftState, Storage, StorageError};
use std::cell::Cell;
use std::sync::Arc;

/// For so many entries room is made beforehand when Raft asks for some.
const FOUND_AT_ONCE: usize = 1024;

/// Entries since the last compaction, the latest snapshot, and what Raft starts from.
#[derive(Debug, Default)]
pub(crate) struct LogView {
    entries: LogSegments,
    /// Index and term of the last entry that is gone.
    compacted: (u64, u64),
    hard_state: HardState,
    conf_state: ConfState,
    snapshot: Option<StoredSnapshot>,
    /// Raft asked for a snapshot that there is not.
    wanted: Cell<bool>,
    portion_bytes: u64,
    /// Bytes of entries since the node started, those that it found included.
    appended_bytes: u64,
}

impl LogView {
    /// `portion_bytes` is about how much Raft gets at once for a message or the state machine.
    pub(crate) fn load(
        group: GroupId,
        state: LogState,
        portion_bytes: u64,
    ) -> Result<Self, StartError> {
        let wrong = |reason: String| StartError::Inconsistent {
            group: group.0,
            reason,
        };
        let mut next = state.compacted.0 + 1;
        let mut term = state.compacted.1;
        for entry in &state.entries {
            if entry.index != next || entry.term < term {
                return Err(wrong(format!(
                    "entry {} of term {} where index {next} and at least term {term} are due",
                    entry.index, entry.term
                )));
            }
            (next, term) = (next + 1, entry.term);
        }
        let mut hard_state = state.hard_state;
        let mut conf_state = ConfState::default();
        if let Some(snapshot) = &state.snapshot {
            let index = snapshot.metadata.index;
            if index < state.compacted.0 || index >= next {
                return Err(wrong(format!(
                    "the snapshot is at {index}, the log from {} to {}",
                    state.compacted.0,
                    next - 1
                )));
            }
            conf_state = snapshot.metadata.get_conf_state().clone();
            // The commit index is not written each time it grows; what is in a snapshot was committed.
            hard_state.commit = hard_state.commit.max(index);
        } else if state.compacted.0 > 0 {
            return Err(wrong(format!(
                "entries up to {} are gone and there is no snapshot",
                state.compacted.0
            )));
        }
        if hard_state.commit >= next {
            return Err(wrong(format!(
                "entries up to {} are committed and the log ends at {}: its end is lost",
                hard_state.commit,
                next - 1
            )));
        }
        hard_state.term = hard_state.term.max(term);
        let entries = LogSegments::of(state.entries);
        Ok(Self {
            appended_bytes: entries.bytes() as u64,
            entries,
            compacted: state.compacted,
            hard_state,
            conf_state,
            snapshot: state.snapshot,
            wanted: Cell::new(false),
            portion_bytes,
        })
    }

    pub(crate) fn initial_hard_state(&self) -> &HardState {
        &self.hard_state
    }

    pub(crate) fn first(&self) -> u64 {
        self.compacted.0 + 1
    }

    pub(crate) fn last(&self) -> u64 {
        self.compacted.0 + self.entries.len() as u64
    }

    pub(crate) fn bytes(&self) -> usize {
        self.entries.bytes()
    }

    /// Those that are there, for a look at the start.
    pub(crate) fn all_entries(&self) -> Vec<Entry> {
        self.entries.from(self.first()).cloned().collect()
    }

    pub(crate) fn appended_bytes(&self) -> u64 {
        self.appended_bytes
    }

    pub(crate) fn snapshot(&self) -> Option<&StoredSnapshot> {
        self.snapshot.as_ref()
    }

    pub(crate) fn snapshot_index(&self) -> u64 {
        self.snapshot
            .as_ref()
            .map_or(0, |snapshot| snapshot.metadata.index)
    }

    /// Whether Raft asked for a snapshot since the last call.
    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.replace(false)
    }

    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.compacted.0 {
            return Some(self.compacted.1);
        }
        self.entries.get(index).map(|entry| entry.term)
    }

    /// Appends entries in the place of all from the first one's index on.
    pub(crate) fn append(&mut self, entries: &Arc<Vec<Entry>>) {
        let Some(first) = entries.first() else {
            return;
        };
        self.entries.truncate(first.index);
        debug_assert_eq!(first.index, self.last() + 1);
        let before = self.entries.bytes();
        self.entries.push(Arc::clone(entries));
        self.appended_bytes += (self.entries.bytes() - before) as u64;
    }

    /// A snapshot from the leader takes the place of the log.
    pub(crate) fn install(&mut self, snapshot: StoredSnapshot) {
        self.entries.clear();
        self.compacted = (snapshot.metadata.index, snapshot.metadata.term);
        self.snapshot = Some(snapshot);
    }

    /// A snapshot of our own is durable.
    pub(crate) fn set_snapshot(&mut self, snapshot: StoredSnapshot) {
        self.snapshot = Some(snapshot);
    }

    /// Forgets entries up to `index`; returns what is now [`compacted`](Self::compacted) if that changed.
    pub(crate) fn compact(&mut self, index: u64) -> Option<(u64, u64)> {
        let index = index.min(self.snapshot_index());
        let term = self.entries.get(index)?.term;
        self.entries.advance(index + 1);
        self.compacted = (index, term);
        Some(self.compacted)
    }
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.conf_state.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 || low >= high {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let count = usize::try_from(high - low).unwrap_or(usize::MAX);
        let limit = match max_size.into() {
            Some(NO_LIMIT) => self.portion_bytes,
            Some(limit) => limit,
            // It looks for changes of membership, and must see all.
            None => NO_LIMIT,
        };
        let mut found = Vec::with_capacity(count.min(FOUND_AT_ONCE));
        let mut bytes = 0;
        for entry in self.entries.from(low).take(count) {
            bytes += crate::codec::encoded_entry_len(entry) as u64;
            // As raft's own storage does: at least one entry, then as many as the limit allows.
            if bytes > limit && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_at(index).ok_or_else(|| {
            let error = if index < self.first() {
                StorageError::Compacted
            } else {
                StorageError::Unavailable
            };
            raft::Error::Store(error)
        })
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Only the metadata: the core sends the data in parts.
    ///
    /// A node takes no snapshot from before it was a member, so for a new one there must be a newer.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |stored: &&StoredSnapshot| {
            let metadata = &stored.metadata;
            metadata.index > 0
                && metadata.index >= request_index
                && is_member(metadata.get_conf_state(), to)
        };
        match self.snapshot.as_ref().filter(fits) {
            Some(stored) => {
                let mut snapshot = Snapshot::default();
                snapshot.set_metadata(stored.metadata.clone());
                Ok(snapshot)
            }
            None => {
                self.wanted.set(true);
                Err(raft::Error::Store(
                    StorageError::SnapshotTemporarilyUnavailable,
                ))
            }
        }
    }
}

fn is_member(state: &ConfState, id: u64) -> bool {
    // Learners to be are outgoing voters.
    [&state.voters, &state.learners, &state.voters_outgoing]
        .iter()
        .any(|ids| ids.contains(&id))
}
