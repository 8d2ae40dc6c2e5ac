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
