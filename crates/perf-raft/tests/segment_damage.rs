//! The segment log and everything that can happen to its files: bytes that flip, files that are cut, missing or empty, disks that fail.
#![cfg(all(feature = "cli", feature = "testing"))]

mod segments;

use perf_raft::log::testing::{Fault, History, Model, SimDisk};
use perf_raft::log::{LogJob, LogStore, SegmentLog, SegmentLogOptions, run_jobs};
use perf_raft::{GroupId, LogError};
use segments::{FOLDER, differs, open, options};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where records begin in a segment, and the bytes of its header.
const RECORDS_START: usize = 512;
const HEADER_BYTES: usize = 64;

/// A log after some writes, with what it held before the last one.
struct Sample {
    disk: SimDisk,
    options: SegmentLogOptions,
    before: Model,
    after: Model,
    /// The last write's place.
    last: (PathBuf, usize, usize),
}

fn sample(seed: u64, writes: u64) -> Sample {
    let disk = SimDisk::new(seed);
    let options = options(1024);
    let mut log = open(&disk, &options).expect("a new log");
    let mut history = History::new(seed, 2, 24);
    let (mut before, mut after) = (Model::default(), Model::default());
    let mut count = 0;
    loop {
        let mut jobs = history.next_jobs(&after);
        let segment = segments_of(&disk).pop();
        let old = segment.as_ref().and_then(|path| disk.contents(path));
        run_jobs(&mut log, &mut jobs).expect("a sound disk");
        before.clone_from(&after);
        after.apply(&jobs);
        count += 1;
        // The last one shall not begin a segment, nor name a snapshot, so that it is one place.
        let has_snapshot = jobs.iter().any(|job| job.snapshot.is_some());
        if count < writes || has_snapshot || segments_of(&disk).pop() != segment {
            continue;
        }
        let (Some(path), Some(old)) = (segment, old) else {
            continue;
        };
        let new = disk.contents(&path).expect("it is there");
        let changed = |place: &usize| old[*place] != new[*place];
        let start = (0..new.len()).find(changed).expect("it was written") / 8 * 8;
        // Nor may what counts of an old segment be moved behind it.
        let payload = new[start + 4..start + 8].try_into().expect("four bytes");
        let record = (32 + u32::from_le_bytes(payload) as usize).next_multiple_of(8);
        if (start + record..new.len()).any(|place| changed(&place)) {
            continue;
        }
        drop(log);
        let end = written(&disk, &path);
        return Sample {
            disk,
            options,
            before,
            after,
            last: (path, start, end),
        };
    }
}

fn segments_of(disk: &SimDisk) -> Vec<PathBuf> {
    let mut files = disk.files();
    files.retain(|path| path.extension().is_some_and(|end| end == "segment"));
    files
}

fn all_contents(disk: &SimDisk) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let files = disk.files().into_iter();
    files
        .map(|path| (path.clone(), disk.contents(&path)))
        .collect()
}

#[derive(Debug, PartialEq)]
enum Outcome {
    /// All of it is there.
    Whole,
    /// All but the last write.
    WithoutLast,
    /// Damage was found, in this file and at this offset.
    Refused(PathBuf, u64),
}

impl Sample {
    /// What becomes of a copy of the disk that was damaged. Anything but the three outcomes is a failure.
    fn outcome(&self, damage: impl FnOnce(&SimDisk)) -> Outcome {
        let disk = self.disk.copy(1);
        disk.restart();
        damage(&disk);
        let files = all_contents(&disk);
        let compared = open(&disk, &self.options).and_then(|mut log| {
            let whole = differs(&mut log, &self.after)?;
            Ok((whole, differs(&mut log, &self.before)?))
        });
        match compared {
            Ok((None, _)) => Outcome::Whole,
            Ok((_, None)) => Outcome::WithoutLast,
            Ok((Some(difference), _)) => panic!("a wrong state: {difference}"),
            Err(LogError::Corrupted { file, offset, .. }) => {
                let is_snapshot = file.extension().is_some_and(|end| end == "snapshot");
                assert!(
                    is_snapshot || all_contents(&disk) == files,
                    "a refused log was changed"
                );
                Outcome::Refused(file, offset)
            }
            Err(error) => panic!("another error: {error}"),
        }
    }

