//! The log on disk: what it keeps, and what it does on disks that fail.
#![cfg(feature = "durable")]

mod faulty;

use bytes::Bytes;
use faulty::{Fault, FaultyFileSystem};
use perf_raft::log::{LogJob, LogState, LogStore, StoredSnapshot, run_jobs};
use perf_raft::{EngineLog, EngineLogOptions, GroupId, LogError};
use proptest::prelude::*;
use raft::eraftpb::{Entry, HardState};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const GROUP: GroupId = GroupId(9);

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    range
        .map(|index| Entry {
            index,
            term,
            data: Bytes::from(format!("entry {index} of term {term}")),
            ..Default::default()
        })
        .collect()
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState {
        term,
        vote,
        commit,
        ..Default::default()
    }
}

fn snapshot(index: u64, term: u64) -> StoredSnapshot {
    let mut snapshot = StoredSnapshot {
        data: Bytes::from(format!("state at {index}")),
        ..Default::default()
    };
    (snapshot.metadata.index, snapshot.metadata.term) = (index, term);
    snapshot.metadata.mut_conf_state().voters = vec![1, 2, 3];
    snapshot
}

fn append(entries: Vec<Entry>) -> LogJob {
    let term = entries.last().map_or(0, |entry| entry.term);
    LogJob {
        group: GROUP,
        entries: entries.into(),
        hard_state: Some(hard_state(term, 2, 1)),
        ..Default::default()
    }
}

fn install(index: u64, term: u64) -> LogJob {
    LogJob {
        group: GROUP,
        snapshot: Some(snapshot(index, term)),
        replaces_log: true,
        ..Default::default()
    }
}

fn open(folder: &Path) -> Result<EngineLog, LogError> {
    EngineLog::open(folder)
}

fn load(folder: &Path) -> LogState {
    open(folder)
        .expect("a sound log")
        .load(GROUP)
        .expect("a sound log")
        .unwrap_or_default()
}

/// The one file of the log.
fn log_file(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder)
        .expect("it is there")
        .map(|entry| entry.expect("readable").path());
    let mut logs: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|end| end == "raftlog"))
        .collect();
    logs.sort();
    logs.pop().expect("there is one")
}

#[derive(Clone, Debug)]
enum Step {
    Append { back: u64, count: u64 },
    Install(u64),
    Save(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u64..4, 1_u64..6).prop_map(|(back, count)| Step::Append { back, count }),
        1 => (1_u64..9).prop_map(Step::Install),
        2 => (0_u64..5).prop_map(Step::Save),
        2 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any appends, overwritten tails, snapshots and compactions: what is read after opening is what the plain model holds.
    #[test]
    fn it_is_the_log_of_the_model(steps in prop::collection::vec(step(), 1..25)) {
        let folder = TempDir::new().expect("a temporary folder");
        let mut model = LogState::default();
        let mut log = open(folder.path()).expect("a fresh folder");
        let mut term = 1;
        for step in steps {
            let last = model.compacted.0 + model.entries.len() as u64;
            let job = match step {
                Step::Append { back, count } => {
                    term += u64::from(back > 0);
                    let first = (last + 1 - back.min(model.entries.len() as u64)).max(model.compacted.0 + 1);
                    append(entries(first..=first + count - 1, term))
                }
                Step::Install(ahead) => install(last + ahead, term),
                Step::Save(behind) if !model.entries.is_empty() => {
                    let index = (last - behind.min(model.entries.len() as u64 - 1)).max(model.compacted.0 + 1);
                    let of = model.entries[(index - model.compacted.0 - 1) as usize].term;
                    let saved = LogJob { group: GROUP, snapshot: Some(snapshot(index, of)), ..Default::default() };
                    run_jobs(&mut log, &mut [saved.clone()]).expect("a sound disk");
                    model.apply(&saved);
                    LogJob { group: GROUP, compacted: Some((index, of)), ..Default::default() }
                }
                Step::Save(_) => continue,
                Step::Reopen => {
                    drop(log);
                    log = open(folder.path()).expect("a sound log");
                    prop_assert_eq!(log.load(GROUP).expect("a sound log").unwrap_or_default(), model.clone());
                    continue;
                }
            };
            run_jobs(&mut log, &mut [job.clone()]).expect("a sound disk");
            model.apply(&job);
        }
        drop(log);
        prop_assert_eq!(load(folder.path()), model);
    }
}

