//! A `SegmentLog` on a simulated disk beside the model of what it must hold.

use perf_raft::log::testing::{Model, SimDisk};
use perf_raft::log::{LogStore, SegmentLog, SegmentLogOptions};
use perf_raft::{GroupId, LogError};
use std::sync::Arc;

/// The log's folder.
pub(crate) const FOLDER: &str = "log";
/// Groups of a history.
pub(crate) const GROUPS: u64 = 3;

pub(crate) fn options(segment_bytes: u64) -> SegmentLogOptions {
    let mut options = SegmentLogOptions::default();
    options.segment_bytes = segment_bytes;
    options
}

pub(crate) fn open(disk: &SimDisk, options: &SegmentLogOptions) -> Result<SegmentLog, LogError> {
    SegmentLog::open_on(Arc::new(disk.clone()), FOLDER, options)
}

/// Whether a log holds what the model says, of all groups.
pub(crate) fn differs(log: &mut SegmentLog, model: &Model) -> Result<Option<String>, LogError> {
    if log.groups()? != model.groups().collect::<Vec<_>>() {
        return Ok(Some(format!("it has the groups {:?}", log.groups()?)));
    }
    for group in model.groups() {
        let loaded = log.load(group)?;
        if loaded.as_ref() != model.state(group) {
            let expected = model.state(group);
            return Ok(Some(format!(
                "group {} is {loaded:?} instead of {expected:?}",
                group.0
            )));
        }
    }
    match log.load(GroupId(GROUPS + 1))? {
        None => Ok(None),
        Some(state) => Ok(Some(format!("a group that was never written is {state:?}"))),
    }
}
