//! What the nodes take of memory and disk while a run goes on.

use std::fmt::{self, Display};
use std::path::Path;
use std::time::{Duration, Instant};

use super::nodes::Nodes;

/// Looks in a run.
const LOOKS: u32 = 20;
/// The time between two looks at least.
const PAUSE_MIN: Duration = Duration::from_secs(5);
const MIB: f64 = 1024.0 * 1024.0;
/// Runs that are shorter say nothing of growth.
const JUDGED_MIN: Duration = Duration::from_secs(110);
/// What the last third of a run may take more than the third before: a fourth and this. The log holds a number of segments of 32 MiB.
const GROWTH_BYTES: u64 = 96 * 1024 * 1024;

/// The memory and the files of one node, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Footprint {
    pub(super) memory: u64,
    pub(super) disk: u64,
}

/// The largest node of all at each look.
#[derive(Clone, Debug, Default)]
pub(super) struct Curve {
    looks: Vec<(Duration, Footprint)>,
}

impl Curve {
    /// Looks until it is dropped.
    pub(super) async fn watch(&mut self, nodes: &Nodes, start: Instant, length: Duration) {
        let mut tick = tokio::time::interval((length / LOOKS).max(PAUSE_MIN));
        loop {
            tick.tick().await;
            let all = nodes.footprints().await;
            let largest = all
                .into_iter()
                .fold(Footprint::default(), |one, other| Footprint {
                    memory: one.memory.max(other.memory),
                    disk: one.disk.max(other.disk),
                });
            self.looks.push((start.elapsed(), largest));
        }
    }
}

impl Curve {
    /// What grew over the run, in words. The first third is left out: state and log fill up.
    pub(super) fn growth(&self) -> Option<String> {
        let (last, _) = self.looks.last()?;
        let third = self.looks.len() / 3;
        if *last < JUDGED_MIN || third == 0 {
            return None;
        }
        let (before, after) = self.looks[third..].split_at(third);
        let of = |what: fn(&Footprint) -> u64, name: &str| {
            let (before, after) = (median(before, what), median(after, what));
            (after > before + before / 4 + GROWTH_BYTES).then(|| {
                format!(
                    "{name} of the largest node grew from {:.0} MiB to {:.0} MiB",
                    before as f64 / MIB,
                    after as f64 / MIB
                )
            })
        };
        of(|footprint| footprint.memory, "the memory")
            .or(of(|footprint| footprint.disk, "the disk"))
    }
}

fn median(looks: &[(Duration, Footprint)], what: fn(&Footprint) -> u64) -> u64 {
    let mut values: Vec<u64> = looks.iter().map(|(_, footprint)| what(footprint)).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

impl Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, footprint) in &self.looks {
            writeln!(
                f,
                "  footprint      {:>5.0} s  largest node: memory {:>6.0} MiB, disk {:>6.0} MiB",
                at.as_secs_f64(),
                footprint.memory as f64 / MIB,
                footprint.disk as f64 / MIB
            )?;
        }
        match (self.growth(), self.looks.last()) {
            (Some(growth), _) => writeln!(f, "  GROWTH         {growth}")?,
            (None, Some((last, _))) if *last >= JUDGED_MIN => {
                writeln!(f, "  footprint      is flat from a third of the run on")?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The resident memory of a process, from proc_pid_status(5); 0 for one that has ended.
pub(super) fn memory_of(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The files in a folder and in those within it. Some may go meanwhile.
pub(super) fn disk_of(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(seconds: u64, disk: impl Fn(u64) -> u64) -> Curve {
        let look = |place: u64| {
            let footprint = Footprint {
                memory: 50 << 20,
                disk: disk(place) << 20,
            };
            (Duration::from_secs(seconds * place / 20), footprint)
        };
        Curve {
            looks: (0..=20).map(look).collect(),
        }
    }

    #[test]
    fn growth_over_the_whole_run_is_found_and_filling_up_is_none() {
        assert_eq!(curve(120, |place| 300.min(place * 60)).growth(), None);
        // A saw tooth of two segments.
        assert_eq!(curve(120, |place| 200 + place % 2 * 64).growth(), None);
        let growth = curve(120, |place| 100 + place * 60).growth();
        assert!(growth.is_some_and(|growth| growth.contains("disk")));
        assert_eq!(curve(20, |place| place * 60).growth(), None, "too short");
    }
}
