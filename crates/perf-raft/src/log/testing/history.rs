//! Jobs as a node may give them to its log, and what a log then holds.

use super::Random;
use crate::GroupId;
use crate::log::{LogJob, LogState, StoredSnapshot};
use crate::members::Identity;
use raft::eraftpb::{Entry, EntryType, HardState};
use std::collections::BTreeMap;

/// What a log holds of all groups: the reference that a store is compared with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model(BTreeMap<GroupId, LogState>);

impl Model {
    /// Does what a write of these jobs does.
    pub fn apply(&mut self, jobs: &[LogJob]) {
        for job in jobs {
            if job.removes_group {
                self.0.remove(&job.group);
            } else {
                self.0.entry(job.group).or_default().apply(job);
            }
        }
    }

    /// Puts another state in the place of a group's.
    pub fn set(&mut self, group: GroupId, state: LogState) {
        self.0.insert(group, state);
    }

    /// What the log holds of a group.
    #[must_use]
    pub fn state(&self, group: GroupId) -> Option<&LogState> {
        self.0.get(&group)
    }

    /// All groups.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.0.keys().copied()
    }
}

/// Makes jobs of several groups: appends, overwritten tails, snapshots, compactions, snapshots that replace a log, groups that are removed and
/// begin anew. The first group is slow: it compacts rarely, and stays.
#[derive(Clone, Debug)]
pub struct History {
    random: Random,
    groups: u64,
    data_bytes_max: u64,
    sequence: u64,
    term: u64,
}

impl History {
    /// Jobs of so many groups, with entries of up to so many bytes.
    #[must_use]
    pub fn new(seed: u64, groups: u64, data_bytes_max: u64) -> Self {
        Self {
            random: Random::new(seed ^ 0x4157),
            groups: groups.max(1),
            data_bytes_max,
            sequence: 0,
            term: 1,
        }
    }

    /// The jobs of one write to a log that holds what the model says.
    pub fn next_jobs(&mut self, model: &Model) -> Vec<LogJob> {
        let count = 1 + self.random.below(3);
        let mut states: BTreeMap<GroupId, LogState> = BTreeMap::new();
        let mut jobs = Vec::new();
        for _ in 0..count {
            let group = GroupId(1 + self.random.below(self.groups));
            let state = states
                .entry(group)
                .or_insert_with(|| model.state(group).cloned().unwrap_or_default());
            let job = self.job(group, state);
            state.apply(&job);
            jobs.push(job);
        }
        jobs
    }

    fn job(&mut self, group: GroupId, state: &LogState) -> LogJob {
        self.sequence += 1;
        let mut job = LogJob {
            sequence: self.sequence,
            group,
            ..LogJob::default()
        };
        if group.0 != 1 && self.random.one_in(48) {
            job.removes_group = true;
            return job;
        }
        if state.identity.is_none() {
            job.identity = Some(Identity {
                node: 1,
                incarnation: self.random.next_u64().max(1),
            });
        }
        let held = state.entries.len() as u64;
        let limit = if group.0 == 1 { 48 } else { 12 };
        match self.random.below(16) {
            0 => self.hard_state(&mut job),
            1 if held == 0 || self.random.one_in(4) => self.replace(&mut job, state),
            _ if held > limit => self.compact(&mut job, state),
            2 if held > 0 && group.0 != 1 => self.compact(&mut job, state),
            _ => self.append(&mut job, state),
        }
        job
    }

    fn hard_state(&mut self, job: &mut LogJob) {
        job.hard_state = Some(HardState {
            term: self.term,
            vote: self.random.below(4),
            commit: self.random.below(100),
            ..HardState::default()
        });
    }

    fn append(&mut self, job: &mut LogJob, state: &LogState) {
        let held = state.entries.len() as u64;
        let mut first = state.compacted.0 + held + 1;
        if self.random.one_in(6) {
            self.term += 1;
            first -= self.random.below(held + 1).min(4);
        }
        let count = 1 + self.random.below(4);
        let entries: Vec<Entry> = (first..)
            .take(count as usize)
            .map(|index| self.entry(index))
            .collect();
        job.entries = entries.into();
        if self.random.one_in(2) {
            self.hard_state(job);
        }
    }

    fn entry(&mut self, index: u64) -> Entry {
        let len = self.random.below(self.data_bytes_max + 1) as usize;
        let first = self.random.next_u64() as u8;
        let mut entry = Entry {
            index,
            term: self.term,
            data: vec![first; len].into(),
            sync_log: self.random.one_in(8),
            ..Entry::default()
        };
        if self.random.one_in(8) {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            entry.context = vec![first; 5].into();
        }
        entry
    }

    fn snapshot(&mut self, index: u64, term: u64) -> StoredSnapshot {
        let len = self.random.below(self.data_bytes_max + 1) as usize;
        let mut snapshot = StoredSnapshot {
            data: vec![self.random.next_u64() as u8; len].into(),
            ..StoredSnapshot::default()
        };
        snapshot.members.founders = vec![1, 2, 3];
        (snapshot.metadata.index, snapshot.metadata.term) = (index, term);
        snapshot.metadata.mut_conf_state().voters = vec![1, 2, 3];
        snapshot
    }

    fn compact(&mut self, job: &mut LogJob, state: &LogState) {
        let Some(entry) = state
            .entries
            .get(self.random.below(state.entries.len() as u64) as usize)
        else {
            return;
        };
        if self.random.one_in(2) {
            job.snapshot = Some(self.snapshot(entry.index, entry.term));
        }
        job.compacted = Some((entry.index, entry.term));
    }

    fn replace(&mut self, job: &mut LogJob, state: &LogState) {
        let last = state.compacted.0 + state.entries.len() as u64;
        let index = last + 1 + self.random.below(5);
        job.snapshot = Some(self.snapshot(index, self.term));
        job.replaces_log = true;
    }
}
