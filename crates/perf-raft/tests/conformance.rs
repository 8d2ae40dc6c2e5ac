//! The stores that this crate has, and one of an example, by the conformance suite; and stores that break the contract, which it must find.
#![cfg(feature = "testing")]

#[path = "../examples/redb_log/store.rs"]
mod redb_store;

use perf_raft::eraftpb::Entry;
use perf_raft::log::testing::{Report, SimDisk, Subject, Violation, conformance};
use perf_raft::log::{
    LogJob, LogState, SegmentLog, SegmentLogOptions, SharedLog, SnapshotReader, SnapshotStore,
    SnapshotWriter, StoredData, StoredSnapshot,
};
use perf_raft::{GroupId, LogError, LogReader, LogStore, MemoryLog};
use redb_store::RedbLog;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

struct Memory(MemoryLog);

impl Subject for Memory {
    type Store = MemoryLog;

    fn open(&mut self) -> Result<MemoryLog, LogError> {
        Ok(self.0.clone())
    }
}

struct Segments(TempDir);

impl Subject for Segments {
    type Store = SegmentLog;

    fn open(&mut self) -> Result<SegmentLog, LogError> {
        let mut options = SegmentLogOptions::default();
        options.segment_bytes = 256 * 1024;
        SegmentLog::open_with(self.0.path(), &options)
    }
}

struct SmallSegments(SimDisk);

impl Subject for SmallSegments {
    type Store = SegmentLog;

    fn open(&mut self) -> Result<SegmentLog, LogError> {
        let mut options = SegmentLogOptions::default();
        options.segment_bytes = 2048;
        SegmentLog::open_on(Arc::new(self.0.clone()), "log", &options)
    }

    fn disk(&self) -> Option<&SimDisk> {
        Some(&self.0)
    }
}

/// The same, shared.
struct Shared(SmallSegments);

impl Subject for Shared {
    type Store = SharedLog;

    fn open(&mut self) -> Result<SharedLog, LogError> {
        self.0.open().map(SharedLog::new)
    }

    fn disk(&self) -> Option<&SimDisk> {
        self.0.disk()
    }
}

struct Redb(SimDisk);

impl Subject for Redb {
    type Store = RedbLog;

    fn open(&mut self) -> Result<RedbLog, LogError> {
        RedbLog::open_on(&self.0, Path::new("log.redb"))
    }

    fn disk(&self) -> Option<&SimDisk> {
        Some(&self.0)
    }
}

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

/// Another disk for each case.
fn disks() -> impl FnMut() -> SimDisk {
    let mut seeds = 0..;
    move || SimDisk::new(seeds.next().expect("there are many"))
}

fn passes(report: Result<Report, Violation>, has_disk: bool) {
    let report = report.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.passed.len(), if has_disk { 18 } else { 14 });
    assert_eq!(report.skipped.len(), if has_disk { 0 } else { 4 });
    println!("{report}");
}

#[test]
fn the_log_in_memory_conforms() {
    passes(conformance(|| Memory(MemoryLog::restartable())), false);
}

#[test]
fn the_log_of_segments_conforms_on_a_real_disk() {
    passes(conformance(|| Segments(folder())), false);
}

#[test]
fn the_log_of_segments_conforms_on_a_disk_that_fails() {
    let mut next = disks();
    passes(conformance(|| SmallSegments(next())), true);
}

#[test]
fn a_shared_log_conforms() {
    let mut next = disks();
    passes(conformance(|| Shared(SmallSegments(next()))), true);
}

#[test]
fn the_log_on_redb_conforms() {
    let mut next = disks();
    passes(conformance(|| Redb(next())), true);
}

/// How a store may break the contract.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// What was written is gone when the store is opened again.
    Forgets,
    /// Entries behind new ones stay.
    KeepsTail,
    /// A saved snapshot counts at once.
    TakesSaved,
    /// All groups are one.
    MixesGroups,
    /// Compacted entries stay.
    KeepsCompacted,
    /// Jobs take effect backwards.
    Reverses,
    /// A reader sees what the log held when the reader was made.
    ReadsOld,
    /// Data of a snapshot goes when another one takes its place, though it is being read.
    CutsReaders,
    /// The last piece of a snapshot's data is missing.
    LosesPiece,
}

#[derive(Clone)]
struct Faulty {
    inner: MemoryLog,
    fault: Fault,
}

impl LogStore for Faulty {
    fn load(&mut self, group: GroupId) -> Result<Option<LogState>, LogError> {
        let group = self.group(group);
        self.inner.load(group)
    }

    fn save_snapshot(&mut self, group: GroupId, snapshot: &StoredSnapshot) -> Result<(), LogError> {
        if self.fault != Fault::TakesSaved {
            return Ok(());
        }
        let job = LogJob {
            group,
            snapshot: Some(snapshot.clone()),
            ..LogJob::default()
        };
        self.inner.write(&[job], true)
    }

