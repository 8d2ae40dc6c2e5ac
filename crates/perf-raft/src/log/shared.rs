//! One store for the nodes of several groups in a process.

use super::{
    LogError, LogJob, LogOutline, LogReader, LogState, LogStore, SnapshotStore, StoredSnapshot,
};
use crate::GroupId;
use parking_lot::{Condvar, Mutex};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;

/// A store that the nodes of several groups write to together. Each node gets a clone.
///
/// While one write and its `fdatasync` are under way, the jobs of all other nodes gather for the next one. So any number of groups costs as many
/// fsyncs as one busy group does. A save of a snapshot waits for the write under way, and writes wait for it.
///
/// An error of the store is given to all nodes: the whole store is unusable then.
///
/// ```
/// use perf_raft::log::{LogStore, SharedLog};
/// use perf_raft::{GroupId, MemoryLog};
///
/// let log = SharedLog::new(MemoryLog::restartable());
/// let mut of_one_node = log.clone();
/// assert_eq!(of_one_node.load(GroupId(1))?, None);
/// # Ok::<(), perf_raft::LogError>(())
/// ```
#[derive(Clone)]
pub struct SharedLog {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// A write has ended.
    written: Condvar,
    store: Mutex<Box<dyn LogStore>>,
    is_volatile: bool,
}

#[derive(Default)]
struct Queue {
    /// Jobs of the next write.
    jobs: Vec<LogJob>,
    /// Whether one of them must be durable.
    sync: bool,
    /// The number of the last write that has ended; the next one has the number after it, or after that of the one under way.
    done: u64,
    is_writing: bool,
    failed: Option<LogError>,
}

impl fmt::Debug for SharedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLog").finish_non_exhaustive()
    }
}

impl SharedLog {
    /// Shares a store.
    #[must_use]
    pub fn new(store: impl LogStore) -> Self {
        Self {
            shared: Arc::new(Shared {
                queue: Mutex::default(),
                written: Condvar::new(),
                is_volatile: store.is_volatile(),
                store: Mutex::new(Box::new(store)),
            }),
        }
    }

    /// The groups that the store holds anything of. [`LogStore::groups`] of a shared log is empty, so that a node may begin its group beside others.
    ///
    /// # Errors
    /// As the store's.
    pub fn all_groups(&self) -> Result<Vec<GroupId>, LogError> {
        self.shared.store.lock().groups()
    }

    /// Jobs that wait for the next write.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.queue.lock().jobs.len()
    }
}

impl Shared {
    fn write(&self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        let mut queue = self.queue.lock();
        queue.jobs.extend_from_slice(jobs);
        queue.sync |= sync;
        let own = queue.done + 1 + u64::from(queue.is_writing);
        loop {
            if let Some(error) = &queue.failed {
                return Err(error.clone());
            }
            if queue.done >= own {
                return Ok(());
            }
            if queue.is_writing {
                self.written.wait(&mut queue);
                continue;
            }
            queue.is_writing = true;
            let jobs = std::mem::take(&mut queue.jobs);
            let sync = std::mem::take(&mut queue.sync);
            drop(queue);
            let written = catch_unwind(AssertUnwindSafe(|| self.store.lock().write(&jobs, sync)));
            queue = self.queue.lock();
            queue.is_writing = false;
            queue.done += 1;
            match &written {
                Ok(Ok(())) => {}
                Ok(Err(error)) => queue.failed = Some(error.clone()),
                Err(_) => queue.failed = Some(panicked()),
            }
            self.written.notify_all();
            if let Err(panic) = written {
                drop(queue);
                resume_unwind(panic);
            }
        }
    }
}

fn panicked() -> LogError {
    LogError::Io {
        file: PathBuf::new(),
        action: "writing the shared log",
        reason: "the store panicked".to_owned(),
    }
}

impl LogStore for SharedLog {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        self.shared.store.lock().load(group)
    }

    fn save_snapshot(&mut self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        if let Some(error) = &self.shared.queue.lock().failed {
            return Err(error.clone());
        }
        let saved = self.shared.store.lock().save_snapshot(group, snapshot);
        if let Err(error) = &saved {
            self.shared.queue.lock().failed = Some(error.clone());
        }
        saved
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        if self.shared.is_volatile {
            // There is no fsync to share.
            return self.shared.store.lock().write(jobs, sync);
        }
        self.shared.write(jobs, sync)
    }

    fn outline(&mut self, group: GroupId) -> Result<Option<LogOutline>, LogError> {
        self.shared.store.lock().outline(group)
    }

    /// The store's: it does not wait for writes.
    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, LogError> {
        self.shared.store.lock().snapshots()
    }

    /// The store's: it does not wait for writes.
    fn reader(&mut self) -> Result<Option<Box<dyn LogReader>>, LogError> {
        self.shared.store.lock().reader()
    }

    fn is_volatile(&self) -> bool {
        self.shared.is_volatile
    }

    fn damage(&self) -> Option<String> {
        self.shared.store.lock().damage()
    }
}
