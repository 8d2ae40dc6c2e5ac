//! A log without the contents of its entries.

use super::{LogState, StoredSnapshot};
use crate::members::Identity;
use raft::eraftpb::{Entry, HardState};

/// Consecutive entries of one term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stretch {
    /// How many entries.
    pub count: u64,
    /// Their term.
    pub term: u64,
    /// Bytes of their payloads, data and context. May be an estimate: it is for bounds.
    pub bytes: u64,
    /// Bytes of the longest payload, no less than it has.
    pub longest: u64,
}

/// Neighbours of one term become one stretch up to this size in bytes.
const STRETCH_BYTES_MAX: u64 = 256 * 1024;

/// What a log holds when a node starts, without the contents of its entries: what a node needs in memory of a log that is larger than it.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LogOutline {
    /// The latest hard state.
    pub hard_state: HardState,
    /// The latest snapshot, none before a node that joins gets its first.
    pub snapshot: Option<StoredSnapshot>,
    /// Index and term of the last entry that is gone.
    pub compacted: (u64, u64),
    /// The entries after it, in order.
    pub stretches: Vec<Stretch>,
    /// Who the node is, `None` for a log that was never written or is of an earlier version.
    pub identity: Option<Identity>,
}

impl LogOutline {
    /// Adds entries behind the others.
    pub fn push(&mut self, count: u64, term: u64, bytes: u64, longest: u64) {
        match self.stretches.last_mut() {
            Some(last)
                if last.term == term && last.bytes.saturating_add(bytes) <= STRETCH_BYTES_MAX =>
            {
                last.count += count;
                last.bytes += bytes;
                last.longest = last.longest.max(longest);
            }
            _ => self.stretches.push(Stretch {
                count,
                term,
                bytes,
                longest,
            }),
        }
    }

    /// Adds entries behind the others.
    pub fn push_entries(&mut self, entries: &[Entry]) {
        for entry in entries {
            let bytes = payload_bytes(entry);
            self.push(1, entry.term, bytes, bytes);
        }
    }

    /// The index of the last entry.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        let counts = self.stretches.iter().map(|stretch| stretch.count);
        counts.fold(self.compacted.0, u64::saturating_add)
    }

    /// Bytes of the longest payload.
    pub(crate) fn longest(&self) -> u64 {
        let longest = self.stretches.iter().map(|stretch| stretch.longest);
        longest.max().unwrap_or(0)
    }
}

impl From<&LogState> for LogOutline {
    fn from(state: &LogState) -> Self {
        let mut outline = Self {
            hard_state: state.hard_state.clone(),
            snapshot: state.snapshot.clone(),
            compacted: state.compacted,
            stretches: Vec::new(),
            identity: state.identity,
        };
        outline.push_entries(&state.entries);
        outline
    }
}

fn payload_bytes(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len()) as u64
}

/// As many entries from the first on as have `bytes_max` of payload together, but one at least. For stores that have them in a list.
pub(crate) fn portion(entries: &[Entry], bytes_max: u64) -> Vec<Entry> {
    let mut bytes = 0_u64;
    let mut portion = Vec::new();
    for entry in entries {
        bytes = bytes.saturating_add(payload_bytes(entry));
        if bytes > bytes_max && !portion.is_empty() {
            break;
        }
        portion.push(entry.clone());
    }
    portion
}