#[test]
fn groups_share_a_log_without_seeing_each_other() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut log = open(folder.path()).expect("a fresh folder");
    let other = LogJob {
        group: GroupId(10),
        ..append(entries(1..=2, 1))
    };
    run_jobs(&mut log, &mut [append(entries(1..=3, 1)), other]).expect("a sound disk");
    drop(log);
    let mut log = open(folder.path()).expect("a sound log");
    let count = |log: &mut EngineLog, group| {
        log.load(group)
            .expect("sound")
            .map(|state| state.entries.len())
    };
    assert_eq!(count(&mut log, GROUP), Some(3));
    assert_eq!(count(&mut log, GroupId(10)), Some(2));
    assert_eq!(count(&mut log, GroupId(11)), None);
}

/// Logs of the same shape and other contents, used by one thread, as when a process has several nodes or starts one again.
#[test]
fn logs_of_one_thread_keep_to_their_own_entries() {
    let folders = [(); 2].map(|()| TempDir::new().expect("a temporary folder"));
    for (folder, term) in folders.iter().zip([1, 2]) {
        let mut log = open(folder.path()).expect("a fresh folder");
        run_jobs(&mut log, &mut [append(entries(1..=3, term))]).expect("a sound disk");
    }
    for (folder, term) in folders.iter().zip([1, 2]) {
        assert_eq!(load(folder.path()).entries, entries(1..=3, term));
    }
}

#[test]
fn what_took_the_place_of_a_tail_is_read_and_not_the_tail() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut log = open(folder.path()).expect("a fresh folder");
    let before = fs::read(log_file(folder.path())).expect("readable");
    for term in [2, 3] {
        drop(log);
        fs::write(log_file(folder.path()), &before).expect("writable");
        log = open(folder.path()).expect("a sound log");
        run_jobs(&mut log, &mut [append(entries(1..=3, term))]).expect("a sound disk");
        let state = log.load(GROUP).expect("a sound log").expect("it is there");
        assert_eq!(state.entries, entries(1..=3, term));
    }
}

#[test]
fn logs_of_one_thread_move_their_own_entries_to_new_files() {
    let mut options = EngineLogOptions::default();
    (options.file_bytes, options.purge_bytes) = (4096, 4096);
    let folders = [(); 2].map(|()| TempDir::new().expect("a temporary folder"));
    let open = |folder: &TempDir| EngineLog::open_with(folder.path(), &options);
    let mut logs = folders
        .each_ref()
        .map(|folder| open(folder).expect("a fresh folder"));
    let quiet = GroupId(10);
    for (log, term) in logs.iter_mut().zip([1, 2]) {
        let few = LogJob {
            group: quiet,
            ..append(entries(1..=3, term))
        };
        run_jobs(log, &mut [few]).expect("a sound disk");
    }
    for round in 0..64_u64 {
        for (log, term) in logs.iter_mut().zip([1, 2]) {
            let first = 1 + round * 8;
            let compact = LogJob {
                group: GROUP,
                compacted: Some((first + 6, term)),
                ..Default::default()
            };
            let mut jobs = [append(entries(first..=first + 7, term)), compact];
            run_jobs(log, &mut jobs).expect("a sound disk");
        }
    }
    drop(logs);
    for (folder, term) in folders.iter().zip([1, 2]) {
        let mut log = open(folder).expect("a sound log");
        let state = log.load(quiet).expect("a sound log").expect("it is there");
        assert_eq!(state.entries, entries(1..=3, term));
    }
}

/// Two writes; the last one's end is cut off at every place: the first is always there.
#[test]
fn a_torn_tail_is_cut_wherever_it_was_torn() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut log = open(folder.path()).expect("a fresh folder");
    run_jobs(&mut log, &mut [append(entries(1..=3, 1))]).expect("a sound disk");
    drop(log);
    let before = fs::read(log_file(folder.path())).expect("readable");
    let mut log = open(folder.path()).expect("a sound log");
    run_jobs(&mut log, &mut [append(entries(4..=6, 1))]).expect("a sound disk");
    drop(log);
    let after = fs::read(log_file(folder.path())).expect("readable");
    assert!(after.starts_with(&before) && after.len() > before.len());
    for len in before.len()..after.len() {
        fs::write(log_file(folder.path()), &after[..len]).expect("writable");
        assert_eq!(
            load(folder.path()).entries,
            entries(1..=3, 1),
            "torn at {len}"
        );
        // Some of its pages may be there and others not.
        let mut holes = after.clone();
        holes[before.len()..len].fill(0);
        fs::write(log_file(folder.path()), &holes).expect("writable");
        if holes != after {
            assert_eq!(
                load(folder.path()).entries,
                entries(1..=3, 1),
                "a hole to {len}"
            );
        }
    }
}

