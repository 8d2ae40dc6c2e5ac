//! What a [`LogStore`] has to do, as tests that an implementer runs.

use super::save_in_pieces;
use super::{Fault, History, Model, Random, SimDisk};
use crate::GroupId;
use crate::log::{
    LogError, LogJob, LogOutline, LogReader, LogState, LogStore, SnapshotStore, StoredData,
    StoredSnapshot, run_jobs,
};
use crate::members::Identity;
use raft::eraftpb::{Entry, HardState};
use std::fmt;
use std::sync::Arc;

/// Random histories, and how many writes each has.
const HISTORIES: u64 = 12;
const HISTORY_WRITES: u64 = 60;

/// Random histories with power failures.
const POWER_FAILURES: u64 = 200;

/// Groups of a history.
const GROUPS: u64 = 4;

const GROUP: GroupId = GroupId(1);
const OTHER: GroupId = GroupId(2);

/// A store that the suite opens again and again. A new value is a store that was never written.
pub trait Subject {
    /// The store.
    type Store: LogStore;

    /// Opens the store. The one that was opened before is dropped by then.
    ///
    /// # Errors
    /// As the store's.
    fn open(&mut self) -> Result<Self::Store, LogError>;

    /// The disk that the store is on, if it is on a simulated one. Only then are power failures and errors tested.
    fn disk(&self) -> Option<&SimDisk> {
        None
    }
}

/// What the suite found out about a store that conforms. Displays as one line for each case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Cases that passed.
    pub passed: Vec<&'static str>,
    /// Cases that need a [`SimDisk`].
    pub skipped: Vec<&'static str>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.passed {
            writeln!(f, "{case}: ok")?;
        }
        for case in &self.skipped {
            writeln!(f, "{case}: skipped, the store is not on a simulated disk")?;
        }
        Ok(())
    }
}

/// How a store breaks the contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{case}: {reason}")]
#[non_exhaustive]
pub struct Violation {
    /// The case.
    pub case: &'static str,
    /// What the store did, and what it should have done.
    pub reason: String,
}

