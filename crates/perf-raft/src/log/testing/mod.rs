//! For tests of logs: a simulated disk, and a conformance suite for [`LogStore`](super::LogStore)s.

mod conformance;
mod history;
mod random;
mod sim_disk;

pub use conformance::{Report, Subject, Violation, conformance};
pub use history::{History, Model};
pub use random::Random;
pub use sim_disk::{Fault, SECTOR_BYTES, SimDisk};

use super::{LogError, SnapshotStore, StoredSnapshot};
use crate::GroupId;

/// Writes the data of a snapshot in pieces of so many bytes, durably. The snapshot names it then, for a job.
///
/// # Errors
/// As the store's.
pub fn save_in_pieces(
    store: &dyn SnapshotStore,
    group: GroupId,
    snapshot: &mut StoredSnapshot,
    piece_bytes: usize,
) -> Result<(), LogError> {
    let mut writer = store.create(group)?;
    let data = std::mem::take(&mut snapshot.data);
    data.chunks(piece_bytes)
        .try_for_each(|piece| writer.write(piece))?;
    snapshot.stored = Some(writer.finish()?);
    Ok(())
}