/// Every single bit that may rot before a sound record is found, and named with its file.
#[test]
fn damage_before_a_sound_record_is_refused() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut log = open(folder.path()).expect("a fresh folder");
    run_jobs(&mut log, &mut [append(entries(1..=3, 1))]).expect("a sound disk");
    drop(log);
    let first_end = fs::read(log_file(folder.path())).expect("readable").len();
    let mut log = open(folder.path()).expect("a sound log");
    run_jobs(&mut log, &mut [append(entries(4..=6, 1))]).expect("a sound disk");
    drop(log);
    let path = log_file(folder.path());
    let sound = fs::read(&path).expect("readable");
    // Behind the file's header: the first record.
    for at in 69..first_end {
        let mut rotten = sound.clone();
        rotten[at] ^= 1 << (at % 8);
        fs::write(&path, &rotten).expect("writable");
        match open(folder.path()) {
            Err(LogError::Corrupted { file, offset, .. }) => {
                assert_eq!(file, path);
                assert!(offset <= at as u64, "offset {offset} for damage at {at}");
            }
            other => panic!("damage at {at} of {first_end}: {other:?}"),
        }
        assert_eq!(
            fs::read(&path).expect("readable"),
            rotten,
            "a refused log was changed"
        );
    }
    fs::write(&path, &sound).expect("writable");
    assert_eq!(load(folder.path()).entries.len(), 6);
}

#[test]
fn a_missing_file_and_a_damaged_snapshot_are_refused() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut log = open(folder.path()).expect("a fresh folder");
    run_jobs(&mut log, &mut [install(7, 2)]).expect("a sound disk");
    drop(log);
    assert_eq!(load(folder.path()).snapshot, Some(snapshot(7, 2)));
    let files = fs::read_dir(folder.path())
        .expect("it is there")
        .map(|entry| entry.expect("readable").path());
    let data: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|end| end == "snapshot"))
        .collect();
    fs::write(&data[0], "something else").expect("writable");
    let error = open(folder.path())
        .expect("the log itself is sound")
        .load(GROUP);
    assert!(
        matches!(error, Err(LogError::Corrupted { ref file, .. }) if *file == data[0]),
        "{error:?}"
    );
    let path = log_file(folder.path());
    fs::copy(&path, path.with_file_name("0000000000000003.raftlog")).expect("writable");
    assert!(
        matches!(open(folder.path()), Err(LogError::Corrupted { .. })),
        "file 2 is missing"
    );
}

/// Small files, purged often.
fn small_files() -> EngineLogOptions {
    let mut options = EngineLogOptions::default();
    (options.file_bytes, options.purge_bytes) = (16 * 1024, 64 * 1024);
    options
}

/// Appends so many entries of 2 KiB from `first` on, with a snapshot and a compaction after each 64: more files
/// than are used again.
fn fill(log: &mut EngineLog, first: u64, count: u64) -> u64 {
    for index in (first..).take(usize::try_from(count).expect("small")) {
        let entry = Entry {
            index,
            term: 1,
            data: Bytes::from(vec![index as u8; 2048]),
            ..Default::default()
        };
        let mut jobs = vec![append(vec![entry])];
        if index.is_multiple_of(64) {
            jobs.push(LogJob {
                group: GROUP,
                snapshot: Some(snapshot(index, 1)),
                ..Default::default()
            });
            jobs.push(LogJob {
                group: GROUP,
                compacted: Some((index - 4, 1)),
                ..Default::default()
            });
        }
        run_jobs(log, &mut jobs).expect("a sound disk");
    }
    first + count
}

/// What a crash at this moment leaves: the files as they are, without the log's orderly end.
fn crash_image(folder: &Path) -> TempDir {
    let image = TempDir::new().expect("a temporary folder");
    for entry in fs::read_dir(folder).expect("it is there") {
        let path = entry.expect("readable").path();
        fs::copy(&path, image.path().join(path.file_name().expect("a file"))).expect("room");
    }
    image
}

