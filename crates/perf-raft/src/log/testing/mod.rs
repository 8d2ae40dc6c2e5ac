//! For tests of logs: a simulated disk, and a conformance suite for [`LogStore`](super::LogStore)s.

mod conformance;
mod history;
mod random;
mod sim_disk;

pub use conformance::{Report, Subject, Violation, conformance};
pub use history::{History, Model};
pub use random::Random;
pub use sim_disk::{Fault, SECTOR_BYTES, SimDisk};
