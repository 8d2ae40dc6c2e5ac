//! The log as Raft sees it, from the last compaction on: the terms of all entries, and the entries that are in memory.

use super::log_segments::{LogSegments, entries_bytes};
use super::terms::Terms;
use crate::GroupId;
use crate::error::StartError;
use crate::log::{LogOutline, LogState, StoredSnapshot};
use crate::memory::{EntryMemory, GroupMemory};
use crate::primitive::mutant;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, NO_LIMIT, RaftState, Storage, StorageError};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// For so many entries room is made beforehand when Raft asks for some.
const FOUND_AT_ONCE: usize = 1024;

/// Places in the log that Raft waits for. A peer that is not among them gets its entries after its next heartbeat.
const ASKED_MAX: usize = 64;

/// Entries since the last compaction, the latest snapshot, and what Raft starts from.
#[derive(Debug)]
pub(crate) struct LogView {
    entries: LogSegments,
    terms: Terms,
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
    /// Of entries that can be fetched again. None if they cannot: then all stay.
    memory: Option<GroupMemory>,
    /// Entries that Raft waits for: the first index, and whom it is for.
    asked: RefCell<Vec<(u64, GetEntriesContext)>>,
}

impl LogView {
    /// A log whose entries are all in memory, and stay there. `portion_bytes` is about how much Raft gets at once for a message or the state
    /// machine.
    pub(crate) fn load(
        group: GroupId,
        state: LogState,
        portion_bytes: u64,
    ) -> Result<Self, StartError> {
        for (due, entry) in (state.compacted.0 + 1..).zip(&state.entries) {
            if entry.index != due {
                return Err(StartError::Inconsistent {
                    group: group.0,
                    reason: format!("entry {} where index {due} is due", entry.index),
                });
            }
        }
        let outline = LogOutline::from(&state);
        let mut view = Self::open(group, outline, portion_bytes)?;
        view.entries = LogSegments::of(state.entries);
        view.appended_bytes = view.entries.bytes() as u64;
        Ok(view)
    }

    /// A log whose entries are all on disk, from where they can be fetched.
    pub(crate) fn fetching(
        group: GroupId,
        outline: LogOutline,
        portion_bytes: u64,
        memory: &EntryMemory,
    ) -> Result<Self, StartError> {
        let mut view = Self::open(group, outline, portion_bytes)?;
        view.memory = Some(GroupMemory::new(memory));
        Ok(view)
    }