    fn flipped(&self, path: &Path, at: usize) -> Outcome {
        self.outcome(|disk| {
            let mut bytes = disk.contents(path).expect("it is there");
            bytes[at] ^= 1 << (at % 8);
            disk.set_contents(path, bytes);
        })
    }
}

/// Where the records of a segment end, its seal included.
fn written(disk: &SimDisk, path: &Path) -> usize {
    let info = SegmentLog::inspect_on(disk, FOLDER, true).expect("it is readable");
    assert_eq!(info.damage, None);
    let mut segments = info.segments.iter();
    let segment = segments.find(|segment| segment.file == *path);
    segment.map_or(0, |segment| {
        segment.end as usize + if segment.is_sealed { 32 } else { 0 }
    })
}

#[test]
fn every_byte_that_flips_is_found_where_it_counts() {
    let sample = sample(3, 14);
    let all = segments_of(&sample.disk);
    assert!(all.len() > 2, "{all:?}");
    for path in &all {
        let bytes = sample.disk.contents(path).expect("it is there");
        let end = written(&sample.disk, path);
        let mut harmless = 0;
        for (at, byte) in bytes.iter().enumerate() {
            let is_last = *path == sample.last.0 && (sample.last.1..sample.last.2).contains(&at);
            match sample.flipped(path, at) {
                Outcome::Refused(file, offset) => {
                    assert!(
                        file == *path && offset as usize <= at,
                        "{file:?} at {offset}"
                    );
                    assert!(!is_last && at < end, "{at} of {path:?} does not count");
                }
                Outcome::WithoutLast => assert!(is_last, "{at} of {path:?}: {:?}", sample.last),
                Outcome::Whole if at < HEADER_BYTES => {
                    panic!("a header's byte {at} does not count")
                }
                Outcome::Whole if (RECORDS_START..end).contains(&at) => {
                    assert_eq!(*byte, 0, "{at} of {path:?} is no padding");
                    harmless += 1;
                }
                Outcome::Whole => {}
            }
        }
        assert!(
            harmless < 7 * 16,
            "{harmless} bytes of records do not count"
        );
    }
}