type Outcome = Result<(), String>;
type Case<S> = (&'static str, fn(&mut Bench<S>) -> Outcome);

/// Runs all cases, each on a store of its own that `make` makes.
///
/// ```
/// use perf_raft::log::testing::{conformance, Subject};
/// use perf_raft::{LogError, MemoryLog};
///
/// struct Memory(MemoryLog);
///
/// impl Subject for Memory {
///     type Store = MemoryLog;
///     fn open(&mut self) -> Result<MemoryLog, LogError> {
///         Ok(self.0.clone())
///     }
/// }
///
/// let report = conformance(|| Memory(MemoryLog::restartable()))?;
/// println!("{report}");
/// # Ok::<(), perf_raft::log::testing::Violation>(())
/// ```
///
/// # Errors
/// The first [`Violation`].
pub fn conformance<S: Subject>(mut make: impl FnMut() -> S) -> Result<Report, Violation> {
    let cases: [Case<S>; 14] = [
        ("a new store is empty", new_store),
        ("jobs take effect in their order", order),
        ("entries take the place of a tail", overwriting),
        ("compacted entries are gone", compaction),
        ("a snapshot counts once a job names it", snapshots),
        ("a snapshot replaces the log", replacing),
        ("a snapshot is written and read in pieces", pieces),
        ("what is not finished or not named is gone", unfinished),
        ("groups do not see each other", groups),
        ("a removed group may begin anew", removing),
        ("a lone part of a job is kept", lone_parts),
        ("a job that is not durable is there or not", unsynced),
        ("a reader sees what is compacted and overwritten", reading),
        ("random histories are read as written", histories),
    ];
    let on_a_disk: [Case<S>; 4] = [
        ("a power failure loses nothing durable", power_failures),
        ("a failed fsync is an error", failed_fsync),
        ("a full disk is an error", full_disk),
        (
            "a snapshot that cannot be written in pieces counts for nothing",
            failed_pieces,
        ),
    ];
    let mut report = Report {
        passed: Vec::new(),
        skipped: Vec::new(),
    };
    let has_disk = make().disk().is_some();
    for (place, (case, run)) in cases.iter().chain(&on_a_disk).enumerate() {
        if place >= cases.len() && !has_disk {
            report.skipped.push(case);
            continue;
        }
        // Power failures differ from store to store.
        let rounds = if *case == on_a_disk[0].0 {
            POWER_FAILURES
        } else {
            1
        };
        for round in 0..rounds {
            let done = Bench::new(make(), round).and_then(|mut bench| run(&mut bench));
            done.map_err(|reason| Violation { case, reason })?;
        }
        report.passed.push(case);
    }
    Ok(report)
}

/// A store under test beside the model.
struct Bench<S: Subject> {
    subject: S,
    store: Option<S::Store>,
    /// Made when the store was opened. None if it has none.
    reader: Option<Box<dyn LogReader>>,
    model: Model,
    seed: u64,
}

impl<S: Subject> Bench<S> {
    fn new(subject: S, seed: u64) -> Result<Self, String> {
        let mut bench = Self {
            subject,
            store: None,
            reader: None,
            model: Model::default(),
            seed,
        };
        bench.reopen()?;
        Ok(bench)
    }

    fn reopen(&mut self) -> Outcome {
        self.close();
        let opened = self.subject.open();
        let mut store = opened.map_err(|error| format!("it does not open: {error}"))?;
        let reader = store.reader();
        self.reader = reader.map_err(|error| format!("it makes no reader: {error}"))?;
        self.store = Some(store);
        Ok(())
    }

    fn close(&mut self) {
        (self.store, self.reader) = (None, None);
    }

    fn store(&mut self) -> Result<&mut S::Store, String> {
        self.store.as_mut().ok_or_else(|| "it is closed".to_owned())
    }

    /// Where the store keeps snapshots in pieces, if it does.
    fn snapshots(&mut self) -> Result<Option<Arc<dyn SnapshotStore>>, String> {
        let snapshots = self.store()?.snapshots();
        snapshots.map_err(|error| format!("it keeps no snapshots: {error}"))
    }

    /// Writes jobs as a node does, durably. Where the store can, a snapshot of an odd length is written in pieces
    /// before.
    fn run(&mut self, jobs: &[LogJob]) -> Result<Result<u64, LogError>, String> {
        let mut jobs = jobs.to_vec();
        let in_pieces = |job: &&mut LogJob| {
            let snapshot = job.snapshot.as_ref();
            snapshot.is_some_and(|snapshot| snapshot.data.len() % 2 == 1)
        };
        if let Some(store) = self.snapshots()? {
            for job in jobs.iter_mut().filter(in_pieces) {
                if let Some(snapshot) = &mut job.snapshot
                    && let Err(error) = save_in_pieces(&*store, job.group, snapshot, 50)
                {
                    return Ok(Err(error));
                }
            }
        }
        Ok(run_jobs(self.store()?, &mut jobs))
    }

    /// Writes as a node does, durably, and compares.
    fn write(&mut self, jobs: Vec<LogJob>) -> Outcome {
        let last = jobs.iter().map(|job| job.sequence).max().unwrap_or(0);
        let durable = self
            .run(&jobs)?
            .map_err(|error| format!("a write failed: {error}"))?;
        if durable != last {
            return Err(format!("{durable} is durable instead of {last}"));
        }
        self.model.apply(&jobs);
        Ok(())
    }

    /// The store holds what the model does, now and after it is opened again.
    fn check(&mut self) -> Outcome {
        self.compare()?;
        self.reopen()?;
        self.compare()
            .map_err(|reason| format!("after opening again, {reason}"))
    }

    fn compare(&mut self) -> Outcome {
        let model = std::mem::take(&mut self.model);
        let difference = self.difference(&model);
        self.model = model;
        difference?.map_or(Ok(()), Err)
    }

    fn difference(&mut self, model: &Model) -> Result<Option<String>, String> {
        let store = self.store()?;
        let failed = |error: LogError| format!("it cannot be read: {error}");
        // Those that were never written too.
        for group in (1..=GROUPS + 1).map(GroupId) {
            let loaded = store.load(group).map_err(failed)?;
            if loaded.as_ref() != model.state(group) {
                return Ok(Some(format!(
                    "group {} is {loaded:?} instead of {:?}",
                    group.0,
                    model.state(group)
                )));
            }
            let mut outline = store.outline(group).map_err(failed)?;
            if let Some(snapshot) = outline
                .as_mut()
                .and_then(|outline| outline.snapshot.as_mut())
                && let Some(stored) = snapshot.stored.take()
            {
                let snapshots = store.snapshots().map_err(failed)?;
                let snapshots =
                    snapshots.ok_or("an outline names a snapshot in pieces, and there are none")?;
                snapshot.data = read_pieces(&*snapshots, group, stored, 64)?.into();
            }
            if let Some(difference) = outline_differs(outline.as_ref(), model.state(group)) {
                return Ok(Some(format!("group {}: {difference}", group.0)));
            }
        }
        if let Some(reader) = &mut self.reader {
            for group in (1..=GROUPS + 1).map(GroupId) {
                let state = model.state(group).cloned().unwrap_or_default();
                let difference = reader_differs(reader.as_mut(), group, &state).map_err(failed)?;
                if difference.is_some() {
                    return Ok(difference);
                }
            }
        }
        let store = self.store()?;
        let mut groups = store.groups().map_err(failed)?;
        groups.sort_unstable();
        let expected: Vec<GroupId> = model.groups().collect();
        // A store that several groups share says none.
        let is_wrong = !groups.is_empty() && groups != expected;
        Ok(is_wrong.then(|| format!("`groups` says {groups:?} instead of {expected:?}")))
    }
}

/// The data of a snapshot, read in pieces of so many bytes.
fn read_pieces(
    snapshots: &dyn SnapshotStore,
    group: GroupId,
    stored: StoredData,
    piece_bytes: usize,
) -> Result<Vec<u8>, String> {
    let failed = |error: LogError| format!("snapshot {stored:?} cannot be read: {error}");
    let reader = snapshots.open(group, stored).map_err(failed)?;
    let mut reader = reader.ok_or_else(|| format!("snapshot {stored:?} is gone"))?;
    let mut data = Vec::new();
    loop {
        let mut piece = vec![0; piece_bytes];
        let read = reader.read_at(data.len() as u64, &mut piece);
        let read = read.map_err(failed)?;
        data.extend_from_slice(&piece[..read]);
        if read < piece_bytes {
            break;
        }
    }
    if (data.len() as u64, crc32fast::hash(&data)) != (stored.bytes, stored.crc) {
        return Err(format!(
            "snapshot {stored:?} has {} other bytes",
            data.len()
        ));
    }
    Ok(data)
}

/// How an outline is not that of what a log holds.
fn outline_differs(outline: Option<&LogOutline>, state: Option<&LogState>) -> Option<String> {
    let expected = state.map(LogOutline::from);
    let (outline, expected) = match (outline, &expected) {
        (None, None) => return None,
        (Some(outline), Some(expected)) => (outline, expected),
        _ => {
            return Some(format!(
                "the outline is {outline:?} instead of {expected:?}"
            ));
        }
    };
    // Sizes are estimates, and so is where a stretch ends.
    let head = |outline: &LogOutline| LogOutline {
        stretches: Vec::new(),
        ..outline.clone()
    };
    let terms = |outline: &LogOutline| -> Vec<u64> {
        let stretches = outline.stretches.iter();
        let terms = stretches.map(|part| (part.term, usize::try_from(part.count).unwrap_or(0)));
        terms
            .flat_map(|(term, count)| std::iter::repeat_n(term, count))
            .collect()
    };
    let longest = |outline: &LogOutline| outline.stretches.iter().map(|part| part.longest).max();
    let is_same = head(outline) == head(expected)
        && terms(outline) == terms(expected)
        && longest(outline) >= longest(expected);
    (!is_same).then(|| format!("the outline is {outline:?} instead of {expected:?}"))
}

/// How a reader reads something else than a log holds.
fn reader_differs(
    reader: &mut dyn LogReader,
    group: GroupId,
    state: &LogState,
) -> Result<Option<String>, LogError> {
    let first = state.compacted.0 + 1;
    let next = first + state.entries.len() as u64;
    let middle = first + (next - first) / 2;
    let ranges = [
        (first, next, u64::MAX),
        (first, next, 0),
        (first, middle, 100),
        (middle, next, 50),
        (middle, middle + 2, u64::MAX),
        (next.saturating_sub(1), u64::MAX, 1),
        (next, next + 5, u64::MAX),
        (first.saturating_sub(1), next, u64::MAX),
    ];
    for (from, end, bytes_max) in ranges {
        let read = reader.read(group, from, end, bytes_max)?;
        let expected = state.read(from, end, u64::MAX);
        let payload = |entry: &Entry| (entry.data.len() + entry.context.len()) as u64;
        let bytes: u64 = read.iter().map(payload).sum();
        let is_empty = read.is_empty() && !expected.is_empty();
        let is_long = bytes > bytes_max && read.len() > 1;
        if !expected.starts_with(&read) || is_empty || is_long {
            return Ok(Some(format!(
                "reading group {} from {from} to {end}, {bytes_max} bytes at most, gives {read:?} of {expected:?}",
                group.0
            )));
        }
    }
    Ok(None)
}

fn entries(indices: std::ops::RangeInclusive<u64>, term: u64) -> std::sync::Arc<Vec<Entry>> {
    let entry = |index| Entry {
        index,
        term,
        data: format!("entry {index} of term {term}").into_bytes().into(),
        ..Entry::default()
    };
    indices.map(entry).collect::<Vec<_>>().into()
}

fn append(indices: std::ops::RangeInclusive<u64>, term: u64) -> LogJob {
    LogJob {
        sequence: *indices.end(),
        group: GROUP,
        entries: entries(indices, term),
        hard_state: Some(hard_state(term)),
        ..LogJob::default()
    }
}

fn hard_state(term: u64) -> HardState {
    HardState {
        term,
        vote: 2,
        commit: 1,
        ..HardState::default()
    }
}

fn snapshot(index: u64, term: u64, data: &'static str) -> StoredSnapshot {
    let mut snapshot = StoredSnapshot {
        data: data.into(),
        ..StoredSnapshot::default()
    };
    snapshot.members.founders = vec![1, 2, 3];
    (snapshot.metadata.index, snapshot.metadata.term) = (index, term);
    snapshot.metadata.mut_conf_state().voters = vec![1, 2, 3];
    snapshot.metadata.mut_conf_state().learners = vec![4];
    snapshot
}

fn record(index: u64, term: u64, data: &'static str) -> LogJob {
    LogJob {
        group: GROUP,
        snapshot: Some(snapshot(index, term, data)),
        ..LogJob::default()
    }
}

fn compact(index: u64, term: u64) -> LogJob {
    LogJob {
        group: GROUP,
        compacted: Some((index, term)),
        ..LogJob::default()
    }
}

fn identity() -> LogJob {
    LogJob {
        group: GROUP,
        identity: Some(Identity {
            node: 3,
            incarnation: 77,
        }),
        ..LogJob::default()
    }
}

fn new_store<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    for _ in 0..2 {
        let loaded = bench.store()?.load(GROUP);
        if loaded != Ok(None) {
            return Err(format!("a group that was never written is {loaded:?}"));
        }
        bench.check()?;
    }
    Ok(())
}

