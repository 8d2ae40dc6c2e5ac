//! What a durable write costs: `SegmentLog` and a bare file with `pwrite` and `fdatasync`; `none` makes the jobs and keeps nothing.
//!
//! `cargo run --release -p perf-raft --example log_cost -- segment 2000 256 128` makes 2000 writes of 256 entries of 128 bytes each, in jobs of 16
//! entries, and prints the time of one, and of opening and reading the log again. A fifth number says after how many writes the log is compacted
//! (100; 0 for never). For instructions: `perf stat -e instructions:u` of this and of a run with twice as many writes.

use perf_raft::log::{LogJob, LogStore, SegmentLog, run_jobs};
use perf_raft::{GroupId, LogError, MemoryLog};
use raft::eraftpb::{Entry, HardState};
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

const ENTRIES_PER_JOB: u64 = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, numbers @ ..] = &arguments[..] else {
        return Err("say `segment`, `wal` or `none`, then writes, entries and bytes".into());
    };
    let number = |place: usize, default: u64| -> Result<u64, std::num::ParseIntError> {
        numbers.get(place).map_or(Ok(default), |text| text.parse())
    };
    let (writes, entries, bytes) = (number(0, 1000)?, number(1, 256)?, number(2, 128)?);
    let folder = tempfile::tempdir()?;
    if kind == "wal" {
        let all = writes * entries * bytes;
        return wal(&folder.path().join("wal"), all, writes, entries * bytes);
    }
    let open = || -> Result<Box<dyn LogStore>, Box<dyn Error>> {
        Ok(match kind.as_str() {
            "segment" => Box::new(SegmentLog::open(folder.path())?),
            "none" => Box::new(MemoryLog::new()),
            _ => {
                let reason = format!("there is no `{kind}`: `segment`, `wal` or `none`");
                return Err(reason.into());
            }
        })
    };
    let mut log = open()?;
    let start = Instant::now();
    write(log.as_mut(), writes, entries, bytes, number(3, 100)?)?;
    show(kind, start, writes);
    drop(log);
    let start = Instant::now();
    let mut log = open()?;
    let opened = start.elapsed();
    let state = log.load(GroupId(1))?.unwrap_or_default();
    let held = state.entries.len();
    let all = start.elapsed();
    println!("{kind}: opened in {opened:.1?}, and its {held} entries read after {all:.1?}");
    Ok(())
}

fn show(kind: &str, start: Instant, writes: u64) {
    let each = start.elapsed().as_secs_f64() * 1e6 / writes.max(1) as f64;
    println!("{kind}: {each:.1} us for a durable write");
}

fn write(
    log: &mut dyn LogStore,
    writes: u64,
    entries: u64,
    bytes: u64,
    writes_per_compaction: u64,
) -> Result<(), LogError> {
    let data = bytes::Bytes::from(vec![7; bytes as usize]);
    let mut next = 1;
    for write in 1..=writes {
        let mut jobs = Vec::new();
        let end = next + entries;
        while next < end {
            let count = ENTRIES_PER_JOB.min(end - next);
            let part: Vec<Entry> = (next..next + count)
                .map(|index| Entry {
                    index,
                    term: 1,
                    data: data.clone(),
                    ..Entry::default()
                })
                .collect();
            next += count;
            jobs.push(LogJob {
                group: GroupId(1),
                entries: part.into(),
                hard_state: Some(HardState {
                    term: 1,
                    vote: 1,
                    commit: next,
                    ..HardState::default()
                }),
                ..LogJob::default()
            });
        }
        if writes_per_compaction > 0 && write.is_multiple_of(writes_per_compaction) {
            jobs.push(LogJob {
                group: GroupId(1),
                compacted: Some((next - 1, 1)),
                ..LogJob::default()
            });
        }
        run_jobs(log, &mut jobs)?;
    }
    Ok(())
}

/// One file, as long as it will be from the beginning.
fn wal(path: &Path, all: u64, writes: u64, bytes: u64) -> Result<(), Box<dyn Error>> {
    let file = File::create_new(path)?;
    preallocate(&file, all)?;
    let batch = vec![7; bytes as usize];
    let start = Instant::now();
    for write in 0..writes {
        file.write_all_at(&batch, write * bytes)?;
        file.sync_data()?;
    }
    show("wal", start, writes);
    Ok(())
}

fn preallocate(file: &File, len: u64) -> io::Result<()> {
    file.set_len(len)?;
    file.sync_all()
}
