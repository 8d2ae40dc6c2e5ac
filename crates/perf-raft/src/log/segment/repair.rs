//! Cuts a damaged log at its first damage.

use super::folder;
use super::format::{RECORDS_START, SegmentHeader};
use super::inspect::{LogInfo, lock_if_there, read_contents};
use super::survey::{Cut, Survey};
use super::{SegmentLog, job, survey};
use crate::GroupId;
use crate::log::LogError;
use crate::log::disk::{self, Access, Disk, RealDisk};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a repair does, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Repair {
    /// The damage that the log is cut at.
    pub damage: LogError,
    /// The file that is cut, and the offset from which on it is empty then.
    pub cut: (PathBuf, u64),
    /// Records behind the cut that can still be read. They are lost with it.
    pub records_lost: u64,
    /// For each group in these records the highest index.
    pub indices_lost: Vec<(GroupId, u64)>,
    /// Files behind the cut, which are moved to `aside`.
    pub moved: Vec<PathBuf>,
    /// The folder for these, and for a copy of the file that is cut.
    pub aside: PathBuf,
    /// What the log holds then.
    pub kept: LogInfo,
}

impl SegmentLog {
    /// Cuts a damaged log at its first damage. Without `force` it only says what that would do. `None` if the log is sound.
    ///
    /// Everything behind the damage is lost, entries that were acknowledged and votes among them. A node that is one of several should rejoin
    /// its group instead: see [`set_aside`](Self::set_aside). The damaged files are kept in a folder `damaged-N`.
    ///
    /// # Errors
    /// [`LogError`] if the folder is in use or cannot be read or written, or if nothing can be kept.
    pub fn repair(folder: impl AsRef<Path>, force: bool) -> Result<Option<Repair>, LogError> {
        Self::repair_on(&RealDisk, folder, force)
    }

    /// The same on another disk, for tests.
    ///
    /// # Errors
    /// As [`repair`](Self::repair).
    pub fn repair_on(
        disk: &dyn Disk,
        folder: impl AsRef<Path>,
        force: bool,
    ) -> Result<Option<Repair>, LogError> {
        let folder = folder.as_ref();
        let _lock = lock_if_there(disk, folder)?;
        let Some(plan) = plan(disk, folder)? else {
            return Ok(None);
        };
        if force {
            perform(disk, folder, &plan)?;
        }
        Ok(Some(plan.repair))
    }
}

struct Plan {
    repair: Repair,
    /// The header of the segment that is cut. It names no segments that were purged since.
    header: Option<SegmentHeader>,
}

/// Cuts ever earlier until what is left is a sound log.
fn plan(disk: &dyn Disk, folder: &Path) -> Result<Option<Plan>, LogError> {
    let mut cut: Option<Cut> = None;
    let mut first_damage = None;
    loop {
        let mut survey = Survey {
            cut,
            ..Survey::default()
        };
        let error = match survey.read(disk, folder, &mut |_, _, _| {}) {
            Ok(()) => {
                let (Some(damage), Some(cut)) = (first_damage, cut) else {
                    return Ok(None);
                };
                // An older snapshot may count again, whose file is gone.
                read_contents(disk, folder, &survey).map_err(|error| nothing_left(&error))?;
                if let Some(group) = incomplete(&survey) {
                    let reason = format!("group {} lacks its beginning", group.0);
                    return Err(nothing_left(&LogError::damaged(folder, 0, reason)));
                }
                return repair_of(disk, folder, damage, cut, &survey).map(Some);
            }
            Err(error) => error,
        };
        let LogError::Corrupted { file, offset, .. } = &error else {
            return Err(error);
        };
        let next = next_cut(folder, &survey, file, *offset);
        let is_earlier = |next: &Cut| cut.is_none_or(|cut| *next < cut);
        cut = Some(
            next.filter(is_earlier)
                .ok_or_else(|| nothing_left(&error))?,
        );
        first_damage.get_or_insert(error);
    }
}

/// A group whose state was moved to a segment behind the cut, from one that was purged then. Identity and state are always moved together.
fn incomplete(survey: &Survey) -> Option<GroupId> {
    let mut groups = survey.index.groups().iter();
    let found = groups.find(|(_, index)| index.identity().is_none());
    found.map(|(group, _)| *group)
}

fn nothing_left(damage: &LogError) -> LogError {
    LogError::Unsupported {
        reason: format!(
            "nothing can be kept of this log: {damage}; set its folder aside and let the node rejoin its group"
        ),
    }
}

