//! A disk that loses what was not synced.

use super::random::Random;
use bytes::Bytes;
use perf_raft::log::{LogJob, LogState, StoredSnapshot};
use perf_raft::{GroupId, Identity, LogError, LogStore};
use std::collections::BTreeMap;

/// What is durable, and what was written since the last sync.
pub(crate) struct SimDisk {
    durable: LogState,
    snapshots: BTreeMap<(u64, u64), Bytes>,
    unsynced: Vec<LogJob>,
    pub(crate) fail_next_sync: bool,
}

impl SimDisk {
    /// A new disk, of a node that was never there.
    pub(crate) fn new(state: LogState, identity: Identity) -> Self {
        let state = LogState {
            identity: Some(identity),
            ..state
        };
        let mut disk = Self {
            durable: LogState::default(),
            snapshots: BTreeMap::new(),
            unsynced: Vec::new(),
            fail_next_sync: false,
        };
        if let Some(snapshot) = &state.snapshot {
            disk.keep(snapshot);
        }
        disk.durable = state;
        disk
    }

    fn keep(&mut self, snapshot: &StoredSnapshot) {
        let place = (snapshot.metadata.index, snapshot.metadata.term);
        self.snapshots.insert(place, snapshot.data.clone());
    }

    pub(crate) fn write_unsynced(&mut self, jobs: &[LogJob]) {
        for job in jobs {
            // Its data is made durable before the record is written.
            if let Some(snapshot) = &job.snapshot {
                self.keep(snapshot);
            }
        }
        self.unsynced.extend(jobs.iter().cloned());
    }

    /// The power fails: some of what was not synced is there, from the start on, the rest is gone. Returns how many jobs were lost.
    pub(crate) fn crash(&mut self, chance: u64) -> u64 {
        let mut random = Random::new(chance);
        let kept = random.index(self.unsynced.len() + 1);
        let lost = self.unsynced.split_off(kept);
        self.sync();
        lost.len() as u64
    }

    /// Which node it is of.
    pub(crate) fn incarnation(&self) -> u64 {
        self.durable
            .identity
            .map_or(0, |identity| identity.incarnation)
    }

    fn sync(&mut self) {
        for job in std::mem::take(&mut self.unsynced) {
            self.durable.apply(&job);
        }
    }
}

impl LogStore for SimDisk {
    fn load(&mut self, _: GroupId) -> Result<Option<LogState>, LogError> {
        let mut state = self.durable.clone();
        if let Some(snapshot) = &mut state.snapshot {
            let place = (snapshot.metadata.index, snapshot.metadata.term);
            let data = self
                .snapshots
                .get(&place)
                .ok_or_else(|| LogError::Corrupted {
                    file: "snapshot".into(),
                    offset: 0,
                    reason: format!(
                        "the log refers to a snapshot at {} that is not there",
                        place.0
                    ),
                })?;
            snapshot.data = data.clone();
        }
        Ok(Some(state))
    }

    fn save_snapshot(&mut self, _: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        self.keep(snapshot);
        Ok(())
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        self.unsynced.extend(jobs.iter().cloned());
        if sync && self.fail_next_sync {
            return Err(LogError::Sync {
                file: "log".into(),
                reason: "simulated".to_owned(),
            });
        }
        if sync {
            self.sync();
        }
        Ok(())
    }
}