fn order<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    bench.write(vec![append(1..=3, 1), append(4..=6, 1)])?;
    bench.check()?;
    // Each of these undoes a part of the one before.
    bench.write(vec![append(7..=9, 1), append(8..=8, 2), append(8..=10, 3)])?;
    bench.check()?;
    bench.write(vec![append(11..=14, 3), compact(12, 3), append(13..=13, 4)])?;
    bench.check()
}

fn overwriting<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    bench.write(vec![append(1..=8, 1)])?;
    for (first, term) in [(8, 2), (5, 3), (2, 4), (1, 5)] {
        bench.write(vec![append(first..=first + 1, term)])?;
        bench.check()?;
        bench.write(vec![append(first + 2..=first + 3, term)])?;
    }
    bench.check()
}

fn compaction<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    bench.write(vec![identity(), append(1..=8, 1)])?;
    bench.write(vec![compact(3, 1)])?;
    bench.check()?;
    // What is gone stays gone.
    bench.write(vec![compact(2, 1)])?;
    bench.check()?;
    bench.write(vec![compact(8, 1)])?;
    bench.check()?;
    bench.write(vec![append(9..=10, 2)])?;
    bench.check()
}

fn snapshots<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    bench.write(vec![identity(), append(1..=8, 1), record(4, 1, "first")])?;
    bench.check()?;
    // Not named by a job: the other one counts, although it has the same index.
    let stray = snapshot(4, 1, "stray");
    let saved = bench.store()?.save_snapshot(GROUP, &stray);
    saved.map_err(|error| format!("a snapshot cannot be saved: {error}"))?;
    bench.check()?;
    bench.write(vec![record(4, 1, "third")])?;
    bench.check()?;
    bench.write(vec![record(5, 1, ""), record(6, 1, "last"), compact(6, 1)])?;
    bench.check()
}