    fn write(&mut self, jobs: &[LogJob], sync: bool) -> Result<(), LogError> {
        let mut jobs = jobs.to_vec();
        for job in &mut jobs {
            job.group = self.group(job.group);
        }
        if self.fault == Fault::Reverses {
            jobs.reverse();
        }
        if self.fault == Fault::KeepsCompacted {
            jobs.iter_mut().for_each(|job| job.compacted = None);
        }
        if self.fault == Fault::KeepsTail {
            for job in &mut jobs {
                self.keep_tail(job)?;
            }
        }
        self.inner.write(&jobs, sync)
    }

    fn groups(&mut self) -> Result<Vec<GroupId>, LogError> {
        self.inner.groups()
    }

    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, LogError> {
        let inner = self.inner.snapshots()?.expect("it has them");
        let fault = self.fault;
        Ok(Some(Arc::new(FaultyPieces { inner, fault })))
    }

    fn reader(&mut self) -> Result<Option<Box<dyn LogReader>>, LogError> {
        if self.fault != Fault::ReadsOld {
            return Ok(None);
        }
        let state = self.inner.load(GroupId(1))?;
        Ok(Some(Box::new(Old(state.unwrap_or_default()))))
    }
}

struct FaultyPieces {
    inner: Arc<dyn SnapshotStore>,
    fault: Fault,
}

impl SnapshotStore for FaultyPieces {
    fn create(&self, group: GroupId) -> Result<Box<dyn SnapshotWriter>, LogError> {
        let inner = self.inner.create(group)?;
        Ok(match self.fault {
            Fault::LosesPiece => Box::new(LosesPiece(inner, Vec::new())),
            _ => inner,
        })
    }

    fn open(
        &self,
        group: GroupId,
        data: StoredData,
    ) -> Result<Option<Box<dyn SnapshotReader>>, LogError> {
        let reader = self.inner.open(group, data)?;
        if self.fault != Fault::CutsReaders {
            return Ok(reader);
        }
        let inner = Arc::clone(&self.inner);
        Ok(reader.map(|reader| {
            Box::new(CutsReaders {
                reader,
                inner,
                group,
                data,
            }) as Box<dyn SnapshotReader>
        }))
    }

    fn discard(&self, group: GroupId, data: StoredData) {
        self.inner.discard(group, data);
    }
}

struct LosesPiece(Box<dyn SnapshotWriter>, Vec<u8>);

impl SnapshotWriter for LosesPiece {
    fn write(&mut self, piece: &[u8]) -> Result<(), LogError> {
        let before = std::mem::replace(&mut self.1, piece.to_vec());
        self.0.write(&before)
    }

    fn finish(self: Box<Self>) -> Result<StoredData, LogError> {
        self.0.finish()
    }
}

struct CutsReaders {
    reader: Box<dyn SnapshotReader>,
    inner: Arc<dyn SnapshotStore>,
    group: GroupId,
    data: StoredData,
}

impl SnapshotReader for CutsReaders {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, LogError> {
        match self.inner.open(self.group, self.data)? {
            Some(_) => self.reader.read_at(offset, buffer),
            None => Ok(0),
        }
    }
}

struct Old(LogState);

impl LogReader for Old {
    fn read(
        &mut self,
        group: GroupId,
        first: u64,
        end: u64,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, LogError> {
        Ok(match group {
            GroupId(1) => self.0.read(first, end, bytes_max),
            _ => Vec::new(),
        })
    }
}

impl Faulty {
    fn group(&self, group: GroupId) -> GroupId {
        match self.fault {
            Fault::MixesGroups => GroupId(1),
            _ => group,
        }
    }

    /// Adds what is in the log behind the job's entries to them.
    fn keep_tail(&mut self, job: &mut LogJob) -> Result<(), LogError> {
        let held = self.inner.load(job.group)?.unwrap_or_default();
        if let Some(last) = job.entries.last().map(|last| last.index) {
            let tail = held.entries.into_iter().filter(|entry| entry.index > last);
            let mut entries = job.entries.to_vec();
            entries.extend(tail);
            job.entries = entries.into();
        }
        Ok(())
    }
}

struct Broken(Faulty);

impl Subject for Broken {
    type Store = Faulty;

    fn open(&mut self) -> Result<Faulty, LogError> {
        if self.0.fault == Fault::Forgets {
            self.0.inner = MemoryLog::restartable();
        }
        Ok(self.0.clone())
    }
}

#[test]
fn stores_that_break_the_contract_are_found() {
    let cases = [
        (Fault::Forgets, "jobs take effect in their order"),
        (Fault::KeepsTail, "entries take the place of a tail"),
        (Fault::TakesSaved, "a snapshot counts once a job names it"),
        (Fault::MixesGroups, "jobs take effect in their order"),
        (Fault::KeepsCompacted, "jobs take effect in their order"),
        (Fault::Reverses, "jobs take effect in their order"),
        (Fault::ReadsOld, "jobs take effect in their order"),
        (
            Fault::CutsReaders,
            "a snapshot is written and read in pieces",
        ),
        (Fault::LosesPiece, "a snapshot counts once a job names it"),
    ];
    for (fault, expected) in cases {
        let found = conformance(|| {
            let inner = MemoryLog::restartable();
            Broken(Faulty { inner, fault })
        });
        let violation = found.expect_err("the store is broken");
        assert_eq!(violation.case, expected, "{fault:?}: {violation}");
    }
}