fn log_numbers(folder: &Path) -> Vec<u64> {
    let files = fs::read_dir(folder).expect("it is there");
    let mut numbers: Vec<u64> = files
        .filter_map(|entry| {
            let name = entry.expect("readable").file_name().into_string().ok()?;
            name.strip_suffix(".raftlog")?.parse().ok()
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_log_that_was_purged_opens_after_a_crash_at_any_moment() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut log = EngineLog::open_with(folder.path(), &small_files()).expect("a fresh folder");
    let (mut next, mut gaps) = (1, 0);
    for _ in 0..60 {
        next = fill(&mut log, next, 32);
        let image = crash_image(folder.path());
        let numbers = log_numbers(image.path());
        gaps += usize::from(numbers.windows(2).any(|pair| pair[1] != pair[0] + 1));
        let state = load(image.path());
        assert_eq!(state.compacted.0 + state.entries.len() as u64, next - 1);
        let latest = (next - 1) / 64 * 64;
        assert_eq!(state.snapshot, (latest > 0).then(|| snapshot(latest, 1)));
        // A file that counts is missed, purges or not.
        let image = crash_image(folder.path());
        let live = log_numbers(image.path());
        if let [.., lost, last] = live[..]
            && lost + 1 == last
        {
            let name = format!("{lost:016}.raftlog");
            fs::remove_file(image.path().join(name)).expect("it is there");
            let opened = open(image.path());
            assert!(
                matches!(opened, Err(LogError::Corrupted { .. })),
                "{live:?}"
            );
        }
    }
    assert!(gaps > 0, "no purge left a gap: the test proves nothing");
}

#[test]
fn a_gap_that_an_older_version_left_is_no_damage() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut log = EngineLog::open_with(folder.path(), &small_files()).expect("a fresh folder");
    let mut next = 1;
    let image = loop {
        next = fill(&mut log, next, 32);
        let image = crash_image(folder.path());
        let numbers = log_numbers(image.path());
        if numbers.windows(2).any(|pair| pair[1] != pair[0] + 1) {
            break image;
        }
        assert!(next < 10_000, "no purge left a gap");
    };
    fs::remove_file(image.path().join("purged")).expect("it is there");
    let state = load(image.path());
    assert_eq!(state.compacted.0 + state.entries.len() as u64, next - 1);
}

const CHILD_FOLDER: &str = "PERF_RAFT_TEST_LOG_FOLDER";

/// Not a test of its own: the process that the next one kills. Writes until then, and prints the last durable index.
#[test]
fn writer_that_is_killed() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else {
        return;
    };
    let mut log = EngineLog::open_with(folder, &small_files()).expect("a sound log");
    let state = log.load(GROUP).expect("a sound log").unwrap_or_default();
    let mut next = state.compacted.0 + state.entries.len() as u64 + 1;
    loop {
        next = fill(&mut log, next, 4);
        println!("durable {}", next - 1);
    }
}

#[test]
fn a_writer_that_is_killed_again_and_again_loses_nothing() {
    let folder = TempDir::new().expect("a temporary folder");
    let (mut durable, mut gaps) = (0, 0);
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().expect("it runs"))
            .args(["--exact", "writer_that_is_killed", "--nocapture"])
            .env(CHILD_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        // Another moment in each round, several purges apart.
        let written = lines.map_while(Result::ok).filter_map(|line| {
            let (_, index) = line.split_once("durable ")?;
            index.parse::<u64>().ok()
        });
        let count = 60 + usize::try_from(round * 37 % 50).expect("small");
        durable = written.take(count).last().unwrap_or(durable);
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        let numbers = log_numbers(folder.path());
        gaps += usize::from(numbers.windows(2).any(|pair| pair[1] != pair[0] + 1));
        let state = load(folder.path());
        let last = state.compacted.0 + state.entries.len() as u64;
        assert!(last >= durable, "{last} of {durable} after round {round}");
    }
    assert!(
        durable > 1000,
        "only {durable} entries: the test proves nothing"
    );
    assert!(gaps > 0, "no purge left a gap: the test proves nothing");
}

#[test]
fn a_log_that_is_opened_often_is_purged_all_the_same() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut next = 1;
    for _ in 0..60 {
        let mut log = EngineLog::open_with(folder.path(), &small_files()).expect("a sound log");
        log.load(GROUP).expect("a sound log");
        next = fill(&mut log, next, 32);
    }
    let bytes: u64 = fs::read_dir(folder.path())
        .expect("it is there")
        .map(|entry| entry.expect("readable").metadata().expect("a file").len())
        .sum();
    assert!(bytes < 1024 * 1024, "{bytes} bytes for 256 KiB of entries");
}

