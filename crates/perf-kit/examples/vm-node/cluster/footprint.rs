//! What the nodes take of memory and disk while a run goes on.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::path::Path;
use std::time::{Duration, Instant};

use super::Options;
use super::load::Load;
use super::nodes::Nodes;

/// Looks in a run.
const LOOKS: u32 = 20;
/// The time between two looks at least.
const PAUSE_MIN: Duration = Duration::from_secs(5);
const MIB: u64 = 1024 * 1024;
/// Runs that are shorter say nothing of growth.
const JUDGED_MIN: Duration = Duration::from_secs(110);
/// Copies of the live data that a node has in memory at most: the inventory, the views, a snapshot that is made and
/// one that is sent, with what the allocator needs for them.
const MEMORY_COPIES: u64 = 4;
/// What memory may grow by beside that, and beside half of the log.
const MEMORY_SLACK_BYTES: u64 = 16 * MIB;
/// Segments that the log takes beside twice what counts, by the design page of perf-raft.
const SLACK_SEGMENTS: u64 = 9;
/// Segments of each node's log that a run with small logs must have purged.
const PURGED_MIN: u64 = 3;
/// The largest log that is called small, in MiB.
const SMALL_LOG_MIB: usize = 16;

/// The memory and the files of one node, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Footprint {
    pub(super) node: u64,
    pub(super) memory: u64,
    pub(super) disk: u64,
    /// The number of the log's first segment, if there is one.
    pub(super) first_segment: Option<u64>,
}

/// What was seen at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Look {
    at: Duration,
    /// Of the largest node of all.
    memory: u64,
    disk: u64,
    /// More than the data that the clients have left.
    live: u64,
}

/// All looks of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Curve {
    looks: Vec<Look>,
    nodes: u64,
    log_mib: usize,
    is_judged: bool,
    first_segments: HashMap<u64, u64>,
    /// Segments that went between two looks, of all nodes.
    purged: u64,
}

impl Curve {
    /// Of a run with these options. The naive node keeps its log for ever, which is not judged.
    pub(super) fn new(options: &Options, naive: bool) -> Self {
        Self {
            nodes: options.nodes,
            log_mib: options.log_mib,
            is_judged: !naive,
            ..Self::default()
        }
    }

    /// Looks until it is dropped.
    pub(super) async fn watch(
        &mut self,
        nodes: &Nodes,
        load: &Load,
        start: Instant,
        length: Duration,
    ) {
        let mut tick = tokio::time::interval((length / LOOKS).max(PAUSE_MIN));
        loop {
            tick.tick().await;
            let all = nodes.footprints().await;
            self.add(start.elapsed(), &all, load.live_bytes());
        }
    }

    fn add(&mut self, at: Duration, nodes: &[Footprint], live: u64) {
        let mut look = Look {
            at,
            live,
            ..Look::default()
        };
        for node in nodes {
            look.memory = look.memory.max(node.memory);
            look.disk = look.disk.max(node.disk);
            if let Some(first) = node.first_segment {
                // A node that lost its disk begins with a lower number.
                let before = self.first_segments.insert(node.node, first);
                self.purged += first.saturating_sub(before.unwrap_or(first));
            }
        }
        self.looks.push(look);
    }

    /// The first fault of the curve, in words.
    pub(super) fn fault(&self) -> Option<String> {
        let last = self.looks.last()?;
        if last.at < JUDGED_MIN || !self.is_judged {
            return None;
        }
        self.growth().or_else(|| self.excess()).or_else(|| {
            let least = PURGED_MIN * self.nodes;
            (self.log_mib <= SMALL_LOG_MIB && self.purged < least)
                .then(|| format!("the nodes purged {} segments, and not {least}", self.purged))
        })
    }

    /// Memory that grew over the run by more than the live data explain. The first third is left out: state and log
    /// fill up.
    fn growth(&self) -> Option<String> {
        let third = self.looks.len() / 3;
        if third == 0 {
            return None;
        }
        let (before, after) = self.looks[third..].split_at(third);
        let memory = |looks| median(looks, |look| look.memory);
        let live = |looks| median(looks, |look| look.live);
        let (was, is) = (memory(before), memory(after));
        let explained = MEMORY_COPIES * live(after).saturating_sub(live(before));
        let slack = self.log_mib as u64 * MIB / 2 + MEMORY_SLACK_BYTES;
        (is > was + was / 4 + explained + slack).then(|| {
            format!(
                "the memory of the largest node grew from {} MiB to {} MiB",
                was / MIB,
                is / MIB
            )
        })
    }

