//! The program `raft-log` on sound, torn and damaged logs.
#![cfg(all(feature = "cli", feature = "testing"))]

mod segments;

use perf_raft::LogError;
use perf_raft::log::testing::{History, Model, SimDisk};
use perf_raft::log::{SegmentLog, run_jobs};
use segments::{FOLDER, GROUPS, differs, open, options};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A log of several segments, with what it held after each write.
fn sample() -> (SimDisk, Vec<Model>) {
    sample_of(16)
}

/// After fewer writes nothing was moved yet: what was there before can be kept.
fn sample_of(writes: u64) -> (SimDisk, Vec<Model>) {
    let disk = SimDisk::new(9);
    let mut log = open(&disk, &options(1024)).expect("a new log");
    // In this one no later write takes away what a cut must go back to.
    let mut history = History::new(8, GROUPS, 24);
    let mut models = vec![Model::default()];
    for _ in 0..writes {
        let mut model = models.last().cloned().unwrap_or_default();
        let mut jobs = history.next_jobs(&model);
        run_jobs(&mut log, &mut jobs).expect("a sound disk");
        model.apply(&jobs);
        models.push(model);
    }
    drop(log);
    (disk, models)
}

fn segments_of(disk: &SimDisk) -> Vec<PathBuf> {
    let mut files = disk.files();
    files.retain(|path| path.extension().is_some_and(|end| end == "segment"));
    files
}

/// What the disk holds, in a real folder.
fn on_files(disk: &SimDisk) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    for path in disk.files() {
        let name = path.file_name().expect("a name");
        let bytes = disk.contents(&path).expect("it is there");
        fs::write(folder.path().join(name), bytes).expect("there is room");
    }
    folder
}

fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("it is there");
    let files = entries.map(|entry| entry.expect("readable").path());
    files
        .filter(|path| path.is_file() && !path.ends_with("LOCK"))
        .map(|path| (path.clone(), fs::read(&path).expect("readable")))
        .collect()
}

fn raft_log(arguments: &[&str], folder: &Path) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_raft-log"));
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .args(arguments)
        .arg(folder)
        .output()
        .expect("it can be started");
    let text = String::from_utf8([stdout, stderr].concat()).expect("it is text");
    (status.code().expect("it ended by itself"), text)
}

#[test]
fn a_sound_log_is_shown_and_left_as_it_is() {
    let (disk, _) = sample();
    let folder = on_files(&disk);
    let before = contents(folder.path());
    let (code, text) = raft_log(&["check"], folder.path());
    assert_eq!(
        (code, text.contains("sound: 3 groups")),
        (0, true),
        "{text}"
    );
    let (code, text) = raft_log(&["inspect"], folder.path());
    assert_eq!(code, 0, "{text}");
    for expected in ["group 1: entries ", "sealed", "node 1, incarnation "] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    let (code, text) = raft_log(&["dump"], folder.path());
    assert!(code == 0 && text.contains(", seal, "), "{text}");
    assert!(text.contains("group 2:"), "{text}");
    let (code, text) = raft_log(&["dump", "--group", "3"], folder.path());
    assert!(code == 0 && text.contains("group 3:"), "{text}");
    assert!(!text.contains("group 2:"), "{text}");
    let (code, text) = raft_log(&["repair", "--force"], folder.path());
    assert!(code == 0 && text.contains("nothing to repair"), "{text}");
    assert_eq!(contents(folder.path()), before);
}

#[test]
fn a_torn_log_is_sound() {
    let (disk, _) = sample();
    let newest = segments_of(&disk).pop().expect("there is one");
    let info = SegmentLog::inspect_on(&disk, FOLDER, true).expect("readable");
    let end = info.segments.last().map_or(0, |segment| segment.end) as usize;
    let mut bytes = disk.contents(&newest).expect("it is there");
    bytes[end - 3] ^= 1;
    disk.set_contents(&newest, bytes);
    let folder = on_files(&disk);
    let (code, text) = raft_log(&["check"], folder.path());
    assert_eq!(code, 0, "{text}");
}

