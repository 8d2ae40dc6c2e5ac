//! A process that writes a segment log on real files and is killed again and again.
#![cfg(all(unix, feature = "cli"))]

use perf_raft::log::{
    DiskUse, LogJob, LogState, LogStore, SegmentLog, SegmentLogOptions, StoredSnapshot, run_jobs,
};
use perf_raft::{GroupId, Identity};
use raft::eraftpb::Entry;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

const CHILD_FOLDER: &str = "PERF_RAFT_SEGMENT_FOLDER";
const SEGMENT_BYTES: u64 = 64 * 1024;
/// Compacts often.
const QUICK: GroupId = GroupId(1);
/// Never compacts.
const SLOW: GroupId = GroupId(2);

fn open(folder: &Path) -> SegmentLog {
    let mut options = SegmentLogOptions::default();
    options.segment_bytes = SEGMENT_BYTES;
    SegmentLog::open_with(folder, &options).expect("a sound log")
}

fn load(log: &mut SegmentLog, group: GroupId) -> LogState {
    let state = log.load(group).expect("a sound log");
    state.unwrap_or_default()
}

fn last_index(state: &LogState) -> u64 {
    state.compacted.0 + state.entries.len() as u64
}

fn entry(index: u64) -> Entry {
    Entry {
        index,
        term: 1,
        data: vec![index as u8; (index * 37 % 3000) as usize].into(),
        ..Entry::default()
    }
}

/// The jobs that bring the quick group to this index; the slow one gets an entry now and then.
fn jobs(index: u64, slow: &mut u64) -> Vec<LogJob> {
    let append = |group, index| LogJob {
        group,
        entries: vec![entry(index)].into(),
        identity: Some(Identity {
            node: 1,
            incarnation: 5,
        }),
        ..LogJob::default()
    };
    let mut jobs = vec![append(QUICK, index)];
    if index.is_multiple_of(100) {
        *slow += 1;
        jobs.push(append(SLOW, *slow));
    }
    if index.is_multiple_of(32) {
        let mut snapshot = StoredSnapshot {
            data: vec![index as u8; 5000].into(),
            ..StoredSnapshot::default()
        };
        (snapshot.metadata.index, snapshot.metadata.term) = (index, 1);
        jobs.push(LogJob {
            group: QUICK,
            snapshot: Some(snapshot),
            compacted: Some((index - 8, 1)),
            ..LogJob::default()
        });
    }
    jobs
}

/// Runs in the child: the test below starts this one.
#[test]
fn writer_that_is_killed() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else {
        return;
    };
    let mut log = open(folder.as_ref());
    let mut index = last_index(&load(&mut log, QUICK));
    let mut slow = last_index(&load(&mut log, SLOW));
    loop {
        index += 1;
        run_jobs(&mut log, &mut jobs(index, &mut slow)).expect("a sound disk");
        println!("durable {index} {slow}");
    }
}

/// Bytes of all segments and spare files.
fn bytes_of(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).expect("it is there");
    let files = files.map(|file| file.expect("readable"));
    files
        .filter(|file| {
            let name = file.file_name().into_string().unwrap_or_default();
            name.ends_with(".segment") || name.ends_with(".spare")
        })
        .map(|file| file.metadata().expect("it is there").len())
        .sum()
}

#[test]
fn a_log_whose_process_is_killed_loses_nothing_durable() {
    let folder = TempDir::new().expect("a temporary folder");
    let (mut durable, mut slow) = (0, 0);
    let mut most = 0;
    for round in 0..16_u64 {
        let mut child = Command::new(std::env::current_exe().expect("it runs"))
            .args(["--exact", "writer_that_is_killed", "--nocapture"])
            .env(CHILD_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let written = lines.map_while(Result::ok).filter_map(|line| {
            let (_, numbers) = line.split_once("durable ")?;
            let (index, slow) = numbers.split_once(' ')?;
            Some((index.parse::<u64>().ok()?, slow.parse::<u64>().ok()?))
        });
        let count = 90 + usize::try_from(round * 37 % 70).expect("small");
        (durable, slow) = written.take(count).last().unwrap_or((durable, slow));
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        let info = SegmentLog::inspect(folder.path(), true).expect("readable");
        assert_eq!(info.damage, None, "round {round}");
        let mut log = open(folder.path());
        for (group, least) in [(QUICK, durable), (SLOW, slow)] {
            let state = load(&mut log, group);
            assert!(last_index(&state) >= least, "{group:?} in round {round}");
            for (index, found) in (state.compacted.0 + 1..).zip(&state.entries) {
                assert_eq!(*found, entry(index), "round {round}");
            }
            if let Some(snapshot) = state.snapshot {
                let index = snapshot.metadata.index;
                assert_eq!(snapshot.data, vec![index as u8; 5000], "round {round}");
            }
        }
        let DiskUse { live_bytes, .. } = log.disk_use();
        let bytes = bytes_of(folder.path());
        // A process that was killed may leave one that it was making, and purged ones that it had not removed.
        let allowed = 2 * live_bytes + 11 * SEGMENT_BYTES;
        assert!(
            bytes <= allowed,
            "{bytes} bytes for {live_bytes} in round {round}"
        );
        most = most.max(bytes);
    }
    let written: u64 = (1..=durable).map(|index| index * 37 % 3000).sum();
    assert!(durable > 1000 && slow > 8, "{durable} {slow}");
    assert!(
        most < written / 2,
        "{most} of {written}: nothing was purged"
    );
}
