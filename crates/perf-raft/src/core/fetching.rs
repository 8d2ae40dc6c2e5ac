//! Entries that are on disk only: which of them are wanted, and what becomes of them when they come.
//!
//! What is in memory: all entries that Raft has not applied, and as many of the others as the bound of [`EntryMemory`](crate::EntryMemory)
//! allows. The terms of all entries stay in memory. Two ask for entries that are not there: the replay after a start, window by window, and a
//! leader for a slow follower. One fetch is under way at a time; the driver reads it from the log beside everything else.
//!
//! Index and term name an entry. So what a fetch brings is checked against the terms, and dropped where the log has another entry by then.

use super::Core;
use crate::GroupId;
use crate::primitive::mutant;
use raft::eraftpb::Entry;

/// So many answers in a row that lack what the log must have are taken for a defect of the store. The first may be of a read that an
/// overwrite overtook.
const FAILURES_MAX: u32 = 3;

/// Entries to be read from the log, for [`Core::fetched`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fetch {
    /// Whose log.
    pub group: GroupId,
    /// The first index.
    pub first: u64,
    /// The index behind the last one that is of use.
    pub end: u64,
    /// About so many bytes of payload are of use.
    pub bytes_max: u64,
}

/// The fetch under way.
#[derive(Debug, Default)]
pub(super) struct Fetching {
    current: Option<Fetch>,
    failures: u32,
}

impl Fetching {
    pub(super) fn is_under_way(&self) -> bool {
        self.current.is_some()
    }
}

impl<T> Core<T> {
    /// What a [`Fetch`] read, from its first index on; nothing if the log had nothing there.
    pub fn fetched(&mut self, fetch: Fetch, mut entries: Vec<Entry>) {
        if self.fetching.current.take() != Some(fetch) {
            return;
        }
        let raft_applied = self.node.raft.raft_log.applied;
        let view = self.node.mut_store();
        // Index and term name an entry: what another leader's entries have replaced meanwhile is no use.
        let expected = (fetch.first..fetch.end).zip(&entries);
        let sound = expected.take_while(|(index, entry)| {
            let is_same = view.term_at(*index) == Some(entry.term) || mutant::is("stale_fetch");
            entry.index == *index && is_same
        });
        let sound = sound.count();
        entries.truncate(sound);
        let is_missing = view.is_absent(fetch.first);
        if is_missing && entries.is_empty() {
            self.fetching.failures += 1;
            if self.fetching.failures >= FAILURES_MAX {
                self.defect = Some("the log does not return entries that it holds");
            }
            return;
        }
        self.fetching.failures = 0;
        let mut end = fetch.first;
        if is_missing {
            if fetch.first > raft_applied {
                self.note_fetched_table(&entries);
            }
            let filled = self.node.mut_store().fill(entries);
            end += filled as u64;
            self.stats.entries_fetched += filled as u64;
        }
        // Also those for whom the log was compacted meanwhile: they get a snapshot.
        for context in self.node.mut_store().take_asked(end) {
            self.node.on_entries_fetched(context);
        }
    }

    /// Asks for entries that are wanted and on disk only.
    pub(super) fn consider_fetch(&mut self) {
        if self.fetching.current.is_some() {
            return;
        }
        let replayed = self.node.raft.raft_log.applied + 1;
        let committed = self.node.raft.raft_log.committed;
        let view = self.node.store();
        let wanted = match view.absent_from(replayed) {
            // The state machine has something to do, and memory is free when that is done.
            Some((first, _))
                if first <= committed && view.excess(1) > 0 && self.handed > self.applied =>
            {
                None
            }
            Some(stretch) => Some(stretch),
            None => view.asked(),
        };
        if let Some((first, end)) = wanted {
            let fetch = Fetch {
                group: self.group,
                first,
                end,
                bytes_max: view.portion_bytes(),
            };
            self.fetching.current = Some(fetch);
            self.out.fetches.push(fetch);
        }
    }

    /// Whether entries that Raft has not applied are on disk only. raft-rs looks at all of them when it campaigns.
    pub(super) fn is_replaying(&self) -> bool {
        let applied = self.node.raft.raft_log.applied;
        let absent = self.node.store().absent_from(applied + 1);
        absent.is_some() && !mutant::is("replay_ignored")
    }

    /// Lets entries that are durable and applied leave memory while that is above its bound.
    pub(super) fn evict_entries(&mut self) {
        let applied = self.node.raft.raft_log.applied;
        self.node.mut_store().evict(applied);
    }
}
