//! A log in a database that a node has already: a `LogStore` on redb, put through the conformance suite.
//!
//! `cargo run -p perf-raft --example redb_log --features testing`

mod store;

use perf_raft::LogError;
use perf_raft::log::testing::{SimDisk, Subject, conformance};
use store::RedbLog;

/// A database on a simulated disk, so that the suite can let the power fail.
struct OnSimDisk(SimDisk);

impl Subject for OnSimDisk {
    type Store = RedbLog;

    fn open(&mut self) -> Result<RedbLog, LogError> {
        RedbLog::open_on(&self.0, "log.redb".as_ref())
    }

    fn disk(&self) -> Option<&SimDisk> {
        Some(&self.0)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut seeds = 0..;
    let report = conformance(|| OnSimDisk(SimDisk::new(seeds.next().unwrap_or(0))))?;
    print!("{report}");
    Ok(())
}
