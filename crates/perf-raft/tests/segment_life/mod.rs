//! One history of a `SegmentLog` on a simulated disk, compared with a reference model.

use crate::segments::{GROUPS, differs, open, options};
use perf_raft::LogError;
use perf_raft::log::testing::{Fault, History, Model, Random, SimDisk, save_in_pieces};
use perf_raft::log::{LogJob, LogStore, SegmentLog, SegmentLogOptions, run_jobs};

/// What histories met.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage {
    pub(crate) writes: u64,
    pub(crate) crashes: u64,
    pub(crate) kills: u64,
    pub(crate) writes_lost: u64,
    pub(crate) rotations: u64,
    pub(crate) faults: u64,
    pub(crate) refused: u64,
    pub(crate) streamed: u64,
}

struct World {
    disk: SimDisk,
    options: SegmentLogOptions,
    random: Random,
    history: History,
    /// What is durable for certain.
    durable: Model,
    /// Writes since then.
    pending: Vec<Vec<LogJob>>,
    coverage: Coverage,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let segment_bytes = [1024, 2048, 4096][random.below(3) as usize];
        let data_bytes_max = [8, 64, 400][random.below(3) as usize];
        Self {
            disk: SimDisk::new(seed),
            options: options(segment_bytes),
            history: History::new(seed, GROUPS, data_bytes_max),
            random,
            durable: Model::default(),
            pending: Vec::new(),
            coverage: Coverage::default(),
        }
    }

    /// Opens the log. What it holds is everything durable and the beginning of what is not.
    fn open(&mut self) -> Result<SegmentLog, String> {
        let opened = open(&self.disk, &self.options);
        let mut log = opened.map_err(|error| format!("it does not open: {error}"))?;
        let failed = |error: LogError| format!("it cannot be read: {error}");
        let files = self.disk.files();
        let ends = |end: &str| {
            let files = files.iter();
            files
                .filter(|path| path.extension().is_some_and(|of| of == end))
                .count()
        };
        if ends("tmp") > 0 || ends("snapshot") as u64 > GROUPS {
            return Err(format!("what a crash left is still there: {files:?}"));
        }
        let mut first_difference = None;
        for kept in 0..=self.pending.len() {
            if kept > 0 {
                self.durable.apply(&self.pending[kept - 1]);
            }
            let Some(difference) = differs(&mut log, &self.durable).map_err(failed)? else {
                self.coverage.writes_lost += (self.pending.len() - kept) as u64;
                self.pending.clear();
                return Ok(log);
            };
            first_difference.get_or_insert(difference);
        }
        Err(first_difference.unwrap_or_default())
    }

    /// Writes until the power fails or something goes wrong.
    fn run(&mut self, log: &mut SegmentLog) -> Result<(), String> {
        let mut now = self.durable.clone();
        loop {
            let mut jobs = self.history.next_jobs(&now);
            let sync = !self.random.one_in(6);
            if self.random.one_in(24) {
                self.fault();
            }
            now.apply(&jobs);
            self.pending.push(jobs.clone());
            self.coverage.writes += 1;
            if self.stream(log, &mut jobs).is_err() {
                // The log goes on without it: the node would end, or try again.
                self.coverage.refused += u64::from(!self.disk.is_off());
                return Ok(());
            }
            let written = if sync {
                run_jobs(log, &mut jobs).map(|_| ())
            } else {
                write_unsynced(log, &jobs)
            };
            if let Err(error) = written {
                self.coverage.refused += u64::from(!self.disk.is_off());
                let again = log.write(&[], true);
                return match again {
                    Err(again) if again == error => Ok(()),
                    other => Err(format!("after {error} a write gets {other:?}")),
                };
            }
            if sync {
                self.durable = now.clone();
                self.pending.clear();
                self.check_disk_use(log)?;
            }
            if self.random.one_in(16)
                && let Ok(Some(difference)) = differs(log, &now)
            {
                return Err(format!("while it is open, {difference}"));
            }
        }
    }

    /// Some snapshots are written in pieces, and some that are begun are not finished.
    fn stream(&mut self, log: &mut SegmentLog, jobs: &mut [LogJob]) -> Result<(), LogError> {
        let store = log.snapshots()?.expect("this log has them");
        for job in jobs {
            if let Some(snapshot) = &mut job.snapshot
                && self.random.one_in(2)
            {
                if self.random.one_in(3) {
                    let mut unfinished = store.create(job.group)?;
                    unfinished.write(b"unfinished")?;
                    if self.random.one_in(2) {
                        // As if the process were killed.
                        std::mem::forget(unfinished);
                    }
                }
                if self.random.one_in(4) {
                    // Never named by a job.
                    save_in_pieces(&*store, job.group, &mut snapshot.clone(), 50)?;
                }
                save_in_pieces(&*store, job.group, snapshot, 50)?;
                self.coverage.streamed += 1;
            }
        }
        Ok(())
    }

    fn fault(&mut self) {
        let faults = [
            Fault::Sync,
            Fault::SyncFolder,
            Fault::Full,
            Fault::ShortWrite,
            Fault::Read,
        ];
        self.coverage.faults += 1;
        self.disk.fail(faults[self.random.below(5) as usize]);
    }

    /// Twice what counts and nine segments, as the documentation says.
    fn check_disk_use(&self, log: &SegmentLog) -> Result<(), String> {
        let used = log.disk_use();
        // A write larger than a segment takes one of its own.
        let slack = 9 * self.options.segment_bytes.max(4096 + 1024);
        if used.bytes <= 2 * used.live_bytes + slack {
            return Ok(());
        }
        Err(format!("it takes too much of the disk: {used:?}"))
    }
}

fn write_unsynced(log: &mut SegmentLog, jobs: &[LogJob]) -> Result<(), LogError> {
    for job in jobs {
        if let Some(snapshot) = &job.snapshot
            && snapshot.stored.is_none()
        {
            log.save_snapshot(job.group, snapshot)?;
        }
    }
    log.write(jobs, false)
}

/// One history of eight lives of a process, each ended by a power failure, a kill or a fault.
pub(crate) fn run(seed: u64) -> Result<Coverage, String> {
    run_lives(seed, 8)
}

/// One history of so many lives.
pub(crate) fn run_lives(seed: u64, lives: u64) -> Result<Coverage, String> {
    let mut world = World::new(seed);
    for _ in 0..lives {
        let mut log = world.open()?;
        let operations = 1 + world.random.below(160);
        world.disk.crash_after(operations);
        world.run(&mut log)?;
        drop(log);
        if world.random.one_in(3) {
            world.disk.restart();
            world.coverage.kills += 1;
        } else {
            world.disk.crash();
            world.coverage.crashes += 1;
        }
    }
    world.open()?;
    world.coverage.rotations = world
        .disk
        .files()
        .iter()
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.strip_suffix(".segment")?;
            u64::from_str_radix(name, 16).ok()
        })
        .max()
        .unwrap_or(0);
    Ok(world.coverage)
}
