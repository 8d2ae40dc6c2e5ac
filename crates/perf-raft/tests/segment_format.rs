//! The promised format: the bytes of version 1, written and read.
//!
//! The files in `tests/golden` never change. A new version gets new ones, and the old ones stay readable.
#![cfg(feature = "testing")]

mod segments;

use perf_raft::log::testing::{Model, SimDisk};
use perf_raft::log::{LogJob, LogStore, StoredSnapshot};
use perf_raft::{GroupId, Identity, LogError};
use raft::eraftpb::{Entry, EntryType, HardState};
use segments::{FOLDER, GROUPS, differs, open, options};
use std::path::{Path, PathBuf};

/// Names of the files of version 1, and what they hold in hexadecimal.
const VERSION_1: [(&str, &str); 4] = [
    (
        "0000000000000001.segment",
        include_str!("golden/v1-0000000000000001.segment.hex"),
    ),
    (
        "0000000000000002.segment",
        include_str!("golden/v1-0000000000000002.segment.hex"),
    ),
    (
        "0000000000000003.segment",
        include_str!("golden/v1-0000000000000003.segment.hex"),
    ),
    (
        "0000000000000007-0000000000000001.snapshot",
        include_str!("golden/v1-0000000000000007-0000000000000001.snapshot.hex"),
    ),
];

/// Bytes from hexadecimal text; a line `* N` stands for N zeros.
fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines() {
        if let Some(zeros) = line.strip_prefix("* ") {
            let zeros: usize = zeros.parse().expect("a number");
            bytes.resize(bytes.len() + zeros, 0);
            continue;
        }
        let digit = |place: usize| u8::from_str_radix(&line[place..place + 2], 16);
        let line = (0..line.len())
            .step_by(2)
            .map(|place| digit(place).expect("hexadecimal"));
        bytes.extend(line);
    }
    bytes
}

/// The same the other way.
fn text(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut zeros = 0;
    for line in bytes.chunks(32) {
        if line.iter().all(|byte| *byte == 0) {
            zeros += line.len();
            continue;
        }
        if zeros > 0 {
            text += &format!("* {zeros}\n");
            zeros = 0;
        }
        text.extend(line.iter().map(|byte| format!("{byte:02x}")));
        text.push('\n');
    }
    if zeros > 0 {
        text += &format!("* {zeros}\n");
    }
    text
}

fn entry(index: u64, kind: EntryType, len: usize) -> Entry {
    let mut entry = Entry {
        index,
        term: 0x0102_0304,
        data: vec![index as u8; len].into(),
        sync_log: index == 42,
        ..Entry::default()
    };
    entry.set_entry_type(kind);
    if kind == EntryType::EntryConfChangeV2 {
        entry.context = b"who joins"[..].into();
    }
    entry
}

/// Each part of a job, alone and with others, in three segments.
fn writes() -> Vec<Vec<LogJob>> {
    let mut snapshot = StoredSnapshot {
        data: b"the state of the machine"[..].into(),
        ..StoredSnapshot::default()
    };
    snapshot.members.founders = vec![1, 2, 3];
    (snapshot.metadata.index, snapshot.metadata.term) = (40, 3);
    snapshot.metadata.mut_conf_state().voters = vec![1, 2, 3];
    let job = LogJob {
        group: GroupId(7),
        ..LogJob::default()
    };
    let beginning = LogJob {
        snapshot: Some(snapshot),
        replaces_log: true,
        hard_state: Some(HardState {
            term: 3,
            vote: 2,
            commit: 40,
            ..HardState::default()
        }),
        identity: Some(Identity {
            node: 2,
            incarnation: 0x1122_3344_5566_7788,
        }),
        ..job.clone()
    };
    let kinds = [
        entry(41, EntryType::EntryNormal, 5),
        entry(42, EntryType::EntryConfChange, 1),
        entry(43, EntryType::EntryConfChangeV2, 0),
    ];
    let append = LogJob {
        entries: kinds.to_vec().into(),
        ..job.clone()
    };
    let of_another_group = LogJob {
        group: GroupId(u64::MAX),
        entries: vec![entry(1, EntryType::EntryNormal, 300)].into(),
        ..job.clone()
    };
    let last = LogJob {
        compacted: Some((41, 0x0102_0304)),
        entries: vec![entry(43, EntryType::EntryNormal, 300)].into(),
        ..job
    };
    vec![vec![beginning], vec![append, of_another_group], vec![last]]
}

fn model() -> Model {
    let mut model = Model::default();
    writes().iter().for_each(|jobs| model.apply(jobs));
    model
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

#[test]
fn version_1_is_written_as_promised() {
    let disk = SimDisk::new(1);
    let mut log = open(&disk, &options(1024)).expect("a new log");
    for jobs in writes() {
        for job in &jobs {
            if let Some(snapshot) = &job.snapshot {
                log.save_snapshot(job.group, snapshot)
                    .expect("a sound disk");
            }
        }
        log.write(&jobs, true).expect("a sound disk");
    }
    for (name, expected) in VERSION_1 {
        let written = disk.contents(&path(name)).expect("it is there");
        assert_eq!(text(&written), expected, "{name}");
    }
}

#[test]
fn version_1_is_read() {
    let disk = SimDisk::new(1);
    for (name, contents) in VERSION_1 {
        disk.set_contents(&path(name), bytes(contents));
    }
    let mut log = open(&disk, &options(1024)).expect("a sound log");
    assert_eq!(differs(&mut log, &model()), Ok(None));
    assert_eq!(log.load(GroupId(GROUPS)), Ok(None));
}

#[test]
fn a_newer_version_is_refused() {
    let disk = SimDisk::new(1);
    for (name, contents) in VERSION_1 {
        let mut contents = bytes(contents);
        if name.ends_with(".segment") {
            contents[8] = 2;
            let crc = crc32c::crc32c(&contents[..60]);
            contents[60..64].copy_from_slice(&crc.to_le_bytes());
        }
        disk.set_contents(&path(name), contents);
    }
    let error = open(&disk, &options(1024)).expect_err("it is newer");
    assert_eq!(
        error,
        LogError::Version {
            file: path("0000000000000003.segment"),
            version: 2,
            known: 1
        }
    );
    assert!(!error.is_damage());
}