    fn open(group: GroupId, outline: LogOutline, portion_bytes: u64) -> Result<Self, StartError> {
        let wrong = |reason: String| StartError::Inconsistent {
            group: group.0,
            reason,
        };
        let mut next = outline.compacted.0 + 1;
        let mut term = outline.compacted.1;
        let (mut entries, mut terms) = (LogSegments::default(), Terms::default());
        for stretch in &outline.stretches {
            if stretch.term < term {
                return Err(wrong(format!(
                    "entry {next} of term {} where at least term {term} is due",
                    stretch.term
                )));
            }
            let bytes = entries_bytes(stretch.count, stretch.bytes);
            entries.push_absent(next, stretch.count, bytes);
            terms.push(next, stretch.term);
            (next, term) = (next + stretch.count, stretch.term);
        }
        let mut hard_state = outline.hard_state;
        let mut conf_state = ConfState::default();
        if let Some(snapshot) = &outline.snapshot {
            let index = snapshot.metadata.index;
            if index < outline.compacted.0 || index >= next {
                return Err(wrong(format!(
                    "the snapshot is at {index}, the log from {} to {}",
                    outline.compacted.0,
                    next - 1
                )));
            }
            conf_state = snapshot.metadata.get_conf_state().clone();
            // The commit index is not written each time it grows; what is in a snapshot was committed.
            hard_state.commit = hard_state.commit.max(index);
        } else if outline.compacted.0 > 0 {
            return Err(wrong(format!(
                "entries up to {} are gone and there is no snapshot",
                outline.compacted.0
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
        Ok(Self {
            appended_bytes: entries.bytes() as u64,
            entries,
            terms,
            compacted: outline.compacted,
            hard_state,
            conf_state,
            snapshot: outline.snapshot,
            wanted: Cell::new(false),
            portion_bytes,
            memory: None,
            asked: RefCell::default(),
        })
    }

    pub(crate) fn initial_hard_state(&self) -> &HardState {
        &self.hard_state
    }

    pub(crate) fn first(&self) -> u64 {
        self.compacted.0 + 1
    }

    pub(crate) fn last(&self) -> u64 {
        self.compacted.0 + self.entries.len()
    }

    /// Of all entries, in memory and on disk.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.bytes()
    }

    /// Of the entries in memory.
    pub(crate) fn present_bytes(&self) -> usize {
        self.entries.present_bytes()
    }

    pub(crate) fn portion_bytes(&self) -> u64 {
        self.portion_bytes
    }

    /// Those in memory from the beginning on, for a look at the start.
    pub(crate) fn first_entries(&self) -> Vec<Entry> {
        self.entries.from(self.first()).cloned().collect()
    }

    /// The first stretch from `index` on that is on disk only: its first index and the one behind its last.
    pub(crate) fn absent_from(&self, index: u64) -> Option<(u64, u64)> {
        self.entries.absent_from(index)
    }

    pub(crate) fn is_absent(&self, index: u64) -> bool {
        self.absent_from(index)
            .is_some_and(|(first, _)| first == index)
    }

    /// Bytes of entries in memory above so many shares of the bound.
    pub(crate) fn excess(&self, shares: usize) -> usize {
        self.memory
            .as_ref()
            .map_or(0, |memory| memory.excess(shares))
    }

    /// The bound on the entries of all groups.
    pub(crate) fn memory_bytes_max(&self) -> usize {
        self.memory
            .as_ref()
            .map_or(usize::MAX, GroupMemory::bytes_max)
    }

    /// Lets entries up to `limit` leave memory while it is above its bound.
    pub(crate) fn evict(&mut self, limit: u64) {
        let excess = self.excess(1);
        if excess > 0 && self.entries.evict(limit, excess) > 0 {
            self.count_memory();
        }
    }

    /// Puts fetched entries in their places. Returns how many of them were absent, from the first on.
    pub(crate) fn fill(&mut self, entries: Vec<Entry>) -> usize {
        if mutant::is("stale_fetch") {
            self.entries.fill_present(&entries);
        }
        let filled = self.entries.fill(entries);
        self.count_memory();
        filled
    }

    /// The first stretch that Raft waits for and that is still on disk only. Forgets what it need not wait for.
    pub(crate) fn asked(&self) -> Option<(u64, u64)> {
        let mut asked = self.asked.borrow_mut();
        asked.retain(|(first, _)| self.is_absent(*first));
        let (first, _) = asked.first()?;
        self.absent_from(*first)
    }

    /// Takes whom Raft waits for entries below `end` for.
    pub(crate) fn take_asked(&mut self, end: u64) -> Vec<GetEntriesContext> {
        let (first, entries) = (self.first(), &self.entries);
        let is_absent = |index: u64| {
            entries
                .absent_from(index)
                .is_some_and(|(first, _)| first == index)
        };
        let asked = self.asked.get_mut();
        let ready = asked.extract_if(.., |(low, _)| *low < end.max(first) && !is_absent(*low));
        ready.map(|(_, context)| context).collect()
    }

    fn ask(&self, low: u64, context: GetEntriesContext) {
        let mut asked = self.asked.borrow_mut();
        // Each heartbeat asks again.
        let name = format!("{context:?}");
        let is_known = |(first, known): &(u64, GetEntriesContext)| {
            *first == low && format!("{known:?}") == name
        };
        if asked.len() < ASKED_MAX && !asked.iter().any(is_known) {
            asked.push((low, context));
        }
    }

    fn count_memory(&mut self) {
        let bytes = self.entries.present_bytes();
        if let Some(memory) = &mut self.memory {
            memory.set(bytes);
        }
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
        match index >= self.first() && index <= self.last() {
            true => self.terms.get(index),
            false => None,
        }
    }

    /// Appends entries in the place of all from the first one's index on.
    pub(crate) fn append(&mut self, entries: &Arc<Vec<Entry>>) {
        let Some(first) = entries.first() else {
            return;
        };
        self.entries.truncate(first.index);
        self.terms.truncate(first.index);
        debug_assert_eq!(first.index, self.last() + 1);
        let before = self.entries.bytes();
        self.entries.push(Arc::clone(entries));
        for entry in entries.iter() {
            self.terms.push(entry.index, entry.term);
        }
        self.appended_bytes += (self.entries.bytes() - before) as u64;
        self.count_memory();
    }

    /// A snapshot from the leader takes the place of the log.
    pub(crate) fn install(&mut self, snapshot: StoredSnapshot) {
        self.entries.clear();
        self.terms.clear();
        self.count_memory();
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
        if index < self.first() {
            return None;
        }
        let term = self.term_at(index)?;
        self.entries.advance(index + 1);
        self.terms.advance(index + 1);
        self.count_memory();
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
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 || low >= high {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let count = usize::try_from(high - low).unwrap_or(usize::MAX);
        let max_size = max_size.into();
        let limit = match max_size {
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
        if max_size.is_none() && found.len() < count {
            // The core keeps Raft from campaigning until all that it would look at is in memory.
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        if found.is_empty() && context.can_async() {
            self.ask(low, context);
            return Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable));
        }
        // Of what is committed the state machine gets what there is. The core fetches the rest.
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
                && !stored.is_in_machine()
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