fn replacing<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    bench.write(vec![identity(), append(1..=8, 3)])?;
    for index in [20, 30] {
        let replace = LogJob {
            replaces_log: true,
            ..record(index, 4, "of the leader")
        };
        bench.write(vec![replace])?;
        bench.check()?;
        bench.write(vec![append(index + 1..=index + 3, 4)])?;
        bench.check()?;
    }
    // All in one, in the order of the fields; entries beyond the snapshot go too.
    let replace = LogJob {
        replaces_log: true,
        entries: entries(33..=34, 5),
        hard_state: Some(hard_state(5)),
        ..record(32, 5, "of the next leader")
    };
    bench.write(vec![append(34..=40, 4), replace])?;
    bench.check()
}

/// Long enough for several pieces, sectors and reads.
const LONG: &str = concat!(
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "of a snapshot that is long enough for several pieces, and has an odd number of bytes in all of."
);

fn pieces<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    bench.write(vec![identity(), append(1..=8, 1), record(3, 1, LONG)])?;
    bench.check()?;
    let Some(store) = bench.snapshots()? else {
        return Ok(());
    };
    let failed = |error: LogError| format!("a snapshot cannot be written in pieces: {error}");
    for (index, data) in [(4, LONG), (5, ""), (6, "short")] {
        let mut named = snapshot(index, 1, data);
        save_in_pieces(&*store, GROUP, &mut named, 7).map_err(failed)?;
        let stored = named.stored.unwrap_or_default();
        let whole = |read: Vec<u8>| match read == data.as_bytes() {
            true => Ok(()),
            false => Err(format!("{} bytes are read of {}", read.len(), data.len())),
        };
        // Before a job names it, and after.
        whole(read_pieces(&*store, GROUP, stored, 11)?)?;
        let job = LogJob {
            snapshot: Some(named),
            ..record(index, 1, data)
        };
        let written = run_jobs(bench.store()?, &mut [job]);
        written.map_err(failed)?;
        bench.model.apply(&[record(index, 1, data)]);
        bench.compare()?;
        whole(read_pieces(&*store, GROUP, stored, 300)?)?;
        let reader = store.open(GROUP, stored).map_err(failed)?;
        let mut reader = reader.ok_or("a snapshot that counts is gone")?;
        // Any offset, and none behind the end.
        for offset in [data.len() / 2, 0, data.len(), data.len() + 5] {
            let mut piece = [0; 40];
            let read = reader.read_at(offset as u64, &mut piece).map_err(failed)?;
            let rest = data.as_bytes().get(offset..).unwrap_or_default();
            if piece[..read] != rest[..rest.len().min(40)] {
                return Err(format!(
                    "{read} bytes at {offset} are not those that were written"
                ));
            }
        }
        // Another one takes its place while it is read.
        bench.write(vec![record(index, 1, "even")])?;
        let mut read = vec![0; data.len()];
        let filled = reader.read_at(0, &mut read).map_err(failed)?;
        whole(read[..filled].to_vec())?;
    }
    drop(store);
    bench.check()
}