    /// Disk beyond the bound at any moment: twice what the log may hold, nine segments of an eighth of that, and for
    /// each group two snapshots of the live data.
    fn excess(&self) -> Option<String> {
        let excess = |look: &&Look| look.disk > self.disk_bound(look.live);
        let look = self.looks.iter().find(excess)?;
        Some(format!(
            "the disk of the largest node had {} MiB at {:.0} s, and {} MiB of live data allow {} MiB",
            look.disk / MIB,
            look.at.as_secs_f64(),
            look.live / MIB,
            self.disk_bound(look.live) / MIB
        ))
    }

    fn disk_bound(&self, live: u64) -> u64 {
        let log = self.log_mib as u64 * MIB;
        2 * log + SLACK_SEGMENTS * log / 8 + 2 * live
    }
}

fn median(looks: &[Look], what: fn(&Look) -> u64) -> u64 {
    let mut values: Vec<u64> = looks.iter().map(what).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

impl Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for look in &self.looks {
            writeln!(
                f,
                "  footprint      {:>5.0} s  largest node: memory {:>5} MiB, disk {:>5} MiB of {:>5} allowed; \
                 live data below {:>4} MiB",
                look.at.as_secs_f64(),
                look.memory / MIB,
                look.disk / MIB,
                self.disk_bound(look.live) / MIB,
                look.live.div_ceil(MIB)
            )?;
        }
        match (self.fault(), self.looks.last()) {
            (Some(fault), _) => writeln!(f, "  FOOTPRINT      {fault}")?,
            (None, Some(last)) if last.at >= JUDGED_MIN && self.is_judged => writeln!(
                f,
                "  footprint      memory is flat from a third of the run on, disk within its bound; {} segments purged",
                self.purged
            )?,
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

/// The number of the first segment of the log in a folder.
pub(super) fn first_segment_of(folder: &Path) -> Option<u64> {
    let names = std::fs::read_dir(folder).ok()?.flatten();
    let number = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        u64::from_str_radix(name.strip_suffix(".segment")?, 16).ok()
    };
    names.filter_map(number).min()
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

    /// Of a node with a log of 16 MiB, by the place of the look from 0 to 20: memory, disk and live data in MiB, and
    /// the first segment.
    fn curve(seconds: u64, of: impl Fn(u64) -> (u64, u64, u64, u64)) -> Curve {
        let mut curve = Curve {
            nodes: 1,
            log_mib: 16,
            is_judged: true,
            ..Curve::default()
        };
        for place in 0..=20 {
            let (memory, disk, live, first) = of(place);
            let node = Footprint {
                node: 1,
                memory: memory * MIB,
                disk: disk * MIB,
                first_segment: Some(first),
            };
            let at = Duration::from_secs(seconds * place / 20);
            curve.add(at, &[node], live * MIB);
        }
        curve
    }

    #[test]
    fn a_run_that_fills_up_and_stays_flat_has_no_fault() {
        assert_eq!(
            curve(120, |place| (50, 80.min(place * 10), 20, place)).fault(),
            None
        );
        // What grows with the live data is no growth.
        let grows = curve(120, |place| {
            (50 + 8 * place, 60 + 4 * place, 10 + 2 * place, place)
        });
        assert_eq!(grows.fault(), None);
    }

    #[test]
    fn each_way_of_growing_is_found() {
        let memory = curve(120, |place| (50 + 12 * place, 60, 10, place));
        assert!(memory.fault().is_some_and(|fault| fault.contains("memory")));
        let disk = curve(120, |place| (50, 60 + 4 * place, 10, place));
        assert!(disk.fault().is_some_and(|fault| fault.contains("disk")));
        let purges = curve(120, |_| (50, 60, 10, 7));
        assert!(
            purges
                .fault()
                .is_some_and(|fault| fault.contains("purged 0"))
        );
        let short = curve(20, |place| (50 + 60 * place, 60 * place, 10, 7));
        assert_eq!(short.fault(), None, "too short");
    }

    #[test]
    fn purges_are_counted_through_a_lost_disk() {
        let curve = curve(120, |place| {
            (50, 60, 10, if place < 10 { place } else { place - 9 })
        });
        assert_eq!(curve.purged, 9 + 10);
    }
}