/// Segments that were used before hold old records behind the new ones.
#[test]
fn flipped_bytes_of_recycled_segments_never_bring_back_what_is_old() {
    let sample = sample(5, 120);
    let mut refused = 0;
    for path in segments_of(&sample.disk) {
        let len = sample.disk.contents(&path).map_or(0, |bytes| bytes.len());
        for at in (0..len).step_by(3) {
            let is_last = path == sample.last.0 && (sample.last.1..sample.last.2).contains(&at);
            match sample.flipped(&path, at) {
                Outcome::Refused(file, _) => {
                    assert_eq!(file, path);
                    refused += 1;
                }
                Outcome::WithoutLast => assert!(is_last, "{at} of {path:?}"),
                Outcome::Whole => {}
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn a_file_that_is_cut_or_missing_or_empty_is_found() {
    let sample = sample(3, 14);
    for path in segments_of(&sample.disk) {
        let bytes = sample.disk.contents(&path).expect("it is there");
        let is_refused = |outcome: Outcome, what: &str| {
            let is_named = matches!(&outcome, Outcome::Refused(file, 0) if *file == path);
            assert!(is_named, "{path:?} {what}: {outcome:?}");
        };
        for len in 0..bytes.len() {
            let cut = bytes[..len].to_vec();
            is_refused(
                sample.outcome(|disk| disk.set_contents(&path, cut)),
                "is cut",
            );
        }
        let zeros = vec![0; bytes.len()];
        is_refused(
            sample.outcome(|disk| disk.set_contents(&path, zeros)),
            "is zero-filled",
        );
        // Without the newest segment, the one before may name others that were purged since.
        let missing = sample.outcome(|disk| disk.delete(&path));
        let is_newest = path == sample.last.0;
        assert!(
            matches!(&missing, Outcome::Refused(file, 0) if is_newest || *file == path),
            "{path:?} is missing: {missing:?}"
        );
    }
    let all = sample.outcome(|disk| {
        for path in segments_of(disk) {
            disk.delete(&path);
        }
    });
    assert_eq!(all, Outcome::Refused(FOLDER.into(), 0));
}

#[test]
fn damaged_snapshots_and_marks_are_told_apart() {
    let sample = sample(3, 14);
    let mut snapshots = 0;
    for path in sample.disk.files() {
        let end = path.extension().and_then(|end| end.to_str());
        let len = sample.disk.contents(&path).map_or(0, |bytes| bytes.len());
        match end {
            Some("snapshot") if len > 0 => {
                snapshots += 1;
                let refused = Outcome::Refused(path.clone(), 0);
                assert_eq!(sample.flipped(&path, len / 2), refused);
                let cut = vec![0; len - 1];
                assert_eq!(
                    sample.outcome(|disk| disk.set_contents(&path, cut)),
                    refused
                );
                assert_eq!(sample.outcome(|disk| disk.delete(&path)), refused);
            }
            Some("id") => {
                assert_eq!(sample.flipped(&path, 3), Outcome::Whole);
                assert_eq!(sample.outcome(|disk| disk.delete(&path)), Outcome::Whole);
            }
            _ => {}
        }
    }
    assert!(snapshots > 0, "the sample has no snapshot");
}

/// A log that is not used stays as it is, however often it is opened.
#[test]
fn opening_changes_nothing() {
    let sample = sample(3, 14);
    assert_eq!(sample.outcome(|_| ()), Outcome::Whole);
    sample.disk.restart();
    drop(open(&sample.disk, &sample.options).expect("a sound log"));
    let files = all_contents(&sample.disk);
    for _ in 0..3 {
        drop(open(&sample.disk, &sample.options).expect("a sound log"));
    }
    assert_eq!(all_contents(&sample.disk), files);
}

/// The power fails before each operation of a small history; each time the disk keeps other parts of what was not synced.
#[test]
fn every_crash_point_of_a_small_history_is_survived() {
    let options = options(1024);
    let writes: Vec<Vec<LogJob>> = {
        let mut history = History::new(11, 2, 60);
        let mut model = Model::default();
        let next = |_| {
            let jobs = history.next_jobs(&model);
            model.apply(&jobs);
            jobs
        };
        (0..40).map(next).collect()
    };
    let run = |disk: &SimDisk| {
        let mut done = 0;
        if let Ok(mut log) = open(disk, &options) {
            let is_done = |jobs: &&Vec<LogJob>| run_jobs(&mut log, &mut jobs.to_vec()).is_ok();
            done = writes.iter().take_while(is_done).count();
        }
        done
    };
    let whole = SimDisk::new(1);
    assert_eq!(run(&whole), writes.len());
    let operations = whole.operations();
    assert!(operations > 150, "{operations}");
    for crash in 0..operations {
        let disk = SimDisk::new(crash);
        disk.crash_after(crash);
        let done = run(&disk);
        for seed in 0..12 {
            let image = disk.copy(seed);
            image.crash();
            let mut log = open(&image, &options)
                .unwrap_or_else(|error| panic!("operation {crash}, image {seed}: {error}"));
            let mut model = Model::default();
            writes[..done].iter().for_each(|jobs| model.apply(jobs));
            let mut difference = differs(&mut log, &model).expect("readable");
            if let (Some(_), Some(jobs)) = (&difference, writes.get(done)) {
                // The write that was under way is there or not.
                model.apply(jobs);
                difference = differs(&mut log, &model).expect("readable");
            }
            assert_eq!(difference, None, "operation {crash}, image {seed}");
        }
    }
}

fn write(log: &mut SegmentLog, seed: u64) -> Result<(), LogError> {
    let mut jobs = History::new(seed, 1, 64).next_jobs(&Model::default());
    run_jobs(log, &mut jobs).map(|_| ())
}

#[test]
fn errors_say_what_failed_and_stay() {
    let cases = [
        (Fault::Sync, "fsync failed"),
        (Fault::SyncFolder, "fsync failed"),
        (Fault::Full, "reserving room for a segment failed"),
    ];
    for (fault, expected) in cases {
        let disk = SimDisk::new(1);
        let mut log = open(&disk, &options(1024)).expect("a new log");
        disk.fail(fault);
        let error = write(&mut log, 1).expect_err("the disk failed");
        assert!(error.to_string().contains(expected), "{fault:?}: {error}");
        assert_eq!(write(&mut log, 2), Err(error), "{fault:?}");
    }
    let disk = SimDisk::new(1);
    let mut log = open(&disk, &options(1024)).expect("a new log");
    disk.fail(Fault::ShortWrite);
    assert_eq!(write(&mut log, 1), Ok(()), "a short write is gone on with");
}

#[test]
fn a_log_that_cannot_be_read_or_written_is_not_opened() {
    let sample = sample(3, 14);
    sample.disk.restart();
    sample.disk.fail(Fault::Read);
    let error = open(&sample.disk, &sample.options).expect_err("it cannot be read");
    assert!(
        matches!(
            error,
            LogError::Io {
                action: "reading",
                ..
            }
        ),
        "{error}"
    );
    sample.disk.set_read_only(true);
    let error = open(&sample.disk, &sample.options).expect_err("it cannot be written");
    assert!(matches!(error, LogError::Io { .. }), "{error}");
    sample.disk.set_read_only(false);
    let first = open(&sample.disk, &sample.options).expect("a sound log");
    let error = open(&sample.disk, &sample.options).expect_err("it is open");
    assert_eq!(
        error,
        LogError::InUse {
            folder: FOLDER.into()
        }
    );
    drop(first);
    assert!(open(&sample.disk, &sample.options).is_ok());
}

#[test]
fn a_damaged_log_is_set_aside_and_a_new_one_begins() {
    let sample = sample(3, 14);
    let disk = sample.disk.copy(1);
    disk.restart();
    let damaged = segments_of(&disk).remove(0);
    disk.set_contents(&damaged, vec![7; 100]);
    let error = open(&disk, &sample.options).expect_err("it is damaged");
    assert!(error.is_damage(), "{error}");
    let kept: Vec<Option<Vec<u8>>> = segments_of(&disk)
        .iter()
        .map(|path| disk.contents(path))
        .collect();
    let aside = SegmentLog::set_aside_on(&disk, FOLDER).expect("it can be moved");
    assert_eq!(aside, Path::new(FOLDER).join("damaged-1"));
    disk.crash();
    let moved: Vec<Option<Vec<u8>>> = segments_of(&disk)
        .iter()
        .map(|path| disk.contents(path))
        .collect();
    assert_eq!(moved, kept);
    let mut log = open(&disk, &sample.options).expect("a new log");
    assert_eq!(log.groups(), Ok(Vec::new()));
    assert_eq!(write(&mut log, 1), Ok(()));
    drop(log);
    let aside = SegmentLog::set_aside_on(&disk, FOLDER).expect("it can be moved");
    assert_eq!(aside, Path::new(FOLDER).join("damaged-2"));
}

#[test]
fn jobs_that_no_log_can_hold_are_refused() {
    let append = |first: u64, indices: &[u64]| {
        let entries = indices.iter().map(|index| raft::eraftpb::Entry {
            index: first + index,
            term: 1,
            ..Default::default()
        });
        LogJob {
            group: GroupId(4),
            entries: entries.collect::<Vec<_>>().into(),
            ..LogJob::default()
        }
    };
    let compacted = LogJob {
        group: GroupId(4),
        compacted: Some((2, 1)),
        ..LogJob::default()
    };
    let cases = [
        (vec![append(2, &[0])], "entries from 2 on, where 1 to 1"),
        (vec![append(1, &[0, 2])], "the entry 3 in the place of 2"),
        (
            vec![append(1, &[0, 1, 2]), compacted, append(2, &[0])],
            "entries from 2 on, where 3 to 4",
        ),
    ];
    for (jobs, expected) in cases {
        let mut log = open(&SimDisk::new(1), &options(1024)).expect("a new log");
        let error = log.write(&jobs, true).expect_err("it has a gap");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = open(&SimDisk::new(1), &options(1000)).expect_err("too small");
    assert!(error.to_string().contains("at least 1024"), "{error}");
}