fn unfinished<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    let Some(store) = bench.snapshots()? else {
        return Ok(());
    };
    let failed = |error: LogError| format!("a snapshot cannot be written in pieces: {error}");
    bench.write(vec![append(1..=8, 1), record(3, 1, LONG)])?;
    // Of several at a time, one is dropped, one is discarded, one is not named by a job, and one is.
    let mut dropped = store.create(GROUP).map_err(failed)?;
    dropped.write(b"dropped").map_err(failed)?;
    let mut named = snapshot(4, 1, "named");
    save_in_pieces(&*store, GROUP, &mut named, 2).map_err(failed)?;
    let mut others = [snapshot(5, 1, "discarded"), snapshot(5, 1, "not named")];
    for other in &mut others {
        save_in_pieces(&*store, GROUP, other, 2).map_err(failed)?;
    }
    drop(dropped);
    let stored = others.map(|other| other.stored.unwrap_or_default());
    store.discard(GROUP, stored[0]);
    if store.open(GROUP, stored[0]).map_err(failed)?.is_some() {
        return Err("a snapshot that was discarded is there".to_owned());
    }
    bench.compare()?;
    let job = LogJob {
        snapshot: Some(named),
        ..record(4, 1, "")
    };
    let written = run_jobs(bench.store()?, &mut [job]);
    written.map_err(failed)?;
    bench.model.apply(&[record(4, 1, "named")]);
    drop(store);
    bench.check()
}

