//! The one way in which jobs get to a store, in production and in the simulation.

use super::{LogError, LogJob, LogStore};
use crate::primitive::mutant;

/// Does all jobs with one durable write and returns the sequence of the last: everything up to it is durable then.
///
/// Data of snapshots is made durable before the record that refers to it is written; what is stored in pieces is
/// already. For a loop of your own: pass
/// whatever jobs have come up since the last call, at least one.
///
/// # Errors
/// As the store's. It is then unknown what is durable: end the node.
pub fn run_jobs<L: LogStore + ?Sized>(log: &mut L, jobs: &mut [LogJob]) -> Result<u64, LogError> {
    let last = jobs.iter().map(|job| job.sequence).max().unwrap_or(0);
    if mutant::is("log_jobs_reordered") {
        jobs.reverse();
    }
    if !mutant::is("snapshot_before_data") {
        for job in jobs.iter() {
            let whole = job.snapshot.as_ref();
            if let Some(snapshot) = whole.filter(|snapshot| snapshot.stored.is_none()) {
                log.save_snapshot(job.group, snapshot)?;
            }
        }
    }
    log.write(jobs, !mutant::is("fsync_skipped"))?;
    Ok(last)
}
