//! What is to be placed, and how.

use crate::error::CacheError;
use crate::placement::labels::Label;

/// How many labels a placement may avoid.
pub const AVOID_MAX: usize = 4;

/// What a VM needs of its node.
///
/// ```
/// use perf_cache::{PlacementIndex, Requirements};
///
/// let mut index = PlacementIndex::new();
/// let database = index.label("app=database")?;
/// let replica = Requirements::new(2, 4096, 20).avoiding(&[database])?;
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
        }
    }

    /// Not on a node that has one of these labels: anti-affinity. Replaces what was to be avoided before.
    ///
    /// # Errors
    /// [`CacheError::TooManyLabels`] if there are more than [`AVOID_MAX`].
    pub fn avoiding(mut self, labels: &[Label]) -> Result<Self, CacheError> {
        if labels.len() > AVOID_MAX {
            return Err(CacheError::TooManyLabels {
                labels_max: AVOID_MAX,
            });
        }
        // In order, so that the same set is the same key of a cache.
        let mut sorted = [None; AVOID_MAX];
        for (place, label) in sorted.iter_mut().zip(labels) {
            *place = Some(*label);
        }
        sorted.sort_unstable();
        self.avoid = sorted;
        Ok(self)
    }

    /// The labels to avoid.
    pub fn avoided(&self) -> impl Iterator<Item = Label> {
        self.avoid.into_iter().flatten()
    }
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