/// Pieces that cannot be written, or not be made durable: what was there before is there.
fn failed_pieces<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    for (place, fault) in [Fault::Full, Fault::ShortWrite, Fault::Sync]
        .into_iter()
        .enumerate()
    {
        let index = 1 + place as u64;
        bench.write(vec![append(index..=index + 4, 1), record(index, 1, LONG)])?;
        let Some(store) = bench.snapshots()? else {
            return Ok(());
        };
        let disk = bench.subject.disk().cloned();
        let disk = disk.ok_or("there is no simulated disk")?;
        disk.fail(fault);
        let mut other = snapshot(index, 1, LONG);
        let saved = save_in_pieces(&*store, GROUP, &mut other, 90);
        if saved.is_ok() && fault != Fault::ShortWrite {
            return Err(format!(
                "a snapshot is saved although the disk fails: {fault:?}"
            ));
        }
        drop(store);
        bench.close();
        disk.crash();
        bench.reopen()?;
        bench.check()?;
    }
    Ok(())
}

fn removing<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    let remove = |group| LogJob {
        group,
        removes_group: true,
        ..LogJob::default()
    };
    let other = LogJob {
        group: OTHER,
        ..append(1..=3, 7)
    };
    // What was never there may go too.
    bench.write(vec![remove(GROUP)])?;
    bench.check()?;
    for round in 1..=2 {
        bench.write(vec![
            identity(),
            append(1..=8, round),
            record(5, round, "of it"),
        ])?;
        bench.write(vec![compact(4, round), other.clone()])?;
        bench.check()?;
        bench.write(vec![remove(GROUP)])?;
        bench.check()?;
    }
    // Within one write.
    let beginning = LogJob {
        hard_state: Some(hard_state(9)),
        ..record(20, 9, "of a new one")
    };
    let jobs = vec![append(1..=2, 9), remove(GROUP), identity(), beginning];
    bench.write(jobs)?;
    bench.check()?;
    bench.write(vec![append(1..=2, 9), remove(GROUP)])?;
    bench.check()
}

fn groups<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    let of_the_other = |job: LogJob| LogJob {
        group: OTHER,
        ..job
    };
    bench.write(vec![append(1..=5, 1), of_the_other(append(1..=2, 7))])?;
    bench.check()?;
    bench.write(vec![
        compact(2, 1),
        of_the_other(append(3..=9, 7)),
        of_the_other(record(3, 7, "the other's")),
        record(4, 1, "its own"),
    ])?;
    bench.check()?;
    let loaded = bench.store()?.load(GroupId(3));
    match loaded {
        Ok(None) => Ok(()),
        loaded => Err(format!("a group that was never written is {loaded:?}")),
    }
}

fn lone_parts<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    bench.write(vec![identity()])?;
    bench.check()?;
    let vote = LogJob {
        group: GROUP,
        hard_state: Some(hard_state(9)),
        ..LogJob::default()
    };
    bench.write(vec![vote])?;
    bench.check()?;
    let mut special = Entry {
        index: 1,
        term: 9,
        context: b"context"[..].into(),
        sync_log: true,
        ..Entry::default()
    };
    special.set_entry_type(raft::eraftpb::EntryType::EntryConfChangeV2);
    let empty = Entry {
        index: 2,
        term: 9,
        ..Entry::default()
    };
    let entries = LogJob {
        group: GROUP,
        entries: vec![special, empty].into(),
        ..LogJob::default()
    };
    bench.write(vec![entries])?;
    bench.check()
}

fn unsynced<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    bench.write(vec![append(1..=3, 1)])?;
    let jobs = [append(4..=5, 1), append(5..=6, 2)];
    let written = bench.store()?.write(&jobs, false);
    written.map_err(|error| format!("a write failed: {error}"))?;
    bench.model.apply(&jobs);
    bench.compare()?;
    bench.write(vec![append(7..=8, 2)])?;
    bench.check()
}

