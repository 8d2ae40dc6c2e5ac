//! A disk that loses what was not synced: a model of a log, or the real log on a simulated disk.

use super::random::Random;
use bytes::Bytes;
use perf_raft::core::Fetch;
use perf_raft::eraftpb::Entry;
#[cfg(feature = "testing")]
use perf_raft::log::SegmentLog;
#[cfg(feature = "testing")]
use perf_raft::log::testing;
use perf_raft::log::{LogJob, LogOutline, LogState, SnapshotStore, StoredSnapshot};
use perf_raft::{GroupId, LogError, LogReader, LogStore};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A node's disk with its log.
pub(crate) enum SimDisk {
    Model(Box<ModelDisk>),
    #[cfg(feature = "testing")]
    Real(Box<RealLog>),
}

impl SimDisk {
    /// A new disk. With `real_seed` for the real log, on a disk with that seed, if it is compiled in.
    pub(crate) fn new(real_seed: Option<u64>) -> Self {
        match real_seed {
            #[cfg(feature = "testing")]
            Some(seed) => Self::Real(Box::new(RealLog::new(seed))),
            _ => Self::Model(Box::default()),
        }
    }

    pub(crate) fn write_unsynced(&mut self, jobs: &[LogJob]) {
        match self {
            Self::Model(disk) => disk.write_unsynced(jobs),
            #[cfg(feature = "testing")]
            Self::Real(log) => log.write_unsynced(jobs),
        }
    }

    /// The power fails. Returns how many jobs were lost, as far as that is known.
    pub(crate) fn crash(&mut self, chance: u64) -> u64 {
        match self {
            Self::Model(disk) => disk.crash(chance),
            #[cfg(feature = "testing")]
            Self::Real(log) => log.crash(),
        }
    }

    pub(crate) fn fail_next_sync(&mut self) {
        match self {
            Self::Model(disk) => disk.fails_next_sync = true,
            #[cfg(feature = "testing")]
            Self::Real(log) => log.disk.fail(testing::Fault::Sync),
        }
    }

    pub(crate) fn fail_next_read(&mut self) {
        match self {
            Self::Model(disk) => disk.fails_next_read = true,
            #[cfg(feature = "testing")]
            Self::Real(log) => log.disk.fail(testing::Fault::Read),
        }
    }

    /// What a reader returns now.
    pub(crate) fn read(&mut self, fetch: Fetch) -> Result<Vec<Entry>, LogError> {
        match self {
            Self::Model(disk) => disk.read(fetch),
            #[cfg(feature = "testing")]
            Self::Real(log) => log.read(fetch),
        }
    }

    fn store(&mut self) -> &mut dyn LogStore {
        match self {
            Self::Model(disk) => &mut **disk,
            #[cfg(feature = "testing")]
            Self::Real(log) => &mut **log,
        }
    }
}

impl LogStore for SimDisk {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        self.store().load(group)
    }

    fn save_snapshot(&mut self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        self.store().save_snapshot(group, snapshot)
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        self.store().write(jobs, sync)
    }

    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        self.store().groups()
    }

    fn outline(&mut self, group: GroupId) -> Result<Option<LogOutline>, LogError> {
        self.store().outline(group)
    }

    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, LogError> {
        self.store().snapshots()
    }

    /// Says that there is one. The world reads by [`SimDisk::read`].
    fn reader(&mut self) -> Result<Option<Box<dyn LogReader>>, LogError> {
        Ok(Some(Box::new(ByTheWorld)))
    }
}

struct ByTheWorld;

impl LogReader for ByTheWorld {
    fn read(&mut self, _: GroupId, _: u64, _: u64, _: u64) -> Result<Vec<Entry>, LogError> {
        Ok(Vec::new())
    }
}

/// What is durable, and what was written since the last sync.
#[derive(Default)]
pub(crate) struct ModelDisk {
    /// The group it holds; the log of a node has one.
    group: Option<GroupId>,
    durable: LogState,
    snapshots: BTreeMap<(u64, u64), Bytes>,
    unsynced: Vec<LogJob>,
    fails_next_sync: bool,
    fails_next_read: bool,
}