#[test]
fn a_damaged_log_is_named_and_cut_only_by_force() {
    let (disk, models) = sample_of(8);
    let all = segments_of(&disk);
    assert!(all.len() > 2, "{all:?}");
    let damaged = &all[all.len() - 2];
    let mut bytes = disk.contents(damaged).expect("it is there");
    bytes[600] ^= 1;
    disk.set_contents(damaged, bytes);
    let folder = on_files(&disk);
    let before = contents(folder.path());
    let name = damaged.file_name().and_then(|name| name.to_str());
    let name = name.expect("it is text");
    for (arguments, expected) in [
        (vec!["check"], 1),
        (vec!["inspect"], 1),
        (vec!["dump"], 1),
        (vec!["repair"], 1),
    ] {
        let (code, text) = raft_log(&arguments, folder.path());
        assert_eq!(code, expected, "{arguments:?}: {text}");
        assert!(text.contains("DAMAGED") && text.contains(name), "{text}");
    }
    assert_eq!(contents(folder.path()), before);
    let (code, text) = raft_log(&["repair", "--force"], folder.path());
    assert!(code == 0 && text.contains("LOST"), "{text}");
    let kept = folder.path().join("damaged-1").join(name);
    assert_eq!(fs::read(kept).ok(), disk.contents(damaged));
    let (code, text) = raft_log(&["check"], folder.path());
    assert_eq!(code, 0, "{text}");
    let mut log = SegmentLog::open_with(folder.path(), &options(1024)).expect("it was repaired");
    let is_what_was = |model: &Model| differs(&mut log, model) == Ok(None);
    assert!(models.iter().any(is_what_was), "the log is none of before");
}

#[test]
fn what_cannot_be_told_has_a_code_of_its_own() {
    let folder = TempDir::new().expect("a temporary folder");
    let (code, text) = raft_log(&["check"], folder.path());
    assert!(code == 2 && text.contains("holds no log"), "{text}");
    let (code, text) = raft_log(&["check"], &folder.path().join("nowhere"));
    assert!(code == 2 && text.contains("listing failed"), "{text}");
    let open = SegmentLog::open(folder.path()).expect("a new log");
    let (code, text) = raft_log(&["repair", "--force"], folder.path());
    assert!(code == 2 && text.contains("in use"), "{text}");
    drop(open);
    let (code, text) = raft_log(&["destroy"], folder.path());
    assert!(code == 2 && text.contains("destroy"), "{text}");
}

/// Whatever byte is damaged: a repair leaves a log that was there at some time, or says that nothing can be kept.
#[test]
fn a_repair_never_makes_up_a_log() {
    let (disk, models) = sample();
    let (mut repaired, mut refused) = (0, 0);
    for path in segments_of(&disk) {
        let len = disk.contents(&path).map_or(0, |bytes| bytes.len());
        for at in (0..len).step_by(5) {
            let disk = disk.copy(1);
            let mut bytes = disk.contents(&path).expect("it is there");
            bytes[at] ^= 0x10;
            disk.set_contents(&path, bytes);
            match SegmentLog::repair_on(&disk, FOLDER, true) {
                Ok(None) => continue,
                Ok(Some(_)) => repaired += 1,
                Err(LogError::Unsupported { reason }) => {
                    assert!(reason.contains("nothing can be kept"), "{reason}");
                    refused += 1;
                    continue;
                }
                Err(error) => panic!("{at} of {path:?}: {error}"),
            }
            disk.crash();
            let mut log = open(&disk, &options(1024)).expect("it was repaired");
            let mut is_what_was = |model: &Model| differs(&mut log, model) == Ok(None);
            assert!(models.iter().any(&mut is_what_was), "{at} of {path:?}");
        }
    }
    assert!(repaired > 20 && refused > 20, "{repaired} {refused}");
}
