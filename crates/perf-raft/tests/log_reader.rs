//! Entries are read from a `SegmentLog` while it is written to: never a wrong one, and errors where the files are the cause.
#![cfg(all(unix, feature = "testing"))]

mod read_beside;

use perf_raft::eraftpb::Entry;
use perf_raft::log::testing::{Fault, SimDisk};
use perf_raft::log::{LogJob, SegmentLog, SegmentLogOptions, SharedLog, run_jobs};
use perf_raft::{GroupId, LogError, LogReader, LogStore};
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use tempfile::TempDir;

const GROUP: GroupId = GroupId(1);

/// Its payload says which one it is.
fn entry(group: GroupId, index: u64, term: u64) -> Entry {
    let mut data = format!("{} {index} {term} ", group.0).into_bytes();
    data.resize(data.len() + (index * 7 % 90) as usize, b'.');
    Entry {
        index,
        term,
        data: data.into(),
        ..Entry::default()
    }
}

fn append(group: GroupId, indices: std::ops::Range<u64>, term: u64) -> LogJob {
    let entries: Vec<Entry> = indices.map(|index| entry(group, index, term)).collect();
    LogJob {
        group,
        entries: entries.into(),
        ..LogJob::default()
    }
}

/// Entries from `first` on, that follow each other, each whole. Returns how many.
fn check(group: GroupId, first: u64, entries: &[Entry]) -> u64 {
    let mut term = 0;
    for (index, found) in (first..).zip(entries) {
        assert_eq!(found.index, index);
        assert!(found.term >= term, "terms of one moment grow");
        term = found.term;
        assert_eq!(*found, entry(group, index, term));
    }
    entries.len() as u64
}

/// A writer appends, overwrites, compacts and purges segments of 2 KiB, for three groups on one log, and three readers read all the time.
#[test]
fn what_is_read_beside_writes_is_never_wrong() {
    const WRITES: u64 = 800;
    let folder = TempDir::new().expect("a folder");
    let mut options = SegmentLogOptions::default();
    options.segment_bytes = 2048;
    let log = SegmentLog::open_with(folder.path(), &options).expect("a new log");
    let mut log = SharedLog::new(log);
    let groups = [GroupId(1), GroupId(2), GroupId(3)];
    // First and next index of each group: hints, which are outdated when they are used.
    let bounds: Vec<[AtomicU64; 2]> = groups.iter().map(|_| Default::default()).collect();
    let is_done = AtomicU64::new(0);
    thread::scope(|scope| {
        let readers: Vec<_> = groups
            .into_iter()
            .zip(&bounds)
            .map(|(group, bounds)| {
                let mut reader = log.reader().expect("it has one").expect("it has one");
                let is_done = &is_done;
                scope.spawn(move || {
                    let (mut read, mut reads) = (0, 0_u64);
                    while is_done.load(Ordering::Acquire) == 0 {
                        let first = bounds[0].load(Ordering::Acquire);
                        let next = bounds[1].load(Ordering::Acquire);
                        reads += 1;
                        let from = first + reads * 13 % (next - first).max(1);
                        let entries = reader.read(group, from, from + 40, 600);
                        let entries = entries.expect("the log is sound");
                        read += check(group, from, &entries);
                    }
                    read
                })
            })
            .collect();
        let mut random = 7_u64;
        let mut state = [(1_u64, 1_u64, 1_u64); 3];
        for write in 0..WRITES {
            let mut jobs = Vec::new();
            for (place, group) in groups.into_iter().enumerate() {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let (first, next, term) = &mut state[place];
                if random >> 60 == 3 && *next - *first > 5 {
                    *term += 1;
                    *next -= random >> 33 & 3;
                }
                jobs.push(append(group, *next..*next + 3, *term));
                *next += 3;
                // The last group lags far behind, so that its entries are moved.
                let kept = if place == 2 { 400 } else { 60 };
                if *next - *first > kept + 40 {
                    *first = *next - kept;
                    jobs.push(LogJob {
                        group,
                        compacted: Some((*first - 1, 1)),
                        ..LogJob::default()
                    });
                }
            }
            run_jobs(&mut log, &mut jobs).unwrap_or_else(|error| panic!("write {write}: {error}"));
            for (bounds, (first, next, _)) in bounds.iter().zip(state) {
                bounds[0].store(first, Ordering::Release);
                bounds[1].store(next, Ordering::Release);
            }
        }
        is_done.store(1, Ordering::Release);
        for reader in readers {
            let read = reader.join().expect("no wrong entry");
            println!("{read} entries read beside {WRITES} writes");
            assert!(read > 100, "only {read}");
        }
    });
    let count = fs::read_dir(folder.path()).expect("it is there").count();
    assert!(count < 100, "segments are purged: {count} files");
}