/// Where to cut for damage in this file: at the damage, or, if the file as a whole is damaged, at the seal of the segment before.
fn next_cut(folder: &Path, survey: &Survey, file: &Path, offset: u64) -> Option<Cut> {
    let all = &survey.names.segments;
    let last = *all.last()?;
    let number = (1..=last + 1).find(|number| folder::segment(folder, *number) == *file)?;
    if offset >= RECORDS_START {
        return Some(Cut {
            segment: number,
            offset,
        });
    }
    let before = number
        .checked_sub(1)
        .filter(|before| all.contains(before))?;
    // Not read yet if the damage is in the newest header; then the seal is found in the next round.
    let read = survey.segments.get(&before);
    Some(Cut {
        segment: before,
        offset: read.map_or(u64::MAX, |segment| segment.end),
    })
}

fn repair_of(
    disk: &dyn Disk,
    folder: &Path,
    damage: LogError,
    cut: Cut,
    survey: &Survey,
) -> Result<Plan, LogError> {
    let names = folder::Names::list(disk, folder)?;
    let behind: Vec<u64> = names
        .segments
        .iter()
        .copied()
        .filter(|number| *number > cut.segment)
        .collect();
    // A cut behind all that was written only takes the files after it away.
    let end = survey.segments.get(&cut.segment);
    let offset = end.map_or(cut.offset, |segment| cut.offset.min(segment.end));
    let mut lost = Lost::default();
    lost.read(disk, folder, survey.log, (cut.segment, offset))?;
    for number in &behind {
        lost.read(disk, folder, survey.log, (*number, RECORDS_START))?;
    }
    let moved = behind.iter().map(|number| folder::segment(folder, *number));
    let header = end.map(|segment| SegmentHeader {
        first: survey.first,
        ..segment.header
    });
    let repair = Repair {
        damage,
        cut: (folder::segment(folder, cut.segment), offset),
        records_lost: lost.records,
        indices_lost: lost.indices.into_iter().collect(),
        moved: moved.collect(),
        aside: folder::damaged(folder, names.damaged + 1),
        kept: survey.info(folder, None),
    };
    Ok(Plan { repair, header })
}

/// What can still be read behind the cut.
#[derive(Debug, Default)]
struct Lost {
    records: u64,
    /// The highest index of each group.
    indices: BTreeMap<GroupId, u64>,
}

impl Lost {
    /// Adds the sound records of a segment from an offset on.
    fn read(
        &mut self,
        disk: &dyn Disk,
        folder: &Path,
        log: u64,
        (number, mut offset): (u64, u64),
    ) -> Result<(), LogError> {
        let path = folder::segment(folder, number);
        let bytes = disk::read_file(disk, &path);
        let bytes = bytes.map_err(|error| LogError::io(&path, "reading", &error))?;
        let place = survey::place(log, number);
        let rest = |offset: u64| bytes.get(offset as usize..).unwrap_or_default();
        while let Some(found) = place.find(rest(offset), offset, |_| true) {
            let Ok(record) = place.read(rest(found), found) else {
                offset = found + 1;
                continue;
            };
            offset = found + record.len();
            self.records += 1;
            for job in job::decode(record.payload).unwrap_or_default() {
                let last = job.change.span.map_or(0, |span| span.end() - 1);
                let known = self.indices.entry(job.change.group).or_default();
                *known = last.max(*known);
            }
        }
        Ok(())
    }
}

/// The copy is safe before anything is cut. Until the files behind the cut are gone the log is a damaged one, so that a repair that is cut
/// short can be repeated.
fn perform(disk: &dyn Disk, folder: &Path, plan: &Plan) -> Result<(), LogError> {
    let Repair {
        cut: (path, offset),
        moved,
        aside,
        ..
    } = &plan.repair;
    let failed = |action| move |error| LogError::io(path, action, &error);
    let beside = |file: &Path| aside.join(file.file_name().unwrap_or_default());
    disk.make_folder(aside)
        .map_err(|error| LogError::io(aside, "making the folder", &error))?;
    let bytes = disk::read_file(disk, path).map_err(failed("reading"))?;
    disk::write_file(disk, &beside(path), &bytes)?;
    let file = disk
        .open(path, Access::Write)
        .map_err(failed("opening for writing"))?;
    let zeros = vec![0; bytes.len().saturating_sub(*offset as usize)];
    disk::write_all(&*file, &zeros, *offset).map_err(failed("writing"))?;
    if let Some(header) = plan.header {
        disk::write_all(&*file, &header.encode(), 0).map_err(failed("writing"))?;
    }
    file.sync().map_err(|error| LogError::sync(path, &error))?;
    for file in moved.iter().rev() {
        disk.rename(file, &beside(file))
            .map_err(|error| LogError::io(file, "renaming", &error))?;
    }
    for folder in [aside.as_path(), folder] {
        disk.sync_folder(folder)
            .map_err(|error| LogError::sync(folder, &error))?;
    }
    Ok(())
}
