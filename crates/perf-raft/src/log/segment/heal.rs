//! A damaged log that makes way for a new one, so that its node can join its groups again.

use super::survey::Survey;
use super::{SegmentLog, SegmentLogOptions, scan_snapshot};
use crate::log::LogError;
use crate::log::disk::Disk;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Voters of a group that goes on without one of them, and in which that one has a leader to take it in again.
const VOTERS_MIN: usize = 3;

/// What a [`SegmentLog`] does when it finds damage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnDamage {
    /// It is not opened, and nothing is changed.
    #[default]
    Refuse,
    /// The damaged files are moved into a folder of their own, as by [`SegmentLog::set_aside`], and the log begins anew.
    ///
    /// A node on it votes for nothing under its old id until the leader of its group has taken it in again, which the leader does by itself. Refused
    /// all the same if what can still be read says that a group has less than three voters: no quorum could take it in there.
    /// If the logs of a quorum are damaged, the group has no leader any more, and the files aside are all that there is.
    Rejoin,
}

/// Damage for which a log began anew.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Healed {
    /// What was found.
    pub damage: LogError,
    /// Where the files are.
    pub aside: PathBuf,
}

impl SegmentLog {
    /// The damage for which this log began anew when it was opened ([`OnDamage::Rejoin`]), `None` if there was none.
    #[must_use]
    pub fn healed(&self) -> Option<&Healed> {
        self.healed.as_ref()
    }

    /// A new log in the place of the damaged one. The folder must not be locked.
    pub(super) fn begin_anew(
        disk: Arc<dyn Disk>,
        folder: &Path,
        options: &SegmentLogOptions,
        damage: LogError,
        survey: &Survey,
    ) -> Result<Self, LogError> {
        if !damage.is_damage() || options.on_damage == OnDamage::Refuse || is_small(survey) {
            return Err(damage);
        }
        let aside = Self::set_aside_on(&*disk, folder)?;
        let mut log = Self::open_on(disk, folder, options)?;
        log.healed = Some(Healed { damage, aside });
        Ok(log)
    }

    /// Reads the data of all snapshots: damage there is found when a node loads its group, and then the log is open.
    pub(super) fn check_snapshots(
        disk: &dyn Disk,
        folder: &Path,
        survey: &Survey,
    ) -> Result<(), LogError> {
        for (group, index) in survey.index.groups() {
            if let Some(record) = index.snapshot() {
                scan_snapshot(disk, folder, *group, record, |_| ())?;
            }
        }
        Ok(())
    }
}

/// Whether a group is known to have too few voters.
fn is_small(survey: &Survey) -> bool {
    let mut snapshots = survey
        .index
        .groups()
        .values()
        .filter_map(|group| group.snapshot());
    snapshots.any(|record| {
        let state = record
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.conf_state.as_ref());
        state.is_some_and(|state| state.voters.len() < VOTERS_MIN)
    })
}