#[test]
fn any_step_of_a_writer_may_be_beside_any_step_of_a_reader() {
    let mut read = 0;
    for seed in 0..40 {
        read += read_beside::run(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
    println!("{read} entries read");
    assert!(read > 40 * 1_000, "only {read}");
}

/// A log with 40 entries of 2 jobs in each record.
fn written(log: &mut SegmentLog) -> Box<dyn LogReader> {
    for first in (1..40).step_by(4) {
        let mut jobs = [
            append(GROUP, first..first + 2, 1),
            append(GROUP, first + 2..first + 4, 1),
        ];
        run_jobs(log, &mut jobs).expect("it is written");
    }
    log.reader().expect("it has one").expect("it has one")
}

#[test]
fn damage_that_is_read_is_named_and_is_damage() {
    let folder = TempDir::new().expect("a folder");
    let mut log = SegmentLog::open(folder.path()).expect("a new log");
    let mut reader = written(&mut log);
    assert_eq!(
        check(
            GROUP,
            1,
            &reader.read(GROUP, 1, 99, u64::MAX).expect("sound")
        ),
        40
    );
    let segment = fs::read_dir(folder.path())
        .expect("it is there")
        .map(|entry| entry.expect("it is there").path())
        .find(|path| {
            path.extension()
                .is_some_and(|extension| extension == "segment")
        })
        .expect("there is one");
    let bytes = fs::read(&segment).expect("it can be read");
    let needle = b"1 21 1 ";
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle);
    let at = at.expect("entry 21 is there") as u64;
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&segment)
        .expect("it can be written");
    file.write_at(b"2", at).expect("it can be written");
    // Before and behind it all is well.
    assert_eq!(
        check(
            GROUP,
            1,
            &reader.read(GROUP, 1, 21, u64::MAX).expect("sound")
        ),
        20
    );
    assert_eq!(
        check(
            GROUP,
            25,
            &reader.read(GROUP, 25, 99, u64::MAX).expect("sound")
        ),
        16
    );
    for first in [1, 21, 24] {
        let error = reader
            .read(GROUP, first, 99, u64::MAX)
            .expect_err("it is damaged");
        assert!(error.is_damage(), "{error}");
        assert!(error.to_string().contains("offset"), "{error}");
    }
    // What is compacted cannot be damaged.
    let mut jobs = [LogJob {
        group: GROUP,
        compacted: Some((24, 1)),
        ..LogJob::default()
    }];
    run_jobs(&mut log, &mut jobs).expect("it is written");
    assert_eq!(reader.read(GROUP, 21, 99, u64::MAX), Ok(Vec::new()));
    assert_eq!(
        check(
            GROUP,
            25,
            &reader.read(GROUP, 25, 99, u64::MAX).expect("sound")
        ),
        16
    );
}

#[test]
fn a_failed_read_is_an_error_and_can_be_repeated() {
    let disk = SimDisk::new(3);
    let options = SegmentLogOptions::default();
    let mut log = SegmentLog::open_on(Arc::new(disk.clone()), "log", &options).expect("a new log");
    let mut reader = written(&mut log);
    disk.fail(Fault::Read);
    let error = reader
        .read(GROUP, 5, 9, u64::MAX)
        .expect_err("the disk fails");
    assert!(
        matches!(error, LogError::Io { .. }) && !error.is_damage(),
        "{error}"
    );
    assert_eq!(
        check(
            GROUP,
            5,
            &reader.read(GROUP, 5, 9, u64::MAX).expect("sound")
        ),
        4
    );
}
