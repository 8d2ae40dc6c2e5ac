//! What is to be placed, and how.

use crate::error::CacheError;
use crate::placement::labels::Label;

/// How many labels a placement may avoid.
pub const AVOID_MAX: usize = 4;
/// How many labels a placement may require.
pub const REQUIRE_MAX: usize = 4;

/// What a VM needs of its node.
///
/// ```
/// use perf_cache::{PlacementIndex, Requirements};
///
/// let mut index = PlacementIndex::new();
/// let database = index.label("app=database")?;
/// let fast = index.label("disk=nvme")?;
/// let replica = Requirements::new(2, 4096, 20).avoiding(&[database])?.requiring(&[fast])?;
/// assert_eq!(replica.memory_mib, 4096);
/// # Ok::<(), perf_cache::CacheError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Requirements {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disk space in GiB.
    pub disk_gib: u32,
    pub(crate) avoid: [Option<Label>; AVOID_MAX],
    pub(crate) require: [Option<Label>; REQUIRE_MAX],
}

impl Requirements {
    /// Any node with so much free.
    #[must_use]
    pub fn new(vcpus: u32, memory_mib: u32, disk_gib: u32) -> Self {
        Self {
            vcpus,
            memory_mib,
            disk_gib,
            avoid: [None; AVOID_MAX],
            require: [None; REQUIRE_MAX],
        }
    }

    /// Not on a node that has one of these labels: anti-affinity. Replaces what was to be avoided before.
    ///
    /// # Errors
    /// [`CacheError::TooManyLabels`] if there are more than [`AVOID_MAX`].
    pub fn avoiding(mut self, labels: &[Label]) -> Result<Self, CacheError> {
        self.avoid = sorted(labels)?;
        Ok(self)
    }

    /// Only on a node that has all of these labels: affinity. Replaces what was required before.
    ///
    /// # Errors
    /// [`CacheError::TooManyLabels`] if there are more than [`REQUIRE_MAX`].
    pub fn requiring(mut self, labels: &[Label]) -> Result<Self, CacheError> {
        self.require = sorted(labels)?;
        Ok(self)
    }

    /// The labels to avoid.
    pub fn avoided(&self) -> impl Iterator<Item = Label> {
        self.avoid.into_iter().flatten()
    }

    /// The labels that a node must have.
    pub fn required(&self) -> impl Iterator<Item = Label> {
        self.require.into_iter().flatten()
    }
}

/// In order, so that the same set is the same key of a cache.
fn sorted<const N: usize>(labels: &[Label]) -> Result<[Option<Label>; N], CacheError> {
    if labels.len() > N {
        return Err(CacheError::TooManyLabels { labels_max: N });
    }
    let mut sorted = [None; N];
    for (place, label) in sorted.iter_mut().zip(labels) {
        *place = Some(*label);
    }
    sorted.sort_unstable();
    Ok(sorted)
}

/// Why a node is not one that a VM can be placed on: the first of these that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unfit {
    /// The index has no such node.
    Unknown,
    /// It has fewer virtual CPUs free.
    Vcpus,
    /// It has less memory free.
    Memory,
    /// It has less disk space free.
    Disk,
    /// It has this label, which is to be avoided.
    Avoided(Label),
    /// It does not have this label, which is required.
    Missing(Label),
}

/// Which of the nodes that fit.
///
/// What a node has free is counted in points: 64 for a vCPU, as many for 4 GiB of memory and for 64 GiB of disk. Among equals it is
/// the one that comes first in the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// The one with the most free: spreads.
    #[default]
    MostAvailable,
    /// The one with the least free: packs, and keeps room for large VMs.
    LeastAvailable,
    /// The next one after the last one chosen this way.
    RoundRobin,
}