impl ModelDisk {
    fn read(&mut self, fetch: Fetch) -> Result<Vec<Entry>, LogError> {
        if std::mem::take(&mut self.fails_next_read) {
            return Err(LogError::Corrupted {
                file: "log".into(),
                offset: 0,
                reason: "simulated".to_owned(),
            });
        }
        Ok(self.durable.read(fetch.first, fetch.end, fetch.bytes_max))
    }

    fn keep(&mut self, snapshot: &StoredSnapshot) {
        let place = (snapshot.metadata.index, snapshot.metadata.term);
        self.snapshots.insert(place, snapshot.data.clone());
    }

    fn write_unsynced(&mut self, jobs: &[LogJob]) {
        for job in jobs {
            // Its data is made durable before the record is written.
            if let Some(snapshot) = &job.snapshot {
                self.keep(snapshot);
            }
        }
        self.unsynced.extend(jobs.iter().cloned());
    }

    /// Some of what was not synced is there, from the start on, the rest is gone.
    fn crash(&mut self, chance: u64) -> u64 {
        let mut random = Random::new(chance);
        self.fails_next_read = false;
        let kept = random.index(self.unsynced.len() + 1);
        let lost = self.unsynced.split_off(kept);
        self.sync();
        lost.len() as u64
    }

    fn sync(&mut self) {
        for job in std::mem::take(&mut self.unsynced) {
            self.group = Some(job.group);
            self.durable.apply(&job);
        }
    }
}

impl LogStore for ModelDisk {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        if self.group != Some(group) {
            return Ok(None);
        }
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
        if sync && self.fails_next_sync {
            self.fails_next_sync = false;
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

    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        Ok(self.group.into_iter().collect())
    }
}

/// The real log, with segments of a few entries: it rotates, moves and purges all the time.
#[cfg(feature = "testing")]
pub(crate) struct RealLog {
    disk: testing::SimDisk,
    log: Option<SegmentLog>,
}

#[cfg(feature = "testing")]
impl RealLog {
    fn new(seed: u64) -> Self {
        Self {
            disk: testing::SimDisk::new(seed),
            log: None,
        }
    }

    fn open(&mut self) -> Result<&mut SegmentLog, LogError> {
        let log = match self.log.take() {
            Some(log) => log,
            None => {
                let mut options = perf_raft::log::SegmentLogOptions::default();
                options.segment_bytes = 2048;
                SegmentLog::open_on(Arc::new(self.disk.clone()), "log", &options)?
            }
        };
        Ok(self.log.insert(log))
    }

    fn read(&mut self, fetch: Fetch) -> Result<Vec<Entry>, LogError> {
        let reader = self.open()?.reader()?;
        let mut reader = reader.expect("this log has one");
        reader.read(fetch.group, fetch.first, fetch.end, fetch.bytes_max)
    }

    fn write_unsynced(&mut self, jobs: &[LogJob]) {
        let Ok(log) = self.open() else {
            return;
        };
        for job in jobs {
            if let Some(snapshot) = &job.snapshot
                && snapshot.stored.is_none()
            {
                // It is about to lose its power: whatever fails, fails.
                let _ = log.save_snapshot(job.group, snapshot);
            }
        }
        let _ = log.write(jobs, false);
    }

    fn crash(&mut self) -> u64 {
        self.log = None;
        self.disk.crash();
        self.disk.mend();
        0
    }
}

#[cfg(feature = "testing")]
impl LogStore for RealLog {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        self.open()?.load(group)
    }

    fn outline(&mut self, group: GroupId) -> Result<Option<LogOutline>, LogError> {
        self.open()?.outline(group)
    }

    fn save_snapshot(&mut self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        self.open()?.save_snapshot(group, snapshot)
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        self.open()?.write(jobs, sync)
    }

    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        self.open()?.groups()
    }

    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, LogError> {
        self.open()?.snapshots()
    }
}