/// Two saves at one index differ where a state machine iterates a hash map. A crash before the second is recorded leaves the first.
#[test]
fn a_second_snapshot_at_the_same_index_leaves_the_first_alone() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut log = open(folder.path()).expect("a fresh folder");
    run_jobs(&mut log, &mut [install(7, 2)]).expect("a sound disk");
    let mut other = snapshot(7, 2);
    other.data = Bytes::from_static(b"the same state in another order");
    log.save_snapshot(GROUP, &other).expect("a sound disk");
    let image = crash_image(folder.path());
    assert_eq!(load(image.path()).snapshot, Some(snapshot(7, 2)));
    let record = LogJob {
        group: GROUP,
        snapshot: Some(other.clone()),
        ..Default::default()
    };
    log.write(&[record], true).expect("a sound disk");
    drop(log);
    assert_eq!(load(folder.path()).snapshot, Some(other));
}

#[test]
fn a_folder_deep_down_is_made() {
    let folder = TempDir::new().expect("a temporary folder");
    let deep = folder.path().join("a/b/c/d");
    drop(open(&deep).expect("a fresh folder"));
    assert!(deep.is_dir());
}

#[test]
fn a_failed_fsync_is_reported_once_and_never_repeated() {
    let folder = TempDir::new().expect("a temporary folder");
    let (file_system, faults) = FaultyFileSystem::new();
    let options = EngineLogOptions::default();
    let mut log = EngineLog::open_on(folder.path(), &options, file_system).expect("a fresh folder");
    run_jobs(&mut log, &mut [append(entries(1..=3, 1))]).expect("a sound disk");
    faults.set(Fault::Sync);
    let syncs = faults.syncs();
    let failed = run_jobs(&mut log, &mut [append(entries(4..=6, 1))]);
    assert!(matches!(failed, Err(LogError::Sync { .. })), "{failed:?}");
    assert_eq!(faults.syncs(), syncs + 1);
    faults.set(Fault::None);
    let again = run_jobs(&mut log, &mut [append(entries(4..=6, 1))]);
    assert!(matches!(again, Err(LogError::Sync { .. })), "{again:?}");
    drop(log);
    assert_eq!(faults.syncs(), syncs + 1, "fsync was asked for again");
    // What was synced before is there; the rest may be.
    let found = load(folder.path()).entries;
    assert!(
        found == entries(1..=3, 1) || found == entries(1..=6, 1),
        "{found:?}"
    );
}

#[test]
fn a_full_disk_is_an_error_and_what_was_written_stays() {
    let folder = TempDir::new().expect("a temporary folder");
    let options = EngineLogOptions::default();
    for fault in [Fault::Full, Fault::TornWrite] {
        let (file_system, faults) = FaultyFileSystem::new();
        let mut log =
            EngineLog::open_on(folder.path(), &options, file_system).expect("a sound log");
        run_jobs(&mut log, &mut [append(entries(1..=3, 1))]).expect("a sound disk");
        faults.set(fault);
        let failed = run_jobs(&mut log, &mut [append(entries(4..=6, 1))]);
        assert!(
            matches!(failed, Err(LogError::Io { .. })),
            "{fault:?}: {failed:?}"
        );
        faults.set(Fault::None);
        let again = run_jobs(&mut log, &mut [append(entries(4..=6, 1))]);
        assert_eq!(again, failed, "a log that failed goes on");
        drop(log);
        assert_eq!(load(folder.path()).entries, entries(1..=3, 1));
    }
}

#[test]
fn one_write_and_one_sync_for_many_jobs() {
    let folder = TempDir::new().expect("a temporary folder");
    let (file_system, faults) = FaultyFileSystem::new();
    let options = EngineLogOptions::default();
    let mut log = EngineLog::open_on(folder.path(), &options, file_system).expect("a fresh folder");
    let syncs = faults.syncs();
    let mut jobs: Vec<LogJob> = (1..=50)
        .map(|index| append(entries(index..=index, 1)))
        .collect();
    run_jobs(&mut log, &mut jobs).expect("a sound disk");
    assert_eq!(faults.syncs(), syncs + 1);
    drop(log);
    assert_eq!(load(folder.path()).entries.len(), 50);
}

#[test]
fn the_same_folder_is_not_opened_twice() {
    let folder = TempDir::new().expect("a temporary folder");
    let _log = open(folder.path()).expect("a fresh folder");
    assert!(open(folder.path()).is_err());
}