/// What is read is compared after each write, by the reader that was made when the store was opened.
fn reading<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    bench.write(vec![identity(), append(1..=20, 1)])?;
    bench.compare()?;
    // Within a job, across jobs, and with a job of several terms.
    bench.write(vec![append(15..=18, 2), append(17..=22, 3)])?;
    bench.compare()?;
    let mixed: Vec<Entry> = entries(23..=25, 3)
        .iter()
        .chain(entries(26..=27, 4).iter())
        .cloned()
        .collect();
    bench.write(vec![LogJob {
        group: GROUP,
        entries: mixed.into(),
        ..LogJob::default()
    }])?;
    bench.check()?;
    bench.write(vec![append(27..=28, 5), compact(16, 2)])?;
    bench.compare()?;
    bench.write(vec![compact(24, 3)])?;
    bench.check()?;
    let replace = LogJob {
        replaces_log: true,
        ..record(40, 6, "of the leader")
    };
    bench.write(vec![replace, append(41..=43, 6)])?;
    bench.compare()?;
    bench.write(vec![compact(43, 6)])?;
    bench.check()
}

fn histories<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    // One store for all: each group of a history continues what the one before left.
    for seed in 0..HISTORIES {
        let mut history = History::new(seed, GROUPS, 120);
        for write in 0..HISTORY_WRITES {
            let jobs = history.next_jobs(&bench.model);
            bench.write(jobs)?;
            if write % 20 == 19 {
                bench
                    .check()
                    .map_err(|reason| format!("history {seed}, write {write}: {reason}"))?;
            }
        }
    }
    Ok(())
}

/// The power fails at a random moment, some times in a row. Writes that were durable are there, and of the one under way all or nothing
/// or the first jobs.
fn power_failures<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    let mut random = Random::new(bench.seed);
    let mut history = History::new(bench.seed, 2, 120);
    for _ in 0..4 {
        let disk = bench.subject.disk().cloned();
        let disk = disk.ok_or("there is no simulated disk")?;
        disk.crash_after(1 + random.below(60));
        let mut under_way = Vec::new();
        // A store that never touches its disk would go on for ever.
        for _ in 0..10_000 {
            let jobs = history.next_jobs(&bench.model);
            if bench.run(&jobs)?.is_err() {
                under_way = jobs;
                break;
            }
            if disk.is_off() {
                return Err("a write succeeds although the power is off".to_owned());
            }
            bench.model.apply(&jobs);
        }
        if under_way.is_empty() {
            return Err("it writes nothing to its disk".to_owned());
        }
        bench.close();
        disk.crash();
        bench.reopen()?;
        bench.settle(&under_way)?;
    }
    Ok(())
}

impl<S: Subject> Bench<S> {
    /// Finds out how much of a write that failed is there.
    fn settle(&mut self, under_way: &[LogJob]) -> Outcome {
        let mut model = self.model.clone();
        let mut first = None;
        for jobs in 0..=under_way.len() {
            if jobs > 0 {
                model.apply(&under_way[jobs - 1..jobs]);
            }
            match self.difference(&model)? {
                None => {
                    self.model = model;
                    return Ok(());
                }
                Some(difference) => first = first.or(Some(difference)),
            }
        }
        Err(format!(
            "after a power failure, {}",
            first.unwrap_or_default()
        ))
    }

    /// A fault makes a write fail, and what was durable before is there after a power failure.
    fn fail(&mut self, fault: Fault) -> Outcome {
        let mut history = History::new(5, 2, 120);
        for _ in 0..10 {
            let jobs = history.next_jobs(&self.model);
            self.write(jobs)?;
        }
        let disk = self.subject.disk().cloned();
        let disk = disk.ok_or("there is no simulated disk")?;
        let before = self.model.clone();
        disk.fail(fault);
        let jobs = history.next_jobs(&self.model);
        let mut done = jobs.clone();
        if run_jobs(self.store()?, &mut done).is_ok() {
            return Err(format!(
                "a write succeeds although the disk fails: {fault:?}"
            ));
        }
        self.close();
        disk.crash();
        self.model = before;
        self.reopen()?;
        self.settle(&jobs)
    }
}

fn failed_fsync<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    bench.fail(Fault::Sync)
}

fn full_disk<S: Subject>(bench: &mut Bench<S>) -> Outcome {
    bench.fail(Fault::Full)
}
